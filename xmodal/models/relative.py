"""Learned biases of attention by the distance of query and key: BEiT's grid and T5's buckets."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn.initializers import normal

from xmodal.models.init import Draws
from xmodal.models.spec import Relative


class RelativeBias(nnx.Module):
    """A table of biases, `table` [distances, heads]; see `Relative`."""

    def __init__(self, spec: Relative, heads: int, draw: Draws):
        self.spec = spec
        if spec.kind == "grid" and not all(spec.grid):
            raise ValueError("relative positions of a grid need a tower that embeds an image, or `relative.grid`")
        down, across = spec.grid
        distances = (2 * down - 1) * (2 * across - 1) + 3 if spec.kind == "grid" else spec.buckets
        self.table = draw(normal(0.02), distances, heads)

    def __call__(self, queries: int, keys: int, start: jax.Array | None = None) -> jax.Array:
        """Returns float32 [heads, queries, keys].

        Args:
          queries: their number.
          keys: their number.
          start: place of the first query among the keys when decoding (int32 scalar), or None.
        """
        if self.spec.kind == "buckets":
            places = jnp.arange(queries) + (0 if start is None else start)
            index = buckets(jnp.arange(keys) - places[:, None], self.spec)
        else:
            index = grid_distances(self.spec.grid, max(self.spec.prefix, 0))
            if index.shape != (queries, keys):
                raise ValueError(f"relative positions of a grid are of {index.shape[0]} tokens, not of {keys}")
        return jnp.take(self.table[...], index, axis=0).transpose(2, 0, 1)


def grid_distances(grid: tuple[int, int], prefix: int) -> np.ndarray:
    """Returns int [seq, seq], the row of the table for query and key of BEiT's published code.

    Args:
      grid: (down, across).
      prefix: tokens before the grid; from them, to them and among them there is one row each, the last three.
    """
    down, across = grid
    y, x = (a.ravel() for a in np.meshgrid(np.arange(down), np.arange(across), indexing="ij"))
    rows, columns = y[:, None] - y + down - 1, x[:, None] - x + across - 1
    last = (2 * down - 1) * (2 * across - 1)
    index = np.full((prefix + down * across,) * 2, last + 2)
    index[:prefix, prefix:], index[prefix:, :prefix] = last, last + 1
    index[prefix:, prefix:] = rows * (2 * across - 1) + columns
    return index


def buckets(distance: jax.Array, spec: Relative) -> jax.Array:
    """Returns the bucket of each distance (key minus query): half of them exact, the others logarithmic (T5's code)."""
    count, offset = spec.buckets, 0
    if spec.both:
        count //= 2
        offset = jnp.where(distance > 0, count, 0)
        distance = jnp.abs(distance)
    else:
        distance = jnp.maximum(-distance, 0)
    exact = count // 2
    ratio = jnp.log(jnp.maximum(distance, 1) / exact) / math.log(spec.distance / exact)
    far = jnp.minimum(exact + (ratio * (count - exact)).astype(jnp.int32), count - 1)
    return offset + jnp.where(distance < exact, distance, far)
