"""The place of the right candidate among all candidates: what top-k, recall and accuracy are made of.

One rule for ties, in every evaluator: **of candidates with equal scores, the one that is listed first comes first**. So
do `torch.argmax`, `torch.sort(stable=True)`, `numpy.argmax` and `jax.lax.top_k`. (`torch.topk` leaves the order of ties
open, and its results differ from one width of the table to another.) Where a right candidate competes with wrong ones
that have no order among the data (the wrong captions of an image, the patches outside a box), the wrong ones count as
listed first, so that a model must prefer the right one.

A score that is not a finite number never helps: a right candidate with such a score is not found, and a wrong one comes
before the right ones.
"""

from typing import Any

import numpy as np


def ranks(scores: Any, right: Any, xp: Any = np) -> Any:
    """Returns the rank (0 is first) of the right candidate that comes first, int [queries].

    Other right candidates do not count as ahead of it. The rank is the number of candidates where no right one has a
    finite score.

    Args:
      scores: [queries, candidates], in the order in which the candidates are listed.
      right: bool [queries, candidates].
      xp: `numpy`, or `jax.numpy` for arrays on devices.
    """
    usable = right & xp.isfinite(scores)
    best = xp.max(xp.where(usable, scores, -xp.inf), axis=1, keepdims=True)
    first = xp.argmax(usable & (scores == best), axis=1)[:, None]
    listed_before = xp.arange(scores.shape[1]) < first
    ahead = ~right & (~(scores <= best) | ((scores == best) & listed_before))  # NaN is ahead, too
    return xp.where(usable.any(axis=1), xp.sum(ahead, axis=1), scores.shape[1])


def class_ranks(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the rank of the class of each sample, int [samples].

    Args:
      scores: [samples, classes].
      labels: int [samples], from 0.
    """
    return ranks(scores, labels[:, None] == np.arange(scores.shape[1]))


def answers(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the class that comes first for each sample, int [samples]: the label exactly where its rank is 0.

    Arguments as for `class_ranks`; with one class alone there is no other answer than the label.
    """
    columns = np.arange(scores.shape[1])
    others = np.where(np.isnan(scores), np.inf, scores)
    others = np.where(labels[:, None] == columns, -np.inf, others)
    return np.where(class_ranks(scores, labels) == 0, labels, np.argmax(others, axis=1))
