"""95 % intervals of evaluation figures, and of differences between two runs, by resampling (Efron & Tibshirani 1993).

What is drawn with replacement are units: images, with all queries that belong to one of them. Units with the same
scores are alike, so a resample is a multinomial draw of how often each *kind* of unit occurs: of hits and misses there
are a handful of kinds however many images there are, and ten thousand resamples take milliseconds. The distribution is
exactly that of drawing units one by one. Everything is a pure function of the scores: the seed is fixed.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from xmodal.reporting.scores import Scores

METHODS = ("bca", "percentile", "none")
LEVEL, RESAMPLES = 0.95, 10_000
_AT_ONCE = 2**22  # numbers of a chunk of resamples
_DIGITS = 12  # figures that differ by less are the same: many resamples give exactly what was observed

# (how often each kind occurs [resamples, kinds], kinds [kinds, columns]) -> figures [resamples, figures]
Statistic = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Resampled(NamedTuple):
    """What resampling found of one or several figures.

    Attributes:
      observed: the figures, [figures].
      drawn: those of each resample, [resamples, figures].
      left_out: for each independent set of units, (figures without one unit of each kind [kinds, figures], number of
        units of the kind [kinds]).
    """

    observed: np.ndarray
    drawn: np.ndarray
    left_out: tuple[tuple[np.ndarray, np.ndarray], ...]


class Difference(NamedTuple):
    """Second minus first, its interval, and whether both answered the same queries.

    `chance` says that the two differ by nothing but the seed: whatever the interval, there is no cause to name.
    """

    value: float
    low: float
    high: float
    paired: bool
    chance: bool = False

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out zero, and something other than the seed differs."""
        return (self.low > 0 or self.high < 0) and not self.chance


def intervals(scores: Scores, method: str = "bca", resamples: int = RESAMPLES) -> dict[str, tuple[float, float]]:
    """Returns figure -> (low, high) for all figures of a group; none where a single unit tells nothing.

    Args:
      scores: of the queries.
      method: "bca" (bias-corrected and accelerated, Efron & Tibshirani 1993, section 14.3), "percentile", or "none".
      resamples: number of them.
    """
    if method == "none":
        return {}
    found = {}
    for figures, columns, statistic in _plans([scores]):
        if len(columns) < 2:
            continue
        ends = limits(resample(columns, statistic, resamples), method)
        for i, figure in enumerate(figures):
            low, high = ends[i]
            if low == high and low in (0.0, 1.0):  # all units agree: resampling them says nothing
                low, high = _exact(low, len(columns))
            found[figure] = (float(low), float(high))
    return {figure: found[figure] for figure in (*scores.values, *scores.macro) if figure in found}


def differences(
    first: Scores, second: Scores, method: str = "bca", resamples: int = RESAMPLES
) -> dict[str, Difference]:
    """Returns figure -> difference for the figures that both have.

    Where both have the same queries, they are resampled together (a paired bootstrap): what is hard for both cancels.
    """
    found: dict[str, Difference] = {}
    first, second = _with_figures_of(first, second), _with_figures_of(second, first)
    if first.digest and first.digest == second.digest and _same_layout(first, second):
        for figures, columns, statistic in _plans([first, second]):
            if len(columns) < 2:  # a single unit tells nothing of others
                continue
            found |= _differences(figures, resample(columns, _minus(statistic), resamples), method, True)
        return found
    mine, other = ({tuple(f): (c, s) for f, c, s in _plans([scores])} for scores in (first, second))
    for figures in mine.keys() & other.keys():
        if min(len(mine[figures][0]), len(other[figures][0])) < 2:
            continue
        a, b = resample(*mine[figures], resamples), resample(*other[figures], resamples, seed=1)
        minus = lambda b, a: np.round(b - a, _DIGITS)
        left_out = _apart(a, -1.0) + _apart(b, 1.0)
        apart = Resampled(minus(b.observed, a.observed), minus(b.drawn, a.drawn), left_out)
        found |= _differences(list(figures), apart, method, False)
    return found


def _with_figures_of(scores: Scores, other: Scores) -> Scores:
    shared = lambda own, others: {name: own[name] for name in own if name in others}
    return dataclasses.replace(
        scores, values=shared(scores.values, other.values), macro=shared(scores.macro, other.macro)
    )


def _same_layout(first: Scores, second: Scores) -> bool:
    pairs = ((getattr(first, key), getattr(second, key)) for key in ("unit", "group"))
    alike = all((a is None and b is None) or (a is not None and np.array_equal(a, b)) for a, b in pairs)
    return alike and len(first) == len(second)


def _differences(figures: Sequence[str], found: Resampled, method: str, paired: bool) -> dict[str, Difference]:
    ends = limits(found, method)
    return {f: Difference(float(found.observed[i]), *map(float, ends[i]), paired) for i, f in enumerate(figures)}


def _apart(part: Resampled, sign: float) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    return tuple((sign * figures, counts) for figures, counts in part.left_out)


