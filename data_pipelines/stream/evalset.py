"""Evaluation data: every usable sample once, in the order of the data, without chance."""

import hashlib
import logging
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.errors import BadSample, DataError
from data_pipelines.host import cores
from data_pipelines.io.storage import Files
from data_pipelines.io.urls import without_secrets
from data_pipelines.modalities import Inputs, Modality, NoPart, inputs_of
from data_pipelines.names import shard_labels
from data_pipelines.samples import Sample
from data_pipelines.sources import Source, index_source, open_source
from data_pipelines.sources.index import NotIndexed
from data_pipelines.text.fields import lookup

_BLOCK_BYTES = 256 * 1024  # read at a time: little, as a batch of one process begins and ends anywhere
_AT_ONCE = 4  # blocks checked for each thread at a time, so that `limit` does not read much more than it needs
_CHUNK = 16  # samples of one unit of work

_log = logging.getLogger(__name__)


class _Place(NamedTuple):
    """Where a sample lies: which of its source's blocks, and which usable sample of that."""

    block: int
    sample: int


_OF_STREAMS = ("weight", "groups", "loss_weight", "temperature")  # keys of entries that say how batches are made


class EvalRecord(NamedTuple):
    """What is known of a sample beside what files hold.

    Attributes:
        fields: of its json member, or the columns of a list, by the names that they have there.
        key: its name in the tar or list.
        shard: name of the tar or list, with folders where there are several of that name.
        captions: of the first text: one a template, or its text; empty only where samples need none.
    """

    fields: Mapping[str, Any]
    key: str
    shard: str
    captions: list[str]

    @property
    def title(self) -> str:
        """What messages call the sample."""
        return f"sample {self.key} of {self.shard}"


