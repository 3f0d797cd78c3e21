"""The files of an index: each part is a `.safetensors` of embeddings, a `.jsonl` of records and a file of thumbnails.

`00012.safetensors` holds `image` and `text` ([samples, dim], float16 or float32, unit vectors), and `record_end` and
`thumbnail_end` (int64 [samples]): where each sample's line of `00012.jsonl` and its JPEG in `00012.thumbnails` end. It
is written last, and renamed into place: a part is whole when it is there.
"""

import json
import math
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from data_pipelines.errors import DataError
from xmodal.reporting.files import clear_disk_errors

KINDS = ("image", "text")
_LONGEST_HEADER = 10**8  # bytes, as the safetensors library has it
_TYPES = {"F16": np.float16, "F32": np.float32, "I64": np.int64}
_NOTE = "note"


def part_path(folder: Path, number: int) -> Path:
    """Returns where the embeddings of a part lie."""
    return folder / f"{number:05d}.safetensors"


def write_part(
    folder: Path,
    number: int,
    embeddings: Mapping[str, np.ndarray],
    records: Sequence[Mapping[str, Any]],
    thumbnails: Sequence[bytes] | None,
    note: Mapping[str, Any],
) -> None:
    """Writes a part.

    Args:
      folder: of the index.
      number: of the part.
      embeddings: "image", "text" -> [samples, dim].
      records: of each sample.
      thumbnails: of each sample, encoded; None keeps none.
      note: about the part, as json has it.
    """
    path = part_path(folder, number)
    lines = [json.dumps(record, ensure_ascii=False).encode("utf-8", "replace") + b"\n" for record in records]
    ends = dict(record_end=_ends(lines))
    _write(path.with_suffix(".jsonl"), b"".join(lines))
    if thumbnails is not None:
        ends["thumbnail_end"] = _ends(thumbnails)
        _write(path.with_suffix(".thumbnails"), b"".join(thumbnails))
    arrays = {name: np.ascontiguousarray(a) for name, a in {**embeddings, **ends}.items()}
    _write(path, save(arrays, metadata={_NOTE: json.dumps(note)}))


class Part:
    """A part that is there; its arrays are read from disk as they are looked at.

    Attributes:
      arrays: name -> memory map.
      note: what `write_part` was given.
    """

    def __init__(self, folder: Path, number: int):
        """Opens a part. Raises DataError where it is missing or damaged."""
        self.path = part_path(folder, number)
        try:
            self.arrays, self.note = _open(self.path)
        except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
            raise DataError(
                f"{self.path} is missing or damaged ({error}); delete it and run `embed` again, which makes it anew"
            ) from None

    def __len__(self) -> int:
        return len(self.arrays["record_end"])

    def record(self, row: int) -> dict[str, Any]:
        """Returns the record of a sample of the part."""
        return json.loads(self._blob(".jsonl", "record_end", row))

    def records(self) -> Iterator[dict[str, Any]]:
        """Yields the records of all samples."""
        with open(self.path.with_suffix(".jsonl"), encoding="utf-8") as file:
            yield from map(json.loads, file)

    def thumbnail(self, row: int) -> bytes | None:
        """Returns the JPEG of a sample of the part; None where none is kept."""
        return self._blob(".thumbnails", "thumbnail_end", row) if "thumbnail_end" in self.arrays else None

    def _blob(self, extension: str, ends: str, row: int) -> bytes:
        start, end = int(self.arrays[ends][row - 1]) if row else 0, int(self.arrays[ends][row])
        path = self.path.with_suffix(extension)
        try:
            with open(path, "rb") as file:
                file.seek(start)
                content = file.read(end - start)
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}") from None
        if len(content) != end - start:
            raise DataError(f"{path} is shorter than its index says; delete {self.path.name} and run `embed` again")
        return content


def _open(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns the arrays of a safetensors file as memory maps, which the library does not give, and the note."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > _LONGEST_HEADER:
            raise ValueError("no safetensors file")
        header = json.loads(file.read(length))
        size = file.seek(0, os.SEEK_END)
    note, arrays = json.loads(header.pop("__metadata__")[_NOTE]), {}
    whole = np.memmap(path, np.uint8, "r")  # one for all: their number is limited
    for name, about in header.items():
        dtype, shape, (start, end) = np.dtype(_TYPES[about["dtype"]]), tuple(about["shape"]), about["data_offsets"]
        if end - start != dtype.itemsize * math.prod(shape) or 8 + length + end > size:
            raise ValueError(f"{name} does not fit into the file")
        arrays[name] = whole[8 + length + start : 8 + length + end].view(dtype).reshape(shape)
    return arrays, note


def _ends(blobs: Sequence[bytes]) -> np.ndarray:
    return np.cumsum([len(blob) for blob in blobs], dtype=np.int64)


def _write(path: Path, content: bytes) -> None:
    draft = path.with_name(f"{path.name}.{os.getpid()}.draft")
    with clear_disk_errors(path):
        with open(draft, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # a crash of the machine must not leave an empty file under the final name
        os.replace(draft, path)
