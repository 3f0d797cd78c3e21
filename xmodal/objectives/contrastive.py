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
from xmodal.objectives.base import THERE, Loss, Objective, Temperature, count_rows, mean_rows
from xmodal.objectives.pairs import BATCH_AXES, caption_identities, identities, ring, targets, zero_rows

NO_OVERRIDES: dict = {}  # per-sample weight, scale, bias or mask: none
NEVER = -1e30  # logit of a candidate that lacks an input; finite, for infinity times a target of 0 is not a number
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


def scaled(scores: jax.Array, sample: Mapping[str, jax.Array], scale: jax.Array) -> jax.Array:
    """Logits of scores [rows, columns]: by the inverse temperature of each row's sample, if there is one per sample."""
    return (sample["scale"][:, None] if "scale" in sample else scale) * scores


def weighed_sum(losses: jax.Array, sample: Mapping[str, jax.Array]) -> jax.Array:
    """Sum of losses [rows], by the weights of the rows; rows whose sample lacks an input count nothing."""
    return jnp.sum(present_rows(losses * sample["weight"] if "weight" in sample else losses, sample))


def present_rows(values: jax.Array, sample: Mapping[str, jax.Array]) -> jax.Array:
    """Values [rows], 0 (or False) for rows whose sample lacks an input."""
    return jnp.where(sample[THERE], values, jnp.zeros_like(values)) if THERE in sample else values


def candidates(values: jax.Array, columns: Mapping[str, jax.Array], other: float) -> jax.Array:
    """Values [rows, columns], with `other` in columns whose sample lacks an input: they are no candidates."""
    return jnp.where(columns[THERE][None], values, other) if THERE in columns else values


def of_all(params: Mapping) -> Mapping:
    """Returns temperature (and bias) of an objective's parameters; with one per source their mean."""
    if "sources" not in params:
        return params
    each = list(params["sources"].values())
    return {name: sum(source[name] for source in each) / len(each) for name in each[0]}


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
      by_source: each entry of `data.sources` learns a temperature (and bias); a pair of two sources takes the mean of
        their logarithms (biases) where it has one logit, and the softmax of a sample that of its source.
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

    def _per_sample(self, params, batch) -> dict[str, jax.Array]:
        """What differs between samples, [batch]: `weight`, `scale`, `bias`, and `there`, False without an input."""
        sample = {"weight": batch["loss_weight"]} if "loss_weight" in batch else {}
        sample |= {THERE: batch[THERE]} if THERE in batch else {}
        if self.by_source:
            number = batch["source"] if "source" in batch else jnp.zeros(len(batch["key_id"]), jnp.int32)
            each = lambda name: jnp.stack([params["sources"][source][name] for source in self.sources])[number]
            sample["scale"] = jnp.exp(each("logit_scale"))
            if "logit_bias" in params["sources"][self.sources[0]]:
                sample["bias"] = each("logit_bias")
        if "temperature" in batch:
            scale = sample["scale"] if "scale" in sample else jnp.exp(params["logit_scale"])
            sample["scale"] = scale / batch["temperature"]
        return sample

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

    def _health(self, outputs, batch, x, y, params) -> dict[str, jax.Array]:
        """Signals of a healthy space: raw norms, distance of the modality centres, closeness within a modality."""
        health, centres = self._temperatures(params), []
        for tower, unit in zip(self.between, (x, y)):
            centre = mean_rows(unit, batch)
            centres.append(centre)
            health[f"health/{tower}_norm"] = mean_rows(jnp.linalg.norm(outputs[f"{tower}.pooled"], axis=-1), batch)
            # Mean cosine of two random samples of one modality: near 1 means collapse.
            health[f"health/{tower}_mean_cosine"] = jnp.sum(jnp.square(centre))
        health["health/modality_gap"] = jnp.linalg.norm(centres[0] - centres[1])
        pairs = jnp.sum(x[:, None] * y.reshape(len(x), -1, x.shape[1]), axis=-1)
        health["health/pair_cosine"] = mean_rows(pairs.reshape(-1), batch)
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
        scale, sample = jnp.exp(of_all(params)["logit_scale"]), self._per_sample(params, batch)
        form = softmax_ring if self._use_ring(mesh, x.shape[0]) else softmax_plain
        loss, hits_x, hits_y, duplicates = form(mesh, x, y, rows, columns, scale, self.label_smoothing, sample=sample)
        count, (a, b) = count_rows(batch, x.shape[0]), self.between
        most = jnp.maximum(count, 1.0)
        metrics = {
            f"{a}_to_{b}": hits_x / most,
            f"{b}_to_{a}": hits_y / most,
            "health/duplicate_share": duplicates / most,
        }
        return Loss(loss, count, metrics | self._health(outputs, batch, x, y, params))


