"""Encoded images to uint8 RGB. Everything that can be wrong with one image is a `BadSample` with a reason.

JPEG goes through simplejpeg in strict mode, the one decoder that also rejects a tail of zeros; for training it decodes
no finer than 1.5 times what the crop needs, which costs a third of a full decode. Other formats, and CMYK, go through
Pillow.

EXIF orientation is ignored unless `Options.exif` says otherwise: the loaders that CLIP, SigLIP and open_clip were
trained with show the pixels as they are stored. Switch it on for photographs that come straight from phones.
"""

import io
import math
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from data_pipelines.errors import BadSample, DataError
from data_pipelines.images.augment import Box

MAX_PIXELS = 2**26  # of a decoded image; a small file can claim any size
_LONGEST = 16  # resized side / shown side above which the evaluation resizes only the part that it shows
_OVERSAMPLING = 1.5  # pixels decoded for each output pixel and axis
_ORIENTATION = 0x0112  # EXIF tag
# How an image of each orientation is turned upright: swap its axes or not, then go down and right along them.
_TURNS = {2: (0, 1, -1), 3: (0, -1, -1), 4: (0, -1, 1), 5: (1, 1, 1), 6: (1, 1, -1), 7: (1, -1, -1), 8: (1, -1, 1)}
_NO_TURN = (0, 1, 1)
_FILTERS = {
    "bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR, "nearest": Image.Resampling.NEAREST
}  # fmt: skip
_ROUNDINGS = {"even": round, "down": math.floor}
_FORMATS = {b"\xff\xd8\xff": "jpeg", b"\x89PNG\r\n\x1a\n": "png", b"RIFF": "webp", b"GIF8": "gif", b"BM": "bmp"}

cv2.setNumThreads(1)  # the stream has its own threads; cv2's would compete with them


class Options(NamedTuple):
    """How images are decoded, and how the evaluation shows them: keys of `config.data.image`.

    Attributes:
        exif: turn images as their EXIF orientation says.
        max_pixels: larger images are rejected before they are decoded.
        resize: pixels of the shorter side (of both sides, where images are squashed) from which the evaluation cuts its
            central square; 0: as many as the square.
        filter: of the evaluation's resizing, "bicubic", "bilinear" or "nearest" (published EfficientNets).
        rounding: of an odd margin of the evaluation's square, "even" (torchvision) or "down" (transformers).
    """

    exif: bool = False
    max_pixels: int = MAX_PIXELS
    resize: int = 0
    filter: str = "bicubic"
    rounding: str = "even"

    @classmethod
    def of(cls, image: Any) -> "Options":
        """Reads them from `config.data.image`. Raises DataError for a value that cannot be used."""
        most = 2 * Image.MAX_IMAGE_PIXELS  # Pillow itself refuses more
        if not 1 <= image.max_pixels <= most:
            raise DataError(f"data.image.max_pixels is {image.max_pixels}; expected 1 to {most}")
        if image.filter not in _FILTERS:
            raise DataError(f"data.image.filter is {image.filter!r}; expected {' or '.join(_FILTERS)}")
        if image.rounding not in _ROUNDINGS:
            raise DataError(f"data.image.rounding is {image.rounding!r}; expected {' or '.join(_ROUNDINGS)}")
        if image.resize and image.resize < image.size:
            raise DataError(f"data.image.resize is {image.resize}, less than data.image.size, which is cut out of it")
        return cls(image.exif, image.max_pixels, image.resize, image.filter, image.rounding)

    @property
    def resampling(self) -> Image.Resampling:
        """Pillow's filter."""
        return _FILTERS[self.filter]


_DEFAULT = Options()


