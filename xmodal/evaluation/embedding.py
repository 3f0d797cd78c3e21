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
    """Unit embeddings of samples and texts as float32 NumPy arrays [samples, dim], complete on every process.

    An embedding that is not finite is an error that names its sample (`xmodal.finite.NotFinite`).
    """

    def __init__(self, context: EvalContext, batch_size: int, between: tuple[str, str]):
        """Embeds with the first tower what samples have, and with the second texts."""
        self._context, self._batch_size = context, context.live.rows(batch_size)
        self._of_samples, self._of_texts = between

    def samples(self, params: Mapping, dataset: EvalSet) -> np.ndarray:
        """Embeds every sample of the set, in its order."""
        parts = [None] * len(dataset)
        for batch, index in sample_batches(dataset, self._context, self._batch_size):
            scatter(parts, index, gather(self._context.embed[self._of_samples](params, batch)))
        what = f"the embedding of the {self._context.input_of(self._of_samples)}"
        return check_rows(np.stack(parts), what, dataset.title)

    def texts(self, params: Mapping, texts: list[str]) -> np.ndarray:
        """Embeds texts, which are captions of a set or else went through `EvalContext.prepare`; equal ones once."""
        different = list(dict.fromkeys(texts))
        parts = [None] * len(different)
        for batch, index in text_batches(different, self._context, self._batch_size, self._of_texts):
            scatter(parts, index, gather(self._context.embed[self._of_texts](params, batch)))
        found = check_rows(np.stack(parts), "the embedding", lambda i: f"the text {different[i]!r}")
        place = {text: i for i, text in enumerate(different)}
        return found if len(different) == len(texts) else found[[place[text] for text in texts]]


def sample_batches(dataset: EvalSet, context: EvalContext, batch_size: int) -> Iterator[tuple[dict, np.ndarray]]:
    """Yields (global batch of what files hold, row indices of the whole batch: -1 marks padding)."""
    shard = process_shard(context.mesh, batch_size)
    for batch in dataset.batches(batch_size, shard=shard):
        index = to_global({"index": np.where(batch["valid"], batch["index"], -1)}, context.mesh)["index"]
        arrays = {name: array for name, array in batch.items() if name not in ("index", "valid")}
        yield to_global(arrays, context.mesh), gather(index)


def text_batches(
    texts: list[str], context: EvalContext, batch_size: int, tower: str
) -> Iterator[tuple[dict, np.ndarray]]:
    """Yields (global batch that a tower reads, row indices of the whole batch: -1 marks padding) of prepared texts."""
    shard, count = process_shard(context.mesh, batch_size)
    rows = batch_size // count
    arrays = context.inputs.texts[context.input_of(tower)].encode(texts)
    for start in range(0, len(texts), batch_size):
        index = np.arange(start, start + batch_size)
        own = np.minimum(index[shard * rows : (shard + 1) * rows], len(texts) - 1)
        batch = {name: array[own] for name, array in arrays.items()} | dict(index=own.astype(np.int32))
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
