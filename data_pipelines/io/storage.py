"""One interface for files on disk and in object stores: `gs://`, `s3://`, `http(s)://` and `memory://`.

`Files` reads exact ranges, lists, and writes whole files. Files on disk are read by the calling thread; remote ones
by one event loop (see `remote`), whose requests are bounded, limited in time and repeated when that may help. Closing
a `Files` ends its own requests at once; when the last one closes, thread and connections are gone.
"""

import contextlib
import errno
import glob as local_glob
import io
import os
import stat
import threading
import time
import uuid
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any, BinaryIO, NamedTuple

from data_pipelines.errors import DataError
from data_pipelines.host import Memory
from data_pipelines.io import remote
from data_pipelines.io.readahead import ReadAhead
from data_pipelines.io.remote import Stat
from data_pipelines.io.retry import Forbidden, MissingFile
from data_pipelines.io.tar import Read
from data_pipelines.io.urls import basename, is_remote, join, parent, printable, protocol

__all__ = [
    "Files",
    "Forbidden",
    "InFlight",
    "MissingFile",
    "Stat",
    "basename",
    "in_flight",
    "is_remote",
    "join",
    "parent",
    "printable",
    "stalled_reads",
]

_NO_NAME = (errno.ENAMETOOLONG, errno.ELOOP)
_LOCAL_STATS = 16  # threads that ask a network disk for the sizes of many files
_STATS_AT_ONCE = 64  # files that one of them is given together: handing one out costs more than a local disk takes

_in_flight: dict[object, tuple[str, int, int, float]] = {}


class InFlight(NamedTuple):
    """A read that has not returned yet: bytes [start, end) of `path`, for `seconds` so far."""

    path: str
    start: int
    end: int
    seconds: float


def in_flight(longer_than: float = 0.0) -> list[InFlight]:
    """Returns the reads of this process, on disk or remote, that have taken longer than so many seconds; oldest first.

    A network disk that hangs cannot be interrupted, but it can be named.
    """
    now = time.monotonic()
    reads = (InFlight(path, start, end, now - began) for path, start, end, began in list(_in_flight.values()))
    return sorted((read for read in reads if read.seconds >= longer_than), key=lambda read: -read.seconds)


def stalled_reads(seconds: float = 5.0) -> list[str]:
    """Returns a line for each read that has taken longer than so many seconds, with the name of its file."""
    return [
        f"reading bytes {read.start:,} to {read.end:,} of {read.path} for {read.seconds:.0f} s so far"
        for read in in_flight(seconds)
    ]


