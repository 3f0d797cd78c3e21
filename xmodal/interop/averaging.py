"""Arithmetic of weights: means of checkpoints (model soups), and what lies between a start and a fine-tuned model."""

import dataclasses
from collections.abc import Iterable

import jax
import numpy as np

from xmodal.interop.tables import InteropError, fail
from xmodal.paths import flatten_paths, map_paths
from xmodal.stored.base import Stored


def average(models: Iterable[Stored]) -> Stored:
    """Returns the mean of several checkpoints of one run (Izmailov et al. 2018; Wortsman et al. 2022).

    Raises:
      InteropError: they are not of one model.
    """
    total, count, first = None, 0, None
    for stored in models:
        first = first or stored
        if stored.spec != first.spec:
            raise InteropError(f"{stored.origin}: steps {first.step} and {stored.step} are of different models")
        arrays = jax.tree.map(lambda a: np.asarray(a, np.float64), stored.params)
        total = arrays if total is None else jax.tree.map(np.add, total, arrays)
        count += 1
    mean = jax.tree.map(lambda a: (a / count).astype(np.float32), total)
    return dataclasses.replace(first, params=mean, step=None)


def interpolate(start: Stored, tuned: Stored, share: float) -> Stored:
    """Returns `start` + `share` * (`tuned` - `start`), weight by weight (WiSE-FT, Wortsman et al. 2022).

    Args:
      start: the model that `tuned` began as.
      tuned: the fine-tuned model.
      share: 0 is `start`, 1 is `tuned`.

    Raises:
      InteropError: the share is not one, or they do not have the same weights.
    """
    if not 0.0 <= share <= 1.0:
        raise InteropError(f"a share of {share} lies between no two models: expected 0 (as before) to 1 (as tuned)")
    old, new = flatten_paths(start.params), flatten_paths(tuned.params)
    problems = [f"missing in {start.origin}: {path}" for path in new if path not in old]
    problems += [f"missing in {tuned.origin}: {path}" for path in old if path not in new]
    problems += [
        f"shape: {path} is {old[path].shape} in {start.origin} and {new[path].shape} in {tuned.origin}"
        for path in new
        if path in old and old[path].shape != new[path].shape
    ]
    fail(f"{start.origin} and {tuned.origin} cannot be interpolated", problems)
    mix = lambda path, b: (np.asarray(old[path], np.float64) * (1 - share) + share * np.asarray(b)).astype(np.float32)
    return dataclasses.replace(tuned, params=map_paths(mix, tuned.params), step=None)
