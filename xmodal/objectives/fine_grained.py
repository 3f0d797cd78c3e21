"""Objectives that align words with patches: FILIP, SPARC and FLAIR.

They look at the `local` outputs of two towers: every patch and every word in the shared space. What compares all pairs
of a global batch is reduced block by block, around a ring of devices where there are several, and a block slice by
slice: similarities of words and patches exist for a few pairs at a time.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.nn.initializers import lecun_normal

from xmodal import keys as key_tools
from xmodal.models.init import LOGIT_SCALE_CLIP
from xmodal.objectives.base import Loss, Objective, count_rows, mean_rows, present, weighed
from xmodal.objectives.contrastive import (
    SigmoidContrastive,
    SoftmaxContrastive,
    check_widths,
    constant_loss,
    normalize,
    of_all,
    sigmoid_plain,
    sigmoid_ring,
    softmax_plain,
    softmax_ring,
)
from xmodal.objectives.pairs import caption_identities, chunk_size, identities

COLUMNS = 16  # captions of a block
SLICE = 2**22  # numbers that a slice of a block may hold: 16 MiB in float32
_HIGHEST = jax.lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True)
class Filip(SoftmaxContrastive):
    """Token-wise late interaction (Yao et al. 2022, equations 4 to 6), in CLIP's symmetric cross-entropy.

    An image scores a caption by the mean, over its patches, of the cosine with the word that fits best; a caption
    scores an image by the mean over its words of the cosine with the best patch. Padding is no word; marks are.
    All tokens take part: the published code leaves most of them out to save traffic between devices, which a ring does
    not need.
    """

    takes_mixed: ClassVar[bool] = False

    @property
    def needs(self) -> frozenset[str]:
        """Patches and words in the shared space."""
        return frozenset(f"{tower}.local" for tower in self.between)

    def __call__(self, outputs, batch, params, mesh):
        """See `Objective`."""
        x, y = (outputs[f"{tower}.local"] for tower in self.between)
        x, y = ((normalize(side["x"]), side["valid"]) for side in (x, y))
        ids, scale = identities(batch, self.multi_positive), jnp.exp(of_all(params)["logit_scale"])
        sample = self._per_sample(params, batch)
        common = dict(smoothing=self.label_smoothing, scores=late_interaction, sample=sample)
        if self._use_ring(mesh, len(ids)):
            found = softmax_ring(mesh, x, y, (ids,), ids, scale, **common, chunk=COLUMNS)
        else:
            found = softmax_plain(mesh, x, y, (ids,), ids, scale, **common)
        loss, hits_x, hits_y, duplicates = found
        count, (a, b) = count_rows(batch, len(ids)), self.between
        most = jnp.maximum(count, 1.0)
        metrics = {f"{a}_to_{b}": hits_x / most, f"{b}_to_{a}": hits_y / most}
        metrics |= self._temperatures(params) | {"health/duplicate_share": duplicates / most}
        return Loss(loss, count, metrics)


def late_interaction(x: tuple[jax.Array, jax.Array], y: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Scores of all pairs by their best tokens.

    Args:
      x: unit tokens [rows, seq, dim] and their validity [rows, seq], 1 or 0.
      y: unit tokens [columns, seq, dim] and their validity [columns, seq].

    Returns:
      Two float32 [rows, columns]: mean over the tokens of x of the best token of y, and the other way round.
    """

    def part(x):
        cosines = jnp.einsum("ipd,jtd->ijpt", x[0], y[0], precision=_HIGHEST)
        of_x, of_y = x[1][:, None, :, None] > 0, y[1][None, :, None, :] > 0
        best_of_y = jnp.max(jnp.where(of_y, cosines, -1.0), axis=3)
        best_of_x = jnp.max(jnp.where(of_x, cosines, -1.0), axis=2)
        return masked_mean(best_of_y, x[1][:, None]), masked_mean(best_of_x, y[1][None])

    return by_slices(part, x, y[1].size * x[1].shape[1])


