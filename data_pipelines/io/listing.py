"""Lists of images: CSV, TSV, JSONL and parquet tables, and folders, read row by row without holding the rows.

A list is scanned once, which notes where its rows are; then any range of rows can be read again. What is kept takes
less than a byte a row for tables, and the names of the files for folders.
"""

import abc
import csv
import io
import itertools
import json
import os
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from data_pipelines.errors import DataError, did_you_mean
from data_pipelines.io.lines import Lines, lines_of
from data_pipelines.io.storage import Files, parent, printable
from data_pipelines.samples import IMAGE_EXTENSIONS

IMAGE_COLUMNS = ("image", "file_name", "filepath", "filename", "image_path", "path", "file", "url", "image_url", "jpg")
CAPTION_COLUMNS = ("caption", "text", "title", "txt")
NULLS = ("nan", "NaN", "None", "null", "NULL", "<NA>")
"""Words that programs write for a value that is not there."""
NULL = "null word"  # the reason of rows whose caption is one
MOST_COLUMNS = 10_000
_HEAD = 1000  # rows of a list of objects whose keys are its columns
_NAMED = 20  # columns that a message names
_MARK = 64  # rows between two noted positions of a text file
_SNIFFED = 2**16  # bytes at the start of a text file that tell its encoding and line ends
_LARGEST_TEXT = 4 * 2**20  # bytes of a text or json file beside an image


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
                f"columns holds the images: {_named(self.columns)}{self._remark}"
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
                f"{did_you_mean(name, self.columns)} (columns: {_named(self.columns)}){self._remark}"
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


def _named(columns: Sequence[str]) -> str:
    """Returns the names of the first columns, for a message."""
    more = f" and {len(columns) - _NAMED:,} more" if len(columns) > _NAMED else ""
    return ", ".join(name if len(name) <= 100 else f"{name[:100]}..." for name in columns[:_NAMED]) + more


def check_columns(path: str, columns: Sequence[str]) -> None:
    """Raises DataError where a list has more columns than lists have, or one of them twice."""
    if len(columns) > MOST_COLUMNS:
        raise DataError(
            f"{printable(path)} has {len(columns):,} columns ({_named(columns[:3])} ...), and at most "
            f"{MOST_COLUMNS:,} are read; is it a table with a row for each image?"
        )
    if repeated := sorted(name for name, count in Counter(columns).items() if count > 1):
        raise DataError(
            f"{printable(path)} has the column {_named(repeated)} twice, and which of them is meant is not clear; "
            "rename or remove one"
        )


def open_list(path: str, files: Files, columns: Sequence[str] = ()) -> Listing:
    """Opens a list by its extension, or a folder.

    Args:
        path: path or url of a .csv, .tsv, .txt, .jsonl, .json or .parquet file, or path of a folder.
        files: reads it.
        columns: names of the columns of a CSV or TSV file that has no header.

    Raises:
        DataError: the kind of the file is not known, or its head cannot be read.
    """
    if os.path.isdir(path):
        return Folder(path)
    kinds = {".csv": Csv, ".tsv": Csv, ".txt": Csv, ".jsonl": JsonLines, ".ndjson": JsonLines}
    extension = os.path.splitext(printable(path))[1].lower()
    if extension in (".parquet", ".pq"):
        from data_pipelines.io.parquet import Parquet

        return Parquet(path, files)
    if extension == ".json":
        from data_pipelines.io.annotations import Annotations

        return Annotations(path, files, columns)
    if extension not in kinds:
        raise DataError(
            f"{printable(path)} is neither a folder nor a list: .csv, .tsv, .txt, .jsonl, .json or .parquet"
        )
    return kinds[extension](path, files, columns)


