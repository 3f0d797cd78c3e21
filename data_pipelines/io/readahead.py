"""Sequential reads of a remote file: chunks are fetched before they are asked for."""

from collections.abc import Callable
from concurrent.futures import Future

_CHUNK = 4 * 2**20
_AHEAD = 4  # chunks at most; 16 MiB in flight fill a fast line at the latency of an object store


class ReadAhead:
    """A `Read` (offset, size) that fetches the file chunk by chunk, and further ahead the longer a scan is sequential.

    It keeps the chunk before the current one, since a scan returns to what it has just passed, and so holds at most
    2 + 4 chunks of 4 MiB. A scan that jumps over whole chunks fetches only those it lands in; what lies further back
    is read by itself.

    Args:
        start: begins to read bytes [start, end).
        wait: returns the content of what `start` began.
        size: of the file; a read beyond it gives fewer bytes.
    """

    def __init__(self, start: Callable[[int, int], Future], wait: Callable[[Future, int, int], bytes], size: int):
        self._start, self._wait, self._size = start, wait, size
        self._chunks: dict[int, Future] = {}
        self._at, self._ahead = -1, 0

    def __enter__(self) -> "ReadAhead":
        return self

    def __exit__(self, *_) -> None:
        for future in self._chunks.values():
            future.cancel()

    def __call__(self, offset: int, size: int) -> bytes:
        end = min(offset + size, self._size)
        if end <= offset:
            return b""
        first, last = offset // _CHUNK, (end - 1) // _CHUNK
        if first < self._at and first not in self._chunks:
            return self._wait(self._start(offset, end), offset, end)
        pieces = []
        for number in range(first, last + 1):
            begin = number * _CHUNK
            pieces.append(self._chunk(number)[max(offset - begin, 0) : end - begin])
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _chunk(self, number: int) -> bytes:
        if number > self._at:
            self._advance(number)
        future = self._chunks[number]
        return future.result() if future.done() else self._wait(future, number * _CHUNK, self._end(number))

    def _advance(self, number: int) -> None:
        """Makes `number` the current chunk."""
        self._ahead = min(max(2 * self._ahead, 1), _AHEAD) if number == self._at + 1 else 0
        self._at = number
        for passed in [other for other in self._chunks if other < number - 1]:
            self._chunks.pop(passed).cancel()
        for wanted in range(number, number + self._ahead + 1):
            if wanted not in self._chunks and wanted * _CHUNK < self._size:
                self._chunks[wanted] = self._start(wanted * _CHUNK, self._end(wanted))

    def _end(self, number: int) -> int:
        return min((number + 1) * _CHUNK, self._size)
