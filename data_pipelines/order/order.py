"""The order of all samples as a pure function of (seed, position), for any number of processes.

An epoch of a source permutes its blocks, lays them end to end and cuts the line into parts, one for each lane (a
virtual reader). A lane shuffles the samples of about `window` blocks at a time: what it must hold in memory. Lanes
belong to the configuration and not to processes: a global batch takes equally many consecutive samples of every lane,
and a process owns a run of neighbouring lanes.

Slot s of lane l is the global row `s * lanes + l`: the identity of a sample's turn, from which its randomness derives
whatever the batch size. The mixture says which source fills it. Parts are equal, but where a change of weights finds
some lanes a sample ahead of others in a source: a part is as long as the lane has samples in that epoch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from data_pipelines import rng
from data_pipelines.errors import DataError
from data_pipelines.order.mixture import Mixture, distinct


class WindowKey(NamedTuple):
    """Names one shuffle window of the whole stream."""

    source: int
    lane: int
    epoch: int
    window: int


@dataclass(frozen=True)
class WindowPlan:
    """What a window holds, in the order in which it is used.

    Attributes:
        blocks: ids of its blocks in the block table of the source.
        block: which of `blocks` each sample lies in, int32 [samples].
        sample: which usable sample of that block it is, int32 [samples].
    """

    blocks: np.ndarray
    block: np.ndarray
    sample: np.ndarray


@dataclass(frozen=True)
class _Epoch:
    """One permutation of the blocks of a source, laid end to end: block `blocks[i]` ends at sample `ends[i]`."""

    blocks: np.ndarray
    ends: np.ndarray


@dataclass(frozen=True)
class _LanePart:
    """The part of a lane in an epoch: samples [low, high) of the line, window w holds blocks [cuts[w], cuts[w+1])."""

    low: int
    high: int
    cuts: np.ndarray
    starts: np.ndarray  # first sample of each window, counted within the lane


def epoch_size(counts: Sequence[np.ndarray], lanes: int) -> int:
    """Returns the samples that all sources give in one epoch: all but at most `lanes - 1` of each source."""
    return sum(int(count.sum()) // lanes * lanes for count in counts)


class Order:
    """The order of the samples of one or several sources.

    Args:
        counts: for each source the usable samples of its blocks.
        names: of the sources; each source is shuffled by its own name, whatever stands beside it.
        weights: share of the stream that each source has, in any unit, or a curriculum of it: see `Mixture`.
        lanes: virtual readers.
        window: blocks that a lane shuffles together, at most.
        seed: of the shuffles.
        together: neighbouring slots, of all lanes, that belong to one source; 0 if every sample has its own.

    Raises:
        DataError: a weight is malformed, or a source has fewer samples than there are lanes.
    """

    def __init__(
        self,
        counts: Sequence[np.ndarray],
        names: Sequence[str],
        weights: Sequence[Any],
        *,
        lanes: int,
        window: int,
        seed: int,
        together: int = 0,
    ):
        self.lanes = lanes
        self._counts, self._names, self._window, self._seed = list(counts), list(names), window, seed
        self._mixture = Mixture(weights, names, lanes, together)
        self._quota = np.array([int(count.sum()) // lanes for count in counts])
        for name, quota, count in zip(names, self._quota, counts):
            if not quota:
                raise DataError(
                    f"data.sources.{name} has {int(count.sum())} usable samples, fewer than data.lanes={lanes}; "
                    "lower data.lanes"
                )
        # Pure functions, remembered: neighbouring batches ask for the same few epochs and lanes.
        self._epoch = lru_cache(maxsize=2 * len(names))(self._make_epoch)
        self._begins = lru_cache(maxsize=4 * len(names))(self._make_begins)
        self._part = lru_cache(maxsize=2 * len(names) * lanes)(self._make_part)

    @property
    def shares(self) -> np.ndarray:
        """Share of the stream that each source has at its start; float64 [sources]."""
        return self._mixture.shares

    def epochs(self, position: int) -> np.ndarray:
        """Returns how often each source has been used up after so many samples of the stream; float64 [sources]."""
        return self._mixture.taken(position // self.lanes) / (self._quota * self.lanes)

    def locate(self, lane: int, first: int, count: int) -> Iterator[tuple[WindowKey, np.ndarray, np.ndarray]]:
        """Finds the samples of slots [first, first + count) of a lane.

        Yields:
            A window, the places within the slots that it fills, and the samples of the window that fill them.
        """
        sources, turns = self._mixture.locate(lane, np.arange(first, first + count))
        slots = np.arange(count)
        for source, at in distinct(sources):
            epochs, offsets = self._epochs_of(source, lane, turns[at])
            for epoch, here in distinct(epochs):
                starts = self._part(source, epoch, lane).starts
                windows = np.searchsorted(starts, offsets[here], side="right") - 1
                for window, inside in distinct(windows):
                    key = WindowKey(source, lane, epoch, window)
                    yield key, slots[at][here][inside], offsets[here][inside] - starts[window]

    def following(self, key: WindowKey) -> WindowKey:
        """Returns the window that comes after `key` in its lane and source."""
        if key.window + 1 < len(self._part(key.source, key.epoch, key.lane).starts):
            return key._replace(window=key.window + 1)
        epoch = key.epoch + 1
        while self._begins(key.source, epoch)[key.lane] == self._begins(key.source, epoch + 1)[key.lane]:
            epoch += 1  # of which the lane has nothing
        return key._replace(epoch=epoch, window=0)

    def plan(self, key: WindowKey) -> WindowPlan:
        """Returns the content of a window, shuffled."""
        epoch = self._epoch(key.source, key.epoch)
        part = self._part(key.source, key.epoch, key.lane)
        places = np.arange(part.cuts[key.window], part.cuts[key.window + 1])
        blocks, ends = epoch.blocks[places], epoch.ends[places]
        begins = ends - self._counts[key.source][blocks]
        # A block on the border of two lanes is cut: each takes its side.
        low, high = np.maximum(begins, part.low) - begins, np.minimum(ends, part.high) - begins
        block = np.repeat(np.arange(len(blocks)), high - low)
        sample = np.arange(len(block)) + np.repeat(low - np.cumsum(high - low) + (high - low), high - low)
        name = self._names[key.source]
        shuffle = rng.permutation(len(block), self._seed, "window", name, key.epoch, key.lane, key.window)
        return WindowPlan(blocks, block[shuffle].astype(np.int32), sample[shuffle].astype(np.int32))

    def _epochs_of(self, source: int, lane: int, turns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the epoch of each turn of a lane, which rise, and its place in the lane's part; both [turns]."""
        epoch = int(turns[0] // self._quota[source])
        while (begin := self._begins(source, epoch)[lane]) > turns[0]:
            epoch -= 1
        begins = [begin]
        while begins[-1] <= turns[-1]:
            begins.append(self._begins(source, epoch + len(begins))[lane])
        number = np.searchsorted(begins, turns, side="right") - 1
        return epoch + number, turns - np.array(begins)[number]

    def _make_begins(self, source: int, epoch: int) -> np.ndarray:
        """Returns the samples of a source that each lane has before an epoch begins; int64 [lanes]."""
        return self._mixture.turns(source, epoch * int(self._quota[source]) * self.lanes)

    def _make_epoch(self, source: int, epoch: int) -> _Epoch:
        counts = self._counts[source]
        blocks = rng.permutation(len(counts), self._seed, "blocks", self._names[source], epoch)
        return _Epoch(blocks, np.cumsum(counts[blocks]))

    def _make_part(self, source: int, epoch: int, lane: int) -> _LanePart:
        ends = self._epoch(source, epoch).ends
        sizes = self._begins(source, epoch + 1) - self._begins(source, epoch)
        low, high = int(sizes[:lane].sum()), int(sizes[: lane + 1].sum())
        first, last = np.searchsorted(ends, low, side="right"), np.searchsorted(ends, high, side="left")
        blocks = int(last - first) + 1
        windows = -(-blocks // self._window)
        # Windows of equal size: a last window of one block would hardly be shuffled.
        cuts = first + blocks * np.arange(windows + 1) // windows
        starts = np.append(0, ends[cuts[1:-1] - 1] - low)
        return _LanePart(low, high, cuts, starts)
