"""The lines of a text file, of which a parser may give some back."""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from data_pipelines.errors import DataError

LONGEST = 64 * 2**20  # bytes of a line
_PIECE = 2**16


def lines_of(file: BinaryIO, end: bytes, name: str) -> Iterator[bytes]:
    """Yields the lines of a file with their ends.

    Args:
        file: read from where it is.
        end: of a line, one byte.
        name: of the file, for messages.

    Raises:
        DataError: a line is longer than `LONGEST`.
    """
    pieces = iter(lambda: file.readline(LONGEST + 1), b"") if end == b"\n" else _divided(file, end)
    for line in pieces:
        if len(line) > LONGEST:
            raise DataError(f"{name} has a line of more than {LONGEST // 2**20} MiB; expected one line for each row")
        yield line


def _divided(file: BinaryIO, end: bytes) -> Iterator[bytes]:
    rest = b""
    while piece := file.read(_PIECE):
        *whole, last = (rest + piece).split(end)
        yield from (line + end for line in whole)
        rest = last
        if len(rest) > LONGEST:
            break
    if rest:
        yield rest


class Lines:
    """The lines of a file as text; `position` is the byte after the last one. Those of a row can be given back."""

    def __init__(self, lines: Iterable[bytes], position: int = 0):
        self._lines, self.position = iter(lines), position
        self._returned: deque[bytes] = deque()
        self._taken: list[tuple[bytes, bool]] = []  # of the row: a line, and whether it is no UTF-8

    def __iter__(self) -> "Lines":
        return self

    def __next__(self) -> str:
        line = self._returned.popleft() if self._returned else next(self._lines)
        self.position += len(line)
        try:
            text, damaged = line.decode(), False
        except UnicodeDecodeError:
            text, damaged = line.decode(errors="replace"), True
        self._taken.append((line, damaged))
        return text

    def __len__(self) -> int:
        """Lines of the row."""
        return len(self._taken)

    @property
    def text(self) -> str:
        """The lines of the row."""
        return b"".join(line for line, _ in self._taken).decode(errors="replace")

    def begin(self) -> None:
        """Begins a row."""
        self._taken.clear()

    def keep(self, count: int) -> None:
        """Gives back all lines of the row but the first so many."""
        for line, _ in reversed(self._taken[count:]):
            self._returned.appendleft(line)
            self.position -= len(line)
        del self._taken[count:]

    @property
    def damaged(self) -> bool:
        """Whether a line of the row is no UTF-8."""
        return any(damaged for _, damaged in self._taken)
