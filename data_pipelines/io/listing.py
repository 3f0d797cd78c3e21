"""Lists of images: what tables and folders have in common. `lists.open_list` opens one.

A list is scanned once, which notes where its rows are; then any range of rows can be read again. What is kept takes
less than a byte a row for tables, and the names of the files for folders.
"""

import abc
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
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


class Row(NamedTuple):
    """One row of a list.

    Attributes:
        number: from 0.
        image: path or url as it is written, the encoded image itself, or None.
        size: bytes of an image that the list itself holds, about; -1 of one that lies elsewhere.
        text: its caption column, or None.
        fields: its columns without embedded images.
        problem: why it cannot be used; "" if it can.
        textless: why it has no text although there is something in its caption column; "" otherwise.
    """

    number: int
    image: str | bytes | None = None
    size: int = -1
    text: str | None = None
    fields: dict[str, Any] = {}  # noqa: RUF012 - never written to
    problem: str = ""
    textless: str = ""


class Listing(abc.ABC):
    """Rows that name images.

    Attributes:
        path: the list.
        folder: what relative image paths start from.
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
    _image: str = ""
    _caption: str = ""
    _remark: str = ""  # what else may be wrong where a column is missing

    def use(self, image: str, caption: str, fields: Sequence[str] | None, images: bool = True) -> None:
        """Chooses the columns that rows are read with; to be called before anything is read.

        Args:
            image: column of the image; "" takes the first of IMAGE_COLUMNS that there is.
            caption: column of the caption; "" takes the first of CAPTION_COLUMNS, if any.
            fields: other columns that are wanted, nested ones dotted; None for all.
            images: rows have an image; otherwise there need be no such column.

        Raises:
            DataError: there is no such column, or none that could be the image.
        """
        self._image = self._column("image", image, IMAGE_COLUMNS) if images else ""
        if not self._image and images:
            raise DataError(
                f"{printable(self.path)} has no column {', '.join(IMAGE_COLUMNS)}; say with `image` which of its "
                f"columns holds the images: {named_columns(self.columns)}{self._remark}"
            )
        self._caption = self._column("caption", caption, CAPTION_COLUMNS)

    @abc.abstractmethod
    def scan(self) -> Iterator[Row]:
        """Yields all rows, without the content of embedded images; notes where the rows are."""

    @abc.abstractmethod
    def read(self, start: int, end: int) -> list[Row]:
        """Returns rows [start, end), images included; called by several threads, after the scan."""

    def restore(self, marks: np.ndarray) -> None:
        """Takes the place of a scan: of the same list, that noted these marks."""
        self.marks = marks

    def edges(self) -> Sequence[int]:
        """Returns the rows from which reading is cheapest; a block does not reach across one."""
        return (0,)

    def name(self, row: Row) -> str:
        """Returns what a person finds the row by."""
        return f"row {row.number + 1}"

    def _column(self, option: str, name: str, defaults: Iterable[str]) -> str:
        if not name:
            return next((column for default in defaults for column in self.columns if column.lower() == default), "")
        if name not in self.columns:
            raise DataError(
                f"{printable(self.path)} has no column {name!r}, which `{option}` names"
                f"{did_you_mean(name, self.columns)} (columns: {named_columns(self.columns)}){self._remark}"
            )
        return name

    def _row(self, number: int, fields: dict[str, Any]) -> Row:
        image, text = fields.get(self._image), fields.get(self._caption)
        if isinstance(text, list | dict):
            raise DataError(
                f"{self._caption!r} of row {number + 1} of {printable(self.path)} is a {type(text).__name__} and not a "
                f"text; for several captions of an image use templates=((1, '{{{self._caption}}}'),) with max_list=1"
            )
        textless = ""
        if isinstance(text, bytes):
            text, textless = _decoded(text)
            fields = fields | {self._caption: text}
        elif isinstance(text, bool) or text != text:  # NaN
            text = None
        text = text if text is None or isinstance(text, str) else str(text)
        if text is not None and text.strip() in self.nulls:
            text, textless = None, NULL
        return Row(number, image if isinstance(image, str) else None, -1, text, fields, textless=textless)


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
