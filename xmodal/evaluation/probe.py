"""What a linear classifier finds in the image embeddings: trained on all samples, or on a few of each class."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.stream.evalset import EvalSet
from xmodal.evaluation.base import EvalContext, EvalResult, Evaluator
from xmodal.evaluation.classes import number, open_labelled
from xmodal.evaluation.embedding import Embedder
from xmodal.evaluation.linear import fit_logistic, fit_means, fit_ridge
from xmodal.evaluation.ranking import class_ranks
from xmodal.evaluation.zero_shot import accuracy, confusion
from xmodal.reporting.scores import Scores, digest_of

Data = str | tuple[str, ...] | dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Probe(Evaluator):
    """Samples to train on beside those to test on.

    Attributes:
      tower: whose embeddings are the features.
      label_field: json field, column or feature that holds the class of a sample; `cls` is also the tar member.
      train: samples to train on: as `urls`, or an entry as in `data.sources`. `limit` holds for each set.
    """

    tower: str = "image"
    label_field: str = "label"
    train: Data = ()

    def __post_init__(self):
        super().__post_init__()
        if not self.train:
            raise ValueError("`train` names the samples to train on: as `urls`, or an entry as in data.sources")

    @property
    def needs(self) -> frozenset[str]:
        """The features alone."""
        return frozenset({f"{self.tower}.pooled"})

    def labelled(self, name: str, context: EvalContext, where: str = "") -> tuple[EvalSet, list[str]]:
        """Opens the samples of an option of this entry, by default those to test on, with their classes."""
        if not where:
            return open_labelled(self, name, context, self.label_field)
        return open_labelled(self, name, context, self.label_field, data=getattr(self, where), where=where)


@dataclasses.dataclass(frozen=True)
class LinearProbe(Probe):
    """Multinomial logistic regression on unit embeddings (Radford et al. 2021, section 3.2).

    The penalty is the one with the best accuracy on validation samples; the classifier that is tested is then trained
    on all samples. Test samples of a class that training does not have are left out.

    Attributes:
      val: validation samples, as `train`; () takes a share of the training samples.
      val_share: that share, of each class.
      l2: penalties to choose from, of the mean loss; see `linear.fit_logistic`.
      iterations: of L-BFGS at most; with the weakest penalties it may stop before it converges.
    """

    val: Data = ()
    val_share: float = 0.2
    l2: tuple[float, ...] = (1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
    iterations: int = 200

    def prepare(self, name: str, context: EvalContext) -> Callable[[Mapping], EvalResult]:
        """See `Evaluator`."""
        test, test_values = self.labelled(name, context)
        train, train_values = self.labelled(name, context, "train")
        classes = sorted(set(train_values) - {""})
        val, val_values = self.labelled(name, context, "val") if self.val else (None, [])
        labels = number(test_values, classes, (), test.where)
        own = number(train_values, classes, (), train.where)
        held = stratified(own, self.val_share) if val is None else np.zeros(len(own), bool)
        if val is not None:
            own = np.concatenate([own, number(val_values, classes, (), val.where)])
            held = np.concatenate([held, np.ones(len(val), bool)])
        if not np.any(held & (own >= 0)) or not self.l2:
            raise DataError(f"val_share={self.val_share} of {train.where} leaves no sample to choose the penalty by")
        embedder, prefix = Embedder(context, self.batch_size, (self.tower, self.tower)), f"linear_probe/{name}"

        def run(params: Mapping) -> EvalResult:
            sets = [train] if val is None else [train, val]
            features = np.concatenate([embedder.samples(params, dataset) for dataset in sets])[own >= 0]
            l2, val_top1 = self._penalty(features, own[own >= 0], held[own >= 0], len(classes))
            kernel, bias = fit_logistic(features, own[own >= 0], len(classes), np.array([l2]), self.iterations)
            logits = embedder.samples(params, test) @ kernel[0] + bias[0]
            metrics, scores = accuracy(logits, labels, test.names)
            metrics |= dict(train_images=float(len(features)), val_top1=val_top1, l2=l2)
            details = confusion(logits, labels, classes)
            return EvalResult(
                {f"{prefix}/{key}": value for key, value in metrics.items()}, scores={prefix: scores},
                details={f"{prefix}/{key}": rows for key, rows in details.items()},
            )  # fmt: skip

        return run

    def _penalty(self, x: np.ndarray, y: np.ndarray, held: np.ndarray, classes: int) -> tuple[float, float]:
        """Returns the penalty that is best on the samples that are held out, and the accuracy there."""
        kernels, biases = fit_logistic(x[~held], y[~held], classes, np.array(self.l2), self.iterations)
        right = [float(np.mean(class_ranks(x[held] @ k + b, y[held]) == 0)) for k, b in zip(kernels, biases)]
        top1, l2 = max(zip(right, self.l2))  # of equals the stronger penalty
        return l2, top1


@dataclasses.dataclass(frozen=True)
class FewShot(Probe):
    """A classifier in closed form from a few samples of each class, the mean over several draws of them.

    The intervals are those of the test images with these draws; `draw_std` is how much the draws differ.

    Attributes:
      shots: samples of each class; a class that has fewer gives all.
      draws: of them.
      method: "ridge" (least squares) or "mean" (nearest class mean).
      l2: penalty of ridge, of the mean squared error.
    """

    shots: tuple[int, ...] = (1, 5, 10)
    draws: int = 5
    method: Literal["ridge", "mean"] = "ridge"
    l2: float = 1e-2

    def prepare(self, name: str, context: EvalContext) -> Callable[[Mapping], EvalResult]:
        """See `Evaluator`."""
        test, test_values = self.labelled(name, context)
        train, train_values = self.labelled(name, context, "train")
        classes = sorted(set(train_values) - {""})
        own = number(train_values, classes, (), train.where)
        labels = number(test_values, classes, (), test.where)
        if self.draws < 1 or not self.shots or min(self.shots) < 1:
            raise DataError(f"shots={self.shots}, draws={self.draws}: at least one sample and one draw")
        embedder, prefix = Embedder(context, self.batch_size, (self.tower, self.tower)), f"few_shot/{name}"
        used, options = labels >= 0, (self.l2,) if self.method == "ridge" else ()
        fit = {"ridge": fit_ridge, "mean": fit_means}[self.method]
        digest = digest_of(name for name, use in zip(test.names, used) if use)

        def run(params: Mapping) -> EvalResult:
            features, seen = embedder.samples(params, train), embedder.samples(params, test)[used]
            metrics, scores = {}, {}
            for k in self.shots:
                hits = []
                for draw in range(self.draws):
                    rows = drawn(own, k, draw)
                    kernel, bias = fit(features[rows], own[rows], len(classes), *options)
                    hits.append(class_ranks(seen @ kernel + bias, labels[used]) == 0)
                group = f"{prefix}/{k}_shot"
                scores[group] = Scores({"top1": np.mean(hits, axis=0)}, digest)
                metrics |= {f"{group}/top1": float(np.mean(hits)), f"{group}/chance/top1": 1 / len(classes)}
                metrics[f"{group}/draw_std"] = float(np.std(np.mean(hits, axis=1)))
            metrics |= {f"{prefix}/images": float(used.sum()), f"{prefix}/classes": float(len(classes))}
            return EvalResult(metrics, scores=scores)

        return run


def stratified(labels: np.ndarray, share: float) -> np.ndarray:
    """Marks a share of the samples of each class but never all of them, bool [samples]; -1 is no class."""
    rank, counts = _places(labels, 0), np.bincount(labels + 1)
    held = np.minimum(np.round(share * counts), np.maximum(counts - 1, 0))
    return (labels >= 0) & (rank < held[labels + 1])


def drawn(labels: np.ndarray, k: int, draw: int) -> np.ndarray:
    """Returns k samples of each class; those of a smaller k are among those of a larger one."""
    return np.flatnonzero((labels >= 0) & (_places(labels, draw) < k))


def _places(labels: np.ndarray, seed: int) -> np.ndarray:
    """The place of each sample within its class, in a random order, int [samples]."""
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    first = np.searchsorted(labels[order], labels[order])
    places = np.empty(len(labels), int)
    places[order] = np.arange(len(labels)) - first
    return places
