"""The index of tar shards: which bytes hold how many usable samples, and what was left out and why.

One scan of the headers (with the rules, never the images) gives for each shard a table of cells: runs of whole
samples, fine enough that any block size can be put together from them. The table is kept in `.index/` beside the
shards, or in the user's cache where that folder cannot be written.
"""

import contextlib
import copy
import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from data_pipelines.errors import BadSample, DataError
from data_pipelines.host import cores
from data_pipelines.io import paths
from data_pipelines.io.packed import compression
from data_pipelines.io.storage import Files, Stat, is_remote, printable
from data_pipelines.io.tar import Group, Read, TarDamage, TarEnd, groups, is_archive
from data_pipelines.io.urls import without_secrets
from data_pipelines.progress import progress
from data_pipelines.rules import Rules
from data_pipelines.sources.blocks import Blocks
from data_pipelines.sources.measures import Measure
from data_pipelines.sources.sidecar import ShardIndex, Sidecars
from data_pipelines.text.fields import field_names
from data_pipelines.workers import in_processes, results_of

_CELLS = 256  # of a shard, so that small data still make many blocks
_CELL_BYTES = 4 * 2**20  # at most, so that large shards still make blocks of the configured size
_REMOTE_COST = 16  # a byte of a bucket is scanned so many times slower than one on disk
_IN_PASSING = 64 * 2**30  # bytes on disk that the start of a run scans without asking
_PROCESSES_FROM = 8 * 2**30  # bytes on disk from which processes are worth their start
_REMOTE_SCANS = 8  # shards of a bucket scanned at a time
APART = "members apart"  # the reason of samples whose members do not lie side by side
_LACKS = ("no image", "no caption", "no json")
_LACKING = 100_000  # keys of a shard that are remembered because something is missing

_log = logging.getLogger(__name__)


class NotIndexed(DataError):
    """Shards are new or have changed, more than can be scanned in passing."""


