"""Search in a large index: time to load it, and time of a query, for each engine, FAISS's own flat index among them.

Random unit vectors are written as an index is, and read by a fresh process for each engine. `faiss alone` is that
library without our exact rescoring. All engines must find the same. Where others use the machine, too, the figure to
trust is the CPU time of a query, of all its threads.
"""

import argparse
import importlib.util
import pathlib
import statistics
import tempfile
import time
from typing import Any

import numpy as np

from xmodal.messages import UsageError
from xmodal.search.parts import Part, write_part
from xmodal.search.vectors import Vectors

_PART = 65_536  # samples
_ENGINES = ("numpy", "jax", "faiss")
_COLUMNS = ["engine", "load s", "query ms, median", "fastest", "slowest", "CPU ms", "memory GiB", "same results"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the benchmark's arguments."""
    parser.add_argument("--rows", type=int, default=1_000_000, help="embeddings")
    parser.add_argument("--dim", type=int, default=512, help="their width")
    parser.add_argument("--top", type=int, default=10, help="results of a query")
    parser.add_argument("--queries", type=int, default=20, help="asked one after another")
    parser.add_argument("--engines", nargs="+", choices=_ENGINES, default=_ENGINES, help="to compare; all by default")


def measure(args: argparse.Namespace) -> tuple[str, list[str], list[list]]:
    """Writes the vectors and asks each engine; returns (title, columns, rows)."""
    if min(args.rows, args.dim, args.top, args.queries) < 1:
        raise UsageError("--rows, --dim, --top and --queries must be above 0")
    engines = [engine for engine in args.engines if engine != "faiss"]
    if "faiss" in args.engines and importlib.util.find_spec("faiss"):
        engines += ["faiss", "faiss alone"]
    with tempfile.TemporaryDirectory(prefix="xmodal-bench-") as folder:
        parts = write(pathlib.Path(folder), args)
        found = {engine: _in_fresh_process(folder, parts, engine, args) for engine in engines}
    first = next((own["rows"] for own in found.values()), None)
    rows = [
        [
            engine,
            round(own["load"], 2),
            *(round(1e3 * value, 1) for value in (*_spread(own["seconds"]), own["cpu"])),
            round(own["memory"], 2),
            "yes" if own["rows"] == first else "no",
        ]
        for engine, own in found.items()
    ]
    if "faiss" in args.engines and "faiss" not in engines:
        rows.append(["faiss (not installed)", *[""] * (len(_COLUMNS) - 1)])
    return f"top {args.top} of {args.rows:,} embeddings of width {args.dim}, one query at a time", _COLUMNS, rows


def write(folder: pathlib.Path, args: argparse.Namespace) -> int:
    """Writes random unit vectors as the parts of an index; returns how many parts there are."""
    rng, parts = np.random.default_rng(0), 0
    for start in range(0, args.rows, _PART):
        vectors = rng.standard_normal((min(_PART, args.rows - start), args.dim), dtype=np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        write_part(folder, parts, {"image": vectors.astype(np.float16)}, [{}] * len(vectors), None, {})
        parts += 1
    return parts


def ask(folder: str, parts: int, engine: str, args: argparse.Namespace) -> dict[str, Any]:
    """Loads the parts into an engine and asks it; returns seconds, memory in GiB and the numbers of the rows found."""
    rng = np.random.default_rng(1)
    queries = rng.standard_normal((args.queries, args.dim)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    began = time.perf_counter()
    maps = [Part(pathlib.Path(folder), part).arrays["image"] for part in range(parts)]
    top = _engine(Vectors(maps, args.dim), engine)
    top(queries[:1], args.top)  # compiles, and reads what was mapped
    load, seconds, rows = time.perf_counter() - began, [], []
    cpu = time.process_time()
    for query in queries:
        began = time.perf_counter()
        rows.append(top(query[None], args.top)[0].tolist())
        seconds.append(time.perf_counter() - began)
    cpu = (time.process_time() - cpu) / len(queries)
    return dict(load=load, seconds=seconds, cpu=cpu, memory=_memory(), rows=rows)


def _engine(vectors: Vectors, engine: str):
    """Returns f(queries [1, dim], k) -> numbers of rows [k]."""
    from xmodal.search.top_k import FaissNearest, open_nearest

    if engine == "faiss alone":
        flat = FaissNearest(vectors).flat
        return lambda queries, k: flat.search(queries, k)[1][0]
    nearest = open_nearest(vectors, engine)
    return lambda queries, k: nearest.top(queries, k)[1][0]


def _spread(seconds: list[float]) -> tuple[float, float, float]:
    return statistics.median(seconds), min(seconds), max(seconds)


def _memory() -> float:
    """Returns the GiB that this process holds and that are no file's; nan where the system does not say."""
    try:
        status = dict(line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
        return int(status["RssAnon"].split()[0]) / 2**20
    except (OSError, KeyError):
        return float("nan")


def _in_fresh_process(*work: Any) -> dict[str, Any]:
    from data_pipelines.workers import process_pool

    with process_pool(1) as pool:
        return pool.submit(ask, *work).result()
