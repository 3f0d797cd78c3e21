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
    """A regular file of an archive: where its headers start, where its data lie, where the next member starts."""

    name: str
    start: int
    offset: int
    size: int
    end: int


@dataclass
class Group:
    """The members of one sample: extension -> member.

    Attributes:
        key: path without extensions, as webdataset has it.
        start: first byte of the first header.
        end: first byte after the last member.
        members: extension in lower case -> member.
        repeated: an extension occurs twice, so that the content of the sample is not defined.
    """

    key: str
    start: int
    end: int
    members: dict[str, Member] = field(default_factory=dict)
    repeated: bool = False


def members(read: Read, start: int, end: int, whole: bool = False) -> Iterator[Member]:
    """Yields the regular files of bytes [start, end) of an archive, up to its end mark.

    Args:
        read: reads the archive.
        start: where a member starts.
        end: where to stop.
        whole: the archive ends at `end`, and its end is to be checked.

    Raises:
        TarDamage: "truncated tail" or "corrupt header", after all members before it were yielded.
        TarEnd: "no end mark" or "early end mark", where `whole` is asked for.
    """
    position, first, name, size = start, start, None, None
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
        if kind in b"\0" + b"07" and size is not None:
            length = size
        if kind in (b"1", b"2", b"3", b"4", b"5", b"6"):  # links, devices, folders: no data, whatever the size says
            length = 0
        after = data + -(-length // BLOCK) * BLOCK
        if data + length > end:
            mine = _name(header) if name is None else name
            raise TarDamage("truncated tail", first, mine if kind in b"\0" + b"07" else "")
        if kind in (b"L", b"x"):
            if length > _LONG_HEADER:
                raise TarDamage("corrupt header", first)
            content = read(data, length)
            if kind == b"L":
                name = _text(content)
            else:
                name, size = _pax(content, first, name, size)
        elif kind in (b"K", b"g"):  # long link targets and archive-wide remarks say nothing about this member
            pass
        else:
            if kind in (b"\0", b"0", b"7"):
                yield Member(_name(header) if name is None else name, first, data, length, min(after, end))
            first, name, size = after, None, None
        position = after
    if whole:
        raise TarEnd("no end mark", end)


def groups(read: Read, start: int, end: int, whole: bool = False) -> Iterator[Group]:
    """Yields the samples of bytes [start, end): runs of members with the same key.

    The key is the path up to the first dot of its last part. Members without an extension, hidden files and
    webdataset's `__meta__` members belong to no sample.

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
            group.repeated |= extension in group.members
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
    if not (stem and dot) or name.startswith("__"):
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


def _pax(content: bytes, first: int, name: str | None, size: int | None) -> tuple[str | None, int | None]:
    at = 0  # and no slices of the rest, which would cost the square of its length
    while at < len(content):
        digits, space, _ = content[at : at + _DIGITS].partition(b" ")
        if not (space and digits.isdigit() and 0 < int(digits) <= len(content) - at):
            raise TarDamage("corrupt header", first)
        following = at + int(digits)
        keyword, _, value = content[at + len(digits) + 1 : following - 1].partition(b"=")
        if keyword == b"path":
            name = value.decode("utf-8", "surrogateescape")
        elif keyword == b"size":
            if not value.isdigit() or len(value) > _DIGITS:
                raise TarDamage("corrupt header", first)
            size = int(value)
        at = following
    return name, size
