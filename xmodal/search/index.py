"""An index that is complete: embeddings, records and thumbnails of numbered samples."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.errors import DataError
from xmodal.search.parts import KINDS, Part, open_plain
from xmodal.search.vectors import Vectors

FORMAT = 1
MANIFEST = "manifest.json"
_LARGEST_MANIFEST = 2**24  # bytes


class Index:
    """Samples numbered from 0 in the order of the data.

    Attributes:
      folder: where it lies.
      manifest: what it was made from; see `xmodal.search.making`.
      dim: width of the embeddings.
      kinds: "image", "text": what is embedded.
      parts: in order.
    """

    def __init__(self, folder: Path):
        """Opens an index.

        Raises:
          DataError: there is none, it is not complete, or it is damaged.
        """
        self.folder, self.manifest = folder, read_manifest(folder)
        if self.manifest is None:
            raise DataError(
                f"{folder} holds no index: `python -m xmodal embed DATA --model MODEL --out {folder}` makes one"
            )
        if not self.manifest["complete"]:
            raise DataError(f"the index {folder} is not complete; run the same `embed` command again, which goes on")
        self.dim = self.manifest["model"]["dim"]
        self.kinds = tuple(kind for kind in KINDS if kind in self.manifest["options"]["what"])
        self.parts = [self._opened(number) for number in range(self.manifest["parts"])]
        self._ends = np.cumsum([len(part) for part in self.parts])
        if len(self) != self.manifest.get("samples"):
            raise DataError(
                f"the parts of {folder} hold {len(self)} samples, and its {MANIFEST} says otherwise; embed again"
            )

    def _opened(self, number: int) -> Part:
        part = Part(self.folder, number)
        for kind in self.kinds:
            if kind not in part.arrays or part.arrays[kind].shape[1] != self.dim:
                raise DataError(
                    f"{part.path} holds no {kind} embeddings of width {self.dim}; delete it and run `embed` again"
                )
        return part

    @property
    def has_thumbnails(self) -> bool:
        """Whether there are pictures to show."""
        return any("thumbnail_end" in part.arrays for part in self.parts)

    @property
    def version(self) -> str:
        """What tells this index from another in its place."""
        facts = json.dumps(self.manifest, sort_keys=True)
        return hashlib.blake2b(facts.encode(), digest_size=8).hexdigest()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def vectors(self, kind: str) -> Vectors:
        """Returns all embeddings of a kind. Raises DataError where the index has none."""
        if kind not in self.kinds:
            raise DataError(
                f"{self.folder} holds no embeddings of the kind {kind!r}, only of {' and '.join(self.kinds)}"
            )
        names = [str(part.path) for part in self.parts]
        return Vectors([part.arrays[kind] for part in self.parts], self.dim, names)

    def record(self, row: int) -> dict[str, Any]:
        """Returns `shard`, `key` and `caption` of a sample, and its `file` where a list or its shard names one."""
        return self._part(row, Part.record)

    def records(self) -> Iterator[dict[str, Any]]:
        """Yields the records of all samples."""
        for part in self.parts:
            yield from part.records()

    def thumbnail(self, row: int) -> bytes | None:
        """Returns a small JPEG of a sample; None where none is kept."""
        return self._part(row, Part.thumbnail)

    def _part(self, row: int, read: Any) -> Any:
        if not 0 <= row < len(self):
            raise DataError(f"there is no sample {row}: the index holds {len(self):,}, from 0 on")
        number = int(np.searchsorted(self._ends, row, "right"))
        return read(self.parts[number], row - int(self._ends[number]) + len(self.parts[number]))


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Returns the manifest of an index, complete or begun; None where there is none. Raises DataError."""
    path = folder / MANIFEST
    try:
        with open_plain(path) as file:
            manifest = json.loads(file.read(_LARGEST_MANIFEST).decode())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise DataError(f"{path} is not valid JSON; restore it from a copy, or embed into another folder") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DataError(f"{path} is not of an index in format {FORMAT}, which this version reads")
    if wrong := next((name for name, fits in _FIELDS.items() if not fits(_at(manifest, name))), None):
        raise DataError(f"{path} is damaged ({wrong}); restore it from a copy, or embed into another folder")
    return manifest


def _at(tree: Any, name: str) -> Any:
    for part in name.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**53


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and "\0" not in value


# What a manifest must hold before anything of it is used.
_FIELDS: dict[str, Callable[[Any], bool]] = {
    "complete": lambda value: isinstance(value, bool),
    "parts": _is_count,
    "samples": lambda value: value is None or _is_count(value),
    "model.origin": _is_text,
    "model.fingerprint": _is_text,
    "model.dim": lambda value: _is_count(value) and 0 < value < 2**20,
    "model.step": lambda value: value is None or _is_count(value),
    "model.compute": lambda value: value is None or _is_text(value),
    "data": lambda value: isinstance(value, dict),
    "options": lambda value: isinstance(value, dict),
    "options.what": lambda value: isinstance(value, list) and value and all(kind in KINDS for kind in value),
}