class _Text(Listing):
    """A list of lines. The position of every 64th row is kept."""

    def __init__(self, path: str, files: Files, columns: Sequence[str] = ()):
        self.path, self.folder, self._files = path, parent(path), files
        stat = files.stat(path)
        self.bytes, self.version = stat.size, stat.version
        with files.open(path) as file:
            head = file.read(_SNIFFED)
            _check_text(path, head)
            # A file with line ends of old Macs alone has no "\n" to divide it.
            self._end = b"\r" if b"\r" in head and b"\n" not in head else b"\n"
            bom = 3 if head.startswith(b"\xef\xbb\xbf") else 0
            file.seek(bom)
            self.columns, self._first = self._head(self._lines(file, bom), columns)
        if not self.columns:
            raise DataError(f"{printable(path)} is empty; expected one row for each image")
        check_columns(path, self.columns)

    def _lines(self, file: BinaryIO, position: int = 0) -> Lines:
        """Returns the lines of a file from where it is; none is longer than `lines.LONGEST`."""
        return Lines(lines_of(file, self._end, printable(self.path)), position)

    def scan(self) -> Iterator[Row]:
        """See `Listing`."""
        marks = array("q")
        with self._files.open(self.path) as file:
            file.seek(self._first)
            lines = self._lines(file, self._first)
            start = lines.position
            for row in self._parse(lines, 0):
                if row.number % _MARK == 0:
                    marks.append(start)
                start = lines.position
                self.share = start / self.bytes
                yield row
        marks.append(start)
        self.marks = np.frombuffer(marks, np.int64)

    def read(self, start: int, end: int) -> list[Row]:
        """See `Listing`."""
        first, last = start // _MARK, min(-(-end // _MARK), len(self.marks) - 1)
        content = self._files.read(self.path, int(self.marks[first]), int(self.marks[last]), self.version)
        lines = self._lines(io.BytesIO(content))
        rows = list(self._parse(lines, first * _MARK))
        return rows[start - first * _MARK : end - first * _MARK]

    @abc.abstractmethod
    def _head(self, lines: Lines, columns: Sequence[str]) -> tuple[tuple[str, ...], int]:
        """Returns the columns, and the byte where the first row starts."""

    @abc.abstractmethod
    def _parse(self, lines: Lines, number: int) -> Iterator[Row]:
        """Yields the rows of the lines, the first of which is number `number`."""


def _check_text(path: str, head: bytes) -> None:
    wide = head[:2] in (b"\xff\xfe", b"\xfe\xff")
    if wide or b"\0" in head:
        what = "is UTF-16" if wide else "holds zero bytes, as UTF-16 and files that are no text do"
        raise DataError(
            f"{printable(path)} {what}, and lists are read as UTF-8; convert it: iconv -f UTF-16 -t UTF-8 FILE"
        )


class Csv(_Text):
    """Comma, tab, semicolon or | separated values, with quotes around those that hold the separator or line ends."""

    _spaced = False

    def _head(self, lines: Lines, columns: Sequence[str]) -> tuple[tuple[str, ...], int]:
        start, line = lines.position, next(lines, "")
        tabs = printable(self.path).lower().endswith(".tsv")
        if columns:
            self._separator = "\t" if tabs else max(_SEPARATORS, key=line.count)
            return tuple(columns), start
        headers = {separator: _header(line, separator) for separator in _SEPARATORS}

        def fit(separator: str) -> tuple:
            names = {name.strip().lower() for name in headers[separator]}
            known = len(names.intersection((*IMAGE_COLUMNS, *CAPTION_COLUMNS)))
            return known, tabs and separator == "\t", len(headers[separator])

        self._separator = max(_SEPARATORS, key=fit)
        self._remark = "; if its first line is not a header, give the names of the columns with `columns`"
        header = headers[self._separator]
        names = tuple(name.strip() for name in header)
        self._spaced = names != tuple(header)  # "image, caption": the spaces belong to no value
        if tabs and len(names) == 1:
            self._remark += "; a .tsv file has tabs between its columns, and its first line has none"
        if repeated := sorted(name for name, count in Counter(names).items() if count > 1):
            raise DataError(f"{printable(self.path)}: its first line repeats {_named(repeated)!r}{self._remark}")
        return names, lines.position

    def _parse(self, lines: Lines, number: int) -> Iterator[Row]:
        rows, count = csv.reader(lines, delimiter=self._separator, strict=True), len(self.columns)
        while True:
            lines.begin()
            try:
                values = self._plain(lines) or next(rows)
            except StopIteration:
                return
            except csv.Error:  # such as a quote that is never closed
                values = None
            if values == []:  # an empty line
                continue
            problem = ""
            if values is None or len(values) > count or (len(lines) > 1 and len(values) < count):
                problem = "bad row" if values is None or len(lines) > 1 else "too many values"
                lines.keep(1)  # the others are rows of their own, and not lost with this one
                values = self._escaped(lines.text)
            if lines.damaged or values is None:
                yield Row(number, problem="bad text" if lines.damaged else problem)
            else:
                yield self._row(number, dict(zip(self.columns, map(self._cell, values))))
            number += 1

    def _cell(self, value: str) -> str | None:
        value = value.strip() if self._spaced else value
        return value if value not in self.nulls else None

    def _row(self, number: int, fields: dict[str, Any]) -> Row:
        row = super()._row(number, fields)
        return row._replace(textless=NULL) if self._caption and fields.get(self._caption, "") is None else row

    def _escaped(self, line: str) -> list[str] | None:
        """Returns the values of a line in which quotes are written as \\"; None where that makes no row of it."""
        if '\\"' not in line:
            return None
        try:
            parsed = csv.reader([line], delimiter=self._separator, escapechar="\\", doublequote=False, strict=True)
            values = next(parsed, [])
        except csv.Error:
            return None
        return values if len(values) == len(self.columns) else None

    def _plain(self, lines: Lines) -> list[str] | None:
        """Returns the values of a line of a tab separated file that has as many as there are columns.

        In those a quote is mostly a character like any other: read as the start of a quoted value, it would join all
        that follows, up to the next quote, to one caption.
        """
        if self._separator != "\t":
            return None
        values = next(lines).rstrip("\r\n").split("\t")
        if len(values) == len(self.columns):
            return [_unquoted(value) for value in values]
        lines.keep(0)
        return None


