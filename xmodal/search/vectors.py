"""Embeddings of all parts as one matrix."""

from collections.abc import Iterator, Sequence

import numpy as np

from data_pipelines.errors import DataError

_BLOCK = 16_384  # rows widened at a time


class Vectors:
    """The rows of several arrays one after another; they stay on disk until they are asked for.

    Attributes:
      dim: width.
      dtype: in which they are kept.
    """

    def __init__(self, parts: Sequence[np.ndarray], dim: int, names: Sequence[str] = ()):
        """Joins arrays [rows, dim]; `names` are those of their files, for messages."""
        self.dim = dim
        self._parts = [part for part in parts if len(part)]
        self._names = [name for name, part in zip(names, parts) if len(part)]
        self._ends = np.cumsum([len(part) for part in self._parts], dtype=np.int64)
        self.dtype = self._parts[0].dtype if self._parts else np.dtype(np.float32)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def pieces(self, start: int, stop: int) -> Iterator[np.ndarray]:
        """Yields the rows [start, stop) as they are kept, piece by piece.

        Raises:
          DataError: an embedding is not finite: such a row would be near to everything, or to nothing.
        """
        for number, (part, end) in enumerate(zip(self._parts, self._ends)):
            first = int(end) - len(part)
            for block in range(max(start - first, 0), min(max(stop - first, 0), len(part)), _BLOCK):
                piece = part[block : min(block + _BLOCK, stop - first)]
                if not np.isfinite(piece).all():
                    raise self._not_finite(number)
                yield piece

    def _not_finite(self, number: int) -> DataError:
        name = self._names[number] if self._names else "a part"
        return DataError(f"{name} holds embeddings that are NaN or infinite; delete it and run `embed` again")

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Returns the rows [start, stop), float32 [rows, dim]."""
        stop = min(stop, len(self))
        found, place = np.empty((max(stop - start, 0), self.dim), np.float32), 0
        for piece in self.pieces(start, stop):  # of what is on disk little is in memory beside the copy
            found[place : place + len(piece)] = piece
            place += len(piece)
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
            if not np.isfinite(found[here]).all():
                raise self._not_finite(owner)
        return found
