"""Position embeddings on another grid: three filters of `torch.nn.functional.interpolate`, differentiable.

Published models were trained with one or the other, and differ in the third digit when the wrong one is taken.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

Filter = Literal["bicubic", "bicubic_antialias"]


def resample_grid(table: jax.Array, old: tuple[int, int], new: tuple[int, int], how: Filter) -> jax.Array:
    """Resamples the trailing rows of a table of positions.

    Args:
      table: [prefix + old patches, width]; the rows of the prefix (class token) stay as they are.
      old: patches (down, across) of the table.
      new: patches wanted.
      how: "bicubic" (Keys' cubic with a = -0.75, edges repeated) or "bicubic_antialias" (a = -0.5, widened when the
        grid shrinks, edges left out).

    Returns:
      [prefix + new patches, width], of the table's type.
    """
    if old == new:
        return table
    prefix, width = table.shape[0] - old[0] * old[1], table.shape[1]
    down, across = (jnp.asarray(_weights(a, b, how), table.dtype) for a, b in zip(old, new))
    grid = table[prefix:].reshape(*old, width)
    grid = jnp.einsum("ia,jb,abd->ijd", down, across, grid, precision=jax.lax.Precision.HIGHEST)
    return jnp.concatenate([table[:prefix], grid.reshape(-1, width)])


def sample_grid(table: jax.Array, old: tuple[int, int], new: jax.Array, places: jax.Array) -> jax.Array:
    """Resamples a table to a grid of its own for each sample: bilinear, antialiased, as `jax.image.resize` does it.

    Args:
      table: [old patches, width].
      old: patches (down, across) of the table.
      new: int [batch, 2], patches wanted, at least 1; data, not shapes.
      places: int [batch, seq, 2], which (down, across) of the new grid each token is at.

    Returns:
      [batch, seq, width], of the table's type.
    """
    down, across = (_triangle(old[axis], new[:, axis, None], places[..., axis]) for axis in range(2))
    # One product with the whole table: two, one after the other, would need all columns of all rows in between.
    weights = (down[..., :, None] * across[..., None, :]).reshape(*places.shape[:2], -1)
    return jnp.matmul(weights.astype(table.dtype), table, precision=jax.lax.Precision.HIGHEST)


def _triangle(old: int, new: jax.Array, places: jax.Array) -> jax.Array:
    """Weights [batch, seq, old] along one axis; `new` [batch, 1], `places` [batch, seq]."""
    step = (old / new)[..., None]
    distance = (places[..., None] + 0.5) * step - (jnp.arange(old) + 0.5)
    weights = jnp.maximum(1.0 - jnp.abs(distance) / jnp.maximum(step, 1.0), 0.0)
    return weights / jnp.sum(weights, axis=-1, keepdims=True)


@functools.cache
def _weights(old: int, new: int, how: Filter) -> np.ndarray:
    """Weights [new, old] along one axis; pixel centres are at half integers."""
    step = old / new
    centre = (np.arange(new)[:, None] + 0.5) * step
    if how == "bicubic":
        first = np.floor(centre - 0.5).astype(int)
        places = first + np.arange(-1, 3)
        weights = np.zeros((new, old))
        rows = np.broadcast_to(np.arange(new)[:, None], places.shape)
        np.add.at(weights, (rows, np.clip(places, 0, old - 1)), _cubic(places + 0.5 - centre, -0.75))
        return weights
    scale = max(step, 1.0)
    weights = _cubic((np.arange(old) + 0.5 - centre) / scale, -0.5)
    return weights / weights.sum(axis=1, keepdims=True)


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution kernel (Keys 1981)."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
