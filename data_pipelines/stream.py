"""The endless stream of training batches: a pure function of (configuration, seed, position).

The rows of a batch are decoded by a pool of threads, sixteen at a time, straight into the batch. A pool and not Grain,
whose unit of parallel work is one element: whole batches would be decoded by one thread each, so that the first one
takes as many times longer as there are threads, or single samples would be copied together into buffers that JAX has
to copy once more.
"""

import hashlib
import os
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np

from data_pipelines import augment, index, rng
from data_pipelines.accounts import Accounts, Fault
from data_pipelines.captions import Captions
from data_pipelines.errors import DataError, did_you_mean
from data_pipelines.host import cores
from data_pipelines.index import Blocks, Index
from data_pipelines.order import Order
from data_pipelines.rows import Row, RowFiller, empty_batch
from data_pipelines.tokenizers import Tokenizer
from data_pipelines.windows import Windows

_CHUNK = 16  # rows of one unit of work: enough to make its dispatch cheap
_BLOCKS_PER_LANE = 8  # at least, so that small data are shuffled over more than a few places


@dataclass(frozen=True)
class SourceSpec:
    """One entry of `data.sources`.

    Attributes:
        urls: patterns of its shards.
        weight: its share of the stream, in any unit; 0 leaves it out.
    """

    urls: str | tuple[str, ...]
    weight: float = 1.0


@dataclass(frozen=True)
class _Source:
    name: str
    weight: float
    index: Index
    blocks: Blocks


@dataclass(frozen=True)
class _Pending:
    batch: dict[str, np.ndarray]
    chunks: list[Future]


def open_stream(
    config: Any,
    *,
    batch_size: int,
    seed: int,
    position: int = 0,
    shard: tuple[int, int] = (0, 1),
    workdir: str | os.PathLike | None = None,
) -> "Stream":
    """Opens the training data.

    Args:
        config: the `data` section of a config.
        batch_size: samples of a global batch; a multiple of `config.lanes`.
        seed: of order, crops and captions.
        position: samples of the global stream already consumed; a multiple of `config.lanes`. The batch size may have
            been another one until then.
        shard: (index, count) of this process; the count divides `config.lanes`. Process i gives the i-th of `count`
            equal parts of every global batch.
        workdir: where to write `skipped.jsonl` (`skipped-<index>.jsonl` with several processes); None writes nothing.

    Raises:
        DataError: the configuration or the data cannot be used.
    """
    _check(config, batch_size, position, shard)
    tokenizer = Tokenizer.load(config.text.tokenizer)
    captions = Captions(config.text, config.group_key)
    filler = RowFiller(config.image, captions, tokenizer, config.text.length)
    sources = [_open_source(name, spec, config, captions) for name, spec in _specs(config.sources).items()]
    file = None
    if workdir is not None:
        file = Path(workdir) / ("skipped.jsonl" if shard[1] == 1 else f"skipped-{shard[0]}.jsonl")
    accounts = Accounts(config.max_bad_share, file)
    for source in sources:
        if shard[0] == 0:  # the index is the same for all processes
            accounts.index(source.index)
    return Stream(config, sources, captions, filler, accounts, batch_size, seed, position, shard)


