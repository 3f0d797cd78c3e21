"""Contrastive objectives between two towers: softmax (CLIP) and sigmoid (SigLIP), plain or as a ring.

Samples of a batch that share a key or a caption are positives of one another: web data is full of duplicates, and
pushing equal captions apart teaches the model nonsense.
"""

import dataclasses
import math
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from xmodal.models.init import LOGIT_BIAS_SIGLIP, LOGIT_SCALE_CLIP, LOGIT_SCALE_SIGLIP
from xmodal.objectives.base import Objective
from xmodal.objectives.pairs import BATCH_AXES, identities, positives, ring


def normalize(x: jax.Array) -> jax.Array:
    """Scales each row of [batch, dim] to unit length, in float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-24))


def similarity(x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns x @ y.T in full float32: [rows, dim], [columns, dim] -> [rows, columns]."""
    return jnp.einsum("id,jd->ij", x, y, precision=jax.lax.Precision.HIGHEST)


@dataclasses.dataclass(frozen=True)
class Contrastive(Objective):
    """What the contrastive objectives share.

    Attributes:
      between: the two towers; both must pool to the same width.
      multi_positive: samples that share a key or a caption are positives of one another.
      form: `ring` cuts memory from quadratic to linear in the batch; `plain` is one product; `auto` takes the ring
        when there are several batch shards or the batch is large.
    """

    between: tuple[str, str] = ("image", "text")
    multi_positive: bool = True
    form: Literal["auto", "plain", "ring"] = "auto"
    global_batch: ClassVar[bool] = True

    @property
    def needs(self) -> frozenset[str]:
        """Pooled embeddings of both towers."""
        return frozenset(f"{tower}.pooled" for tower in self.between)

    def check(self, model_spec) -> None:
        """Both towers must pool to the same width."""
        widths = {tower: model_spec.towers[tower].pooled_width for tower in self.between}
        if len(set(widths.values())) > 1:
            raise ValueError(f"the towers must pool to the same width, not {widths}: set their `embed_dim`")

    def _inputs(self, outputs, batch):
        x, y = (outputs[f"{tower}.pooled"] for tower in self.between)
        if x.shape != y.shape:
            raise ValueError(
                f"the towers {self.between} must pool to the same width: {x.shape} and {y.shape}; set `embed_dim`"
            )
        return normalize(x), normalize(y), identities(batch, self.multi_positive)

    def _use_ring(self, mesh: jax.sharding.Mesh, batch_size: int) -> bool:
        shards = math.prod(mesh.shape[a] for a in BATCH_AXES)
        return self.form == "ring" or (self.form == "auto" and (shards > 1 or batch_size > 4096))

    def _health(self, outputs, x, y, params) -> dict[str, jax.Array]:
        """Signals of a healthy space: raw norms, distance of the modality centres, closeness within a modality."""
        health, centres = {"logit_scale": jnp.exp(params["logit_scale"])}, []
        for tower, unit in zip(self.between, (x, y)):
            centre = jnp.mean(unit, axis=0)
            centres.append(centre)
            health[f"health/{tower}_norm"] = jnp.mean(jnp.linalg.norm(outputs[f"{tower}.pooled"], axis=-1))
            # Mean cosine of two random samples of one modality: near 1 means collapse.
            health[f"health/{tower}_mean_cosine"] = jnp.sum(jnp.square(centre))
        health["health/modality_gap"] = jnp.linalg.norm(centres[0] - centres[1])
        health["health/pair_cosine"] = jnp.mean(jnp.sum(x * y, axis=-1))
        return health


@dataclasses.dataclass(frozen=True)
class SoftmaxContrastive(Contrastive):
    """CLIP's symmetric cross-entropy (Radford et al. 2021, figure 3), against all positives of a row alike.

    With several positives the target is uniform over them (UniCL, Yang et al. 2022, equation 3); with one per row
    this is exactly CLIP's loss.

    Attributes:
      logit_scale: log of the inverse temperature at the start.
      max_logit_scale: the inverse temperature is clipped to this after each update.
    """

    logit_scale: float = LOGIT_SCALE_CLIP
    max_logit_scale: float = 100.0

    def init(self) -> dict[str, jax.Array]:
        """The learned log inverse temperature."""
        return {"logit_scale": jnp.asarray(self.logit_scale, jnp.float32)}

    def bound(self, params):
        """Clips the temperature as CLIP does."""
        return {"logit_scale": jnp.minimum(params["logit_scale"], math.log(self.max_logit_scale))}

    def chance_loss(self, batch_size: int, model_spec) -> float:
        """Log of the number of candidates."""
        return math.log(batch_size)

    def __call__(self, outputs, batch, params, mesh):
        x, y, ids = self._inputs(outputs, batch)
        scale = jnp.exp(params["logit_scale"])
        form = softmax_ring if self._use_ring(mesh, x.shape[0]) else softmax_plain
        loss, hits_x, hits_y, duplicates = form(mesh, x, y, ids, scale)
        count, (a, b) = x.shape[0], self.between
        metrics = {
            f"{a}_to_{b}": hits_x / count,
            f"{b}_to_{a}": hits_y / count,
            "health/duplicate_share": duplicates / count,
        }
        return loss, jnp.float32(count), metrics | self._health(outputs, x, y, params)


