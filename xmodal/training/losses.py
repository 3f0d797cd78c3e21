"""Loss and gradients of one global batch: objectives grouped by view, and exact accumulation over micro-batches."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from xmodal import keys as key_tools
from xmodal.building import init_objectives
from xmodal.distributed.mesh import BATCH_AXES, num_batch_shards
from xmodal.distributed.sharding import constrain
from xmodal.models.batch_norm import STATISTICS, pooled, pooled_parts
from xmodal.models.model import Functional
from xmodal.objectives import Objective, View

Batch = Mapping[str, jax.Array]
Params = Mapping


@dataclasses.dataclass(frozen=True)
class Losses:
    """The objectives of a run and how to compute them.

    Attributes:
      model: the towers as pure functions.
      objectives: by name.
      preprocess: (batch, keys) -> batch with float images; runs on the device, per sample.
      mesh: for the objectives that talk across the batch.
      teach: preprocessed batch -> the same with what the teacher says of it; None where there is no teacher.
    """

    model: Functional
    objectives: Mapping[str, Objective]
    preprocess: Callable[[Batch, jax.Array | None], Batch]
    mesh: jax.sharding.Mesh
    teach: Callable[[Batch], Batch] | None = None

    @property
    def views(self) -> dict[View, tuple[str, ...]]:
        """Objective names by view, in order: one forward pass each."""
        views: dict[View, tuple[str, ...]] = {}
        for name, objective in self.objectives.items():
            views[objective.view] = (*views.get(objective.view, ()), name)
        return views

    def init_params(self, key: jax.Array | None = None) -> dict:
        """Returns the objectives' own parameters, by objective; `key` draws those that start at random values."""
        return init_objectives(self.objectives, self.model.spec, key)

    def bound(self, params: Params) -> dict:
        """Applies each objective's bounds to its parameters after an update."""
        own = {name: self.objectives[name].bound(value) for name, value in params["objectives"].items()}
        return {**params, "objectives": own}

    def forward(self, params: Params, batch: Batch, keys: jax.Array | None) -> dict[str, tuple[dict, Batch]]:
        """Runs the model once per view; returns {objective: (outputs, view batch)}.

        With random keys the outputs of a model with BatchNorms hold their moments, too, under "statistics".
        """
        extra = {STATISTICS} if keys is not None and self.model.has_statistics else set()
        batch = flat_texts(self.preprocess(batch, key_tools.fold(keys, "preprocess")))
        batch = self.teach(batch) if self.teach else batch
        results = {}
        for number, (view, names) in enumerate(self.views.items()):
            own = key_tools.fold(keys, f"view {number}")  # or what one view hides the others would hide, too
            view_batch = view(batch, key_tools.fold(own, "view"))
            want = frozenset(extra).union(*(self.objectives[name].needs for name in names))
            outputs = self.model(params, view_batch, want, key_tools.fold(own, "model"), view.cuts)
            results |= dict.fromkeys(names, (outputs, view_batch))
        return results

    def _listening(self, said: dict) -> "Losses":
        """The same, which notes in `said` what the teacher adds to a batch."""
        if self.teach is None:
            return self

        def teach(batch: Batch) -> Batch:
            taught = self.teach(batch)
            said.update({name: array for name, array in taught.items() if name not in batch})
            return taught

        return dataclasses.replace(self, teach=teach)

    def moments(self, results: Mapping) -> dict:
        """Returns {tower: moments of its BatchNorms} of what `forward` returned.

        They are those of the clean view, which is what evaluations see; a tower that only other views ran has the
        moments of all of these together.
        """
        seen: dict[str, dict[View, Mapping]] = {}
        for view, (name, *_) in self.views.items():
            for tower, own in results[name][0].get(STATISTICS, {}).items():
                seen.setdefault(tower, {})[view] = own
        return {tower: own.get(View()) or pooled(list(own.values())) for tower, own in seen.items()}

    def evaluate(self, name: str, outputs: Mapping, batch: Batch, params: Params):
        """Runs one objective; returns (loss_sum, weight, metrics)."""
        with jax.named_scope(name):
            return self.objectives[name](outputs, batch, params["objectives"].get(name, {}), self.mesh)

    def __call__(self, params: Params, batch: Batch, keys: jax.Array | None) -> tuple[jax.Array, dict]:
        """Returns (loss, metrics) of the whole batch in one forward pass per view."""
        total, (metrics, _) = self._whole(params, batch, keys)
        return total, metrics

    def _whole(self, params: Params, batch: Batch, keys: jax.Array | None) -> tuple[jax.Array, tuple[dict, dict]]:
        total, metrics, results = jnp.float32(0.0), {}, self.forward(params, batch, keys)
        for name, (outputs, view_batch) in results.items():
            loss_sum, weight, extra = self.evaluate(name, outputs, view_batch, params)
            loss = loss_sum / jnp.maximum(weight, 1.0)
            total += self.objectives[name].weight * loss
            metrics |= named(name, {"loss": loss} | extra)
        return total, (metrics, self.moments(results))

    def value_and_grad(
        self,
        params: Params,
        batch: Batch,
        keys: jax.Array | None,
        parts: int = 1,
        frozen: Params | None = None,
    ):
        """Returns ((loss, metrics, moments), gradients), from `parts` micro-batches that together act as one batch.

        BatchNorms are what micro-batches differ in: each is normalised by its own statistics over all devices. The
        moments, {tower: ...}, are those of all of them together.

        Args:
          params: of the model and the objectives.
          batch: of all devices.
          keys: per-sample random keys [batch]; None runs as evaluations do, and gives no moments.
          parts: number of micro-batches.
          frozen: tree of bool like the parameters; marks those whose gradient is zero, and so the BatchNorms that use
            and keep their running statistics.
        """
        own = self if frozen is None else dataclasses.replace(self, model=self.model.freezing(frozen))
        if parts > 1:
            return own._accumulated(params, batch, keys, parts, frozen)
        loss = lambda params: own._whole(hold(params, frozen), batch, keys)
        (value, (metrics, moments)), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return (value, metrics, moments), grads

    def _accumulated(self, params: Params, batch: Batch, keys: jax.Array, parts: int, frozen: Params | None):
        """Exact accumulation (GradCache, Gao et al. 2021, for the objectives that need the global batch).

        1. Micro-batch by micro-batch, keep the few outputs that those objectives need, and every other objective's
           weight. 2. Compute the global losses once, with gradients for these outputs. 3. Replay each micro-batch,
           with the same random keys, and pull the gradients through.
        """
        shards = num_batch_shards(self.mesh)
        micro = jax.tree.map(lambda a: split_rows(a, parts, shards), (dict(batch), keys))
        whole = [name for name, o in self.objectives.items() if o.global_batch]
        local = [name for name in self.objectives if name not in whole]
        keep = lambda results: {
            name: {key: results[name][0][key] for key in self.objectives[name].needs} for name in whole
        }
        read = lambda results: {
            name: {key: results[name][1][key] for key in self.objectives[name].reads if key in results[name][1]}
            for name in whole
        }

        def look(_, part):
            said: dict[str, jax.Array] = {}
            results = self._listening(said).forward(params, *part)
            weights = {name: self.evaluate(name, *results[name], params)[1] for name in local}
            return None, (keep(results), read(results), weights, self.moments(results), said)

        _, (outputs, batches, weights, moments, said) = jax.lax.scan(look, None, micro)
        outputs, batches = jax.tree.map(lambda a: merge_rows(a, shards), (outputs, batches))
        weights = {name: jnp.maximum(jnp.sum(w), 1.0) for name, w in weights.items()}

        def global_loss(floats, objective_params):
            total, metrics, seen = jnp.float32(0.0), {}, with_floats(outputs, floats)
            for name in whole:
                own = {"objectives": hold(objective_params, frozen and frozen["objectives"])}
                loss_sum, weight, extra = self.evaluate(name, seen[name], batches[name], own)
                loss = loss_sum / jnp.maximum(weight, 1.0)
                total += self.objectives[name].weight * loss
                metrics |= named(name, {"loss": loss} | extra)
            return total, metrics

        (loss, metrics), (pull, objective_grads) = jax.value_and_grad(global_loss, argnums=(0, 1), has_aux=True)(
            floats_of(outputs), params["objectives"]
        )
        pull = jax.tree.map(lambda a: split_rows(a, parts, shards), pull)

        def replay(params, part, pull, said):
            params = hold(params, frozen)
            # What the teacher said in the first pass is data now: it is not asked again.
            results = dataclasses.replace(self, teach=lambda batch: {**batch, **said}).forward(params, *part)
            products = [jnp.vdot(a, b) for a, b in zip(floats_of(keep(results)), pull, strict=True)]
            # The pulled outputs only carry gradients: their value is not part of the loss.
            carried = sum(products, jnp.float32(0.0))
            total, metrics = carried - jax.lax.stop_gradient(carried), {}
            for name in local:
                loss_sum, weight, extra = self.evaluate(name, *results[name], params)
                total += self.objectives[name].weight * loss_sum / weights[name]
                share = {key: value * weight / weights[name] for key, value in extra.items()}
                metrics |= named(name, {"loss": loss_sum / weights[name]} | share)
            return total, metrics

        def step(carry, xs):
            value, grads = jax.value_and_grad(replay, has_aux=True)(params, *xs)
            return jax.tree.map(jnp.add, carry, (value, grads)), None

        xs = (micro, pull, said)
        first = jax.tree.map(lambda a: a[0], xs)
        shapes = jax.eval_shape(lambda: jax.value_and_grad(replay, has_aux=True)(params, *first))
        start = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        ((local_loss, local_metrics), grads), _ = jax.lax.scan(step, start, xs)
        grads = {**grads, "objectives": jax.tree.map(jnp.add, grads["objectives"], objective_grads)}
        return (loss + local_loss, metrics | local_metrics, pooled_parts(moments)), grads


