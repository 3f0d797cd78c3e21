"""Divides embeddings into groups of near ones, all of one size: each sample with the nearest that are still free."""

import numpy as np

from data_pipelines.progress import progress
from xmodal.search.top_k import open_nearest
from xmodal.search.vectors import Vectors

_CANDIDATES = 64  # neighbours looked at for a group, at first
_SEEDS = 4096  # samples whose neighbours are held at a time


def neighbour_groups(vectors: Vectors, size: int, *, below: float = np.inf, seed: int = 0) -> np.ndarray:
    """Groups samples greedily, in a random order: the first takes its nearest neighbours, the next free one those left.

    Neighbours are exact. Groups that are made late are looser, as their samples' nearest ones are taken.

    Args:
      vectors: unit vectors.
      size: samples of a group.
      below: no two samples of a group have a cosine from this on, so that copies are not each other's negatives.
      seed: of the order.

    Returns:
      int64 [groups, size]; fewer than `size` samples are in none, or those that `below` keeps apart.
    """
    free, made = np.ones(len(vectors), bool), []
    order, count = np.random.default_rng(seed).permutation(len(vectors)), max(_CANDIDATES, 4 * size)
    with progress(len(vectors) // size, "grouping", "groups") as advance:
        while free.sum() >= size:
            rows, before = np.flatnonzero(free), len(made)
            nearest = open_nearest(Vectors([vectors.take(rows)], vectors.dim))
            seeds = order[free[order]]
            for start in range(0, len(seeds), _SEEDS):
                block = seeds[start : start + _SEEDS]
                block = block[free[block]]
                scores, found = nearest.top(vectors.take(block), count)
                for own, near, cosines in zip(block.tolist(), rows[found], scores):
                    group = _group(vectors, own, near[free[near] & (cosines < below)], size, below) if free[own] else ()
                    if len(group) == size:
                        free[group] = False
                        made.append(group)
                        advance(1)
            if len(made) == before:
                if count >= len(rows):
                    break
                count *= 8
    return np.array(made, np.int64).reshape(-1, size)


def _group(vectors: Vectors, own: int, near: np.ndarray, size: int, below: float) -> list[int]:
    """A sample and the first of `near`, of which no two are too much alike."""
    near = near[near != own]
    if below > 1:
        return [own, *near[: size - 1].tolist()]
    group, rows = [own], vectors.take(near)
    alike = rows @ rows.T >= below
    chosen: list[int] = []
    for i in range(len(near)):
        if len(chosen) == size - 1:
            break
        if not alike[i, chosen].any():
            chosen.append(i)
    return group + near[chosen].tolist()


def mean_cosine(vectors: Vectors, groups: np.ndarray) -> float:
    """Mean cosine of two different samples of a group."""
    size, total = groups.shape[1], 0.0
    for start in range(0, len(groups), _SEEDS):
        block = groups[start : start + _SEEDS]
        sums = vectors.take(block.reshape(-1)).reshape(*block.shape, -1).astype(np.float64)
        squares = np.square(sums).sum()
        total += np.square(sums.sum(axis=1)).sum() - squares
    return total / (len(groups) * size * (size - 1))
