"""Refuses what is not a number: weights of a run that diverged or of a damaged file, and embeddings made of them.

All comparisons with NaN are false, so a metric of such weights can look perfect. Everything that opens a model asks
`not_finite`; evaluators and inference ask `check_rows`.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.errors import DataError
from xmodal.paths import flatten_paths

_AT_ONCE = 2**24  # numbers of an array on the host that are looked at together: NumPy makes a bool of each


class NotFinite(DataError):
    """Weights, or what a model makes of a sample, hold NaN or infinity; the message names the parameter or sample."""


def not_finite(params: Mapping) -> list[str]:
    """Returns one line for each parameter that holds NaN or infinity, such as "image/embed/kernel: 3 of 768 numbers".

    Args:
      params: nested dicts of arrays, on the host or on devices; sharded arrays of several processes, too.
    """
    arrays = flatten_paths(params)
    on_devices = {path: a for path, a in arrays.items() if isinstance(a, jax.Array)}
    counts = {path: _count(np.asarray(a)) for path, a in arrays.items() if path not in on_devices}
    counts |= {path: int(count) for path, count in jax.device_get(_counts(on_devices)).items()}
    return [f"{path}: {counts[path]:,} of {a.size:,} numbers" for path, a in arrays.items() if counts[path]]


def check_params(params: Mapping, whose: str) -> None:
    """Raises NotFinite if a parameter holds NaN or infinity; `whose` says where they are from."""
    if bad := not_finite(params):
        more = f", and {len(bad) - 1} other parameters" if len(bad) > 1 else ""
        raise NotFinite(f"{whose} holds weights that are NaN or infinite: {bad[0]}{more}")


def check_rows(values: np.ndarray, what: str, name: Callable[[int], str]) -> np.ndarray:
    """Returns values of samples, all of which are numbers.

    Args:
      values: [samples, ...].
      what: the values are, in messages.
      name: tells which sample a row is of.

    Raises:
      NotFinite: some are NaN or infinite; the message names the first such sample.
    """
    good = np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
    if good.all():
        return values
    first = int(np.argmin(good))
    raise NotFinite(f"{what} of {name(first)} is NaN or infinite ({np.sum(~good):,} of {len(good):,} are)")


def check_metrics(metrics: Mapping[str, float]) -> None:
    """Raises NotFinite if a metric is not a number."""
    if bad := [name for name, value in metrics.items() if not np.isfinite(value)]:
        raise NotFinite(f"{bad[0]} is {metrics[bad[0]]}, which is no result")


def _count(array: np.ndarray) -> int:
    flat = array.reshape(-1)
    return sum(int(np.sum(~np.isfinite(part))) for part in _parts(flat)) if _is_real(array.dtype) else 0


def _parts(flat: np.ndarray) -> Iterator[np.ndarray]:
    return (flat[start : start + _AT_ONCE] for start in range(0, flat.size, _AT_ONCE))


@jax.jit
def _counts(arrays: dict[str, jax.Array]) -> dict[str, Any]:
    return {path: jnp.sum(~jnp.isfinite(a)) if _is_real(a.dtype) else 0 for path, a in arrays.items()}


def _is_real(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.inexact)
