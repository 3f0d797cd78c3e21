"""Hugging Face models of every known family <-> xmodal: settings, names and array layouts, in NumPy alone."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from xmodal.config import did_you_mean
from xmodal.interop import FAMILIES
from xmodal.interop.settings import shown
from xmodal.interop.tables import Entry, Family, InteropError
from xmodal.models.model import ModelSpec


def family_of(config: Mapping[str, Any]) -> Family:
    """Returns the family of a config.json. Raises an InteropError when there is none for its `model_type`."""
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        hint = did_you_mean(str(kind)[:60], FAMILIES)
        raise InteropError(f"model_type {shown(kind)} cannot be converted: known are {', '.join(FAMILIES)}.{hint}")
    return FAMILIES[kind]


def family_for(spec: ModelSpec) -> Family:
    """Returns the family that can hold a model of this structure. Raises an InteropError when none does."""
    for family in FAMILIES.values():
        if family.fits(spec):
            return family
    towers = ", ".join(f"{name} (pool {tower.pool!r})" for name, tower in spec.towers.items())
    known = ", ".join(family.architecture for family in FAMILIES.values())
    raise InteropError(
        f"no known Hugging Face model has the towers {towers}: known are {known}. Choose the towers of one of these "
        "in the recipe, or export with --to jax, which takes any model"
    )


def model_config(config: Mapping[str, Any]) -> ConfigDict:
    """Returns the `model` section of the model that a config.json describes; keys left out take the defaults.

    Raises:
      InteropError: another kind of model, or a setting that is not known.
    """
    return family_of(config).model_config(config)


def table(spec: ModelSpec) -> list[Entry]:
    """Returns every array of the reference model that `spec` describes."""
    return family_for(spec).table(spec)


def from_huggingface(weights: Mapping[str, np.ndarray], spec: ModelSpec) -> dict:
    """Converts weights by Hugging Face name to parameters; see `tables.to_params`."""
    return family_for(spec).to_params(weights, spec)


def to_huggingface(params: Mapping[str, Any], spec: ModelSpec) -> dict[str, np.ndarray]:
    """Converts parameters to weights by Hugging Face name; see `tables.to_weights`."""
    return family_for(spec).to_weights(params, spec)