@dataclasses.dataclass(frozen=True)
class Sparc(Objective):
    """Sparse fine-grained alignment within each pair (Bica et al. 2024, section 3.2, equations 3 to 7).

    Each word groups the patches that are similar to it, and must tell its group from those of the other words of
    its caption, and be told by it. The paper's global loss is the objective `softmax` beside it, at half the weight.

    Attributes:
      between: the towers of patches and of words.
      logit_scale: log of the inverse temperature at the start.
      max_logit_scale: the inverse temperature is clipped to this after each update.
      threshold: similarities, brought to 0..1 over the patches, below this are 0; 0: one over the number of patches.
    """

    between: tuple[str, str] = ("image", "text")
    logit_scale: float = LOGIT_SCALE_CLIP
    max_logit_scale: float = 100.0
    threshold: float = 0.0

    @property
    def needs(self) -> frozenset[str]:
        """Patches and words in the shared space."""
        return frozenset(f"{tower}.local" for tower in self.between)

    def check(self, model_spec) -> None:
        """Both towers must have the same width in the shared space."""
        check_widths(model_spec, self.between)

    def init(self, key=None, model_spec=None) -> dict[str, jax.Array]:
        """The learned log inverse temperature."""
        return {"logit_scale": jnp.asarray(self.logit_scale, jnp.float32)}

    def bound(self, params):
        """Clips the temperature as CLIP does."""
        return {"logit_scale": jnp.minimum(params["logit_scale"], math.log(self.max_logit_scale))}

    def chance_loss(self, batch_size: int, model_spec) -> float:
        """Log of the longest caption's words; shorter ones are easier to guess."""
        return math.log(max(2, getattr(model_spec.towers[self.between[1]].embed, "length", 2)))

    def __call__(self, outputs, batch, params, mesh):
        """See `Objective`."""
        patches, words = (outputs[f"{tower}.local"] for tower in self.between)
        weights = alignment(words["x"], patches["x"], patches["valid"], self.threshold)
        groups = jnp.einsum("btp,bpd->btd", weights, patches["x"], precision=_HIGHEST)
        cosines = jnp.einsum("btd,bsd->bts", normalize(words["x"]), normalize(groups), precision=_HIGHEST)
        logits, valid = jnp.exp(params["logit_scale"]) * cosines, words["valid"]

        def one_way(logits):
            log_p = jax.nn.log_softmax(jnp.where(valid[:, None] > 0, logits, jnp.finfo(jnp.float32).min), axis=-1)
            return masked_mean(-jnp.diagonal(log_p, axis1=1, axis2=2), valid)

        loss = (one_way(logits) + one_way(logits.swapaxes(1, 2))) / 2
        right = jnp.argmax(jnp.where(valid[:, None] > 0, logits, -jnp.inf), axis=-1) == jnp.arange(logits.shape[1])
        words_there = present(valid, batch)
        share = jnp.sum((weights > 0) * words_there[..., None])
        share /= jnp.maximum(jnp.sum(words_there) * weights.shape[2], 1.0)
        metrics = {
            "word_to_group": mean_rows(masked_mean(right.astype(jnp.float32), valid), batch),
            "patches_of_a_word": share,
            "logit_scale": jnp.exp(params["logit_scale"]),
        }
        return Loss(jnp.sum(weighed(loss, batch)), count_rows(batch, len(loss)), metrics)


def alignment(words: jax.Array, patches: jax.Array, valid: jax.Array, threshold: float = 0.0) -> jax.Array:
    """How much each patch belongs to each word (SPARC, equations 3 to 5).

    Args:
      words: [batch, words, dim], as projected.
      patches: [batch, patches, dim], as projected.
      valid: [batch, patches], 1 or 0.
      threshold: see `Sparc`.

    Returns:
      float32 [batch, words, patches], rows that sum to 1.
    """
    scores, real = jnp.einsum("btd,bpd->btp", words, patches, precision=_HIGHEST), valid[:, None] > 0
    low = jnp.min(jnp.where(real, scores, jnp.inf), axis=-1, keepdims=True)
    high = jnp.max(jnp.where(real, scores, -jnp.inf), axis=-1, keepdims=True)
    scores = jnp.where(real, (scores - low) / jnp.maximum(high - low, 1e-12), 0.0)
    least = threshold or 1.0 / jnp.maximum(jnp.sum(valid, axis=-1), 1.0)[:, None, None]
    scores = jnp.where(scores < least, 0.0, scores)
    return scores / jnp.maximum(jnp.sum(scores, axis=-1, keepdims=True), 1e-12)


