"""The endless stream of training batches: a pure function of (configuration, seed, position).

The rows of a batch are decoded by a pool of threads, sixteen at a time, straight into the batch. A pool and not Grain,
whose unit of parallel work is one element: whole batches would be decoded by one thread each, so that the first one
takes as many times longer as there are threads, or single samples would be copied together into buffers that JAX has
to copy once more.
"""

import functools
import hashlib
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from threading import Event
from types import MappingProxyType
from typing import Any

import numpy as np

from data_pipelines.errors import DataError, Replaced, did_you_mean
from data_pipelines.host import Memory, cores
from data_pipelines.io.storage import Files
from data_pipelines.modalities import Inputs, OtherText, Reread, Text, inputs_of
from data_pipelines.names import shard_labels
from data_pipelines.order import buckets
from data_pipelines.order.grouped import GroupedOrder, group_size, grouped
from data_pipelines.order.mixture import MIXTURE_VERSION, curriculum
from data_pipelines.order.order import Order, epoch_size
from data_pipelines.sources import Source, open_source
from data_pipelines.stream.accounts import Accounts
from data_pipelines.stream.rows import KEY_ID, Row, RowFiller, empty_batch, random_of
from data_pipelines.stream.source_columns import source_columns, used
from data_pipelines.stream.windows import Windows