def resample(columns: np.ndarray, statistic: Statistic, resamples: int = RESAMPLES, seed: int = 0) -> Resampled:
    """Draws units with replacement, as many as there are.

    Args:
      columns: what is known of each unit, [units, columns].
      statistic: of the number of each kind.
      resamples: number of them.
      seed: of the draws.
    """
    kinds, counts = np.unique(columns, axis=0, return_counts=True)
    rng, size = np.random.default_rng(seed), max(1, _AT_ONCE // len(kinds))
    drawn = []
    for start in range(0, resamples, size):
        times = rng.multinomial(len(columns), counts / len(columns), size=min(size, resamples - start))
        drawn.append(statistic(times.astype(np.float64), kinds))
    observed = np.round(statistic(counts[None].astype(np.float64), kinds)[0], _DIGITS)
    left_out = []
    for start in range(0, len(kinds), size):
        rows = np.arange(start, min(start + size, len(kinds)))
        times = np.repeat(counts[None].astype(np.float64), len(rows), axis=0)
        times[np.arange(len(rows)), rows] -= 1
        left_out.append(statistic(times, kinds))
    return Resampled(observed, np.round(np.concatenate(drawn), _DIGITS), ((np.concatenate(left_out), counts),))


def limits(found: Resampled, method: str = "bca", level: float = LEVEL) -> np.ndarray:
    """Returns the ends of the intervals, [figures, 2].

    Raises:
      ValueError: there is no such method.
    """
    if method not in METHODS[:2]:
        raise ValueError(f"there is no method {method!r}: {', '.join(METHODS[:2])}")
    tails = np.broadcast_to([(1 - level) / 2, (1 + level) / 2], (len(found.observed), 2))
    if method == "bca":
        corrected = _bca_tails(found, level)
        tails = np.where(np.isfinite(corrected).all(axis=1, keepdims=True), corrected, tails)
    return np.array([np.quantile(own, tail) for own, tail in zip(found.drawn.T, tails)])


def _bca_tails(found: Resampled, level: float) -> np.ndarray:
    """The tails of the distribution that the interval lies between, corrected for bias and skewness, [figures, 2]."""
    drawn, observed = found.drawn, found.observed
    below = (np.mean(drawn < observed, axis=0) + np.mean(drawn <= observed, axis=0)) / 2
    cubes = squares = 0.0
    for figures, counts in found.left_out:
        units = counts.sum()
        far = (units - 1) * (np.average(figures, axis=0, weights=counts) - figures)
        cubes = cubes + counts @ far**3 / units**3
        squares = squares + counts @ far**2 / units**2
    with np.errstate(divide="ignore", invalid="ignore"):
        bias, skew = special.ndtri(below), cubes / squares**1.5 / 6
        z = bias[:, None] + special.ndtri([(1 - level) / 2, (1 + level) / 2])
        return special.ndtr(bias[:, None] + z / (1 - skew[:, None] * z))


def _exact(share: float, units: int) -> tuple[float, float]:
    """Clopper & Pearson's interval of a share that is 0 or 1."""
    far = math.exp(math.log((1 - LEVEL) / 2) / units)
    return (0.0, 1 - far) if share == 0 else (far, 1.0)


# ---------------------------------------------------------------------------------------------- figures


def _plans(several: Sequence[Scores]) -> list[tuple[list[str], np.ndarray, Statistic]]:
    """Returns (figures, columns [units, ...], statistic) for plain figures and for means over groups.

    Of two scores of the same queries the columns lie side by side, and the statistic gives the figures of the one and
    then those of the other.
    """
    head, plans = several[0], []
    if plain := [name for name in head.values if all(name in scores.values for scores in several)]:
        parts = [np.stack([_totals(scores, name) for name in plain], axis=1) for scores in several]
        tables = [part.reshape(len(part), -1) for part in parts]  # values of a figure beside its weights
        plans.append((plain, np.concatenate(tables, axis=1), _ratios))
    for name, of in head.macro.items():
        if all(name in scores.macro for scores in several):
            values = [np.asarray(scores.values[of], np.float64) for scores in several]
            plans.append(([name], np.stack([head.group.astype(np.float64), *values], axis=1), _macro))
    return plans


def _totals(scores: Scores, name: str) -> np.ndarray:
    """What the queries of each unit scored together and could have scored, [units, 2]."""
    values = np.asarray(scores.values[name], np.float64)
    weights = np.asarray(scores.weights.get(name, np.ones(len(values))), np.float64)
    if scores.unit is None:
        return np.stack([values, weights], axis=1)
    there = np.bincount(scores.unit) > 0
    return np.stack([np.bincount(scores.unit, values)[there], np.bincount(scores.unit, weights)[there]], axis=1)


def _ratios(times: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    sums = times @ kinds
    scored, possible = sums[:, 0::2], sums[:, 1::2]
    # Of a draw in which nothing could be scored: not a number.
    return np.divide(scored, possible, out=np.full_like(scored, np.nan), where=possible > 0)


def _macro(times: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Means over groups; one that a resample lacks does not count. Kinds are sorted by group, their first column."""
    starts = np.flatnonzero(np.diff(kinds[:, 0], prepend=-1))
    counts = np.add.reduceat(times, starts, axis=1)
    there = counts > 0
    figures = []
    for values in kinds[:, 1:].T:
        shares = np.add.reduceat(times * values, starts, axis=1) / np.where(there, counts, 1.0)
        figures.append(np.sum(shares * there, axis=1) / np.maximum(there.sum(axis=1), 1))
    return np.stack(figures, axis=1)


def _minus(statistic: Statistic) -> Statistic:
    def second_minus_first(times: np.ndarray, kinds: np.ndarray) -> np.ndarray:
        both = statistic(times, kinds)
        half = both.shape[1] // 2
        return both[:, half:] - both[:, :half]

    return second_minus_first
