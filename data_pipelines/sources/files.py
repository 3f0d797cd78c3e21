"""Images in folders, or named or held by the rows of CSV, TSV, JSONL, JSON and parquet lists."""

import functools
import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from data_pipelines.errors import BadSample, DataError, Fault
from data_pipelines.images.formats import IMAGE_EXTENSIONS
from data_pipelines.io import paths
from data_pipelines.io.folders import Folder
from data_pipelines.io.listing import NULL, NULLS, Listing, Row, Wanted
from data_pipelines.io.lists import open_list
from data_pipelines.io.storage import Files, Forbidden, MissingFile, basename, is_remote, join, printable
from data_pipelines.io.text_lists import Csv
from data_pipelines.progress import progress
from data_pipelines.rules import Rules
from data_pipelines.samples import Record, Sample
from data_pipelines.sources.base import Source, SourceSpec
from data_pipelines.sources.blocks import Blocks
from data_pipelines.sources.examined import LARGEST, Examined, examined, record_of
from data_pipelines.sources.measures import Measure
from data_pipelines.sources.rows import UNUSED, row_blocks

_log = logging.getLogger(__name__)
_AT_ONCE = 16  # images of a block that are fetched at a time from far away
_ROWS = 256  # measured together


@dataclass(frozen=True)
class FilesSpec(SourceSpec):
    """Image files, or lists of them.

    Attributes:
        urls: folders and patterns of lists (.csv, .tsv, .txt, .jsonl, .json, .parquet), one or several.
        image: column of the image: a path or url, or in parquet the image itself; "" takes "image", "file_name",
            "filepath", ..., whichever comes first in `listing.IMAGE_COLUMNS`.
        caption: column of the caption; "" takes "caption", "text" or "title". Templates take the place of it.
        root: folder that relative paths start from; "" is that of the list.
        columns: names of the columns of CSV and TSV files that have no header.
        nulls: words that stand for no value: captions of lists, and all cells of CSV and TSV files. () keeps them.
    """

    urls: str | tuple = field(default="", metadata=dict(example="list-*.csv"))
    image: str = ""
    caption: str = ""
    root: str = ""
    columns: tuple = ()
    nulls: tuple = NULLS