_CHUNK = 16  # rows of one unit of work: enough to make its dispatch cheap
_BATCHES = ("mixed", "by_source")
_BLOCKS_PER_LANE = 8  # at least, so that small data are shuffled over more than a few places


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
    samples: Callable[[Any, int], int] = lambda start, _: int(start),
    texts: Mapping[str, OtherText] = MappingProxyType({}),
    inputs: Inputs | None = None,
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
        samples: turns the starts of curricula into samples of the stream, given the samples of an epoch.
        workdir: where to write `skipped.jsonl` (`skipped-<index>.jsonl` with several processes); None writes nothing.
        texts: captions for other models, by the name that their ids shall have in the batch.
        inputs: of the samples; None takes those of the config.

    Raises:
        DataError: the configuration or the data cannot be used.
    """
    inputs = inputs_of(config) if inputs is None else inputs
    _check(config, inputs, batch_size, position, shard)
    _ = inputs.tokenizers  # read once, for all sources
    inputs = inputs.with_(*(Reread(name=name, how=how) for name, how in texts.items()))
    files = Files(**config.remote)
    try:
        how = dict(inputs=inputs, lengths=True)
        opened = [open_source(name, entry, config, files, **how) for name, entry in _entries(config.sources).items()]
        sources = [grouped(source, files) for source in opened]
        file = None
        if workdir is not None:
            file = Path(workdir) / ("skipped.jsonl" if shard[1] == 1 else f"skipped-{shard[0]}.jsonl")
        accounts = Accounts(config.max_bad_share, file)
        for source in sources:
            if shard[0] == 0:  # the index is the same for all processes
                accounts.source(source)
        return Stream(config, inputs, sources, accounts, files, samples, batch_size, seed, position, shard)
    except BaseException:
        files.close()
        raise


class Stream:
    """Endless batches of one process; made by `open_stream`. Use it as a context manager, or close it.

    Attributes:
        position: samples of the global stream up to and including the last batch; the only state.
        epoch_size: samples that all sources give in one epoch.
        inputs: of its samples.
        fingerprint: of everything that decides the order; the same position with another one means other samples.
    """

    def __init__(
        self,
        config: Any,
        inputs: Inputs,
        sources: list[Source],
        accounts: Accounts,
        files: Files,
        samples: Callable[[Any, int], int],
        batch_size: int,
        seed: int,
        position: int,
        shard: tuple[int, int],
    ):
        lanes = config.lanes
        self._config, self._sources, self._filler, self._accounts = config, sources, RowFiller(), accounts
        self.inputs, self._bucketed = inputs, _bucketed(inputs)
        self._files, self._batch_size, self._seed = files, batch_size, seed
        self._filler.labels = shard_labels(shard for source in sources for shard in source.shard_names())
        size = group_size(sources, config, self._bucketed, batch_size, position)
        split = lambda source: buckets.split(source, self._bucketed, lanes)
        parts = [split(source) for source in sources]
        self._parts = [part for own in parts for part in own]
        number = [i for i, own in enumerate(parts) for _ in own]
        by_source = source_columns(config.sources)
        self._source_columns = {name: values[number] for name, values in by_source.items()}  # of each part
        self._tables = [part.source.blocks(_block_bytes(part.source, config)) for part in self._parts]
        self._lanes = range(shard[0] * lanes // shard[1], (shard[0] + 1) * lanes // shard[1])
        counts = [table.count for table in self._tables]
        self.epoch_size = epoch_size(counts, lanes * size)
        start = lambda value: samples(value, self.epoch_size)
        self._weights = [
            tuple((first, weight * part.share) for first, weight in curriculum(part.source.spec.weight, name, start))
            for name, part in zip(self._names, self._parts)
        ]
        self._order = (Order if size == 1 else functools.partial(GroupedOrder, size=size))(
            counts=counts,
            names=self._names,
            weights=self._weights,
            lanes=lanes,
            window=config.window,
            seed=seed,
            together=batch_size // lanes if self._together else 0,
        )
        self.position = self._scheduled = position
        self.fingerprint = self._make_fingerprint()
        self._pending: deque[_Pending] = deque()
        self._recycled = Memory()
        self._closed = Event()
        self._windows = Windows(self._order, [part.source for part in self._parts], self._tables, config.readers)
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
            replaced = [row for chunk in pending.chunks for row in chunk.result()]
            self._accounts.batch(len(pending.batch[KEY_ID]), replaced)
        except Exception:
            self.close()
            raise
        self._pending.popleft()
        self.position += self._batch_size
        return pending.batch

    def counters(self) -> dict[str, float]:
        """Returns metrics: bad samples since the process started, by reason.

        Where there are several sources, also by source, and how often each was used up.
        """
        counters = self._accounts.counters()
        if len(self._parts) > 1:
            epochs = self._order.epochs(self.position)
            counters |= {f"data/epochs/{name}": float(n) for name, n in zip(self._names, epochs)}
            counters |= {f"data/replaced/{name}": self._accounts.replaced(name) for name in self._names}
        return counters

    def sources(self, samples: int) -> list[dict[str, Any]]:
        """Returns what each source, or bucket of one, gives to a run.

        Args:
            samples: of the run.

        Returns:
            One dict each: its `name`, usable `samples`, those `left_out` by reason, `share` of the stream at its start
            and `epochs`, how often it is used up.
        """
        columns = zip(self._parts, self._order.shares.tolist(), self._order.epochs(samples).tolist())
        return [
            dict(
                name=part.source.name, samples=part.source.samples, left_out=part.source.skipped, share=share,
                epochs=epochs,
            )
            for part, share, epochs in columns
        ]  # fmt: skip

    def summary(self) -> dict[str, Any]:
        """Returns what the start of a run shows: sizes, what was left out, and the memory that this process needs."""
        skipped = sum((Counter(source.skipped) for source in self._sources), Counter())
        return dict(
            samples=sum(source.samples for source in self._sources),
            epoch_size=self.epoch_size,
            shards=sum(source.shards for source in self._sources),
            bytes=sum(source.bytes for source in self._sources),
            blocks=sum(map(len, self._tables)),
            skipped=dict(skipped),
            lanes=self._order.lanes,
            lanes_here=len(self._lanes),
            threads=self._config.threads or cores(),
            memory_bytes=self._memory(),
            fingerprint=self.fingerprint,
        )

    def close(self) -> None:
        """Stops all threads and returns when none is left. May be called again."""
        self._closed.set()
        # Readers first: a decoder may be waiting for a block, and a reader for a bucket.
        self._files.close()
        self._windows.close()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pending.clear()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _schedule(self) -> _Pending:
        """Hands the next batch to the pool."""
        rows, parts, length = self._rows()
        draws = {name: modality.draw(self._scheduled, self._seed) for name, modality in self.inputs.items()}
        if self._bucketed is not None:
            draws[self._bucketed.name] = length
        batch = empty_batch(self.inputs, len(rows), draws, self._recycled)
        batch |= {name: values[parts] for name, values in self._source_columns.items()}
        self._scheduled += self._batch_size
        starts = range(0, len(rows), _CHUNK)
        return _Pending(batch, [self._pool.submit(self._fill, batch, i, rows[i : i + _CHUNK]) for i in starts])

    def _rows(self) -> tuple[list[Row], np.ndarray, int]:
        """Returns the content of the next batch to schedule, the part of each row, and the tokens of its bucket.

        The content is that of neighbouring lanes, consecutive samples of each.
        """
        first, lanes, per_lane = self._scheduled, self._order.lanes, self._per_lane
        random = random_of(self.inputs, first, self._batch_size, self._seed)
        rows: list[Any] = [None] * (len(self._lanes) * per_lane)
        parts, length = np.zeros(len(rows), np.int64), 0
        for i, lane in enumerate(self._lanes):
            for key, places, samples in self._order.locate(lane, first // lanes, per_lane):
                window = self._windows.get(key)
                length = max(length, self._parts[key.source].length)
                parts[i * per_lane + places] = key.source
                for place, sample in zip(places.tolist(), samples.tolist()):
                    rows[i * per_lane + place] = Row(window, sample, random[place * lanes + lane])
                self._windows.advance(key, int(samples.max()))
        return rows, parts, length

    def _fill(self, batch: dict[str, np.ndarray], first: int, rows: list[Row]) -> list[Replaced]:
        if self._closed.is_set():
            raise CancelledError
        return self._filler.fill(batch, first, rows)

    @property
    def _together(self) -> bool:
        """Whether all samples of a batch come from one part."""
        return self._config.batches == "by_source" or self._bucketed is not None

    @property
    def _names(self) -> list[str]:
        return [part.source.name for part in self._parts]

    @property
    def _per_lane(self) -> int:
        return self._batch_size // self._order.lanes

    def _make_fingerprint(self) -> str:
        settings = (self._seed, self._config.lanes, self._config.window)
        if self._together:  # the order then depends on the size of the batches
            settings = (*settings, self._batch_size)
        if len(self._parts) > 1:
            settings = (*settings, MIXTURE_VERSION)
        digest = hashlib.blake2b(repr(settings).encode(), digest_size=8)
        for part, weight, table in zip(self._parts, self._weights, self._tables):
            digest.update(repr((part.source.name, weight, part.source.identity())).encode())
            digest.update(table.digest())
        return digest.hexdigest()

    def _memory(self) -> int:
        """Bytes at most: two windows for each lane and source, the batches ahead and the one in use."""
        rows = len(self._lanes) * self._per_lane
        batches = (self._config.prefetch + 2) * rows * self.inputs.nbytes()
        windows = 0.0
        for table in self._tables:
            held = min(self._config.window, -(-len(table) // self._order.lanes) + 1)
            windows += 2 * len(self._lanes) * held * float(np.mean(table.bytes))
        return batches + round(windows)


def _bucketed(inputs: Inputs) -> Text | None:
    """Returns the text whose lengths make buckets; None where none does. Raises DataError where several do."""
    found = [text for text in inputs.texts.values() if text.buckets]
    if len(found) > 1:
        raise DataError(f"{found[0].where}.buckets and {found[1].where}.buckets: one text can cut the data by length")
    return next(iter(found), None)


def _block_bytes(source: Source, config: Any) -> int:
    return min(config.block_bytes, source.bytes // (_BLOCKS_PER_LANE * config.lanes))


def _entries(sources: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the entries that have a share of the stream."""
    weighed = used(sources)
    if not weighed:
        raise DataError("data.sources names no data; add for example dict(train=dict(urls='shards-{0000..0009}.tar'))")
    for name, entry in weighed.items():
        places = count()  # the length of the run is not known yet
        curriculum(entry.get("weight", 1.0), name, lambda _, places=places: next(places))
    return weighed


