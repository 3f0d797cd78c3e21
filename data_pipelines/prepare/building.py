"""Builds webdataset shards from any source: in parallel, resumable, the same bytes however many workers there are.

A plan says which blocks of the source make which shard; it follows from the source and the options alone. Each shard
is then the work of one process. When it is done, a note in `.build/` says what became of its rows and what the index is
to say; the notes together become `manifest.json`, `skipped.jsonl` and the index. A build that is started again keeps
what is done.
"""

import contextlib
import functools
import hashlib
import json
import logging
import os
import queue
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipelines.errors import BadSample, DataError, Fault
from data_pipelines.io.storage import Files, is_remote, join
from data_pipelines.names import sample_name, shard_labels
from data_pipelines.prepare.writer import ImageRule, ShardWriter, is_draft, sample_members
from data_pipelines.progress import progress
from data_pipelines.rules import Rules
from data_pipelines.samples import ORIGIN, Sample
from data_pipelines.sources import Source
from data_pipelines.sources.blocks import Blocks
from data_pipelines.sources.index import ShardIndex, examine, signature
from data_pipelines.sources.sidecar import Sidecars
from data_pipelines.workers import interrupts_to, process_pool, spawning

_VERSION = 3  # of the manifest and the notes
_BLOCK_BYTES = 8 * 2**20  # what a worker holds at a time, about
_NOTES = ".build"
_PATTERNS = "*?[]{}"
_LISTED = 1000  # rows listed by name for each shard and reason; the counts are exact

_log = logging.getLogger(__name__)


class Stopped(Exception):
    """A worker was asked to end before its shard was done."""


@dataclass(frozen=True)
class Limits:
    """Size of a shard: it ends before the first block that would make it larger.

    Attributes:
        bytes: of its images, as they come from the source, or of texts alone.
        samples: in it.
    """

    bytes: int = 512 * 2**20
    samples: int = 10_000

    def __post_init__(self):
        if self.bytes < 1 or self.samples < 1:
            raise DataError(f"a shard of {self.bytes} bytes and {self.samples} samples holds nothing; expected from 1")


@dataclass(frozen=True)
class Job:
    """All that a worker needs to know.

    Attributes:
        source: what is built from.
        out: folder of the shards, path or url.
        images: what becomes of the images.
        rules: of the index of the shards: those of the runs that will read them.
        blocks: of the source.
        firsts: int64 [shards + 1], the block that each shard starts with.
        files: writes.
        labels: names of the source's shards in the origins of samples, see `names.shard_labels`.
    """

    source: Source
    out: str
    images: ImageRule
    rules: Rules
    blocks: Blocks
    firsts: np.ndarray
    files: Files

    @functools.cached_property
    def labels(self) -> dict[str, str]:  # once a worker: of many shards of a source they take long
        return shard_labels(self.source.shard_names(), 2)

    def __len__(self) -> int:
        return len(self.firsts) - 1

    def name(self, shard: int) -> str:
        """Returns the file name of a shard."""
        return f"{shard:06d}.tar"

    def samples(self, shard: int) -> int:
        """Returns the number of samples that a shard is to hold, if none is bad."""
        return int(self.blocks.count[self.firsts[shard] : self.firsts[shard + 1]].sum())

    def rows(self, shard: int) -> list[list[int]]:
        """Returns the runs [input, start, end) of the source that a shard is made of."""
        runs: list[list[int]] = []
        here = slice(self.firsts[shard], self.firsts[shard + 1])
        columns = (self.blocks.shard, self.blocks.start, self.blocks.end)
        for where, start, end in zip(*(column[here].tolist() for column in columns)):
            if runs and runs[-1][0] == where and runs[-1][2] == start:
                runs[-1][2] = end
            else:
                runs.append([where, start, end])
        return runs


def plan(source: Source, out: str, limits: Limits, images: ImageRule, rules: Rules, files: Files) -> Job:
    """Decides which blocks make which shard; the arguments are the attributes of `Job`.

    Raises:
        DataError: the name of the output is a pattern, and no `urls` could name its shards.
    """
    if marks := [mark for mark in _PATTERNS if mark in out]:
        raise DataError(
            f"{out} cannot be read with `urls`, for which {' '.join(marks)} makes it a pattern; name another"
        )
    mean = source.bytes // max(source.samples, 1)
    target = max(1, min(_BLOCK_BYTES, limits.bytes, mean * limits.samples))
    while len(blocks := source.blocks(target)) and target > 1 and blocks.count.max() > limits.samples:
        target //= 2  # samples much smaller than the mean lie together
    firsts = [0]
    size = samples = 0
    for number, (amount, count) in enumerate(zip(blocks.bytes.tolist(), blocks.count.tolist())):
        if samples and (size + amount > limits.bytes or samples + count > limits.samples):
            firsts.append(number)
            size = samples = 0
        size, samples = size + amount, samples + count
    return Job(source, out, images, rules, blocks, np.asarray([*firsts, len(blocks)], np.int64), files)


