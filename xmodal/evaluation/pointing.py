"""Pointing: does a word point to the part of a picture that shows what it names?"""

import base64
import dataclasses
import io
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image as Pillow

from data_pipelines.errors import DataError
from data_pipelines.modalities import Image
from data_pipelines.stream.evalset import EvalRecord, EvalSet, texts_of
from data_pipelines.text.fields import lookup
from xmodal.distributed.mesh import process_shard, to_global
from xmodal.evaluation.base import BetweenTowers, EvalContext, EvalResult
from xmodal.evaluation.embedding import gather, sample_batches
from xmodal.evaluation.word_maps import grid_of, overlay, score_words, token_places
from xmodal.finite import check_rows
from xmodal.reporting.scores import Scores, digest_of

SHOWN = 8  # examples in the report
_PIXELS = 96  # of a picture there


@dataclasses.dataclass(frozen=True)
class Case:
    """A picture, a text, and where what a part of the text names is to be found.

    Attributes:
      image: uint8 [size, size, 3].
      text: as it is encoded.
      names: (first character, one past the last, box) of each part of the text that is asked about; a box is (left,
        top, right, bottom) in shares of the picture.
    """

    image: np.ndarray
    text: str
    names: tuple[tuple[int, int, tuple[float, float, float, float]], ...]


@dataclasses.dataclass(frozen=True)
class Pointing(BetweenTowers):
    """The pointing game (Zhang et al. 2016): a hit if a name's best patch lies in its box, by more than any outside.

    Without `boxes`, two pictures of the set are put side by side, at half their size, under a text that names both:
    each name must point to its half.

    Attributes:
      boxes: json field with [{"text": ..., "box": [left, top, right, bottom]}, ...] in shares of the picture as the
        model sees it; each `text` is a text of its own. "" makes pairs.
      label_field: json field with the name of what a picture shows, for pairs.
      template: the text of a pair, with {left} and {right}.
      pairs: how many are made, the same ones at each evaluation.
    """

    boxes: str = ""
    label_field: str = "label"
    template: str = "{left} and {right}"
    pairs: int = 512

    @property
    def needs(self) -> frozenset[str]:
        """Patches and words in the shared space."""
        return frozenset(f"{tower}.local" for tower in self.between)

    def prepare(self, name: str, context: EvalContext) -> Callable[[Mapping], EvalResult]:
        """See `Evaluator`."""
        image = self._image(context)
        if image.packing:
            raise DataError(f"pointing needs square images, and {image.where}.naflex gives each its own shape: leave "
                            "this evaluation out")  # fmt: skip
        dataset = self.open(name, context)
        make = self._boxed if self.boxes else self._pairs
        prefix, size = f"pointing/{name}", context.live.rows(self.batch_size)
        cases = make(dataset, context)

        def run(params: Mapping) -> EvalResult:
            hits, chances, units, shown = [], [], [], []
            for number, (case, maps) in enumerate(self._maps(params, cases, context, size)):
                found = [_hit(scores, box) for scores, box in maps]
                hits += [hit for hit, _ in found]
                chances += [chance for _, chance in found]
                units += [number] * len(found)  # names of one picture are resampled together
                if len(shown) < SHOWN:
                    shown.append(_example(case, maps, [hit for hit, _ in found]))
            if not hits:
                raise DataError(f"evals.{name}: no name of the texts is left within {context.text.where}.length")
            metrics = {
                f"{prefix}/accuracy": float(np.mean(hits)), f"{prefix}/chance/accuracy": float(np.mean(chances)),
                f"{prefix}/names": float(len(hits)),
            }  # fmt: skip
            names = (f"{unit} {cases[unit].text}" for unit in units)
            scores = Scores({"accuracy": np.array(hits, bool)}, digest_of(names), unit=np.array(units))
            return EvalResult(metrics, {prefix: {"pointing": shown}}, scores={prefix: scores})

        return run

    def _image(self, context: EvalContext) -> Image:
        return context.inputs[context.input_of(self.between[0])]

    def _maps(self, params: Mapping, cases: list[Case], context: EvalContext, size: int):
        """Yields each case with the scores [rows, columns] and the box of each of its names."""
        (seen, said), shard = self.between, process_shard(context.mesh, size)
        image, text = (context.inputs[context.input_of(tower)] for tower in self.between)
        rows = size // shard[1]
        for start in range(0, len(cases), size):
            first = start + shard[0] * rows
            own = [cases[min(i, len(cases) - 1)] for i in range(first, first + rows)]
            arrays = text.encode([case.text for case in own]) | {image.name: np.stack([case.image for case in own])}
            batch = to_global(arrays, context.mesh)
            named = lambda i: f"the text {cases[min(start + i, len(cases) - 1)].text!r}"  # noqa: B023 (used at once)
            patches = context.embed_local[seen](params, {image.name: batch[image.name]})["x"]
            patches = check_rows(gather(patches), "a patch of the image beside", named)
            words = check_rows(gather(context.embed_local[said](params, batch)["x"]), "a word's embedding", named)
            grid = grid_of(context.model.spec.towers[seen], patches.shape[1])
            for i, case in enumerate(cases[start : start + size]):
                maps = []
                for a, b, box in case.names:
                    if places := token_places(text.vocabulary, case.text, text.length, a, b):
                        maps.append((score_words([places], words[i], patches[i])[0].reshape(grid), box))
                yield case, maps

    def _pairs(self, dataset: EvalSet, context: EvalContext) -> list[Case]:
        labels = texts_of(dataset.records, self.label_field)
        if not any(labels):
            raise DataError(
                f"label_field: no sample of {dataset.where} has the field {self.label_field!r}; "
                f"fields there: {', '.join(sorted(dataset.records[0].fields))}"
            )
        if not all(place in self.template for place in ("{left}", "{right}")):
            raise DataError(f"template: {self.template!r} needs both {{left}} and {{right}}")
        chosen = _choose([context.prepare(label) for label in labels], self.pairs)
        halves = _halves(dataset, context, self._image(context), {i for pair in chosen for i, _ in pair})
        return [_side_by_side(pair, halves, self.template, context.prepare) for pair in chosen]

    def _boxed(self, dataset: EvalSet, context: EvalContext) -> list[Case]:
        images = _images(dataset, context, self._image(context).name, range(len(dataset)))
        cases = []
        for i, record in enumerate(dataset.records):
            for entry in lookup(record.fields, self.boxes) or ():
                text, box = _entry(entry, record, self.boxes)
                text = context.prepare(text)
                cases.append(Case(images[i], text, ((0, len(text), box),)))
        if not cases:
            raise DataError(f"boxes: no sample of {dataset.where} has boxes in its field {self.boxes!r}")
        return cases


