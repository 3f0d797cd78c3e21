"""Embeddings of all parts as one matrix."""

from collections.abc import Iterator, Sequence

import numpy as np

_BLOCK = 16_384  # rows widened at a time


class Vectors:
    """The rows of several arrays one after another; they stay on disk until they are asked for.

    Attributes:
      dim: width.
      dtype: in which they are kept.
    """

    def __init__(self, parts: Sequence[np.ndarray], dim: int):
        """Joins arrays [rows, dim]."""
        self.dim = dim
        self._parts = [part for part in parts if len(part)]
        self._ends = np.cumsum([len(part) for part in self._parts], dtype=np.int64)
        self.dtype = self._parts[0].dtype if self._parts else np.dtype(np.float32)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def pieces(self, start: int, stop: int) -> Iterator[np.ndarray]:
        """Yields the rows [start, stop) as they are kept, piece by piece."""
        for part, end in zip(self._parts, self._ends):
            first = int(end) - len(part)
            piece = part[max(start - first, 0) : max(stop - first, 0)]
            if len(piece):
                yield piece

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Returns the rows [start, stop), float32 [rows, dim]."""
        stop = min(stop, len(self))
        found, place = np.empty((max(stop - start, 0), self.dim), np.float32), 0
        for piece in self.pieces(start, stop):
            for block in range(0, len(piece), _BLOCK):  # of what is on disk little is in memory beside the copy
                part = piece[block : block + _BLOCK]
                found[place : place + len(part)] = part
                place += len(part)
        return found

    def matrix(self) -> np.ndarray:
        """Returns all rows, float32 [rows, dim]."""
        return self.rows(0, len(self))

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Returns the rows with these numbers, float32 [rows, dim]."""
        found = np.empty((len(rows), self.dim), np.float32)
        owners = np.searchsorted(self._ends, rows, "right")
        for owner in np.unique(owners).tolist():
            part, here = self._parts[owner], owners == owner
            found[here] = part[rows[here] - (int(self._ends[owner]) - len(part))]
        return found
