"""The index of tar shards: which bytes hold how many usable samples, and what was left out and why.

One scan of the headers (with the captions, never the images) gives for each shard a table of cells: runs of whole
samples, fine enough that any block size can be put together from them. The table is kept in `.index/` beside the
shards, or in the user's cache where that folder cannot be written.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_pipelines import paths
from data_pipelines.captions import Captions
from data_pipelines.errors import BadSample, DataError
from data_pipelines.fields import field_names
from data_pipelines.samples import image_member, read_record
from data_pipelines.tar import BLOCK, Group, Read, TarDamage, groups

_VERSION = 1  # of the sidecar; another version is scanned again
_CELLS = 256  # of a shard, so that small data still make many blocks
_CELL_BYTES = 4 * 2**20  # at most, so that large shards still make blocks of the configured size
_LISTED = 1000  # skipped keys kept per shard and reason; the counts are exact
_RESCAN_BYTES = 64 * 2**30  # stale shards up to this are scanned again without asking
_SAVE_SECONDS = 30.0  # between saves of a long scan, so that an interruption costs little
_CACHE = Path("~/.cache/xmodal/index")

_log = logging.getLogger(__name__)


@dataclass
class ShardIndex:
    """What one scan found in one shard.

    Attributes:
        path: the shard.
        bytes: its size, and with `mtime_ns` the check that the entry still describes it.
        mtime_ns: time of its last change.
        ends: end of each cell in bytes; a cell starts where the one before ends, the first at 0.
        counts: usable samples of each cell.
        skipped: reason -> samples left out.
        skipped_keys: reason -> the first of their keys.
        filled: configured field -> records in which it has a content.
        available: field names of the first record.
    """

    path: str
    bytes: int
    mtime_ns: int
    ends: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)
    skipped_keys: dict[str, list[str]] = field(default_factory=dict)
    filled: dict[str, int] = field(default_factory=dict)
    available: list[str] = field(default_factory=list)

    def skip(self, key: str, reason: str) -> None:
        """Counts a sample that cannot be used."""
        self.skipped[reason] = self.skipped.get(reason, 0) + 1
        listed = self.skipped_keys.setdefault(reason, [])
        if len(listed) < _LISTED:
            listed.append(key)


@dataclass(frozen=True)
class Blocks:
    """Runs of whole samples, the unit of reading: `paths[shard[i]]`, bytes [start[i], end[i]), `count[i]` samples."""

    paths: tuple[str, ...]
    shard: np.ndarray
    start: np.ndarray
    end: np.ndarray
    count: np.ndarray


@dataclass(frozen=True)
class Index:
    """The shards of one source."""

    shards: tuple[ShardIndex, ...]

    @property
    def samples(self) -> int:
        """Usable samples."""
        return sum(sum(shard.counts) for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Size of all shards."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def skipped(self) -> dict[str, int]:
        """Reason -> samples left out."""
        return dict(sum((Counter(shard.skipped) for shard in self.shards), Counter()))

    def blocks(self, target: int) -> Blocks:
        """Joins neighbouring cells to blocks of about `target` bytes; blocks without a usable sample are left out."""
        ends = np.concatenate([np.asarray(shard.ends, np.int64) for shard in self.shards])
        counts = np.concatenate([np.asarray(shard.counts, np.int64) for shard in self.shards])
        shards = np.repeat(np.arange(len(self.shards)), [len(shard.ends) for shard in self.shards])
        first = np.diff(shards, prepend=-1) > 0
        starts = np.where(first, 0, np.roll(ends, 1))
        slot = starts // max(target, 1)  # cells that start in the same stretch of `target` bytes are one block
        begins = np.flatnonzero(first | (np.diff(slot, prepend=-1) != 0))
        last = np.append(begins[1:], len(ends)) - 1
        joined = np.add.reduceat(counts, begins)
        keep = joined > 0
        return Blocks(
            paths=tuple(shard.path for shard in self.shards),
            shard=shards[begins][keep],
            start=starts[begins][keep],
            end=ends[last][keep],
            count=joined[keep],
        )


def load(urls: str | Iterable[str], captions: Captions) -> Index:
    """Returns the index of the shards that `urls` name; scans those that are new or have changed, and says so.

    Args:
        urls: patterns as in `paths.expand`.
        captions: decides which samples have a caption.

    Raises:
        DataError: a shard is missing or is no tar, nothing can be used, a configured field does not exist, or more
            data than can be scanned in passing have changed since they were indexed.
    """
    shards = paths.expand(urls)
    folders: dict[Path, list[Path]] = {}
    for shard in shards:
        folders.setdefault(shard.parent, []).append(shard)
    entries = {}
    for folder, members in folders.items():
        entries |= _load_folder(folder, members, captions)
    index = Index(tuple(entries[shard] for shard in shards))
    _check(index, urls, captions)
    return index


def scan(path: Path, captions: Captions) -> ShardIndex:
    """Reads all headers and captions of one shard.

    Raises:
        DataError: the file is not a tar archive.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        stat = os.fstat(descriptor)
        entry = ShardIndex(str(path), stat.st_size, stat.st_mtime_ns)
        _scan(entry, lambda offset, size: os.pread(descriptor, size, offset), captions)
    finally:
        os.close(descriptor)
    return entry


