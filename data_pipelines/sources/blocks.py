"""The table of blocks: what the order deals out and the readers read."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Blocks:
    """Runs of samples, the unit of reading. All columns are int64 [blocks].

    Attributes:
        shard: number of the shard that a block lies in.
        start: where the block starts in its shard: a byte of a tar, a row of a list.
        end: where it ends.
        count: usable samples in it.
        bytes: what it takes in memory, about.
    """

    shard: np.ndarray
    start: np.ndarray
    end: np.ndarray
    count: np.ndarray
    bytes: np.ndarray

    def __len__(self) -> int:
        return len(self.count)

    def digest(self) -> bytes:
        """Returns what decides the order of the samples, for the fingerprint of a stream."""
        return b"".join(column.astype("<i8").tobytes() for column in (self.shard, self.start, self.end, self.count))
