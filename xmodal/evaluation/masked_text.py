"""Masked language modelling on held-out texts: how many hidden tokens are guessed, and pseudo-perplexity."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from data_pipelines.errors import DataError
from data_pipelines.modalities import Text
from xmodal.evaluation.base import EvalContext, EvalResult, Evaluator
from xmodal.evaluation.embedding import gather, text_batches
from xmodal.finite import check_rows
from xmodal.objectives.masked_text import MaskedText as Objective


@dataclasses.dataclass(frozen=True)
class MaskedText(Evaluator):
    """Accuracy and perplexity of hidden tokens. Equal texts count once, and what is hidden is the same at every call.

    The chance level of the accuracy is what the most common of the hidden tokens reaches as the answer to all.

    Attributes:
      tower: that guesses.
      hide: a `share` of the tokens at a time, as in training; or `each` by itself, which takes as many passes as a text
        has tokens: the perplexity is then the pseudo-perplexity of Salazar et al. 2020.
      rate: share of the tokens that are hidden.
      repeats: passes with other tokens hidden.
    """

    tower: str = "text"
    hide: Literal["share", "each"] = "share"
    rate: float = 0.15
    repeats: int = 4

    @property
    def needs(self) -> frozenset[str]:
        """The tower's logits at the hidden places."""
        return frozenset({f"{self.tower}.masked_logits"})

    def prepare(self, name: str, context: EvalContext) -> Callable[[Mapping], EvalResult]:
        """See `Evaluator`."""
        dataset, prefix = self.open(name, context, files=False), f"masked_text/{name}"
        texts = list(dict.fromkeys(text for record in dataset.records for text in record.captions))
        size = context.live.rows(self.batch_size)
        turns = self.repeats
        if self.hide == "each":
            text = self._text(context)
            turns = int(text.encode(texts)[text.valid].sum(axis=1).max())
        guess = context.once((self.tower, self.hide, self.rate), lambda: self._guess(context))

        def results(params: Mapping) -> Iterator[tuple[np.ndarray, ...]]:
            for batch, index in text_batches(texts, context, size, self.tower):
                for turn in range(turns):
                    nll, right, targets, valid = map(gather, guess(params, batch, turn))
                    counts = valid & (index >= 0)[:, None]
                    named = lambda i: f"the text {texts[index[i]]!r}"  # noqa: B023 (used at once)
                    check_rows(np.where(counts, nll, 0), "the loss of a hidden token", named)
                    yield nll[counts], right[counts], targets[counts]

        def run(params: Mapping) -> EvalResult:
            nll, right, targets = map(np.concatenate, zip(*results(params)))
            found = {
                "accuracy": float(np.mean(right)),
                "chance/accuracy": float(np.max(np.bincount(targets)) / len(targets)),
                "loss": float(np.mean(nll, dtype=np.float64)),
                "perplexity": math.exp(min(float(np.mean(nll, dtype=np.float64)), 700.0)),
                "texts": float(len(texts)),
                "tokens": float(len(targets)),
            }
            return EvalResult({f"{prefix}/{key}": value for key, value in found.items()})

        return run

    def _text(self, context: EvalContext) -> Text:
        return context.inputs.texts[context.input_of(self.tower)]

    def _guess(self, context: EvalContext) -> Callable:
        """Returns jitted (params, batch, turn) -> loss, hit, target and validity of hidden tokens, [batch, count]."""
        entry = dict(rate=self.rate, mask_share=1.0, random_share=0.0)
        try:
            objective = Objective(tower=self.tower, **entry, **Objective.settle(entry, self._text(context).vocabulary))
            objective.check(context.model.spec)
        except ValueError as error:
            raise DataError(str(error)) from error
        hide = self._one if self.hide == "each" else self._some

        @jax.jit
        def guess(params, batch, turn):
            hidden = hide(objective, batch, turn)
            (logits,) = context.model(params, hidden, self.needs).values()
            targets = hidden["text_targets"]
            nll = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
            right = (jnp.argmax(logits, axis=-1) == targets) & jnp.isfinite(nll)
            return nll, right, targets, hidden["text_targets_valid"]

        return guess

    @staticmethod
    def _some(objective: Objective, batch: Mapping, turn: jax.Array) -> dict:
        """Hides a share of the tokens, by number of the text and turn alone."""
        first = jax.random.fold_in(jax.random.key(0), turn)
        return objective.view(batch, jax.vmap(functools.partial(jax.random.fold_in, first))(batch["index"]))

    @staticmethod
    def _one(objective: Objective, batch: Mapping, turn: jax.Array) -> dict:
        """Hides the token at the place `turn`; of texts that have a mark or nothing there, none counts."""
        ids = batch["text"]
        targets = jax.lax.dynamic_slice_in_dim(ids, turn, 1, axis=1)
        valid = jax.lax.dynamic_slice_in_dim(batch["text_valid"], turn, 1, axis=1)
        valid &= ~jnp.isin(targets, jnp.asarray(objective.special_ids, ids.dtype))
        here = jnp.arange(ids.shape[1]) == turn
        return {
            **batch, "text": jnp.where(here, objective.mask_id, ids), "text_places": jnp.full_like(targets, turn),
            "text_targets": targets, "text_targets_valid": valid,
        }  # fmt: skip
