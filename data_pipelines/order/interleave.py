"""Which source gives which sample of a mixture with fixed weights: a pattern that repeats, within one of all shares."""

from collections.abc import Sequence

import numpy as np

PERIOD = 2**16  # samples of the longest pattern


class Interleave:
    """The mixture of sources with fixed weights.

    At every prefix the samples of a source differ from its share by at most 1 - 1 / (2 k - 2) for k sources (Tijdeman
    1980, "The chairman assignment problem").

    Args:
        weights: of the sources, positive.
        longest: most samples of the pattern. Shares that need more are replaced by the nearest that do not.

    Attributes:
        counts: samples that each source has in the pattern, int64 [sources].
        pattern: the source of each of its samples, int64 [samples].
    """

    def __init__(self, weights: Sequence[float], longest: int = PERIOD):
        self.counts = np.array(_counts(weights, longest))
        self.pattern = np.array(_chairmen(self.counts.tolist()))
        taken = self.pattern[:, None] == np.arange(len(self.counts))
        self._before = np.cumsum(taken, axis=0) - taken

    @property
    def shares(self) -> np.ndarray:
        """Share of each source, as realised; float64 [sources]."""
        return self.counts / len(self.pattern)

    def taken(self, samples: int) -> np.ndarray:
        """Returns how many of the first so many samples each source gives; int64 [sources]."""
        cycle, place = divmod(samples, len(self.pattern))
        return cycle * self.counts + self._before[place]


def _counts(weights: Sequence[float], longest: int) -> list[int]:
    """Returns whole numbers in the same proportions; where these are too large, in the nearest that are not."""
    shares = np.array(weights, np.float64) / sum(weights)
    periods = np.arange(1, longest + 1)[:, None]
    counts = np.maximum(1, np.rint(shares * periods).astype(np.int64))
    off = np.abs(counts / counts.sum(1, keepdims=True) - shares).max(1)
    off[counts.sum(1) > longest] = np.inf
    exact = off < 1e-12  # 0.3333333333333333 means a third
    best = counts[np.argmax(exact) if exact.any() else np.argmin(off)]
    return (best // np.gcd.reduce(best)).tolist()


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
