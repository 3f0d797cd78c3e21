"""Exact accumulation: the loss and gradients of a global batch from micro-batches (GradCache, Gao et al. 2021).

1. `ask_whole`: providers that compare samples are asked once, of the global batch. 2. `look`: micro-batch by
micro-batch, keep the few outputs that losses over the global batch need, and the weight of every other loss.
3. `whole_batch`: compute the global losses once, with gradients for these outputs. 4. `replay`: run each micro-batch
again, with the same random keys and what the providers gave, and pull the gradients through.

Arrays of a global batch are [batch, ...], of all micro-batches [parts, batch / parts, ...].
"""

import collections
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from xmodal.distributed.mesh import BATCH_AXES, num_batch_shards
from xmodal.distributed.sharding import constrain
from xmodal.models.batch_norm import STATISTICS, pooled_parts


@dataclasses.dataclass(frozen=True)
class Call:
    """What is computed with beside the batch.

    Attributes:
      params: of the model and the objectives.
      given: as `Losses.value_and_grad` takes it.
      held: tree of bool like the parameters, True where there is no gradient; None: nowhere.
    """

    params: Mapping
    given: Any
    held: Mapping | None


class Micro(NamedTuple):
    """Micro-batches, or one of them.

    Attributes:
      batch: {name: [parts, rows, ...]}, or [rows, ...].
      keys: the same of the per-sample keys, or None.
      said: the same of entries that providers gave.
    """

    batch: Mapping[str, jax.Array]
    keys: jax.Array | None
    said: Mapping[str, jax.Array]


class Kept(NamedTuple):
    """What a first pass over the micro-batches keeps.

    Attributes:
      outputs: {objective over the global batch: {model output: tree of [batch, ...]}}.
      batches: {the same: {entry of its view's batch that it reads: [batch, ...]}}.
      weights: {objective over samples: float32 scalar, of the global batch}.
      moments: of BatchNorms, with a leading axis [parts].
      said: entries of all providers, {name: [parts, rows, ...]}.
    """

    outputs: Mapping
    batches: Mapping
    weights: Mapping
    moments: Mapping
    said: Mapping


def value_and_grad(losses, call: Call, batch: Mapping, keys: jax.Array | None, parts: int):
    """Returns ((loss, metrics, seen), gradients) of a global batch; see `Losses.value_and_grad`.

    Args:
      losses: `Losses`.
      call: what they are computed with.
      batch: {name: [batch, ...]}.
      keys: per-sample keys [batch], or None.
      parts: number of micro-batches.
    """
    shards = num_batch_shards(losses.mesh)
    cut = lambda tree: jax.tree.map(lambda a: split_rows(a, parts, shards), tree)
    micro = ask_whole(losses, call, Micro(*cut((dict(batch), keys)), {}), keys)
    kept = look(losses, call, micro)
    (loss, (metrics, carries)), (pull, objective_grads) = whole_batch(losses, call, kept)
    micro = micro._replace(said=kept.said)
    (local_loss, (local_metrics, local_carries)), grads = replay(losses, call, micro, cut(pull), kept.weights)
    grads = {**grads, "objectives": jax.tree.map(jnp.add, grads["objectives"], objective_grads)}
    found = seen(pooled_parts(kept.moments), carries | local_carries)
    return (loss + local_loss, metrics | local_metrics, found), grads


def seen(moments: Mapping, carries: Mapping) -> dict:
    """What the carried state is changed by; parts that are empty are left out."""
    parts = {STATISTICS: moments, "objectives": carries}
    return {name: part for name, part in parts.items() if part}


def carried(name: str, loss) -> dict:
    """{objective: what its loss carries}, or nothing."""
    return {name: jax.lax.stop_gradient(loss.carry)} if loss.carry else {}


def ask_whole(losses, call: Call, micro: Micro, keys: jax.Array | None) -> Micro:
    """Asks the providers that need the global batch; returns the micro-batches with what they gave.

    Each costs one more forward pass of the model outputs that it needs.
    """
    parts, shards = len(next(iter(micro.batch.values()))), num_batch_shards(losses.mesh)
    for name, provider in losses.providers.items():
        if not provider.whole:
            continue

        def gather(_, part: Micro, name=name):
            batch, outputs, entries = losses.before(name, call.params, part, call.given)
            noted = Noted(batch)
            jax.eval_shape(lambda: losses.tell(name, noted, outputs, part.keys, call.given))
            return None, (noted.read(), outputs, entries)

        _, (read, outputs, entries) = jax.lax.scan(gather, None, micro)
        read, outputs = jax.tree.map(lambda a: merge_rows(a, shards), (read, outputs))
        found = losses.tell(name, read, outputs, keys, call.given)
        cut = {entry: split_rows(array, parts, shards) for entry, array in found.items()}
        micro = micro._replace(said={**micro.said, **entries, **cut})
    return micro


def look(losses, call: Call, micro: Micro) -> Kept:
    """Runs each micro-batch forward and keeps what the losses over the global batch read."""

    def one(_, part: Micro):
        results, said = losses.forward(call.params, part.batch, part.keys, call.given, part.said)
        outputs, batches, weights = {}, {}, {}
        for name, objective in losses.objectives.items():
            if objective.global_batch:
                outputs[name] = wanted(objective, results[name][0])
                batches[name] = read_by(losses, name, results[name], call)
            else:
                weights[name] = losses.evaluate(name, *results[name], call.params, call.given).weight
        return None, Kept(outputs, batches, weights, losses.moments(results), said)

    _, kept = jax.lax.scan(one, None, micro)
    shards = num_batch_shards(losses.mesh)
    outputs, batches = jax.tree.map(lambda a: merge_rows(a, shards), (kept.outputs, kept.batches))
    weights = {name: jnp.maximum(jnp.sum(w), 1.0) for name, w in kept.weights.items()}
    return kept._replace(outputs=outputs, batches=batches, weights=weights)


