"""Loss and gradients of one global batch: providers add entries, objectives are grouped by view, losses are summed."""

import collections
import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from xmodal import keys as key_tools
from xmodal.building import init_carried, init_objectives
from xmodal.models.batch_norm import STATISTICS, pooled
from xmodal.models.model import Functional, inputs_read
from xmodal.objectives import Objective, View
from xmodal.objectives.base import THERE, Loss, Schedule
from xmodal.objectives.providers.base import NOTHING, Provider
from xmodal.paths import map_paths
from xmodal.training import gradcache

Batch = Mapping[str, jax.Array]
Params = Mapping
Results = dict[str, tuple[Mapping, Batch]]  # {objective: (model outputs, its view of the batch)}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Given:
    """What losses are computed with beside the trained parameters and the batch.

    Attributes:
      frozen: {provider: parameters}.
      carried: {objective: its carried state}.
      step: int32 scalar, of the run, which scheduled weights follow.
    """

    frozen: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    step: Any = 0
    carried: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Losses:
    """The objectives of a run and how to compute them.

    Attributes:
      model: the towers as pure functions.
      objectives: by name.
      preprocess: (batch, keys) -> batch with float images; runs on the device, per sample.
      mesh: for the objectives that talk across the batch.
      providers: by name, in the order in which they are asked (`ordered`).
      schedules: weights by step, of the objectives whose weight is a `Ramp`.
    """

    model: Functional
    objectives: Mapping[str, Objective]
    preprocess: Callable[[Batch, jax.Array | None], Batch]
    mesh: jax.sharding.Mesh
    providers: Mapping[str, Provider] = dataclasses.field(default_factory=dict)
    schedules: Mapping[str, Schedule] = dataclasses.field(default_factory=dict)

    @property
    def views(self) -> dict[View, tuple[str, ...]]:
        """Objective names by view, in order: one forward pass each."""
        views: dict[View, tuple[str, ...]] = {}
        for name, objective in self.objectives.items():
            views[objective.view] = (*views.get(objective.view, ()), name)
        return views

    @property
    def passes(self) -> dict[tuple[View, str], tuple[str, ...]]:
        """Objective names by view and by what they train, in order: one forward pass each.

        Passes of one view have the same keys, and so the same values: compilers share their forward parts.
        """
        passes: dict[tuple[View, str], tuple[str, ...]] = {}
        for name, objective in self.objectives.items():
            key = objective.view, objective.trains
            passes[key] = (*passes.get(key, ()), name)
        return passes

    def weight(self, name: str, step: Any) -> Any:
        """Factor of an objective's loss at a step: a number, or a float32 scalar where it is scheduled."""
        return self.schedules[name](step) if name in self.schedules else self.objectives[name].weight

    def init_params(self, key: jax.Array | None = None) -> dict:
        """Returns the parameters of the objectives, by name; `key` draws those that start at random values."""
        return init_objectives(self.objectives, self.model.spec, key)

    def init_carried(self, key: jax.Array | None = None) -> dict:
        """Returns what the objectives carry from step to step, by name, as it is at first."""
        return init_carried(self.objectives, self.model.spec, key)

    def carry_on(self, carried: Mapping, seen: Mapping) -> dict:
        """Returns what the objectives carry after a step in which they saw `seen`, {objective: `Loss.carry`}."""
        return {name: self.objectives[name].update(old, seen.get(name, {})) for name, old in carried.items()}

    def bound(self, params: Params) -> dict:
        """Applies each objective's bounds to its parameters after an update."""
        bounded = {name: self.objectives[name].bound(value) for name, value in params["objectives"].items()}
        return {**params, "objectives": bounded}

    # -------------------------------------------------------------------------------------------- one pass a view

    def forward(
        self,
        params: Params,
        batch: Batch,
        keys: jax.Array | None,
        given: Given | None = None,
        said: Batch = NOTHING,
    ) -> tuple[Results, Batch]:
        """Asks the providers and runs the model once per view.

        With random keys the outputs of a model with BatchNorms hold their moments, too, under "statistics".

        Args:
          params: of the model and the objectives.
          batch: of the host, [rows, ...], or a micro-batch of it.
          keys: per-sample random keys [rows]; None runs as evaluations do.
          given: what else is computed with.
          said: entries that providers gave before; those that gave them are not asked again.

        Returns:
          {objective: (outputs, view batch)}, and all entries of the providers {name: [rows, ...]}.
        """
        given = given or Given()
        batch, entries = {**self.preprocessed(batch, keys), **said}, dict(said)
        batch, entries = self.ask(self.asked(said, late=False), batch, {}, keys, given, entries)
        results: Results = {}
        clean, everything = {}, (View(), Objective.trains)
        if any(self.asked(said, late=True)):  # they look at the clean view, which its objectives share
            want = frozenset().union(*(self.objectives[name].needs for name in self.passes.get(everything, ())))
            clean = self.run(params, View(), batch, keys, want | self.outputs_needed(said))
            batch, entries = self.ask(self.asked(said, late=True), batch, clean, keys, given, entries)
        for (view, trains), names in self.passes.items():
            view_batch = view(batch, key_tools.fold(self.view_keys(view, keys), "view"))
            want = frozenset().union(*(self.objectives[name].needs for name in names))
            shared = clean and (view, trains) == everything
            outputs = clean if shared else self.run(only(params, trains), view, view_batch, keys, want)
            results |= dict.fromkeys(names, (outputs, view_batch))
        return results, entries

    def preprocessed(self, batch: Batch, keys: jax.Array | None) -> Batch:
        """Returns the batch of the host as the model takes it."""
        return flat_texts(self.preprocess(batch, key_tools.fold(keys, "preprocess")))

    def asked(self, said: Batch, *, late: bool) -> list[str]:
        """Names of the providers to ask, whose entries are not there yet: those that need model outputs, or others."""
        return [name for name, p in self.providers.items() if not p.gives <= said.keys() and self.late[name] == late]

    @property
    def late(self) -> dict[str, bool]:
        """Whether a provider needs model outputs, itself or through another provider."""
        late, entries = {}, set()
        for name, provider in self.providers.items():
            late[name] = any(need in entries or self._is_output(need) for need in provider.needs)
            entries |= provider.gives if late[name] else set()
        return late

    def _is_output(self, need: str) -> bool:
        given = frozenset().union(*(p.gives for p in self.providers.values()))
        return need not in given and need.partition(".")[0] in self.model.spec.towers and "." in need

    def outputs_needed(self, said: Batch, last: str = "") -> frozenset[str]:
        """Model outputs that the providers still to ask need, up to the one named `last`."""
        names = self.asked(said, late=True)
        names = names[: names.index(last) + 1] if last else names
        return frozenset(need for name in names for need in self.providers[name].needs if self._is_output(need))

    def before(self, name: str, params: Params, part: gradcache.Micro, given: Given) -> tuple[Batch, Mapping, Batch]:
        """Returns what a provider sees of a micro-batch: (batch, outputs that it needs), and the entries given so far.

        Args:
          name: of the provider; those before it are asked.
          params: of the model and the objectives.
          part: the micro-batch.
          given: what else is computed with.
        """
        late = self.late[name]
        batch = self.preprocessed(part.batch, part.keys)
        early = self.asked(part.said, late=False)
        early = early if late else early[: early.index(name)]
        batch, entries = self.ask(early, {**batch, **part.said}, {}, part.keys, given, dict(part.said))
        if not late:
            return batch, {}, entries
        clean = self.run(params, View(), batch, part.keys, self.outputs_needed(part.said, last=name))
        names = self.asked(part.said, late=True)
        batch, entries = self.ask(names[: names.index(name)], batch, clean, part.keys, given, entries)
        needs = self.providers[name].needs
        return batch, {need: clean[need] for need in needs if self._is_output(need)}, entries

    def ask(
        self, names: list[str], batch: Batch, outputs: Mapping, keys: jax.Array | None, given: Given, entries: Batch
    ) -> tuple[Batch, Batch]:
        """Asks providers one after another; returns the batch and the entries with what they give."""
        for name in names:
            found = self.tell(name, batch, outputs, keys, given)
            batch, entries = {**batch, **found}, {**entries, **found}
        return batch, entries

    def tell(self, name: str, batch: Batch, outputs: Mapping, keys: jax.Array | None, given: Given) -> Batch:
        """Returns what one provider gives, without a gradient."""
        provider = self.providers[name]
        outputs = {need: outputs[need] for need in provider.needs if self._is_output(need)}
        keys = key_tools.fold(keys, f"provider {name}")
        with jax.named_scope(name):
            found = provider(given.frozen.get(name, {}), batch, jax.lax.stop_gradient(outputs), keys, self.mesh)
        if found.keys() != provider.gives:
            raise ValueError(f"providers.{name} gave {sorted(found)}, and promised {sorted(provider.gives)}")
        return jax.lax.stop_gradient(found)

    def view_keys(self, view: View, keys: jax.Array | None) -> jax.Array | None:
        """Keys of a view: what one view hides, others must not hide, too. The number is that of the first objective."""
        views = list(self.views)
        return key_tools.fold(keys, f"view {views.index(view) if view in views else len(views)}")

    def run(self, params: Params, view: View, batch: Batch, keys: jax.Array | None, want: frozenset[str]) -> Mapping:
        """Runs the model on a view's batch, [rows * view.rows, ...]; returns the outputs."""
        extra = {STATISTICS} if keys is not None and self.model.has_statistics else set()
        model_keys = key_tools.fold(self.view_keys(view, keys), "model")
        if view.rows > 1 and model_keys is not None:
            model_keys = key_tools.spread(model_keys, len(model_keys) * view.rows)
        return self.model(params, batch, want | extra, model_keys, view.cuts)

    def moments(self, results: Mapping) -> dict:
        """Returns {tower: moments of its BatchNorms} of the results of `forward`.

        They are those of the clean view, which is what evaluations see; a tower that only other views ran has the
        moments of all of these together.
        """
        seen: dict[str, dict[View, Mapping]] = {}
        for view, (name, *_) in self.views.items():
            for tower, moments in results[name][0].get(STATISTICS, {}).items():
                seen.setdefault(tower, {})[view] = moments
        return {tower: of_views.get(View()) or pooled(list(of_views.values())) for tower, of_views in seen.items()}

    # -------------------------------------------------------------------------------------------- losses

    def evaluate(self, name: str, outputs: Mapping, batch: Batch, params: Params, given: Given | None = None) -> Loss:
        """Computes one objective's loss of its view's batch."""
        masks = [batch[there] for there in self._masks(name) if there in batch]
        if masks:
            batch = collections.ChainMap({THERE: jnp.all(jnp.stack(masks), axis=0)}, batch)
        trained = only({"objectives": {name: params["objectives"].get(name, {})}}, self.objectives[name].trains)
        with jax.named_scope(name):
            carried = given.carried.get(name, {}) if given else {}
            return self.objectives[name](outputs, batch, {**trained["objectives"][name], **carried}, self.mesh)

    def _masks(self, name: str) -> list[str]:
        """Entries of the batch that say which samples have the inputs of an objective."""
        objective = self.objectives[name]
        towers = {need.partition(".")[0] for need in objective.needs}
        inputs = objective.inputs.union(*(inputs_read(self.model.spec.towers, tower) for tower in towers))
        return [f"{kind}_{THERE}" for kind in sorted(inputs)]

    def __call__(
        self, params: Params, batch: Batch, keys: jax.Array | None, given: Given | None = None
    ) -> tuple[jax.Array, dict]:
        """Returns (loss, metrics) of the whole batch in one forward pass per view."""
        total, (metrics, _) = self._whole(params, batch, keys, given or Given())
        return total, metrics

    def _whole(
        self, params: Params, batch: Batch, keys: jax.Array | None, given: Given
    ) -> tuple[jax.Array, tuple[dict, dict]]:
        total, metrics, carries = jnp.float32(0.0), {}, {}
        results, _ = self.forward(params, batch, keys, given)
        for name, (outputs, view_batch) in results.items():
            found = self.evaluate(name, outputs, view_batch, params, given)
            carries |= gradcache.carried(name, found)
            loss = found.sum / jnp.maximum(found.weight, 1.0)
            total += self.weight(name, given.step) * loss
            metrics |= gradcache.named(name, {"loss": loss} | found.metrics)
        for name in self.schedules:
            metrics |= gradcache.named(name, {"weight": self.weight(name, given.step)})
        return total, (metrics, gradcache.seen(self.moments(results), carries))

    def value_and_grad(
        self,
        params: Params,
        batch: Batch,
        keys: jax.Array | None,
        parts: int = 1,
        held: Params | None = None,
        given: Given | None = None,
    ):
        """Returns ((loss, metrics, seen), gradients), from `parts` micro-batches that together act as one batch.

        `seen` is what the carried state is changed by: under "statistics" {tower: moments of its BatchNorms}, under
        "objectives" {objective: `Loss.carry`}, where there is any.

        BatchNorms are what micro-batches differ in: each is normalised by its statistics over all devices. The
        moments are those of all of them together.

        Args:
          params: of the model and the objectives.
          batch: of all devices.
          keys: per-sample random keys [batch]; None runs as evaluations do, and gives no moments.
          parts: number of micro-batches.
          held: tree of bool like the parameters; marks those whose gradient is zero, and so the BatchNorms that use
            and keep their running statistics.
          given: what else is computed with.
        """
        given = given or Given()
        losses = self if held is None else dataclasses.replace(self, model=self.model.freezing(held))
        if parts > 1:
            return gradcache.value_and_grad(losses, gradcache.Call(params, given, held), batch, keys, parts)
        loss = lambda params: losses._whole(gradcache.hold(params, held), batch, keys, given)
        (value, (metrics, seen)), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return (value, metrics, seen), grads


def only(params: Params, trains: str) -> Params:
    """Returns the parameters, without a gradient for those whose whole path `trains` does not match."""
    if trains == Objective.trains:
        return params
    keep = lambda path, leaf: leaf if re.fullmatch(trains, path) else jax.lax.stop_gradient(leaf)
    return map_paths(keep, params)


def flat_texts(batch: Batch) -> dict:
    """Makes several captions of a sample rows: text [batch, captions, length] becomes [batch * captions, length].

    What tells samples apart, such as `caption_id` [batch, captions, 2], stays by sample.
    """
    flat = lambda a: a.reshape(-1, a.shape[-1]) if a.ndim == 3 else a
    return {**batch, **{name: flat(batch[name]) for name in ("text", "text_valid") if name in batch}}