def softmax_plain(mesh, x, y, rows, columns, scale, smoothing=0.0, scores=cosine, sample=NO_OVERRIDES):
    """Returns (loss sum, row hits, column hits, rows with several positives) from the whole matrix at once.

    `scores` gives two [rows, columns] matrices: how a row scores the columns, and how a column scores the rows.
    `sample` holds what differs between samples, [batch]: `weight` of their losses, `scale` instead of the common one,
    and `there`, False for those that lack an input and so are in neither rows nor columns.
    """
    del mesh
    of_rows, of_columns = scores(x, y)
    target = targets(rows, columns)

    def one_way(logits, target):
        logits, target = candidates(logits, sample, NEVER), candidates(target, sample, 0.0)
        log_p, count = jax.nn.log_softmax(logits, axis=1), jnp.sum(target, axis=1)
        most = jnp.maximum(count, 1.0)
        loss = -jnp.sum(target * log_p, axis=1) / most
        if smoothing:  # a caption that counts for a part, as the targets of mixed images do, is smoothed by that part
            loss = (1.0 - smoothing) * loss - smoothing * (count / most) * _mean_candidate(log_p, sample)
        best = jnp.max(jnp.where(target > 0, logits, -jnp.inf), axis=1)
        several = jnp.sum(present_rows(count > _SEVERAL, sample))
        return weighed_sum(loss, sample), jnp.sum(present_rows(best >= jnp.max(logits, axis=1), sample)), several

    of_rows, of_columns = (scaled(scores, sample, scale) for scores in (of_rows, of_columns.T))
    (loss_x, hits_x, several), (loss_y, hits_y, _) = one_way(of_rows, target), one_way(of_columns, target.T)
    return (loss_x + loss_y) / 2, hits_x, hits_y, several


def _mean_candidate(values: jax.Array, columns: Mapping[str, jax.Array]) -> jax.Array:
    """Mean of each row of [rows, columns] over the columns that are candidates."""
    if THERE not in columns:
        return jnp.mean(values, axis=1)
    count = jnp.maximum(jnp.sum(columns[THERE].astype(jnp.float32)), 1.0)
    return jnp.sum(candidates(values, columns, 0.0), axis=1) / count


