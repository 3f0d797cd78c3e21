"""A held-out part of data: decided sample by sample, by what the sample shows, so that copies are on one side."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from data_pipelines.errors import DataError
from data_pipelines.io.storage import join
from data_pipelines.modalities import Image
from data_pipelines.prepare.building import Job, build
from data_pipelines.sources import Source
from data_pipelines.sources.measures import likeness
from data_pipelines.sources.selected import Selected

_BITS = 3  # in which the hashes of copies differ at most
_NEIGHBOURS = 4096  # of a hash that are compared with it, of those that have a band in common
TRAIN, HELD_OUT = "train", "held_out"  # folders of the two parts


class Part(NamedTuple):
    """One of the two parts: its folder, a path or url, and the manifest of its build."""

    out: str
    manifest: dict[str, Any]


def held_out(source: Source, share: float) -> np.ndarray:
    """Returns which samples are held out, bool [samples].

    Images are alike if at most `_BITS` of the 64 bits of their hashes (`measures.ImageHash`) differ: of 800 drawings of
    three quarters the size, as JPEGs of quality 80, 97 % do. What is alike, directly or through others, is on one side,
    which the hashes alone decide: with other samples, or in another order, it is the same but for those that a new
    sample links. Texts alone are alike if they are equal.

    Args:
        source: the whole; all its images are read.
        share: of the samples that is held out, about, between 0 and 1.

    Raises:
        DataError: all samples are on one side.
    """
    inputs = source.rules.inputs
    kind = "image" if inputs.of_type(Image.type) else "caption"
    measure, images = likeness(kind, inputs), kind == "image"
    # Not the column of an index, which has other measures.
    hashes, place = np.unique(Source.column(source, measure), return_inverse=True)
    groups = linked(hashes) if images else np.arange(len(hashes))
    lot = np.full(len(hashes), 2**53, np.uint64)
    np.minimum.at(lot, groups, _mixed(hashes))  # of a group: that of its member with the lowest
    held = (lot[groups] < np.uint64(round(share * 2**53)))[place]
    if not held.any() or held.all():
        side = "none" if not held.any() else "each"
        raise DataError(
            f"of {len(held):,} samples {side} is held out; name another share than {share:.3g}, or give more samples"
        )
    return held


def linked(hashes: np.ndarray) -> np.ndarray:
    """Returns the group of each hash: those that differ in at most `_BITS` bits, directly or through others, are one.

    Two such hashes have one of `_BITS` + 1 bands of bits in common (Manku et al. 2007); only those are compared.

    Args:
        hashes: uint64 [n], each there once.

    Returns:
        int [n], numbers from 0.
    """
    width, pairs = 64 // (_BITS + 1), [np.zeros((0, 2), np.int64)]
    for band in range(_BITS + 1):
        key = (hashes >> np.uint64(width * band)) & np.uint64(2**width - 1)
        order = np.lexsort((hashes, key))
        rows = np.arange(len(order))
        for apart in range(1, _NEIGHBOURS):
            rows = rows[rows + apart < len(order)]
            rows = rows[key[order[rows]] == key[order[rows + apart]]]
            if not len(rows):
                break
            both = np.stack([order[rows], order[rows + apart]], axis=1)
            pairs.append(both[np.bitwise_count(hashes[both[:, 0]] ^ hashes[both[:, 1]]) <= _BITS])
    first, second = np.concatenate(pairs).T
    links = coo_array((np.ones(len(first), bool), (first, second)), shape=(len(hashes), len(hashes)))
    return connected_components(links, directed=False)[1]


def build_parts(
    source: Source,
    out: str,
    held: np.ndarray,
    plan: Callable[[Source, str], Job],
    options: Mapping[str, Any],
    **how: Any,
) -> list[Part]:
    """Builds the folders `train` and `held_out` below `out`.

    Args:
        source: the whole.
        out: folder or url.
        held: from `held_out`.
        plan: makes the job of a source and a folder.
        options: as for `building.build`; each manifest also has its part.
        **how: as for `building.build`.

    Raises:
        DataError: as `building.build`.
    """
    parts = []
    for name, keep in {TRAIN: ~held, HELD_OUT: held}.items():
        part = Selected(source, keep, account=name == TRAIN)
        job = plan(part, join(out, name))
        parts.append(Part(job.out, build(job, {**options, "part": name}, **how)))
    return parts


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """Returns 53 random bits of each number: the finaliser of SplitMix64 (Steele et al. 2014)."""
    x = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x ^ (x >> np.uint64(31))) >> np.uint64(11)
