"""Which samples to look at when all of them are too many: runs of neighbours, spread evenly over everything."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from data_pipelines import rng
from data_pipelines.samples import Sample
from data_pipelines.sources.base import Source
from data_pipelines.sources.blocks import Blocks

_RUN = 64  # neighbours that are read together: a block is read whole for one sample of it


class Part(NamedTuple):
    """Samples [first, first + count) of a block of a source."""

    source: int
    block: int
    first: int
    count: int


@dataclass(frozen=True)
class Choice:
    """Parts of blocks, in the order of the data. All columns are int64 [parts]; see `Part`."""

    source: np.ndarray
    block: np.ndarray
    first: np.ndarray
    count: np.ndarray

    def __len__(self) -> int:
        return len(self.count)

    def __iter__(self) -> Iterator[Part]:
        """Yields the parts one at a time: there may be millions."""
        for row in zip(self.source, self.block, self.first, self.count):
            yield Part(*map(int, row))

    @property
    def samples(self) -> int:
        """How many were chosen."""
        return int(self.count.sum())


def choose(tables: Sequence[Blocks], wanted: int = 0, seed: int = 0) -> Choice:
    """Chooses samples of the blocks of several sources.

    Args:
        tables: the blocks of each source.
        wanted: exactly so many samples; 0, or more than there are, takes all of them.
        seed: another one chooses others.

    Returns:
        Runs of neighbours at random places, one in each of equal stretches, so that every sample is as likely as any
        other, but for those at the edges of a stretch.
    """
    counts = np.concatenate([table.count for table in tables])
    source = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
    block = np.concatenate([np.arange(len(table)) for table in tables])
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    if not wanted or wanted >= total:
        return Choice(source, block, np.zeros_like(counts), counts)
    runs = min(wanted, max(_RUN, wanted // _RUN))
    before = np.arange(runs + 1) * wanted // runs
    borders, lengths = before * total // wanted, np.diff(before)  # a stretch is never shorter than its run
    chance = rng.uniform(rng.row_words(0, runs, 4, seed, "choose")[:, 0])
    begin = borders[:-1] + (chance * (np.diff(borders) - lengths + 1)).astype(np.int64)
    # A run may reach over several blocks: of each it takes a part.
    low, high = np.searchsorted(ends, begin, "right"), np.searchsorted(ends, begin + lengths - 1, "right")
    parts = high - low + 1
    run = np.repeat(np.arange(len(parts)), parts)
    place = low[run] + np.arange(len(run)) - (np.cumsum(parts) - parts)[run]
    starts = ends[place] - counts[place]
    first = np.maximum(begin[run], starts) - starts
    last = np.minimum(begin[run] + lengths[run], ends[place]) - starts
    return Choice(source[place], block[place], first, last - first)


def read_part(part: Part, sources: Sequence[Source], tables: Sequence[Blocks]) -> list[Sample]:
    """Returns the samples of a part. Raises DataError as `Source.read`."""
    samples = sources[part.source].read(tables[part.source], part.block)
    return samples[part.first : part.first + part.count]
