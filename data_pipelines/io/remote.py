"""Requests to object stores and web servers: one event loop with bounded concurrency, retries and time limits.

One thread with an event loop serves all requests of a process, so that hundreds in flight cost no thread each, a
time limit holds whatever a server does, and closing it ends every connection. fsspec's file systems do the talking
to buckets; its web one reads whole files where a server ignores ranges, so that ranges of web files are asked for here.
"""

import asyncio
import datetime
import importlib
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple

from data_pipelines.errors import DataError
from data_pipelines.io import retry
from data_pipelines.io.urls import basename, parent, printable, protocol

PART = 8 * 2**20  # bytes of one request; larger ranges are read in parallel
_LISTED = 16  # files wanted of one folder up to which asking for each is cheaper than a listing

_SYSTEMS = dict(  # store -> module (imported at the first use) and class of its file system, and its package
    gs=("gcsfs.core", "GCSFileSystem", "gcsfs"),
    s3=("s3fs", "S3FileSystem", "s3fs"),
    http=("fsspec.implementations.http", "HTTPFileSystem", "aiohttp"),
    memory=("fsspec.implementations.memory", "MemoryFileSystem", "fsspec"),
)

_log = logging.getLogger(__name__)


class Stat(NamedTuple):
    """A file: `size` in bytes, and a short `version` that changes whenever its content does."""

    path: str
    size: int
    version: str


@dataclass(frozen=True)
class Limits:
    """How requests are made: see `data.remote` of the configs.

    Attributes:
        concurrency: requests in flight.
        attempts: of one request before it counts as failed.
        timeout: seconds of one attempt.
        backoff: seconds before the second attempt, doubled at each further one.
    """

    concurrency: int
    attempts: int
    timeout: float
    backoff: float


