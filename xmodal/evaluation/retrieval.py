"""Image-text retrieval: recall at 1, 5 and 10, both ways, with any number of captions per image."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.errors import DataError
from xmodal.evaluation.base import EvalContext, EvalResult, Evaluator
from xmodal.evaluation.embedding import Embedder
from xmodal.evaluation.gallery import retrieval_gallery

RECALLS = (1, 5, 10)
ROWS = 1024  # queries ranked at once


@dataclasses.dataclass(frozen=True)
class Retrieval(Evaluator):
    """Ranks all captions of the set for each image and all images for each caption.

    Equal captions are one candidate; it is right for every image that has it.

    Attributes:
      caption_list: json field with several captions of an image (COCO, Flickr30k); "" uses `captions`.
      by: json field; image-to-text recall is also given per value of it, among the same candidates.
      examples: queries shown in the report, half of them wrong ones where there are enough.
    """

    caption_list: str = ""
    by: str = ""
    examples: int = 16

    def prepare(self, name: str, context: EvalContext) -> Callable[[Mapping], EvalResult]:
        """See `Evaluator`."""
        dataset = self.open(name, context)
        own = [self._captions(record, context.data.text.lower) for record in dataset.records]
        texts = list(dict.fromkeys(text for captions in own for text in captions))
        number = {text: i for i, text in enumerate(texts)}
        pairs = np.array([(i, number[text]) for i, captions in enumerate(own) for text in dict.fromkeys(captions)])
        embedder, prefix = Embedder(context, self.batch_size), f"retrieval/{name}"
        by = np.array([str(record.get(self.by, "")) for record in dataset.records]) if self.by else None
        if by is not None and not any(by):
            raise DataError(
                f"by: no sample of {dataset.where} has the field {self.by!r}; {_fields(dataset.records[0])}"
            )

        def run(params: Mapping) -> EvalResult:
            images, captions = embedder.images(params, dataset), embedder.texts(params, texts)
            to_text = ranks(images, captions, pairs)
            to_image = ranks(captions, images, pairs[:, ::-1])
            metrics = {f"{prefix}/images": float(len(images)), f"{prefix}/captions": float(len(captions))}
            metrics |= recalls(f"{prefix}/image_to_text", to_text, len(texts), np.bincount(pairs[:, 0]))
            metrics |= recalls(f"{prefix}/text_to_image", to_image, len(images), np.bincount(pairs[:, 1]))
            for value in [] if by is None else sorted(set(by) - {""}):
                rows = by == value
                metrics |= recalls(
                    f"{prefix}/image_to_text_of_{value}",
                    to_text[rows],
                    len(texts),
                    np.bincount(pairs[:, 0])[rows],
                )
            gallery = retrieval_gallery(dataset, own, texts, images, captions, to_text, to_image, pairs, self.examples)
            return EvalResult(metrics, {prefix: gallery})

        return run

    def _captions(self, record: Mapping, lower: bool) -> Sequence[str]:
        if not self.caption_list:
            return record["captions"]
        texts = record.get(self.caption_list)
        if not isinstance(texts, list) or not texts or not all(isinstance(t, str) and t.strip() for t in texts):
            raise DataError(
                f"caption_list: sample {record['key']} of {record['shard']} has no list of texts in its field "
                f"{self.caption_list!r}; {_fields(record)}"
            )
        return [" ".join(t.lower().split() if lower else t.split()) for t in texts]


def _fields(record: Mapping) -> str:
    return f"fields there: {', '.join(sorted(record))}"


def ranks(queries: np.ndarray, items: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Rank (0 is first) of the best right item of each query; ties count against the query.

    Args:
      queries: unit vectors [queries, dim].
      items: unit vectors [items, dim].
      pairs: int [n, 2] of (query, item) that belong together; every query occurs.

    Returns:
      int32 [queries].
    """
    found = []
    for start in range(0, len(queries), ROWS):
        rows = queries[start : start + ROWS]
        right = np.zeros((ROWS, len(items)), bool)
        inside = pairs[(pairs[:, 0] >= start) & (pairs[:, 0] < start + ROWS)]
        right[inside[:, 0] - start, inside[:, 1]] = True
        padded = np.pad(rows, ((0, ROWS - len(rows)), (0, 0)))
        found.append(np.asarray(_ranks(padded, items, right))[: len(rows)])
    return np.concatenate(found)


@jax.jit
def _ranks(queries: jax.Array, items: jax.Array, right: jax.Array) -> jax.Array:
    scores = jnp.einsum("qd,nd->qn", queries, items, precision=jax.lax.Precision.HIGHEST)
    best = jnp.max(jnp.where(right, scores, -jnp.inf), axis=1, keepdims=True)
    return jnp.sum((scores >= best) & ~right, axis=1)


def recalls(prefix: str, rank: np.ndarray, items: int, right: np.ndarray) -> dict[str, float]:
    """Recall at k and median rank, with the recall that a random order reaches.

    Args:
      prefix: of the metric names.
      rank: [queries], 0 is first.
      items: number of candidates.
      right: [queries], how many of the candidates are right.
    """
    metrics = {}
    for k in RECALLS:
        metrics[f"{prefix}/R@{k}"] = float(np.mean(rank < k))
        metrics[f"{prefix}/chance/R@{k}"] = float(np.mean(chance_recall(k, items, right)))
    metrics[f"{prefix}/median_rank"] = float(np.median(rank)) + 1.0
    return metrics


def chance_recall(k: int, items: int, right: np.ndarray) -> np.ndarray:
    """Probability that a random order of `items` has one of `right` right ones among its first k."""
    misses = np.ones(len(right))
    for drawn in range(min(k, items)):
        misses *= np.maximum(items - right - drawn, 0) / (items - drawn)
    return 1.0 - misses
