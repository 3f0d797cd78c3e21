"""Blocks over numbered rows whose sizes are known or guessed: what lists, tfds and synthetic data share."""

from collections.abc import Sequence

import numpy as np

from data_pipelines.sources.blocks import Blocks

UNUSED = -1  # in the sizes of rows: left out


def row_blocks(shards: Sequence[tuple[np.ndarray, Sequence[int]]], target: int) -> Blocks:
    """Joins neighbouring rows to blocks of about `target` bytes; blocks without a usable row are left out.

    Args:
        shards: for each shard the sizes of its rows in bytes, int32 [rows] with UNUSED for those left out, and the rows
            that start a stretch (the first is 0); no block reaches from one stretch into the next.
        target: bytes.
    """
    columns: list[tuple[np.ndarray, ...]] = []
    for number, (sizes, edges) in enumerate(shards):
        if len(sizes):
            columns.append(_one_shard(number, sizes, edges, max(target, 1)))
    empty = np.zeros(0, np.int64)
    joined = [np.concatenate([column[i] for column in columns]) if columns else empty for i in range(5)]
    return Blocks(*joined)


def _one_shard(number: int, sizes: np.ndarray, edges: Sequence[int], target: int) -> tuple[np.ndarray, ...]:
    used = sizes != UNUSED
    weights = np.where(used, np.maximum(sizes, 1), 0).astype(np.int64)
    before = np.cumsum(weights) - weights
    first = np.zeros(len(sizes), bool)
    first[np.asarray([edge for edge in edges if edge < len(sizes)], np.int64)] = True
    begin_of_stretch = np.maximum.accumulate(np.where(first, before, 0))
    slot = (before - begin_of_stretch) // target  # rows that start in the same stretch of `target` bytes are one block
    begins = np.flatnonzero(first | (np.diff(slot, prepend=0) != 0))
    ends = np.append(begins[1:], len(sizes))
    counts = np.add.reduceat(used.astype(np.int64), begins)
    amounts = np.add.reduceat(weights, begins)
    keep = counts > 0
    shard = np.full(keep.sum(), number, np.int64)
    return shard, begins[keep], ends[keep], counts[keep], amounts[keep]
