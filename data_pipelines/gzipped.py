"""Compressed shards: unpacked once, because samples are read from any place of a shard.

The plain twin of `shards/a.tar.gz` is `shards/.unpacked/a.tar`, or lies in the user's cache where that folder cannot
be written. It is made again when the compressed shard changes.
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

_CACHE = Path("~/.cache/xmodal/unpacked")
_log = logging.getLogger(__name__)


def is_gzipped(shard: Path) -> bool:
    """Whether the name says that the shard is compressed."""
    return shard.name.endswith((".tar.gz", ".tgz"))


def unpacked(shard: Path) -> Path:
    """Returns the plain twin of a compressed shard, made when it is missing or older.

    Raises:
        DataError: the shard is damaged, or there is no room for its twin.
    """
    name = shard.name.removesuffix(".gz").removesuffix(".tgz").removesuffix(".tar") + ".tar"
    digest = hashlib.blake2b(str(shard.parent.resolve()).encode(), digest_size=8).hexdigest()
    changed = shard.stat().st_mtime_ns
    folders = [shard.parent / ".unpacked", _CACHE.expanduser() / digest]
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
        return _unpack(shard, part, folder / name, changed)
    raise DataError(f"{shard} must be unpacked, but neither of {', '.join(map(str, folders))} can be written")


def _unpack(shard: Path, part: Path, twin: Path, changed: int) -> Path:
    """Writes the twin whole or not at all; it carries the time of its original, which is how a change shows."""
    try:
        with gzip.open(shard) as source, open(part, "wb") as target:
            shutil.copyfileobj(source, target, 2**20)
        os.utime(part, ns=(changed, changed))
        part.replace(twin)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{shard} is damaged and cannot be unpacked: {error}") from error
    except OSError as error:
        raise DataError(f"{shard} could not be unpacked to {twin}: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)
    _log.info("unpacked %s to %s", shard, twin)
    return twin
