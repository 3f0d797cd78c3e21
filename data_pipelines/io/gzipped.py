"""Compressed shards: unpacked once, because samples are read from any place of a shard.

The plain twin of `shards/a.tar.gz` is `shards/.unpacked/a.tar`, or lies in the user's cache where that folder cannot
be written; that of a remote shard always lies in the cache. It is made again when the compressed shard changes.
"""

import gzip
import hashlib
import logging
import os
import shutil
import uuid
import zlib
from pathlib import Path

from data_pipelines.errors import DataError
from data_pipelines.io.storage import Files, basename, is_remote, parent, printable

_CACHE = Path("~/.cache/xmodal/unpacked")
_log = logging.getLogger(__name__)


def is_gzipped(shard: str | os.PathLike) -> bool:
    """Whether the name says that the shard is compressed."""
    return basename(os.fspath(shard)).endswith((".tar.gz", ".tgz"))


def unpacked(shard: str | os.PathLike, files: Files | None = None) -> Path:
    """Returns the plain twin of a compressed shard, made when it is missing or its original has changed.

    Args:
        shard: path or url.
        files: reads it; for local shards there is no need of one.

    Raises:
        DataError: the shard is missing or damaged, or there is no room for its twin.
    """
    if files is None:
        with Files() as files:
            return unpacked(shard, files)
    shard = os.fspath(shard)
    name = basename(shard).removesuffix(".gz").removesuffix(".tgz").removesuffix(".tar") + ".tar"
    folders = _folders(shard)
    changed = _time_of(shard, files.stat(shard).version)
    for folder in folders:
        twin = folder / name
        if twin.is_file() and twin.stat().st_mtime_ns == changed:
            return twin
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            part = folder / f"{name}.{uuid.uuid4().hex}.part"
            part.touch()
        except OSError:
            continue
        return _unpack(files, shard, part, folder / name, changed)
    raise DataError(f"{printable(shard)} must be unpacked, but {' and '.join(map(str, folders))} cannot be written")


def _folders(shard: str) -> list[Path]:
    """Returns the places for the twin, the best first."""
    folder = printable(parent(shard)) if is_remote(shard) else str(Path(shard).parent.resolve())
    cache = _CACHE.expanduser() / hashlib.blake2b(folder.encode(), digest_size=8).hexdigest()
    return [cache] if is_remote(shard) else [Path(shard).parent / ".unpacked", cache]


def _time_of(shard: str, version: str) -> int:
    """Returns the time in nanoseconds that the twin of this version carries, which is how a change shows."""
    if not is_remote(shard):
        return int(version)
    seconds = hashlib.blake2b(version.encode(), digest_size=4).digest()  # stores name versions, and not by time
    return int.from_bytes(seconds, "big") * 10**9


def _unpack(files: Files, shard: str, part: Path, twin: Path, changed: int) -> Path:
    """Writes the twin whole or not at all."""
    name = printable(shard)
    try:
        with files.open(shard) as packed, gzip.open(packed) as source, open(part, "wb") as target:
            shutil.copyfileobj(source, target, 2**20)
        os.utime(part, ns=(changed, changed))
        part.replace(twin)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{name} is damaged and cannot be unpacked: {error}") from error
    except OSError as error:
        raise DataError(f"{name} could not be unpacked to {twin}: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)
    _log.info("unpacked %s to %s", name, twin)
    return twin
