"""Lists of images: CSV, TSV, JSONL and parquet tables, and folders, read row by row without holding the rows.

A list is scanned once, which notes where its rows are; then any range of rows can be read again. What is kept takes
less than a byte a row for tables, and the names of the files for folders.
"""

import abc
import csv
import io
import json
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.errors import DataError, did_you_mean
from data_pipelines.io.storage import Files, parent, printable
from data_pipelines.samples import IMAGE_EXTENSIONS

IMAGE_COLUMNS = ("image", "file_name", "filepath", "filename", "image_path", "path", "file", "url", "image_url")
CAPTION_COLUMNS = ("caption", "text", "title")
_MARK = 64  # rows between two noted positions of a text file
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
    """

    number: int
    image: str | bytes | None = None
    size: int = -1
    text: str | None = None
    fields: dict[str, Any] = {}  # noqa: RUF012 - never written to
    problem: str = ""


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
    """

    path: str
    folder: str
    columns: tuple[str, ...]
    bytes: int
    version: str = ""
    share: float = 0.0
    marks: np.ndarray = np.zeros(0, np.int64)
    _image: str = ""
    _caption: str = ""

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
                f"columns holds the images: {', '.join(self.columns)}"
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
            return next((default for default in defaults if default in self.columns), "")
        if name not in self.columns:
            raise DataError(
                f"{printable(self.path)} has no column {name!r}, which `{option}` names"
                f"{did_you_mean(name, self.columns)} (columns: {', '.join(self.columns)})"
            )
        return name

    def _row(self, number: int, fields: dict[str, Any]) -> Row:
        image, text = fields.get(self._image), fields.get(self._caption)
        if isinstance(text, list | dict):
            raise DataError(
                f"{self._caption!r} of row {number + 1} of {printable(self.path)} is a {type(text).__name__} and not a "
                f"text; for several captions of an image use templates=((1, '{{{self._caption}}}'),) with max_list=1"
            )
        text = text if text is None or isinstance(text, str) else str(text) if text == text else None  # NaN
        return Row(number, image if isinstance(image, str) else None, -1, text, fields)


def open_list(path: str, files: Files, columns: Sequence[str] = ()) -> Listing:
    """Opens a list by its extension, or a folder.

    Args:
        path: path or url of a .csv, .tsv, .txt, .jsonl or .parquet file, or path of a folder.
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
    if extension not in kinds:
        raise DataError(f"{printable(path)} is neither a folder nor a list: .csv, .tsv, .txt, .jsonl or .parquet")
    return kinds[extension](path, files, columns)


class _Lines:
    """The lines of a file as text; `position` is the byte after the last one."""

    def __init__(self, lines: Iterable[bytes], position: int = 0):
        self._lines, self.position, self._damaged = lines, position, False

    def __iter__(self) -> Iterator[str]:
        for line in self._lines:
            self.position += len(line)
            try:
                yield line.decode()
            except UnicodeDecodeError:
                self._damaged = True
                yield line.decode(errors="replace")

    def damaged(self) -> bool:
        """Whether a line since the last call was no UTF-8."""
        damaged, self._damaged = self._damaged, False
        return damaged


class _Text(Listing):
    """A list of lines. The position of every 64th row is kept."""

    def __init__(self, path: str, files: Files, columns: Sequence[str] = ()):
        self.path, self.folder, self._files = path, parent(path), files
        stat = files.stat(path)
        self.bytes, self.version = stat.size, stat.version
        with files.open(path) as file:
            bom = 3 if file.read(3) == b"\xef\xbb\xbf" else 0
            file.seek(bom)
            self.columns, self._first = self._head(_Lines(file, bom), columns)
        if not self.columns:
            raise DataError(f"{printable(path)} is empty; expected one row for each image")

    def scan(self) -> Iterator[Row]:
        """See `Listing`."""
        marks = array("q")
        with self._files.open(self.path) as file:
            file.seek(self._first)
            lines = _Lines(file, self._first)
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
        lines = _Lines(io.BytesIO(content))
        rows = list(self._parse(lines, first * _MARK))
        return rows[start - first * _MARK : end - first * _MARK]

    @abc.abstractmethod
    def _head(self, lines: _Lines, columns: Sequence[str]) -> tuple[tuple[str, ...], int]:
        """Returns the columns, and the byte where the first row starts."""

    @abc.abstractmethod
    def _parse(self, lines: _Lines, number: int) -> Iterator[Row]:
        """Yields the rows of the lines, the first of which is number `number`."""


class Csv(_Text):
    """Comma, tab, semicolon or | separated values, with quotes around those that hold the separator or line ends."""

    def _head(self, lines: _Lines, columns: Sequence[str]) -> tuple[tuple[str, ...], int]:
        start, numbered = lines.position, iter(lines)
        line = next(numbered, "")
        tabs = printable(self.path).lower().endswith(".tsv")
        self._separator = "\t" if tabs else max(",\t;|", key=line.count)
        if columns:
            return tuple(columns), start
        header = next(csv.reader([line], delimiter=self._separator), [])
        names = tuple(name.strip() for name in header)
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise DataError(
                f"{printable(self.path)}: its first line repeats {', '.join(map(repr, repeated))}; if it is not a "
                f"header, give the names of the columns with `columns`"
            )
        return names, lines.position

    def _parse(self, lines: _Lines, number: int) -> Iterator[Row]:
        rows = csv.reader(iter(lines), delimiter=self._separator, strict=True)
        while True:
            try:
                values = next(rows)
            except StopIteration:
                return
            except csv.Error:  # such as a quote that is never closed; the next line starts anew
                values = None
            damaged = lines.damaged()
            if values == []:  # an empty line
                continue
            if damaged or values is None or len(values) > len(self.columns):
                yield Row(number, problem="bad text" if damaged else "bad row")
            else:
                yield self._row(number, dict(zip(self.columns, values)))
            number += 1


class JsonLines(_Text):
    """A json object a line."""

    def _head(self, lines: _Lines, columns: Sequence[str]) -> tuple[tuple[str, ...], int]:
        if columns:
            raise DataError(f"`columns` is for CSV and TSV files without a header, not for {printable(self.path)}")
        start = lines.position
        return next((tuple(row.fields) for row in self._parse(lines, 0) if not row.problem), ()), start

    def _parse(self, lines: _Lines, number: int) -> Iterator[Row]:
        for line in lines:
            if not line.strip():
                continue
            try:
                fields = json.loads(line)
            except (ValueError, RecursionError):
                fields = None
            damaged = lines.damaged()
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