class Files:
    """Access to files by path or url, for one owner that closes it.

    All `Files` of a process with the same limits share their connections, so that `concurrency` holds for the process.
    After `close`, in another thread too, calls raise `concurrent.futures.CancelledError`, those under way included.

    Args:
        concurrency: remote requests in flight.
        attempts: of one request before it counts as failed.
        timeout: seconds of one attempt.
        backoff: seconds before the second attempt, doubled at each further one.
    """

    def __init__(self, concurrency: int = 16, attempts: int = 8, timeout: float = 60.0, backoff: float = 1.0):
        self._limits = remote.Limits(concurrency, attempts, timeout, backoff)
        self._engine: remote.Engine | None = None
        self._closed, self._lock = False, threading.Lock()
        self._pending: set[Future] = set()

    def __reduce__(self) -> tuple:
        """In another process, other files with the same limits."""
        limits = self._limits
        return Files, (limits.concurrency, limits.attempts, limits.timeout, limits.backoff)

    def __enter__(self) -> "Files":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Ends the requests of this object; the last one of its kind closes the connections."""
        with self._lock:
            if self._closed:
                return
            self._closed, pending = True, list(self._pending)
        for future in pending:
            future.cancel()
        if self._engine is not None:
            remote.release(self._limits)

    def stat(self, path: str) -> Stat:
        """Returns size and version of a file.

        Raises:
            MissingFile, Forbidden: DataErrors of their own, so that a caller may tell them apart.
            DataError: the file cannot be accessed.
        """
        if protocol(path):
            return self._wait(path, 0, 0, self._start(self._remote.stat(path)))
        return self._local(path, 0, 0, lambda: _stat(path))

    def stat_many(self, paths: Iterable[str]) -> dict[str, Stat]:
        """Returns size and version of those of the files that exist, many at a time.

        Buckets are listed where more than a few files of a folder are wanted: one request per thousand files.

        Raises:
            DataError: a file is forbidden or cannot be accessed.
        """
        local, distant = [], []
        for path in dict.fromkeys(paths):
            (distant if protocol(path) else local).append(path)
        found = {}
        if local:
            with ThreadPoolExecutor(_LOCAL_STATS, thread_name_prefix="storage-stat") as pool:
                parts = [local[i : i + _STATS_AT_ONCE] for i in range(0, len(local), _STATS_AT_ONCE)]
                for part in pool.map(lambda paths: list(map(self._stat_or_none, paths)), parts):
                    found |= {entry.path: entry for entry in part if entry}
        if distant:
            where = f"{printable(distant[0])} and {len(distant) - 1} more"
            found |= self._wait(where, 0, 0, self._start(self._remote.stat_many(distant)))
        return found

    def exists(self, path: str) -> bool:
        """Whether there is such a file; raises DataError where that cannot be told."""
        return self._stat_or_none(path) is not None

    def glob(self, pattern: str) -> list[str]:
        """Returns the files that match `*`, `?` and `[...]`, sorted.

        Raises:
            DataError: a web server, which cannot list; or the store cannot be accessed.
        """
        if protocol(pattern):
            return self._wait(pattern, 0, 0, self._start(self._remote.glob(pattern)))
        return sorted(filter(os.path.isfile, local_glob.glob(pattern)))

    def read(
        self, path: str, start: int, end: int, version: str = "", memory: Memory | None = None
    ) -> bytes | memoryview:
        """Returns exactly bytes [start, end) of a file; large ranges of remote files in parallel parts.

        Args:
            path: path or url.
            start: first byte.
            end: byte after the last one.
            version: that the file must have, where a read tells it: on disk and on most web servers; "" is any.
            memory: where to put what is read from disk; None makes bytes.

        Raises:
            DataError: the file is another version or shorter than `end` ("stale index"), gone or forbidden, the server
                ignores ranges, or no attempt succeeded.
        """
        if end <= start:
            return b""
        if protocol(path):
            return self._wait(path, start, end, self._start(self._remote.read(path, start, end, version)))
        return self._local(path, start, end, lambda: _read(path, start, end, version, memory))

    def read_all(self, path: str) -> bytes:
        """Returns a whole file."""
        return self.read(path, 0, self.stat(path).size)

    @contextlib.contextmanager
    def buffered(self, path: str, size: int) -> Iterator[Read]:
        """Gives a `Read` (offset, size) of a file of `size` bytes for a scan in roughly rising order.

        Remote files are read ahead in chunks while the scan goes from chunk to chunk, and not where it jumps, so that
        both many small members and few huge ones cost little; the memory is bounded (see `ReadAhead`). For one thread.
        """
        if protocol(path):
            start = lambda first, last: self._start(self._remote.read(path, first, last))
            wait = lambda future, first, last: self._wait(path, first, last, future)
            with ReadAhead(start, wait, size) as read:
                yield read
            return
        with self._local(path, 0, 0, lambda: open(path, "rb", buffering=0)) as file:
            yield self._scanner(path, file.fileno())

    @contextlib.contextmanager
    def open(self, path: str) -> Iterator[BinaryIO]:
        """Gives a seekable binary file to read from, as libraries want it."""
        size = self.stat(path).size
        with self.buffered(path, size) as read, io.BufferedReader(_Raw(read, size), 2**20) as file:
            yield file

    def write_atomic(self, path: str, content: bytes) -> None:
        """Writes a whole file, so that no reader ever sees half of it; makes its folder where it is missing.

        Raises:
            OSError: the place cannot be written, for whatever reason; a caller may have another one.
        """
        if not protocol(path):
            _write(path, content)
            return
        try:
            self._wait(path, 0, len(content), self._start(self._remote.write(path, content)))
        except DataError as error:
            raise OSError(str(error)) from None

    @property
    def _remote(self) -> remote.Engine:
        with self._lock:
            self._check_open()
            if self._engine is None:
                self._engine = remote.acquire(self._limits)
            return self._engine

    def _start(self, work: Coroutine) -> Future:
        with self._lock:
            if self._closed:
                work.close()
            self._check_open()
            future = self._engine.start(work)
            self._pending.add(future)
        future.add_done_callback(self._pending.discard)
        return future

    def _wait(self, path: str, start: int, end: int, future: Future) -> Any:
        with _noted(path, start, end):
            try:
                return future.result()
            finally:
                future.cancel()  # of an interrupted wait; nobody would want the result
                del future  # its error, with this frame in the traceback, would keep all callers alive

    def _local(self, path: str, start: int, end: int, work: Callable[[], Any]) -> Any:
        self._check_open()
        with _noted(path, start, end):
            try:
                return work()
            except DataError:
                raise
            except (OSError, ValueError) as error:
                raise _explained(path, error) from error

    def _scanner(self, path: str, descriptor: int) -> Read:
        """Returns `_local` for one open file, at a third of its cost: a scan reads three headers a sample."""
        ticket = object()

        def read(offset: int, count: int) -> bytes:
            self._check_open()
            _in_flight[ticket] = (path, offset, offset + count, time.monotonic())
            try:
                return os.pread(descriptor, count, offset)
            except OSError as error:
                raise _explained(path, error) from error
            finally:
                del _in_flight[ticket]

        return read

    def _stat_or_none(self, path: str) -> Stat | None:
        try:
            return self.stat(path)
        except MissingFile:
            return None

    def _check_open(self) -> None:
        if self._closed:
            raise CancelledError("these files were closed")


class _Raw(io.RawIOBase):
    """The random access of a `Read` as a file."""

    def __init__(self, read: Read, size: int):
        self._read, self._size, self._at = read, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: memoryview) -> int:
        content = self._read(self._at, len(buffer))
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)


@contextlib.contextmanager
def _noted(path: str, start: int, end: int) -> Iterator[None]:
    ticket = object()
    _in_flight[ticket] = (printable(path), start, end, time.monotonic())
    try:
        yield
    finally:
        del _in_flight[ticket]


def _explained(path: str, error: OSError | ValueError) -> DataError:
    # A ValueError is about characters that no name has.
    if isinstance(error, FileNotFoundError | NotADirectoryError | ValueError) or error.errno in _NO_NAME:
        return MissingFile(f"{path} does not exist")
    if isinstance(error, PermissionError):
        return Forbidden(f"{path} is forbidden: {error.strerror}")
    return DataError(f"cannot read {path}: {error.strerror or error}")


def _stat(path: str) -> Stat:
    info = os.stat(path)
    if not stat.S_ISREG(info.st_mode):
        raise MissingFile(f"{path} is not a file")
    return Stat(path, info.st_size, str(info.st_mtime_ns))


def _read(path: str, start: int, end: int, version: str, memory: Memory | None) -> bytes | memoryview:
    content = memoryview(bytearray(end - start) if memory is None else memory.empty(end - start))
    with open(path, "rb", buffering=0) as file:
        if version and version != str(os.fstat(file.fileno()).st_mtime_ns):
            raise DataError(f"stale index: {path} changed during the run. Start the run again")
        done = file.seek(start) - start
        while done < len(content):  # one call reads at most 2 GiB
            count = file.readinto(content[done:])
            if not count:
                size = os.fstat(file.fileno()).st_size
                raise DataError(f"stale index: {path} ends at {size:,}, expected {end:,} bytes")
            done += count
    return bytes(content) if memory is None else content


def _write(path: str, content: bytes) -> None:
    draft = f"{path}.{uuid.uuid4().hex}"
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    try:
        with open(draft, "wb") as file:
            file.write(content)
        os.replace(draft, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(draft)
        raise
