"""An index that is complete: embeddings, records and thumbnails of numbered samples."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.errors import DataError
from xmodal.reporting.files import read_json
from xmodal.search.parts import KINDS, Part
from xmodal.search.vectors import Vectors

FORMAT = 1
MANIFEST = "manifest.json"


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
        self.parts = [Part(folder, number) for number in range(self.manifest["parts"])]
        self.dim = self.manifest["model"]["dim"]
        self.kinds = tuple(kind for kind in KINDS if kind in self.manifest["options"]["what"])
        self._ends = np.cumsum([len(part) for part in self.parts])
        if len(self) != self.manifest["samples"]:
            raise DataError(
                f"the parts of {folder} hold {len(self)} samples, and its {MANIFEST} says otherwise; embed again"
            )

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
        return Vectors([part.arrays[kind] for part in self.parts], self.dim)

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
    try:
        manifest = read_json(folder / MANIFEST)
    except (ValueError, OSError) as error:
        raise DataError(str(error)) from None
    if manifest is not None and (not isinstance(manifest, dict) or manifest.get("format") != FORMAT):
        raise DataError(f"{folder / MANIFEST} is not of an index in format {FORMAT}, which this version reads")
    return manifest
