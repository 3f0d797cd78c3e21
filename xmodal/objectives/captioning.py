"""Captioning: next-token prediction from an image prefix or by cross-attention to the image."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import optax

from xmodal.objectives.base import Loss, Objective, present, weighed


@dataclasses.dataclass(frozen=True)
class Captioning(Objective):
    """Next-token cross-entropy, mean over the valid target tokens of the global batch (CoCa, section 3.2; GIT, 3.1).

    Attributes:
      tower: the tower whose `logits` [batch, seq, vocab] predict the text shifted by one.
      target: name of the ids in the batch; `<target>_valid` marks what counts.
      label_smoothing: share of the target spread over the vocabulary (GIT uses 0.1).
    """

    tower: str = "caption"
    target: str = "text"
    label_smoothing: float = 0.0

    @property
    def needs(self) -> frozenset[str]:
        """The logits of the captioning tower."""
        return frozenset({f"{self.tower}.logits"})

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
        return math.log(model_spec.towers[self.tower].outputs)

    def __call__(self, outputs, batch, params, mesh):
        logits, targets = outputs[f"{self.tower}.logits"][:, :-1], batch[self.target][:, 1:]
        weight = present(batch[f"{self.target}_valid"][:, 1:].astype(jnp.float32), batch)
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        if self.label_smoothing:
            uniform = -jnp.mean(jax.nn.log_softmax(logits, axis=-1), axis=-1)
            nll = (1.0 - self.label_smoothing) * nll + self.label_smoothing * uniform
        right = jnp.sum((jnp.argmax(logits, axis=-1) == targets) * weight)
        count = jnp.sum(weight)
        return Loss(jnp.sum(weighed(nll * weight, batch)), count, {"accuracy": right / jnp.maximum(count, 1.0)})
