"""Some of the samples of a source, as a source of its own."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipelines.errors import Fault
from data_pipelines.samples import Sample
from data_pipelines.sources.base import Source, faults_of
from data_pipelines.sources.blocks import Blocks
from data_pipelines.sources.measures import Measure


@dataclass(frozen=True)
class _SelectedBlocks(Blocks):
    """Blocks of which only some samples count.

    Attributes:
        whole: the blocks of the source.
        place: of each block in `whole`, int64 [blocks].
        first: number of its first sample in the source, int64 [blocks].
    """

    whole: Blocks
    place: np.ndarray
    first: np.ndarray


class Selected(Source):
    """The samples of a source for which `keep` is true; see `Source`.

    Args:
        source: the whole.
        keep: bool [samples of the source].
        name: of the part; None takes that of the source.
        reason: why the others are left out, which is then counted; None where they are in another part.
        account: what the source itself leaves out is counted here; False where another part does.
    """

    def __init__(
        self,
        source: Source,
        keep: np.ndarray,
        *,
        name: str | None = None,
        reason: str | None = None,
        account: bool = True,
    ):
        self._source, self._keep, self._reason, self._account = source, keep, reason, account
        self.name, self.spec, self.rules = name or source.name, source.spec, source.rules
        self.keyed, self.samples, self.bytes, self.shards = source.keyed, int(keep.sum()), source.bytes, source.shards
        self.lengths = None if source.lengths is None else source.lengths[keep]
        self._left_out = len(keep) - self.samples
        self.skipped = dict(source.skipped) if account else {}
        if reason and self._left_out:
            self.skipped[reason] = self._left_out

    def blocks(self, target: int) -> Blocks:
        """See `Source`."""
        # Smaller by what is left out, so that the memory for a window is used by samples.
        share = self.samples / max(len(self._keep), 1)
        whole = self._source.blocks(target)
        before = np.append(0, np.cumsum(self._keep))
        first = np.cumsum(whole.count) - whole.count
        count = before[first + whole.count] - before[first]
        (place,) = np.nonzero(count)
        size = np.maximum(1, (whole.bytes[place] * share).astype(np.int64))
        columns = whole.shard[place], whole.start[place], whole.end[place], count[place], size
        return _SelectedBlocks(*columns, whole=whole, place=place, first=first[place])

    def read(self, blocks: Blocks, i: int) -> list[Sample]:
        """See `Source`."""
        samples = self._source.read(blocks.whole, int(blocks.place[i]))
        first = blocks.first[i]
        return [sample for sample, keep in zip(samples, self._keep[first : first + len(samples)]) if keep]

    def column(self, measure: Measure) -> np.ndarray:
        """See `Source`."""
        return self._source.column(measure)[self._keep]

    def names(self, blocks: Blocks, i: int) -> list[tuple[str, str]]:
        """See `Source`."""
        names, first = self._source.names(blocks.whole, int(blocks.place[i])), blocks.first[i]
        return [name for name, keep in zip(names, self._keep[first : first + len(names)]) if keep]

    def shard_names(self) -> list[str]:
        """See `Source`."""
        return self._source.shard_names()

    def identity(self) -> Any:
        """See `Source`."""
        return self._source.identity(), hashlib.blake2b(np.packbits(self._keep), digest_size=8).hexdigest()

    def faults(self) -> Iterator[Fault]:
        """See `Source`."""
        if self._account:
            yield from self._source.faults()
        if self._reason and self._left_out:
            yield from faults_of(self._source, ~self._keep, self._reason)
