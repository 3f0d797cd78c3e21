"""Which source fills which place of the stream: a closed form of the place, so that there is no state to keep."""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.errors import DataError

_PERIOD = 2**16  # longest pattern; shares that need a longer one are rounded to multiples of 1 / _PERIOD


class _Phase(NamedTuple):
    """A stretch of the stream with fixed weights.

    Attributes:
        first: its first group of slots.
        sources: those that have a weight, int64.
        interleave: of these.
        before: groups of each source in earlier phases, int64 [all sources].
    """

    first: int
    sources: np.ndarray
    interleave: "Interleave"
    before: np.ndarray


class Mixture:
    """Says for every slot of a lane which source fills it, and with which of that source's samples.

    Args:
        weights: of the sources: a number, or a curriculum ((start, number), ...) from so many samples of the stream on.
        names: of the sources, for messages.
        lanes: samples of one slot.
        group: neighbouring slots that one source fills: those of a batch where batches are not to be mixed.

    Raises:
        DataError: a weight is malformed, or a stretch of the stream has no source.
    """

    def __init__(self, weights: Sequence[Any], names: Sequence[str], lanes: int = 1, group: int = 1):
        curricula = [curriculum(weight, name) for weight, name in zip(weights, names)]
        starts = sorted({start for curriculum in curricula for start, _ in curriculum})
        self._group, self._phases = group, []
        for start in starts:
            first = -(-start // (lanes * group))
            now = np.array([[weight for since, weight in curriculum if since <= start][-1] for curriculum in curricula])
            (sources,) = np.nonzero(now)
            if not len(sources):
                raise DataError(f"no entry of data.sources has a weight from sample {start:,} of the stream on")
            before = self._taken(first) if self._phases else np.zeros(len(names), np.int64)
            self._phases.append(_Phase(first, sources, Interleave(now[sources].tolist()), before))
        self._firsts = np.array([phase.first for phase in self._phases])

    @property
    def shares(self) -> np.ndarray:
        """Share that each source has at the start, as realised; float64 [sources]."""
        first = self._phases[0]
        shares = np.zeros(len(first.before))
        shares[first.sources] = first.interleave.shares
        return shares

    def taken(self, slots: int) -> np.ndarray:
        """Returns how many of the first so many slots of a lane each source has filled; int64 [sources]."""
        groups, rest = divmod(slots, self._group)
        taken = self._taken(groups) * self._group
        if rest:
            taken[self.locate(np.array([slots]))[0]] += rest
        return taken

    def locate(self, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the source of each slot and how many samples of that source came before it; both [slots]."""
        groups, places = np.divmod(slots, self._group)
        source, turn = np.empty_like(groups), np.empty_like(groups)
        number = np.searchsorted(self._firsts, groups, side="right") - 1
        for i in np.unique(number):
            phase, here = self._phases[i], number == i
            chosen, turns = phase.interleave.locate(groups[here] - phase.first)
            source[here] = phase.sources[chosen]
            turn[here] = phase.before[source[here]] + turns
        return source, turn * self._group + places

    def _taken(self, groups: int) -> np.ndarray:
        phase = next(phase for phase in reversed(self._phases) if phase.first <= groups)
        taken = phase.before.copy()
        taken[phase.sources] += phase.interleave.taken(groups - phase.first)
        return taken


class Interleave:
    """The mixture of sources with fixed weights.

    At every prefix the samples of a source differ from its share by less than one (Tijdeman 1980, "The chairman
    assignment problem"); the pattern repeats, so the place alone determines source and sample.

    Args:
        weights: of the sources, positive.
    """

    def __init__(self, weights: Sequence[float]):
        counts = _integer_weights(weights)
        self._pattern = np.array(_chairmen(counts))
        taken = self._pattern[:, None] == np.arange(len(counts))
        self._counts = np.array(counts)
        self._before = np.cumsum(taken, axis=0) - taken

    @property
    def shares(self) -> np.ndarray:
        """Share of each source, as realised; float64 [sources]."""
        return self._counts / self._counts.sum()

    def taken(self, slots: int) -> np.ndarray:
        """Returns how many of the first so many slots each source fills; int64 [sources]."""
        cycle, place = divmod(slots, len(self._pattern))
        return cycle * self._counts + self._before[place]

    def locate(self, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the source of each slot and how many samples of that source came before it; both [slots]."""
        cycle, place = np.divmod(slots, len(self._pattern))
        source = self._pattern[place]
        return source, cycle * self._counts[source] + self._before[place, source]


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


def _integer_weights(weights: Sequence[float]) -> list[int]:
    """Returns whole numbers in the same proportions, or the nearest to them of which the pattern is not too long."""
    total = sum(Fraction(str(weight)) for weight in weights)
    shares = [Fraction(str(weight)) / total for weight in weights]
    simple = [share.limit_denominator(_PERIOD) for share in shares]  # 0.3333333333333333 means a third
    period = math.lcm(*(share.denominator for share in simple))
    if period > _PERIOD or any(abs(a - b) > 1e-12 for a, b in zip(simple, shares)):
        simple, period = shares, _PERIOD
    counts = [max(1, round(share * period)) for share in simple]
    return [count // math.gcd(*counts) for count in counts]


def _chairmen(counts: Sequence[int]) -> list[int]:
    """One period of Tijdeman's assignment: of the sources that are due, the one whose deadline is nearest."""
    period, sources = sum(counts), len(counts)
    slack = max(2 * sources - 2, 1)
    chosen, pattern = [0] * sources, []
    for slot in range(1, period + 1):
        due = [j for j in range(sources) if slack * (slot * counts[j] - chosen[j] * period) >= period]
        deadline = lambda j: -((period - slack * (chosen[j] + 1) * period) // (slack * counts[j]))
        source = min(due, key=deadline)
        chosen[source] += 1
        pattern.append(source)
    return pattern
