"""The two ways in which data can be wrong: a sample that is left out and counted, and a fault that ends the run."""

import difflib
from collections.abc import Iterable
from typing import NamedTuple


class DataError(ValueError):
    """The data, or the configuration of the data, cannot be used; the message says what to do."""


class BadSample(Exception):
    """One sample cannot be used. It is left out or replaced, and counted under its reason.

    Attributes:
        reason: short, from a small set ("empty caption", "corrupt jpeg"), so that it can name a counter.
    """

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


class Fault(NamedTuple):
    """A sample that is not used, and why."""

    shard: str
    key: str
    reason: str


class Replaced(NamedTuple):
    """A row of a batch that shows another sample than it should.

    Attributes:
        source: where the row comes from.
        faults: of the sample meant for it, then of substitutes that failed too.
    """

    source: str
    faults: list[Fault]


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """Returns `"; did you mean 'x'?"` for the option closest to `name`, or an empty string."""
    close = difflib.get_close_matches(name, list(options), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
