"""Masked language modelling: a share of the tokens is hidden, and guessed from all the others."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from xmodal import keys as key_tools
from xmodal.objectives.base import Loss, Objective, View, present, weighed


@dataclasses.dataclass(frozen=True)
class MaskTokens(View):
    """Hides tokens as BERT does (Devlin et al. 2019, section 3.1); marks and padding stay.

    `<input>` [batch, seq] becomes the corrupted ids; beside them stand `<input>_places`, the positions to be guessed,
    and `<input>_targets`, their true ids, both int32 [batch, count], and `<input>_targets_valid`, bool: a text has
    `rate` of its own tokens guessed and at least one, and the count is that of the longest.

    Attributes:
      input: name of the ids.
      mask_id: the id of the mask.
      vocab_size: ids that tokens are replaced by.
      special_ids: of them those that are marks, in rising order.
      rate: share of the tokens that are guessed.
      mask_share: share of these that the mask stands for.
      random_share: share of these that any other token stands for; the rest is left as it is.
    """

    input: str = "text"
    mask_id: int = 0
    vocab_size: int = 0
    special_ids: tuple[int, ...] = ()
    rate: float = 0.15
    mask_share: float = 0.8
    random_share: float = 0.1

    def __call__(self, batch, keys):
        """See `View`; without keys every batch of a size hides the same places."""
        ids, valid = batch[self.input], batch[f"{self.input}_valid"]
        keys = key_tools.sample_keys(0, 0, len(ids)) if keys is None else keys
        length = ids.shape[1]
        count = max(1, round(self.rate * length))
        free = valid & ~jnp.isin(ids, jnp.asarray(self.special_ids, ids.dtype))
        # Free places come first, in random order; `order` undoes itself by a second sort.
        chance = jnp.where(free, key_tools.uniform(key_tools.fold(keys, "places"), (length,)), 2.0)
        order = jnp.argsort(chance, axis=1)
        own = jnp.sum(free, axis=1)
        wanted = jnp.minimum(jnp.clip(jnp.round(self.rate * own), 1, count), own)
        chosen = jnp.argsort(order, axis=1) < wanted[:, None]
        corrupted = jnp.where(chosen, self._replaced(ids, key_tools.fold(keys, "kind")), ids)
        places = order[:, :count]
        return {
            **batch,
            self.input: corrupted,
            f"{self.input}_places": places,
            f"{self.input}_targets": jnp.take_along_axis(ids, places, axis=1),
            f"{self.input}_targets_valid": jnp.arange(count) < wanted[:, None],
        }

    def _replaced(self, ids: jax.Array, keys: jax.Array) -> jax.Array:
        """What would stand for each token if it were hidden."""
        kind = key_tools.uniform(keys, ids.shape[1:])
        other = key_tools.uniform(key_tools.fold(keys, "other"), ids.shape[1:])
        other = jnp.floor(other * (self.vocab_size - len(self.special_ids))).astype(ids.dtype)
        for mark in sorted(self.special_ids):  # counts the ordinary ids alone
            other += other >= mark
        random = jnp.where(kind < self.mask_share + self.random_share, other, ids)
        return jnp.where(kind < self.mask_share, jnp.asarray(self.mask_id, ids.dtype), random)


@dataclasses.dataclass(frozen=True)
class MaskedText(Objective):
    """Cross-entropy of the hidden tokens, mean over those of the global batch (BERT, section 3.1).

    Attributes:
      tower: whose `masked_logits` [batch, count, vocab] guess; it must see the whole text.
      rate: share of the tokens that are guessed.
      mask_share: share of these that the mask stands for.
      random_share: share of these that any other token stands for; the rest is left as it is.
      mask_id: the id of the mask; -1 takes the tokenizer's.
      vocab_size: ids that tokens are replaced by; 0 takes the tokenizer's.
      special_ids: ids that are neither hidden nor put in; () takes the tokenizer's marks.
    """

    tower: str = "text"
    rate: float = 0.15
    mask_share: float = 0.8
    random_share: float = 0.1
    mask_id: int = -1
    vocab_size: int = 0
    special_ids: tuple[int, ...] = ()

    def __post_init__(self):
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate={self.rate}: expected a share above 0, up to 1")
        if min(self.mask_share, self.random_share) < 0 or self.mask_share + self.random_share > 1:
            raise ValueError(
                f"mask_share={self.mask_share} and random_share={self.random_share}: expected shares from 0 whose sum "
                "is at most 1"
            )

    @classmethod
    def settle(cls, entry: Mapping[str, Any], tokenizer: Any, sources: tuple[str, ...] = ()) -> dict[str, Any]:
        """Takes the ids that the entry does not give from the tokenizer."""
        given = {"mask_id": entry.get("mask_id", -1)}
        if given["mask_id"] == -1:
            if tokenizer.mask_id is None:
                raise ValueError(
                    "the tokenizer has no mask ([MASK] or <mask>): take one that has, such as a WordPiece "
                    "(data_pipelines.text.tokenizers.train_wordpiece), or give an unused id as mask_id"
                )
            given["mask_id"] = tokenizer.mask_id
        given["vocab_size"] = entry.get("vocab_size") or tokenizer.vocab_size
        return given | {"special_ids": entry.get("special_ids") or tokenizer.special_ids}

    @property
    def view(self) -> View:
        """Hides tokens of what the tower reads."""
        names = (field.name for field in dataclasses.fields(MaskTokens) if field.name != "input")
        return MaskTokens(**{name: getattr(self, name) for name in names})

    @property
    def needs(self) -> frozenset[str]:
        """The tower's logits at the hidden places."""
        return frozenset({f"{self.tower}.masked_logits"})

    def check(self, model_spec) -> None:
        """The tower must embed the text itself and see all of it, and have a row for the mask."""
        tower = model_spec.towers[self.tower]
        if getattr(tower.embed, "input", "") != MaskTokens().input:
            raise ValueError(f"tower {self.tower!r} embeds no text, so none of its tokens can be hidden")
        if tower.embed.causal:
            raise ValueError(
                f"tower {self.tower!r} sees only what comes before a token: set model.towers.{self.tower}.embed.causal "
                "to False"
            )
        if self.mask_id >= tower.embed.vocab_size:
            raise ValueError(
                f"mask_id={self.mask_id} is no row of the token table of tower {self.tower!r}, which has "
                f"{tower.embed.vocab_size}"
            )

    def chance_loss(self, batch_size: int, model_spec) -> float:
        """Log of the vocabulary."""
        return math.log(model_spec.outputs[f"{self.tower}.masked_logits"])

    def __call__(self, outputs, batch, params, mesh):
        logits, targets = outputs[f"{self.tower}.masked_logits"], batch["text_targets"]
        weight = present(batch["text_targets_valid"].astype(jnp.float32), batch)
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        right = jnp.sum((jnp.argmax(logits, axis=-1) == targets) * weight)
        count = jnp.sum(weight)
        return Loss(jnp.sum(weighed(nll * weight, batch)), count, {"accuracy": right / jnp.maximum(count, 1.0)})
