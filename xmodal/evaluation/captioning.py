"""Captioning of held-out images: greedy decoding, compared with the true caption and with constant answers."""

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from data_pipelines.errors import DataError
from xmodal.evaluation.base import EvalContext, EvalResult, Evaluator
from xmodal.evaluation.embedding import gather, sample_batches, scatter
from xmodal.evaluation.gallery import choose, thumbnail
from xmodal.finite import check_rows
from xmodal.generation.autoregressive import generate
from xmodal.reporting.scores import Scores, digest_of


@dataclasses.dataclass(frozen=True)
class Captioning(Evaluator):
    """Exact match with the true caption, and token accuracy: the share of true tokens found at their place.

    The chance levels are what the best constant answer reaches: one true caption given for every image. For the exact
    match that is the most common one.

    Attributes:
      tower: the tower that writes.
      examples: captions shown in the report.
    """

    tower: str = "caption"
    examples: int = 24

    @property
    def needs(self) -> frozenset[str]:
        """The logits of the writing tower."""
        return frozenset({f"{self.tower}.logits"})

    def prepare(self, name: str, context: EvalContext) -> Callable[[Mapping], EvalResult]:
        """See `Evaluator`."""
        dataset, text = self.open(name, context), context.text
        tokenizer, length, prefix = text.vocabulary, text.length, f"captioning/{name}"
        if len(tokenizer.prefix) != 1:
            raise DataError(
                f"captioning writes on from one begin token, and the tokenizer ({text.where}.tokenizer) puts "
                f"{len(tokenizer.prefix)} before a text: leave this evaluation out, or take another tokenizer"
            )
        truth = [record.captions[0] for record in dataset.records]
        ids, valid = tokenizer.encode(truth, length)
        batch_size = context.live.rows(self.batch_size)

        @jax.jit
        def write(params, batch):
            return generate(
                context.model, params, context.preprocess(batch, None), tower=self.tower, length=length,
                bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id,
            )  # fmt: skip

        def run(params: Mapping) -> EvalResult:
            parts: list = [None] * len(dataset)
            for batch, index in sample_batches(dataset, context, batch_size):
                scatter(parts, index, gather(write(params, batch)))
            written = np.stack(parts)
            check_rows(np.where(written < 0, np.nan, 0.0), "a token's score in the caption", dataset.title)
            texts = [tokenizer.decode(row.tolist()) for row in written]
            right = np.array([a.strip() == b.strip() for a, b in zip(texts, truth)])
            found = grade(written, ids, valid, right, dataset.names)
            figures = found.figures() | baselines(ids, valid, truth)
            shown = [
                {
                    "image": thumbnail(dataset, i),
                    "truth": truth[i],
                    "generated": texts[i],
                    "correct": bool(right[i]),
                }
                for i in choose(right, self.examples)
            ]
            metrics = {f"{prefix}/{key}": value for key, value in figures.items()}
            return EvalResult(metrics, {prefix: {"captions": shown}}, {prefix: found})

        return run


def grade(
    written: np.ndarray, ids: np.ndarray, valid: np.ndarray, right: np.ndarray, names: Sequence[str] = ()
) -> Scores:
    """Returns exact matches, and the true tokens that were found of those that there are.

    Args:
      written: generated ids [samples, length], begin mark first.
      ids: true ids [samples, length].
      valid: bool [samples, length].
      right: bool [samples], exact matches.
      names: of the samples.
    """
    counts = valid[:, 1:]
    found = (written[:, 1:] == ids[:, 1:]) & counts
    values = {"exact_match": right, "token_accuracy": found.sum(axis=1)}
    return Scores(values, digest_of(names), weights={"token_accuracy": counts.sum(axis=1)})


def baselines(ids: np.ndarray, valid: np.ndarray, truth: list[str]) -> dict[str, float]:
    """Returns what the best constant caption reaches, and the number of images.

    Args:
      ids: true ids [samples, length].
      valid: bool [samples, length].
      truth: true captions.
    """
    answers, counts = ids[:, 1:], valid[:, 1:]
    constant = np.zeros(len(ids))  # true tokens that each true caption finds as the answer for all images
    for answer, mask in zip(answers.T, counts.T):
        constant += np.bincount(answer[mask], minlength=answers.max() + 1)[answer]
    return {
        "chance/exact_match": collections.Counter(truth).most_common(1)[0][1] / len(truth),
        "chance/token_accuracy": float(constant.max() / np.sum(counts)),
        "images": float(len(truth)),
    }
