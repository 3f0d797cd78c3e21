"""Chooses samples of an index: which pairs fit together, which samples are near those of another index."""

import itertools

import numpy as np

from data_pipelines.io.storage import Files
from data_pipelines.sources.sample_lists import write_names
from xmodal.search.index import Index
from xmodal.search.matches import matches

_BLOCK = 65_536  # pairs scored at a time


def pair_scores(index: Index) -> np.ndarray:
    """Returns the cosine of each sample's picture and caption, float32 [samples]."""
    images, texts = index.vectors("image"), index.vectors("text")
    starts = range(0, len(index), _BLOCK)
    parts = [np.einsum("nd,nd->n", images.rows(i, i + _BLOCK), texts.rows(i, i + _BLOCK)) for i in starts]
    return np.concatenate([np.zeros(0, np.float32), *parts])


def best_share(scores: np.ndarray, share: float) -> np.ndarray:
    """Returns which samples are the best `share` (0 to 1), bool [samples]; of equal ones the first."""
    keep = np.zeros(len(scores), bool)
    keep[np.argsort(-scores, kind="stable")[: round(share * len(scores))]] = True
    return keep


def overlap(train: Index, test: Index, kind: str, least: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compares every test sample with every training sample.

    Args:
      train: many samples.
      test: few; they stay in memory.
      kind: "image" or "text": what is compared.
      least: cosine from which two samples are close.

    Returns:
      Of each test sample its nearest training sample, or -1 where none is close (int64 [test]), and their cosine
      (float32 [test]); and which training samples are close to any test sample (bool [train]).
    """
    nearest, best = np.full(len(test), -1), np.full(len(test), -np.inf, np.float32)
    close = np.zeros(len(train), bool)
    for found in matches(train.vectors(kind), test.vectors(kind), least):
        close[found.left] = True
        order = np.lexsort((found.left, -found.scores))
        rows, place = np.unique(found.right[order], return_index=True)  # of each test sample the best one here
        scores, lefts = found.scores[order][place], found.left[order][place]
        better = scores > best[rows]
        nearest[rows[better]], best[rows[better]] = lefts[better], scores[better]
    return nearest, best, close


def write_chosen(index: Index, which: np.ndarray, out: str) -> None:
    """Writes the names of the samples of an index for which `which` is true, for `keep` or `drop` of a source."""
    names = [(record["shard"], record["key"]) for record in index.records()]
    with Files() as files:
        write_names(out, itertools.compress(names, which.tolist()), files, {shard for shard, _ in names})
