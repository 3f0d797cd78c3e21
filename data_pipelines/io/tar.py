"""Reads tar headers and groups members into samples, from a file or from any byte range of it.

Written on the format (POSIX.1-2001 pax, ustar and GNU) and not on `tarfile`: samples are read from the middle of an
archive, a million headers are scanned in half a minute, and a truncated or damaged archive gives every sample before
the damage.
"""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

BLOCK = 512
_ZEROS = bytes(BLOCK)
_LONG_HEADER = 2**20  # bytes of a long name or pax header; more is an attack or damage
_DIGITS = 20  # of a number in a pax header; more is an attack or damage
_MOST_ZEROS = 22 * BLOCK  # after an archive: its mark takes two blocks, and is filled up to twenty

Read = Callable[[int, int], bytes]  # (offset, size) -> bytes, fewer at the end of the file


class TarDamage(Exception):
    """The archive cannot be read from `offset` on; `name` is that of the damaged member, where it is known."""

    def __init__(self, reason: str, offset: int, name: str = ""):
        super().__init__(f"{reason} at byte {offset:,}")
        self.reason, self.offset, self.name = reason, offset, name


class TarEnd(TarDamage):
    """The archive does not end as archives do: what precedes `offset` is whole, what should follow may be lost."""


class Member(NamedTuple):
    """A file of an archive: where its headers start, where its data lie, where the next member starts.

    `without` says why its content is not there as one piece ("link", "sparse member"); "" of a regular file.
    """

    name: str
    start: int
    offset: int
    size: int
    end: int
    without: str = ""


@dataclass
class Group:
    """The members of one sample: extension -> member.

    Attributes:
        key: path without extensions, as webdataset has it.
        start: first byte of the first header.
        end: first byte after the last member.
        members: extension in lower case -> member.
        without: extension -> why this member has no content that can be read.
        repeated: an extension occurs twice, so that the content of the sample is not defined.
    """

    key: str
    start: int
    end: int
    members: dict[str, Member] = field(default_factory=dict)
    without: dict[str, str] = field(default_factory=dict)
    repeated: bool = False