_SEPARATORS = ",\t;|"


def _header(line: str, separator: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=separator), [])
    except csv.Error:
        return line.split(separator)


def _unquoted(value: str) -> str:
    inner = value[1:-1]
    quoted = len(value) > 1 and value[0] == value[-1] == '"' and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if quoted else value


class JsonLines(_Text):
    """A json object a line."""

    def _head(self, lines: Lines, columns: Sequence[str]) -> tuple[tuple[str, ...], int]:
        if columns:
            raise DataError(f"`columns` is for CSV and TSV files without a header, not for {printable(self.path)}")
        start, names = lines.position, {}
        for row in itertools.islice(self._parse(lines, 0), _HEAD):  # no row need have all of them
            names |= dict.fromkeys(row.fields)
        return tuple(names), start

    def _parse(self, lines: Lines, number: int) -> Iterator[Row]:
        for line in lines:
            damaged = lines.damaged
            lines.begin()
            if not line.strip():
                continue
            try:
                fields = json.loads(line)
            except (ValueError, RecursionError):
                fields = None
            if damaged or not isinstance(fields, dict):
                yield Row(number, problem="bad text" if damaged else "bad json")
            else:
                yield self._row(number, fields)
            number += 1


class Folder(Listing):
    """The images of a folder and of its folders.

    Fields: those of a .json file of the same name, and `label`, the folder that the image lies in, and `file`, its
    path below the list's folder. The caption is in a .txt file of the same name.
    """

    def __init__(self, path: str):
        self.path = self.folder = path
        self.columns = ("label", "file")
        names = sorted(_images(path))
        self._names = "\0".join(names).encode("utf-8", "surrogateescape")
        self._ends = array("q", _ends(names))
        self.bytes = len(self._names)
        if not names:
            raise DataError(f"no images ({', '.join(IMAGE_EXTENSIONS)}) in {path}")

    def use(self, image: str, caption: str, fields: Sequence[str] | None, images: bool = True) -> None:
        """See `Listing`."""
        if image or caption:
            raise DataError(f"`image` and `caption` name columns of lists, and {self.path} is a folder")

    def scan(self) -> Iterator[Row]:
        """See `Listing`."""
        for number in range(len(self._ends)):
            yield self._of(number)
            self.share = (number + 1) / len(self._ends)

    def read(self, start: int, end: int) -> list[Row]:
        """See `Listing`."""
        return [self._of(number) for number in range(start, end)]

    def name(self, row: Row) -> str:
        """See `Listing`."""
        return row.fields["file"]

    def _of(self, number: int) -> Row:
        start = self._ends[number - 1] + 1 if number else 0
        name = self._names[start : self._ends[number]].decode("utf-8", "surrogateescape")
        place = dict(label=os.path.basename(os.path.dirname(name)), file=name)
        stem, problem, fields = os.path.splitext(os.path.join(self.path, name))[0], "", {}
        try:
            text, record = (_beside(stem + extension) for extension in (".txt", ".json"))
            fields = {} if record is None else json.loads(record)
        except UnicodeDecodeError:
            problem, text = "bad text", None
        except (ValueError, RecursionError):
            problem = "bad json"
        if not isinstance(fields, dict):
            problem, fields = "bad json", {}
        return Row(number, name, -1, text, {**fields, **place}, problem)


def _images(root: str) -> Iterator[str]:
    """Yields the images below a folder by their relative paths; hidden files and folders do not count."""
    seen = {os.path.realpath(root)}
    for folder, inner, names in os.walk(root, followlinks=True):
        # Links are followed, as data sets are often linked together, but never into a circle.
        new = {name: os.path.realpath(os.path.join(folder, name)) for name in inner if not name.startswith(".")}
        inner[:] = sorted(name for name, real in new.items() if real not in seen)
        seen.update(new.values())
        for name in names:
            if not name.startswith(".") and name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS:
                yield os.path.relpath(os.path.join(folder, name), root).replace(os.sep, "/")


def _ends(names: Iterable[str]) -> Iterator[int]:
    end = -1
    for name in names:
        end += len(name.encode("utf-8", "surrogateescape")) + 1
        yield end


def _beside(path: str) -> str | None:
    try:
        with open(path, "rb") as file:
            return file.read(_LARGEST_TEXT).decode("utf-8-sig")
    except (FileNotFoundError, IsADirectoryError):
        return None
