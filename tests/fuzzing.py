"""Damaged input for readers: what disks, networks and other programs do to files, drawn from a seed.

A reader may read what is left, or end with one of the project's user errors; any other exception, a hang or memory
without bound is a bug. The fixture `fuzz_cases` says how many seeds a test tries.
"""

import contextlib
import copy
import faulthandler
import random
import signal
import sys
from collections.abc import Callable, Iterator

SECONDS = 10
"""A reader that takes longer for one damaged input hangs."""

_VALUES = (
    *(None, True, False, 0, 1, -1, 2, 7, 0.5, -0.0, 1e300, float("inf"), float("nan")),
    *(2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63, 2**64, -(2**63), 10**30),
    *("", "0", "x", "\x00", "\ud800", "é", "a" * 5000, "../../x", "1e999", "$", "(", "[["),
    *([], {}, [None], [[]], [0], {"": None}, {"type": "x"}, [{}], [""]),
)


def damaged(data: bytes, seed: int) -> bytes:
    """Returns `data` after one to three damages: bytes flipped, cut off, repeated, inserted, or a span of zeros."""
    draw = random.Random(seed)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        data = draw.choice((_flip, _cut, _repeat, _insert, _zero, _number))(data, draw)
    return data


def damaged_json(document: object, seed: int) -> object:
    """Returns a copy of `document` after one to three changes of its values, keys or depth. It may equal `document`."""
    draw = random.Random(seed)
    document = {"": copy.deepcopy(document)}  # the root has a place, too
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        places = list(_places(document))
        if places:
            box, key = draw.choice(places)
            draw.choice((_replace, _replace, _remove, _deepen, _rename, _double))(box, key, draw)
    return document.get("")


def survives(read: Callable[[], object], allowed: tuple[type[Exception], ...], case: object) -> None:
    """Runs `read`, which may raise `allowed` with a message of one line; anything else fails with the `case` named."""
    try:
        with _deadline(case):
            read()
    except allowed as error:
        assert str(error).strip(), f"{case}: an error without a message"
        assert len(str(error)) < 2000, f"{case}: a message of {len(str(error))} characters: {str(error)[:300]}"
    except Exception as error:
        raise AssertionError(f"{case}: {type(error).__name__}: {str(error)[:300]}") from error


@contextlib.contextmanager
def _deadline(case: object) -> Iterator[None]:
    def late(*_):
        raise AssertionError(f"{case}: no answer after {SECONDS} s")

    # Code in C does not see a Python signal handler: the second limit ends the process, with the line it was at.
    faulthandler.dump_traceback_later(3 * SECONDS, exit=True, file=sys.__stderr__)
    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        faulthandler.cancel_dump_traceback_later()


def _span(data: bytes, draw: random.Random) -> tuple[int, int]:
    start = draw.randint(0, len(data))
    return start, min(len(data), start + draw.choice((1, 2, 4, 8, 64, 1024)))


def _flip(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 4, 32)) if data else 0):
        changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _cut(data: bytes, draw: random.Random) -> bytes:
    start, stop = _span(data, draw)
    return draw.choice((data[:start], data[start:], data[:start] + data[stop:]))


def _repeat(data: bytes, draw: random.Random) -> bytes:
    start, stop = _span(data, draw)
    return data[:stop] + data[start:stop] * draw.choice((1, 1, 2, 50)) + data[stop:]


def _insert(data: bytes, draw: random.Random) -> bytes:
    start, _ = _span(data, draw)
    return data[:start] + draw.randbytes(draw.choice((1, 2, 8, 100))) + data[start:]


def _zero(data: bytes, draw: random.Random) -> bytes:
    start, stop = _span(data, draw)
    return data[:start] + bytes(stop - start) + data[stop:]


def _number(data: bytes, draw: random.Random) -> bytes:
    """Lengths and counts of headers: the largest and smallest numbers of each width."""
    start, _ = _span(data, draw)
    width = draw.choice((1, 2, 4, 8))
    number = draw.choice((b"\xff" * width, b"\xff" * (width - 1) + b"\x7f", b"\x80" + bytes(width - 1)))
    return data[:start] + number + data[start + width :]


def _places(box: dict | list) -> Iterator[tuple[dict | list, str | int]]:
    """Every (container, key or index) of a document."""
    stack = [box]
    while stack:
        box = stack.pop()
        for key in box if isinstance(box, dict) else range(len(box)):
            yield box, key
            if isinstance(box[key], dict | list):
                stack.append(box[key])


def _replace(box, key, draw: random.Random) -> None:
    box[key] = copy.deepcopy(draw.choice(_VALUES))


def _remove(box, key, draw: random.Random) -> None:
    del box[key]


def _deepen(box, key, draw: random.Random) -> None:
    inner = box[key]
    for _ in range(draw.choice((1, 1, 2, 300))):  # json.loads reads about 1,000 levels
        inner = [inner] if draw.random() < 0.5 else {"x": inner}
    box[key] = inner


def _rename(box, key, draw: random.Random) -> None:
    if isinstance(box, dict) and key:
        box[draw.choice((key + "s", key.upper(), "", "type", "\x00"))] = box.pop(key)


def _double(box, key, draw: random.Random) -> None:
    if isinstance(box, list):
        box[key:key] = [copy.deepcopy(box[key])] * draw.choice((1, 2, 100))
