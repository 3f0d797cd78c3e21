"""Encoded images to uint8 RGB. Everything that can be wrong with one image is a `BadSample` with a reason.

JPEG goes through simplejpeg in strict mode, the one decoder that also rejects a tail of zeros; for training it decodes
no finer than 1.5 times what the crop needs, which costs a third of a full decode. Other formats, and CMYK, go through
Pillow. What would take much longer than its pixels do is refused before it is decoded.

Transparent images are put on white, on black, or lose their transparency as in Pillow's `convert("RGB")`: see
`Options.background`.

EXIF orientation is ignored unless `Options.exif` says otherwise: the loaders that CLIP, SigLIP and open_clip were
trained with show the pixels as they are stored. Switch it on for photographs that come straight from phones.
"""

import io
import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from data_pipelines.errors import BadSample, DataError, did_you_mean
from data_pipelines.images.augment import Box
from data_pipelines.images.formats import check_png, check_scans, image_format, without_stray_bytes

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
BACKGROUNDS = ("white", "black", "drop")
_STRAYS = "extraneous bytes before marker"  # what simplejpeg says of bytes between segments

cv2.setNumThreads(1)  # the stream has its own threads; cv2's would compete with them
# Pillow's warnings name no file. What makes an image unusable is an error all the same.
warnings.filterwarnings("ignore", module=r"PIL\..*")


