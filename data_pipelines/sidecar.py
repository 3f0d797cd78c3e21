"""The files that keep the entries of an index: one for each folder of shards and each rule of what is usable.

A file is an `.npz` of plain arrays: the cells of all shards end to end, and the rest as json. Nothing in it is run.
"""

import hashlib
import io
import json
import logging
import os
import time
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.storage import Files, basename, join, parent, printable

if TYPE_CHECKING:
    from data_pipelines.index import ShardIndex

_VERSION = 3  # of the format; files of another one are not looked at
_SAVE_SECONDS = 30.0  # between saves of a long scan, so that an interruption costs little
_CACHE = Path("~/.cache/xmodal/index")

_log = logging.getLogger(__name__)


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
        self._saved = time.monotonic()

    def get(self, shard: str) -> "ShardIndex | None":
        """Returns the entry that was kept of a shard; whether it is still true is for the caller to check."""
        return self._files[parent(shard)].entries.get(basename(shard))

    def put(self, entry: "ShardIndex") -> None:
        """Notes an entry; saves now and then."""
        sidecar = self._files[parent(entry.path)]
        sidecar.entries[basename(entry.path)] = entry
        sidecar.changed = True
        if time.monotonic() - self._saved > _SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Writes what was noted since the last time."""
        for sidecar in self._files.values():
            if sidecar.changed:
                sidecar.save()
        self._saved = time.monotonic()


class _Sidecar:
    """The file of one folder."""

    def __init__(self, folder: str, signature: str, files: Files):
        digest = hashlib.blake2b(f"{_VERSION} {signature}".encode(), digest_size=6).hexdigest()
        place = hashlib.blake2b(os.path.abspath(folder).encode() if "://" not in folder else folder.encode(),
                                digest_size=6).hexdigest()  # fmt: skip
        self._folder, self._signature, self._files = folder, signature, files
        self._candidates = (
            join(folder, ".index", f"{digest}.npz"),
            str(_CACHE.expanduser() / f"{place}-{digest}.npz"),
        )
        self.changed = False
        self.entries = next(filter(None, map(self._read, self._candidates)), {})

    def _read(self, path: str) -> "dict[str, ShardIndex]":
        from data_pipelines.index import ShardIndex

        try:
            with np.load(io.BytesIO(self._files.read_all(path)), allow_pickle=False) as content:
                facts, cells = json.loads(content["facts"].tobytes()), content["cells"]
                cuts = np.cumsum(cells)[:-1]
                ends, counts = np.split(content["ends"], cuts), np.split(content["counts"], cuts)
                numbers = np.cumsum([part.sum() for part in counts])[:-1]
                measures = json.loads(content["measures"].tobytes())
                columns = [np.split(content[f"column{i}"], numbers) for i in range(len(measures))]
            # Names and not paths: the folder may have moved since, with its index.
            return {
                name: ShardIndex(
                    path=join(self._folder, name), ends=ends[i], counts=counts[i],
                    columns={measure: column[i] for measure, column in zip(measures, columns)}, **facts[name],
                )
                for i, name in enumerate(facts)
            }  # fmt: skip
        except DataError:  # not there, or a web server that does not give it
            return {}
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            _log.warning("the index %s cannot be read (%s); scanning its shards again", printable(path), error)
            return {}

    def save(self) -> None:
        """Writes the entries; a reader never sees half a file, and of two writers one wins."""
        entries, buffer = list(self.entries.values()), io.BytesIO()
        measures = list(entries[0].columns)
        np.savez(
            buffer,
            usable_if=_text(self._signature),
            facts=_text(json.dumps({name: entry.facts() for name, entry in self.entries.items()})),
            measures=_text(json.dumps(measures)),
            cells=np.array([len(entry.ends) for entry in entries], np.int64),
            ends=np.concatenate([entry.ends for entry in entries]),
            counts=np.concatenate([entry.counts for entry in entries]),
            **{
                f"column{i}": np.concatenate([entry.columns[measure] for entry in entries])
                for i, measure in enumerate(measures)
            },
        )
        for path in self._candidates:
            try:
                self._files.write_atomic(path, buffer.getvalue())
            except OSError as error:
                _log.info("the index cannot be kept at %s: %s", printable(path), error)
            else:
                self.changed = False
                return
        _log.warning("the index could not be kept anywhere; the next start scans the shards again")


def _text(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)
