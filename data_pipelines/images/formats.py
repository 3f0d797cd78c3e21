"""What encoded images are, and how much work they ask for: read from their bytes before anything is decoded."""

import zlib

from data_pipelines.errors import BadSample

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp")
_READ = {b"\xff\xd8\xff": "jpeg", b"\x89PNG\r\n\x1a\n": "png", b"RIFF": "webp", b"GIF8": "gif", b"BM": "bmp"}
# Formats that are named instead of read: files of theirs often end in .jpg.
_OTHER = {
    b"II*\0": "tiff", b"MM\0*": "tiff", b"\0\0\0\x0cjP  ": "jpeg 2000", b"\xff\x4f\xff\x51": "jpeg 2000",
    b"\xff\x0a": "jpeg xl", b"\0\0\0\x0cJXL ": "jpeg xl", b"8BPS": "psd", b"\0\0\1\0": "ico",
    b"P5\n": "pgm", b"P6\n": "ppm",
}  # fmt: skip
_AVIF, _HEIF = (b"avif", b"avis"), (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
_BRANDS = 64  # bytes in which an ISO file names its brands
_SCANS = 100  # of a JPEG; encoders write some 10, and each costs the work of the whole image
_SCANNED = 16  # times `max_pixels` that all scans of a JPEG may decode together
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # headers of frames: how many components there are
_PROGRESSIVE = frozenset((0xC2, 0xC6, 0xCA, 0xCE))
_ALONE = (0x01, *range(0xD0, 0xD9))  # JPEG markers without a length


def image_format(data: bytes | memoryview) -> str:
    """Returns "jpeg", "png", "webp", "gif" or "bmp".

    Raises:
        BadSample: the data are of another format, which the reason names where it is known, or no image.
    """
    head = bytes(data[:_BRANDS])
    for magic, name in _READ.items():
        if head.startswith(magic) and (name != "webp" or head[8:12] == b"WEBP"):
            return name
    for magic, name in _OTHER.items():
        if head.startswith(magic):
            raise BadSample(f"unsupported {name}")
    if head[4:8] == b"ftyp":
        brands = head[8 : int.from_bytes(head[:4], "big")]
        for name, known in (("avif", _AVIF), ("heic", _HEIF)):
            if any(brand in brands for brand in known):
                raise BadSample(f"unsupported {name}")
    raise BadSample("not an image")


def check_scans(data: bytes | memoryview, pixels: int, max_pixels: int) -> None:
    """Raises BadSample for a JPEG whose scans would take minutes: a small file can hold thousands."""
    if not _may_have_scans(data):
        return
    # Inside coded data a 255 is followed by a 0; other segments may hold a marker by chance, but not so many.
    scans = bytes(data).count(bytes((0xFF, _START_OF_SCAN)))
    if scans > _SCANS or scans * pixels > _SCANNED * max_pixels:
        raise BadSample("too many scans")


def _may_have_scans(data: bytes | memoryview) -> bool:
    """Whether a JPEG may have more than one scan, as decoders judge it: by the header of its first.

    A look at the header saves most JPEGs, which have one scan, the search of all their bytes: up to a fifth of the time
    that decoding takes.
    """
    position, components = 2, 0
    while position + 10 <= len(data) and data[position] == 0xFF:
        kind = data[position + 1]
        if kind == _START_OF_SCAN:
            return data[position + 4] < components or not components
        if kind in _PROGRESSIVE:
            return True
        if kind in _FRAMES:
            components = data[position + 9]
        if kind == 0xFF:  # any number of them may come before a marker
            position += 1
        else:
            position += 2 + (0 if kind in _ALONE else int.from_bytes(data[position + 2 : position + 4], "big"))
    return True


def without_stray_bytes(data: bytes | memoryview) -> bytes | None:
    """Returns a JPEG without the bytes between its header's segments that belong to none, as some cameras leave them.

    Decoders skip those bytes, but a strict one cannot tell that from damage. None where there are no such bytes.
    """
    content, parts, position, strays = bytes(data), [b"\xff\xd8"], 2, False
    while True:
        start = content.find(b"\xff", position)
        marker = start
        while marker >= 0 and content[marker : marker + 1] == b"\xff":  # any number of them may come before a marker
            marker += 1
        if start < 0 or marker >= len(content):
            return None
        kind = content[marker]
        if kind == 0:  # a stuffed 255 is no marker: skipped, as decoders do
            position, strays = marker + 1, True
            continue
        strays = strays or start > position
        if kind in (_START_OF_SCAN, _END_OF_IMAGE):
            return b"".join([*parts, content[marker - 1 :]]) if strays else None
        end = marker + 1
        if kind not in _ALONE:
            end += max(2, int.from_bytes(content[end : end + 2], "big"))
        parts.append(content[marker - 1 : end])
        position = end


def check_png(data: bytes | memoryview) -> None:
    """Raises BadSample where the checksum of a chunk of a PNG is wrong, for which Pillow's decoder does not wait.

    Chunks that a decoder may ignore cost no image, nor does an end that is missing: without all pixels it is not
    decoded anyway.
    """
    position, kind = 8, b""
    while kind != b"IEND" and position < len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        kind = bytes(data[position + 4 : position + 8])
        end = position + 8 + length
        ancillary = kind[:1].islower()
        if end + 4 > len(data) and not ancillary:
            raise BadSample("corrupt png")
        crc = int.from_bytes(data[end : end + 4], "big")
        if not ancillary and zlib.crc32(data[position + 4 : end]) != crc:
            raise BadSample("corrupt png")
        position = end + 4
