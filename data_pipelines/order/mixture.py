"""Which source fills which place of the stream: a closed form of the place, so that there is no state to keep."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.order.interleave import PERIOD, Interleave
from data_pipelines.order.lanes import Deal

MIXTURE_VERSION = 2  # of the order of mixtures: saved runs that began with another are told
_DEALT = 2**20  # samples at most after which a pattern that is dealt to lanes repeats as a whole


class _Phase(NamedTuple):
    """A stretch of the stream with fixed weights; `Mixture` says what its places are.

    Attributes:
        first: its first place.
        sources: those that have a weight, int64.
        interleave: of these.
        deal: of the interleave to the lanes.
        before: what each lane had of each source in earlier phases, int64 [lanes, sources].
    """

    first: int
    sources: np.ndarray
    interleave: Interleave
    deal: Deal
    before: np.ndarray


class Mixture:
    """Says for every slot of a lane which source fills it, and with which of the lane's samples of that source.

    After every slot the number of samples of a source, of all lanes together, differs by less than one from its share
    of those since the weights last changed. Lanes differ by at most one in what they had of a source, and by one more
    for each change of weights.

    Args:
        weights: of the sources: a number, or a curriculum ((start, number), ...) from so many samples of the stream on.
        names: of the sources, for messages.
        lanes: samples of one slot.
        together: neighbouring slots that one source fills in all lanes: those of a batch where batches are not to be
            mixed, which then keep the shares within one batch. 0 mixes samples.

    Raises:
        DataError: a weight is malformed, or a stretch of the stream has no source.
    """

    def __init__(self, weights: Sequence[Any], names: Sequence[str], lanes: int = 1, together: int = 0):
        curricula = [curriculum(weight, name) for weight, name in zip(weights, names)]
        starts = sorted({start for curriculum in curricula for start, _ in curriculum})
        # Samples are interleaved and dealt to the lanes, or groups of slots, as if dealt to a single lane. What a lane
        # is dealt at a time is a place: `self._slots` slots.
        self._lanes, self._together, self._slots = lanes, bool(together), together or 1
        self._dealt = 1 if together else lanes
        longest = max(1024, min(PERIOD, _DEALT // self._dealt))
        self._phases: list[_Phase] = []
        for start in starts:
            first = -(-start // (lanes * self._slots))
            now = np.array([[weight for since, weight in curriculum if since <= start][-1] for curriculum in curricula])
            (sources,) = np.nonzero(now)
            if not len(sources):
                raise DataError(f"no entry of data.sources has a weight from sample {start:,} of the stream on")
            before = np.zeros((self._dealt, len(names)), np.int64)
            if self._phases:
                last = self._phases[-1]
                before = last.before.copy()
                before[:, last.sources] += last.deal.taken(first - last.first)
            interleave = Interleave(now[sources].tolist(), longest)
            self._phases.append(_Phase(first, sources, interleave, Deal(interleave, self._dealt), before))
        self._firsts = np.array([phase.first for phase in self._phases])

    @property
    def shares(self) -> np.ndarray:
        """Share that each source has at the start, as realised; float64 [sources]."""
        first = self._phases[0]
        shares = np.zeros(first.before.shape[1])
        shares[first.sources] = first.interleave.shares
        return shares

    def taken(self, slots: int) -> np.ndarray:
        """Returns how many samples of each source the first so many slots of all lanes hold; int64 [sources]."""
        places, rest = divmod(slots, self._slots)
        phase = self._phases[np.searchsorted(self._firsts, places, side="right") - 1]
        taken = phase.before.sum(0)
        taken[phase.sources] += phase.interleave.taken((places - phase.first) * self._dealt)
        taken *= self._slots * self._lanes // self._dealt
        if rest:
            taken[self.locate(0, np.array([slots]))[0]] += rest * self._lanes
        return taken

    def locate(self, lane: int, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the source of each slot of a lane, and how many samples of it the lane had before; both [slots]."""
        lane %= self._dealt
        places, within = np.divmod(slots, self._slots)
        source, turn = np.empty_like(places), np.empty_like(places)
        for i, here in distinct(np.searchsorted(self._firsts, places, side="right") - 1):
            phase = self._phases[i]
            chosen, turns = phase.deal.locate(lane, places[here] - phase.first)
            source[here] = phase.sources[chosen]
            turn[here] = phase.before[lane, source[here]] + turns
        return source, turn * self._slots + within

    def turns(self, source: int, taken: int) -> np.ndarray:
        """Returns how many of the first so many samples of a source each lane has; int64 [lanes].

        Samples of one slot count in the order of the lanes, but for those that complete a round: they come first.
        """
        evenly = lambda samples: samples // self._lanes + (np.arange(self._lanes) < samples % self._lanes)
        if self._together:
            return evenly(taken)
        # Of phases that begin with the same samples of the source all but the last one have none of it.
        phase = [phase for phase in self._phases if phase.before[:, source].sum() <= taken][-1]
        before = phase.before[:, source]
        taken -= int(before.sum())
        if source in phase.sources:
            return before + phase.deal.turns(int(np.searchsorted(phase.sources, source)), taken)
        return before + evenly(taken)  # it has no weight any more: as if it went on


def distinct(values: np.ndarray) -> Iterator[tuple[int, Any]]:
    """Yields each value of an array with an index of the places where it stands, in rising order."""
    first = int(values[0])
    if (values == first).all():  # as nearly always: a batch takes few samples of each lane
        yield first, slice(None)
    else:
        yield from ((value, values == value) for value in np.unique(values).tolist())


def curriculum(weight: Any, name: str, samples: Callable[[Any], int] = int) -> tuple[tuple[int, float], ...]:
    """Returns the weight of a source as ((first sample, weight), ...).

    Args:
        weight: a number, or ((start, number), ...).
        name: of the source, for messages.
        samples: turns a start into samples of the stream.

    Raises:
        DataError: it is something else, a number is negative, or the starts do not rise from 0.
    """
    where = f"data.sources.{name}.weight is"
    if not isinstance(weight, list | tuple):
        return ((0, _weight(weight, f"{where} {weight!r}")),)
    if not weight or any(not isinstance(step, list | tuple) or len(step) != 2 for step in weight):
        raise DataError(f"{where} {weight!r}; expected a number, or ((start, number), ...)")
    steps = tuple((samples(start), _weight(value, f"{where} {value!r} from {start!r} on")) for start, value in weight)
    if steps[0][0] != 0 or any(a[0] >= b[0] for a, b in zip(steps, steps[1:])):
        raise DataError(f"{where} {weight!r}; its starts must rise from 0")
    return steps


def _weight(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise DataError(f"{what}; expected a number from 0")
    return float(value)
