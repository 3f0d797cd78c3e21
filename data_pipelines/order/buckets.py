"""Length buckets: parts of a source whose captions are about equally long, so that batches need little padding."""

from typing import NamedTuple

import numpy as np

from data_pipelines.modalities import Text
from data_pipelines.sources.base import Source
from data_pipelines.sources.selected import Selected


class Bucket(NamedTuple):
    """A part of a source.

    Attributes:
        source: the part.
        length: tokens that its longest caption needs at most; 0 where the source is whole.
        share: of the samples of the whole source.
    """

    source: Source
    length: int
    share: float


def split(source: Source, text: Text | None, lanes: int) -> list[Bucket]:
    """Divides a source by the lengths of its captions.

    Args:
        source: with `lengths`.
        text: the input whose `buckets` are the tokens of all buckets but the last, which has its `length`; None leaves
            the source whole.
        lanes: a bucket with fewer samples is joined to the next longer one (the last to the one before).

    Returns:
        Buckets that together hold every sample once, the shortest first.
    """
    if text is None:
        return [Bucket(source, 0, 1.0)]
    bounds = np.array([*text.buckets, text.length])
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
