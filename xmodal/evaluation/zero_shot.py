"""Zero-shot classification: class names become prompts, and an image takes the class whose prompts it is closest to."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from data_pipelines.errors import DataError
from xmodal.evaluation.base import BetweenTowers, EvalContext, EvalResult
from xmodal.evaluation.classes import ensemble, number, open_labelled, read_names, read_prompts
from xmodal.evaluation.embedding import Embedder
from xmodal.evaluation.ranking import answers, class_ranks
from xmodal.reporting.scores import Scores, digest_of

CONFUSIONS = 20  # pairs of classes that are listed


@dataclasses.dataclass(frozen=True)
class ZeroShot(BetweenTowers):
    """Top-1, top-5 and mean per-class accuracy; prompts of a class are averaged after normalisation, as in CLIP.

    Also which classes are taken for which. What a file of names or prompts may look like: `xmodal.evaluation.classes`.

    Attributes:
      label_field: json field, column or feature that holds the class of a sample; `cls` is also the tar member.
      classes: class names, or a file of them; () takes all values of the field. A sample of another class is left out.
      labels: what the field calls the classes, in their order, or a file of that; "sorted": its sorted values, as
        with folders named by WordNet; () are the names themselves, or else numbers from 0.
      prompts: templates with `{label}`, `{c}` or `{}`, or a file of them.
    """

    label_field: str = "label"
    classes: str | tuple[str, ...] = ()
    labels: str | tuple[str, ...] = ()
    prompts: str | tuple[str, ...] = ("{label}",)

    def prepare(self, name: str, context: EvalContext) -> Callable[[Mapping], EvalResult]:
        """See `Evaluator`."""
        dataset, values = open_labelled(self, name, context, self.label_field)
        classes = read_names(self.classes, "classes") if self.classes else sorted(set(values) - {""})
        labels = number(values, classes, self.labels, dataset.where)
        prompts = read_prompts(self.prompts, classes, "prompts")
        # Classes with the same prompts get the same scores, bit by bit: which one comes first is the rule for ties.
        prepared = [tuple(map(context.prepare, own)) for own in prompts]
        kinds = list(dict.fromkeys(prepared))
        place = {own: i for i, own in enumerate(kinds)}
        columns = [place[own] for own in prepared]
        texts = [prompt for own in kinds for prompt in own]
        embedder, prefix = Embedder(context, self.batch_size, self.between), f"zero_shot/{name}"
        if not texts:
            raise DataError("prompts: there is none")

        def run(params: Mapping) -> EvalResult:
            weights = ensemble(embedder.texts(params, texts), [len(own) for own in kinds])
            similarities = (embedder.samples(params, dataset) @ weights.T)[:, columns]
            metrics, scores = accuracy(similarities, labels, dataset.names)
            details = confusion(similarities, labels, classes)
            return EvalResult(
                {f"{prefix}/{key}": value for key, value in metrics.items()}, scores={prefix: scores},
                details={f"{prefix}/{key}": rows for key, rows in details.items()},
            )  # fmt: skip

        return run


def accuracy(scores: np.ndarray, labels: np.ndarray, names: Sequence[str] = ()) -> tuple[dict[str, float], Scores]:
    """Returns top1, top5 (with six classes or more) and mean_per_class, with chance levels; and what they are means of.

    Args:
      scores: [samples, classes]; for ties see `ranking`.
      labels: [samples]; -1 leaves a sample out.
      names: of the samples.
    """
    used = labels >= 0
    scores, labels, names = scores[used], labels[used], [name for name, use in zip(names, used) if use]
    classes = scores.shape[1]
    rank = class_ranks(scores, labels)
    hits = {f"top{k}": rank < k for k in (1, 5) if k == 1 or classes > k}
    found = Scores(hits, digest_of(names), group=labels, macro={"mean_per_class": "top1"})
    chance = {"top1": 1 / classes, "top5": 5 / classes, "mean_per_class": 1 / classes}
    metrics = {}
    for name, value in found.figures().items():
        metrics |= {name: value, f"chance/{name}": chance[name]}
    return metrics | {"images": float(len(labels)), "classes": float(classes)}, found


def confusion(scores: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> dict[str, list[dict]]:
    """Returns how well each class is found and what it is taken for most, and the most frequent confusions.

    Args:
      scores: [samples, classes]; for ties see `ranking`.
      labels: [samples]; -1 leaves a sample out.
      classes: names.
    """
    scores, labels = scores[labels >= 0], labels[labels >= 0]
    given = answers(scores, labels)
    counts = np.bincount(labels, minlength=len(classes))
    pairs, times = np.unique(np.stack([labels, given], axis=1), axis=0, return_counts=True)
    right = pairs[:, 0] == pairs[:, 1]
    found = np.zeros(len(classes), int)
    found[pairs[right, 0]] = times[right]
    wrong = [(int(n), int(a), int(b)) for (a, b), n in zip(pairs[~right], times[~right])]
    wrong.sort(key=lambda row: (-row[0], -row[0] / counts[row[1]], row[1:]))
    most: dict[int, tuple[int, int]] = {}
    for n, a, b in wrong:
        most.setdefault(a, (b, n))
    per_class = [
        {"class": classes[c], "images": int(counts[c]), "recall": float(found[c] / counts[c])}
        | ({"taken_for": classes[most[c][0]], "share": most[c][1] / float(counts[c])} if c in most else {})
        for c in np.flatnonzero(counts).tolist()
    ]
    confusions = [
        {"class": classes[a], "taken_for": classes[b], "images": n, "share": n / float(counts[a])}
        for n, a, b in wrong[:CONFUSIONS]
    ]
    return {"per_class": per_class, "confusions": confusions}
