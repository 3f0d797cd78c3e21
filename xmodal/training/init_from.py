"""Starts a run from weights that exist, and keeps those that are not to be stored out of its checkpoints."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from xmodal.config import ConfigError
from xmodal.distributed.mesh import assert_same_data
from xmodal.distributed.sharding import place
from xmodal.models.batch_norm import STATISTICS
from xmodal.models.model import Functional
from xmodal.paths import flatten_paths
from xmodal.stored.opening import open_stored
from xmodal.stored.starting import UNSTORED, Starting, Target, digest, merged, read_start, read_unstored, without
from xmodal.training.optimizer import OptimizerPlan
from xmodal.training.task import Task

_PARTS = ("params", "ema")  # of the state, that hold parameters


@dataclasses.dataclass(frozen=True)
class Kept:
    """What a run's checkpoints leave out.

    Attributes:
      paths: of the parameters.
      fingerprint: of their values, "" for none.
    """

    paths: frozenset[str] = frozenset()
    fingerprint: str = ""

    def lean(self, state: Mapping[str, Any]) -> dict:
        """Returns a train state (or its shapes) without these parameters."""
        return {**state, **{part: without(state[part], self.paths) for part in _PARTS if part in state}}

    @property
    def document(self) -> dict[str, str]:
        """What the checkpoint's document says of them."""
        return {UNSTORED: self.fingerprint} if self.paths else {}


def kept_out(task: Task) -> Kept:
    """Returns what the run's checkpoints leave out, before it is read.

    Raises:
      ConfigError: the run would train some of it.
    """
    starting = Starting.of(task.config)
    if starting.stores_all:
        return Kept()
    paths = starting.unstored(task.parameters)
    if trained := _trained(paths, task.plan, task.losses.model):
        more = f" and {len(trained) - 3} more" if len(trained) > 3 else ""
        raise ConfigError(
            f"init_from: {', '.join(trained[:3])}{more} are not stored (stored=False), and the run would train them: "
            "freeze them by optimizer.rules, such as (r'image/.*', dict(freeze=True)), or store them"
        )
    return Kept(paths)


def start_from(task: Task, state: dict) -> tuple[dict, Kept]:
    """Returns the fresh state with the weights that `config.init_from` names, averaged weights included.

    Raises:
      ConfigError: they cannot be read, or do not fit; every one that does not is named.
    """
    kept, target = kept_out(task), _target(task)
    found = read_start(target, open_stored)
    if jax.process_index() == 0:
        fresh = len(target.shapes) - len(found)
        places = Starting.of(task.config)
        print(f"started from {places}: {len(found)} arrays" + (f", {fresh} others are new" if fresh else ""))
    unstored = {path: found[path] for path in kept.paths}
    if unstored:
        kept = Kept(kept.paths, digest(unstored))
        assert_same_data("init_from", kept.fingerprint)
    put = lambda path, leaf: _placed(found[path], leaf) if path in found else leaf
    parts = {part: state[part] for part in _PARTS if part in state}
    filled = {
        part: jax.tree.unflatten(jax.tree.structure(tree), [put(p, leaf) for p, leaf in flatten_paths(tree).items()])
        for part, tree in parts.items()
    }
    return state | filled, kept


def completed(task: Task, abstract: Mapping[str, Any], state: Mapping[str, Any], meta: Mapping) -> tuple[dict, Kept]:
    """Returns a restored state with what its checkpoint has left out, read again from its place.

    Args:
      task: the run.
      abstract: shapes and shardings of the whole state.
      state: as it was restored.
      meta: the checkpoint's document.

    Raises:
      ConfigError: the weights are not there any more, or are not those that the run began with.
    """
    kept = Kept(kept_out(task).paths, meta.get(UNSTORED, ""))
    if not kept.paths:
        return dict(state), Kept()
    arrays = read_unstored(_target(task), open_stored, kept.fingerprint)
    parts = {}
    for part in [part for part in _PARTS if part in state]:
        leaves = flatten_paths(abstract[part])
        parts[part] = merged(state[part], abstract[part], {p: _placed(a, leaves[p]) for p, a in arrays.items()})
    return {**state, **parts}, kept


def _placed(array: np.ndarray, leaf: Any) -> jax.Array:
    return place(array.astype(leaf.dtype), leaf.sharding)


def _target(task: Task) -> Target:
    return Target(task.config, task.inputs.tokenizers, task.parameters)


def _trained(paths: frozenset[str], plan: OptimizerPlan, model: Functional) -> list[str]:
    """Those of some parameters that a run changes, in order."""
    held, frozen = model.freezing(plan.frozen).frozen, flatten_paths(plan.frozen)

    def changes(path: str) -> bool:
        if path.startswith(f"{STATISTICS}/"):
            return path.removeprefix(f"{STATISTICS}/").rpartition("/")[0] not in held
        return not frozen[path]

    return sorted(path for path in paths if changes(path))
