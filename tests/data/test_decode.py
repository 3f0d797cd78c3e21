"""Decoding gives the right pixels, and a reason for whatever is no picture."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from tiny_shards import encode

from configs.base import get_config
from data_pipelines import augment, decode, rng
from data_pipelines.augment import Box
from data_pipelines.errors import BadSample, DataError

whole = lambda height, width: Box(0, 0, height, width)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2).clip(1e-9))


def picture(width: int, height: int) -> Image.Image:
    """A smooth picture, so that resizers can be compared."""
    y, x = np.mgrid[:height, :width] / max(width, height)
    channels = [np.sin(9 * x + 2 * y), np.cos(7 * y - x), np.sin(5 * x * y + 1)]
    return Image.fromarray((127.5 + 127.5 * np.stack(channels, -1)).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("size", [(640, 480), (100, 300), (65, 65), (30, 40)])
def test_training_pixels_are_close_to_pillow(size):
    image = picture(*size)
    box = Box(size[1] // 10, size[0] // 5, size[1] // 2, size[0] // 2)
    expected = image.crop((box.left, box.top, box.left + box.width, box.top + box.height)).resize((32, 32), 3)
    for data in (encoded(image, "JPEG", quality=95), encoded(image, "PNG")):
        assert psnr(decode.training_image(data, 32, lambda *_: box), np.asarray(expected)) > 25


def test_evaluation_pixels_are_pillows_bicubic():
    image = picture(200, 120)
    data = encoded(image, "JPEG", quality=95)
    resized = Image.open(io.BytesIO(data)).resize((53, 32), Image.Resampling.BICUBIC).crop((10, 0, 42, 32))
    assert np.abs(decode.evaluation_image(data, 32).astype(int) - np.asarray(resized)).max() <= 2
    squashed = np.asarray(Image.open(io.BytesIO(encoded(image, "PNG"))).resize((32, 32), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(decode.evaluation_image(encoded(image, "PNG"), 32, squash=True), squashed)


def test_an_image_of_the_right_size_is_untouched():
    image = picture(32, 32)
    for call in (
        decode.evaluation_image(encoded(image, "PNG"), 32),
        decode.training_image(encoded(image, "PNG"), 32, whole),
    ):
        np.testing.assert_array_equal(call, np.asarray(image))


@pytest.mark.parametrize(
    ("kind", "mode"), [("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "L"), ("PNG", "1"), ("WEBP", "RGB")]
)
def test_colour_spaces(kind, mode):
    grey = Image.new("L", (40, 40), 255).convert(mode)
    pixels = decode.training_image(encoded(grey, kind), 16, whole)
    assert pixels.shape == (16, 16, 3) and pixels.dtype == np.uint8 and pixels.min() > 250


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "RGBA"), ("PNG", "LA"), ("PNG", "P"), ("WEBP", "RGBA")])
def test_transparency_becomes_white(kind, mode):
    image = Image.new("RGBA", (40, 40), (0, 0, 0, 0)).convert(mode) if mode != "P" else Image.new("P", (40, 40), 0)
    options = dict(transparency=0) if mode == "P" else dict(lossless=True) if kind == "WEBP" else {}
    assert decode.training_image(encoded(image, kind, **options), 16, whole).min() == 255


def test_sixteen_bit_grey_is_scaled():
    ramp = Image.fromarray(np.linspace(0, 65535, 1024).reshape(32, 32).astype(np.uint16))
    pixels = np.asarray(decode.full_image(encoded(ramp, "PNG")))[..., 0]
    assert pixels.min() == 0 and pixels.max() == 255 and abs(pixels.mean() - 127.5) < 1


def fault(data: bytes) -> str:
    with pytest.raises(BadSample) as caught:
        decode.training_image(data, 16, whole)
    for other in (decode.check_image, lambda d: decode.evaluation_image(d, 16)):
        with pytest.raises(BadSample, match=caught.value.reason):
            other(data)
    return caught.value.reason


@pytest.mark.parametrize("extension", ["jpg", "png", "webp"])
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_truncated_images_are_rejected(extension, kept):
    data = encode(3, extension, size=(90, 70))
    name = dict(jpg="jpeg").get(extension, extension)
    assert fault(data[: int(len(data) * kept)]) == f"corrupt {name}"
    if extension != "webp":  # WebP has no checksum and decodes zeros as colours
        zeros = len(data) - int(len(data) * kept)
        assert fault(data[:-zeros] + bytes(zeros)) == f"corrupt {name}"


@pytest.mark.parametrize("data", [b"", b"x", b"<html>404 Not Found</html>", bytes(100), b"RIFF\0\0\0\0WAVEfmt "])
def test_what_is_no_image(data):
    assert fault(data) == "not an image"


def test_claimed_sizes_are_bounded_before_decoding():
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    def png(width: int, height: int) -> bytes:
        head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")

    assert fault(png(9000, 9000)) == fault(png(2**31 - 1, 2**31 - 1)) == "image too large"
    jpeg = bytearray(encode(0, "jpg"))
    place = jpeg.index(b"\xff\xc0") + 5
    jpeg[place : place + 4] = struct.pack(">HH", 65000, 65000)
    assert fault(bytes(jpeg)) == "image too large"


def test_a_line_of_pixels_stays_small():
    image = Image.new("RGB", (60_000, 1), "red")
    assert decode.evaluation_image(encoded(image, "PNG"), 64).shape == (64, 64, 3)
    assert decode.training_image(encoded(image, "PNG"), 64, augment.center).shape == (64, 64, 3)


def crops(height: int, width: int, scale, ratio, n: int = 2000) -> np.ndarray:
    u = rng.uniform(rng.row_words(0, n, augment.WORDS, 0, "crop"))
    return np.array([augment.random_resized(height, width, row, scale, ratio) for row in u])


def test_random_crops_follow_their_distribution():
    height, width = 300, 400
    top, left, h, w = crops(height, width, (0.3, 0.5), (3 / 4, 4 / 3)).T
    area, ratio = h * w / (height * width), w / h
    assert area.min() > 0.29 and area.max() < 0.51 and abs(area.mean() - 0.4) < 0.01
    assert ratio.min() > 0.73 and ratio.max() < 1.36 and abs(np.log(ratio).mean()) < 0.02
    assert (top >= 0).all() and (top + h <= height).all() and (left + w <= width).all()
    for offset, room in ((top, height - h), (left, width - w)):
        assert abs((offset / room).mean() - 0.5) < 0.03


def test_crops_that_never_fit_take_the_centre():
    for box in crops(10, 1000, (0.9, 1.0), (3 / 4, 4 / 3), n=20):
        assert tuple(box) == (0, (1000 - 13) // 2, 10, 13)
    for box in crops(1000, 10, (0.9, 1.0), (3 / 4, 4 / 3), n=20):
        assert tuple(box) == ((1000 - 13) // 2, 0, 13, 10)
    assert tuple(crops(1, 1, (0.9, 1.0), (3 / 4, 4 / 3), n=1)[0]) == (0, 0, 1, 1)


def test_crop_settings_are_checked():
    image = get_config().data.image
    image.crop = "centre"
    with pytest.raises(DataError, match="did you mean 'center'"):
        augment.cropper(image)
    image.crop, image.scale = "random_resized", (0.9, 1.1)
    with pytest.raises(DataError, match=r"data\.image\.scale"):
        augment.cropper(image)
