"""Parquet tables as lists of images: paths or urls, or the images themselves as Hugging Face's `datasets` writes them.

Read by row group: a footer and at most 256 MiB of groups are in memory. Needs pyarrow.
"""

import threading
from collections.abc import Iterator, Sequence
from typing import Any

from data_pipelines.errors import DataError
from data_pipelines.io.listing import Listing, Row
from data_pipelines.io.storage import Files, parent, printable

_CACHE_BYTES = 256 * 2**20
_BATCH = 1024  # rows that a scan turns into Python objects at a time


class Parquet(Listing):
    """A parquet file; see `Listing`. Raises DataError where pyarrow is missing or the file is none."""

    def __init__(self, path: str, files: Files):
        self.path, self.folder, self._files = path, parent(path), files
        stat = files.stat(path)
        self.bytes, self.version = stat.size, stat.version
        arrow, parquet = _pyarrow()
        try:
            with files.open(path) as file, parquet.ParquetFile(file) as table:
                self._footer, self._schema = table.metadata, table.schema_arrow
        except arrow.ArrowException as error:
            raise DataError(f"{printable(path)} is not a parquet file that can be read: {error}") from None
        self.columns = tuple(self._schema.names)
        groups = (self._footer.row_group(i).num_rows for i in range(self._footer.num_row_groups))
        self._starts = [0]
        for rows in groups:
            self._starts.append(self._starts[-1] + rows)
        self._open()

    def _open(self) -> None:
        self._groups: dict[int, Any] = {}  # the latest read last
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_groups", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open()

    def use(self, image: str, caption: str, fields: Sequence[str] | None, images: bool = True) -> None:
        """See `Listing`."""
        super().use(image, caption, fields, images)
        arrow, _ = _pyarrow()
        kind = self._schema.field(self._image).type if images else arrow.null()
        self._holder = arrow.types.is_struct(kind)  # {bytes, path}
        self._embedded = self._holder or _is_binary(arrow, kind)
        if self._holder and kind.get_field_index("bytes") < 0:
            raise DataError(
                f"the column {self._image!r} of {printable(self.path)} is a {kind}; expected paths, bytes, or "
                f"{{bytes, path}}"
            )
        # A field `a.b` is the column "a.b" or lies in the column "a".
        names = None if fields is None else {*fields, *(name.partition(".")[0] for name in fields), self._caption}
        self._others = [
            name
            for name in self.columns
            if name != self._image
            and not _is_binary(arrow, self._schema.field(name).type)
            and (names is None or name in names)
        ]
        self._read = [*self._others, *([self._image] if images else [])]

    def edges(self) -> Sequence[int]:
        """See `Listing`."""
        return self._starts[:-1] or (0,)

    def scan(self) -> Iterator[Row]:
        """See `Listing`."""
        _, parquet = _pyarrow()
        with self._files.open(self.path) as file, parquet.ParquetFile(file, metadata=self._footer) as table:
            for group, first in enumerate(self._starts[:-1]):
                certain = self._embedded and self._never_null(group)
                size, number = self._mean_size(group), first
                columns = self._others if certain else self._read
                rows = self._starts[group + 1] - first
                if not columns:  # without a column there are no rows to count
                    yield from (Row(first + i, b"", size) for i in range(rows))
                    continue
                for batch in table.iter_batches(_BATCH, [group], columns, use_threads=False):
                    for fields in batch.to_pylist():
                        row = self._of(number, fields)
                        yield row._replace(image=b"", size=size) if certain else row
                        number += 1
                    self.share = number / self._starts[-1]

    def read(self, start: int, end: int) -> list[Row]:
        """See `Listing`."""
        rows = []
        for group, first in enumerate(self._starts[:-1]):
            from_, to = max(start, first), min(end, self._starts[group + 1])
            if from_ < to:
                table = self._group(group).slice(from_ - first, to - from_)
                rows.extend(self._of(number, fields) for number, fields in enumerate(table.to_pylist(), from_))
        return rows

    def _of(self, number: int, fields: dict[str, Any]) -> Row:
        if not self._embedded:
            return self._row(number, fields)
        image = fields.pop(self._image, None)
        if self._holder and image is not None:
            image = image["bytes"] if image["bytes"] is not None else image.get("path")
        return self._row(number, fields)._replace(image=image, size=len(image) if isinstance(image, bytes) else -1)

    def _group(self, group: int) -> Any:
        with self._lock:
            table = self._groups.pop(group, None)
            if table is not None:
                self._groups[group] = table
                return table
        _, parquet = _pyarrow()
        with self._files.open(self.path) as file, parquet.ParquetFile(file, metadata=self._footer) as opened:
            table = opened.read_row_group(group, columns=self._read, use_threads=False)
        with self._lock:
            self._groups[group] = table
            kept = sum(other.nbytes for other in self._groups.values())
            for oldest in list(self._groups)[:-1]:
                if kept > _CACHE_BYTES:
                    kept -= self._groups.pop(oldest).nbytes
        return table

    def _chunk(self, group: int) -> Any:
        """Returns the footer's entry of the images of a row group."""
        path = f"{self._image}.bytes" if self._holder else self._image
        entries = self._footer.row_group(group)
        chunks = (entries.column(i) for i in range(entries.num_columns))
        return next((chunk for chunk in chunks if chunk.path_in_schema == path), None)

    def _never_null(self, group: int) -> bool:
        chunk = self._chunk(group)
        facts = chunk.statistics if chunk is not None else None
        return facts is not None and facts.has_null_count and facts.null_count == 0

    def _mean_size(self, group: int) -> int:
        chunk, rows = self._chunk(group), self._footer.row_group(group).num_rows
        return max(1, chunk.total_uncompressed_size // max(rows, 1)) if chunk is not None else -1


def _is_binary(arrow: Any, kind: Any) -> bool:
    return arrow.types.is_binary(kind) or arrow.types.is_large_binary(kind) or arrow.types.is_binary_view(kind)


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(f"parquet files need pyarrow ({error}); install it with: pip install -e '.[tables]'") from None
    return pyarrow, pyarrow.parquet
