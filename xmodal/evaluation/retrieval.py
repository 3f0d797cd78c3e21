"""Image-text retrieval: recall at 1, 5 and 10, both ways, with any number of captions per image."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.stream.evalset import EvalRecord, texts_of
from data_pipelines.text.fields import lookup
from xmodal.evaluation import ranking
from xmodal.evaluation.base import BetweenTowers, EvalContext, EvalResult
from xmodal.evaluation.embedding import Embedder
from xmodal.evaluation.gallery import retrieval_gallery
from xmodal.reporting.scores import Scores, digest_of

RECALLS = (1, 5, 10)
ROWS = 1024  # queries ranked at once


@dataclasses.dataclass(frozen=True)
class Retrieval(BetweenTowers):
    """Ranks all captions of the set for each image and all images for each caption.

    Attributes:
      caption_list: json field with several captions of an image (COCO, Flickr30k); "" uses `captions`.
      captions_per_image: at most so many of them, the first ones; 0 takes all (COCO's usual 25,000: 5).
      merge: equal captions are one candidate, right for every image that has it; False keeps them apart, each right for
        its own image alone, as published figures have it.
      by: json field; image-to-text recall is also given per value of it, among the same candidates.
      examples: queries shown in the report, half of them wrong ones where there are enough.
    """

    caption_list: str = ""
    captions_per_image: int = 0
    merge: bool = True
    by: str = ""
    examples: int = 16

    def prepare(self, name: str, context: EvalContext) -> Callable[[Mapping], EvalResult]:
        """See `Evaluator`."""
        dataset = self.open(name, context, instead=self.caption_list)
        own = [self._captions(record, context) for record in dataset.records]
        texts, pairs = candidates(own, self.merge)
        embedder, prefix = Embedder(context, self.batch_size, self.between), f"retrieval/{name}"
        by = np.array(texts_of(dataset.records, self.by)) if self.by else None
        if by is not None and not any(by):
            raise DataError(
                f"by: no sample of {dataset.where} has the field {self.by!r}; {_fields(dataset.records[0])}"
            )

        def run(params: Mapping) -> EvalResult:
            images, captions = embedder.samples(params, dataset), embedder.texts(params, texts)
            to_text = ranks(images, captions, pairs, number_of(texts))
            to_image = ranks(captions, images, pairs[:, ::-1])
            names, right = np.array(dataset.names), np.bincount(pairs[:, 0])
            asked = [*names, *(text.casefold() for text in texts)]  # models that lower-case are asked the same
            groups = {
                "image_to_text": recalls(to_text, len(texts), right, names),
                "text_to_image": recalls(
                    to_image, len(images), np.bincount(pairs[:, 1]), asked, unit=first_image(pairs)
                ),
            }
            for value in [] if by is None else sorted(set(by) - {""}):
                rows = by == value
                groups[f"image_to_text_of_{value}"] = recalls(to_text[rows], len(texts), right[rows], names[rows])
            metrics = {f"{prefix}/images": float(len(images)), f"{prefix}/captions": float(len(captions))}
            for group, (found, _) in groups.items():
                metrics |= {f"{prefix}/{group}/{key}": value for key, value in found.items()}
            scores = {f"{prefix}/{group}": own_scores for group, (_, own_scores) in groups.items()}
            gallery = retrieval_gallery(dataset, own, texts, images, captions, to_text, to_image, pairs, self.examples)
            return EvalResult(metrics, {prefix: gallery}, scores)

        return run

    def _captions(self, record: EvalRecord, context: EvalContext) -> Sequence[str]:
        if not self.caption_list:
            return record.captions
        texts = lookup(record.fields, self.caption_list)
        if not isinstance(texts, list) or not texts or not all(isinstance(t, str) and t.strip() for t in texts):
            raise DataError(
                f"caption_list: {record.title} has no list of texts in its field "
                f"{self.caption_list!r}; {_fields(record)}"
            )
        return [context.prepare(text) for text in texts[: self.captions_per_image or None]]


def _fields(record: EvalRecord) -> str:
    return f"fields there: {', '.join(sorted(record.fields))}"


def number_of(texts: Sequence[str]) -> np.ndarray | None:
    """Returns the first place of each text in the list, int [texts]; None where each is there once."""
    place: dict[str, int] = {}
    numbers = [place.setdefault(text, i) for i, text in enumerate(texts)]
    return None if len(place) == len(texts) else np.array(numbers)


def ranks(queries: np.ndarray, items: np.ndarray, pairs: np.ndarray, columns: np.ndarray | None = None) -> np.ndarray:
    """Rank (0 is first) of the right item of each query that comes first; for ties see `ranking`.

    Args:
      queries: unit vectors [queries, dim].
      items: unit vectors [items, dim].
      pairs: int [n, 2] of (query, item) that belong together; every query occurs.
      columns: for each item the number of the item whose score it has: equal texts then tie, however scores are
        rounded. None: its own.

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
        found.append(np.asarray(_ranks(padded, items, right, columns))[: len(rows)])
    return np.concatenate(found)


@jax.jit
def _ranks(queries: jax.Array, items: jax.Array, right: jax.Array, columns: jax.Array | None) -> jax.Array:
    scores = jnp.einsum("qd,nd->qn", queries, items, precision=jax.lax.Precision.HIGHEST)
    return ranking.ranks(scores if columns is None else scores[:, columns], right, jnp)


def candidates(own: Sequence[Sequence[str]], merge: bool) -> tuple[list[str], np.ndarray]:
    """Returns the captions to rank, and which belong to which image.

    Args:
      own: captions of each image.
      merge: equal captions are one.

    Returns:
      (texts, int [pairs, 2] of (image, text), in the order of the images).
    """
    if not merge:
        image = np.repeat(np.arange(len(own)), [len(captions) for captions in own])
        return [text for captions in own for text in captions], np.stack([image, np.arange(len(image))], axis=1)
    texts = list(dict.fromkeys(text for captions in own for text in captions))
    number = {text: i for i, text in enumerate(texts)}
    return texts, np.array([(i, number[t]) for i, captions in enumerate(own) for t in dict.fromkeys(captions)])


def first_image(pairs: np.ndarray) -> np.ndarray:
    """Returns the image that each text is resampled with: the first that has it, int [texts]."""
    return pairs[np.unique(pairs[:, 1], return_index=True)[1], 0]


def recalls(
    rank: np.ndarray, items: int, right: np.ndarray, names: Iterable[str] = (), unit: np.ndarray | None = None
) -> tuple[dict[str, float], Scores]:
    """Recall at k with what a random order reaches, and the median rank; and what they are means of.

    Args:
      rank: [queries], 0 is first.
      items: number of candidates.
      right: [queries], how many of the candidates are right.
      names: tell the queries, and what they are asked about, from others.
      unit: image of each query; None: the queries are images.
    """
    scores = Scores({f"R@{k}": rank < k for k in RECALLS}, digest_of(names), unit=unit)
    metrics = {}
    for k, (name, value) in zip(RECALLS, scores.figures().items()):
        metrics |= {name: value, f"chance/{name}": float(np.mean(chance_recall(k, items, right)))}
    return metrics | {"median_rank": float(np.median(rank)) + 1.0}, scores


def chance_recall(k: int, items: int, right: np.ndarray) -> np.ndarray:
    """Probability that a random order of `items` has one of `right` right ones among its first k."""
    misses = np.ones(len(right))
    for drawn in range(min(k, items)):
        misses *= np.maximum(items - right - drawn, 0) / (items - drawn)
    return 1.0 - misses