def whole_batch(losses, call: Call, kept: Kept):
    """Computes the losses over the global batch.

    Returns:
      ((loss, (metrics, carries)), (gradients of `floats_of(kept.outputs)`, those of the objectives' parameters)).
    """

    def loss_of(floats, objective_params):
        total, metrics, carries, outputs = jnp.float32(0.0), {}, {}, with_floats(kept.outputs, floats)
        params = {"objectives": hold(objective_params, call.held and call.held["objectives"])}
        for name in outputs:
            found = losses.evaluate(name, outputs[name], kept.batches[name], params, call.given)
            carries |= carried(name, found)
            loss = found.sum / jnp.maximum(found.weight, 1.0)
            total += losses.weight(name, call.given.step) * loss
            metrics |= named(name, {"loss": loss} | found.metrics)
        for name in losses.schedules:
            metrics |= named(name, {"weight": losses.weight(name, call.given.step)})
        return total, (metrics, carries)

    floats = floats_of(kept.outputs)
    return jax.value_and_grad(loss_of, argnums=(0, 1), has_aux=True)(floats, call.params["objectives"])


def replay(losses, call: Call, micro: Micro, pull: list[jax.Array], weights: Mapping[str, jax.Array]):
    """Runs each micro-batch again, backwards too, and adds up.

    Args:
      losses: `Losses`.
      call: what they are computed with.
      micro: with all entries of the providers, which are data now: none is asked again.
      pull: gradients of `floats_of` the outputs that global losses need, each [parts, rows, ...].
      weights: of the other losses, over the global batch.

    Returns:
      ((their loss, (metrics, carries)), gradients of the parameters).
    """

    def loss_of(params, part: Micro, pull):
        params = hold(params, call.held)
        results, _ = losses.forward(params, part.batch, part.keys, call.given, part.said)
        outputs = {name: wanted(o, results[name][0]) for name, o in losses.objectives.items() if o.global_batch}
        products = [jnp.vdot(a, b) for a, b in zip(floats_of(outputs), pull, strict=True)]
        # The pulled outputs only carry gradients: their value is not part of the loss.
        carrier = sum(products, jnp.float32(0.0))
        total, metrics, carries = carrier - jax.lax.stop_gradient(carrier), {}, {}
        for name, weight in weights.items():
            found = losses.evaluate(name, *results[name], params, call.given)
            carries |= carried(name, found)
            total += losses.weight(name, call.given.step) * found.sum / weight
            share = {key: value * found.weight / weight for key, value in found.metrics.items()}
            metrics |= named(name, {"loss": found.sum / weight} | share)
        return total, (metrics, carries)

    def add(sums, part):
        found = jax.value_and_grad(loss_of, has_aux=True)(call.params, *part)
        return jax.tree.map(jnp.add, sums, found), None

    first = jax.tree.map(lambda a: a[0], (micro, pull))
    shapes = jax.eval_shape(lambda: jax.value_and_grad(loss_of, has_aux=True)(call.params, *first))
    start = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.scan(add, start, (micro, pull))[0]


# ---------------------------------------------------------------------------------------------- what is kept


class Noted(collections.abc.Mapping):
    """A batch that notes which of its entries are read, so that no other has to be kept."""

    def __init__(self, batch: Mapping[str, jax.Array]):
        self._batch, self._names = batch, {}

    def __getitem__(self, name: str) -> jax.Array:
        array = self._batch[name]
        self._names[name] = None
        return array

    def __contains__(self, name: object) -> bool:
        return name in self._batch

    def __iter__(self) -> Iterator[str]:
        return iter(self._batch)

    def __len__(self) -> int:
        return len(self._batch)

    def read(self) -> dict[str, jax.Array]:
        """Returns the entries that were read."""
        return {name: self._batch[name] for name in self._names}


def read_by(losses, name: str, result: tuple[Mapping, Mapping], call: Call) -> dict[str, jax.Array]:
    """Returns the entries of its view's batch that an objective reads; nothing is computed."""
    outputs, batch = result
    noted = Noted(batch)
    jax.eval_shape(lambda: losses.evaluate(name, outputs, noted, call.params, call.given))
    return noted.read()


def named(objective: str, metrics: Mapping) -> dict:
    """Puts an objective's metrics under its name; health signals describe the model and keep theirs."""
    return {key if key.startswith("health/") else f"train/{objective}/{key}": v for key, v in metrics.items()}


def wanted(objective, outputs: Mapping) -> dict:
    """The outputs that an objective needs."""
    return {need: outputs[need] for need in objective.needs}


def hold(params: Mapping, held: Mapping | None) -> Mapping:
    """Cuts parameters off before they are used, where `held` is True, so that no backward pass is built for them."""
    if not held:
        return params
    return jax.tree.map(lambda p, stop: jax.lax.stop_gradient(p) if stop else p, params, held)


def floats_of(tree) -> list[jax.Array]:
    """The leaves that a gradient can reach; outputs such as `<tower>.tokens` hold masks and positions, too."""
    return [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]


def with_floats(tree, floats: list[jax.Array]):
    """Returns the tree with other leaves in place of `floats_of(tree)`."""
    given = iter(floats)
    return jax.tree.map(lambda leaf: next(given) if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf, tree)


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
