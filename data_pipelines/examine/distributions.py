"""Summaries of numbers and of repetitions that take bounded memory and can be put together from parts."""

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

_PER_OCTAVE = 128  # bins of a doubling: half a percent wide, and whole numbers up to 184 have one each
_SMALLEST = 2.0**-20
_MIX = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


class Distribution:
    """Positive numbers, counted in logarithmic bins.

    Attributes:
        count: how many.
        total: their sum.
        low: the smallest.
        high: the largest.
    """

    def __init__(self):
        self.count, self.total, self.low, self.high = 0, 0.0, math.inf, -math.inf
        self._bins: Counter[int] = Counter()

    def add(self, values: Iterable[float]) -> None:
        """Notes numbers; those below 2^-20 are counted as that."""
        values = np.fromiter(values, np.float64)
        if not len(values):
            return
        self.count, self.total = self.count + len(values), self.total + float(values.sum())
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        bins = np.round(_PER_OCTAVE * np.log2(np.maximum(values, _SMALLEST))).astype(int)
        self._bins.update(bins.tolist())

    def merge(self, other: "Distribution") -> None:
        """Adds what another one has counted."""
        self.count, self.total = self.count + other.count, self.total + other.total
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self._bins.update(other._bins)

    @property
    def mean(self) -> float:
        """Their mean; NaN of none."""
        return self.total / self.count if self.count else math.nan

    def quantile(self, share: float) -> float:
        """Returns the number that a `share` of them do not exceed, to half a percent; NaN of none."""
        values, counts = self._counted()
        if not len(values):
            return math.nan
        place = np.searchsorted(np.cumsum(counts), share * self.count, side="left")
        return float(np.clip(values[min(place, len(values) - 1)], self.low, self.high))

    def histogram(self, edges: np.ndarray) -> np.ndarray:
        """Returns how many lie in [edges[i], edges[i + 1]); the first and the last bin take what lies outside."""
        values, counts = self._counted()
        inside = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
        return np.bincount(inside, counts, len(edges) - 1).astype(np.int64)

    def summary(self) -> dict[str, float]:
        """Returns the figures of a table."""
        if not self.count:
            return dict(count=0)
        quantiles = {f"p{round(100 * share)}": self.quantile(share) for share in QUANTILES}
        return dict(count=self.count, mean=self.mean, min=self.low, **quantiles, max=self.high)

    def _counted(self) -> tuple[np.ndarray, np.ndarray]:
        bins = np.array(sorted(self._bins))
        values = 2.0 ** (bins / _PER_OCTAVE)
        whole = np.round(values)
        values = np.where(np.round(_PER_OCTAVE * np.log2(np.maximum(whole, 1))) == bins, whole, values)
        return values, np.array([self._bins[bin] for bin in bins.tolist()], np.float64)


class Repeats:
    """How many of many things are copies of others, told by a 64-bit number of each.

    Memory is bounded: of very many numbers only a share is kept, chosen by the number itself, so that all copies of a
    thing are kept or none (adaptive sampling, Wegman; Flajolet 1990).

    Args:
        limit: numbers that are kept.
    """

    def __init__(self, limit: int = 2**18):
        self._limit, self._bits = limit, 0
        self._seen: dict[int, list[Any]] = {}  # number -> [count, example]

    def add(self, number: int, example: str) -> None:
        """Notes a thing; `example` is how it is shown, if it is the first with its number."""
        self._note(number, 1, example)

    def merge(self, other: "Repeats") -> None:
        """Adds what another one has counted."""
        while self._bits < other._bits:
            self._halve()
        for number, (count, example) in other._seen.items():
            self._note(number, count, example)

    @property
    def share(self) -> float:
        """Share of the things that are copies of an earlier one; NaN of none."""
        things = sum(count for count, _ in self._seen.values())
        return 1 - len(self._seen) / things if things else math.nan

    @property
    def kept(self) -> float:
        """Share of the numbers that were kept; below 1 the other figures are estimates."""
        return 2.0**-self._bits

    def most(self, count: int) -> list[tuple[int, str]]:
        """Returns (copies, example) of what occurs most often, of those that occur more than once."""
        found = sorted((-copies, example) for copies, example in self._seen.values() if copies > 1)
        return [(-copies, example) for copies, example in found[:count]]

    def _note(self, number: int, count: int, example: str) -> None:
        if not self._keeps(number):
            return
        if number in self._seen:
            self._seen[number][0] += count
            return
        self._seen[number] = [count, example]
        while len(self._seen) > self._limit:
            self._halve()

    def _keeps(self, number: int) -> bool:
        # The numbers may be anything, such as the bits of a small image: multiplied, their upper bits are mixed.
        return not self._bits or (number * _MIX & _MASK) >> (64 - self._bits) == 0

    def _halve(self) -> None:
        self._bits += 1
        self._seen = {number: seen for number, seen in self._seen.items() if self._keeps(number)}
