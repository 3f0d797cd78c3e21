"""Evaluation data: every usable sample once, in the order of the shards, without chance."""

import io
import logging
import os
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from data_pipelines import paths
from data_pipelines.captions import Captions
from data_pipelines.decode import Options, check_image, evaluation_image, full_image
from data_pipelines.errors import BadSample, DataError
from data_pipelines.fields import field_names
from data_pipelines.host import aligned_empty, cores
from data_pipelines.rows import sample_name
from data_pipelines.samples import Sample, image_member, read_record
from data_pipelines.storage import Files, printable
from data_pipelines.tar import Read, TarDamage, groups
from data_pipelines.urls import without_secrets

_SLICE = 1024  # samples checked at a time, so that `limit` does not read more than it needs
_CHUNK = 16  # images of one unit of work

_log = logging.getLogger(__name__)


class _Place(NamedTuple):
    """Where the bytes of an image lie."""

    shard: str
    start: int
    end: int


class EvalSet:
    """The usable samples of some shards, in their order.

    Images that cannot be decoded are found when the set is opened, so that its length is that of every result made
    from it. Pixels are read again at each pass; only the records stay in memory.

    Attributes:
        records: one dict a sample: the fields of its json member, and over them `key` (its name in the tar), `shard`
            (file name), `captions` (one a template or the .txt member, never empty) and `identity` (the group key, or
            what names the sample).
        skipped: reason -> samples left out.
    """

    def __init__(self, urls: str | Iterable[str], config: Any, limit: int = 0):
        """Reads the records and checks the images.

        Args:
            urls: patterns of the shards, as in `data.sources`.
            config: the `data` section of a config.
            limit: use the first so many usable samples; 0 uses all.

        Raises:
            DataError: a shard is missing, a configured field does not exist, or no sample can be used.
        """
        self._size, self._squash = config.image.size, config.image.crop == "squash"
        self._threads = config.threads or cores()
        self._files, self._options = Files(**config.remote), Options.of(config.image)
        weakref.finalize(self, self._files.close)  # pixels are read for as long as someone has the set
        self._captions = Captions(config.text, config.group_key, always_json=True)
        self.records: list[dict[str, Any]] = []
        self.skipped: Counter[str] = Counter()
        self._places: list[_Place] = []
        self._filled: Counter[str] = Counter()
        self._available: dict[str, None] = {}
        where = without_secrets(str(urls))
        candidates = (found for shard in paths.expand(urls, self._files) for found in self._scan(shard))
        with ThreadPoolExecutor(self._threads) as pool:
            while part := list(islice(candidates, _SLICE)):
                for reason, (place, record) in zip(pool.map(self._fault, (place for place, _ in part)), part):
                    if reason:
                        self.skipped[reason] += 1
                    elif not limit or len(self) < limit:
                        self._places.append(place)
                        self.records.append(record)
                if limit and len(self) == limit:
                    break
        if self.skipped:
            reasons = ", ".join(f"{reason}: {n:,}" for reason, n in self.skipped.items())
            _log.warning("%s: %s samples left out (%s)", where, f"{self.skipped.total():,}", reasons)
        if self._available:
            self._captions.check_fields(self._filled, self._available, where)
        if not self.records:
            raise DataError(f"no usable sample in {where} ({dict(self.skipped) or 'the shards hold no samples'})")

    def __len__(self) -> int:
        return len(self._places)

    def batches(self, batch_size: int, shard: tuple[int, int] = (0, 1)) -> Iterator[dict[str, np.ndarray]]:
        """Yields the whole set once, in batches of one size.

        Args:
            batch_size: samples of a global batch, a multiple of the number of processes.
            shard: (index, count) of this process, which gets the index-th part of each global batch. All processes
                yield equally many batches.

        Yields:
            `image` uint8 [rows, size, size, 3]; `index` int32 [rows], into `records`; `valid` bool [rows], False for
            the rows that fill up the last batch, whose image is black and whose index is -1.
        """
        if batch_size < 1 or batch_size % shard[1]:
            raise DataError(f"batch_size={batch_size} is not a multiple of the {shard[1]} processes")
        rows = batch_size // shard[1]
        with ThreadPoolExecutor(self._threads, thread_name_prefix="data-eval") as pool:
            ahead = None
            for first in range(0, len(self), batch_size):
                following = self._start(pool, first + shard[0] * rows, rows)
                if ahead is not None:
                    yield _finish(*ahead)
                ahead = following
            yield _finish(*ahead)

    def thumbnail(self, i: int, size: int) -> bytes:
        """Returns sample i as a PNG that fits into a square of `size` pixels; small images keep their size."""
        image = full_image(self._files.read(*self._places[i]), self._options)
        image.thumbnail((size, size), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        image.save(buffer, "PNG", optimize=True)
        return buffer.getvalue()

    def _scan(self, shard: str) -> Iterator[tuple[_Place, dict[str, Any]]]:
        """Yields the samples of a shard that have an image and a caption."""
        size, name = self._files.stat(shard).size, printable(shard)
        with self._files.buffered(shard, size) as read:
            try:
                yield from self._samples(shard, size, read)
            except TarDamage as damage:
                if damage.reason == "corrupt header" and damage.offset == 0:
                    raise DataError(f"{name} is not a tar archive") from None
                self.skipped[damage.reason] += 1
                _log.warning("%s: %s; nothing after it can be read", name, damage)

    def _samples(self, shard: str, size: int, read: Read) -> Iterator[tuple[_Place, dict[str, Any]]]:
        for group in groups(read, 0, size):
            try:
                image = image_member(group)
                record = read_record(group, lambda member: read(member.offset, member.size), self._captions)
                self._filled.update(self._captions.filled(record))
                self._available |= dict.fromkeys(field_names(record.fields))
                self._captions.check(record)
            except BadSample as bad:
                self.skipped[bad.reason] += 1
                continue
            place = _Place(shard, image.offset, image.offset + image.size)
            yield place, self._record(Sample(printable(shard), group.key, b"", record))

    def _record(self, sample: Sample) -> dict[str, Any]:
        identity = self._captions.identity(sample.record)
        return {
            **sample.record.fields,
            "key": sample.key,
            "shard": os.path.basename(sample.shard),
            "captions": self._captions.every(sample.record),
            "identity": sample_name(sample) if identity is None else identity,
        }

    def _start(self, pool: ThreadPoolExecutor, first: int, rows: int) -> tuple[dict[str, np.ndarray], list[Future]]:
        image = aligned_empty((rows, self._size, self._size, 3), np.uint8)
        index = np.arange(first, first + rows, dtype=np.int32)
        valid = index < len(self)
        image[~valid], index[~valid] = 0, -1
        present = np.flatnonzero(valid)
        parts = [present[i : i + _CHUNK] for i in range(0, len(present), _CHUNK)]
        work = [pool.submit(self._fill, image, part, first) for part in parts]
        return dict(image=image, valid=valid, index=index), work

    def _fill(self, image: np.ndarray, places: np.ndarray, first: int) -> None:
        for place in places:
            where = self._places[first + place]
            try:
                image[place] = evaluation_image(self._files.read(*where), self._size, self._squash, self._options)
            except BadSample as bad:
                raise DataError(
                    f"{printable(where.shard)} changed since the evaluation was set up: {bad.reason}"
                ) from None

    def _fault(self, place: _Place) -> str:
        """Returns why an image cannot be decoded; empty where it can."""
        try:
            check_image(self._files.read(*place), self._options)
        except BadSample as bad:
            return bad.reason
        return ""


def _finish(batch: dict[str, np.ndarray], work: list[Future]) -> dict[str, np.ndarray]:
    for part in work:
        part.result()
    return batch
