"""Reads tar headers and groups members into samples, from a file or from any byte range of it.

Written on the format (POSIX.1-2001 pax, ustar and GNU) and not on `tarfile`: samples are read from the middle of an
archive, a million headers are scanned in half a minute, and a truncated or damaged archive gives every sample before
the damage.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

BLOCK = 512
_ZEROS = bytes(BLOCK)
_LONG_HEADER = 2**20  # bytes of a long name or pax header; more is an attack or damage

Read = Callable[[int, int], bytes]  # (offset, size) -> bytes, fewer at the end of the file


class TarDamage(Exception):
    """The archive cannot be read from `offset` on."""

    def __init__(self, reason: str, offset: int):
        super().__init__(f"{reason} at byte {offset:,}")
        self.reason, self.offset = reason, offset


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


def members(read: Read, start: int, end: int) -> Iterator[Member]:
    """Yields the regular files of bytes [start, end) of an archive, up to its end mark.

    Raises:
        TarDamage: "truncated tail" or "corrupt header", after all members before it were yielded.
    """
    position, first, name, size = start, start, None, None
    while position < end:
        header = read(position, BLOCK)
        if header == _ZEROS:
            return
        if len(header) < BLOCK:
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
            raise TarDamage("truncated tail", first)
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


def groups(read: Read, start: int, end: int) -> Iterator[Group]:
    """Yields the samples of bytes [start, end): runs of members with the same key.

    The key is the path up to the first dot of its last part. Members without an extension, hidden files and
    webdataset's `__meta__` members belong to no sample.

    Raises:
        TarDamage: as `members`. The sample that the damage touches is not yielded; the offset is its start.
    """
    group = None
    try:
        for member in members(read, start, end):
            folder, slash, base = member.name.rpartition("/")
            stem, dot, extension = base.partition(".")
            if not (stem and dot) or member.name.startswith("__"):
                continue
            key, extension = folder + slash + stem, extension.lower()
            if group is None or key != group.key:
                if group is not None:
                    yield group
                group = Group(key, member.start, member.end)
            group.repeated |= extension in group.members
            group.members[extension] = member
            group.end = member.end
    except TarDamage as damage:
        raise TarDamage(damage.reason, group.start if group else damage.offset) from None
    if group is not None:
        yield group


def _verify(header: bytes, first: int) -> None:
    # The checksum counts its own field as spaces. Some old writers summed signed bytes.
    stated = _number(header[148:156], first)
    total = sum(header) - sum(header[148:156]) + 8 * 32
    if stated != total and stated != total - 256 * sum(byte > 127 for byte in header[:148] + header[156:]):
        raise TarDamage("corrupt header", first)


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
    while content:
        length, space, _ = content.partition(b" ")
        if not (space and length.isdigit() and 0 < int(length) <= len(content)):
            raise TarDamage("corrupt header", first)
        keyword, _, value = content[len(length) + 1 : int(length) - 1].partition(b"=")
        if keyword == b"path":
            name = value.decode("utf-8", "surrogateescape")
        elif keyword == b"size":
            if not value.isdigit():
                raise TarDamage("corrupt header", first)
            size = int(value)
        content = content[int(length) :]
    return name, size
