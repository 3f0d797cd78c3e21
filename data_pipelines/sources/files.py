"""Images in folders, or named or held by the rows of CSV, TSV, JSONL and parquet lists."""

import itertools
import os
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data_pipelines import paths
from data_pipelines.blocks import Blocks
from data_pipelines.captions import Captions, Record
from data_pipelines.errors import BadSample, DataError, Fault
from data_pipelines.fields import field_names
from data_pipelines.listing import Listing, Row, open_list
from data_pipelines.samples import Sample
from data_pipelines.sources.base import Source, SourceSpec
from data_pipelines.sources.rows import UNUSED, row_blocks
from data_pipelines.storage import Files, Forbidden, MissingFile, basename, is_remote, join, printable
from data_pipelines.urls import protocol

_CHUNK = 4096  # rows whose files are looked at together
_LISTED = 1000  # faults kept per list and reason; the counts are exact
_LARGEST = 64 * 2**20  # bytes of an image
_DISTANT = 128 * 1024  # bytes, about, of an image that has not been fetched yet
_AT_ONCE = 16  # images of a block that are fetched at a time from far away


@dataclass(frozen=True)
class FilesSpec(SourceSpec):
    """Image files, or lists of them.

    Attributes:
        urls: folders and patterns of lists (.csv, .tsv, .txt, .jsonl, .parquet), one or several.
        image: column of the image: a path or url, or in parquet the image itself; "" takes "image", "file_name",
            "filepath", ..., whichever comes first in `listing.IMAGE_COLUMNS`.
        caption: column of the caption; "" takes "caption", "text" or "title". Templates take the place of it.
        root: folder that relative paths start from; "" is that of the list.
        columns: names of the columns of CSV and TSV files that have no header.
    """

    urls: str | tuple = field(default="", metadata=dict(example="list-*.csv"))
    image: str = ""
    caption: str = ""
    root: str = ""
    columns: tuple = ()


