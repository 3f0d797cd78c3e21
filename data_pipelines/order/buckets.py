"""Length buckets: parts of a source whose captions are about equally long, so that batches need little padding."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.sources.base import Source
from data_pipelines.sources.selected import Selected


class Bucket(NamedTuple):
    """A part of a source.

    Attributes:
        source: the part.
        length: tokens that its longest caption needs at most.
        share: of the samples of the whole source.
    """

    source: Source
    length: int
    share: float


def check_buckets(lengths: Sequence[int], longest: int) -> None:
    """Raises DataError if `data.text.buckets` are no rising lengths below `longest`."""
    whole = all(isinstance(length, int) and not isinstance(length, bool) for length in lengths)
    if not whole or list(lengths) != sorted(set(lengths)) or not all(3 <= length < longest for length in lengths):
        raise DataError(
            f"data.text.buckets is {tuple(lengths)}; expected rising lengths from 3 tokens to below "
            f"data.text.length={longest}, which is the last bucket"
        )


def split(source: Source, lengths: Sequence[int], longest: int, lanes: int) -> list[Bucket]:
    """Divides a source by the lengths of its captions.

    Args:
        source: with `lengths`.
        lengths: tokens of all buckets but the last, rising; () leaves the source whole.
        longest: tokens of the last bucket.
        lanes: a bucket with fewer samples is joined to the next longer one (the last to the one before).

    Returns:
        Buckets that together hold every sample once, the shortest first.
    """
    if not lengths:
        return [Bucket(source, longest, 1.0)]
    bounds = np.array([*lengths, longest])
    number = np.searchsorted(bounds, source.lengths)  # the first bucket that is long enough
    for i in range(len(bounds) - 1):
        if np.count_nonzero(number == i) < lanes:
            number[number == i] = i + 1
    *_, last = np.flatnonzero(np.bincount(number, minlength=len(bounds)))
    if last and np.count_nonzero(number == last) < lanes and (number < last).any():
        number[number == number[number < last].max()] = last
    buckets = []
    for i in np.unique(number):
        here, length = number == i, int(bounds[i])
        part = Selected(source, here, name=f"{source.name}/{length}")
        buckets.append(Bucket(part, length, part.samples / len(number)))
    return buckets