def flat_texts(batch: Batch) -> dict:
    """Makes several captions of a sample rows: text [batch, captions, length] becomes [batch * captions, length].

    What tells samples apart, such as `caption_id` [batch, captions, 2], stays by sample.
    """
    flat = lambda a: a.reshape(-1, a.shape[-1]) if a.ndim == 3 else a
    return {**batch, **{name: flat(batch[name]) for name in ("text", "text_valid") if name in batch}}


def hold(params: Params, frozen: Params | None) -> Params:
    """Cuts frozen parameters off before they are used, so that no backward pass is built for them."""
    if not frozen:
        return params
    return jax.tree.map(lambda p, stop: jax.lax.stop_gradient(p) if stop else p, params, frozen)


def floats_of(tree) -> list[jax.Array]:
    """The leaves that a gradient can reach; outputs such as `<tower>.tokens` hold masks and positions, too."""
    return [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]


def with_floats(tree, floats: list[jax.Array]):
    """Returns the tree with other leaves in place of `floats_of(tree)`."""
    given = iter(floats)
    return jax.tree.map(lambda leaf: next(given) if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf, tree)


def named(objective: str, metrics: Mapping) -> dict:
    """Puts an objective's metrics under its name; health signals describe the model and keep their own."""
    return {key if key.startswith("health/") else f"train/{objective}/{key}": v for key, v in metrics.items()}


def split_rows(x: jax.Array, parts: int, shards: int) -> jax.Array:
    """[batch, ...] -> [parts, batch / parts, ...], taking an equal share of every device's rows: no data moves."""
    rows = x.shape[0] // (parts * shards)
    x = x.reshape(shards, parts, rows, *x.shape[1:]).swapaxes(0, 1).reshape(parts, shards * rows, *x.shape[1:])
    return constrain(x, jax.P(None, BATCH_AXES))


def merge_rows(x: jax.Array, shards: int) -> jax.Array:
    """Undoes `split_rows`: [parts, batch / parts, ...] -> [batch, ...] in the original order."""
    parts, rows = x.shape[0], x.shape[1] // shards
    x = x.reshape(parts, shards, rows, *x.shape[2:]).swapaxes(0, 1).reshape(parts * shards * rows, *x.shape[2:])
    return constrain(x, jax.P(BATCH_AXES))
