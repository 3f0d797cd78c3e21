"""The shape of the embeddings: how spread they are, how close true pairs lie, how far the modalities are apart."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from xmodal.evaluation.base import EvalContext, EvalResult, Evaluator
from xmodal.evaluation.embedding import Embedder

ROWS = 1024  # points whose distances to all others are held at a time


@dataclasses.dataclass(frozen=True)
class EmbeddingHealth(Evaluator):
    """Uniformity and effective rank of each tower; alignment and modality gap of both.

    Attributes:
      towers: one or two; one that reads texts embeds the first caption of each sample.
    """

    towers: tuple[str, ...] = ("image", "text")

    def __post_init__(self):
        super().__post_init__()
        if not 1 <= len(set(self.towers)) == len(self.towers) <= 2:
            raise ValueError(f"towers={self.towers}: expected one tower, or two")

    @property
    def needs(self) -> frozenset[str]:
        """Their embeddings."""
        return frozenset(f"{tower}.pooled" for tower in self.towers)

    def prepare(self, name: str, context: EvalContext) -> Callable[[Mapping], EvalResult]:
        """See `Evaluator`."""
        dataset = self.open(name, context)
        texts = [record.captions[0] for record in dataset.records if record.captions]
        prefix, embedders = f"embeddings/{name}", {t: Embedder(context, self.batch_size, (t, t)) for t in self.towers}

        def embed(tower: str, params: Mapping) -> np.ndarray:
            embedder = embedders[tower]
            reads_text = context.input_of(tower) in context.inputs.texts
            return embedder.texts(params, texts) if reads_text else embedder.samples(params, dataset)

        def run(params: Mapping) -> EvalResult:
            found = {tower: embed(tower, params).astype(np.float64) for tower in self.towers}
            metrics = {"samples": float(len(dataset))}
            for tower, x in found.items():
                metrics |= {f"{tower}/uniformity": uniformity(x), f"{tower}/effective_rank": effective_rank(x)}
                metrics[f"{tower}/mean_norm"] = float(np.linalg.norm(x.mean(axis=0)))
            if len(found) == 2:
                x, y = found.values()
                metrics["pairs/alignment"] = alignment(x, y)
                metrics["pairs/modality_gap"] = modality_gap(x, y)
            return EvalResult({f"{prefix}/{key}": value for key, value in metrics.items()})

        return run


def uniformity(x: np.ndarray) -> float:
    """log of the mean of exp(-2 |x - y|^2) over pairs of points (Wang & Isola 2020, section 4.1); lower is more even.

    Args:
      x: unit vectors [points, dim], at least two.
    """
    total = 0.0
    for start in range(0, len(x), ROWS):
        total += np.sum(np.exp(4.0 * (x[start : start + ROWS] @ x.T - 1.0)))
    return float(np.log((total - len(x)) / (len(x) * (len(x) - 1.0))))  # without each point and itself


def alignment(x: np.ndarray, y: np.ndarray) -> float:
    """Mean squared distance of true pairs (Wang & Isola 2020, section 4.1, with alpha 2); unit vectors [pairs, dim]."""
    return float(np.mean(np.sum((x - y) ** 2, axis=1)))


def modality_gap(x: np.ndarray, y: np.ndarray) -> float:
    """Distance of the centres of two modalities (Liang et al. 2022, section 4); unit vectors [points, dim]."""
    return float(np.linalg.norm(x.mean(axis=0) - y.mean(axis=0)))


def effective_rank(x: np.ndarray) -> float:
    """Exponential of the entropy of the singular values as shares of their sum (Roy & Vetterli 2007); [points, dim]."""
    values = np.linalg.svd(x, compute_uv=False)
    shares = values[values > 0] / np.sum(values)
    return float(np.exp(-np.sum(shares * np.log(shares))))
