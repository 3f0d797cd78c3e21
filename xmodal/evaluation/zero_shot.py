"""Zero-shot classification: class names become prompts, and an image takes the class whose prompts it is closest to."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from data_pipelines.errors import DataError
from xmodal.evaluation.base import EvalContext, EvalResult, Evaluator
from xmodal.evaluation.embedding import Embedder


@dataclasses.dataclass(frozen=True)
class ZeroShot(Evaluator):
    """Top-1, top-5 and mean per-class accuracy; prompts of a class are averaged after normalisation, as in CLIP.

    Attributes:
      label_field: json field that holds the class of a sample.
      classes: class names; () takes all values of the field. A sample of another class is left out.
      prompts: templates with `{label}`.
    """

    label_field: str = "label"
    classes: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ("{label}",)

    def prepare(self, name: str, context: EvalContext) -> Callable[[Mapping], EvalResult]:
        """See `Evaluator`."""
        dataset = self.open(name, context)
        values = [str(record.get(self.label_field, "")) for record in dataset.records]
        classes = list(self.classes or sorted(set(values) - {""}))
        if not set(classes) & set(values):
            raise DataError(
                f"no sample of {dataset.where} has one of its classes in its field {self.label_field!r}; "
                f"fields there: {', '.join(sorted(dataset.records[0]))}"
            )
        if bad := [prompt for prompt in self.prompts if "{label}" not in prompt]:
            raise DataError(f"prompts: {bad[0]!r} has no place for the class name, {{label}}")
        number = {c: i for i, c in enumerate(classes)}
        labels = np.array([number.get(value, -1) for value in values])
        texts = [prompt.replace("{label}", c) for c in classes for prompt in self.prompts]
        embedder, prefix = Embedder(context, self.batch_size), f"zero_shot/{name}"

        def run(params: Mapping) -> EvalResult:
            weights = embedder.texts(params, texts).reshape(len(classes), len(self.prompts), -1).mean(axis=1)
            weights /= np.maximum(np.linalg.norm(weights, axis=1, keepdims=True), 1e-12)
            scores = embedder.images(params, dataset) @ weights.T
            return EvalResult({f"{prefix}/{key}": v for key, v in accuracy(scores, labels).items()})

        return run


def accuracy(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Returns top1, top5 (with six classes or more) and mean_per_class, with chance levels.

    Args:
      scores: [samples, classes]; ties count against the sample.
      labels: [samples]; -1 leaves a sample out.
    """
    scores, labels = scores[labels >= 0], labels[labels >= 0]
    classes = scores.shape[1]
    own = scores[np.arange(len(labels)), labels]
    rank = np.sum(scores >= own[:, None], axis=1) - 1
    top1 = rank < 1
    per_class = [top1[labels == c].mean() for c in np.unique(labels)]
    metrics = {"top1": float(top1.mean()), "chance/top1": 1.0 / classes}
    if classes > 5:
        metrics |= {"top5": float(np.mean(rank < 5)), "chance/top5": 5.0 / classes}
    return metrics | {
        "mean_per_class": float(np.mean(per_class)), "chance/mean_per_class": 1.0 / classes,
        "images": float(len(labels)), "classes": float(classes),
    }  # fmt: skip
