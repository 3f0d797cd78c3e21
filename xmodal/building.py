"""From a settled config to a model, and its objectives: what training, stored runs and Live share."""

from collections.abc import Mapping

import jax
from ml_collections import ConfigDict

from xmodal import keys as key_tools
from xmodal.config import ConfigError, build_entry, make_spec
from xmodal.models.model import Functional, ModelSpec
from xmodal.objectives import OBJECTIVES, Objective


def build_model(config: ConfigDict) -> Functional:
    """Builds the model of a config, without allocating any parameter.

    Raises:
      ConfigError: `config.model` describes none.
    """
    try:
        return Functional.build(make_spec(ModelSpec, config.model, where="model"))
    except ValueError as error:
        raise error if isinstance(error, ConfigError) else ConfigError(f"model: {error}") from error


def build_objectives(config: ConfigDict, spec: ModelSpec) -> dict[str, Objective]:
    """Builds the objectives of a config and checks that the model gives what each needs.

    Raises:
      ConfigError: an entry is malformed, or does not fit the model.
    """
    objectives = {}
    for name, entry in config.objectives.items():
        where = f"objectives.{name}"
        objectives[name] = build_entry(OBJECTIVES, entry, where)
        for need in sorted(objectives[name].needs):
            check_need(spec, need, where)
        try:
            objectives[name].check(spec)
        except ValueError as error:
            raise ConfigError(f"{where}: {error}") from error
    return objectives


def check_need(spec: ModelSpec, need: str, where: str) -> None:
    """Raises a ConfigError where a model does not give the output `need`, such as "image.pooled"."""
    try:
        spec.check_output(need)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None


def init_params(model: Functional, objectives: Mapping[str, Objective], key: jax.Array) -> dict:
    """Returns fresh parameters: the towers' and, under "objectives", the objectives'."""
    return model.init(key) | {"objectives": init_objectives(objectives, model.spec, key)}


def init_objectives(objectives: Mapping[str, Objective], spec: ModelSpec, key: jax.Array | None = None) -> dict:
    """Returns the parameters of the objectives, by objective; `key` draws those that start at random values."""
    draw = lambda name: None if key is None else key_tools.named(key, name)
    params = {name: objective.init(draw(name), spec) for name, objective in objectives.items()}
    return {name: tree for name, tree in params.items() if tree}


def init_carried(objectives: Mapping[str, Objective], spec: ModelSpec, key: jax.Array | None = None) -> dict:
    """Returns what the objectives carry from step to step, by objective, as it is at first; `key` draws some of it."""
    draw = lambda name: None if key is None else key_tools.named(key, f"{name} carried")
    carried = {name: objective.carried(draw(name), spec) for name, objective in objectives.items()}
    return {name: tree for name, tree in carried.items() if tree}


def parameter_shapes(model: Functional, objectives: Mapping[str, Objective]) -> dict:
    """Returns shapes and types of what `init_params` makes; nothing is allocated."""
    return jax.eval_shape(lambda key: init_params(model, objectives, key), jax.random.key(0))
