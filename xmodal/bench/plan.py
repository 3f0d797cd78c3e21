"""What a very large data set costs before its first batch: the index, the plan of an epoch, memory and time.

The table of a data set of a billion samples is made up and kept as an index; a fresh process then starts on it as a
training run does. Only the samples themselves are not there: each block gives one image again and again.
"""

import argparse
import multiprocessing
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

from data_pipelines.io.storage import Files, basename
from data_pipelines.modalities import inputs_of
from data_pipelines.order.order import Order, WindowKey
from data_pipelines.rules import Rules
from data_pipelines.samples import Sample
from data_pipelines.sources import Source
from data_pipelines.sources.blocks import Blocks
from data_pipelines.sources.index import Index, ShardIndex
from data_pipelines.sources.sidecar import Sidecars
from data_pipelines.stream.accounts import Accounts
from data_pipelines.stream.stream import Stream
from xmodal.bench.data_sets import SETS, caption, jpeg, write_tokenizer
from xmodal.configs.base import get_config
from xmodal.errors import TrainingError

_CELLS = 256  # of a shard: what a scan finds in shards up to a gigabyte
_FIELDS = ("caption", "url", "key", "status", "error_message", "width", "height", "original_width", "exif", "md5")
_FAULTY = ("no image", "empty caption", "repeated member")  # reasons, each with one sample in every shard
_SIGNATURE = "bench"
_COLUMNS = ["step", "seconds", "CPU seconds", "memory GiB", "peak GiB"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the benchmark's arguments."""
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--shard-samples", type=int, default=10_000, help="samples of a shard")
    parser.add_argument("--sample-bytes", type=int, default=100_000, help="size of a sample")
    parser.add_argument("--batch", type=int, default=512, help="samples of a batch")


def measure(args: argparse.Namespace) -> tuple[str, list[str], list[list]]:
    """Makes the index and starts on it; returns (title, columns, rows)."""
    if not pathlib.Path("/proc/self/status").exists():
        raise TrainingError("bench plan reads the memory of a process from /proc, which only Linux has")
    with tempfile.TemporaryDirectory(prefix="xmodal-bench-") as folder:
        tokenizer = write_tokenizer(pathlib.Path(folder, "tokenizer.json"))
        written = _in_fresh_process(write_index, folder, args)
        rows, facts = _in_fresh_process(start, folder, str(tokenizer), args, time.time())
        (file,) = pathlib.Path(folder, ".index").iterdir()
        size = file.stat().st_size
    title = (
        f"{facts['samples']:,} samples in {args.shards:,} shards, {facts['blocks']:,} blocks; index of "
        f"{size / 2**20:,.0f} MiB, written in {written:.1f} s"
    )
    return title, _COLUMNS, [[row[0], *(cell and round(cell, 2) for cell in row[1:])] for row in rows]


def write_index(folder: str, args: argparse.Namespace) -> float:
    """Keeps the index of shards that do not exist; returns the seconds that this took."""
    entries = list(_entries(folder, args))
    with Files() as files:
        began = time.perf_counter()
        sidecars = Sidecars(_paths(folder, args), _SIGNATURE, files)
        for entry in entries:
            sidecars.put(entry)
        sidecars.save()
        return time.perf_counter() - began


def start(folder: str, tokenizer: str, args: argparse.Namespace, began: float) -> tuple[list[list], dict[str, Any]]:
    """Goes from the index to batches as a training run does.

    Args:
        folder: of the shards.
        tokenizer: path of a `tokenizer.json`.
        args: the benchmark's.
        began: when this process was started, by `time.time()`.

    Returns:
        For each step its name, seconds, seconds of CPU time, and the GiB that the process then holds and has held at
        most; and the summary of the stream.
    """
    steps = _Steps(began)
    steps.done("process started, modules imported")
    config = get_config().data
    config.inputs = dict(image=dict(type="image"), text=dict(type="text", tokenizer=tokenizer))
    inputs = inputs_of(config)
    files, paths = Files(), _paths(folder, args)
    index = Index(tuple(map(Sidecars(paths, _SIGNATURE, files).get, paths)))
    steps.done("index read")
    source, accounts = _Planned(index, Rules(inputs)), Accounts(config.max_bad_share, None)
    with Stream(config, inputs, [source], accounts, files, lambda first, _: first, args.batch, 0, 0, (0, 1)) as stream:
        steps.done("stream opened: table of blocks, fingerprint")
        next(stream)
        steps.done("first batch: order of the epoch, first windows")
        summary = stream.summary()
    memory, full = steps.rows[-1][3:], summary["memory_bytes"] / 2**30
    steps.rows.append(["to the first batch, in all", *(sum(row[i] for row in steps.rows) for i in (1, 2)), *memory])
    steps.rows.append(["with full windows and batches (computed)", "", "", *(full + held for held in memory)])
    counts = source.blocks(config.block_bytes).count
    steps.restart()
    order = Order([counts], [source.name], [1.0], lanes=config.lanes, window=config.window, seed=0)
    for lane in range(config.lanes):
        order.plan(WindowKey(source=0, lane=lane, epoch=1, window=0))
    steps.done("later: order of the next epoch")
    return steps.rows, summary


class _Planned(Source):
    """Shards of which there is only an index: all samples look alike."""

    def __init__(self, index: Index, rules: Rules):
        self.name, self.rules, self._index = "bench", rules, index
        self.spec = self.Spec()
        self.samples, self.bytes, self.shards = index.samples, index.bytes, len(index.shards)
        self.skipped = index.skipped
        record = rules.from_fields({}, dict.fromkeys(rules.texts, caption(0)))
        self._sample = Sample("", "", dict.fromkeys(rules.inputs.stored, jpeg(SETS[1], 0)), record)

    def blocks(self, target: int) -> Blocks:
        return self._index.blocks(target)

    def read(self, blocks: Blocks, i: int) -> list[Sample]:
        return [self._sample] * int(blocks.count[i])

    def shard_names(self) -> list[str]:
        return [basename(shard.path) for shard in self._index.shards]

    def identity(self) -> list[tuple[str, int]]:
        return [(basename(shard.path), shard.bytes) for shard in self._index.shards]


class _Steps:
    """Times of steps and the memory after them."""

    def __init__(self, began: float):
        self.rows: list[list] = []
        self._since, self._cpu = began, 0.0

    def done(self, name: str) -> None:
        self.rows.append([name, time.time() - self._since, time.process_time() - self._cpu, *_memory()])
        self.restart()

    def restart(self) -> None:
        self._since, self._cpu = time.time(), time.process_time()


def _memory() -> tuple[float, float]:
    """Returns the GiB that this process holds, and has held at most."""
    # Not from `getrusage`: its maximum begins with what the parent held when it forked.
    status = dict(line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
    now, most = (int(status[name].split()[0]) / 2**20 for name in ("VmRSS", "VmHWM"))
    return now, most


def _paths(folder: str, args: argparse.Namespace) -> list[str]:
    return [f"{folder}/{shard:06d}.tar" for shard in range(args.shards)]


def _entries(folder: str, args: argparse.Namespace) -> Iterator[ShardIndex]:
    """Yields what a scan of the shards would find: cells of about equal size, a few faults."""
    cells = min(_CELLS, args.shard_samples)
    counts = np.diff(np.arange(cells + 1) * args.shard_samples // cells).astype(np.int32)
    random = np.random.default_rng(0)
    for path in _paths(folder, args):
        sizes = counts * args.sample_bytes * random.uniform(0.8, 1.2, cells)
        ends = np.cumsum(sizes.astype(np.int64) // 512 * 512)  # a tar is made of blocks of so many bytes
        entry = ShardIndex(path, int(ends[-1]), f"{random.integers(2**63):x}", ends, counts, available=list(_FIELDS))
        for reason in _FAULTY:
            entry.skip(f"{random.integers(args.shard_samples):09d}", reason)
        yield entry


def _in_fresh_process(work: Callable[..., Any], *args: Any) -> Any:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *args).result()