class Options(NamedTuple):
    """How images are decoded, and how the evaluation shows them: options of `modalities.Image`.

    Attributes:
        exif: turn images as their EXIF orientation says.
        max_pixels: larger images are rejected before they are decoded.
        resize: pixels of the shorter side (of both sides, where images are squashed) from which the evaluation cuts its
            central square; 0: as many as the square.
        filter: of the evaluation's resizing, "bicubic", "bilinear" or "nearest" (published EfficientNets).
        rounding: of an odd margin of the evaluation's square, "even" (torchvision) or "down" (transformers).
        background: of transparent images, "white" or "black"; "drop" shows the colours under the transparency, as
            Pillow's `convert("RGB")` does, and with it OpenAI's CLIP and open_clip.
    """

    exif: bool = False
    max_pixels: int = MAX_PIXELS
    resize: int = 0
    filter: str = "bicubic"
    rounding: str = "even"
    background: str = "white"

    @classmethod
    def of(cls, image: Any) -> "Options":
        """Reads them from an image input. Raises DataError for a value that cannot be used."""
        most = 2 * Image.MAX_IMAGE_PIXELS  # Pillow itself refuses more
        if not 1 <= image.max_pixels <= most:
            raise DataError(f"{image.where}.max_pixels is {image.max_pixels}; expected 1 to {most}")
        if image.filter not in _FILTERS:
            raise DataError(f"{image.where}.filter is {image.filter!r}; expected {' or '.join(_FILTERS)}")
        if image.rounding not in _ROUNDINGS:
            raise DataError(f"{image.where}.rounding is {image.rounding!r}; expected {' or '.join(_ROUNDINGS)}")
        if image.resize and image.resize < image.size:
            raise DataError(
                f"{image.where}.resize is {image.resize}, less than {image.where}.size, which is cut out of it"
            )
        if image.background not in BACKGROUNDS:
            raise DataError(
                f"{image.where}.background is {image.background!r}; expected {', '.join(BACKGROUNDS)}"
                f"{did_you_mean(str(image.background), BACKGROUNDS)}"
            )
        return cls(image.exif, image.max_pixels, image.resize, image.filter, image.rounding, image.background)

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
    if jpeg := _jpeg(data, options.max_pixels):
        height, width = jpeg.height, jpeg.width
        orientation = _jpeg_orientation(data) if options.exif else 1
        box = _stored(crop, height, width, orientation)
        down, across = _shape(size, box, orientation)
        pixels = jpeg.pixels(
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
    """What an image says of itself, upright.

    Attributes:
        kind: "jpeg", "png", "webp", "gif" or "bmp".
        height: in pixels.
        width: in pixels.
        transparent: it has an alpha channel or a transparent colour.
    """

    kind: str
    height: int
    width: int
    transparent: bool = False


def image_header(data: bytes | memoryview, options: Options = _DEFAULT) -> Header:
    """Returns format and size of an image without decoding it. Raises BadSample."""
    kind = image_format(data)
    try:
        with Image.open(io.BytesIO(data), formats=[kind]) as image:
            (width, height), turn = image.size, _orientation(image) if options.exif else 1
            transparent = image.has_transparency_data
    except Exception as error:
        raise BadSample(_reason(error, kind)) from None
    _check_size(height, width, options.max_pixels)
    swap = _TURNS.get(turn, _NO_TURN)[0]
    return Header(kind, width, height, transparent) if swap else Header(kind, height, width, transparent)


def check_image(data: bytes | memoryview, options: Options = _DEFAULT) -> None:
    """Raises BadSample if an image cannot be decoded; a large JPEG at a fraction of the cost of its pixels."""
    training_image(data, 1, lambda height, width: Box(0, 0, height, width), options)


def full_image(data: bytes | memoryview, options: Options = _DEFAULT) -> Image.Image:
    """Decodes an image at its own size to RGB, on the background where it is transparent. Raises BadSample."""
    return Image.fromarray(np.ascontiguousarray(small_pixels(data, 0, options)))


def small_pixels(data: bytes | memoryview, side: int, options: Options = _DEFAULT) -> np.ndarray:
    """Decodes an image to RGB, a JPEG at a fraction of its size if that has at least `side` pixels along both sides.

    Args:
        data: encoded image.
        side: pixels of both sides that are wanted; 0 decodes all.
        options: what to turn and what to refuse.

    Returns:
        uint8 [height, width, 3], upright.

    Raises:
        BadSample: the data are no image, damaged or too large.
    """
    if jpeg := _jpeg(data, options.max_pixels):
        pixels = jpeg.pixels(**(dict(min_height=side, min_width=side) if side else {}))
        orientation = _jpeg_orientation(data) if options.exif else 1
    else:
        pixels, orientation = _pillow(data, options)
    return _upright(pixels, orientation)


class _Jpeg(NamedTuple):
    """A JPEG that simplejpeg decodes."""

    data: bytes | memoryview
    height: int
    width: int

    def pixels(self, **kwargs: int) -> np.ndarray:
        """Decodes it: uint8 [height, width, 3]. Raises BadSample."""
        try:
            return simplejpeg.decode_jpeg(self.data, "RGB", **kwargs)
        except ValueError:
            raise BadSample("corrupt jpeg") from None


def _jpeg(data: bytes | memoryview, max_pixels: int) -> _Jpeg | None:
    """Returns a JPEG that simplejpeg decodes; None for CMYK and for other formats. Raises BadSample."""
    if image_format(data) != "jpeg":
        return None
    try:
        data, (height, width, colours, _) = _jpeg_header(data)
    except ValueError:
        raise BadSample("corrupt jpeg") from None
    _check_size(height, width, max_pixels)
    check_scans(data, height * width, max_pixels)
    return None if colours in ("CMYK", "YCCK") else _Jpeg(data, height, width)


def _jpeg_header(data: bytes | memoryview) -> tuple[bytes | memoryview, tuple]:
    """Returns a JPEG as strict decoders take it, and its height, width, colour space and sampling."""
    try:
        return data, simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        mended = without_stray_bytes(data) if _STRAYS in str(error) else None
        if mended is None:
            raise
        return mended, simplejpeg.decode_jpeg_header(mended)


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


def _pillow(data: bytes | memoryview, options: Options) -> tuple[np.ndarray, int]:
    """Returns the stored pixels, uint8 [height, width, 3], and their orientation."""
    kind = image_format(data)
    try:
        if kind == "png":
            check_png(data)
        with Image.open(io.BytesIO(data), formats=[kind]) as image:
            _check_size(image.height, image.width, options.max_pixels)
            return np.asarray(to_rgb(image, options.background)), _orientation(image) if options.exif else 1
    except (BadSample, MemoryError):
        raise
    except Exception as error:
        raise BadSample(_reason(error, kind)) from None


def _reason(error: Exception, kind: str) -> str:
    """Says why Pillow refuses an image; its plugins raise errors of many types on damage, SyntaxError among them."""
    if isinstance(error, Image.DecompressionBombError):
        return "image too large"
    if kind == "png" and isinstance(error, ValueError) and "too large" in str(error):  # compressed texts and profiles
        return "png metadata too large"
    return f"corrupt {kind}"


def to_rgb(image: Image.Image, background: str = "white") -> Image.Image:
    """Converts an image of any mode to RGB, with the background of `Options` where it is transparent."""
    if background == "drop":
        return image.convert("RGB")
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip to white
        grey = np.clip(np.asarray(image), 0, 65535) // 257
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        shown = Image.new("RGB", image.size, background)
        shown.paste(image, mask=image)
        return shown
    return image.convert("RGB")


def _check_size(height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise BadSample("image too large")


def _scaled(box: Box, vertical: float, horizontal: float) -> Box:
    top, left = round(box.top * vertical), round(box.left * horizontal)
    bottom, right = round((box.top + box.height) * vertical), round((box.left + box.width) * horizontal)
    return Box(top, left, max(1, bottom - top), max(1, right - left))
