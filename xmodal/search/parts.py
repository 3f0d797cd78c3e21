"""The files of an index: each part is a `.safetensors` of embeddings, a `.jsonl` of records and a file of thumbnails.

`00012.safetensors` holds `image` and `text` ([samples, dim], float16 or float32, unit vectors), and `record_end` and
`thumbnail_end` (int64 [samples]): where each sample's line of `00012.jsonl` and its JPEG in `00012.thumbnails` end. It
is written last, and renamed into place: a part is whole when it is there.

An index may come from elsewhere, and disks fail: nothing that its files say is believed before it was checked, and
only plain files are read. A link would let a stranger's index show any file of this machine.
"""

import json
import math
import os
import stat
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors.numpy import save

from data_pipelines.errors import DataError
from xmodal.reporting.files import clear_disk_errors

IMAGE, TEXT = KINDS = ("image", "text")  # inputs of samples and models that an index compares
_LONGEST_HEADER = 10**8  # bytes, as the safetensors library has it
_LARGEST_BLOB = 2**26  # bytes of a record or a thumbnail
_TYPES = {"F16": np.float16, "F32": np.float32, "I64": np.int64}
_ENDS = ("record_end", "thumbnail_end")
_NOTE = "note"
_RECORD, _FILE = ("shard", "key", "caption"), "file"  # what each record has, and what it may have


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
        except OSError as error:
            raise self._damaged(error.strerror or str(error)) from None
        except ValueError as error:
            raise self._damaged(str(error)) from None

    def __len__(self) -> int:
        return len(self.arrays["record_end"])

    def record(self, row: int) -> dict[str, Any]:
        """Returns the record of a sample of the part. Raises DataError where it is damaged."""
        return self._record(self._blob(".jsonl", "record_end", row))

    def records(self) -> Iterator[dict[str, Any]]:
        """Yields the records of all samples. Raises DataError where one is damaged."""
        path, start = self.path.with_suffix(".jsonl"), 0
        try:
            with open_plain(path) as file:
                for end in self.arrays["record_end"].tolist():
                    yield self._record(self._checked(path, file.read(self._length(start, end)), start, end))
                    start = end
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}") from None

    def thumbnail(self, row: int) -> bytes | None:
        """Returns the JPEG of a sample of the part; None where none is kept. Raises DataError where it is damaged."""
        if "thumbnail_end" not in self.arrays:
            return None
        content = self._blob(".thumbnails", "thumbnail_end", row)
        if content and not content.startswith(b"\xff\xd8"):
            raise self._damaged(f"a thumbnail in {self.path.stem}.thumbnails is no JPEG")
        return content

    def _blob(self, extension: str, ends: str, row: int) -> bytes:
        start, end = int(self.arrays[ends][row - 1]) if row else 0, int(self.arrays[ends][row])
        path, length = self.path.with_suffix(extension), self._length(start, end)
        try:
            with open_plain(path) as file:
                file.seek(start)
                return self._checked(path, file.read(length), start, end)
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}") from None

    def _length(self, start: int, end: int) -> int:
        if not 0 <= start <= end <= start + _LARGEST_BLOB:
            raise self._damaged(f"a sample lies from byte {start:,} to {end:,}")
        return end - start

    def _checked(self, path: Path, content: bytes, start: int, end: int) -> bytes:
        if len(content) != end - start:
            raise self._damaged(f"{path.name} is shorter than it says")
        return content

    def _record(self, line: bytes) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict) or not all(isinstance(record.get(name), str) for name in _RECORD):
            raise self._damaged(f"a line of {self.path.stem}.jsonl is no record")
        names = (*_RECORD, _FILE) if isinstance(record.get(_FILE), str) else _RECORD
        return {name: record[name] for name in names}

    def _damaged(self, why: str) -> DataError:
        return DataError(
            f"{self.path} is missing or damaged ({why}); delete it and run `embed` again, which makes it anew"
        )


def open_plain(path: Path) -> BinaryIO:
    """Opens a file to read. Raises OSError where there is none, or where it is a link or a device."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    if path.is_symlink():
        raise OSError(f"{path.name} is a link, which is not followed: copy the index, `cp -rL` does it")
    file = os.fdopen(os.open(path, flags), "rb")  # O_NONBLOCK: a pipe would wait for ever
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(f"{path.name} is no plain file")
    return file


def _open(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns the arrays of a safetensors file as memory maps, which the library does not give, and the note.

    Raises:
      OSError: there is no such file.
      ValueError: it is damaged.
    """
    with open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
        if length > min(_LONGEST_HEADER, size - 8):
            raise ValueError("no safetensors file")
        header = _json(file.read(length))
        note = _json(_field(_field(header, "__metadata__", dict), _NOTE, str))
        whole = np.memmap(file, np.uint8, "r")  # one for all: their number is limited
    names = [name for name in (*KINDS, *_ENDS) if name in header]
    arrays = {name: _array(name, _field(header, name, dict), whole[8 + length :]) for name in names}
    if "record_end" not in arrays:
        raise ValueError("it has no record_end")
    if len({len(array) for array in arrays.values()}) > 1:
        raise ValueError("its arrays differ in length")
    return arrays, note


def _json(text: str | bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ValueError("its header is no JSON object")
    return found


def _field(header: Mapping[str, Any], name: str, kind: type) -> Any:
    if not isinstance(header.get(name), kind):
        raise ValueError(f"its header says nothing of {name}")
    return header[name]


def _array(name: str, about: Mapping[str, Any], content: np.ndarray) -> np.ndarray:
    """One array of a file, whose bytes behind the header are `content`."""
    shape, span, kind = about.get("shape"), about.get("data_offsets"), about.get("dtype")
    allowed = (["I64"], 1) if name in _ENDS else (["F16", "F32"], 2)
    whole = lambda numbers, count: (
        isinstance(numbers, list) and len(numbers) == count and all(type(n) is int and 0 <= n < 2**62 for n in numbers)
    )
    if kind not in allowed[0] or not whole(shape, allowed[1]) or not whole(span, 2):
        raise ValueError(f"its header says nothing sensible of {name}")
    dtype, (start, end) = np.dtype(_TYPES[kind]), span
    if end - start != dtype.itemsize * math.prod(shape) or end > len(content):
        raise ValueError(f"{name} does not fit into the file")
    return content[start:end].view(dtype).reshape(shape)


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
