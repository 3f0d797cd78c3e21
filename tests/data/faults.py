"""Faults to inject: damaged samples, damaged archives and rows that name no image, with what is to come of them."""

import io
import json
import struct
import tarfile
import zlib
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image
from tiny_shards import encode, sample

BLOCK = 512
CUTS = (0.02, 0.1, 0.25, 0.4, 0.5, 0.65, 0.8, 0.9, 0.97)
EITHER = "either"  # nobody can tell: such a format has no checksums
FINE = ""


class SampleFault(NamedTuple):
    """A sample with a fault.

    Attributes:
        kind: what is wrong, for counting.
        members: extension -> content; "{caption}" in a text is replaced by the caption of the sample.
        reason: under which it is to be counted; FINE if it is to arrive, EITHER if it may.
        indexed: the index sees it, and not only the decoder.
        name: of the sample; "" gives it a plain one.
    """

    kind: str
    members: dict[str, bytes]
    reason: str
    indexed: bool = False
    name: str = ""


class ArchiveFault(NamedTuple):
    """A damaged archive: its content, samples that still arrive, reasons of others, and the reason of the damage."""

    kind: str
    content: bytes
    usable: list[int]
    skipped: list[str]
    reason: str


@cache
def images() -> dict[str, bytes]:
    """An image of each format, by the names that reasons use."""
    pixels = np.random.default_rng(7).integers(0, 256, (10, 12, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels).resize((60, 50), Image.Resampling.BICUBIC)

    def save(name: str, mode: str = "RGB", **options) -> bytes:
        buffer = io.BytesIO()
        picture.convert(mode).save(buffer, name, **options)
        return buffer.getvalue()

    return {
        "jpeg": save("JPEG"), "jpeg progressive": save("JPEG", progressive=True), "jpeg grey": save("JPEG", "L"),
        "jpeg cmyk": save("JPEG", "CMYK"), "png": save("PNG"), "png palette": save("PNG", "P"),
        "png rgba": save("PNG", "RGBA"), "webp": save("WEBP"), "webp lossless": save("WEBP", lossless=True),
        "gif": save("GIF"), "bmp": save("BMP"),
    }  # fmt: skip


def image_faults() -> Iterator[SampleFault]:
    """Samples whose images cannot be decoded, or look as if they could not."""
    extensions = dict(jpeg="jpg", gif="gif", bmp="bmp", webp="webp", png="png")
    for name, data in images().items():
        kind = name.split()[0]
        bad = lambda what, content, reason, kind=kind: SampleFault(what, {extensions[kind]: content}, reason)
        ends = sorted({max(1, int(len(data) * cut)) for cut in CUTS} | {1, 7, 20, len(data) - 20})
        for end in ends:
            magic = dict(jpeg=3, png=8, webp=12, gif=4, bmp=2)[kind]
            reason = "not an image" if end < magic else f"corrupt {kind}"
            yield bad("truncated image", data[:end], reason)
            told = kind in ("jpeg", "png") or end < 20
            yield bad("zero tail of an image", data[:end] + bytes(len(data) - end), reason if told else EITHER)
        if kind == "png":
            for place in range(8, len(data), len(data) // 12):
                flipped = data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :]
                yield bad("flipped bit", flipped, "corrupt png")
        yield bad("trailing garbage", data + b"\0garbage" * 9, FINE)
        for extension in ("jpg", "png", "webp", "jpeg", "gif", "bmp"):
            if extension != extensions[kind]:
                yield SampleFault("wrong extension", {extension: data}, FINE)
    for extension in ("jpg", "jpeg", "png", "webp", "gif", "bmp", "PNG"):
        for content in _NO_IMAGES:
            yield SampleFault("no image at all", {extension: content}, "not an image")
        yield SampleFault("empty member", {extension: b""}, "empty image", indexed=True)
    for content in _bombs():
        yield SampleFault("decompression bomb", {"png": content}, "image too large")
    yield SampleFault("decompression bomb", {"png": one_bit_png(60_000, 1000, b"")}, "corrupt png")
    texts = {zlib.compress(bytes(2**26), 9): "png metadata too large", b"\0" * 9: "corrupt png"}
    for text, reason in texts.items():
        yield SampleFault("decompression bomb", {"png": one_bit_png(3, 3, b"", (b"zTXt", b"k\0\0" + text))}, reason)


_NO_IMAGES = (
    b"<!DOCTYPE html><html><body>403 Forbidden</body></html>",
    b"thing 5, a text that someone named image",
    b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41" + bytes(100),
    b'{"error": "not found"}',
    b"\x1f\x8b\x08\0" + bytes(60),
    b"%PDF-1.7\n" + bytes(60),
    b"RIFF\x24\0\0\0WAVEfmt " + bytes(60),
    b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    bytes(700),
    b"\xff\xd8",
)


def one_bit_png(width: int, height: int, pixels: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of 1 bit per pixel that says what it is told to say, with right checksums."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(pixels, 9)), (b"IEND", b"")]
    packed = (
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def _bombs() -> Iterator[bytes]:
    """Images that claim billions of pixels."""
    yield one_bit_png(50_000, 50_000, bytes(10**6))
    yield one_bit_png(2**31 - 1, 2**31 - 1, b"")
    yield one_bit_png(10**9, 1, b"")
    jpeg = images()["jpeg"]
    frame = jpeg.index(b"\xff\xc0")
    for height, width in ((65_500, 65_500), (65_500, 1100)):
        yield jpeg[: frame + 5] + struct.pack(">HH", height, width) + jpeg[frame + 9 :]
    gif, bmp = images()["gif"], images()["bmp"]
    yield gif[:6] + struct.pack("<HH", 65_535, 65_535) + gif[10:]
    yield bmp[:18] + struct.pack("<ii", 60_000, 60_000) + bmp[26:]
    chunk = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (16_383).to_bytes(3, "little") * 2
    body = b"WEBP" + chunk + images()["webp"][12:]
    yield b"RIFF" + struct.pack("<I", len(body)) + body


def text_faults() -> Iterator[SampleFault]:
    """Samples whose captions, from the txt member, cannot be used, or look as if they could not."""
    image = images()["png"]
    bad = lambda kind, text, reason: SampleFault(kind, dict(png=image, txt=text), reason, indexed=True)
    for text in (b"", b" \n\t ", b"\xef\xbb\xbf", "\u3000\u00a0".encode()):
        yield bad("empty member", text, "empty caption")
    for text in (b"\xff\xfe\xfa", b"thing \xe4", b"\xc3", b"a\xed\xa0\x80b", b"\xf8\x88\x80\x80\x80", b"\x80abc",
                 "thing".encode("utf-16"), b"\xc0\xaf"):  # fmt: skip
        yield bad("bad UTF-8", text, "bad text")
    for text in (bytes(9), b"thing 5" + bytes(40), b"\0thing"):
        yield bad("zero tail of a text", text, "bad text")
    yield bad("text bomb", b"a" * (2**22 + 1), "txt too large")
    yield SampleFault("missing member", dict(png=image, json=b"{}"), "no caption", indexed=True)
    yield SampleFault("missing member", dict(png=image, TXT2=b"a"), "no caption", indexed=True)
    yield SampleFault("missing member", dict(txt=b"a"), "no image", indexed=True)
    yield SampleFault("missing member", {"txt": b"a", "json": b"{}", "mp4": b"a"}, "no image", indexed=True)
    yield SampleFault("missing member", {"txt": b"a", "seg.png": image}, "no image", indexed=True)
    for text in (b"\xef\xbb\xbf{caption}", b"\r\n {caption}\n\n"):
        yield SampleFault("odd text", dict(png=image, txt=text), FINE)
    for broken in (b"", b"{", b"[1]", b"\xff", b"nan"):  # no caption comes from it here
        yield SampleFault("unused json", dict(png=image, txt=b"{caption}", json=broken), FINE)


def json_faults() -> Iterator[SampleFault]:
    """Samples whose captions, from the template "{label}", cannot be made, or look as if they could not."""
    image = images()["png"]
    bad = lambda kind, text, reason: SampleFault(kind, dict(png=image, json=text), reason, indexed=True)
    invalid = (
        b"", b"{", b"{broken}", b"{'label': 1}", b'{"label": "a"', b'{"label": "a",}', b"<html></html>", b"\0" * 9,
        b'{"label": "a"}}', b'{"label": 01}', b'{"label": "a\nb"}', b"undefined", b'{"label": "a"}' + bytes(9),
    )  # fmt: skip
    for text in invalid:
        yield bad("invalid json", text, "bad json")
    for text in (b"[]", b"1", b'"label"', b"null", b"true", b'[{"label": "a"}]', b"NaN"):
        yield bad("json that is no object", text, "bad json")
    for text in (b'{"label": "\xff"}', b'{"label": "\xc3"}', '{"label": "a"}'.encode("utf-16")):
        yield bad("bad UTF-8", text, "bad json")
    for value in ("NaN", "null", '""', '" "', "[]", '[""]', "[null]", "{}", "[NaN]", '{"label": "a"}', "[[1]]"):
        yield bad("no value", b'{"label": %s}' % value.encode(), "empty caption")
    yield bad("no value", b"{}", "empty caption")
    for depth in (5000, 10**5):
        yield bad("json bomb", b'{"label": ' + b"[" * depth + b"]" * depth + b"}", "bad json")
        yield bad("json bomb", b'{"label": ' * depth + b"1" + b"}" * depth, "bad json")
    yield bad("json bomb", b'{"a": 1, "label": ' + b"9" * 9000 + b"}", "bad json")
    yield bad("json bomb", b'{"label": "' + b"a" * 2**22 + b'"}', "json too large")
    yield SampleFault("missing member", dict(png=image), "no caption", indexed=True)
    for value in ('"{caption}"', '["{caption}"]', '[null, "{caption}", NaN]', '" {caption} "'):
        yield SampleFault("odd json", dict(png=image, json=b'{"label": %s}' % value.encode()), FINE)
    odd = b'{"label": 1, "score": NaN, "far": -Infinity, "half": "\\ud800", "label": "{caption}"}'
    yield SampleFault("odd json", dict(png=image, json=odd), FINE)
    deep = b'{"deep": ' + b'{"a": ' * 300 + b"1" + b"}" * 300 + b', "label": "{caption}"}'
    yield SampleFault("json bomb", dict(png=image, json=deep), FINE)


NAMES = (
    "../../etc/passwd", "/etc/cron", "..//x", "a/../b", "./c", "C:\\windows\\a", "\\\\host\\share", "~root", "$HOME",
    "`id`", "a b", " lead", "trail ", "tab\tkey", "line\nbreak", "carriage\r", "bell\a", "esc\x1b[31m", "quote\"'",
    "percent%s%n", "{0}{label}", "<script>alert(1)</script>", "a&b=c?d#e", "\u202eright", "zero\u200bwidth", "ä" * 40,
    "😀", "e\u0301", "\udcff\udcfe", "n" * 99, "folder/" * 15 + "k", "x" * 250, "p/" * 2000 + "deep", "-rf", "--help",
    "con", "nul", "0", "_", "*", "?", "[a-z]", "|cat", ";ls", "http://host/x", "s3://bucket/x", "a:b", "a,b", "NaN",
    "null", "-1e999",
)  # fmt: skip


def name_faults() -> Iterator[SampleFault]:
    """Samples whose names are hostile: they are names and nothing else."""
    for name in NAMES:
        yield SampleFault("hostile name", dict(png=images()["png"]), FINE, name=name)
        yield SampleFault("hostile name", dict(png=b"<html>"), "not an image", name=name + "-bad")


NAMELESS = (
    "",
    ".",
    "..",
    "...",
    "/",
    "//",
    ".png",
    "a/.png",
    "..png",
    "README",
    "a/b/",
    "__meta__.png",
    "__MACOSX/b.png",
    "\n",
)
KINDS = (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)


def member(name: str, content: bytes, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    """A member with its headers and padding, as the standard library writes it."""
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(content), kind, link
    info.devmajor, info.devminor = 1, 3
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape") + padded(content)


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % BLOCK)


def header(name: bytes, size: bytes, kind: bytes = b"0") -> bytes:
    """A header whose checksum is right, whatever it says."""
    raw = bytearray(BLOCK)
    raw[: len(name)], raw[124 : 124 + len(size)], raw[156:157], raw[257:263] = name, size, kind, b"ustar\0"
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    return bytes(raw)


class _Part(NamedTuple):
    sample: int
    extension: str
    start: int
    data_end: int
    end: int


def archive(numbers: range) -> tuple[bytes, list[_Part]]:
    """A whole archive of samples with image, text and json, and where everything lies."""
    content, parts = b"", []
    for number in numbers:
        for extension, data in sample(number, "png").items():
            start = len(content)
            content += member(f"{number:05d}.{extension}", data)
            data_end = start + BLOCK + len(data)
            parts.append(_Part(number, extension, start, data_end, len(content)))
    return content, parts


def _end(content: bytes) -> bytes:
    return content + bytes(2 * BLOCK)


def truncated(numbers: range) -> Iterator[ArchiveFault]:
    """Archives cut at every kind of place."""
    content, parts = archive(numbers)
    whole = _end(content)
    places = {0, 1, 100, 511, 512, len(content), len(content) + 100, len(content) + 512}
    for part in parts:
        places |= {part.start, part.start + 1, part.start + 300, part.start + BLOCK, part.start + BLOCK + 9}
        places |= {part.data_end - 1, part.data_end, part.end - 1}
    for cut in sorted(places):
        usable, skipped, reason = _after_cut(parts, numbers, cut)
        yield ArchiveFault("truncated tar", whole[:cut], usable, skipped, reason)


def _after_cut(parts: list[_Part], numbers: range, cut: int) -> tuple[list[int], list[str], str]:
    """What is left of an archive: whole samples, and that one too whose members after the caption are gone."""
    first = next((part for part in parts if part.data_end > cut), None)
    if first is None:  # a cut in the padding or in the end mark, of which one block is enough
        return list(numbers), [], FINE if cut >= parts[-1].end + BLOCK else "no end mark"
    before = [number for number in numbers if number < first.sample]
    if cut <= first.start:  # between members, or in the padding before one
        kept = [first.sample] if first.extension == "json" else []
        return before + kept, ["no caption"] * (first.extension == "txt"), "no end mark"
    if cut >= first.start + BLOCK:  # its name is known
        return before, [], "truncated tail"
    return before[:-1] if first.extension == "png" else before, [], "truncated tail"


def zeroed(numbers: range) -> Iterator[ArchiveFault]:
    """Archives whose last part, or a part in the middle, was never written."""
    content, parts = archive(numbers)
    for part in parts[4::2]:
        for place in (part.start, part.data_end - 20):
            if place == part.start:  # what comes after is lost with the headers, and what came before is whole
                usable, skipped, _ = _after_cut(parts, numbers, place)
                size = max(len(content), place + 12 * 1024)
                yield ArchiveFault(
                    "zero tail of a tar", content[:place].ljust(size, b"\0"), usable, skipped, "early end mark"
                )
                hole = content[:place] + bytes(4096)
                rest = content[len(hole) :] or b"x" * BLOCK
                yield ArchiveFault("zero hole in a tar", hole + rest, usable, skipped, "early end mark")


def damaged_headers(numbers: range) -> Iterator[ArchiveFault]:
    """Archives in which a header is no header any more, or lies about its size."""
    content, parts = archive(numbers)
    for part in parts[:7]:
        before = [number for number in numbers if number < part.sample]
        unsure = before[:-1] if part.extension == "png" else before  # a header without a name may be of any sample
        after = content[part.start + BLOCK :]
        name = f"{part.sample:05d}.{part.extension}".encode()
        if part is not parts[0]:  # a file that does not start with a header is not a tar, and ends the run
            for place in (0, 60, 126, 150, 300, 511):
                raw = bytearray(content[part.start : part.start + BLOCK])
                raw[place] ^= 0x41
                damage = content[: part.start] + bytes(raw) + after
                yield ArchiveFault("damaged header", _end(damage), unsure, [], "corrupt header")
            for junk in (b"\xff" * BLOCK, b"<html>".ljust(BLOCK), b"\1" + bytes(BLOCK - 1)):
                yield ArchiveFault(
                    "damaged header", _end(content[: part.start] + junk + after), unsure, [], "corrupt header"
                )
        sizes = [b"\x80" + b"\xff" * 11, b"\x80" + (2**40).to_bytes(11, "big"), b"77777777777\0", b"00000777777\0"]
        for size in sizes:
            damage = content[: part.start] + header(name, size) + after
            yield ArchiveFault("huge size", _end(damage), before, [], "truncated tail")
        for size in (b"\xff" * 12, b"\xff" * 11 + b"\x80", b"-0000000001\0", b"9" * 11, b"0x10\0", b"\xfe" + bytes(11)):
            damage = content[: part.start] + header(name, size) + after
            yield ArchiveFault("impossible size", _end(damage), unsure, [], "corrupt header")


def malformed_extensions(numbers: range) -> Iterator[ArchiveFault]:
    """Archives with malformed pax headers and long names in front of a new sample."""
    content, parts = archive(numbers)
    for part in (parts[0], parts[3], parts[9]):
        unsure = [number for number in numbers if number < part.sample][:-1]
        for record in _PAX:
            damage = header(b"pax", b"%011o\0" % len(record), b"x") + padded(record)
            damaged = content[: part.start] + damage + content[part.start :]
            yield ArchiveFault("malformed pax header", _end(damaged), unsure, [], "corrupt header")
        for kind in (b"x", b"L"):
            huge = header(b"long", b"%011o\0" % 2**21, kind) + bytes(2**21)
            damaged = content[: part.start] + huge + content[part.start :]
            yield ArchiveFault("huge name", _end(damaged), unsure, [], "corrupt header")


_PAX = (
    b"9" * 5000 + b" path=x\n", b"0 path=x\n", b"-1 path=x\n", b"99 path=x\n", b"path=x\n", b"abc", b" ", b"12", b"12 ",
    b"1_2 path=abc\n", b"0x12 path=x\n", b"\xd9\xa1\xd9\xa2 path=x\n", b"12 size=-99\n", b"12 size=1e9\n", b"9 size=\n",
    b"14 size=0x999\n", b"5010 size=" + b"9" * 4999 + b"\n", b"12 path=abc\n\0",
)  # fmt: skip


def repeated_members(numbers: range) -> Iterator[ArchiveFault]:
    """Archives in which a sample has two members of one kind, equal ones or not: which is meant, no one can say."""
    content, parts = archive(numbers)
    for part in parts:
        others = [number for number in numbers if number != part.sample]
        same = content[part.start : part.end]
        for again in (same, member(f"{part.sample:05d}.{part.extension}", b"other"), same * 3):
            for place in (part.start, max(other.end for other in parts if other.sample == part.sample)):
                damage = content[:place] + again + content[place:]
                yield ArchiveFault("repeated member", _end(damage), others, ["repeated member"], FINE)


def harmless_members() -> bytes:
    """Members that belong to no sample: without a name, devices and folders of hostile names."""
    content = b"".join(member(name, b"x" * 20) for name in NAMELESS)
    for kind in KINDS:
        for name in ("../../../tmp/link.png", "/dev/sda.png", "00000.txt"):
            content += member(name, b"", kind, "/etc/passwd")
    return content + member("pax", padded(b"30 comment=" + b"x" * 18 + b"\n"), b"g")


def rows() -> Iterator[tuple[str, str]]:
    """Values of the image column that name no image, and the reason under which the row is to be counted."""
    missing = (
        "gone.png", "a\0b.png", "x" * 5000, "y" * 300 + ".png", "folder", "list.jsonl/a.png", "\ud800.png", "../none",
        "/nonexistent/a.png", "loop.png", "good.png/", " good.png", "good.png\n",
    )  # fmt: skip
    yield from ((value, "no image") for value in missing)
    yield "", "no image"
    yield "empty.png", "empty image"
    for value in ("ftp://host/a.png", "javascript://a", "gcs://bucket/a.png", "pipe://cat"):
        yield value, "unsupported url"
    yield "page.png", "not an image"
    yield "cut.png", "corrupt png"


LINES = (
    (b"{", "bad json"), (b"[1]", "bad json"), (b"nan", "bad json"), (b'{"image": "good.png"', "bad json"),
    (b'{"image": "good.png", "caption": "\xff"}', "bad text"), (b'{"image": "good.png", "caption": NaN}', "no caption"),
    (b'{"image": "good.png"}', "no caption"), (b'{"image": "good.png", "caption": null}', "no caption"),
    (b'{"image": "good.png", "caption": ""}', "empty caption"), (b'{"image": null, "caption": "a"}', "no image"),
    (b'{"image": 5, "caption": "a"}', "no image"), (b'{"image": ["good.png"], "caption": "a"}', "no image"),
    (b'{"image": {}, "caption": "a"}', "no image"), (b'{"caption": "a"}', "no image"), (b"{}", "no caption"),
    (b"[" * 9000, "bad json"), (b'{"a": ' * 9000, "bad json"), (b"9" * 9000, "bad json"), (b"\0" * 40, "bad json"),
)  # fmt: skip


REMOTE = dict(  # fault of a server -> reason of an image that it never gives
    **dict.fromkeys(("400", "408", "409", "418", "429", "451", "500", "502", "503", "504"), "fetch failed"),
    **dict.fromkeys(("404", "410"), "no image"),
    **dict.fromkeys(("401", "403"), "forbidden image"),
    **dict.fromkeys(("half", "short", "reset", "drop", "hang", "drip", "flood", "shifted"), "fetch failed"),
    plain=FINE,
)
PASSING = ("408", "429", "500", "502", "503", "504", "half", "short", "reset", "drop", "hang")  # tried again
MID_RUN = dict(  # fault of a server from the middle of a run on -> how the run ends
    **dict.fromkeys(("404", "410"), "does not exist"),
    **dict.fromkeys(("401", "403"), "is forbidden"),
    **dict.fromkeys(("400", "418", "451"), "cannot be accessed"),
    **dict.fromkeys(("429", "500", "503", "half", "short", "reset", "drop", "hang", "drip"), "gave up on"),
    plain="ignores ranges", flood="ignores ranges", shifted="sent other bytes",
)  # fmt: skip


def line(image: str, caption: str) -> bytes:
    return json.dumps(dict(image=image, caption=caption)).encode()


def small(number: int) -> bytes:
    return encode(number, "png", (12, 10))
