"""Supervised classification: the pooled output of a tower holds one logit for each class."""

import dataclasses
import math
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import optax

from data_pipelines.images.mix import mix_targets
from xmodal.objectives.base import Loss, Objective, count_rows, mean_rows, weighed


@dataclasses.dataclass(frozen=True)
class Classification(Objective):
    """Cross entropy with the classes of `data.inputs.label`, mean over the global batch.

    The classifier is the tower's projection: `embed_dim` of the tower is the number of classes.

    Attributes:
      tower: whose `pooled` [batch, classes] are the logits.
      loss: softmax, one class a sample (of several each has an equal share), or sigmoid, each class by itself, summed
        over the classes (Beyer et al. 2020, "Are we done with ImageNet?").
      label_smoothing: share of the target spread over all classes (Szegedy et al. 2016); with sigmoid the targets are
        drawn towards 1 / 2 by it.
    """

    tower: str = "image"
    loss: Literal["softmax", "sigmoid"] = "softmax"
    label_smoothing: float = 0.0
    takes_mixed: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = True

    def __post_init__(self):
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing={self.label_smoothing}: expected a share from 0, below 1")

    @property
    def needs(self) -> frozenset[str]:
        """The logits: the tower's pooled output."""
        return frozenset({f"{self.tower}.pooled"})

    @property
    def inputs(self) -> frozenset[str]:
        """The classes."""
        return frozenset({"label"})

    def check(self, model_spec) -> None:
        """The tower must have a projection, which is the classifier."""
        if not model_spec.towers[self.tower].embed_dim:
            raise ValueError(
                f"model.towers.{self.tower}.heads.pooled.embed_dim is 0: the tower's projection is the "
                "classifier, so it must be the number of classes"
            )

    def chance_loss(self, batch_size: int, model_spec) -> float:
        """Entropy of guessing evenly: log of the classes, or log 2 for each of them."""
        classes = model_spec.towers[self.tower].embed_dim
        return math.log(classes) if self.loss == "softmax" else classes * math.log(2)

    def __call__(self, outputs, batch, params, mesh):
        logits, label = outputs[f"{self.tower}.pooled"], batch["label"]
        classes = logits.shape[-1]
        labels = jnp.max(jax.nn.one_hot(label, classes), axis=1)  # [batch, classes]; -1, which fills rows up, is none
        targets = labels
        if self.loss == "softmax":
            targets = targets / jnp.maximum(jnp.sum(targets, axis=-1, keepdims=True), 1.0)
        if "mix_weight" in batch:
            targets = mix_targets(targets, batch["mix_weight"])
        share = self.label_smoothing
        if self.loss == "softmax":
            losses = optax.softmax_cross_entropy(logits, (1 - share) * targets + share / classes)
        else:
            losses = jnp.sum(optax.sigmoid_binary_cross_entropy(logits, (1 - share) * targets + share / 2), axis=-1)
        right = jnp.take_along_axis(labels, jnp.argmax(logits, axis=-1, keepdims=True), axis=-1)[:, 0]
        count = count_rows(batch, len(losses))
        return Loss(jnp.sum(weighed(losses, batch)), count, {"accuracy": mean_rows(right, batch)})