def build(job: Job, options: Mapping[str, Any], workers: int = 1, run: Callable | None = None) -> dict[str, Any]:
    """Makes the shards that are not there yet.

    Args:
        job: from `plan`.
        options: everything that decides what the shards hold, as json has it; for the manifest.
        workers: processes.
        run: makes shards in another way: called with the job and the numbers of the shards.

    Returns:
        The manifest.

    Raises:
        DataError: the folder holds another build or cannot be written, the input has changed since this one was begun,
            or a worker died.
    """
    try:
        manifest = _begin(job, options)
        return manifest if manifest["complete"] else _make_missing(job, manifest, workers, run)
    except OSError as error:
        cause = f"{error.strerror}: {error.filename}" if error.filename else error.strerror or str(error)
        raise DataError(f"{job.out} cannot be built ({cause}). Mended, the same command goes on from here") from error


def _make_missing(job: Job, manifest: dict[str, Any], workers: int, run: Callable | None) -> dict[str, Any]:
    done = _done(job)
    missing = [shard for shard in range(len(job)) if shard not in done]
    if done:
        _log.info("%d of %d shards are there already", len(done), len(job))
    if run is not None:
        run(job, missing)
    elif missing:
        with progress(sum(map(job.samples, missing)), "building", "samples") as advance:
            made = _in_processes(job, missing, workers) if workers > 1 else _here(job, missing)
            with contextlib.closing(made):  # ends the processes at once, whatever happens here
                for shard in made:
                    advance(job.samples(shard))
    return _finish(job, manifest)


def build_shard(job: Job, shard: int, stop: Callable[[], bool] = lambda: False) -> None:
    """Makes one shard and notes what became of its rows. Raises Stopped when `stop` says so."""
    skipped, listed = Counter(), []

    def skip(sample: Sample, reason: str) -> None:
        skipped[reason] += 1
        if skipped[reason] <= _LISTED:
            listed.append(Fault(sample.shard, sample.key, reason))

    place, path = 0, join(job.out, job.name(shard))
    with ShardWriter(path, job.files) as writer:
        for block in range(int(job.firsts[shard]), int(job.firsts[shard + 1])):
            for sample in job.source.read(job.blocks, block):
                if stop():
                    raise Stopped
                try:
                    if sample.fault:
                        raise BadSample(sample.fault)
                    captions = job.source.rules.captions(sample.record)
                    text = "\n".join(captions) if job.source.rules.inputs.caption.captions.lines else captions[0]
                    image = sample.content if job.rules.inputs.stored else None
                    origin = sample.path or sample_name(sample.shard, sample.key, job.labels)
                    members = sample_members(image, text, sample.record.fields | {ORIGIN: origin}, job.images)
                    # The place counts bad samples too, so that a key names the same row whatever fails.
                    writer.add(f"{shard:06d}{place:06d}", members)
                except BadSample as bad:
                    skip(sample, bad.reason)
                place += 1
        read = writer.end()  # what was just written costs less to scan than a shard of a bucket would later
        entry = ShardIndex(path, writer.bytes, "")
        examine(entry, read, job.rules)
    entry.version = job.files.stat(path).version
    note = dict(name=job.name(shard), samples=writer.samples, bytes=writer.bytes, rows=job.rows(shard))
    note |= dict(skipped=dict(skipped), listed=listed)
    note["index"] = dict(facts=entry.facts(), ends=entry.ends.tolist(), counts=entry.counts.tolist())
    job.files.write_atomic(_note(job, shard), json.dumps(note).encode())


def _here(job: Job, shards: list[int]) -> Iterator[int]:
    for shard in shards:
        build_shard(job, shard)
        yield shard


_worker: dict[str, Any] = {}  # the job of this process


def _start_worker(job: Job, stop: Any) -> None:
    _worker.update(job=job, stop=stop)


def _work(shard: int) -> int:
    build_shard(_worker["job"], shard, _worker["stop"].is_set)
    return shard