class EvalSet:
    """The usable samples of a source, in their order.

    Parts that cannot be fetched or decoded are found when the set is opened, so that its length is that of every
    result made from it. Files are read again at each pass; only the records stay in memory.

    Attributes:
        where: what is read, as it may be shown.
        inputs: of its samples.
        records: of the samples.
        skipped: reason -> samples left out.
    """

    def __init__(
        self,
        data: str | Iterable[str] | Mapping[str, Any],
        config: Any,
        limit: int = 0,
        where: str = "evaluation",
        inputs: Inputs | None = None,
    ):
        """Reads the records and checks what files hold.

        Args:
            data: patterns of shards, folders or lists, or an entry as in `data.sources`.
            config: the `data` section of a config.
            limit: use the first so many usable samples; 0 uses all.
            where: what the data are called in messages: their path in the config.
            inputs: of the samples; None takes those of the config.

        Raises:
            DataError: data are missing, a configured field does not exist, or no sample can be used.
        """
        entry = data if isinstance(data, Mapping) else dict(urls=data if isinstance(data, str) else tuple(data))
        if unused := [name for name in _OF_STREAMS if name in entry]:
            raise DataError(
                f"{where} sets {', '.join(unused)}, which only training uses; a held-out set takes every sample once"
            )
        self.inputs, self._threads = inputs_of(config) if inputs is None else inputs, config.threads or cores()
        for modality in self.inputs.values():
            modality.check()
        files = Files(**config.remote)
        weakref.finalize(self, files.close)  # files are read for as long as someone has the set
        self._source = _open(entry, config, files, where, self.inputs)
        self.inputs = self._source.rules.inputs
        self._read_inputs = {name: m for name, m in self.inputs.items() if not m.on_record}
        self._blocks = self._source.blocks(_BLOCK_BYTES)
        self._labels = shard_labels(self._source.shard_names())
        self.where = without_secrets(str(entry.get("urls") or entry.get("dataset") or where))
        self.records: list[EvalRecord] = []
        self.skipped: Counter[str] = Counter(self._source.skipped)
        self._places: list[_Place] = []
        self._examine(limit)
        if self.skipped:
            reasons = ", ".join(f"{reason}: {n:,}" for reason, n in self.skipped.items())
            _log.warning("%s: %s samples left out (%s)", self.where, f"{self.skipped.total():,}", reasons)
        if not self.records:
            raise DataError(f"{where}: no usable sample in {self.where} ({dict(self.skipped)})")

    def __len__(self) -> int:
        return len(self._places)

    @property
    def fingerprint(self) -> str:
        """Tells this set from one of other samples, another order or other captions; 16 hexadecimal digits."""
        names = [(record.shard, record.key, record.captions) for record in self.records]
        return hashlib.blake2b(repr(names).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()

    @property
    def names(self) -> list[str]:
        """What tells the samples from one another, in their order."""
        return [f"{record.shard}/{record.key}" for record in self.records]

    def title(self, i: int) -> str:
        """Returns what messages call sample i."""
        return self.records[i].title

    def batches(self, batch_size: int, shard: tuple[int, int] = (0, 1)) -> Iterator[dict[str, np.ndarray]]:
        """Yields the whole set once, in batches of one size.

        Args:
            batch_size: samples of a global batch, a multiple of the number of processes.
            shard: (index, count) of this process, which gets the index-th part of each global batch. All processes
                yield equally many batches.

        Yields:
            The arrays of the inputs that are neither captions nor fields, as the evaluation sees them; `index` int32
            [rows], into `records`; `valid` bool [rows], False for the rows that fill up the last batch, which show
            nothing and whose index is -1.
        """
        if batch_size < 1 or batch_size % shard[1]:
            raise DataError(f"batch_size={batch_size} is not a multiple of the {shard[1]} processes")
        rows = batch_size // shard[1]
        with ThreadPoolExecutor(self._threads, thread_name_prefix="data-eval") as pool:
            ahead, reads = None, {}
            for first in range(0, len(self), batch_size):
                following = self._start(pool, first + shard[0] * rows, rows, reads)
                if ahead is not None:
                    yield _finish(*ahead)
                ahead = following
            yield _finish(*ahead)

    def thumbnail(self, i: int, size: int) -> bytes:
        """Returns sample i as a PNG that fits into a square of `size` pixels; b"" where there is nothing to see."""
        block, number = self._places[i]
        sample = self._read(block)[number]
        pictures = (m.thumbnail(m.find(sample).content, size) for m in self._read_inputs.values())
        return next(filter(None, pictures), b"")

    def _read(self, block: int) -> list[Sample]:
        return self._source.read(self._blocks, block)

    def _examine(self, limit: int) -> None:
        """Finds out which samples can be used."""
        blocks = iter(range(len(self._blocks)))
        with ThreadPoolExecutor(self._threads) as pool:
            while part := list(islice(blocks, _AT_ONCE * self._threads)):
                for block, samples in zip(part, pool.map(self._examined, part)):
                    for number, (record, reason) in enumerate(samples):
                        if reason:
                            self.skipped[reason] += 1
                        elif not limit or len(self) < limit:
                            self._places.append(_Place(block, number))
                            self.records.append(record)
                if limit and len(self) == limit:
                    break

    def _examined(self, block: int) -> list[tuple[EvalRecord | None, str]]:
        """Returns the record of each sample of a block, or None and why it cannot be used."""
        found = []
        for sample in self._read(block):
            try:
                if sample.fault:
                    raise BadSample(sample.fault)
                for name, modality in self._read_inputs.items():
                    if name in sample.parts or modality.required:
                        modality.verify(modality.find(sample).content)
                found.append((self._record(sample), ""))
            except BadSample as bad:
                found.append((None, bad.reason))
        return found

    def _record(self, sample: Sample) -> EvalRecord:
        captions = self._source.rules.captions(sample.record)
        return EvalRecord(sample.record.fields, sample.key, self._labels[sample.shard], captions)

    def _start(
        self, pool: ThreadPoolExecutor, first: int, rows: int, reads: dict[int, Future]
    ) -> tuple[dict[str, np.ndarray], list[Future]]:
        """Starts a batch; `reads` are the blocks of the one before, and become its own."""
        index = np.arange(first, first + rows, dtype=np.int32)
        valid = index < len(self)
        index[~valid] = -1
        if not self._read_inputs:
            return dict(valid=valid, index=index), []
        batch = {}
        for modality in self._read_inputs.values():
            batch |= modality.empty(rows)
            modality.blank(batch, ~valid)
        places = self._places[first : first + rows]
        blocks = dict.fromkeys(place.block for place in places)
        for block in [block for block in reads if block not in blocks]:
            del reads[block]
        for block in blocks:
            if block not in reads:
                reads[block] = pool.submit(self._read, block)
        # Work starts in the order in which it is submitted: what waits for a block waits for one that is being read.
        work = []
        for i in range(0, len(places), _CHUNK):
            part = [(reads[place.block], place.sample) for place in places[i : i + _CHUNK]]
            work.append(pool.submit(self._fill, batch, i, part))
        return batch | dict(valid=valid, index=index), work

    def _fill(self, batch: dict[str, np.ndarray], first: int, part: list[tuple[Future, int]]) -> None:
        for row, (block, number) in enumerate(part, first):
            sample = block.result()[number]
            try:
                if sample.fault:
                    raise BadSample(sample.fault)
                for modality in self._read_inputs.values():
                    self._evaluate(modality, sample, batch, row)
            except BadSample as bad:
                raise DataError(
                    f"{sample.key} of {sample.shard} could be used when the evaluation was set up, and not now: "
                    f"{bad.reason}"
                ) from None

    @staticmethod
    def _evaluate(modality: Modality, sample: Sample, batch: dict[str, np.ndarray], row: int) -> None:
        try:
            part = modality.find(sample)
        except NoPart:
            if modality.required:
                raise
            modality.blank(batch, row)
            return
        modality.evaluate(part.content, batch, row)
        if not modality.required:
            batch[modality.there][row] = True


def texts_of(records: Iterable[EvalRecord], field: str) -> list[str]:
    """Returns the content of a field of each record as text; "" where it has none."""
    values = (lookup(record.fields, field) for record in records)
    return ["" if value is None else str(value) for value in values]


def _open(entry: Mapping[str, Any], config: Any, files: Files, where: str, inputs: Inputs) -> Source:
    open_it = lambda: open_source(where, entry, config, files, inputs=inputs, every_field=True, where=where)
    try:
        return open_it()
    except NotIndexed:  # as all samples are about to be read, their index is not what takes long
        index_source(where, entry, config, files, inputs=inputs, where=where)
        return open_it()


def _finish(batch: dict[str, np.ndarray], work: list[Future]) -> dict[str, np.ndarray]:
    for part in work:
        part.result()
    return batch
