"""Examples for the report: pictures as data URLs, with the model's answers and the truth."""

import base64
from collections.abc import Sequence

import numpy as np

from data_pipelines.stream.evalset import EvalSet

THUMBNAIL = 64  # pixels
SHOWN_TEXTS, SHOWN_IMAGES = 5, 8


def thumbnail(dataset: EvalSet, index: int) -> str:
    """Returns the picture of a sample as a PNG data URL."""
    return "data:image/png;base64," + base64.b64encode(dataset.thumbnail(index, THUMBNAIL)).decode()


def choose(right: np.ndarray, count: int) -> list[int]:
    """Picks examples, the same ones for the same results: half right and half wrong where there are enough."""
    order = np.random.default_rng(0).permutation(len(right))
    hits, misses = order[right[order]], order[~right[order]]
    wrong = min(len(misses), max(count // 2, count - len(hits)))
    return [int(i) for i in (*hits[: count - wrong], *misses[:wrong])]


def retrieval_gallery(
    dataset: EvalSet,
    own: Sequence[Sequence[str]],
    texts: Sequence[str],
    images: np.ndarray,
    captions: np.ndarray,
    to_text: np.ndarray,
    to_image: np.ndarray,
    pairs: np.ndarray,
    count: int,
) -> dict:
    """Returns {"image_to_text": [...], "text_to_image": [...]} examples with their best candidates.

    Args:
      dataset: the pictures.
      own: captions of each image.
      texts: candidate captions.
      images: unit embeddings [images, dim].
      captions: unit embeddings [texts, dim].
      to_text: rank of each image's best caption, 0 is first.
      to_image: rank of each caption's best image.
      pairs: int [n, 2] of (image, text) that belong together.
      count: examples in each direction.
    """
    belongs = {tuple(pair) for pair in pairs.tolist()}
    gallery: dict[str, list] = {"image_to_text": [], "text_to_image": []}
    for i in choose(to_text == 0, count):
        scores = captions @ images[i]
        gallery["image_to_text"].append({
            "image": thumbnail(dataset, i),
            "truth": list(own[i]),
            "rank": int(to_text[i]) + 1,
            "candidates": [
                {"text": texts[j], "score": float(scores[j]), "correct": (i, int(j)) in belongs}
                for j in np.argsort(-scores, kind="stable")[:SHOWN_TEXTS]
            ],
        })  # fmt: skip
    for j in choose(to_image == 0, count):
        scores = images @ captions[j]
        gallery["text_to_image"].append({
            "text": texts[j],
            "rank": int(to_image[j]) + 1,
            "candidates": [
                {
                    "image": thumbnail(dataset, int(i)), "title": own[i][0], "score": float(scores[i]),
                    "correct": (int(i), j) in belongs,
                }
                for i in np.argsort(-scores, kind="stable")[:SHOWN_IMAGES]
            ],
        })  # fmt: skip
    return gallery