def _entry(entry: Any, record: EvalRecord, field: str) -> tuple[str, tuple[float, float, float, float]]:
    try:
        text, box = str(entry["text"]), tuple(float(x) for x in entry["box"])
        left, top, right, bottom = box
        if text.strip() and 0 <= left < right <= 1 and 0 <= top < bottom <= 1:
            return text, box
    except (KeyError, TypeError, ValueError):
        pass
    raise DataError(
        f"boxes: {record.title} has {entry!r} in its field {field!r}; expected "
        '{"text": ..., "box": [left, top, right, bottom]} with shares from 0 to 1'
    )


def _choose(labels: list[str], count: int) -> list[tuple[tuple[int, str], tuple[int, str]]]:
    """Draws pairs of samples whose names differ and share no word, always the same ones."""
    known = [i for i, label in enumerate(labels) if label]
    draw, pairs = np.random.default_rng(0), []
    for _ in range(20 * count):
        i, j = (known[k] for k in draw.integers(len(known), size=2))
        if not set(labels[i].split()) & set(labels[j].split()):
            pairs.append(((i, labels[i]), (j, labels[j])))
            if len(pairs) == count:
                return pairs
    if not pairs:
        raise DataError("label_field: no two samples have names without a word in common, so there are no pairs")
    return pairs


def _images(dataset: EvalSet, context: EvalContext, name: str, wanted) -> dict[int, np.ndarray]:
    """Pictures of samples, complete on every process: the set is small enough for the host's memory."""
    wanted, found = set(wanted), {}
    for batch, index in sample_batches(dataset, context, context.live.rows(256)):
        for i, image in zip(index.tolist(), gather(batch[name])):
            if i in wanted:
                found[i] = image
    return found


def _halves(dataset: EvalSet, context: EvalContext, image: Image, wanted: set[int]) -> dict[int, np.ndarray]:
    """Pictures at half their size, each pixel the mean of four."""
    size = image.size // 2 * 2
    small = lambda a: a[:size, :size].reshape(size // 2, 2, size // 2, 2, 3).mean(axis=(1, 3)).round().astype(np.uint8)
    return {i: small(pixels) for i, pixels in _images(dataset, context, image.name, wanted).items()}


def _side_by_side(pair: tuple, halves: Mapping[int, np.ndarray], template: str, prepare: Callable[[str], str]) -> Case:
    """Two pictures on white, left and right at half height, and a text that names both; the names are prepared."""
    (i, left), (j, right) = pair
    half = halves[i].shape[0]
    image = np.full((2 * half, 2 * half, 3), 255, np.uint8)
    top = half // 2
    image[top : top + half, :half], image[top : top + half, half:] = halves[i], halves[j]
    shown = {"{left}": (left, (0.0, 0.0, 0.5, 1.0)), "{right}": (right, (0.5, 0.0, 1.0, 1.0))}
    parts = re.split(r"(\{left\}|\{right\})", template)
    text = prepare("".join(shown[part][0] if part in shown else part for part in parts))
    names, end = [], 0
    for part in parts:
        piece = shown[part][0] if part in shown else prepare(part)
        start = text.find(piece, end)
        if start < 0:
            raise DataError(f"template: {template!r} becomes {text!r} when prepared, in which {piece!r} is not found")
        end = start + len(piece)
        if part in shown:
            names.append((start, end, shown[part][1]))
    return Case(image, text, tuple(names))


def _hit(scores: np.ndarray, box: tuple[float, float, float, float]) -> tuple[bool, float]:
    """Whether the best patch lies in the box, and how often a patch drawn at random does; by their centres."""
    rows, columns = scores.shape
    y, x = (np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns
    left, top, right, bottom = box
    inside = ((y >= top) & (y < bottom))[:, None] & ((x >= left) & (x < right))[None]
    if not inside.any():  # smaller than the distance of two patches: the nearest one
        nearest = np.abs(y - (top + bottom) / 2).argmin(), np.abs(x - (left + right) / 2).argmin()
        inside[nearest] = True
    outside = scores[~inside].max(initial=-np.inf)
    return bool(scores[inside].max() > outside), float(inside.mean())


def _example(case: Case, maps: list, hits: list[bool]) -> dict[str, Any]:
    """What the report shows of a case."""
    names = [case.text[a:b] for a, b, _ in case.names]
    return {
        "image": _uri(Pillow.fromarray(case.image).resize((_PIXELS, _PIXELS), Pillow.Resampling.LANCZOS)),
        "text": case.text,
        "correct": all(hits),
        "maps": [
            {"text": name, "image": _uri(overlay(case.image, scores, _PIXELS)), "correct": hit}
            for name, (scores, _), hit in zip(names, maps, hits)
        ],
    }


def _uri(image: Pillow.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
