"""Odd files: what Pillow opens can be used, the rest has a reason that is true, and none takes long."""

import contextlib
import io
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from data_pipelines.errors import BadSample
from data_pipelines.images.augment import Box
from data_pipelines.images.decode import Options, check_image, full_image, training_image
from data_pipelines.images.formats import check_scans
from data_pipelines.sources.measures import difference_hash


def encoded(kind: str, size=(80, 60), mode="RGB", **options) -> bytes:
    y, x = np.mgrid[: size[1], : size[0]]
    image = Image.fromarray(np.stack([x * 3, y * 4, x + y], -1).astype(np.uint8)).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pillows(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def reason(data: bytes) -> str:
    with pytest.raises(BadSample) as caught:
        full_image(data)
    with pytest.raises(BadSample, match=caught.value.reason):
        check_image(data)
    return caught.value.reason


def stray(marker: bytes, strays: bytes, mode: str = "RGB", **options) -> bytes:
    """A JPEG with bytes before a marker that belong to no segment."""
    data = encoded("JPEG", mode=mode, **options)
    place = data.index(marker)
    return data[:place] + strays + data[place:]


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("strays", [b"\0", b"\1\2\3", b"\xff\xff", b"\xff\0\7"])
@pytest.mark.parametrize("marker", [b"\xff\xdb", b"\xff\xda"])
def test_bytes_between_the_segments_of_a_jpeg(marker, strays, mode):
    data = stray(marker, strays, mode, quality=95)
    assert np.abs(np.asarray(full_image(data)).astype(int) - pillows(data)).max() <= 2
    whole = lambda height, width: Box(0, 0, height, width)
    assert training_image(data, 16, whole).shape == (16, 16, 3)


def test_strays_excuse_no_damage():
    data = stray(b"\xff\xdb", b"\0", quality=95)
    for damaged in (data[: len(data) // 2], data[: len(data) // 2] + bytes(len(data) - len(data) // 2), data[:30]):
        assert reason(damaged) == "corrupt jpeg"


def chunk(kind: bytes, content: bytes, checksum: int | None = None) -> bytes:
    crc = zlib.crc32(kind + content) if checksum is None else checksum
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)


PNG = encoded("PNG")
HEAD = 8 + 25


@pytest.mark.parametrize(
    "data", [PNG[:-12], PNG + b"\n\n", PNG[:-12] + chunk(b"tEXt", b"a\0bcd", checksum=0) + PNG[-12:]],
    ids=["no end", "a tail", "a damaged text"],
)  # fmt: skip
def test_pngs_whose_pixels_are_whole(data):
    np.testing.assert_array_equal(np.asarray(full_image(data)), pillows(data))


@pytest.mark.parametrize("keyword", [b"zTXt", b"iCCP"])
def test_metadata_that_unfold_to_megabytes_are_called_so(keyword):
    bomb = chunk(keyword, b"k\0\0" + zlib.compress(b"a" * 2**22))
    assert reason(PNG[:HEAD] + bomb + PNG[HEAD:]) == "png metadata too large"


@pytest.mark.parametrize(
    ("data", "name"),
    [(encoded("TIFF"), "tiff"), (encoded("PPM"), "ppm"), (encoded("JPEG2000"), "jpeg 2000"),
     (encoded("ICO"), "ico"), (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf", "avif"),
     (b"\0\0\0\x1cftypmif1\0\0\0\0avifmif1miaf", "avif"), (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(9), "heic"),
     (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "heic"),
     (b"\xff\x0a" + bytes(30), "jpeg xl")],
)  # fmt: skip
def test_other_formats_are_named(data, name):
    assert reason(data) == f"unsupported {name}"
    for other in (b"\0\0\0\x18ftypisom\0\0\0\0isommp42", b"%PDF-1.4", b"<html>"):
        assert reason(other) == "not an image"


def with_scans(count: int, size: tuple[int, int]) -> bytes:
    """A progressive JPEG whose last scan comes so many times."""
    data = encoded("JPEG", size, progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + data[-2:]


def test_scans_without_end_are_refused_at_once():
    data = with_scans(1500, (200, 200))
    start = time.perf_counter()
    assert reason(data) == "too many scans"
    assert time.perf_counter() - start < 0.5
    whole = lambda height, width: Box(0, 0, height, width)
    with pytest.raises(BadSample, match="too many scans"):
        training_image(data, 16, whole)
    grey = encoded("JPEG", mode="CMYK", progressive=True)
    last = grey.rindex(b"\xff\xda")
    assert reason(grey[:last] + grey[last:-2] * 1500 + grey[-2:]) == "too many scans"  # which goes through Pillow


def test_scans_of_single_components_are_counted_too():
    data = encoded("JPEG", (64, 64))
    scan = data.index(b"\xff\xda")
    of_one = bytes((0xFF, 0xDA, 0, 8, 1, 1, 0, 0, 63, 0))  # the first of three components alone
    with pytest.raises(BadSample, match="too many scans"):
        check_scans(data[:scan] + of_one * 200 + b"\xff\xd9", 64 * 64, 2**26)
    # Where the first scan has all components, it is the only one that is decoded.
    check_scans(data[:-2] + of_one * 200 + b"\xff\xd9", 64 * 64, 2**26)
    assert reason(data[:-2] + data[scan:-2] * 200 + data[-2:]) == "corrupt jpeg"


def test_usual_progressive_jpegs_are_whatever_their_size():
    for size in ((16, 16), (1000, 1000), (4000, 4000)):
        data = encoded("JPEG", size, progressive=True)
        assert 8 <= data.count(b"\xff\xda") <= 12
        assert full_image(data, Options(max_pixels=size[0] * size[1])).size == size


def test_nothing_is_printed_about_an_image_without_its_name(capfd, recwarn):
    """Warnings of the libraries below name no file; what is wrong is in the reason."""
    palette = Image.new("P", (8, 8))
    buffer = io.BytesIO()
    palette.save(buffer, "PNG", transparency=bytes(range(256)))
    profile = chunk(b"iCCP", b"k\0\0" + zlib.compress(b"no profile"))
    jpeg = encoded("JPEG", quality=95)
    files = [buffer.getvalue(), PNG[:HEAD] + profile + PNG[HEAD:], jpeg[: len(jpeg) // 2], stray(b"\xff\xdb", b"\0")]
    for data in files:
        difference_hash(data)
        for background in ("white", "drop"):
            with contextlib.suppress(BadSample):
                full_image(data, Options(background=background))
    assert capfd.readouterr() == ("", "")
