"""Compressed shards: unpacked once, because samples are read from any place of a shard.

The plain twin of `shards/a.tar.gz` is `shards/.unpacked/a.tar`, or lies in the user's cache where that folder cannot
be written; that of a remote shard always lies in the cache. Twins of other endings, such as `a.tgz` or `a.tar.xz`, lie
in a folder of that name, so that no two shards share one. A twin is made again when its shard changes: the time that it
carries is derived from the size, the time and both ends of the shard, where the formats keep their checksums.
"""

import bz2
import gzip
import hashlib
import logging
import lzma
import os
import shutil
import uuid
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from data_pipelines.errors import DataError
from data_pipelines.io.storage import Files, basename, is_remote, parent, printable


def _zstd(file: BinaryIO) -> BinaryIO:
    import zstandard

    return zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)


_PLAIN = ".tar.gz"  # the ending whose twins lie in no folder of their own
_OPENERS: dict[str, Callable[[Any], BinaryIO]] = {
    _PLAIN: gzip.open,
    ".tgz": gzip.open,
    ".tar.bz2": bz2.open,
    ".tar.xz": lzma.open,
    ".tar.zst": _zstd,
}
ENDINGS = tuple(_OPENERS)
_KINDS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\3\4": "zip"}
_CACHE = Path("~/.cache/xmodal/unpacked")
_ENDS = 2**16  # bytes of the beginning and of the end of a shard that tell it from another
_MOST, _TIMES = 64 * 2**20, 200  # bytes of a twin, and times its shard: tars of images hardly shrink, of texts 30 times
_PIECE = 2**20

_log = logging.getLogger(__name__)


def is_packed(shard: str | os.PathLike) -> bool:
    """Whether the name says that the shard is compressed."""
    return basename(os.fspath(shard)).endswith(ENDINGS)


def compression(head: bytes) -> str:
    """Returns what to say of a file that is no tar, by its first bytes; "" if they are those of no packed file."""
    kind = next((kind for magic, kind in _KINDS.items() if head.startswith(magic)), "")
    if kind == "zip":
        return " but a zip file; unpack it, and pack the files again with `tar --sort=name -cf`"
    return f" but compressed ({kind}); name it with one of the endings {', '.join(ENDINGS)}" if kind else ""


def unpacked(shard: str | os.PathLike, files: Files | None = None) -> Path:
    """Returns the plain twin of a compressed shard, made when it is missing or its original has changed.

    Args:
        shard: path or url.
        files: reads it; for local shards there is no need of one.

    Raises:
        DataError: the shard is missing or damaged, unpacks to far more than tars do, or there is no room for its twin.
    """
    if files is None:
        with Files() as files:
            return unpacked(shard, files)
    shard = os.fspath(shard)
    ending = next(ending for ending in ENDINGS if basename(shard).endswith(ending))
    name = basename(shard).removesuffix(ending) + ".tar"
    folders = _folders(shard, "" if ending == _PLAIN else ending.removeprefix("."))
    changed = _time_of(shard, files)
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
        return _unpack(files, shard, _OPENERS[ending], part, folder / name, changed)
    raise DataError(f"{printable(shard)} must be unpacked, but {' and '.join(map(str, folders))} cannot be written")


def _folders(shard: str, inner: str) -> list[Path]:
    """Returns the places for the twin, the best first."""
    folder = printable(parent(shard)) if is_remote(shard) else str(Path(shard).parent.resolve())
    cache = _CACHE.expanduser() / hashlib.blake2b(folder.encode(), digest_size=8).hexdigest() / inner
    return [cache] if is_remote(shard) else [Path(shard).parent / ".unpacked" / inner, cache]


def _time_of(shard: str, files: Files) -> int:
    """Returns the time in nanoseconds that the twin of this content carries, which is how a change shows."""
    stat = files.stat(shard)
    state = f"{stat.size} {stat.version}".encode()
    if not is_remote(shard):  # whose version may be a time, which programs that copy files set as they like
        head, tail = min(_ENDS, stat.size), max(0, stat.size - _ENDS)
        state += bytes(files.read(shard, 0, head)) + bytes(files.read(shard, tail, stat.size))
    return int.from_bytes(hashlib.blake2b(state, digest_size=4).digest(), "big") * 10**9


def _unpack(files: Files, shard: str, opener: Callable[[Any], BinaryIO], part: Path, twin: Path, changed: int) -> Path:
    """Writes the twin whole or not at all."""
    name, most = printable(shard), max(_MOST, _TIMES * files.stat(shard).size)
    try:
        with files.open(shard) as packed, opener(packed) as source, open(part, "wb") as target:
            free = shutil.disk_usage(part).free
            while piece := source.read(_PIECE):
                if target.tell() + len(piece) > most:
                    raise DataError(
                        f"{name} unpacks to more than {most / 2**20:,.0f} MiB, {_TIMES} times its size or more, which "
                        f"no tar of samples does; if it is one all the same, unpack it yourself to a plain .tar"
                    )
                if target.tell() + len(piece) > free:
                    raise DataError(f"{name} cannot be unpacked: the disk of {twin} has no room for it")
                target.write(piece)
        os.utime(part, ns=(changed, changed))
        part.replace(twin)
    except OSError as error:
        if isinstance(error, gzip.BadGzipFile) or error.errno is None:  # what decoders raise
            raise DataError(f"{name} is damaged and cannot be unpacked: {error}") from error
        raise DataError(f"{name} could not be unpacked to {twin}: {error.strerror or error}") from error
    except DataError:
        raise
    except (EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
        raise DataError(f"{name} is damaged and cannot be unpacked: {error}") from error
    except Exception as error:  # of zstandard, which need not be installed
        raise DataError(f"{name} cannot be unpacked: {error}") from error
    finally:
        part.unlink(missing_ok=True)
    _log.info("unpacked %s to %s", name, twin)
    return twin
