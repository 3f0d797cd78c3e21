"""Writes samples as webdataset tars: equal samples give equal bytes, and a shard is there whole or not at all."""

import contextlib
import io
import json
import math
import os
import tarfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from PIL import Image

from data_pipelines.errors import DataError
from data_pipelines.images.decode import check_image, full_image
from data_pipelines.io.storage import Files, is_remote
from data_pipelines.io.tar import BLOCK, Read

_ORIENTATION = 0x0112  # EXIF
_EXTENSIONS = dict(JPEG="jpg", MPO="jpg", PNG="png", WEBP="webp", GIF="gif", BMP="bmp")
_END = 2 * BLOCK  # zeros that mark the end of a tar
_RECORD = 20 * BLOCK  # a tar is filled up to a multiple of it
_PART = ".part"


@dataclass(frozen=True)
class ImageRule:
    """What becomes of the images.

    Attributes:
        max_side: images with a longer side are made smaller, to this many pixels; 0 keeps every size.
        quality: of the JPEGs made of those, and if `max_side` is 0 of all images; 0 copies what need not be changed.
    """

    max_side: int = 0
    quality: int = 0

    def __post_init__(self):
        if self.max_side < 0 or not 0 <= self.quality <= 100:
            raise DataError(f"max_side is {self.max_side} and quality {self.quality}; expected from 0, and 0 to 100")


class ShardWriter:
    """One tar shard. Use it as a context manager: what it wrote appears under its name when the block ends well.

    Args:
        path: path or url; a remote shard is put together in memory.
        files: writes it.

    Attributes:
        samples: written.
        bytes: of the tar up to now.
    """

    def __init__(self, path: str, files: Files):
        self.samples = self.bytes = 0
        self._path, self._files = path, files
        self._draft = "" if is_remote(path) else f"{path}.{uuid.uuid4().hex}{_PART}"
        self._file: BinaryIO
        self._ended = False

    def __enter__(self) -> "ShardWriter":
        if self._draft:
            os.makedirs(os.path.dirname(self._path) or ".", exist_ok=True)
        self._file = open(self._draft, "w+b") if self._draft else io.BytesIO()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        try:
            if kind is None:
                self.end()
                self._publish()
        finally:
            self._file.close()
            if self._draft:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._draft)

    def add(self, key: str, members: Mapping[str, bytes | memoryview]) -> None:
        """Appends a sample.

        Args:
            key: its name, without a dot.
            members: extension -> content.

        Raises:
            DataError: the key holds a dot, so that readers would cut it off there.
        """
        if "." in key.rpartition("/")[2]:
            raise DataError(f"the key {key!r} holds a dot; readers take what follows it for an extension")
        for extension, content in members.items():
            info = tarfile.TarInfo(f"{key}.{extension}")  # without time and owner
            info.size = len(content)
            self._write(info.tobuf(tarfile.PAX_FORMAT))
            self._write(content)
            self._write(bytes(-len(content) % BLOCK))
        self.samples += 1

    def end(self) -> Read:
        """Ends the tar, and returns a `Read` of it that works as long as this is open."""
        if not self._ended:
            self._write(bytes(_END + -(self.bytes + _END) % _RECORD))
            self._ended = True

        def read(offset: int, size: int) -> bytes:
            self._file.seek(offset)
            return self._file.read(size)

        return read

    def _write(self, content: bytes | memoryview) -> None:
        self.bytes += self._file.write(content)

    def _publish(self) -> None:
        if not self._draft:
            self._files.write_atomic(self._path, self._file.getvalue())
            return
        self._file.flush()
        os.fsync(self._file.fileno())  # a crash of the machine must not leave an empty file under the final name
        os.replace(self._draft, self._path)


def is_draft(name: str) -> bool:
    """Whether a file is what an interrupted `ShardWriter` left behind."""
    return name.endswith(_PART)


def sample_members(
    image: bytes | memoryview | None, text: str, fields: Mapping[str, Any], rule: ImageRule
) -> dict[str, bytes]:
    """Returns the members of a sample, extension -> content.

    Args:
        image: encoded; None of a text alone.
        text: for the .txt member.
        fields: for the .json member; none if there are no fields.
        rule: what becomes of the image.

    Raises:
        BadSample: the image cannot be decoded.
    """
    members = {} if image is None else dict([prepare_image(image, rule)])
    members["txt"] = text.encode("utf-8", "replace")
    if fields:
        record = json.dumps(_finite(fields), ensure_ascii=False, default=str)
        members["json"] = record.encode("utf-8", "replace")
    return members


def prepare_image(data: bytes | memoryview, rule: ImageRule) -> tuple[str, bytes]:
    """Returns the extension and the content of an image under a rule. Raises BadSample."""
    check_image(data)
    with Image.open(io.BytesIO(data)) as head:
        extension, size, orientation = _EXTENSIONS[head.format], head.size, head.getexif().get(_ORIENTATION, 1)
    shrink = 0 < rule.max_side < max(size)
    if not shrink and (rule.max_side or not rule.quality):
        return extension, bytes(data)
    image = full_image(data)
    if shrink:
        scale = rule.max_side / max(size)
        image = image.resize([max(1, round(side * scale)) for side in size], Image.Resampling.LANCZOS)
    exif, buffer = Image.Exif(), io.BytesIO()
    if orientation != 1:  # the pixels stay as they lay, so the note that they are to be turned stays too
        exif[_ORIENTATION] = orientation
    image.save(buffer, "JPEG", quality=rule.quality or 92, exif=exif)
    return "jpg", buffer.getvalue()


def _finite(value: Any) -> Any:
    """Returns a value in which null stands for what json has no number for."""
    if isinstance(value, Mapping):
        return {str(name): _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