class FilesSource(Source):
    """Folders and lists; see `Source`.

    The first time, all rows are read and the files on this machine looked for; see `examined`. Of each row 4 bytes are
    kept. What is far away is fetched when its block is read, and where that fails the sample has a `fault`.
    """

    Spec = FilesSpec

    def __init__(self, name: str, spec: FilesSpec, rules: Rules, files: Files):
        self.name, self.spec, self.rules, self._files = name, spec, rules, files
        self._lists = [open_list(path, files, spec.columns, _extensions(rules)) for path in _lists(spec.urls, files)]
        for listing in self._lists:
            listing.nulls = spec.nulls
            listing.use(*_wanted(rules), None if rules.every_field else rules.fields)
        _check_used(spec, self._lists)
        self._found = self._examine()
        sizes = [found.sizes[found.sizes != UNUSED] for found in self._found]
        self.samples, self.bytes = sum(map(len, sizes)), sum(int(part.sum(dtype=np.int64)) for part in sizes)
        self.shards = len(self._lists)
        self.skipped = dict(sum((Counter(found.skipped) for found in self._found), Counter()))
        self._check()

    def blocks(self, target: int) -> Blocks:
        """See `Source`."""
        return row_blocks([(found.sizes, table.edges()) for found, table in zip(self._found, self._lists)], target)

    def read(self, blocks: Blocks, i: int) -> list[Sample]:
        """See `Source`."""
        shard = int(blocks.shard[i])
        rows = self._rows(shard, int(blocks.start[i]), int(blocks.end[i]))
        listing = self._lists[shard]
        parts = self._fetch([self._place(listing, row) for row, _ in rows])
        return [
            Sample(printable(listing.path), listing.name(row), content, record, fault, _origin(listing, row))
            for (row, record), (content, fault) in zip(rows, parts)
        ]

    def column(self, measure: Measure) -> np.ndarray:
        """See `Source`; reads the lists alone where the measure looks at no content."""
        if measure.needs:
            return super().column(measure)
        numbers = []
        for shard, (listing, found) in enumerate(zip(self._lists, self._found)):
            for start in range(0, len(found.sizes), _ROWS):
                rows = self._rows(shard, start, min(start + _ROWS, len(found.sizes)))
                numbers += [measure.of(listing.name(row), record, b"") for row, record in rows]
        return np.array(numbers, measure.dtype)

    def names(self, blocks: Blocks, i: int) -> list[tuple[str, str]]:
        """See `Source`."""
        shard = int(blocks.shard[i])
        rows = self._rows(shard, int(blocks.start[i]), int(blocks.end[i]))
        return [(printable(self._lists[shard].path), self._lists[shard].name(row)) for row, _ in rows]

    def shard_names(self) -> list[str]:
        """See `Source`."""
        return [printable(listing.path) for listing in self._lists]

    def identity(self) -> list[tuple[str, int, int]]:
        """See `Source`."""
        both = zip(self._lists, self._found)
        return [(basename(table.path), table.bytes, len(found.sizes)) for table, found in both]

    def faults(self) -> Iterator[Fault]:
        """See `Source`."""
        for listing, found in zip(self._lists, self._found):
            path = printable(listing.path)
            for reason, names in found.names.items():
                yield from (Fault(path, name, reason) for name in names)
                unlisted = found.skipped[reason] - len(names)
                if unlisted:
                    yield Fault(path, f"and {unlisted} more", reason)

    def _examine(self) -> list[Examined]:
        """Returns what is known of each list, or learns it: of long lists it takes minutes."""
        spec, whole, done = self.spec, sum(listing.bytes for listing in self._lists), 0.0
        root = spec.root if not spec.root or is_remote(spec.root) else os.path.abspath(spec.root)
        rule = json.dumps([root, spec.columns, spec.nulls])
        found = []
        with progress(100, f"examining {self.name}", "%") as advance:

            def note(listing: Listing, share: float) -> None:
                nonlocal done
                before, done = int(done), done + 100 * share * listing.bytes / max(whole, 1)
                advance(int(done) - before)

            for listing in self._lists:
                place, noted = functools.partial(self._place, listing), functools.partial(note, listing)
                found.append(examined(listing, self.rules, place, rule, self._files, noted))
        return found

    def _rows(self, shard: int, start: int, end: int) -> list[tuple[Row, Record]]:
        """Returns the usable ones of the rows [start, end) of a list. Raises DataError where it has changed."""
        listing, used = self._lists[shard], self._found[shard].sizes[start:end] != UNUSED
        rows = listing.read(start, end)
        try:
            if len(rows) != len(used):
                raise BadSample("missing rows")
            return [(row, record_of(row, self.rules)) for row, wanted in zip(rows, used) if wanted]
        except BadSample as bad:
            raise DataError(
                f"stale index: rows {start + 1:,} to {end:,} of {printable(listing.path)} were usable and are not now "
                f"({bad.reason}); the list changed during the run. Start the run again"
            ) from None

    def _place(self, listing: Listing, row: Row) -> dict[str, str | bytes | None]:
        """Returns where the parts of a row lie, or embedded parts themselves, by input."""
        return {name: self._absolute(listing, row.parts.get(name)) for name in self.rules.inputs.stored}

    def _absolute(self, listing: Listing, place: str | bytes | None) -> str | bytes | None:
        if not isinstance(place, str) or not place or is_remote(place) or os.path.isabs(place):
            return place
        folder = self.spec.root or listing.folder or "."
        if "\\" in place and "/" not in place and not os.path.exists(join(folder, place)):  # as Windows writes it
            place = place.replace("\\", "/")
        return join(folder, place)

    def _fetch(self, places: Sequence[Mapping[str, str | bytes | None]]) -> list[tuple[dict[str, bytes], str]]:
        """Returns the contents by input, and the fault, of each row."""
        if not any(isinstance(place, str) and is_remote(place) for parts in places for place in parts.values()):
            return [self._contents(parts) for parts in places]
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="fetch-images") as pool:
            return list(pool.map(self._contents, places))

    def _contents(self, places: Mapping[str, str | bytes | None]) -> tuple[dict[str, bytes], str]:
        found, fault = {}, ""
        for name, place in places.items():
            modality = self.rules.inputs[name]
            content, why = self._content(place, modality.noun)
            if not why:
                found[name] = content
            elif modality.required or why != f"no {modality.noun}":
                fault = fault or why
        return found, fault

    def _content(self, place: str | bytes | None, noun: str) -> tuple[bytes, str]:
        if place is None:
            return b"", f"no {noun}"
        if isinstance(place, bytes):
            return place, "" if place else f"empty {noun}"
        try:
            size = self._files.stat(place).size
            if not 0 < size <= LARGEST:
                return b"", f"{noun} too large" if size else f"empty {noun}"
            return self._files.read(place, 0, size), ""
        except MissingFile:
            return b"", f"no {noun}"
        except Forbidden:
            return b"", f"forbidden {noun}"
        except DataError:
            return b"", "fetch failed"

    def _check(self) -> None:
        where = str(self.spec.urls)
        filled = sum((Counter(found.filled) for found in self._found), Counter())
        available = next((found.available for found in self._found if found.available), [])
        if self.rules.fields and (self.samples or available):
            self.rules.check_fields(filled, available, where)
        if count := self.skipped.get(NULL):
            _log.warning(
                "%s: the captions of %s rows are words for no value, such as %r, and left out; nulls=() keeps them",
                where, f"{count:,}", self.spec.nulls[0],
            )  # fmt: skip
        if self.samples:
            return
        reasons = ", ".join(f"{reason}: {count:,}" for reason, count in self.skipped.items()) or "it has no rows"
        hint = ""
        if "no caption" in self.skipped:
            names = ", ".join(available) or "none"
            option = self._option("caption", "NAME")
            hint = f". Name the column of the caption{option}, or give templates over the fields ({names})"
        elif NULL in self.skipped:
            hint = f". The words that stand for no value are named{self._option('nulls', 'WORDS')}"
        elif "no image" in self.skipped:
            root = self.spec.root or self._lists[0].folder or "."
            hint = f". Relative paths start from {root}: name another folder{self._option('root', 'DIR')}"
        elif "bad text" in self.skipped:
            hint = ". Texts are read as UTF-8: convert others, such as with `iconv -f GB18030 -t UTF-8`"
        raise DataError(f"no usable image in {where} ({reasons}){hint}")

    def _option(self, key: str, value: str) -> str:
        """Says how a key of this entry is set, whether a recipe or a data command names it."""
        both = key in ("caption", "root") and self.rules.where.startswith("data.sources.")
        command = f" (a data command: --{key} {value})" if both else ""
        return f" with --config.{self.rules.where}.{key}={value}{command}"


