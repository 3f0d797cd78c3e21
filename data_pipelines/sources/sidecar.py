"""The files that keep what was found in data: beside the data, or else in the user's cache.

Of tars there is one for each folder and each rule of what is usable, of lists one for each of them. A file is an `.npz`
of plain arrays, some of which are json. Nothing in it is run.
"""

import dataclasses
import hashlib
import io
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.io.storage import Files, basename, is_remote, join, parent, printable

_VERSION = 5  # of the format for tars; files of another one are not looked at
_CHECK = "check"  # the array that tells whether the others are those that were written
_SAVE_SECONDS = 30.0  # between saves of a long scan, so that an interruption costs little
_SAVE_SHARE = 0.05  # of the time of a scan that saves may take
_LISTED = 1000  # skipped keys kept per shard and reason; the counts are exact
_CACHE = Path("~/.cache/xmodal/index")

_log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass
class ShardIndex:
    """What one scan found in one shard.

    Attributes:
        path: the shard.
        bytes: its size, and with `version` the check that the entry still describes it.
        version: changes whenever the content does.
        ends: end of each cell in bytes, int64; a cell starts where the one before ends, the first at 0.
        counts: usable samples of each cell, int32.
        skipped: reason -> samples left out.
        skipped_keys: reason -> the first of their keys.
        filled: configured field -> records in which it has a content.
        available: field names of the first record.
        columns: signature of a measure -> its number of each usable sample, [samples].
    """

    path: str
    bytes: int
    version: str
    ends: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    skipped: dict[str, int] = field(default_factory=dict)
    skipped_keys: dict[str, list[str]] = field(default_factory=dict)
    filled: dict[str, int] = field(default_factory=dict)
    available: list[str] = field(default_factory=list)
    columns: dict[str, np.ndarray] = field(default_factory=dict)

    def skip(self, key: str, reason: str) -> None:
        """Counts a sample that cannot be used."""
        self.skipped[reason] = self.skipped.get(reason, 0) + 1
        listed = self.skipped_keys.setdefault(reason, [])
        if len(listed) < _LISTED:
            listed.append(key)

    def unskip(self, key: str, reason: str) -> None:
        """Takes back a `skip`."""
        self.skipped[reason] -= 1
        if key in self.skipped_keys[reason]:
            self.skipped_keys[reason].remove(key)
        if not self.skipped[reason]:
            del self.skipped[reason], self.skipped_keys[reason]

    def facts(self) -> dict:
        """Returns all but path and arrays, as json has it."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in _NOT_FACTS}


_NOT_FACTS = ("path", "ends", "counts", "columns")


class Kept:
    """One file, in `.index/` of a folder of data or, where that cannot be written, in the user's cache.

    Args:
        folder: path or url.
        rule: what the content depends on besides the data, the version of the format included.
        files: reads and writes it.
    """

    def __init__(self, folder: str, rule: str, files: Files):
        name, place = _digest(rule), _digest(folder if is_remote(folder) else os.path.abspath(folder))
        self._files = files
        self._places = (join(folder, ".index", f"{name}.npz"), str(_CACHE.expanduser() / f"{place}-{name}.npz"))

    def read(self, parse: Callable[[Mapping[str, np.ndarray]], T]) -> T | None:
        """Returns what `parse` makes of the arrays; None where there are none, or damaged ones."""
        for path in self._places:
            try:
                with np.load(io.BytesIO(self._files.read_all(path)), allow_pickle=False) as stored:
                    arrays = {name: stored[name] for name in stored.files}
                if arrays.pop(_CHECK).tobytes() != _check(arrays):
                    raise ValueError("its content is not what was written")
                return parse(arrays)
            except DataError:  # not there, or a web server that does not give it
                continue
            except CancelledError:
                raise
            except Exception as error:  # of damaged files numpy and zipfile raise whatever their headers lead to
                what = next(iter(str(error).splitlines()), type(error).__name__)[:200]
                _log.warning("the index %s cannot be read (%s); it is made again", printable(path), what)
        return None

    def write(self, arrays: Mapping[str, np.ndarray]) -> bool:
        """Says whether it wrote the arrays. A reader never sees half a file, and of two writers one wins."""
        buffer = io.BytesIO()
        np.savez(buffer, **arrays, **{_CHECK: np.frombuffer(_check(arrays), np.uint8)})
        for path in self._places:
            try:
                self._files.write_atomic(path, buffer.getvalue())
                return True
            except OSError as error:
                _log.info("the index cannot be kept at %s: %s", printable(path), error)
        _log.warning("the index could not be kept anywhere; the next start looks at all the data again")
        return False


def _check(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Returns what tells these arrays from others, such as damaged ones."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        digest.update(repr((name, array.dtype.str, array.shape)).encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.digest()


def to_array(value: Any) -> np.ndarray:
    """Returns an array of bytes that holds a value as json."""
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def from_array(array: np.ndarray) -> Any:
    """Returns the value that `to_array` was given."""
    return json.loads(array.tobytes())


class Sidecars:
    """What is already known of some shards, and what is learnt.

    Args:
        shards: paths or urls.
        signature: the rule of what is usable.
        files: reads and writes the files.
    """

    def __init__(self, shards: Iterable[str], signature: str, files: Files):
        folders = dict.fromkeys(parent(shard) for shard in shards)
        self._files = {folder: _Sidecar(folder, signature, files) for folder in folders}
        self._next = time.monotonic() + _SAVE_SECONDS

    def get(self, shard: str) -> ShardIndex | None:
        """Returns the entry that was kept of a shard; whether it is still true is for the caller to check."""
        return self._files[parent(shard)].entries.get(basename(shard))

    def put(self, entry: ShardIndex) -> None:
        """Notes an entry; saves now and then."""
        sidecar = self._files[parent(entry.path)]
        sidecar.entries[basename(entry.path)] = entry
        sidecar.changed = True
        if time.monotonic() > self._next:
            self.save()

    def save(self) -> None:
        """Writes what was noted since the last time."""
        began = time.monotonic()
        for sidecar in self._files.values():
            if sidecar.changed:
                sidecar.save()
        ended = time.monotonic()
        self._next = ended + max(_SAVE_SECONDS, (ended - began) / _SAVE_SHARE)


class _Sidecar:
    """The file of one folder."""

    def __init__(self, folder: str, signature: str, files: Files):
        self._folder, self._signature = folder, signature
        self._kept = Kept(folder, f"{_VERSION} {signature}", files)
        self.changed = False
        self.entries = self._kept.read(self._parse) or {}

    def _parse(self, content: Mapping[str, np.ndarray]) -> dict[str, ShardIndex]:
        facts, cuts = from_array(content["facts"]), np.cumsum(content["cells"])[:-1]
        ends, counts = np.split(content["ends"], cuts), np.split(content["counts"], cuts)
        numbers = np.cumsum([part.sum() for part in counts])[:-1]
        measures = from_array(content["measures"])
        columns = [np.split(content[f"column{i}"], numbers) for i in range(len(measures))]
        # Names and not paths: the folder may have moved since, with its index.
        return {
            name: ShardIndex(
                path=join(self._folder, name), ends=ends[i], counts=counts[i],
                columns={measure: column[i] for measure, column in zip(measures, columns)}, **facts[name],
            )
            for i, name in enumerate(facts)
        }  # fmt: skip

    def save(self) -> None:
        """Writes the entries, and those that others have written meanwhile: a folder may be indexed in parts."""
        self.entries = (self._kept.read(self._parse) or {}) | self.entries
        entries = list(self.entries.values())
        measures = list(entries[0].columns)
        arrays = dict(
            usable_if=to_array(self._signature),
            facts=to_array({name: entry.facts() for name, entry in self.entries.items()}),
            measures=to_array(measures),
            cells=np.array([len(entry.ends) for entry in entries], np.int64),
            ends=np.concatenate([entry.ends for entry in entries]),
            counts=np.concatenate([entry.counts for entry in entries]),
        )
        for i, measure in enumerate(measures):
            arrays[f"column{i}"] = np.concatenate([entry.columns[measure] for entry in entries])
        if self._kept.write(arrays):
            self.changed = False


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=6).hexdigest()
