"""Position embeddings for another resolution, or for shorter texts."""

import jax
import jax.numpy as jnp
import numpy as np


def resize_grid(
    table: np.ndarray, old: tuple[int, int], new: tuple[int, int], *, method: str = "bicubic"
) -> np.ndarray:
    """Resizes the positions of image patches as open_clip does: bicubic, antialiased, leading tokens left as they are.

    Args:
      table: [prefix + old patches, width]; the prefix is the class token's position, if there is one.
      old: patches (down, across) of the table.
      new: patches wanted.
      method: "bicubic" (Keys, a = -0.5: what torch's antialiased filter uses) or "bilinear".

    Returns:
      float32 [prefix + new patches, width].
    """
    table = np.asarray(table, np.float32)
    prefix, width = len(table) - old[0] * old[1], table.shape[1]
    kind = {"bicubic": "cubic", "bilinear": "linear"}[method]
    grid = jnp.asarray(table[prefix:]).reshape(*old, width)
    resized = jax.image.resize(grid, (*new, width), kind, antialias=True, precision=jax.lax.Precision.HIGHEST)
    return np.concatenate([table[:prefix], np.asarray(resized).reshape(-1, width)])
