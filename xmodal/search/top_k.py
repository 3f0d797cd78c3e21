"""Exact nearest neighbours by cosine: one rule, three engines.

An engine finds candidates in float32, in whatever order of summation is fastest there. How far such a sum can be off
is known; all rows within that of the k-th are candidates, and are scored again in float64. So the result is the exact
top k of the stored embeddings, equal scores in the order of their numbers, whichever engine found it.
"""

import abc
import functools
import importlib.util
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.host import cores
from xmodal.config import ConfigError
from xmodal.search.vectors import Vectors

_SPARE = 64  # candidates beyond k, so that asking again for more is rare
_ROUNDING = 2.0**-24  # of one float32 operation, relative; a product of unit vectors takes as many as they are wide
_AT_ONCE = 16  # queries
_ROWS = 2**15  # of a product that one thread works on
_BLOCK_BYTES = 2**28  # of scores held at a time


class Nearest(abc.ABC):
    """Finds nearest rows of some vectors; made once, asked often.

    Attributes:
      name: of the engine.
    """

    name: ClassVar[str]

    def __init__(self, vectors: Vectors):
        """Loads the vectors to where they are searched."""
        self.vectors = vectors
        self._margin = 2.1 * (vectors.dim + 1) * _ROUNDING  # of two scores; half precision makes a vector 1.001 long

    def top(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the exact top k of each query.

        Args:
          queries: unit vectors, float [queries, dim].
          k: at most as many as there are rows are found.

        Returns:
          (cosines float64 [queries, k], row numbers int64 [queries, k]), best first, equal ones by number.
        """
        queries = np.ascontiguousarray(queries, np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.vectors.dim:
            raise DataError(f"queries are {queries.shape}; expected [queries, {self.vectors.dim}]")
        k = min(k, len(self.vectors))
        if k < 1 or not len(queries):
            return np.zeros((len(queries), max(k, 0))), np.zeros((len(queries), max(k, 0)), np.int64)
        found = [self._exact(queries[i : i + _AT_ONCE], k) for i in range(0, len(queries), _AT_ONCE)]
        return np.concatenate([scores for scores, _ in found]), np.concatenate([rows for _, rows in found])

    def _exact(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        asked, total = k + _SPARE, len(self.vectors)
        while True:
            scores, rows = self._candidates(queries, min(asked, total))
            order = np.argsort(-scores, axis=1)
            scores, rows = (np.take_along_axis(a, order, axis=1) for a in (scores, rows))
            limit = scores[:, k - 1] - self._margin
            if asked >= total or (scores[:, -1] < limit).all():
                break
            asked *= 8  # very many equal ones
        near = [own[score >= least] for own, score, least in zip(rows, scores, limit)]
        best = [self._rescored(query, own, k) for query, own in zip(queries, near)]
        return np.stack([scores for scores, _ in best]), np.stack([rows for _, rows in best])

    def _rescored(self, query: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        rows = np.sort(rows)
        blocks = (self.vectors.take(rows[i : i + 4096]).astype(np.float64) for i in range(0, len(rows), 4096))
        # Row by row and not as a matrix product, whose sums may depend on where a row stands.
        scores = np.concatenate([(block * query.astype(np.float64)).sum(axis=1) for block in blocks])
        best = np.lexsort((rows, -scores))[:k]
        return scores[best], rows[best]

    @abc.abstractmethod
    def _candidates(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns scores float32 and numbers int64, [queries, count], of the best rows up to rounding, in any order."""


class NumPyNearest(Nearest):
    """All rows in memory as float32: products that are bound by the memory's bandwidth. The fastest on a CPU."""

    name = "numpy"

    def __init__(self, vectors: Vectors):
        super().__init__(vectors)
        self._matrix, self._pool = vectors.matrix(), ThreadPoolExecutor(cores())

    def _candidates(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        scores = self._products(queries[0])[None] if len(queries) == 1 else queries @ self._matrix.T
        return _largest(scores, np.broadcast_to(np.arange(scores.shape[1]), scores.shape), count)

    def _products(self, query: np.ndarray) -> np.ndarray:
        """Row by row on all cores: a quarter less CPU time than the product of matrix and vector takes."""
        scores = np.empty(len(self._matrix), np.float32)

        def fill(start: int) -> None:
            here = slice(start, start + _ROWS)
            np.vecdot(self._matrix[here], query, out=scores[here])

        list(self._pool.map(fill, range(0, len(scores), _ROWS)))
        return scores


class JaxNearest(Nearest):
    """Rows over all devices of this process, as they are kept; each device finds its own best, block by block."""

    name = "jax"

    def __init__(self, vectors: Vectors):
        import jax

        super().__init__(vectors)
        devices = jax.local_devices()
        self._mesh = jax.make_mesh(
            (len(devices),), ("rows",), axis_types=(jax.sharding.AxisType.Auto,), devices=devices
        )
        share = -(-len(vectors) // len(devices))
        self._block = max(1, min(share, _BLOCK_BYTES // (4 * max(_AT_ONCE, vectors.dim))))
        rows = -(-share // self._block) * self._block * len(devices)
        split = jax.NamedSharding(self._mesh, jax.P("rows"))
        self._rows = jax.make_array_from_callback((rows, vectors.dim), split, functools.partial(self._piece, rows))
        self._find = functools.lru_cache(self._compiled)

    def _piece(self, rows: int, index: tuple[slice, ...]) -> np.ndarray:
        """The part `index` of all rows, filled up with zeros to `rows`; one device has `slice(None)`."""
        start, stop, _ = index[0].indices(rows)
        found, place = np.zeros((stop - start, self.vectors.dim), self.vectors.dtype), 0
        for piece in self.vectors.pieces(start, min(stop, len(self.vectors))):
            found[place : place + len(piece)] = piece
            place += len(piece)
        return found

    def _candidates(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        padded = np.zeros((1 if len(queries) == 1 else _AT_ONCE, queries.shape[1]), np.float32)  # two programs
        padded[: len(queries)] = queries
        scores, rows = (np.asarray(a) for a in self._find(count)(self._rows, padded))
        flat = lambda a: np.moveaxis(a, 0, 1).reshape(len(padded), -1)[: len(queries)]  # [devices, queries, count]
        return _largest(flat(scores), flat(rows).astype(np.int64), count)

    def _compiled(self, count: int):
        import jax
        import jax.numpy as jnp

        block, total, dim = self._block, len(self.vectors), self.vectors.dim

        def local(rows: jax.Array, queries: jax.Array) -> tuple[jax.Array, jax.Array]:
            own = rows.shape[0]
            most = min(count, own)

            def one(best: tuple, part: tuple) -> tuple:
                number, values = part
                scores = jnp.einsum("qd,rd->qr", queries, values.astype(jnp.float32), precision="highest")
                numbers = jax.lax.axis_index("rows") * own + number * block + jnp.arange(block)
                scores = jnp.where(numbers < total, scores, -jnp.inf)
                scores = jnp.concatenate([best[0], scores], axis=1)
                numbers = jnp.concatenate([best[1], jnp.broadcast_to(numbers, (len(queries), block))], axis=1)
                scores, places = jax.lax.top_k(scores, most)
                return (scores, jnp.take_along_axis(numbers, places, axis=1)), None

            none = jnp.full((len(queries), most), -jnp.inf), jnp.full((len(queries), most), total)
            none = jax.tree.map(lambda a: jax.lax.pcast(a, "rows", to="varying"), none)
            parts = jnp.arange(own // block), rows.reshape(-1, block, dim)
            best, _ = jax.lax.scan(one, none, parts)
            return jax.tree.map(lambda a: a[None], best)

        split, whole = jax.P("rows"), jax.P()
        return jax.jit(jax.shard_map(local, mesh=self._mesh, in_specs=(split, whole), out_specs=(split, split)))


class FaissNearest(Nearest):
    """FAISS's flat index of inner products, where that library is installed.

    Attributes:
      flat: that index.
    """

    name = "faiss"

    def __init__(self, vectors: Vectors):
        if importlib.util.find_spec("faiss") is None:
            raise ConfigError("FAISS is not installed: `pip install faiss-cpu`, or leave the engine to be chosen")
        import faiss

        super().__init__(vectors)
        self.flat = faiss.IndexFlatIP(vectors.dim)
        for start in range(0, len(vectors), 2**17):
            self.flat.add(vectors.rows(start, start + 2**17))

    def _candidates(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        return self.flat.search(queries, count)


ENGINES: dict[str, type[Nearest]] = {own.name: own for own in (NumPyNearest, JaxNearest, FaissNearest)}


def open_nearest(vectors: Vectors, engine: str = "auto") -> Nearest:
    """Loads vectors into an engine: "numpy", "jax", "faiss", or "auto": NumPy on a CPU, JAX on accelerators."""
    if engine == "auto":
        import jax

        engine = "numpy" if jax.default_backend() == "cpu" else "jax"
    return ENGINES[engine](vectors)


def _largest(scores: np.ndarray, rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    if count >= scores.shape[1]:
        return scores, np.ascontiguousarray(rows)
    chosen = np.argpartition(scores, scores.shape[1] - count, axis=1)[:, -count:]
    return np.take_along_axis(scores, chosen, axis=1), np.take_along_axis(rows, chosen, axis=1)
