"""Which encoding a text that is no UTF-8 may have, for messages: a guess by its first bytes."""

import re

from data_pipelines.errors import DataError
from data_pipelines.io.urls import basename, printable

_ENOUGH = 3  # lines that are no UTF-8, where no line with other characters than ASCII is
_HIGH = re.compile(rb"[\x80-\xff]+")
_PAIR = re.compile(rb"[\x81-\xfe][\x40-\xfe]")
_LEVEL_1 = re.compile(rb"[\xa1-\xa3\xb0-\xd7][\xa1-\xfe]")  # GB 2312: punctuation, and the 3,755 usual characters
_HANGUL = re.compile(rb"[\xa1-\xa3\xb0-\xc8][\xa1-\xfe]")  # KS X 1001: punctuation and syllables
_KANA = re.compile(rb"[\x81-\x83][\x40-\xfe]")  # Shift JIS: punctuation and kana


def check_utf8(path: str, head: bytes) -> None:
    """Raises DataError, which names the likely encoding, for a list of which the first bytes are no UTF-8."""
    if not_utf8(head):
        found, name = guess(head), basename(path)
        raise DataError(
            f"{printable(path)} is not UTF-8{f', it looks like {found}' if found else ''}, and lists are read as UTF-8"
            f"; convert it: iconv -f {found or 'ENCODING'} -t UTF-8 {name} > utf8_{name}"
        )


def not_utf8(head: bytes) -> bool:
    """Whether a text has another encoding than UTF-8, and not just a few damaged lines.

    Args:
        head: its first bytes; the last line may be cut.
    """
    lines = head.splitlines()
    if len(lines) > 1 and not head.endswith((b"\n", b"\r")):
        lines.pop()
    other = [line for line in lines if not line.isascii()]
    damaged = [line for line in other if not _is_utf8(line)]
    if not damaged or len(damaged) < len(other):
        return False
    return len(damaged) >= _ENOUGH or 2 * len(damaged) > len(lines)


def guess(head: bytes) -> str:
    """Returns the name that `iconv` has for the likely encoding of a text that is no UTF-8; "" where none is likely."""
    runs = _HIGH.findall(head)
    if not runs:
        return ""
    if sum(len(run) == 1 for run in runs) > 0.6 * len(runs):  # accents between letters
        return "WINDOWS-1252"
    pairs = _PAIR.findall(head)
    share = lambda pattern: sum(pattern.fullmatch(pair) is not None for pair in pairs) / max(len(pairs), 1)
    if share(_HANGUL) > 0.95 and _decodes(head, "euc_kr"):
        return "EUC-KR"
    if share(_LEVEL_1) > 0.8 and _decodes(head, "gb18030"):
        return "GB18030"
    if share(_KANA) > 0.3 and _decodes(head, "cp932"):
        return "SHIFT_JIS"
    names = dict(big5hkscs="BIG5-HKSCS", gb18030="GB18030", cp1252="WINDOWS-1252")
    return next((name for codec, name in names.items() if _decodes(head, codec)), "")


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _decodes(head: bytes, codec: str) -> bool:
    """Whether a text that may be cut at its end has an encoding."""
    for cut in range(4):
        try:
            head[: len(head) - cut].decode(codec)
        except UnicodeDecodeError:
            continue
        return True
    return False