def _check(config: Any, inputs: Inputs, batch_size: int, position: int, shard: tuple[int, int]) -> None:
    """Raises DataError for values that no data could satisfy."""
    lanes = config.lanes
    least = dict(lanes=1, readers=1, window=1, block_bytes=1, threads=0, prefetch=0)
    for name, low in least.items():
        if config[name] < low:
            raise DataError(f"data.{name} is {config[name]}; it must be at least {low}")
    inputs.check()
    if config.batches not in _BATCHES:
        close = did_you_mean(config.batches, _BATCHES)
        raise DataError(f"data.batches is {config.batches!r}, not one of {', '.join(_BATCHES)}{close}")
    bucketed = _bucketed(inputs)
    if bucketed is not None and config.batches == "mixed" and len(_entries(config.sources)) > 1:
        raise DataError(f"{bucketed.where}.buckets with several entries of data.sources needs data.batches='by_source'")
    if batch_size < lanes or batch_size % lanes:
        raise DataError(f"batch_size={batch_size} is not a multiple of data.lanes={lanes}")
    if position < 0 or position % lanes:
        raise DataError(
            f"position={position} is not a multiple of data.lanes={lanes}: the run that left it had another number of "
            "lanes, and so another order"
        )
    if not 0 <= shard[0] < shard[1] or lanes % shard[1]:
        raise DataError(f"{shard[1]} processes cannot share data.lanes={lanes} evenly (this is process {shard[0]})")
