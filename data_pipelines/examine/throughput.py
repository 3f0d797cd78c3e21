"""How fast the stream delivers, what it costs, and whether reading or decoding holds it back."""

import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from data_pipelines import rng
from data_pipelines.host import cores
from data_pipelines.sources.base import Source
from data_pipelines.stream.rows import KEY_ID
from data_pipelines.stream.stream import Stream
from data_pipelines.workers import results_of

_WARM_UP = 4  # batches more than are made ahead: those came while nobody waited for them


@dataclass(frozen=True)
class Speed:
    """What a stream does on this machine.

    Attributes:
        samples: measured.
        seconds: that they took.
        first_batch: seconds until the first batch was there.
        cpu: seconds of one core that a sample costs, all threads together.
        bytes: of a sample in its shard, about.
        epochs: of the data that were read; above 1 later ones come from the memory of the system.
        memory: bytes that the process has held at most.
        threads: that decode.
        readers: blocks read at a time.
    """

    samples: int
    seconds: float
    first_batch: float
    cpu: float
    bytes: float
    epochs: float
    memory: int
    threads: int
    readers: int

    @property
    def rate(self) -> float:
        """Samples per second."""
        return self.samples / self.seconds

    @property
    def decoding(self) -> float:
        """Samples per second that the processors can decode if they never wait."""
        return min(self.threads, cores()) / self.cpu

    @property
    def busy(self) -> float:
        """Share of the time that the processors meant for it were busy."""
        return self.rate / self.decoding


def measure(open_stream: Callable[[], Stream], config: Any, seconds: float) -> Speed:
    """Runs a stream for a while.

    Args:
        open_stream: opens it.
        config: the `data` section of a config.
        seconds: to measure after the warm-up; at least two batches.
    """
    began = time.perf_counter()
    with open_stream() as stream:
        rows = len(next(stream)[KEY_ID])
        first_batch = time.perf_counter() - began
        for _ in range(config.prefetch + _WARM_UP):
            next(stream)
        facts, count = stream.summary(), 0
        cpu, began = time.process_time(), time.perf_counter()
        while count < 2 or time.perf_counter() - began < seconds:
            next(stream)
            count += 1
        wall, cpu = time.perf_counter() - began, time.process_time() - cpu
        return Speed(
            samples=count * rows,
            seconds=wall,
            first_batch=first_batch,
            cpu=cpu / (count * rows),
            bytes=facts["bytes"] / max(facts["samples"], 1),
            epochs=stream.position / max(stream.epoch_size, 1),
            memory=_peak_memory(),
            threads=facts["threads"],
            readers=config.readers,
        )


def reading_rate(sources: Sequence[Source], config: Any, seconds: float, stop: Callable[[], None]) -> float:
    """Returns how many samples can be read in a second when nothing is decoded.

    Args:
        sources: what to read, blocks of all of them in random order.
        config: the `data` section of a config.
        seconds: to read for, about.
        stop: ends reads under way; called at an interruption.
    """
    tables = [source.blocks(config.block_bytes) for source in sources]
    blocks = [(number, block) for number, table in enumerate(tables) for block in range(len(table))]
    began = time.perf_counter()

    def calls() -> Iterator[tuple[int, int]]:
        turn = 0
        while True:
            for place in rng.permutation(len(blocks), 0, "reading", turn).tolist():
                if time.perf_counter() - began > seconds:
                    return
                yield blocks[place]
            turn += 1

    pool = ThreadPoolExecutor(config.readers, thread_name_prefix="data-read")
    read = lambda number, block: len(sources[number].read(tables[number], block))
    samples = sum(results_of(pool, read, calls(), config.readers, stop))
    return samples / (time.perf_counter() - began)


def _peak_memory() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
