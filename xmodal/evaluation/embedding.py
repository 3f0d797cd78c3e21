"""Embeds a held-out set with a tower, sharded over all devices; padding never reaches the results."""

from collections.abc import Iterator, Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils

from data_pipelines.stream.evalset import EvalSet
from xmodal.distributed.mesh import process_shard, to_global
from xmodal.evaluation.base import EvalContext
from xmodal.finite import check_rows


class Embedder:
    """Unit embeddings of images and texts as float32 NumPy arrays [samples, dim], complete on every process.

    An embedding that is not finite is an error that names its sample (`xmodal.finite.NotFinite`).
    """

    def __init__(self, context: EvalContext, batch_size: int):
        self._context, self._batch_size = context, context.live.rows(batch_size)

    def images(self, params: Mapping, dataset: EvalSet) -> np.ndarray:
        """Embeds every image of the set, in its order."""
        parts = [None] * len(dataset)
        for batch, index in image_batches(dataset, self._context, self._batch_size):
            scatter(parts, index, gather(self._context.embed["image"](params, batch)))
        return check_rows(np.stack(parts), "the embedding of the image", dataset.title)

    def texts(self, params: Mapping, texts: list[str]) -> np.ndarray:
        """Embeds texts, which are captions of a set or else went through `EvalContext.prepare`; equal ones once."""
        different = list(dict.fromkeys(texts))
        parts = [None] * len(different)
        for batch, index in text_batches(different, self._context, self._batch_size):
            scatter(parts, index, gather(self._context.embed["text"](params, batch)))
        found = check_rows(np.stack(parts), "the embedding", lambda i: f"the text {different[i]!r}")
        place = {text: i for i, text in enumerate(different)}
        return found if len(different) == len(texts) else found[[place[text] for text in texts]]


def image_batches(dataset: EvalSet, context: EvalContext, batch_size: int) -> Iterator[tuple[dict, np.ndarray]]:
    """Yields (global batch of images, row indices of the whole batch: -1 marks padding)."""
    shard = process_shard(context.mesh, batch_size)
    for batch in dataset.batches(batch_size, shard=shard):
        index = to_global({"index": np.where(batch["valid"], batch["index"], -1)}, context.mesh)["index"]
        images = {name: array for name, array in batch.items() if name not in ("index", "valid")}
        yield to_global(images, context.mesh), gather(index)


def text_batches(texts: list[str], context: EvalContext, batch_size: int) -> Iterator[tuple[dict, np.ndarray]]:
    """Yields (global batch of ids and validity, row indices of the whole batch: -1 marks padding) of prepared texts."""
    shard, count = process_shard(context.mesh, batch_size)
    rows = batch_size // count
    ids, valid = context.tokenizer.encode(texts, context.data.text.length)
    for start in range(0, len(texts), batch_size):
        index = np.arange(start, start + batch_size)
        own = np.minimum(index[shard * rows : (shard + 1) * rows], len(texts) - 1)
        batch = dict(text=ids[own], text_valid=valid[own], index=own.astype(np.int32))
        yield to_global(batch, context.mesh), np.where(index < len(texts), index, -1)


def gather(x: jax.Array) -> np.ndarray:
    """Brings a sharded array to every host."""
    if jax.process_count() > 1:
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))
    return np.asarray(x)


def scatter(parts: list, index: np.ndarray, values: np.ndarray) -> None:
    """Puts the rows of a batch at their places, leaving padding out."""
    for place, value in zip(index, values):
        if place >= 0:
            parts[place] = value