@dataclass(frozen=True)
class Index:
    """The shards of one source."""

    shards: tuple[ShardIndex, ...]

    @property
    def samples(self) -> int:
        """Usable samples."""
        return sum(int(shard.counts.sum()) for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Size of all shards."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def skipped(self) -> dict[str, int]:
        """Reason -> samples left out."""
        return dict(sum((Counter(shard.skipped) for shard in self.shards), Counter()))

    def column(self, measure: Measure) -> np.ndarray:
        """Returns the numbers of a measure that the index was made with, [samples]."""
        return np.concatenate([shard.columns[measure.signature] for shard in self.shards])

    def digest(self) -> str:
        """Returns what tells two indexes apart."""
        digest = hashlib.blake2b(digest_size=16)
        for shard in self.shards:
            digest.update(repr((shard.path, shard.facts())).encode())
            for column in (shard.ends, shard.counts, *shard.columns.values()):
                digest.update(column.tobytes())
        return digest.hexdigest()

    def blocks(self, target: int) -> Blocks:
        """Joins neighbouring cells to blocks of about `target` bytes; blocks without a usable sample are left out."""
        ends = np.concatenate([shard.ends for shard in self.shards])
        counts = np.concatenate([shard.counts for shard in self.shards])
        shards = np.repeat(np.arange(len(self.shards)), [len(shard.ends) for shard in self.shards])
        first = np.diff(shards, prepend=-1) > 0
        starts = np.where(first, 0, np.roll(ends, 1))
        slot = starts // max(target, 1)  # cells that start in the same stretch of `target` bytes are one block
        begins = np.flatnonzero(first | (np.diff(slot, prepend=-1) != 0))
        last = np.append(begins[1:], len(ends)) - 1
        joined = np.add.reduceat(counts.astype(np.int64), begins)
        keep = joined > 0
        starts, ends = starts[begins][keep], ends[last][keep]
        return Blocks(shard=shards[begins][keep], start=starts, end=ends, count=joined[keep], bytes=ends - starts)


# Scans shards: called as `scan_all`.
Engine = Callable[[Sequence[Stat], Rules, Files, Sequence[Measure], int], Iterator[ShardIndex]]


def load(
    urls: str | Iterable[str],
    rules: Rules,
    files: Files,
    measures: Sequence[Measure] = (),
    *,
    workers: int = 0,
    at_most: float = _IN_PASSING,
    engine: Engine | None = None,
) -> Index:
    """Returns the index of the shards that `urls` name; scans those that are new or have changed, and says so.

    Args:
        urls: patterns as in `paths.expand`.
        rules: decide which samples are usable.
        files: reads the shards.
        measures: what to know of each usable sample.
        workers: shards scanned at a time; 0 decides by their place and size.
        at_most: bytes on disk to scan without being asked to; of a bucket a sixteenth.
        engine: what to scan with; None takes `scan_all`.

    Raises:
        DataError: a shard is missing or is no tar, nothing can be used, a configured field does not exist, or more
            is new or has changed than can be scanned in passing.
    """
    shards = paths.expand(urls, files)
    stats = files.stat_many(shards)
    missing = [shard for shard in shards if shard not in stats]
    if missing:
        more = f" and {len(missing) - 1} more do" if len(missing) > 1 else " does"
        raise DataError(f"shard {printable(missing[0])}{more} not exist; {len(stats)} of {len(shards)} shards do")
    sidecars = Sidecars(shards, signature(rules, measures), files)
    entries, todo = {}, []
    for shard in shards:
        stat, entry = stats[shard], sidecars.get(shard)
        if entry and (entry.bytes, entry.version) == (stat.size, stat.version):
            entries[shard] = entry
            continue
        todo.append(stat)
        if entry:
            how = "was written or copied since"
            if entry.bytes != stat.size:
                how = f"changed since it was indexed ({entry.bytes:,} bytes then, {stat.size:,} now)"
            _log.warning("stale index: %s %s; scanning it again", printable(shard), how)
    _check_amount(todo, urls, at_most)
    try:
        for entry in (engine or scan_all)(todo, rules, files, measures, workers) if todo else ():
            entries[entry.path] = entry
            sidecars.put(entry)
    finally:  # what an interrupted scan has found is kept, too
        sidecars.save()
    index = Index(tuple(entries[shard] for shard in shards))
    _check(index, urls, rules, files)
    return index


def signature(rules: Rules, measures: Sequence[Measure]) -> str:
    """Returns what tells an index from one that was made for other rules."""
    return " ".join([rules.signature, *(measure.signature for measure in measures)])


def scan(stat: Stat, rules: Rules, files: Files, measures: Sequence[Measure] = ()) -> ShardIndex:
    """Reads all headers and captions of one shard, and its images where a measure looks at them.

    Raises:
        DataError: the file is not a tar archive, or cannot be read.
    """
    entry = ShardIndex(stat.path, stat.size, stat.version)
    with files.buffered(stat.path, stat.size) as read:
        examine(entry, read, rules, measures)
    return entry


def examine(entry: ShardIndex, read: Read, rules: Rules, measures: Sequence[Measure] = ()) -> None:
    """Fills the entry of a shard with what `read` finds in it; raises DataError as `scan`."""
    limit, name = min(entry.bytes // _CELLS, _CELL_BYTES), printable(entry.path)
    ends, counts, numbers, apart = [], [], [], _Apart(entry)
    start = end = count = 0
    try:
        for group in groups(read, 0, entry.bytes, whole=True):
            if end and group.start - start >= limit:
                ends.append(group.start)
                counts.append(count)
                start, count = group.start, 0
            end = group.end
            try:
                numbers.append(_examine(entry, group, read, rules, measures))
                count += 1
            except BadSample as bad:
                apart.skip(group.key, bad.reason)
    except TarDamage as damage:
        if damage.reason == "corrupt header" and not is_archive(read):
            raise DataError(f"{name} is not a tar archive{compression(read(0, 8))}") from None
        entry.skip(f"from byte {damage.offset}", damage.reason)
        lost = "more may have followed" if isinstance(damage, TarEnd) else "nothing after it can be read"
        if damage.reason == "early end mark":
            lost += ", as where tars were joined by `cat`; `tar --concatenate` joins them"
        _log.warning("%s: %s; %s", name, damage, lost)
    if end:
        ends.append(end)
        counts.append(count)
    entry.ends, entry.counts = np.array(ends, np.int64), np.array(counts, np.int32)
    columns = zip(*numbers) if numbers else [()] * len(measures)
    entry.columns = {m.signature: np.array(column, m.dtype) for m, column in zip(measures, columns)}


class _Apart:
    """Skips the samples of a shard, and tells those that lack a part from those whose parts do not lie together."""

    def __init__(self, entry: ShardIndex):
        self._entry = entry
        self._lacking: dict[str, str] = {}

    def skip(self, key: str, reason: str) -> None:
        """Counts a sample; of one that comes in pieces only the first counts."""
        entry, before = self._entry, self._lacking.get(key)
        if reason not in _LACKS or before in (None, reason):
            entry.skip(key, reason)
            if reason in _LACKS and len(self._lacking) < _LACKING:
                self._lacking.setdefault(key, reason)
        elif before != APART:
            self._lacking[key] = APART
            entry.unskip(key, before)
            entry.skip(key, APART)


def _examine(entry: ShardIndex, group: Group, read: Read, rules: Rules, measures: Sequence[Measure]) -> tuple[int, ...]:
    """Returns the numbers of a usable sample; raises BadSample for any other."""
    members = rules.members(group)
    record = rules.read_group(group, lambda member: read(member.offset, member.size))
    if not entry.available:
        entry.available = field_names(record.fields)
    for name in rules.filled(record.fields):
        entry.filled[name] = entry.filled.get(name, 0) + 1
    rules.check(record)
    needed = {name: members[name] for measure in measures if (name := measure.needs) in members}
    content = {name: read(member.offset, member.size) for name, member in needed.items()}
    return tuple(measure.of(group.key, record, content.get(measure.needs, b"")) for measure in measures)


def scan_all(
    stats: Sequence[Stat], rules: Rules, files: Files, measures: Sequence[Measure], workers: int = 0
) -> Iterator[ShardIndex]:
    """Yields the entries of shards as they are done; ends at once when it is closed, and at Ctrl-C."""
    remote, own = any(is_remote(stat.path) for stat in stats), copy.copy(files)  # closing those ends the scans
    workers = max(1, min(workers or (_REMOTE_SCANS if remote else cores()), len(stats)))
    if not remote and sum(stat.size for stat in stats) >= _PROCESSES_FROM:
        entries = in_processes(_scan_alone, stats, workers, rules, measures)
    else:
        calls = ((stat, rules, own, measures) for stat in stats)
        entries = results_of(ThreadPoolExecutor(workers, "data-index"), scan, calls, workers, own.close)
    with own, progress(len(stats), "indexing") as advance, contextlib.closing(entries):
        for entry in entries:
            yield entry
            advance(1)


def _scan_alone(stat: Stat, rules: Rules, measures: Sequence[Measure]) -> ShardIndex:
    with Files() as files:
        return scan(stat, rules, files, measures)


def _check_amount(todo: Sequence[Stat], urls: str | Iterable[str], at_most: int) -> None:
    amount = sum(stat.size * (_REMOTE_COST if is_remote(stat.path) else 1) for stat in todo)
    if amount > at_most:
        size, where = sum(stat.size for stat in todo), without_secrets(str(urls))
        raise NotIndexed(
            f"{len(todo)} shards of {where} ({size / 2**30:,.0f} GiB) are not indexed, or changed since they were "
            f"(stale index), such as {printable(todo[0].path)}. Index them first, in parallel and with a progress bar: "
            "python -m xmodal data index"
        )


def _check(index: Index, urls: str | Iterable[str], rules: Rules, files: Files) -> None:
    filled = sum((Counter(shard.filled) for shard in index.shards), Counter())
    available = dict.fromkeys(name for shard in index.shards for name in shard.available)
    where = without_secrets(str(urls))
    if rules.fields and (index.samples or available):
        rules.check_fields(filled, available, where)
    for reason, hint in _HINTS.items():
        if index.samples and reason in index.skipped:
            _log.warning("%s: %s samples are left out (%s): %s", where, f"{index.skipped[reason]:,}", reason, hint)
    if not index.samples:
        reasons = ", ".join(f"{reason}: {n:,}" for reason, n in index.skipped.items()) or "they hold no samples"
        raise DataError(
            f"no usable sample in {where}, {len(index.shards)} shard{'s' * (len(index.shards) > 1)} ({reasons})"
            f"{_hint(index, files)}"
        )


_HINTS = {
    APART: "the members of a sample must lie side by side: pack the files again, sorted (tar --sort=name -cf ...)",
    "dot in the name": "a key ends at the first dot of a name: rename the members, or name the extensions with `image` "
    "and `caption`",
    "bad text": "texts are read as UTF-8: convert others, such as with `iconv -f LATIN1 -t UTF-8`",
    "link": "links have no content: pack the files again with tar --dereference --hard-dereference",
    "sparse member": "pack the files again without --sparse",
}


def _hint(index: Index, files: Files) -> str:
    hints = "; ".join(hint for reason, hint in _HINTS.items() if reason in index.skipped)
    by_members = {"no image", "no caption", "dot in the name"} & index.skipped.keys()
    return (f". {hints}" if hints else "") + (_members_of(index.shards[0], files) if by_members else "")


def _members_of(shard: ShardIndex, files: Files) -> str:
    """Says of which members the first sample of a shard consists."""
    with files.buffered(shard.path, shard.bytes) as read:
        group = next(groups(read, 0, shard.bytes), None)
    names = ", ".join(group.members) if group else "none"
    hint = f". The first sample has the members {names}; others than the usual are named with `image` and `caption`"
    if group and "json" in group.members:
        hint += ", captions of the json's fields with templates such as ((1.0, '{caption}'),)"
    return hint + ", and of texts alone, leave images out of data.inputs"
