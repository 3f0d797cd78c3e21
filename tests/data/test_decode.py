"""Decoding gives the right pixels, and a reason for whatever is no picture."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps
from tiny_inputs import LooseImage
from tiny_shards import encode

from data_pipelines import rng
from data_pipelines.errors import BadSample, DataError
from data_pipelines.images import augment, decode
from data_pipelines.images.augment import Box
from data_pipelines.images.decode import Options

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
    larger = image.resize((45, 45), Image.Resampling.BICUBIC).crop((6, 6, 38, 38))  # of an odd margin the even half
    cut = decode.evaluation_image(encoded(image, "PNG"), 32, squash=True, options=Options(resize=45))
    np.testing.assert_array_equal(cut, np.asarray(larger))


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


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_what_shines_through_is_white(mode):
    image = Image.new("RGBA", (40, 40), (0, 0, 0, 100)).convert(mode)
    pixels = decode.training_image(encoded(image, "PNG"), 16, whole)
    assert np.abs(pixels.astype(int) - 155).max() <= 1


def test_palettes():
    """A palette whose colours have alphas of their own, and, as Pillow makes them in memory, alphas beside indices."""
    image = Image.new("P", (40, 40), 1)
    image.paste(0, (0, 0, 20, 40))
    image.putpalette([255, 0, 0, 0, 0, 255])
    pixels = decode.training_image(encoded(image, "PNG", transparency=bytes([255, 51])), 40, whole)
    assert (pixels[:, :20] == (255, 0, 0)).all() and (pixels[:, 20:] == (204, 204, 255)).all()
    assert (np.asarray(decode.to_rgb(image.convert("PA"))) == np.asarray(image.convert("RGB"))).all()
    pixels = decode.training_image(encoded(image, "GIF", transparency=1), 40, whole)
    assert (pixels[:, :20] == (255, 0, 0)).all() and (pixels[:, 20:] == 255).all()


@pytest.mark.parametrize("adobe", [0, 2])
def test_cmyk_as_adobe_writes_it(adobe):
    """Inverted, and for transform 2 (YCCK) with inverted colours as luma and chroma."""
    colour = np.array([200, 120, 40])
    stored = colour  # 255 minus the inks
    if adobe == 2:
        luma = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
        stored = luma @ (255 - colour) + [0, 128, 128]
    inks = [255 - round(v) for v in stored] + [0]  # Pillow inverts them once more when it saves
    data = encoded(Image.new("CMYK", (40, 40), tuple(inks)), "JPEG", quality=100)
    place = data.index(b"Adobe") + 11
    assert data[place] == 0
    data = data[:place] + bytes([adobe]) + data[place + 1 :]
    for pixels in (decode.training_image(data, 16, whole), decode.evaluation_image(data, 16)):
        assert np.abs(pixels.astype(int) - colour).max() <= 3


def test_sixteen_bit_colours():
    """A PNG of our own: Pillow writes no colours of 16 bits."""
    value = np.linspace(0, 65535, 32 * 32 * 3).reshape(32, 32, 3).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in value)
    data = png_chunks(32, 32, 16, zlib.compress(rows))
    pixels = decode.training_image(data, 32, whole)
    assert np.abs(pixels - value.astype(float) / 257).max() <= 1


def oriented(orientation: int, kind: str) -> tuple[bytes, Image.Image]:
    """An image with an EXIF orientation, and how Pillow shows it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = dict(JPEG=dict(quality=95, subsampling=0), WEBP=dict(lossless=True), PNG={})[kind]
    data = encoded(picture(160, 96), kind, exif=exif, **options)
    return data, ImageOps.exif_transpose(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_pillows(orientation, kind):
    data, upright = oriented(orientation, kind)
    turning = Options(exif=True)
    assert upright.size == ((160, 96) if orientation < 5 else (96, 160))
    full = np.asarray(decode.full_image(data, turning)).astype(int)
    assert full.shape == np.asarray(upright).shape and np.abs(full - np.asarray(upright)).max() <= 2
    box = Box(10, 20, 70, 60) if orientation < 5 else Box(60, 10, 80, 50)
    seen = []
    for size in (60, 12):  # without and with a JPEG decoded at a fraction of its size
        found = decode.training_image(data, size, lambda *shape: seen.append(shape) or box, turning)
        part = upright.crop((box.left, box.top, box.left + box.width, box.top + box.height))
        assert psnr(found, np.asarray(part.resize((size, size), Image.Resampling.BOX))) > 24
    assert seen == [upright.size[::-1]] * 2
    found = decode.evaluation_image(data, 32, squash=True, options=turning)
    expected = np.asarray(upright.convert("RGB").resize((32, 32), Image.Resampling.BICUBIC))
    assert np.abs(found.astype(int) - expected).max() <= 2


def test_orientation_is_ignored_by_default():
    data, _ = oriented(6, "JPEG")
    plain, _ = oriented(1, "JPEG")
    for call in (decode.full_image, lambda d: decode.training_image(d, 16, whole)):
        np.testing.assert_array_equal(call(data), call(plain))


@pytest.mark.parametrize("damage", [b"\x77", b"\xff" * 20, b""])
def test_damaged_exif_does_not_lose_the_image(damage):
    data, _ = oriented(6, "JPEG")
    place = data.index(b"Exif") + 6
    broken = data[:place] + (damage + data[place + len(damage) :])
    if not damage:  # an orientation that does not exist
        broken = data.replace(b"\x12\x01\x03\x00\x01\x00\x00\x00\x06", b"\x12\x01\x03\x00\x01\x00\x00\x00\x5a")
        broken = broken.replace(
            b"\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06", b"\x01\x12\x00\x03\x00\x00\x00\x01\x00\x5a"
        )
    assert broken != data
    assert decode.training_image(broken, 16, whole, Options(exif=True)).shape == (16, 16, 3)
    assert decode.full_image(broken, Options(exif=True)).size == (160, 96)


def test_the_limit_of_pixels_is_an_option():
    for data in (encode(0, "jpg", size=(50, 40)), encode(0, "png", size=(50, 40))):
        assert decode.training_image(data, 16, whole, Options(max_pixels=2000)).shape == (16, 16, 3)
        for call in (decode.full_image, decode.check_image, lambda d, o: decode.evaluation_image(d, 16, options=o)):
            with pytest.raises(BadSample, match="image too large"):
                call(data, Options(max_pixels=1999))
    image = LooseImage()
    assert Options.of(image) == Options() and Options().max_pixels == 2**26
    for limit in (0, 2**40):
        image.max_pixels = limit
        with pytest.raises(DataError, match=r"data\.inputs\.image\.max_pixels"):
            Options.of(image)


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


def png_chunks(width: int, height: int, bits: int, data: bytes) -> bytes:
    """A PNG of three channels from its header's numbers and its compressed rows."""
    head = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def test_claimed_sizes_are_bounded_before_decoding():
    png = lambda width, height: png_chunks(width, height, 8, zlib.compress(b""))
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


def test_crops_by_name():
    image = LooseImage()
    u = rng.uniform(rng.row_words(0, 500, augment.WORDS, 1, "crop"))
    image.crop = "inception"  # whatever scale and ratio say
    boxes = np.array([augment.cropper(image)(200, 300, row) for row in u])
    area, ratio = boxes[:, 2] * boxes[:, 3] / 60_000, boxes[:, 3] / boxes[:, 2]
    assert area.min() < 0.1 and area.max() > 0.8 and 0.35 < area.mean() < 0.55
    assert 0.74 < ratio.min() < 0.8 and 1.25 < ratio.max() < 1.35
    image.crop = "resize_crop"
    for height, width, axis in ((200, 300, 1), (300, 200, 0)):
        boxes = np.array([augment.cropper(image)(height, width, row) for row in u])
        assert (boxes[:, 2:] == 200).all() and (boxes[:, 1 - axis] == 0).all()
        assert boxes[:, axis].min() == 0 and boxes[:, axis].max() == 100 and abs(boxes[:, axis].mean() - 50) < 5
    assert augment.cropper(image)(7, 7, u[0]) == Box(0, 0, 7, 7)
    image.crop = "squash"
    assert augment.cropper(image)(200, 300, u[0]) == Box(0, 0, 200, 300)
    image.size, image.resize = 60, 80
    boxes = np.array([augment.cropper(image)(200, 300, row) for row in u])
    assert (boxes[:, 2:] == (150, 225)).all() and (boxes[:, :2].min(axis=0) == 0).all()
    assert boxes[:, :2].max(axis=0).tolist() == [50, 75]
    assert augment.cropper(image)(1, 2, u[0])[2:] == (1, 2)


def test_crop_settings_are_checked():
    image = LooseImage()
    image.crop = "centre"
    with pytest.raises(DataError, match="did you mean 'center'"):
        augment.cropper(image)
    image.crop, image.scale = "random_resized", (0.9, 1.1)
    with pytest.raises(DataError, match=r"data\.inputs\.image\.scale"):
        augment.cropper(image)


def test_images_are_decoded_into_the_batch():
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"  # orientation 6: a quarter turn
    batch = np.empty((4, 16, 16, 3), np.uint8)
    cases = [
        (encode(1, "jpg", size=(40, 30)), Options()),
        (encode(2, "png", size=(16, 16)), Options()),  # not resized
        (encode(3, "jpg", size=(40, 30), exif=exif), Options(exif=True)),
        (encode(4, "jpg", size=(16, 16), exif=exif), Options(exif=True)),
    ]
    for row, (data, options) in zip(batch, cases, strict=True):
        row[:] = 255
        assert decode.training_image(data, 16, whole, options, row) is row
        np.testing.assert_array_equal(row, decode.training_image(data, 16, whole, options))
    upright, turned = (decode.training_image(cases[2][0], 16, whole, Options(exif=exif)) for exif in (False, True))
    assert not np.array_equal(upright, turned)
