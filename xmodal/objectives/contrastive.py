"""Contrastive objectives between two towers: softmax (CLIP) and sigmoid (SigLIP), plain or as a ring.

Samples of a batch that share a key or a caption are positives of one another: web data is full of duplicates, and
pushing equal captions apart teaches the model nonsense.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from data_pipelines.images.mix import swap_neighbours
from xmodal.models.init import LOGIT_BIAS_SIGLIP, LOGIT_SCALE_CLIP, LOGIT_SCALE_SIGLIP
from xmodal.objectives.base import Objective, Temperature
from xmodal.objectives.pairs import BATCH_AXES, caption_identities, identities, ring, targets, zero_rows

OF_SOURCES = ("source", "loss_weight", "temperature")  # of the batch, see data_pipelines/stream/source_columns.py
NONE: dict = {}  # what samples have of their own: nothing
_SEVERAL = 1.5  # a row whose targets sum to more has several positives; the two of a mixed image sum to 1


def normalize(x: jax.Array) -> jax.Array:
    """Scales each row of [batch, dim] to unit length, in float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-24))


def similarity(x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns x @ y.T in full float32: [rows, dim], [columns, dim] -> [rows, columns]."""
    return jnp.einsum("id,jd->ij", x, y, precision=jax.lax.Precision.HIGHEST)


def cosine(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Scores of unit embeddings: the same for a row that looks for its column as the other way round."""
    scores = similarity(x, y)
    return scores, scores


def scaled(scores: jax.Array, own: Mapping[str, jax.Array], scale: jax.Array) -> jax.Array:
    """Logits of scores [rows, columns]: by the inverse temperatures of the rows where these have their own."""
    return (own["scale"][:, None] if "scale" in own else scale) * scores


def weighed_sum(losses: jax.Array, own: Mapping[str, jax.Array]) -> jax.Array:
    """Sum of losses [rows], by the weights of the rows where these have some."""
    return jnp.sum(losses * own["weight"] if "weight" in own else losses)


def of_all(params: Mapping) -> Mapping:
    """Returns temperature (and bias) of an objective's parameters; the mean where each source has its own."""
    if "sources" not in params:
        return params
    each = list(params["sources"].values())
    return {name: sum(own[name] for own in each) / len(each) for name in each[0]}


def check_widths(model_spec, towers: tuple[str, ...]) -> None:
    """Raises ValueError when towers do not share a space."""
    widths = {tower: model_spec.towers[tower].pooled_width for tower in towers}
    if len(set(widths.values())) > 1:
        raise ValueError(f"the towers must pool to the same width, not {widths}: set their `embed_dim`")


@dataclasses.dataclass(frozen=True)
class Contrastive(Objective):
    """What the contrastive objectives share.

    Attributes:
      between: the two towers; both must pool to the same width.
      multi_positive: samples that share a key or a caption are positives of one another.
      by_source: each entry of `data.sources` has a temperature (and bias) of its own, learned; a pair of two sources
        takes the mean of their logarithms (biases) where it has one logit, and the softmax of a sample that of its own.
      sources: names of these entries; () takes those of the data.
      form: `ring` cuts memory from quadratic to linear in the batch; `plain` is one product; `auto` takes the ring
        when there are several batch shards or the batch is large.
    """

    between: tuple[str, str] = ("image", "text")
    multi_positive: bool = True
    by_source: bool = False
    sources: tuple[str, ...] = ()
    form: Literal["auto", "plain", "ring"] = "auto"
    global_batch: ClassVar[bool] = True
    reads: ClassVar[tuple[str, ...]] = ("key_id", "caption_id", "mix_weight", *OF_SOURCES)
    takes_mixed: ClassVar[bool] = True

    @classmethod
    def settle(cls, entry: Mapping[str, Any], tokenizer: Any, sources: tuple[str, ...] = ()) -> dict[str, Any]:
        """Takes the names of the sources."""
        if not entry.get("by_source", False):
            return {}
        if entry.get("sources", ()) not in ((), sources):
            raise ValueError(f"sources={entry['sources']}, and data.sources has {sources}; leave them out")
        return {"sources": sources}

    @property
    def needs(self) -> frozenset[str]:
        """Pooled embeddings of both towers."""
        return frozenset(f"{tower}.pooled" for tower in self.between)

    def check(self, model_spec) -> None:
        """Both towers must pool to the same width."""
        check_widths(model_spec, self.between)

    def _learned(self, **start: float) -> dict[str, Any]:
        """Fresh scalars, once for all or for each source."""
        fresh = lambda: {name: jnp.asarray(value, jnp.float32) for name, value in start.items()}
        return {"sources": {source: fresh() for source in self.sources}} if self.by_source else fresh()

    def _own(self, params, batch) -> dict[str, jax.Array]:
        """What samples have of their sources: `weight`, `scale`, `bias` [batch], as far as they differ."""
        own = {"weight": batch["loss_weight"]} if "loss_weight" in batch else {}
        if self.by_source:
            number = batch["source"] if "source" in batch else jnp.zeros(len(batch["key_id"]), jnp.int32)
            each = lambda name: jnp.stack([params["sources"][source][name] for source in self.sources])[number]
            own["scale"] = jnp.exp(each("logit_scale"))
            if "logit_bias" in params["sources"][self.sources[0]]:
                own["bias"] = each("logit_bias")
        if "temperature" in batch:
            scale = own["scale"] if "scale" in own else jnp.exp(params["logit_scale"])
            own["scale"] = scale / batch["temperature"]
        return own

    def temperature(self, params: Mapping) -> Temperature | None:
        """The learned one; the mean where each source has its own, None where it scales no pooled embeddings."""
        if self.needs != {f"{tower}.pooled" for tower in self.between}:
            return None
        return Temperature(**{name: float(value) for name, value in of_all(params).items()})

    def _temperatures(self, params) -> dict[str, jax.Array]:
        """Metrics: the inverse temperature, of several the geometric mean and each."""
        found = {"logit_scale": jnp.exp(of_all(params)["logit_scale"])}
        for source in self.sources if self.by_source else ():
            found[f"logit_scale_{source}"] = jnp.exp(params["sources"][source]["logit_scale"])
        return found

    def _inputs(self, outputs, batch):
        """Returns unit x [batch, dim] and y [batch * captions, dim], the identities of x, and those of y."""
        x, y = (outputs[f"{tower}.pooled"] for tower in self.between)
        if x.shape[1] != y.shape[1]:
            raise ValueError(
                f"the towers {self.between} must pool to the same width: {x.shape} and {y.shape}; set `embed_dim`"
            )
        ids = identities(batch, self.multi_positive)
        columns = caption_identities(ids, len(y) // len(x)).reshape(len(y), *ids.shape[1:])
        if "mix_weight" not in batch:
            return normalize(x), normalize(y), (ids,), columns
        # Each image shows two; its caption is that of both, by their shares (as labels: Zhang et al. 2017).
        mixed = ids, swap_neighbours(ids), batch["mix_weight"]
        return normalize(x), normalize(y), mixed, columns

    def _use_ring(self, mesh: jax.sharding.Mesh, batch_size: int) -> bool:
        shards = math.prod(mesh.shape[a] for a in BATCH_AXES)
        return self.form == "ring" or (self.form == "auto" and (shards > 1 or batch_size > 4096))

    def _health(self, outputs, x, y, params) -> dict[str, jax.Array]:
        """Signals of a healthy space: raw norms, distance of the modality centres, closeness within a modality."""
        health, centres = self._temperatures(params), []
        for tower, unit in zip(self.between, (x, y)):
            centre = jnp.mean(unit, axis=0)
            centres.append(centre)
            health[f"health/{tower}_norm"] = jnp.mean(jnp.linalg.norm(outputs[f"{tower}.pooled"], axis=-1))
            # Mean cosine of two random samples of one modality: near 1 means collapse.
            health[f"health/{tower}_mean_cosine"] = jnp.sum(jnp.square(centre))
        health["health/modality_gap"] = jnp.linalg.norm(centres[0] - centres[1])
        health["health/pair_cosine"] = jnp.mean(jnp.sum(x[:, None] * y.reshape(len(x), -1, x.shape[1]), axis=-1))
        return health


@dataclasses.dataclass(frozen=True)
class SoftmaxContrastive(Contrastive):
    """CLIP's symmetric cross-entropy (Radford et al. 2021, figure 3), against all positives of a row alike.

    With several positives the target is uniform over them (UniCL, Yang et al. 2022, equation 3); with one per row
    this is exactly CLIP's loss.

    Attributes:
      logit_scale: log of the inverse temperature at the start; ALIGN's 0 is a temperature of 1.
      max_logit_scale: the inverse temperature is clipped to this after each update.
      label_smoothing: share of the target spread over all candidates, positives among them (ALIGN, Jia et al. 2021,
        section 5.1: 0.1).
    """

    logit_scale: float = LOGIT_SCALE_CLIP
    max_logit_scale: float = 100.0
    label_smoothing: float = 0.0

    def __post_init__(self):
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing={self.label_smoothing}: expected a share from 0, below 1")

    def init(self, key=None, model_spec=None) -> dict[str, jax.Array]:
        """The learned log inverse temperature."""
        return self._learned(logit_scale=self.logit_scale)

    def bound(self, params):
        """Clips the temperature as CLIP does."""
        return jax.tree.map(lambda scale: jnp.minimum(scale, math.log(self.max_logit_scale)), params)

    def chance_loss(self, batch_size: int, model_spec) -> float:
        """Log of the number of candidates, whatever the smoothing: equal logits miss any target by as much."""
        return math.log(batch_size)

    def __call__(self, outputs, batch, params, mesh):
        x, y, rows, columns = self._inputs(outputs, batch)
        scale, own = jnp.exp(of_all(params)["logit_scale"]), self._own(params, batch)
        form = softmax_ring if self._use_ring(mesh, x.shape[0]) else softmax_plain
        loss, hits_x, hits_y, duplicates = form(mesh, x, y, rows, columns, scale, self.label_smoothing, own=own)
        count, (a, b) = x.shape[0], self.between
        metrics = {
            f"{a}_to_{b}": hits_x / count,
            f"{b}_to_{a}": hits_y / count,
            "health/duplicate_share": duplicates / count,
        }
        return loss, jnp.float32(count), metrics | self._health(outputs, x, y, params)


def softmax_plain(mesh, x, y, rows, columns, scale, smoothing=0.0, scores=cosine, own=NONE):
    """Returns (loss sum, row hits, column hits, rows with several positives) from the whole matrix at once.

    `scores` gives two [rows, columns] matrices: how a row scores the columns, and how a column scores the rows. `own`
    holds what samples have of their own, [batch]: `weight` of their losses, `scale` instead of the one of all.
    """
    del mesh
    of_rows, of_columns = scores(x, y)
    target = targets(rows, columns)

    def one_way(logits, target):
        log_p, count = jax.nn.log_softmax(logits, axis=1), jnp.sum(target, axis=1)
        most = jnp.maximum(count, 1.0)
        loss = -jnp.sum(target * log_p, axis=1) / most
        if smoothing:  # a caption that counts for a part, as the targets of mixed images do, is smoothed by that part
            loss = (1.0 - smoothing) * loss - smoothing * (count / most) * jnp.mean(log_p, axis=1)
        best = jnp.max(jnp.where(target > 0, logits, -jnp.inf), axis=1)
        return weighed_sum(loss, own), jnp.sum(best >= jnp.max(logits, axis=1))

    of_rows, of_columns = (scaled(scores, own, scale) for scores in (of_rows, of_columns.T))
    (loss_x, hits_x), (loss_y, hits_y) = one_way(of_rows, target), one_way(of_columns, target.T)
    return (loss_x + loss_y) / 2, hits_x, hits_y, jnp.sum(jnp.sum(target, axis=1) > _SEVERAL)


def softmax_ring(mesh, x, y, rows, columns, scale, smoothing=0.0, scores=cosine, chunk=0, own=NONE):
    """The same as `softmax_plain`, block by block: log-sum-exp of rows stays, that of columns travels with them."""
    candidates = jax.tree.leaves(x)[0].shape[0]

    def start(e):
        zero = zero_rows(e)
        spread = dict(all=zero) if smoothing else {}
        return dict(top=zero - jnp.inf, total=zero, chosen=zero, count=zero, best=zero - jnp.inf) | spread

    def fold(state, logits, target):
        top = jnp.maximum(state["top"], jax.lax.stop_gradient(jnp.max(logits, axis=1)))
        best = jnp.max(jnp.where(target > 0, jax.lax.stop_gradient(logits), -jnp.inf), axis=1)
        spread = dict(all=state["all"] + jnp.sum(logits, axis=1)) if smoothing else {}
        return spread | dict(
            top=top,
            total=state["total"] * jnp.exp(state["top"] - top) + jnp.sum(jnp.exp(logits - top[:, None]), axis=1),
            chosen=state["chosen"] + jnp.sum(target * logits, axis=1),
            count=state["count"] + jnp.sum(target, axis=1),
            best=jnp.maximum(state["best"], best),
        )

    def block(rows, columns, row_state, column_state, params):
        of_rows, of_columns = scores(rows[0], columns[0])
        target = targets(rows[1], columns[1])
        of_rows, of_columns = scaled(of_rows, rows[2], *params), scaled(of_columns.T, columns[2], *params)
        return fold(row_state, of_rows, target), fold(column_state, of_columns, target.T)

    def one_way(s, own):
        log_total, most = jnp.log(s["total"]) + s["top"], jnp.maximum(s["count"], 1.0)
        share, wanted = s["count"] / most, s["chosen"] / most
        if smoothing:
            wanted = (1.0 - smoothing) * wanted + smoothing * share * s["all"] / candidates
        return weighed_sum(log_total * share - wanted, own)

    def finish(row_state, column_state, rows, columns):
        hits = lambda s: jnp.sum(s["best"] >= s["top"])
        total = (one_way(row_state, rows[2]) + one_way(column_state, columns[2])) / 2
        return total, hits(row_state), hits(column_state), jnp.sum(row_state["count"] > _SEVERAL)

    return ring(mesh, block, finish, start, (x, rows, own), (y, columns, own), (scale,), chunk)


@dataclasses.dataclass(frozen=True)
class SigmoidContrastive(Contrastive):
    """SigLIP's pairwise sigmoid loss (Zhai et al. 2023, algorithm 1), summed over pairs, per caption.

    Several captions of a sample are all positives of its image (FLAIR, Xiao et al. 2025, section 3.2).

    Attributes:
      logit_scale: log of the inverse temperature at the start.
      logit_bias: bias of all logits at the start.
    """

    logit_scale: float = LOGIT_SCALE_SIGLIP
    logit_bias: float = LOGIT_BIAS_SIGLIP
    takes_captions: ClassVar[bool] = True

    def init(self, key=None, model_spec=None) -> dict[str, jax.Array]:
        """The learned log inverse temperature and bias."""
        return self._learned(logit_scale=self.logit_scale, logit_bias=self.logit_bias)

    def chance_loss(self, batch_size: int, model_spec, captions: int = 1) -> float:
        """The loss of the best constant logit: every pair is a positive with probability 1 / batch size."""
        return constant_loss(1, batch_size)

    def __call__(self, outputs, batch, params, mesh):
        x, y, rows, columns = self._inputs(outputs, batch)
        learned = of_all(params)
        scale, bias = jnp.exp(learned["logit_scale"]), learned["logit_bias"]
        form = sigmoid_ring if self._use_ring(mesh, x.shape[0]) else sigmoid_plain
        loss, duplicates = form(mesh, x, y, rows, columns, scale, bias, own=self._own(params, batch))
        metrics = {"logit_bias": bias, "health/duplicate_share": duplicates / len(x)}
        return loss, jnp.float32(len(y)), metrics | self._health(outputs, x, y, params)


def constant_loss(positives: int, pairs: int) -> float:
    """Cross-entropy, summed over pairs, of the best constant logit."""
    p = positives / pairs
    return -positives * math.log(p) - (pairs - positives) * math.log1p(-p) if positives < pairs else 0.0


def sigmoid_plain(mesh, x, y, rows, columns, scale, bias, weights=(), scores=similarity, own=NONE):
    """Returns (loss sum, rows with several positives) from the whole matrix at once.

    `scores(x, y, *weights)` gives the matrix [rows, columns]. `own` holds what samples have of their own, [batch]:
    `weight` of their losses, of which a pair has the mean, `scale` and `bias` instead of those of all.
    """
    del mesh
    target = targets(rows, columns)
    loss = _pair_losses(scores(x, y, *weights), target, own, _of_captions(own, rows, columns), scale, bias)
    return jnp.sum(loss), jnp.sum(jnp.sum(target, axis=1) > _several(rows, columns))


def sigmoid_ring(mesh, x, y, rows, columns, scale, bias, weights=(), scores=similarity, chunk=0, own=NONE):
    """The same as `sigmoid_plain`, block by block."""
    several = _several(rows, columns)

    def start(e):
        zero = zero_rows(e)
        return dict(loss=zero, pairs=zero)

    def block(rows, columns, row_state, column_state, params):
        target = targets(rows[1], columns[1])
        found = scores(rows[0], columns[0], *params[2:])
        loss = jnp.sum(_pair_losses(found, target, rows[2], columns[2], *params[:2]), axis=1)
        return dict(loss=row_state["loss"] + loss, pairs=row_state["pairs"] + jnp.sum(target, axis=1)), column_state

    def finish(row_state, column_state, rows, columns):
        del column_state, rows, columns
        return jnp.sum(row_state["loss"]), jnp.sum(row_state["pairs"] > several)

    column_own = _of_captions(own, rows, columns)
    return ring(mesh, block, finish, start, (x, rows, own), (y, columns, column_own), (scale, bias, *weights), chunk)


def _pair_losses(found, target, rows, columns, scale, bias):
    """Losses of pairs [rows, columns]; what both samples have of their own is averaged, scales by their logarithm."""
    mean = lambda name: (rows[name][:, None] + columns[name][None]) / 2
    if "scale" in rows:
        scale = jnp.sqrt(rows["scale"][:, None] * columns["scale"][None])
    if "bias" in rows:
        bias = mean("bias")
    loss = _cross_entropy(scale * found + bias, target)
    return loss * mean("weight") if "weight" in rows else loss


def _of_captions(own, rows, columns):
    """What samples have of their own, for each of their captions."""
    return {name: jnp.repeat(values, len(columns) // len(rows[0])) for name, values in own.items()}


def _several(rows, columns) -> float:
    """What the targets of a row sum to at most, if it has no positives but its own captions."""
    return _SEVERAL + len(columns) // len(rows[0]) - 1


def _cross_entropy(logits, target):
    """Cross-entropy of sigmoids with targets from 0 to 1."""
    # In this order nothing cancels: far from 0 one part is exactly 0 and the other one small.
    return (jnp.maximum(logits, 0.0) - target * logits) + jnp.log1p(jnp.exp(-jnp.abs(logits)))
