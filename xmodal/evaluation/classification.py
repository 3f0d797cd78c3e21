"""Classification by a trained classifier: top-1, top-5 and, where samples have several classes, average precision."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.modalities import Label
from xmodal.evaluation.base import EvalContext, EvalResult, Evaluator
from xmodal.evaluation.embedding import gather, sample_batches, scatter
from xmodal.evaluation.ranking import ranks
from xmodal.evaluation.zero_shot import accuracy, confusion
from xmodal.finite import check_rows
from xmodal.reporting.scores import Scores, digest_of


@dataclasses.dataclass(frozen=True)
class Classification(Evaluator):
    """Accuracy on held-out samples that have a class of the label of `data.inputs`; others are left out and counted.

    Attributes:
      tower: whose pooled output is the logits.
    """

    tower: str = "image"

    @property
    def needs(self) -> frozenset[str]:
        """The logits."""
        return frozenset({f"{self.tower}.pooled"})

    def prepare(self, name: str, context: EvalContext) -> Callable[[Mapping], EvalResult]:
        """See `Evaluator`."""
        label = next(iter(context.inputs.of_type(Label.type).values()), None)
        if label is None:
            raise DataError("a classification needs a label among data.inputs, which says what class a sample has")
        label.check()
        dataset = self.open(name, context, label=label)
        ids = np.stack([label.ids(record.fields) for record in dataset.records])
        forward = jax.jit(functools.partial(_logits, context, f"{self.tower}.pooled"))
        classes = list(label.classes) or [str(i) for i in range(label.number)]
        size, prefix = context.live.rows(self.batch_size), f"classification/{name}"

        def run(params: Mapping) -> EvalResult:
            parts = [None] * len(dataset)
            for batch, index in sample_batches(dataset, context, size):
                scatter(parts, index, gather(forward(params, batch)))
            logits, names = check_rows(np.stack(parts), "the logits", dataset.title), dataset.names
            found, scores = accuracy(logits, ids[:, 0], names) if label.most == 1 else several(logits, ids, names)
            details = confusion(logits, ids[:, 0], classes) if label.most == 1 else {}
            return EvalResult(
                {f"{prefix}/{key}": value for key, value in found.items()}, scores={prefix: scores},
                details={f"{prefix}/{key}": rows for key, rows in details.items()},
            )  # fmt: skip

        return run


def _logits(context: EvalContext, output: str, params: Mapping, batch: Mapping) -> jax.Array:
    return context.model(params, context.preprocess(batch, None), frozenset({output}))[output]


def several(scores: np.ndarray, ids: np.ndarray, names: Sequence[str] = ()) -> tuple[dict[str, float], Scores]:
    """Returns mAP, the mean over classes of the average precision, and top1, with chance levels; and the scores.

    Args:
      scores: [samples, classes]; for ties see `ranking`.
      ids: the classes of each sample, [samples, most], -1 fills up.
      names: of the samples.
    """
    rows, classes = scores.shape
    right = np.zeros((rows, classes + 1), bool)
    right[np.arange(rows)[:, None], ids] = True  # -1 is the last column
    right = right[:, :classes]
    top1 = ranks(scores, right) == 0
    present = np.flatnonzero(right.any(axis=0))
    precision = [average_precision(scores[:, c], right[:, c]) for c in present]
    share = float(right.mean())
    metrics = {
        "mAP": float(np.mean(precision)), "chance/mAP": float(right[:, present].mean()),
        "top1": float(top1.mean()), "chance/top1": share,
        "images": float(rows), "classes": float(classes),
    }  # fmt: skip
    return metrics, Scores({"top1": top1}, digest_of(names))


def average_precision(scores: np.ndarray, right: np.ndarray) -> float:
    """Area under precision over recall, by its steps; for ties and NaN see `ranking`."""
    order = np.lexsort((right, -np.where(np.isnan(scores), np.where(right, -np.inf, np.inf), scores)))
    hits = right[order]
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float(precision[hits].mean())
