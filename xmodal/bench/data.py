"""Speed of the input pipeline: the raw decoder, our stream, the webdataset library and open_clip's loader side by side.

Each loader runs in a process of its own, and they take turns: what else happens on the machine meets all of them. The
figure to trust is CPU time per sample, of the process, its threads and its workers. Busy cores share caches and clock,
and a sample then costs more: the raw decoder that the stream is compared with has as many threads.
"""

import argparse
import contextlib
import multiprocessing
import os
import pathlib
import resource
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

from xmodal.bench.data_loaders import LOADERS, Job, missing
from xmodal.bench.data_sets import SETS, write_set, write_tokenizer
from xmodal.errors import TrainingError

_WARM_UP = 16  # batches before the clock starts: all workers busy, all buffers full and in use a second time
_DISTINCT = 256  # images made for a set
_COLUMNS = ["images", "loader", "CPU ms/sample", "samples/s", "samples per CPU-s / open_clip's", "over raw decoder %"]


class Round(NamedTuple):
    """What a loader took for a sample in one of its turns, in seconds."""

    cpu: float
    wall: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the benchmark's arguments."""
    parser.add_argument("--image", choices=("big", "small", "both"), default="both", help="which images")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each loader; the table has their medians")
    parser.add_argument("--samples", type=int, default=2048, help="of a set; each turn reads as many")
    parser.add_argument("--batch", type=int, default=128, help="samples of a batch")
    parser.add_argument("--workers", type=int, default=2, help="our threads, and the others' processes")


def measure(args: argparse.Namespace) -> tuple[str, list[str], list[list]]:
    """Makes the shards and runs the loaders on them; returns (title, columns, rows)."""
    if min(args.rounds, args.batch, args.samples, args.workers) < 1 or args.samples % args.batch:
        raise TrainingError("--rounds, --batch and --workers must be at least 1, and --samples a multiple of --batch")
    if not pathlib.Path("/proc/self/stat").exists():
        raise TrainingError("bench data reads the CPU time of worker processes from /proc, which only Linux has")
    rows = []
    with tempfile.TemporaryDirectory(prefix="xmodal-bench-") as folder, contextlib.ExitStack() as stack:
        spawn = multiprocessing.get_context("spawn")  # forking a process that has threads may hang it
        names = [name for name in LOADERS if not missing(name)]
        process = lambda: stack.enter_context(ProcessPoolExecutor(1, spawn, _fork_workers))
        processes = {name: process() for name in names}
        tokenizer = write_tokenizer(pathlib.Path(folder, "tokenizer.json"))
        for spec in SETS:
            if args.image not in (spec.name, "both"):
                continue
            shards = write_set(pathlib.Path(folder, spec.name), spec, args.samples, _DISTINCT)
            kilobytes = sum(shard.stat().st_size for shard in shards) / args.samples / 1000
            job = Job(tuple(map(str, shards)), str(tokenizer), args.workers, args.batch)
            rows += table_rows(f"{spec.name}, {kilobytes:.0f} KB", _take_turns(processes, job, args))
    lacking = [f"{name} (needs {', '.join(missing(name))})" for name in LOADERS if missing(name)]
    absent = f"; not installed: {'; '.join(lacking)}" if lacking else ""
    return f"224 px, {args.workers} workers, medians of {args.rounds} rounds{absent}", _COLUMNS, rows


def table_rows(images: str, rounds: dict[str, list[Round]]) -> list[list]:
    """Returns the rows of one set. Ratios are medians of the rounds' ratios: a slow minute slows both sides."""
    rows = []
    for name, own in rounds.items():
        gain = over = ""
        if "open_clip" in rounds:
            gain = round(statistics.median(b.cpu / a.cpu for a, b in zip(own, rounds["open_clip"])), 2)
        if name != "raw decoder":
            over = round(100 * statistics.median(a.cpu / b.cpu - 1 for a, b in zip(own, rounds["raw decoder"])), 1)
        cpu, wall = (statistics.median(getattr(turn, field) for turn in own) for field in Round._fields)
        rows.append([images, name, round(1000 * cpu, 3), round(1 / wall), gain, over])
    return rows


def take_turn(name: str, job: Job, samples: int) -> Round:
    """Runs a loader in this process: opens it, warms it up, measures it and closes it."""
    with contextlib.closing(LOADERS[name][0](job)) as batches:
        for _ in range(_WARM_UP):
            next(batches)
        cpu, wall = cpu_seconds(), time.perf_counter()
        for _ in range(samples // job.batch):
            next(batches)
        return Round((cpu_seconds() - cpu) / samples, (time.perf_counter() - wall) / samples)


def cpu_seconds() -> float:
    """Returns the CPU time that this process, its threads and its running workers have used."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    return own.ru_utime + own.ru_stime + sum(map(_of_process, multiprocessing.active_children()))


def _fork_workers() -> None:
    # A spawned process would spawn its own workers, unlike a trainer that was started from a shell.
    multiprocessing.set_start_method("fork", force=True)


def _of_process(process: multiprocessing.Process) -> float:
    stat = pathlib.Path(f"/proc/{process.pid}/stat").read_text()
    user, system = stat.rpartition(")")[2].split()[11:13]  # behind the command, which may hold spaces: `man 5 proc`
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _take_turns(processes: dict[str, ProcessPoolExecutor], job: Job, args: argparse.Namespace) -> dict:
    rounds = {name: [] for name in processes}
    for _ in range(args.rounds):
        for name, process in processes.items():
            rounds[name].append(process.submit(take_turn, name, job, args.samples).result())
    return rounds
