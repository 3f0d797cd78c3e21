"""Whether a model binds words to what they belong to: captions of the same words, of which one is right."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.stream.evalset import EvalRecord, texts_of
from data_pipelines.text.fields import lookup
from xmodal.evaluation.base import BetweenTowers, EvalContext, EvalResult
from xmodal.evaluation.embedding import Embedder
from xmodal.reporting.scores import Scores, digest_of


@dataclasses.dataclass(frozen=True)
class Pairs(BetweenTowers):
    """Two forms. In both the wrong candidates count as listed first (see `ranking`): a tie is a miss.

    An image with a right caption and wrong ones (SugarCrepe, ARO): `captions=("{caption}",), wrong=
    ("negative_caption",)`. `text` is the share of images whose right caption scores above all wrong ones.

    Two images and two captions, the i-th of the i-th (Winoground, Thrush et al. 2022, section 3.3): `images=("image_0",
    "image_1"), captions=("{caption_0}", "{caption_1}")`. `text`: each image prefers its caption; `image`: each caption
    prefers its image; `group`: both.

    Attributes:
      wrong: fields with wrong captions, each a text or a list of them.
      images: columns (or features) of `source` with the two images.
      by: field; the figures are also given per value of it.
    """

    wrong: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    by: str = ""

    def __post_init__(self):
        super().__post_init__()
        if bool(self.wrong) == bool(self.images):
            raise ValueError("give either `wrong`, fields with wrong captions, or `images`, two columns of `source`")
        if self.images and (len(self.images) != 2 or len(self.captions) != 2):
            raise ValueError("two `images` need two `captions`")

    def prepare(self, name: str, context: EvalContext) -> Callable[[Mapping], EvalResult]:
        """See `Evaluator`."""
        embedder, prefix = Embedder(context, self.batch_size, self.between), f"pairs/{name}"
        own = self._two_images if self.images else self._wrong_captions
        records, names, scored, chance = own(name, context, embedder)
        by = texts_of(records, self.by)
        if self.by and not any(by):
            fields = ", ".join(sorted(records[0].fields))
            raise DataError(f"by: no example has the field {self.by!r}; fields there: {fields}")
        by, groups = np.array(by), sorted(set(by) - {""}) if self.by else []

        def run(params: Mapping) -> EvalResult:
            values, metrics, scores = scored(params), {}, {}
            for group in (None, *groups):
                rows = np.arange(len(records)) if group is None else np.flatnonzero(by == group)
                found = Scores({key: hits[rows] for key, hits in values.items()}, digest_of(names[i] for i in rows))
                place = prefix if group is None else f"{prefix}/of_{group}"
                scores[place] = found
                for key, value in found.figures().items():
                    metrics[f"{place}/{key}"] = value
                    metrics[f"{place}/chance/{key}"] = float(np.mean(chance[key][rows]))
            metrics[f"{prefix}/examples"] = float(len(records))
            return EvalResult(metrics, scores=scores)

        return run

    def _wrong_captions(self, name: str, context: EvalContext, embedder: Embedder):
        dataset = self.open(name, context)
        wrong = [self._wrong(record, context) for record in dataset.records]
        right = [record.captions[0] for record in dataset.records]
        rows = np.repeat(np.arange(len(wrong)), [len(texts) for texts in wrong])
        texts = list(dict.fromkeys([*right, *(text for own in wrong for text in own)]))
        place = {text: i for i, text in enumerate(texts)}
        right, wrong = np.array([place[t] for t in right]), np.array([place[t] for own in wrong for t in own])

        def scored(params: Mapping) -> dict[str, np.ndarray]:
            images, written = embedder.samples(params, dataset), embedder.texts(params, texts)
            best = np.full(len(right), -np.inf, np.float32)
            np.maximum.at(best, rows, np.sum(images[rows] * written[wrong], axis=1))
            return {"text": np.sum(images * written[right], axis=1) > best}

        return dataset.records, dataset.names, scored, {"text": 1 / (1 + np.bincount(rows))}

    def _wrong(self, record: EvalRecord, context: EvalContext) -> list[str]:
        found = [text for field in self.wrong for text in _texts(lookup(record.fields, field))]
        if not found:
            raise DataError(
                f"wrong: {record.title} has no text in {', '.join(map(repr, self.wrong))}; fields there: "
                f"{', '.join(sorted(record.fields))}"
            )
        return [context.prepare(text) for text in found]

    def _two_images(self, name: str, context: EvalContext, embedder: Embedder):
        sets = [
            self.open(name, context, data=self.entry(name) | dict(image=column), where="source")
            for column in self.images
        ]
        places = [{(record.shard, record.key): i for i, record in enumerate(dataset.records)} for dataset in sets]
        both = [own for own in places[0] if own in places[1]]  # an example counts if both its images can be used
        if not both:
            raise DataError(f"no example of {sets[0].where} has both images")
        rows = [np.array([own[place] for place in both]) for own in places]
        named = list(zip(sets[0].records, sets[0].names))
        records, names = zip(*(named[i] for i in rows[0]))
        if bad := next((record for record in records if len(record.captions) != 2), None):
            raise DataError(f"{bad.title} has not two captions: {bad.captions}")
        texts = [text for record in records for text in record.captions]

        def scored(params: Mapping) -> dict[str, np.ndarray]:
            images = np.stack([embedder.samples(params, s)[r] for s, r in zip(sets, rows)], axis=1)
            return winoground(images, embedder.texts(params, texts).reshape(len(records), 2, -1))

        chance = {"text": 1 / 4, "image": 1 / 4, "group": 1 / 6}
        return records, names, scored, {key: np.full(len(records), value) for key, value in chance.items()}


def winoground(images: np.ndarray, texts: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the hits `text`, `image` and `group`, bool [examples].

    Args:
      images: unit vectors [examples, 2, dim].
      texts: [examples, 2, dim], the i-th of the i-th image.
    """
    scores = np.einsum("eid,ecd->eic", images, texts)
    text = (scores[:, 0, 0] > scores[:, 0, 1]) & (scores[:, 1, 1] > scores[:, 1, 0])
    image = (scores[:, 0, 0] > scores[:, 1, 0]) & (scores[:, 1, 1] > scores[:, 0, 1])
    return {"text": text, "image": image, "group": text & image}


def _texts(value: object) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [text for text in values if isinstance(text, str) and text.strip()]
