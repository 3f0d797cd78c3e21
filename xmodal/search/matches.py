"""All pairs of embeddings that are closer than a threshold, exactly, block by block; and the groups that they form."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from data_pipelines.progress import progress
from xmodal.search.vectors import Vectors

_BLOCK = 4096  # rows compared with as many: their scores take 64 MiB
_EDGES = 2**23  # kept before they are put together to groups


class Matches(NamedTuple):
    """Pairs of rows and their cosines; int64, int64 and float32 [pairs]."""

    left: np.ndarray
    right: np.ndarray
    scores: np.ndarray


def matches(left: Vectors, right: Vectors, least: float) -> Iterator[Matches]:
    """Yields all pairs with a cosine of at least `least`, those of one pair of blocks at a time.

    Args:
      left: compared with `right`; where both are the same object, each pair of different rows comes once, left < right.
      right: stays in memory, on the first accelerator if there is one, or else as float32.
      least: cosine.
    """
    product, own = _product(right), left is right
    starts = range(0, len(left), _BLOCK)
    work = [(i, j) for i in starts for j in range(i if own else 0, len(right), _BLOCK)]
    block, held = None, -1
    with progress(len(work), "comparing", "pairs of blocks") as advance:
        for i, j in work:
            if i != held:
                block, held = left.rows(i, i + _BLOCK), i
            scores = product(block, j, min(j + _BLOCK, len(right)), least)
            advance(1)
            if scores is None:
                continue
            first, second = np.nonzero(scores >= least)
            values = scores[first, second]
            first, second = first + i, second + j
            if own:
                once = first < second
                first, second, values = first[once], second[once], values[once]
            if len(first):
                yield Matches(first, second, values)


def groups(vectors: Vectors, least: float) -> np.ndarray:
    """Returns for each row the number of the first row that it is connected with, itself or an earlier one.

    Two rows are connected where a chain of pairs leads from one to the other, each with a cosine of at least `least`.
    """
    total, edges, count = len(vectors), [], 0
    first = np.arange(total)
    for found in matches(vectors, vectors, least):
        edges.append((found.left, found.right))
        count += len(found.left)
        if count >= _EDGES:
            first, edges, count = _joined(first, edges), [], 0
    return _joined(first, edges)


def _joined(first: np.ndarray, edges: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Returns the groups of `first` with further edges between rows."""
    if not edges:
        return first
    left, right = (np.concatenate(column) for column in zip(*edges, strict=True))
    total = len(first)
    left, right = np.concatenate([left, np.arange(total)]), np.concatenate([right, first])
    graph = coo_matrix((np.ones(len(left), bool), (left, right)), (total, total))
    labels = connected_components(graph, directed=False)[1]
    smallest = np.full(labels.max() + 1, total)
    np.minimum.at(smallest, labels, np.arange(total))
    return smallest[labels]


def _product(right: Vectors) -> Callable[[np.ndarray, int, int, float], np.ndarray | None]:
    """Returns f(block, start, stop, least) -> cosines with these rows, or None where none reaches `least`."""
    import jax
    import jax.numpy as jnp

    if jax.default_backend() == "cpu":  # where NumPy's product is faster
        matrix = right.matrix()

        def on_host(block: np.ndarray, start: int, stop: int, least: float) -> np.ndarray | None:
            scores = block @ matrix[start:stop].T
            return scores if scores.max() >= least else None

        return on_host
    rows = jnp.asarray(np.concatenate(list(right.pieces(0, len(right)))))  # half the memory, and as exact
    multiply = jax.jit(lambda a, b: jnp.einsum("ad,bd->ab", a, b.astype(jnp.float32), precision="highest"))

    def on_device(block: np.ndarray, start: int, stop: int, least: float) -> np.ndarray | None:
        scores = multiply(block, rows[start:stop])
        return np.asarray(scores) if float(scores.max()) >= least else None  # few are worth their way to the host

    return on_device
