"""Parquet tables as lists of images: paths or urls, or the images themselves as Hugging Face's `datasets` writes them.

Read by row group: a footer and at most 256 MiB of groups are in memory. Needs pyarrow.
"""

import contextlib
import itertools
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from typing import Any, NamedTuple

from data_pipelines.errors import DataError
from data_pipelines.io.listing import Listing, Row, Wanted, check_columns
from data_pipelines.io.storage import Files, parent, printable

_CACHE_BYTES = 256 * 2**20
_LIMITS = dict(thrift_string_size_limit=64 * 2**20, thrift_container_size_limit=10**6)  # of damaged footers
_MOST_ROWS = 10**10  # of a file; more is damage
_PATH = 4096  # bytes of a path at most
_BATCH = 1024  # rows that a scan turns into Python objects at a time


class Parquet(Listing):
    """A parquet file; see `Listing`. Raises DataError where pyarrow is missing or the file is none."""

    def __init__(self, path: str, files: Files):
        self.path, self.folder, self._files = path, parent(path), files
        stat = files.stat(path)
        self.bytes, self.version = stat.size, stat.version
        _, parquet = _pyarrow()
        with self._read_errors(), files.open(path) as file, parquet.ParquetFile(file, **_LIMITS) as table:
            self._footer, self._schema = table.metadata, table.schema_arrow
            groups = [self._footer.row_group(i).num_rows for i in range(self._footer.num_row_groups)]
        self.columns = tuple(self._schema.names)
        check_columns(path, self.columns)
        if min(groups, default=0) < 0 or sum(groups) > _MOST_ROWS:
            raise DataError(f"{printable(path)} is damaged: its row groups claim {sum(groups):,} rows")
        self._starts = [0, *itertools.accumulate(groups)]
        self._open()

    @contextlib.contextmanager
    def _read_errors(self) -> Iterator[None]:
        """Turns what pyarrow raises of damaged files into one line; there is no end of kinds."""
        try:
            yield
        except (DataError, CancelledError):
            raise
        except Exception as error:
            cause = next(iter(str(error).splitlines()), type(error).__name__)[:300]
            raise DataError(f"{printable(self.path)} is not a parquet file that can be read: {cause}") from None

    def _open(self) -> None:
        self._groups: dict[int, Any] = {}  # the latest read last
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_groups", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open()

    def use(self, parts: Mapping[str, Wanted], texts: Mapping[str, Wanted], fields: Sequence[str] | None) -> None:
        """See `Listing`."""
        super().use(parts, texts, fields)
        arrow, _ = _pyarrow()
        self._held = {}  # input -> how its column holds it
        for name, column in self._parts.items():
            kind = self._schema.field(column).type
            if not _can_be_part(arrow, kind):
                raise DataError(
                    f"the column {column!r} of {printable(self.path)} is a {_short(kind)}; expected one "
                    f"{parts[name].noun} a row: paths, bytes, or {{bytes, path}}"
                )
            struct = arrow.types.is_struct(kind)  # {bytes, path}
            paths = not struct and _is_binary(arrow, kind) and self._holds_paths(column, parts[name].extensions)
            self._held[name] = _Held(column, struct, struct or (_is_binary(arrow, kind) and not paths))
        # A field `a.b` is the column "a.b" or lies in the column "a".
        chosen, captions = set(self._parts.values()), set(self._texts.values())
        names = None if fields is None else {*fields, *(name.partition(".")[0] for name in fields), *captions}
        self._others = [
            name
            for name in self.columns
            if name not in chosen
            and (name in captions or not _is_binary(arrow, self._schema.field(name).type))
            and (names is None or name in names)
        ]
        self._read = [*self._others, *chosen]

    def edges(self) -> Sequence[int]:
        """See `Listing`."""
        return self._starts[:-1] or (0,)

    def scan(self) -> Iterator[Row]:
        """See `Listing`."""
        with self._opened() as table:
            for group, first in enumerate(self._starts[:-1]):
                certain = {name: held for name, held in self._held.items() if self._never_null(group, held)}
                sizes, number = {name: self._mean_size(group, held) for name, held in certain.items()}, first
                skipped, rows = {held.column for held in certain.values()}, self._starts[group + 1] - first
                columns = [name for name in self._read if name not in skipped]
                content = dict.fromkeys(certain, b"")
                if not columns:  # without a column there are no rows to count
                    yield from (Row(first + i, content, sizes) for i in range(rows))
                    continue
                for batch in self._batches(table, group, columns):
                    for fields in batch:
                        row = self._of(number, fields)
                        yield row._replace(parts=row.parts | content, sizes=row.sizes | sizes)
                        number += 1
                    self.share = number / self._starts[-1]

    def read(self, start: int, end: int) -> list[Row]:
        """See `Listing`."""
        rows = []
        for group, first in enumerate(self._starts[:-1]):
            from_, to = max(start, first), min(end, self._starts[group + 1])
            if from_ < to:
                table = self._group(group).slice(from_ - first, to - from_)
                with self._read_errors():
                    found = _rows(table, self._columns)
                rows.extend(self._of(number, fields) for number, fields in enumerate(found, from_))
        return rows

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Any]:
        _, parquet = _pyarrow()
        with self._files.open(self.path) as file, parquet.ParquetFile(file, metadata=self._footer, **_LIMITS) as table:
            yield table

    def _batches(self, table: Any, group: int, columns: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
        """Yields the rows of a group, some at a time."""
        with self._read_errors():
            for batch in table.iter_batches(_BATCH, [group], columns, use_threads=False):
                yield _rows(batch, self._columns)

    @property
    def _columns(self) -> set[str]:
        """The columns that hold parts."""
        return {held.column for held in self._held.values()}

    def _holds_paths(self, column: str, extensions: Sequence[str]) -> bool:
        """Whether the first part of a column is the bytes of a path and not the part itself."""
        endings = tuple(extension.encode() for extension in extensions)
        with self._read_errors(), self._opened() as table:
            for batch in table.iter_batches(1, columns=[column], use_threads=False):
                for value in batch.column(0).to_pylist():
                    if value is not None:
                        return len(value) < _PATH and value.rpartition(b".")[2].lower() in endings
        return False

    def _of(self, number: int, fields: dict[str, Any]) -> Row:
        embedded: dict[str, Any] = {}
        for name, held in self._held.items():
            if held.embedded:
                value = fields.pop(held.column, None)
                if held.struct and value is not None:
                    value = value["bytes"] if value["bytes"] is not None else value.get("path")
                embedded[name] = value
            elif isinstance(path := fields.get(held.column), bytes):
                fields = fields | {held.column: path.decode("utf-8", "surrogateescape")}
        row = self._row(number, fields)
        sizes = {name: len(value) for name, value in embedded.items() if isinstance(value, bytes)}
        return row._replace(parts=row.parts | embedded, sizes=sizes)

    def _group(self, group: int) -> Any:
        with self._lock:
            table = self._groups.pop(group, None)
            if table is not None:
                self._groups[group] = table
                return table
        with self._read_errors(), self._opened() as opened:
            table = opened.read_row_group(group, columns=self._read, use_threads=False)
        with self._lock:
            self._groups[group] = table
            kept = sum(other.nbytes for other in self._groups.values())
            for oldest in list(self._groups)[:-1]:
                if kept > _CACHE_BYTES:
                    kept -= self._groups.pop(oldest).nbytes
        return table

    def _chunk(self, group: int, held: "_Held") -> Any:
        """Returns the footer's entry of a column of parts of a row group."""
        path = f"{held.column}.bytes" if held.struct else held.column
        with self._read_errors():  # names are decoded when they are asked for
            entries = self._footer.row_group(group)
            chunks = (entries.column(i) for i in range(entries.num_columns))
            return next((chunk for chunk in chunks if chunk.path_in_schema == path), None)

    def _never_null(self, group: int, held: "_Held") -> bool:
        chunk = self._chunk(group, held) if held.embedded else None
        facts = chunk.statistics if chunk is not None else None
        return facts is not None and facts.has_null_count and facts.null_count == 0

    def _mean_size(self, group: int, held: "_Held") -> int:
        chunk, rows = self._chunk(group, held), self._footer.row_group(group).num_rows
        return max(1, chunk.total_uncompressed_size // max(rows, 1)) if chunk is not None else -1


class _Held(NamedTuple):
    """How a column holds parts: in structs {bytes, path} or not, the content itself or where it lies."""

    column: str
    struct: bool
    embedded: bool


def _rows(table: Any, parts: Iterable[str]) -> list[dict[str, Any]]:
    """Returns the rows of a table or batch; bytes inside of other columns than those of parts are no fields."""
    arrow, _ = _pyarrow()
    names, columns = table.schema.names, []
    for i, name in enumerate(names):
        kind = table.schema.field(i).type
        values = _values(arrow, table.column(i), kind)
        nested = name not in parts and "binary" in str(kind) and not _is_binary(arrow, kind)
        columns.append(list(map(_without_bytes, values)) if nested else values)
    return [dict(zip(names, row)) for row in zip(*columns)]


def _without_bytes(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_bytes(part) for name, part in value.items() if not isinstance(part, bytes)}
    if isinstance(value, list):
        return [_without_bytes(part) for part in value if not isinstance(part, bytes)]
    return value


def _values(arrow: Any, column: Any, kind: Any) -> list[Any]:
    types = arrow.types
    if types.is_timestamp(kind) and kind.unit == "ns":  # Python's times end at microseconds
        column = column.cast(arrow.timestamp("us", kind.tz), safe=False)
    elif types.is_time64(kind) and kind.unit == "ns":
        column = column.cast(arrow.time64("us"), safe=False)
    elif types.is_duration(kind) and kind.unit == "ns":
        column = column.cast(arrow.duration("us"), safe=False)
    return column.to_pylist()


def _can_be_part(arrow: Any, kind: Any) -> bool:
    types = arrow.types
    if types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    kind = kind.value_type if types.is_dictionary(kind) else kind
    text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind) or types.is_null(kind)
    return text or _is_binary(arrow, kind)


def _short(kind: Any) -> str:
    text = str(kind)
    return text if len(text) <= 100 else f"{text[:100]}..."


def _is_binary(arrow: Any, kind: Any) -> bool:
    types = arrow.types
    plain = types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)
    return plain or types.is_fixed_size_binary(kind)


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(f"parquet files need pyarrow ({error}); install it with: pip install -e '.[tables]'") from None
    return pyarrow, pyarrow.parquet