@dataclasses.dataclass(frozen=True)
class Flair(SigmoidContrastive):
    """Text-conditioned image embeddings in a sigmoid loss (Xiao et al. 2025, section 3.2 and equation 4).

    Each caption pools the patches of an image by an attention that it asks, and must tell whether both belong together.
    With several `num_items` of the text, all captions of an image are its positives, and the first one of each other
    image may be its negative; the loss is the mean over these captions, as in the published code. The paper's second
    loss, between whole images and all captions, is the objective `sigmoid` beside it, both at half the weight.

    Attributes:
      heads: of the attention that pools.
    """

    heads: int = 8
    takes_mixed: ClassVar[bool] = False

    def chance_loss(self, batch_size: int, model_spec, captions: int = 1) -> float:
        """The loss of the best constant logit: of the captions that an image sees, `captions` belong to it."""
        return batch_size / (batch_size + captions - 1) * constant_loss(captions, batch_size + captions - 1)

    @property
    def needs(self) -> frozenset[str]:
        """Patches in the shared space, and the embeddings of whole captions."""
        return frozenset({f"{self.between[0]}.local", f"{self.between[1]}.pooled"})

    def check(self, model_spec) -> None:
        """The towers agree in width, which the heads divide."""
        super().check(model_spec)
        width = model_spec.towers[self.between[0]].pooled_width
        if self.heads < 1 or width % self.heads:
            raise ValueError(f"heads={self.heads} must divide the width {width} of the shared space")

    def init(self, key=None, model_spec=None) -> dict:
        """Temperature, bias, and the four maps of the attention."""
        width = model_spec.towers[self.between[0]].pooled_width
        draw = lambda name: {"kernel": lecun_normal()(key_tools.named(key, name), (width, width), jnp.float32)}
        return super().init() | {name: draw(name) for name in ("query", "key", "value", "out")}

    def __call__(self, outputs, batch, params, mesh):
        """See `Objective`."""
        patches, text = outputs[f"{self.between[0]}.local"], normalize(outputs[f"{self.between[1]}.pooled"])
        kernel = lambda name: params[name]["kernel"]
        heads = lambda a: a.reshape(*a.shape[:-1], self.heads, -1)
        x = (*(heads(unit_product(patches["x"], kernel(name))) for name in ("key", "value")), patches["valid"])
        y = heads(jnp.dot(text, kernel("query"), precision=_HIGHEST)), text
        ids = identities(batch, self.multi_positive)
        captions, learned, sample = len(text) // len(ids), of_all(params), self._per_sample(params, batch)
        scale, bias = jnp.exp(learned["logit_scale"]), learned["logit_bias"]
        common = dict(weights=(kernel("out"),), scores=conditioned, sample=sample)
        by_sample = jax.tree.map(lambda a: a.reshape(len(ids), captions, *a.shape[1:]), y)
        first, others = (jax.tree.map(lambda a, part=part: a[:, part], by_sample) for part in (0, slice(1, None)))
        columns = caption_identities(ids, captions)[:, 0]
        if self._use_ring(mesh, len(ids)):
            loss, duplicates = sigmoid_ring(mesh, x, first, (ids,), columns, scale, bias, **common, chunk=COLUMNS)
        else:
            loss, duplicates = sigmoid_plain(mesh, x, first, (ids,), columns, scale, bias, **common)
        if captions > 1:
            pooled = lambda x, y: conditioned(jax.tree.map(lambda a: a[None], x), y, kernel("out"))
            of = lambda name, common: sample[name][:, None, None] if name in sample else common
            logits = of("scale", scale) * jax.vmap(pooled)(x, others) + of("bias", bias)
            loss += jnp.sum(weighed(jax.nn.softplus(-logits), batch))
        count = count_rows(batch, len(ids))
        metrics = self._temperatures(params) | {"logit_bias": bias}
        metrics |= {"health/duplicate_share": duplicates / jnp.maximum(count, 1.0)}
        return Loss(loss, jnp.where(count > 0, count + captions - 1, 0.0), metrics)


def unit_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Unit vectors of x [..., dim] times a matrix."""
    return jnp.dot(normalize(x), kernel, precision=_HIGHEST)


def conditioned(x: tuple[jax.Array, ...], y: tuple[jax.Array, jax.Array], out: jax.Array) -> jax.Array:
    """Cosine of each caption with what it makes of each image.

    Args:
      x: keys and values of the patches [rows, patches, heads, head_dim], their validity [rows, patches].
      y: queries of the captions [columns, heads, head_dim], their unit embeddings [columns, dim].
      out: the map of the pooled values [dim, dim].

    Returns:
      float32 [rows, columns].
    """
    query, text = y

    def part(x):
        key, value, valid = x
        logits = jnp.einsum("jhe,iphe->ijhp", query, key, precision=_HIGHEST) * query.shape[-1] ** -0.5
        logits = jnp.where(valid[:, None, None] > 0, logits, -jnp.inf)
        # A key of zeros, whose value is zeros too, lets a caption look away.
        top = jax.lax.stop_gradient(jnp.maximum(jnp.max(logits, axis=-1, keepdims=True), 0.0))
        share = jnp.exp(logits - top)
        share = share / (jnp.sum(share, axis=-1, keepdims=True) + jnp.exp(-top))
        pooled = jnp.einsum("ijhp,iphe->ijhe", share, value, precision=_HIGHEST)
        pooled = jnp.dot(pooled.reshape(*pooled.shape[:2], -1), out, precision=_HIGHEST)
        return jnp.einsum("ijd,jd->ij", normalize(pooled), text, precision=_HIGHEST)

    return by_slices(part, x, len(text) * max(x[2].shape[1] * query.shape[1], 3 * text.shape[1]))


def masked_mean(x: jax.Array, valid: jax.Array) -> jax.Array:
    """Mean over the last axis of the entries that are valid (1 or 0)."""
    return jnp.sum(x * valid, axis=-1) / jnp.maximum(jnp.sum(valid, axis=-1), 1.0)


def by_slices(part: Callable[[Any], Any], rows: Any, numbers: int) -> Any:
    """Computes `part` of rows in slices, in the backward pass again, so that one slice is held at a time.

    Args:
      part: tree of arrays [rows, ...] -> tree of arrays [rows, ...], row by row.
      rows: what it gets.
      numbers: how many numbers it holds for each row.
    """
    count = jax.tree.leaves(rows)[0].shape[0]
    size = chunk_size(count, max(1, SLICE // numbers))
    if size == count:
        return part(rows)
    cut = lambda a: a.reshape(-1, size, *a.shape[1:])
    found = jax.lax.map(jax.checkpoint(part), jax.tree.map(cut, rows))
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), found)