def members(read: Read, start: int, end: int, whole: bool = False) -> Iterator[Member]:
    """Yields the files of bytes [start, end) of an archive, links and sparse files among them, up to its end mark.

    Args:
        read: reads the archive.
        start: where a member starts.
        end: where to stop.
        whole: the archive ends at `end`, and its end is to be checked.

    Raises:
        TarDamage: "truncated tail" or "corrupt header", after all members before it were yielded.
        TarEnd: "no end mark" or "early end mark", where `whole` is asked for.
    """
    position, first, name, size, without = start, start, None, None, ""
    while position < end:
        header = read(position, BLOCK)
        if header == _ZEROS:
            # Of a download that broke off the rest may be zeros: up to the end, or up to members that are still there.
            if whole and (end - position > _MOST_ZEROS or any(read(position, end - position))):
                raise TarEnd("early end mark", position)
            return
        if len(header) < BLOCK:
            if not any(header):  # of the end mark
                break
            raise TarDamage("truncated tail", first)
        _verify(header, first)
        kind = header[156:157]
        data, length = position + BLOCK, _number(header[124:136], first)
        if kind == b"S":
            data, without = _after_sparse_headers(read, header, data), "sparse member"
        if kind in b"\0" + b"07" and size is not None:
            length = size
        if kind in (b"1", b"2", b"3", b"4", b"5", b"6"):  # links, devices, folders: no data, whatever the size says
            length, without = 0, "link" if kind in (b"1", b"2") else ""
        after = data + -(-length // BLOCK) * BLOCK
        if data + length > end:
            mine = _name(header) if name is None else name
            raise TarDamage("truncated tail", first, mine if kind in b"\0" + b"07S" else "")
        if kind in (b"L", b"x"):
            if length > _LONG_HEADER:
                raise TarDamage("corrupt header", first)
            content = read(data, length)
            if kind == b"L":
                name = _text(content)
            else:
                name, size, sparse = _pax(content, first, name, size)
                without = "sparse member" if sparse else ""
        elif kind in (b"K", b"g"):  # long link targets and archive-wide remarks say nothing about this member
            pass
        else:
            if kind in (b"\0", b"0", b"7") or without:
                yield Member(_name(header) if name is None else name, first, data, length, min(after, end), without)
            first, name, size, without = after, None, None, ""
        position = after
    if whole:
        raise TarEnd("no end mark", end)


def groups(read: Read, start: int, end: int, whole: bool = False) -> Iterator[Group]:
    """Yields the samples of bytes [start, end): runs of members with the same key.

    The key is the path up to the first dot of its last part. Members without an extension, hidden files, webdataset's
    `__meta__` members and what macOS keeps in `__MACOSX` belong to no sample.

    Arguments as for `members`.

    Raises:
        TarDamage: as `members`. The sample that the damage touches is not yielded; the offset is its start.
        TarEnd: as `members`, after all samples.
    """
    group = None
    try:
        for member in members(read, start, end, whole):
            key, extension = _split(member.name)
            if not key:
                continue
            if group is None or key != group.key:
                if group is not None:
                    yield group
                group = Group(key, member.start, member.end)
            group.repeated |= extension in group.members or extension in group.without
            if member.without:
                group.without[extension] = member.without
            else:
                group.members[extension] = member
            group.end = member.end
    except TarEnd:
        if group is not None:
            yield group
        raise
    except TarDamage as damage:
        if group is None:
            raise
        if _split(damage.name)[0] in ("", group.key):  # perhaps a member of this sample
            raise TarDamage(damage.reason, group.start) from None
        yield group
        raise
    if group is not None:
        yield group


def _split(name: str) -> tuple[str, str]:
    """Returns key and extension of a member; an empty key for one that belongs to no sample."""
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    if not (stem and dot) or (stem.startswith("__") and stem.endswith("__")) or "__MACOSX" in folder.split("/"):
        return "", ""
    return folder + slash + stem, extension.lower()


def is_archive(read: Read) -> bool:
    """Whether the file starts with a header, whatever may be wrong with what follows."""
    try:
        _verify(read(0, BLOCK), 0)
    except TarDamage:
        return False
    return True


def _verify(header: bytes, first: int) -> None:
    # The checksum counts its own field as spaces. Some old writers summed signed bytes.
    stated = _number(header[148:156], first)
    total = _sum(header) - sum(header[148:156]) + 8 * 32
    if stated != total and stated != total - 256 * sum(byte > 127 for byte in header[:148] + header[156:]):
        raise TarDamage("corrupt header", first)


def _sum(header: bytes) -> int:
    # The low half of Adler-32 is 1 + the sum of the bytes, modulo 65,521, which 256 bytes cannot reach: in C, where
    # `sum` over a thousand headers a second is a share of what decoding takes.
    half = BLOCK // 2
    return (zlib.adler32(header[:half]) & 0xFFFF) + (zlib.adler32(header[half:]) & 0xFFFF) - 2


def _number(digits: bytes, first: int) -> int:
    if digits[0] == 0x80:  # base 256, for sizes from 8 GiB
        return int.from_bytes(digits[1:], "big")
    try:
        value = int(digits.split(b"\0", 1)[0].strip() or b"0", 8)
    except ValueError:
        value = -1
    if value < 0:
        raise TarDamage("corrupt header", first)
    return value


def _name(header: bytes) -> str:
    name = _text(header[:100])
    if header[257:263] == b"ustar\0" and header[345]:
        return f"{_text(header[345:500])}/{name}"
    return name


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _after_sparse_headers(read: Read, header: bytes, position: int) -> int:
    """Returns where the data of GNU's old sparse format start: behind as many blocks as its map of holes takes."""
    more = header[482]
    while more:
        block = read(position, BLOCK)
        position, more = position + BLOCK, len(block) == BLOCK and block[504]
    return position


def _pax(content: bytes, first: int, name: str | None, size: int | None) -> tuple[str | None, int | None, bool]:
    """Returns the name and the size that pax headers give the next member, and whether it is sparse."""
    at, sparse = 0, False  # and no slices of the rest, which would cost the square of its length
    while at < len(content):
        digits, space, _ = content[at : at + _DIGITS].partition(b" ")
        if not (space and digits.isdigit() and 0 < int(digits) <= len(content) - at):
            raise TarDamage("corrupt header", first)
        following = at + int(digits)
        keyword, _, value = content[at + len(digits) + 1 : following - 1].partition(b"=")
        sparse = sparse or keyword.startswith(b"GNU.sparse.")
        if keyword == b"GNU.sparse.name" or (keyword == b"path" and not sparse):
            name = value.decode("utf-8", "surrogateescape")
        elif keyword == b"size":
            if not value.isdigit() or len(value) > _DIGITS:
                raise TarDamage("corrupt header", first)
            size = int(value)
        at = following
    return name, size, sparse