def _origin(listing: Listing, row: Row) -> str:
    """Returns where a list says that the first part lies; "" in a folder, whose keys are paths, and if embedded."""
    place = next(iter(row.parts.values()), None)
    return printable(place) if listing.version and isinstance(place, str) else ""


def _extensions(rules: Rules) -> tuple[str, ...]:
    """Returns the extensions of the files of a folder that are samples; of texts alone, those that images have."""
    return next((modality.extensions for modality in rules.inputs.stored.values()), IMAGE_EXTENSIONS)


def _wanted(rules: Rules) -> tuple[dict[str, Wanted], dict[str, Wanted]]:
    """Returns what the inputs want of a list: those that files hold, and those that read a text."""
    stored, texts = rules.inputs.stored, rules.texts
    option = lambda names, name, usual: usual if name == next(iter(names)) else f"inputs.{name}.member"
    parts = {
        name: Wanted(m.noun, option(stored, name, "image"), m.member, m.columns, m.required, m.extensions)
        for name, m in stored.items()
    }
    captions = {
        name: Wanted(m.noun, option(texts, name, "caption"), m.member, m.text_columns()) for name, m in texts.items()
    }
    return parts, captions


def _check_used(spec: FilesSpec, lists: Sequence[Listing]) -> None:
    """Raises DataError for options that none of the lists reads."""
    if spec.columns and not any(isinstance(listing, Csv) for listing in lists):
        raise DataError(f"`columns` is for CSV and TSV files without a header, and {printable(lists[0].path)} is none")
    folders = all(isinstance(listing, Folder) for listing in lists)
    if spec.root and folders:
        raise DataError(f"`root` is for lists that name images by relative paths, and {lists[0].path} is a folder")


def _lists(urls: str | tuple, files: Files) -> list[str]:
    """Returns the folders and lists that the patterns name."""
    found: list[str] = []
    for pattern in [urls] if isinstance(urls, str) else urls:
        for name in [pattern] if is_remote(pattern) else paths.expand_braces(os.path.expanduser(pattern)):
            folder = None if is_remote(name) else paths.find_folder(name)
            found.extend([folder] if folder else paths.expand(name, files))
    repeated = [path for path, count in Counter(found).items() if count > 1]
    if repeated:
        raise DataError(f"{printable(repeated[0])} is named twice by {urls}; its samples would count twice")
    return found