def softmax_plain(mesh, x, y, ids, scale):
    """Returns (loss sum, row hits, column hits, rows with several positives) from the whole matrix at once."""
    del mesh
    logits = scale * similarity(x, y)
    mask = positives(ids, ids)

    def one_way(logits):
        log_p = jax.nn.log_softmax(logits, axis=1)
        loss = -jnp.sum(jnp.where(mask, log_p, 0.0), axis=1) / jnp.sum(mask, axis=1)
        best = jnp.max(jnp.where(mask, logits, -jnp.inf), axis=1)
        return jnp.sum(loss), jnp.sum(best >= jnp.max(logits, axis=1))

    (loss_x, hits_x), (loss_y, hits_y) = one_way(logits), one_way(logits.T)
    return (loss_x + loss_y) / 2, hits_x, hits_y, jnp.sum(jnp.sum(mask, axis=1) > 1)


def softmax_ring(mesh, x, y, ids, scale):
    """The same as `softmax_plain`, block by block: log-sum-exp of rows stays, that of columns travels with them."""

    def start(e):
        zero = jax.lax.stop_gradient(e[:, 0]) * 0.0  # varies over the ring as e does
        return dict(top=zero - jnp.inf, total=zero, chosen=zero, count=zero, best=zero - jnp.inf)

    def fold(state, logits, mask):
        top = jnp.maximum(state["top"], jax.lax.stop_gradient(jnp.max(logits, axis=1)))
        best = jnp.max(jnp.where(mask, jax.lax.stop_gradient(logits), -jnp.inf), axis=1)
        return dict(
            top=top,
            total=state["total"] * jnp.exp(state["top"] - top) + jnp.sum(jnp.exp(logits - top[:, None]), axis=1),
            chosen=state["chosen"] + jnp.sum(jnp.where(mask, logits, 0.0), axis=1),
            count=state["count"] + jnp.sum(mask, axis=1),
            best=jnp.maximum(state["best"], best),
        )

    def block(rows, columns, row_state, column_state, params):
        logits = params[0] * similarity(rows[0], columns[0])
        mask = positives(rows[1], columns[1])
        return fold(row_state, logits, mask), fold(column_state, logits.T, mask.T)

    def finish(row_state, column_state):
        loss = lambda s: jnp.sum(jnp.log(s["total"]) + s["top"] - s["chosen"] / s["count"])
        hits = lambda s: jnp.sum(s["best"] >= s["top"])
        total = (loss(row_state) + loss(column_state)) / 2
        return total, hits(row_state), hits(column_state), jnp.sum(row_state["count"] > 1)

    return ring(mesh, block, finish, start, (x, ids), (y, ids), (scale,))


@dataclasses.dataclass(frozen=True)
class SigmoidContrastive(Contrastive):
    """SigLIP's pairwise sigmoid loss (Zhai et al. 2023, algorithm 1), summed over pairs, per sample.

    Attributes:
      logit_scale: log of the inverse temperature at the start.
      logit_bias: bias of all logits at the start.
    """

    logit_scale: float = LOGIT_SCALE_SIGLIP
    logit_bias: float = LOGIT_BIAS_SIGLIP

    def init(self) -> dict[str, jax.Array]:
        """The learned log inverse temperature and bias."""
        return {
            "logit_scale": jnp.asarray(self.logit_scale, jnp.float32),
            "logit_bias": jnp.asarray(self.logit_bias, jnp.float32),
        }

    def chance_loss(self, batch_size: int, model_spec) -> float:
        """The loss of the best constant logit: every pair is a positive with probability 1 / batch size."""
        p = 1.0 / batch_size
        return -math.log(p) - (batch_size - 1) * math.log1p(-p) if batch_size > 1 else 0.0

    def __call__(self, outputs, batch, params, mesh):
        x, y, ids = self._inputs(outputs, batch)
        scale, bias = jnp.exp(params["logit_scale"]), params["logit_bias"]
        form = sigmoid_ring if self._use_ring(mesh, x.shape[0]) else sigmoid_plain
        loss, duplicates = form(mesh, x, y, ids, scale, bias)
        count = x.shape[0]
        metrics = {"logit_bias": bias, "health/duplicate_share": duplicates / count}
        return loss, jnp.float32(count), metrics | self._health(outputs, x, y, params)


def sigmoid_plain(mesh, x, y, ids, scale, bias):
    """Returns (loss sum, rows with several positives) from the whole matrix at once."""
    del mesh
    mask = positives(ids, ids)
    logits = scale * similarity(x, y) + bias
    return -jnp.sum(jax.nn.log_sigmoid(jnp.where(mask, logits, -logits))), jnp.sum(jnp.sum(mask, axis=1) > 1)


def sigmoid_ring(mesh, x, y, ids, scale, bias):
    """The same as `sigmoid_plain`, block by block."""

    def start(e):
        zero = jax.lax.stop_gradient(e[:, 0]) * 0.0  # varies over the ring as e does
        return dict(loss=zero, pairs=zero)

    def block(rows, columns, row_state, column_state, params):
        mask = positives(rows[1], columns[1])
        logits = params[0] * similarity(rows[0], columns[0]) + params[1]
        loss = -jnp.sum(jax.nn.log_sigmoid(jnp.where(mask, logits, -logits)), axis=1)
        return dict(loss=row_state["loss"] + loss, pairs=row_state["pairs"] + jnp.sum(mask, axis=1)), column_state

    def finish(row_state, column_state):
        return jnp.sum(row_state["loss"]), jnp.sum(row_state["pairs"] > 1)

    return ring(mesh, block, finish, start, (x, ids), (y, ids), (scale, bias))
