"""Captioning: next-token prediction from an image prefix or by cross-attention to the image."""

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from xmodal.models.heads.logits import logits_of
from xmodal.objectives.base import Loss, Objective, present, weighed


@dataclasses.dataclass(frozen=True)
class Captioning(Objective):
    """Next-token cross-entropy, mean over the valid target tokens of the global batch (CoCa, section 3.2; GIT, 3.1).

    Attributes:
      tower: the tower whose `logits` [batch, seq, vocab] predict the text shifted by one.
      target: name of the ids in the batch; `<target>_loss` says what counts, or else `<target>_valid`.
      label_smoothing: share of the target spread over the vocabulary (GIT uses 0.1).
      positions: of the texts, whose logits are held in memory at a time, also in the backward pass: large vocabularies
        cost little memory then, and one more product with the head. 0: all at once.
    """

    tower: str = "caption"
    target: str = "text"
    label_smoothing: float = 0.0
    positions: int = 0

    @property
    def needs(self) -> frozenset[str]:
        """The logits of the captioning tower, or what they are products of."""
        return frozenset({f"{self.tower}.{'logit_factors' if self.positions else 'logits'}"})

    @property
    def inputs(self) -> frozenset[str]:
        """The text that is predicted."""
        return frozenset({self.target})

    def check(self, model_spec) -> None:
        """The text that the tower predicts, embedded or read from another tower, must be causal."""
        for name in (self.tower, *model_spec.towers[self.tower].reads):
            embed = model_spec.towers[name].embed
            if getattr(embed, "input", "") == self.target and not embed.causal:
                raise ValueError(
                    f"tower {name!r} sees the whole caption, so predicting its next token is trivial: "
                    f"set model.towers.{name}.embed.causal to True"
                )

    def chance_loss(self, batch_size: int, model_spec) -> float:
        """Log of the vocabulary."""
        return math.log(model_spec.outputs[f"{self.tower}.logits"])

    def __call__(self, outputs, batch, params, mesh):
        targets = batch[self.target][:, 1:]
        weight = batch.get(f"{self.target}_loss", batch[f"{self.target}_valid"])[:, 1:]
        weight = present(weight.astype(jnp.float32), batch)
        if self.positions:
            factors = outputs[f"{self.tower}.logit_factors"]
            nll, hits = by_parts(factors, targets, self.positions, self.label_smoothing)
        else:
            nll, hits = token_losses(outputs[f"{self.tower}.logits"][:, :-1], targets, self.label_smoothing)
        right, count = jnp.sum(hits * weight), jnp.sum(weight)
        return Loss(jnp.sum(weighed(nll * weight, batch)), count, {"accuracy": right / jnp.maximum(count, 1.0)})


def token_losses(logits: jax.Array, targets: jax.Array, label_smoothing: float) -> tuple[jax.Array, jax.Array]:
    """Returns cross-entropies float32 [batch, seq], and bool [batch, seq]: whether the best guess is the target.

    Args:
      logits: [batch, seq, vocab].
      targets: int32 [batch, seq].
      label_smoothing: share of the target spread over the vocabulary.
    """
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    if label_smoothing:
        uniform = -jnp.mean(jax.nn.log_softmax(logits, axis=-1), axis=-1)
        nll = (1.0 - label_smoothing) * nll + label_smoothing * uniform
    return nll, jnp.argmax(logits, axis=-1) == targets


def by_parts(
    factors: Mapping[str, jax.Array], targets: jax.Array, positions: int, label_smoothing: float
) -> tuple[jax.Array, jax.Array]:
    """Computes `token_losses` of some positions at a time: exact, and no array is as large as all logits.

    Args:
      factors: of the logits of [batch, seq + 1] positions, see `LogitFactorsSpec`; the last predicts nothing.
      targets: int32 [batch, seq].
      positions: at a time.
      label_smoothing: as for `token_losses`.
    """
    batch, length = targets.shape
    count = -(-length // positions)
    pad = lambda a: jnp.pad(a, ((0, 0), (0, count * positions - length), *((0, 0),) * (a.ndim - 2)))
    split = lambda a: pad(a).reshape(batch, count, positions, *a.shape[2:]).swapaxes(0, 1)
    join = lambda a: a.swapaxes(0, 1).reshape(batch, -1)[:, :length]

    @jax.checkpoint  # the backward pass, too, holds the logits of one part
    def losses(x, ids, kernel, bias):
        return token_losses(logits_of(x, kernel, bias), ids, label_smoothing)

    step = lambda _, part: (None, losses(*part, factors["kernel"], factors["bias"]))
    _, found = jax.lax.scan(step, None, (split(factors["x"][:, :length]), split(targets)))
    return jax.tree.map(join, found)
