"""A model to evaluate, wherever it lives, and the suite to evaluate it with."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from data_pipelines.errors import DataError
from data_pipelines.modalities import inputs_of
from xmodal import recipes
from xmodal.config import ConfigError, did_you_mean, from_json
from xmodal.live import Live
from xmodal.stored import run
from xmodal.stored.opening import open_stored, parse

_KEYS = ("about", "label", "evals")


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model to evaluate.

    Attributes:
      live: the model on a mesh.
      head: what results say they are of.
    """

    live: Live
    head: dict[str, Any]


def open_subject(where: str | Path, mesh: jax.sharding.Mesh, *, step: int | None = None) -> Subject:
    """Opens a run (averaged weights where it kept them), an imported or exported folder, "hf:DIR" or "open_clip:DIR".

    Args:
      where: the model.
      mesh: where the parameters go.
      step: checkpoint of a run; None takes the newest good one.

    Raises:
      ConfigError: there is no model that can be read; the message says what is wrong with it.
    """
    kind, path = parse(where)
    if kind == run.KIND.name:  # straight onto the mesh, and as it was trained
        found = run.load_run(path, mesh, open_stored, step=step)
        return Subject(Live.place(found.stored, mesh), {"step": found.stored.step, "samples": found.samples})
    return Subject(Live.place(open_stored(where, step=step), mesh), {"model": str(where)})


def read_suite(path: str | Path, config: ConfigDict) -> ConfigDict:
    """Returns a model's config with the evaluators of a suite instead of its own.

    Args:
      path: of a JSON object with `evals`, entries as in a recipe, and where they are needed `label`, the keys of
        a label input, and `about`, a text for people. Relative paths start as in a recipe.
      config: of the model; what is not in the suite stays.

    Raises:
      ConfigError: there is no such file, or something in it is not known.
    """
    file = recipes.find(Path(path), "suites/*.json")
    try:
        suite = from_json(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        what = "is not JSON" if isinstance(error, json.JSONDecodeError) else "is no suite"
        raise ConfigError(f"--suite: {path} {what}: {error}") from None
    if unknown := [key for key in suite if key not in _KEYS]:
        raise ConfigError(f"{path}: unknown key {unknown[0]!r}.{did_you_mean(unknown[0], _KEYS)} Keys: {_KEYS}")
    if not isinstance(suite.get("evals"), ConfigDict):
        raise ConfigError(f"{path}: `evals` holds the evaluators, such as {{'val': {{'type': 'retrieval', ...}}}}")
    config = config.copy_and_resolve_references()
    config.evals = suite.evals
    if "label" in suite:
        name = next((name for name, entry in config.data.inputs.items() if entry.type == "label"), "label")
        config.data.inputs[name] = dict(type="label") | suite.label.to_dict()
        try:
            config.data.inputs = inputs_of(config.data).entries()
        except DataError as error:
            raise ConfigError(f"{path}: label: {error}") from None
    return config