class Engine:
    """The event loop in its thread, and the connections that all users of the same limits share."""

    def __init__(self, limits: Limits):
        self.users = 0
        self._limits = limits
        self._systems: dict[str, tuple[Any, Any]] = {}  # store -> file system and its session
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main(ready)), name="storage", daemon=True)
        self._thread.start()
        ready.wait()

    def start(self, work: Coroutine) -> Future:
        """Runs a coroutine of this object; cancelling the future ends its requests."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def stop(self) -> None:
        """Ends all requests, connections and the thread."""
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    async def read(self, path: str, start: int, end: int, version: str = "") -> bytes:
        """Returns exactly bytes [start, end), of `version` if the server tells it; large ranges in parallel parts."""
        bounds = [(first, min(first + PART, end)) for first in range(start, end, PART)]
        parts = await _together(self._read_part(path, *part, end, version) for part in bounds)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def stat(self, path: str) -> Stat:
        """Returns size and version."""
        return await self._attempt(path, lambda: self._stat(path))

    async def stat_many(self, paths: Iterable[str]) -> dict[str, Stat]:
        """Returns size and version of those of the files that exist: one listing per folder where that is cheaper."""
        folders: dict[str, list[str]] = {}
        for path in paths:
            folders.setdefault(parent(path), []).append(path)
        groups = await _together(self._stat_folder(folder, members) for folder, members in folders.items())
        return {stat.path: stat for group in groups for stat in group}

    async def glob(self, pattern: str) -> list[str]:
        """Returns the files that match, sorted."""
        store = _store(pattern)
        if store == "http":
            raise DataError(
                f"web servers cannot list files, so {printable(pattern)} matches nothing; name them with braces, such "
                f"as https://host/shard-{{0000..0009}}.tar"
            )
        found = await self._attempt(pattern, lambda: self._call(store, "glob", pattern, detail=True))
        files = (name for name, info in found.items() if info["type"] == "file")
        return sorted(f"{store}://{name.lstrip('/')}" for name in files)

    async def write(self, path: str, content: bytes) -> None:
        """Puts a file in one piece."""
        store = _store(path)
        if store == "http":
            raise DataError(f"{printable(path)} cannot be written: web servers are read only")
        await self._attempt(path, lambda: self._call(store, "pipe_file", path, content))

    async def _main(self, ready: threading.Event) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        self._slots, self._opening = asyncio.Semaphore(self._limits.concurrency), asyncio.Lock()
        ready.set()
        await self._stopping.wait()
        for _, session in self._systems.values():
            if session is not None:
                await session.close()

    async def _attempt(self, path: str, request: Callable[[], Awaitable[Any]], what: str = "") -> Any:
        """Returns the result of a request that is repeated while that may help."""
        attempts, error = self._limits.attempts, None
        for attempt in range(1, attempts + 1):
            try:
                async with self._slots, asyncio.timeout(self._limits.timeout):
                    return await request()
            except Exception as failure:
                error = failure
            if ending := retry.final(error, path):
                try:
                    raise ending from None
                finally:
                    del ending, error  # an error in a frame of its own traceback would keep all callers alive
            _log.info("%s%s, attempt %d of %d: %s", printable(path), what, attempt, attempts, retry.cause(error))
            if attempt < attempts:
                await asyncio.sleep(retry.pause(self._limits.backoff, attempt, f"{path}{what}"))
        # Without its chain: the messages of libraries name signed urls in full.
        raise DataError(
            f"gave up on {printable(path)}{what} after {attempts} attempts of at most {self._limits.timeout:g} s; the "
            f"last failed with: {retry.cause(error)}"
        ) from None

    async def _read_part(self, path: str, start: int, end: int, needed: int, version: str) -> bytes:
        store = _store(path)

        async def request() -> bytes:
            try:
                if store == "http":
                    content = await self._get(path, start, end, version)
                else:
                    content = await self._call(store, "cat_file", path, start=start, end=end)
            except Exception as error:
                if retry.status_of(error) != 416:  # the range lies outside of the file
                    raise
                content = b""
            if len(content) < end - start and (size := (await self._stat(path)).size) < end:
                raise DataError(f"stale index: {printable(path)} ends at {size:,}, expected {needed:,} bytes")
            if len(content) > end - start:
                raise _ignores_ranges(path)
            if len(content) < end - start:
                raise ConnectionError(f"got {len(content):,} of {end - start:,} bytes")
            return content

        return await self._attempt(path, request, f" (bytes {start:,} to {end:,})")

    async def _stat(self, path: str) -> Stat:
        store = _store(path)
        if store == "http":
            return await self._ask(path)
        info = await self._call(store, "info", path)
        if info["type"] != "file":
            raise retry.MissingFile(f"{path} is a folder and not a file")
        return Stat(path, info["size"], _version(info))

    async def _stat_folder(self, folder: str, paths: Sequence[str]) -> list[Stat]:
        store = _store(folder)
        if store == "http" or len(paths) <= _LISTED:
            found = await _together(self._stat_or_none(path) for path in paths)
            return [stat for stat in found if stat is not None]
        try:
            listing = await self._attempt(folder, lambda: self._call(store, "ls", folder, detail=True))
        except retry.MissingFile:
            return []
        files = {basename(info["name"]): info for info in listing if info["type"] == "file"}
        infos = {path: files.get(basename(path)) for path in paths}
        return [Stat(path, info["size"], _version(info)) for path, info in infos.items() if info]

    async def _stat_or_none(self, path: str) -> Stat | None:
        try:
            return await self.stat(path)
        except retry.MissingFile:
            return None

    async def _get(self, url: str, start: int, end: int, version: str) -> bytes:
        async with await self._request(url, start, end) as reply:
            if version and (found := _version(reply.headers)) and found != version:
                raise DataError(f"stale index: {printable(url)} changed during the run. Start the run again")
            if reply.status == 206:
                if not reply.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                    raise DataError(f"{printable(url)} was asked for byte {start:,} on and the server sent other bytes")
            elif start or reply.content_length != end:  # the whole file is right where it was asked for
                raise _ignores_ranges(url)
            return await _body(reply, url, end - start)

    async def _ask(self, url: str) -> Stat:
        # Not HEAD: urls that are signed for reading refuse it.
        async with await self._request(url, 0, 1, refuse=False) as reply:
            total = reply.headers.get("Content-Range", "").rpartition("/")[2]
            if reply.status in (206, 416) and total.isdigit():
                size = int(total)
            elif reply.status >= 400:
                raise retry.Refused(reply.status, reply.reason)
            elif reply.content_length is None:
                raise DataError(f"the server does not say how large {printable(url)} is")
            else:
                size = reply.content_length
            return Stat(url, size, _version(reply.headers) or f"{size} bytes")

    async def _request(self, url: str, start: int, end: int, refuse: bool = True) -> Any:
        import yarl

        system, session = await self._system("http")
        options = dict(system.kwargs)  # headers and the like that the user set for fsspec
        # A compressed answer would be unpacked on the way and no longer be the bytes that were asked for.
        ranged = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        headers = {**options.pop("headers", {}), **ranged}
        # A signed url is encoded already; to encode it otherwise would break the signature.
        reply = await session.get(yarl.URL(url, encoded="%" in url), headers=headers, **options)
        if refuse and reply.status >= 400:
            reply.close()
            raise retry.Refused(reply.status, reply.reason)
        return reply

    async def _call(self, store: str, method: str, *args: Any, **options: Any) -> Any:
        system, session = await self._system(store)
        if session is None:  # memory, which answers at once
            return getattr(system, method)(*args, **options)
        return await getattr(system, f"_{method}")(*args, **options)

    async def _system(self, store: str) -> tuple[Any, Any]:
        async with self._opening:
            if store not in self._systems:
                self._systems[store] = await self._connect(store)
            return self._systems[store]

    async def _connect(self, store: str) -> tuple[Any, Any]:
        module, name, package = _SYSTEMS[store]
        try:
            kind = getattr(importlib.import_module(module), name)
        except ImportError as error:
            raise DataError(
                f"{store}:// needs the package {package} ({error}); install it with: pip install -e '.[remote]'"
            ) from None
        shared = dict(skip_instance_cache=True, use_listings_cache=False)
        if store == "memory":
            return kind(**shared), None
        system = kind(**shared, asynchronous=True, **self._options(store))
        if store == "s3":
            system.retries = 1  # attempts are counted here, and not attempts of attempts
        connect = getattr(system, "set_session", None) or system._set_session
        return system, await connect()

    def _options(self, store: str) -> dict[str, Any]:
        """Returns the options of a file system; the user's own come from fsspec's configuration and environment."""
        if store == "s3":
            from fsspec.config import conf

            limits = dict(max_pool_connections=self._limits.concurrency, retries={"total_max_attempts": 1})
            limits |= dict(connect_timeout=self._limits.timeout, read_timeout=self._limits.timeout)
            return dict(config_kwargs={**conf.get("s3", {}).get("config_kwargs", {}), **limits})
        if store == "http":
            return dict(get_client=_web_session)
        return {}


_engines: dict[Limits, Engine] = {}
_lock = threading.Lock()


def acquire(limits: Limits) -> Engine:
    """Returns the engine of these limits, started by its first user."""
    with _lock:
        engine = _engines.get(limits) or _engines.setdefault(limits, Engine(limits))
        engine.users += 1
        return engine


def release(limits: Limits) -> None:
    """Notes that a user has finished; the last one stops the engine."""
    with _lock:
        _engines[limits].users -= 1
        if not _engines[limits].users:
            _engines.pop(limits).stop()


async def _together(work: Iterable[Coroutine]) -> list[Any]:
    """Returns the results of coroutines that run at once; the first failure ends the others."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _web_session(**options: Any) -> Any:
    """Returns a session whose limits are those of the engine; proxies and .netrc are taken from the environment."""
    import aiohttp

    defaults = dict(timeout=aiohttp.ClientTimeout(total=None), connector=aiohttp.TCPConnector(limit=0), trust_env=True)
    return aiohttp.ClientSession(**{**defaults, **options})


def _store(path: str) -> str:
    scheme = protocol(path)
    return "http" if scheme == "https" else scheme


def _version(info: Any) -> str:
    for name in ("generation", "ETag", "etag", "Last-Modified", "LastModified", "created"):
        if value := info.get(name):
            # Memory gives one time as a date for a file and in seconds in a listing.
            return str(value.timestamp() if isinstance(value, datetime.datetime) else value).strip('"')
    return ""


async def _body(reply: Any, url: str, size: int) -> bytes:
    """Returns what a server answers; raises DataError as soon as that is more than was asked for."""
    content = bytearray()
    async for piece in reply.content.iter_any():
        content += piece
        if len(content) > size:
            reply.close()  # the rest would be waited for
            raise DataError(f"{printable(url)} was asked for {size:,} bytes and the server sent more")
    return bytes(content)


def _ignores_ranges(url: str) -> DataError:
    return DataError(
        f"the server of {printable(url)} ignores ranges and sends whole files, so that samples cannot be read from it; "
        f"copy the files to disk or to a server that serves byte ranges"
    )
