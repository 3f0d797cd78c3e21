"""A weighted interleave of several sources, as a closed form of the place in the stream."""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

_PERIOD = 2**16  # longest pattern; shares that need a longer one are rounded to multiples of 1 / _PERIOD


class Interleave:
    """Says for every slot of a lane which source fills it, and with which of that source's samples.

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

    def locate(self, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the source of each slot and how many samples of that source came before it; both [slots]."""
        cycle, place = np.divmod(slots, len(self._pattern))
        source = self._pattern[place]
        return source, cycle * self._counts[source] + self._before[place, source]


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