def softmax_ring(mesh, x, y, rows, columns, scale, smoothing=0.0, scores=cosine, chunk=0, sample=NO_OVERRIDES):
    """The same as `softmax_plain`, block by block: log-sum-exp of rows stays, that of columns travels with them."""
    size = jax.tree.leaves(x)[0].shape[0]

    def start(e):
        zero = zero_rows(e)
        spread = dict(all=zero) | (dict(seen=zero) if THERE in sample else {}) if smoothing else {}
        return dict(top=zero - jnp.inf, total=zero, chosen=zero, count=zero, best=zero - jnp.inf) | spread

    def fold(state, logits, target, columns):
        logits, target = candidates(logits, columns, NEVER), candidates(target, columns, 0.0)
        top = jnp.maximum(state["top"], jax.lax.stop_gradient(jnp.max(logits, axis=1)))
        best = jnp.max(jnp.where(target > 0, jax.lax.stop_gradient(logits), -jnp.inf), axis=1)
        spread = dict(all=state["all"] + jnp.sum(candidates(logits, columns, 0.0), axis=1)) if smoothing else {}
        if "seen" in state:
            spread["seen"] = state["seen"] + jnp.sum(columns[THERE].astype(jnp.float32))
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
        return fold(row_state, of_rows, target, columns[2]), fold(column_state, of_columns, target.T, rows[2])

    def one_way(s, sample):
        log_total, most = jnp.log(s["total"]) + s["top"], jnp.maximum(s["count"], 1.0)
        share, wanted = s["count"] / most, s["chosen"] / most
        if smoothing:
            among = jnp.maximum(s["seen"], 1.0) if "seen" in s else size
            wanted = (1.0 - smoothing) * wanted + smoothing * share * s["all"] / among
        return weighed_sum(log_total * share - wanted, sample)

    def finish(row_state, column_state, rows, columns):
        hits = lambda s, sample: jnp.sum(present_rows(s["best"] >= s["top"], sample))
        total = (one_way(row_state, rows[2]) + one_way(column_state, columns[2])) / 2
        several = jnp.sum(present_rows(row_state["count"] > _SEVERAL, rows[2]))
        return total, hits(row_state, rows[2]), hits(column_state, columns[2]), several

    return ring(mesh, block, finish, start, (x, rows, sample), (y, columns, sample), (scale,), chunk)


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
        loss, duplicates = form(mesh, x, y, rows, columns, scale, bias, sample=self._per_sample(params, batch))
        count = count_rows(batch, len(x))
        metrics = {"logit_bias": bias, "health/duplicate_share": duplicates / jnp.maximum(count, 1.0)}
        return Loss(loss, count * (len(y) // len(x)), metrics | self._health(outputs, batch, x, y, params))


def constant_loss(positives: int, pairs: int) -> float:
    """Cross-entropy, summed over pairs, of the best constant logit."""
    p = positives / pairs
    return -positives * math.log(p) - (pairs - positives) * math.log1p(-p) if positives < pairs else 0.0


def sigmoid_plain(mesh, x, y, rows, columns, scale, bias, weights=(), scores=similarity, sample=NO_OVERRIDES):
    """Returns (loss sum, rows with several positives) from the whole matrix at once.

    `scores(x, y, *weights)` gives the matrix [rows, columns]. `sample` holds what differs between samples, [batch]:
    `weight` of their losses, of which a pair has the mean, `scale` and `bias` instead of the common ones, and `there`,
    False for those that lack an input and so are in no pair.
    """
    del mesh
    captions = _of_captions(sample, rows, columns)
    target = _pairs_there(targets(rows, columns), sample, captions)
    loss = _pair_losses(scores(x, y, *weights), target, sample, captions, scale, bias)
    return jnp.sum(loss), jnp.sum(jnp.sum(target, axis=1) > _several(rows, columns))


def sigmoid_ring(mesh, x, y, rows, columns, scale, bias, weights=(), scores=similarity, chunk=0, sample=NO_OVERRIDES):
    """The same as `sigmoid_plain`, block by block."""
    several = _several(rows, columns)

    def start(e):
        zero = zero_rows(e)
        return dict(loss=zero, pairs=zero)

    def block(rows, columns, row_state, column_state, params):
        target = _pairs_there(targets(rows[1], columns[1]), rows[2], columns[2])
        found = scores(rows[0], columns[0], *params[2:])
        loss = jnp.sum(_pair_losses(found, target, rows[2], columns[2], *params[:2]), axis=1)
        return dict(loss=row_state["loss"] + loss, pairs=row_state["pairs"] + jnp.sum(target, axis=1)), column_state

    def finish(row_state, column_state, rows, columns):
        del column_state, rows, columns
        return jnp.sum(row_state["loss"]), jnp.sum(row_state["pairs"] > several)

    captions = _of_captions(sample, rows, columns)
    return ring(mesh, block, finish, start, (x, rows, sample), (y, columns, captions), (scale, bias, *weights), chunk)


def _pair_losses(found, target, rows, columns, scale, bias):
    """Losses of pairs [rows, columns]; what differs between both samples is averaged, scales by their logarithm."""
    mean = lambda name: (rows[name][:, None] + columns[name][None]) / 2
    if "scale" in rows:
        scale = jnp.sqrt(rows["scale"][:, None] * columns["scale"][None])
    if "bias" in rows:
        bias = mean("bias")
    loss = _cross_entropy(scale * found + bias, target)
    return _pairs_there(loss * mean("weight") if "weight" in rows else loss, rows, columns)


def _pairs_there(values, rows, columns):
    """Values of pairs [rows, columns], 0 where one of the samples lacks an input."""
    return jnp.where(rows[THERE][:, None] & columns[THERE][None], values, 0.0) if THERE in rows else values


def _of_captions(sample, rows, columns):
    """What differs between samples, for each of their captions."""
    return {name: jnp.repeat(values, len(columns) // len(rows[0])) for name, values in sample.items()}


def _several(rows, columns) -> float:
    """What the targets of a row sum to at most, if it has no positives but the captions of its sample."""
    return _SEVERAL + len(columns) // len(rows[0]) - 1


def _cross_entropy(logits, target):
    """Cross-entropy of sigmoids with targets from 0 to 1."""
    # In this order nothing cancels: far from 0 one part is exactly 0 and the other one small.
    return (jnp.maximum(logits, 0.0) - target * logits) + jnp.log1p(jnp.exp(-jnp.abs(logits)))