def _scan(entry: ShardIndex, read: Read, captions: Captions) -> None:
    limit = min(entry.bytes // _CELLS, _CELL_BYTES)
    start = end = count = 0
    try:
        for group in groups(read, 0, entry.bytes):
            if end and group.start - start >= limit:
                entry.ends.append(group.start)
                entry.counts.append(count)
                start, count = group.start, 0
            end = group.end
            try:
                _examine(entry, group, read, captions)
                count += 1
            except BadSample as bad:
                entry.skip(group.key, bad.reason)
    except TarDamage as damage:
        if damage.reason == "corrupt header" and damage.offset == 0:
            hint = " but compressed; unpack it to a plain .tar" if read(0, 2) == b"\x1f\x8b" else ""
            raise DataError(f"{entry.path} is not a tar archive{hint}") from None
        entry.skip(f"from byte {damage.offset}", damage.reason)
        _log.warning("%s: %s; nothing after it can be read", entry.path, damage)
    else:
        if any(read(max(0, entry.bytes - BLOCK), BLOCK)):
            _log.warning("%s has no end mark: it may have been cut off between two members", entry.path)
    if end:
        entry.ends.append(end)
        entry.counts.append(count)


def _examine(entry: ShardIndex, group: Group, read: Read, captions: Captions) -> None:
    image_member(group)
    record = read_record(group, lambda member: read(member.offset, member.size), captions)
    if not entry.available:
        entry.available = field_names(record.fields)
    for name in captions.filled(record):
        entry.filled[name] = entry.filled.get(name, 0) + 1
    captions.check(record)


def _load_folder(folder: Path, shards: Sequence[Path], captions: Captions) -> dict[Path, ShardIndex]:
    """Returns the entries of the shards of one folder, and keeps what had to be scanned."""
    sidecar = _Sidecar(folder, captions.signature)
    entries, todo, stale = {}, [], []
    for shard in shards:
        stat, entry = shard.stat(), sidecar.entries.get(shard.name)
        if entry and (entry.bytes, entry.mtime_ns) == (stat.st_size, stat.st_mtime_ns):
            entries[shard] = entry
            continue
        todo.append(shard)
        if entry:
            stale.append(shard)
            _log.warning(
                "stale index: %s changed since it was indexed (%d bytes then, %d now); scanning it again",
                *(shard, entry.bytes, stat.st_size),
            )
    amount = sum(shard.stat().st_size for shard in stale)
    if amount > _RESCAN_BYTES:
        raise DataError(
            f"stale index: {len(stale)} shards ({amount / 2**30:,.0f} GiB) in {folder} changed since they were "
            f"indexed, such as {stale[0]}. If that is intended, delete {sidecar.path} and they are indexed again"
        )
    saved = time.monotonic()
    for done, shard in enumerate(todo, 1):
        entries[shard] = sidecar.entries[shard.name] = scan(shard, captions)
        if time.monotonic() - saved > _SAVE_SECONDS:
            _log.info("indexed %d of %d shards in %s", done, len(todo), folder)
            sidecar.save()
            saved = time.monotonic()
    if todo:
        sidecar.save()
    return entries


def _check(index: Index, urls: str | Iterable[str], captions: Captions) -> None:
    filled = sum((Counter(shard.filled) for shard in index.shards), Counter())
    available = dict.fromkeys(name for shard in index.shards for name in shard.available)
    if captions.fields and (index.samples or available):
        captions.check_fields(filled, available, where=str(urls))
    if not index.samples:
        reasons = ", ".join(f"{reason}: {n:,}" for reason, n in index.skipped.items()) or "they hold no samples"
        raise DataError(f"no usable sample in the {len(index.shards)} shards of {urls} ({reasons})")


class _Sidecar:
    """The file that keeps the entries of one folder for one rule of what is usable."""

    def __init__(self, folder: Path, signature: str):
        digest = hashlib.blake2b(f"{_VERSION} {signature}".encode(), digest_size=6).hexdigest()
        place = hashlib.blake2b(str(folder).encode(), digest_size=6).hexdigest()
        self._candidates = (
            folder / ".index" / f"{digest}.json",
            _CACHE.expanduser() / f"{place}-{digest}.json",
        )
        self._folder, self._signature = folder, signature
        self.path = next((path for path in self._candidates if path.exists()), self._candidates[0])
        self.entries = self._read()

    def _read(self) -> dict[str, ShardIndex]:
        try:
            content = json.loads(self.path.read_bytes())
            # Names and not paths: the folder may have moved since, with its index.
            return {name: ShardIndex(str(self._folder / name), **entry) for name, entry in content["shards"].items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError) as error:
            _log.warning("the index %s cannot be read (%s); scanning its shards again", self.path, error)
            return {}

    def save(self) -> None:
        """Writes the entries; a reader never sees half a file, and of two writers one wins."""
        shards = {name: dataclasses.asdict(entry) for name, entry in self.entries.items()}
        for entry in shards.values():
            del entry["path"]
        content = json.dumps(dict(usable_if=self._signature, shards=shards))
        for path in self._candidates:
            draft = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                draft.write_text(content)
                os.replace(draft, path)
            except OSError as error:
                with contextlib.suppress(OSError):
                    draft.unlink()
                _log.info("the index cannot be kept at %s: %s", path, error)
            else:
                return
        _log.warning("the index could not be kept anywhere; the next start scans the shards again")