def _in_processes(job: Job, shards: list[int], workers: int) -> Iterator[int]:
    """Yields the shards as they get done. However it ends, no process stays behind, and none is waited for long."""
    stop, results = spawning().Event(), queue.SimpleQueue()
    pool = process_pool(min(workers, len(shards)), _start_worker, job, stop)
    with interrupts_to(results):
        try:
            for shard in shards:
                pool.submit(_work, shard).add_done_callback(results.put)
            for _ in shards:
                future = results.get()
                if future is None:
                    raise KeyboardInterrupt
                yield future.result()
        except BrokenProcessPool:
            raise DataError(
                "a worker process died, perhaps for want of memory. Start the same command again, and it goes on from "
                "here; --workers with a smaller number needs less memory"
            ) from None
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def _begin(job: Job, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the manifest of this build, begun now or before."""
    path = join(job.out, "manifest.json")
    manifest = dict(
        version=_VERSION,
        complete=False,
        options=_plain(options),
        inputs=_plain(job.source.identity()),
        shards=len(job),
        samples=job.source.samples,
        plan=_digest(job),
    )
    if job.files.exists(path):
        found = _read_json(job.files, path)
        _check_same(found, manifest, path)
        _remove_drafts(job.out)
        return found
    strangers = job.files.glob(join(job.out, "*.tar"))
    if strangers:
        raise DataError(f"{job.out} holds shards that this build did not write, such as {strangers[0]}; name another")
    job.files.write_atomic(path, json.dumps(manifest, indent=1).encode())
    return manifest


def _check_same(found: Mapping[str, Any], manifest: Mapping[str, Any], path: str) -> None:
    if found.get("version") != _VERSION:
        raise DataError(f"{path} was written by another version of this program; build into another folder")
    before, now = found["options"], manifest["options"]
    names = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    if names:
        changes = "; ".join(f"{name}: {before.get(name)!r} then, {now.get(name)!r} now" for name in names)
        raise DataError(f"{path} was begun with other options ({changes}). Use those, or another --out")
    if (found["inputs"], found["plan"]) != (manifest["inputs"], manifest["plan"]):
        raise DataError(f"the input changed since {path} was begun. Build into another --out, or delete this one")


def _done(job: Job) -> set[int]:
    """Returns the shards that are there with their notes."""
    notes = {os.path.basename(path) for path in job.files.glob(join(job.out, _NOTES, "*.json"))}
    noted = [shard for shard in range(len(job)) if os.path.basename(_note(job, shard)) in notes]
    there = job.files.stat_many(join(job.out, job.name(shard)) for shard in noted)
    return {shard for shard in noted if join(job.out, job.name(shard)) in there}


def _finish(job: Job, manifest: dict[str, Any]) -> dict[str, Any]:
    """Puts the notes together."""
    notes = [_read_json(job.files, _note(job, shard)) for shard in range(len(job))]
    skipped = Counter(job.source.skipped)
    lines = [json.dumps(fault._asdict()) for fault in job.source.faults()]
    for note in notes:
        skipped.update(note["skipped"])
        lines.extend(json.dumps(Fault(*fault)._asdict()) for fault in note.pop("listed"))
    _keep_index(job, notes)
    samples, size = (sum(note[name] for note in notes) for name in ("samples", "bytes"))
    manifest |= dict(complete=True, samples=samples, bytes=size, skipped=dict(sorted(skipped.items())), shards=notes)
    job.files.write_atomic(join(job.out, "skipped.jsonl"), "".join(f"{line}\n" for line in lines).encode())
    job.files.write_atomic(join(job.out, "manifest.json"), json.dumps(manifest, indent=1).encode())
    if not is_remote(job.out):  # a bucket keeps its notes; they are small
        shutil.rmtree(os.path.join(job.out, _NOTES), ignore_errors=True)
    return manifest


def _keep_index(job: Job, notes: Sequence[dict[str, Any]]) -> None:
    """Takes the index out of the notes and writes it, so that a first run starts at once."""
    path = lambda note: join(job.out, note["name"])
    sidecars = Sidecars(map(path, notes), signature(job.rules, ()), job.files)
    for note in notes:
        found = note.pop("index")
        ends, counts = np.array(found["ends"], np.int64), np.array(found["counts"], np.int32)
        sidecars.put(ShardIndex(path(note), ends=ends, counts=counts, **found["facts"]))
    sidecars.save()


def _remove_drafts(out: str) -> None:
    """Removes what killed workers left in a local folder; that of the notes too."""
    if not is_remote(out):
        for name in filter(is_draft, os.listdir(out)):
            os.unlink(os.path.join(out, name))


def _note(job: Job, shard: int) -> str:
    return join(job.out, _NOTES, f"{shard:06d}.json")


def _read_json(files: Files, path: str) -> dict[str, Any]:
    try:
        return json.loads(files.read_all(path))
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}); delete it, and what it describes is built again") from None


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _digest(job: Job) -> str:
    content = job.blocks.digest() + job.firsts.astype("<i8").tobytes()
    return hashlib.blake2b(content, digest_size=8).hexdigest()