class FilesSource(Source):
    """Folders and lists; see `Source`.

    Opening it reads all rows, and looks for the files that are on this machine; of each row 4 bytes are kept. What is
    far away is fetched when its block is read, and where that fails the sample has a `fault`.
    """

    Spec = FilesSpec

    def __init__(self, name: str, spec: FilesSpec, captions: Captions, files: Files):
        self.name, self.spec, self.captions, self._files = name, spec, captions, files
        self._lists = [open_list(path, files, spec.columns) for path in _lists(spec.urls, files)]
        self._faults: dict[tuple[int, str], list[str]] = {}  # (list, reason) -> what was left out
        self._counts: Counter[tuple[int, str]] = Counter()
        self._sizes: list[np.ndarray] = []  # of each list int32 [rows], UNUSED for those left out
        filled, available = Counter(), {}
        for number, listing in enumerate(self._lists):
            listing.use(spec.image, spec.caption, None if captions.every_field else captions.fields)
            self._sizes.append(self._examine(number, listing, filled, available))
        self.samples = sum(int((sizes != UNUSED).sum()) for sizes in self._sizes)
        self.bytes = sum(int(sizes[sizes != UNUSED].sum(dtype=np.int64)) for sizes in self._sizes)
        self.shards, self.skipped = len(self._lists), {}
        for (_, reason), count in self._counts.items():
            self.skipped[reason] = self.skipped.get(reason, 0) + count
        self._check(filled, available)

    def blocks(self, target: int) -> Blocks:
        """See `Source`."""
        return row_blocks([(sizes, table.edges()) for sizes, table in zip(self._sizes, self._lists)], target)

    def read(self, blocks: Blocks, i: int) -> list[Sample]:
        """See `Source`."""
        shard, start, end = int(blocks.shard[i]), int(blocks.start[i]), int(blocks.end[i])
        listing, used = self._lists[shard], self._sizes[shard][start:end] != UNUSED
        rows, path = listing.read(start, end), printable(listing.path)
        try:
            if len(rows) != len(used):
                raise BadSample("missing rows")
            rows = [row for row, wanted in zip(rows, used) if wanted]
            records = [self._record(row) for row in rows]
        except BadSample as bad:
            raise DataError(
                f"stale index: rows {start + 1:,} to {end:,} of {path} were usable and are not now ({bad.reason}); the "
                f"list changed during the run. Start the run again"
            ) from None
        images = self._fetch([self._resolve(listing, row.image) for row in rows])
        return [
            Sample(path, listing.name(row), image, record, fault)
            for row, record, (image, fault) in zip(rows, records, images)
        ]

    def identity(self) -> list[tuple[str, int, int]]:
        """See `Source`."""
        return [(basename(table.path), table.bytes, len(sizes)) for table, sizes in zip(self._lists, self._sizes)]

    def faults(self) -> Iterator[Fault]:
        """See `Source`."""
        for (number, reason), names in self._faults.items():
            path = printable(self._lists[number].path)
            yield from (Fault(path, name, reason) for name in names)
            unlisted = self._counts[number, reason] - len(names)
            if unlisted:
                yield Fault(path, f"and {unlisted} more", reason)

    def _examine(self, number: int, listing: Listing, filled: Counter, available: dict[str, None]) -> np.ndarray:
        """Returns the size of each row's image, or UNUSED; counts what is left out."""
        sizes, rows = array("i"), listing.scan()
        while chunk := list(itertools.islice(rows, _CHUNK)):
            images = [self._resolve(listing, row.image) for row in chunk]
            local = [image for image in images if isinstance(image, str) and not is_remote(image)]
            found = self._files.stat_many(local)
            for row, image in zip(chunk, images):
                filled.update(self.captions.filled(Record("", row.fields)))
                if not available:
                    available.update(dict.fromkeys(field_names(row.fields)))
                try:
                    self.captions.check(self._record(row))
                    sizes.append(_size(row, image, found))
                except BadSample as bad:
                    sizes.append(UNUSED)
                    self._skip(number, listing.name(row), bad.reason)
        return np.frombuffer(sizes, np.int32) if sizes else np.zeros(0, np.int32)

    def _record(self, row: Row) -> Record:
        if row.problem:
            raise BadSample(row.problem)
        return self.captions.from_fields(row.fields, row.text)

    def _resolve(self, listing: Listing, image: str | bytes | None) -> str | bytes | None:
        """Returns where an image lies, or an embedded image itself."""
        if not isinstance(image, str) or not image or is_remote(image) or os.path.isabs(image):
            return image
        return join(self.spec.root or listing.folder or ".", image)

    def _fetch(self, images: Sequence[str | bytes | None]) -> list[tuple[bytes, str]]:
        """Returns the content and the fault of each image."""
        if not any(isinstance(image, str) and is_remote(image) for image in images):
            return [self._image(image) for image in images]
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="fetch-images") as pool:
            return list(pool.map(self._image, images))

    def _image(self, image: str | bytes | None) -> tuple[bytes, str]:
        if image is None:
            return b"", "no image"
        if isinstance(image, bytes):
            return image, "" if image else "empty image"
        try:
            size = self._files.stat(image).size
            if not 0 < size <= _LARGEST:
                return b"", "image too large" if size else "empty image"
            return self._files.read(image, 0, size), ""
        except MissingFile:
            return b"", "no image"
        except Forbidden:
            return b"", "forbidden image"
        except DataError:
            return b"", "fetch failed"

    def _skip(self, number: int, name: str, reason: str) -> None:
        self._counts[number, reason] += 1
        listed = self._faults.setdefault((number, reason), [])
        if len(listed) < _LISTED:
            listed.append(name)

    def _check(self, filled: Counter, available: dict[str, None]) -> None:
        where = str(self.spec.urls)
        if self.captions.fields and (self.samples or available):
            self.captions.check_fields(filled, available, where)
        if self.samples:
            return
        reasons = ", ".join(f"{reason}: {count:,}" for reason, count in self.skipped.items()) or "it has no rows"
        hint = ""
        if "no caption" in self.skipped:
            names = ", ".join(available) or "none"
            hint = f". Name the column of the caption with `caption`, or give templates over the fields ({names})"
        elif "no image" in self.skipped:
            hint = f". Relative paths start from {self.spec.root or self._lists[0].folder or '.'}: see `root`"
        raise DataError(f"no usable image in {where} ({reasons}){hint}")


def _size(row: Row, image: str | bytes | None, found: dict[str, Any]) -> int:
    """Returns the bytes of an image, about; raises BadSample."""
    size = row.size
    if not image and size < 0:
        raise BadSample("no image")
    if isinstance(image, str):
        if is_remote(image):
            try:
                protocol(image)
            except DataError:
                raise BadSample("unsupported url") from None
            return _DISTANT
        if image not in found:
            raise BadSample("no image")
        size = found[image].size
    if size == 0:
        raise BadSample("empty image")
    if size > _LARGEST:
        raise BadSample("image too large")
    return size


def _lists(urls: str | tuple, files: Files) -> list[str]:
    """Returns the folders and lists that the patterns name."""
    found: list[str] = []
    for pattern in [urls] if isinstance(urls, str) else urls:
        for name in [pattern] if is_remote(pattern) else paths.expand_braces(pattern):
            folder = os.path.expanduser(name)
            places = [folder] if os.path.isabs(folder) else [os.path.abspath(folder), str(paths.REPOSITORY / folder)]
            folder = next((place for place in places if os.path.isdir(place)), None)
            found.extend([folder] if folder and not is_remote(name) else paths.expand(name, files))
    repeated = [path for path, count in Counter(found).items() if count > 1]
    if repeated:
        raise DataError(f"{printable(repeated[0])} is named twice by {urls}; its samples would count twice")
    return found
