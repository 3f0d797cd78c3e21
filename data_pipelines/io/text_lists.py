"""Lists of lines: CSV, TSV and JSONL files."""

import abc
import csv
import io
import itertools
import json
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.io import encodings
from data_pipelines.io.lines import Lines, lines_of
from data_pipelines.io.listing import (
    CAPTION_COLUMNS,
    IMAGE_COLUMNS,
    NULL,
    Listing,
    Row,
    check_columns,
    named_columns,
)
from data_pipelines.io.storage import Files, parent, printable

_SEPARATORS = ",\t;|"
_HEAD = 1000  # rows of a list of objects whose keys are its columns
_MARK = 64  # rows between two noted positions
_SNIFFED = 2**16  # bytes at the start that tell encoding and line ends


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
    encodings.check_utf8(path, head)


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
            raise DataError(f"{printable(self.path)}: its first line repeats {named_columns(repeated)!r}{self._remark}")
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
        empty = any(fields.get(column, "") is None for column in self._texts.values())
        return row._replace(textless=NULL) if empty else row

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
