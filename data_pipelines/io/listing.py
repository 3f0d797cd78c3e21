"""Lists of samples: what tables and folders have in common. `lists.open_list` opens one.

A list is scanned once, which notes where its rows are; then any range of rows can be read again. What is kept takes
less than a byte a row for tables, and the names of the files for folders.
"""

import abc
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.errors import DataError, did_you_mean
from data_pipelines.io.storage import printable

IMAGE_COLUMNS = ("image", "file_name", "filepath", "filename", "image_path", "path", "file", "url", "image_url", "jpg")
CAPTION_COLUMNS = ("caption", "text", "title", "txt")
NULLS = ("nan", "NaN", "None", "null", "NULL", "<NA>")
"""Words that programs write for a value that is not there."""
NULL = "null word"  # the reason of rows whose caption is one
MOST_COLUMNS = 10_000
_NAMED = 20  # columns that a message names


class Wanted(NamedTuple):
    """What an input wants of a list.

    Attributes:
        noun: what messages call a part.
        option: that names its column, for messages.
        column: that holds it; "" takes the first of `usual` that there is.
        usual: columns.
        required: there must be such a column.
        extensions: of files that hold it.
    """

    noun: str
    option: str
    column: str = ""
    usual: tuple[str, ...] = ()
    required: bool = False
    extensions: tuple[str, ...] = ()


class Row(NamedTuple):
    """One row of a list.

    Attributes:
        number: from 0.
        parts: of each input that files hold: path or url as it is written, the encoded content itself, or None.
        sizes: bytes of parts that the list itself holds, about; inputs whose parts lie elsewhere are missing.
        texts: of each input that reads a text: its column, or None.
        fields: its columns without embedded parts.
        problem: why it cannot be used; "" if it can.
        textless: why it has no text although there is something in a caption column; "" otherwise.
    """

    number: int
    parts: dict[str, str | bytes | None] = {}  # noqa: RUF012 - never written to
    sizes: dict[str, int] = {}  # noqa: RUF012
    texts: dict[str, str | None] = {}  # noqa: RUF012
    fields: dict[str, Any] = {}  # noqa: RUF012
    problem: str = ""
    textless: str = ""


class Listing(abc.ABC):
    """Rows that name the parts of samples.

    Attributes:
        path: the list.
        folder: what relative paths start from.
        columns: names of its columns, as far as they are known before a scan.
        bytes: size of the list itself.
        version: changes whenever the list does; "" where nothing tells.
        share: of the list that the scan has been through, 0 to 1.
        marks: what the scan noted of where the rows are, int64 [marks].
        nulls: captions, and cells of CSV and TSV files, that stand for no value.
    """

    path: str
    folder: str
    columns: tuple[str, ...]
    bytes: int
    version: str = ""
    share: float = 0.0
    marks: np.ndarray = np.zeros(0, np.int64)
    nulls: tuple[str, ...] = ()
    _parts: Mapping[str, str] = {}
    _texts: Mapping[str, str] = {}
    _remark: str = ""  # what else may be wrong where a column is missing

    def use(self, parts: Mapping[str, Wanted], texts: Mapping[str, Wanted], fields: Sequence[str] | None) -> None:
        """Chooses the columns that rows are read with; to be called before anything is read.

        Args:
            parts: of the inputs that files hold.
            texts: of the inputs that read a text.
            fields: other columns that are wanted, nested ones dotted; None for all.

        Raises:
            DataError: there is no such column, or none where one is required.
        """
        self._parts = {name: column for name, wanted in parts.items() if (column := self._needed(wanted))}
        self._texts = {name: column for name, wanted in texts.items() if (column := self._column(wanted))}

    @abc.abstractmethod
    def scan(self) -> Iterator[Row]:
        """Yields all rows, without the content of embedded parts; notes where the rows are."""

    @abc.abstractmethod
    def read(self, start: int, end: int) -> list[Row]:
        """Returns rows [start, end), embedded parts included; called by several threads, after the scan."""

    def restore(self, marks: np.ndarray) -> None:
        """Takes the place of a scan: of the same list, that noted these marks."""
        self.marks = marks

    def edges(self) -> Sequence[int]:
        """Returns the rows from which reading is cheapest; a block does not reach across one."""
        return (0,)

    def name(self, row: Row) -> str:
        """Returns what a person finds the row by."""
        return f"row {row.number + 1}"

    def _needed(self, wanted: Wanted) -> str:
        column = self._column(wanted)
        if not column and wanted.required:
            raise DataError(
                f"{printable(self.path)} has no column {', '.join(wanted.usual)}; say with `{wanted.option}` which of "
                f"its columns holds the {wanted.noun}s: {named_columns(self.columns)}{self._remark}"
            )
        return column

    def _column(self, wanted: Wanted) -> str:
        name = wanted.column
        if not name:
            return next((column for usual in wanted.usual for column in self.columns if column.lower() == usual), "")
        if name not in self.columns:
            raise DataError(
                f"{printable(self.path)} has no column {name!r}, which `{wanted.option}` names"
                f"{did_you_mean(name, self.columns)} (columns: {named_columns(self.columns)}){self._remark}"
            )
        return name

    def _row(self, number: int, fields: dict[str, Any]) -> Row:
        found = {name: fields.get(column) for name, column in self._parts.items()}
        parts = {name: value if isinstance(value, str) else None for name, value in found.items()}
        texts, textless = {}, ""
        for name, column in self._texts.items():
            texts[name], fields, why = self._text(number, fields, column)
            textless = textless or why
        return Row(number, parts, {}, texts, fields, textless=textless)

    def _text(self, number: int, fields: dict[str, Any], column: str) -> tuple[str | None, dict[str, Any], str]:
        """Returns the text of a column, the fields with it in them, and why there is none although there is a value."""
        text, textless = fields.get(column), ""
        if isinstance(text, list | dict):
            raise DataError(
                f"{column!r} of row {number + 1} of {printable(self.path)} is a {type(text).__name__} and not a "
                f"text; for several captions of an image use templates=((1, '{{{column}}}'),) with max_list=1"
            )
        if isinstance(text, bytes):
            text, textless = _decoded(text)
            fields = fields | {column: text}
        elif isinstance(text, bool) or text != text:  # NaN
            text = None
        text = text if text is None or isinstance(text, str) else str(text)
        if text is not None and text.strip() in self.nulls:
            text, textless = None, NULL
        return text, fields, textless


def _decoded(text: bytes) -> tuple[str | None, str]:
    """Returns a text that a list holds as bytes, and the reason why it is none."""
    try:
        return text.decode(), ""
    except UnicodeDecodeError:
        return None, "bad text"


def named_columns(columns: Sequence[str]) -> str:
    """Returns the names of the first columns, for a message."""
    more = f" and {len(columns) - _NAMED:,} more" if len(columns) > _NAMED else ""
    return ", ".join(name if len(name) <= 100 else f"{name[:100]}..." for name in columns[:_NAMED]) + more


def check_columns(path: str, columns: Sequence[str]) -> None:
    """Raises DataError where a list has more columns than lists have, or one of them twice."""
    if len(columns) > MOST_COLUMNS:
        raise DataError(
            f"{printable(path)} has {len(columns):,} columns ({named_columns(columns[:3])} ...), and at most "
            f"{MOST_COLUMNS:,} are read; is it a table with a row for each image?"
        )
    if repeated := sorted(name for name, count in Counter(columns).items() if count > 1):
        raise DataError(
            f"{printable(path)} has the column {named_columns(repeated)} twice, and which of them is meant is not "
            "clear; rename or remove one"
        )