def training_image(
    data: bytes | memoryview,
    size: int | Callable[[int, int], tuple[int, int]],
    crop: Callable[[int, int], Box],
    options: Options = _DEFAULT,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Decodes, crops and resizes an image, fast.

    Args:
        data: encoded image.
        size: pixels of the square to make, or a function that gives (height, width) for those of the upright crop.
        crop: gives the rectangle to show for (height, width) of the upright image.
        options: what to turn and what to refuse.
        out: receives the pixels, contiguous; None makes a new array.

    Returns:
        uint8 [size, size, 3] or [height, width, 3]: `out` where it was given.

    Raises:
        BadSample: the data are no image, damaged or too large.
    """
    if stored := _jpeg_size(data, options.max_pixels):
        height, width = stored
        orientation = _jpeg_orientation(data) if options.exif else 1
        box = _stored(crop, height, width, orientation)
        down, across = _shape(size, box, orientation)
        pixels = _jpeg(
            data,
            min_height=min(height, math.ceil(_OVERSAMPLING * down * height / box.height)),
            min_width=min(width, math.ceil(_OVERSAMPLING * across * width / box.width)),
        )
        box = _scaled(box, pixels.shape[0] / height, pixels.shape[1] / width)
    else:
        pixels, orientation = _pillow(data, options)
        box = _stored(crop, *pixels.shape[:2], orientation)
        down, across = _shape(size, box, orientation)
    part = pixels[box.top : box.top + box.height, box.left : box.left + box.width]
    turned = orientation in _TURNS
    if out is None:
        out = np.empty((across, down, 3) if _swaps(orientation) else (down, across, 3), np.uint8)
    if part.shape[:2] != (down, across):
        shrinks = part.shape[0] >= down and part.shape[1] >= across
        filtering = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
        part = cv2.resize(part, (across, down), None if turned else out, interpolation=filtering)
    if part is not out:  # neither turned nor copied where cv2 could write to the right place at once
        out[:] = _upright(part, orientation)
    return out


def evaluation_image(
    data: bytes | memoryview, size: int, squash: bool = False, options: Options = _DEFAULT
) -> np.ndarray:
    """Decodes and resizes an image as the published evaluations do: see `evaluation_pixels`.

    Args:
        data: encoded image.
        size: pixels of the square to make.
        squash: resize both sides alike; otherwise the shorter one. The central square is cut out.
        options: what to turn and what to refuse, and the resizing.

    Returns:
        uint8 [size, size, 3].

    Raises:
        BadSample: the data are no image, damaged or too large.
    """
    return evaluation_pixels(full_image(data, options), size, squash, options)


def evaluation_pixels(image: Image.Image, size: int, squash: bool = False, options: Options = _DEFAULT) -> np.ndarray:
    """Resizes a decoded RGB image as `resized` does, and cuts; arguments as for `evaluation_image`."""
    short, edge = min(image.size), options.resize or size
    width, height = ((edge,) * 2) if squash else (int(edge * side / short) for side in image.size)
    left, top = (_ROUNDINGS[options.rounding]((side - size) / 2) for side in (width, height))
    if max(width, height) > _LONGEST * size:  # resized whole, a line of pixels would become an endless strip
        across, down = image.width / width, image.height / height
        part = (left * across, top * down, (left + size) * across, (top + size) * down)
        return np.asarray(image.resize((size, size), options.resampling, box=part))
    return resized(image, height, width, options)[top : top + size, left : left + size]


def resized(image: Image.Image, height: int, width: int, options: Options = _DEFAULT) -> np.ndarray:
    """Resizes a decoded RGB image for the evaluation: uint8 [height, width, 3].

    With Pillow's filter on all pixels; but the nearest pixel is torchvision's ("nearest-exact", which transformers
    uses): where a centre falls on the edge between two pixels, as some do when 64 become 12, Pillow's choice hangs on
    the rounding of a sum along the row.
    """
    if options.filter != "nearest":
        return np.asarray(image.resize((width, height), options.resampling))
    rows, columns = _nearest(image.height, height), _nearest(image.width, width)
    return np.asarray(image)[rows[:, None], columns]


def _nearest(side: int, size: int) -> np.ndarray:
    """The pixel of `side` nearest to the centre of each of `size` pixels; float32 decides ties as torch does."""
    scale = np.float32(side) / np.float32(size)
    return np.minimum((scale * (np.arange(size, dtype=np.float32) + np.float32(0.5))).astype(int), side - 1)


class Header(NamedTuple):
    """What an image says of itself, upright; `kind` is "jpeg", "png", "webp", "gif" or "bmp"."""

    kind: str
    height: int
    width: int


def image_header(data: bytes | memoryview, options: Options = _DEFAULT) -> Header:
    """Returns format and size of an image without decoding it. Raises BadSample."""
    kind = _format(data)
    try:
        with Image.open(io.BytesIO(data), formats=[kind]) as image:
            (width, height), turn = image.size, _orientation(image) if options.exif else 1
    except Image.DecompressionBombError:
        raise BadSample("image too large") from None
    except Exception:  # see `_pillow`
        raise BadSample(f"corrupt {kind}") from None
    _check_size(height, width, options.max_pixels)
    swap = _TURNS.get(turn, _NO_TURN)[0]
    return Header(kind, width, height) if swap else Header(kind, height, width)


def check_image(data: bytes | memoryview, options: Options = _DEFAULT) -> None:
    """Raises BadSample if an image cannot be decoded; a large JPEG at a fraction of the cost of its pixels."""
    training_image(data, 1, lambda height, width: Box(0, 0, height, width), options)


def full_image(data: bytes | memoryview, options: Options = _DEFAULT) -> Image.Image:
    """Decodes an image at its own size to RGB, on white where it is transparent. Raises BadSample."""
    if _jpeg_size(data, options.max_pixels):
        pixels, orientation = _jpeg(data), _jpeg_orientation(data) if options.exif else 1
    else:
        pixels, orientation = _pillow(data, options)
    return Image.fromarray(np.ascontiguousarray(_upright(pixels, orientation)))


def _format(data: bytes | memoryview) -> str:
    head = bytes(data[:12])
    for magic, name in _FORMATS.items():
        if head.startswith(magic) and (name != "webp" or head[8:] == b"WEBP"):
            return name
    raise BadSample("not an image")


def _jpeg_size(data: bytes | memoryview, max_pixels: int) -> tuple[int, int] | None:
    """Returns height and width of a JPEG that simplejpeg decodes; None for CMYK and for other formats."""
    if _format(data) != "jpeg":
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        raise BadSample("corrupt jpeg") from None
    if colours in ("CMYK", "YCCK"):
        return None
    _check_size(height, width, max_pixels)
    return height, width


def _jpeg_orientation(data: bytes | memoryview) -> int:
    try:
        with Image.open(io.BytesIO(data), formats=["jpeg"]) as image:  # reads the header alone
            return _orientation(image)
    except Exception:  # the pixels do not need Pillow's approval
        return 1


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF data are no reason to lose an image
        return 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """A view of [height, width, 3] as its EXIF orientation wants it to be shown."""
    swap, down, right = _TURNS.get(orientation, _NO_TURN)
    return (pixels.swapaxes(0, 1) if swap else pixels)[::down, ::right]


def _swaps(orientation: int) -> bool:
    """Whether what is stored as a row is shown as a column."""
    return bool(_TURNS.get(orientation, _NO_TURN)[0])


def _shape(size: int | Callable[[int, int], tuple[int, int]], box: Box, orientation: int) -> tuple[int, int]:
    """Returns height and width of a result as it is stored, for a box of the stored image."""
    if isinstance(size, int):
        return size, size
    return size(box.width, box.height)[::-1] if _swaps(orientation) else size(box.height, box.width)


def _stored(crop: Callable[[int, int], Box], height: int, width: int, orientation: int) -> Box:
    """Crops the upright image; returns where that rectangle lies in the stored one, [height, width]."""
    # So that only the few pixels of the result have to be turned.
    swap, down, right = _TURNS.get(orientation, _NO_TURN)
    shown_height, shown_width = (width, height) if swap else (height, width)
    top, left, box_height, box_width = crop(shown_height, shown_width)
    top = top if down > 0 else shown_height - top - box_height
    left = left if right > 0 else shown_width - left - box_width
    return Box(left, top, box_width, box_height) if swap else Box(top, left, box_height, box_width)


def _jpeg(data: bytes | memoryview, **kwargs: int) -> np.ndarray:
    try:
        return simplejpeg.decode_jpeg(data, "RGB", **kwargs)
    except ValueError:
        raise BadSample("corrupt jpeg") from None


def _pillow(data: bytes | memoryview, options: Options) -> tuple[np.ndarray, int]:
    """Returns the stored pixels, uint8 [height, width, 3], and their orientation."""
    kind = _format(data)
    try:
        if kind == "png":
            _check_png(data)
        with Image.open(io.BytesIO(data), formats=[kind]) as image:
            _check_size(image.height, image.width, options.max_pixels)
            return np.asarray(on_white(image)), _orientation(image) if options.exif else 1
    except (BadSample, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise BadSample("image too large") from None
    except Exception:  # Pillow's plugins raise errors of many types on damaged input, SyntaxError among them
        raise BadSample(f"corrupt {kind}") from None


def _check_png(data: bytes | memoryview) -> None:
    """Verifies the checksums of all chunks, which Pillow's decoder does not wait for."""
    position, kind = 8, b""
    while kind != b"IEND":
        length = int.from_bytes(data[position : position + 4], "big")
        kind = bytes(data[position + 4 : position + 8])
        end = position + 8 + length
        if zlib.crc32(data[position + 4 : end]) != int.from_bytes(data[end : end + 4], "big") or end + 4 > len(data):
            raise BadSample("corrupt png")
        position = end + 4


def on_white(image: Image.Image) -> Image.Image:
    """Converts a picture of any mode to RGB, on white where it is transparent."""
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip to white
        grey = np.clip(np.asarray(image), 0, 65535) // 257
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image)
        return white
    return image.convert("RGB")


def _check_size(height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise BadSample("image too large")


def _scaled(box: Box, vertical: float, horizontal: float) -> Box:
    top, left = round(box.top * vertical), round(box.left * horizontal)
    bottom, right = round((box.top + box.height) * vertical), round((box.left + box.width) * horizontal)
    return Box(top, left, max(1, bottom - top), max(1, right - left))