class Stream:
    """Endless batches of one process; made by `open_stream`. Use it as a context manager, or close it.

    Attributes:
        position: samples of the global stream up to and including the last batch; the only state.
        epoch_size: samples that all sources give in one epoch.
        fingerprint: of everything that decides the order; the same position with another one means other samples.
    """

    def __init__(
        self,
        config: Any,
        sources: list[_Source],
        captions: Captions,
        filler: RowFiller,
        accounts: Accounts,
        batch_size: int,
        seed: int,
        position: int,
        shard: tuple[int, int],
    ):
        lanes = config.lanes
        self._config, self._sources, self._filler, self._accounts = config, sources, filler, accounts
        self._batch_size, self._seed = batch_size, seed
        self._lanes = range(shard[0] * lanes // shard[1], (shard[0] + 1) * lanes // shard[1])
        self._order = Order(
            counts=[source.blocks.count for source in sources],
            names=[source.name for source in sources],
            weights=[source.weight for source in sources],
            lanes=lanes,
            window=config.window,
            seed=seed,
        )
        self.position = self._scheduled = position
        self.epoch_size = self._order.epoch_size
        self.fingerprint = _fingerprint(config, sources, seed)
        self._pending: deque[_Pending] = deque()
        self._closed = Event()
        self._windows = Windows(self._order, [source.blocks for source in sources], captions)
        self._pool = ThreadPoolExecutor(config.threads or cores(), thread_name_prefix="data-decode")

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        """Returns the next batch: rows of this process, arrays that are never used again.

        Raises:
            DataError: a shard cannot be read any more, or too many samples cannot. The stream is closed.
        """
        if self._closed.is_set():
            raise DataError("the stream is closed")
        while len(self._pending) <= self._config.prefetch:
            self._pending.append(self._schedule())
        pending = self._pending[0]  # taken off when it is there, so that an interruption loses nothing
        try:
            faults = [fault for chunk in pending.chunks for fault in chunk.result()]
            self._accounts.batch(len(pending.batch["text"]), faults)
        except Exception:
            self.close()
            raise
        self._pending.popleft()
        self.position += self._batch_size
        return pending.batch

    def counters(self) -> dict[str, float]:
        """Returns the metrics of bad samples since the process started: counts by reason, and the share replaced."""
        return self._accounts.counters()

    def summary(self) -> dict[str, Any]:
        """Returns what the start of a run shows: sizes, what was left out, and the memory that this process needs."""
        skipped = sum((Counter(source.index.skipped) for source in self._sources), Counter())
        return dict(
            samples=sum(source.index.samples for source in self._sources),
            epoch_size=self.epoch_size,
            shards=sum(len(source.index.shards) for source in self._sources),
            bytes=sum(source.index.bytes for source in self._sources),
            blocks=sum(len(source.blocks.count) for source in self._sources),
            skipped=dict(skipped),
            shares={source.name: float(share) for source, share in zip(self._sources, self._order.shares)},
            lanes=self._order.lanes,
            lanes_here=len(self._lanes),
            threads=self._config.threads or cores(),
            memory_bytes=self._memory(),
            fingerprint=self.fingerprint,
        )

    def close(self) -> None:
        """Stops all threads and returns when none is left. May be called again."""
        self._closed.set()
        # Readers first: a decoder may be waiting for a block.
        self._windows.close()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pending.clear()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _schedule(self) -> _Pending:
        """Hands the next batch to the pool."""
        batch = empty_batch(len(self._lanes) * self._per_lane, self._config.image.size, self._config.text.length)
        rows = self._rows()
        self._scheduled += self._batch_size
        starts = range(0, len(rows), _CHUNK)
        return _Pending(batch, [self._pool.submit(self._fill, batch, i, rows[i : i + _CHUNK]) for i in starts])

    def _rows(self) -> list[Row]:
        """Returns the content of the next batch to schedule: neighbouring lanes, consecutive samples of each."""
        first, lanes, per_lane = self._scheduled, self._order.lanes, self._per_lane
        draw = lambda words, use: rng.row_words(first, self._batch_size, words, self._seed, use)
        crops = rng.uniform(draw(augment.WORDS, "crop")).reshape(per_lane, lanes, augment.WORDS)
        words = draw(4, "caption")[:, 0].reshape(per_lane, lanes)
        rows: list[Any] = [None] * (len(self._lanes) * per_lane)
        for i, lane in enumerate(self._lanes):
            for key, places, samples in self._order.locate(lane, first // lanes, per_lane):
                window = self._windows.get(key)
                for place, sample in zip(places.tolist(), samples.tolist()):
                    rows[i * per_lane + place] = Row(window, sample, crops[place, lane], int(words[place, lane]))
                self._windows.advance(key, int(samples.max()))
        return rows

    def _fill(self, batch: dict[str, np.ndarray], first: int, rows: list[Row]) -> list[list[Fault]]:
        if self._closed.is_set():
            raise CancelledError
        return self._filler.fill(batch, first, rows)

    @property
    def _per_lane(self) -> int:
        return self._batch_size // self._order.lanes

    def _memory(self) -> int:
        """Bytes at most: two windows for each lane and source, the batches ahead and the one in use."""
        rows = len(self._lanes) * self._per_lane
        batches = (self._config.prefetch + 2) * rows * (3 * self._config.image.size**2 + 5 * self._config.text.length)
        windows = 0.0
        for source in self._sources:
            sizes = source.blocks.end - source.blocks.start
            held = min(self._config.window, -(-len(sizes) // self._order.lanes) + 1)
            windows += 2 * len(self._lanes) * held * float(np.mean(sizes))
        return batches + round(windows)


def _open_source(name: str, spec: SourceSpec, config: Any, captions: Captions) -> _Source:
    try:
        found = index.load(spec.urls, captions)
    except DataError as error:
        raise DataError(f"data.sources.{name}: {error}") from error
    target = min(config.block_bytes, found.bytes // (_BLOCKS_PER_LANE * config.lanes))
    return _Source(name, spec.weight, found, found.blocks(target))


def _specs(sources: Mapping[str, Any]) -> dict[str, SourceSpec]:
    allowed = ("urls", "weight")
    specs = {}
    for name, entry in sources.items():
        for key in entry:
            if key not in allowed:
                raise DataError(f"data.sources.{name} has no key {key!r}{did_you_mean(key, allowed)} (keys: {allowed})")
        if not entry.get("urls"):
            raise DataError(f"data.sources.{name} needs `urls`, such as 'shards-{{0000..0009}}.tar'")
        urls, weight = entry["urls"], entry.get("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
            raise DataError(f"data.sources.{name}.weight is {weight!r}; expected a number from 0")
        if weight:
            specs[name] = SourceSpec(urls if isinstance(urls, str) else tuple(urls), float(weight))
    if not specs:
        raise DataError("data.sources names no data; add for example dict(train=dict(urls='shards-{0000..0009}.tar'))")
    return specs


def _check(config: Any, batch_size: int, position: int, shard: tuple[int, int]) -> None:
    """Raises DataError for values that no data could satisfy."""
    lanes = config.lanes
    least = dict(lanes=1, window=1, block_bytes=1, threads=0, prefetch=0)
    for name, low in least.items():
        if config[name] < low:
            raise DataError(f"data.{name} is {config[name]}; it must be at least {low}")
    if config.image.size < 1 or config.text.length < 3:
        raise DataError(
            f"data.image.size={config.image.size} and data.text.length={config.text.length} must be at least 1 and 3"
        )
    if batch_size < lanes or batch_size % lanes:
        raise DataError(f"batch_size={batch_size} is not a multiple of data.lanes={lanes}")
    if position < 0 or position % lanes:
        raise DataError(
            f"position={position} is not a multiple of data.lanes={lanes}: the run that left it had another number of "
            "lanes, and so another order"
        )
    if not 0 <= shard[0] < shard[1] or lanes % shard[1]:
        raise DataError(f"{shard[1]} processes cannot share data.lanes={lanes} evenly (this is process {shard[0]})")


def _fingerprint(config: Any, sources: list[_Source], seed: int) -> str:
    digest = hashlib.blake2b(repr((seed, config.lanes, config.window)).encode(), digest_size=8)
    for source in sources:
        shards = [(os.path.basename(shard.path), shard.bytes) for shard in source.index.shards]
        digest.update(repr((source.name, source.weight, shards)).encode())
        for column in (source.blocks.shard, source.blocks.start, source.blocks.end, source.blocks.count):
            digest.update(column.astype("<i8").tobytes())
    return digest.hexdigest()
