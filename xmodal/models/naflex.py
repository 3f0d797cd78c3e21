"""NaFlex: pictures of any aspect ratio and resolution as packed patches of one static length (SigLIP 2).

The positions are one learned square grid, resampled to the grid of each picture inside the jitted step: no shape
depends on the pictures, only on how many patches a sequence has room for.
"""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from xmodal.models import init
from xmodal.models.embedder import EmbedSpec
from xmodal.models.options import SHAPES
from xmodal.models.resample import sample_grid
from xmodal.models.tokens import Tokens


@dataclasses.dataclass(frozen=True)
class NaflexSpec(EmbedSpec):
    """Packed patches to tokens (Tschannen et al. 2025, "SigLIP 2", section 2.4.2).

    Attributes:
      patch_size: pixels.
      positions: learned ones along a side of their square grid.
      length: patches that a picture outside training has room for; 0 takes the data's. Training has its own lengths.
      input: name of the patches in the batch, [batch, patches, patch_size * patch_size * 3], row by row of the
        picture; `<input>_grid` is int32 [batch, 2], the picture's patches (down, across). What is behind them is
        padding.
    """

    takes: ClassVar = "patches"
    rank: ClassVar = 3

    type: Literal["naflex"] = "naflex"
    patch_size: int = 16
    positions: int = dataclasses.field(default=16, metadata=SHAPES)
    length: int = dataclasses.field(default=0, metadata=SHAPES)
    input: str = "image"

    def build(self, width, scheme, dtype, draw):
        """See `EmbedSpec`."""
        return NaflexEmbed(self, width, scheme, dtype, draw)

    @property
    def position_grid(self) -> tuple[int, int]:
        """Learned positions (down, across)."""
        return self.positions, self.positions

    @property
    def tokens(self) -> int:
        """Length of the sequence outside training."""
        return self.length


class NaflexEmbed(nnx.Module):
    """Maps patches and adds their positions; the parameters are those of a `PatchEmbed` without class token."""

    def __init__(self, spec: NaflexSpec, width: int, scheme: init.Scheme, dtype, draw: init.Draws):
        self.spec, self.dtype = spec, dtype
        self.kernel = draw(scheme.patch, spec.patch_size, spec.patch_size, 3, width)
        self.bias = nnx.Param(jnp.zeros((width,), jnp.float32))
        self.position = draw(scheme.image_position, spec.positions**2, width)

    def __call__(self, batch: dict[str, jax.Array], keys=None, rows=0, read=()) -> tuple[Tokens, dict]:
        del keys  # nothing is drawn
        spec, width = self.spec, self.bias.shape[0]
        patches, grid = batch[spec.input], batch.get(f"{spec.input}_grid")
        if grid is None or patches.shape[2:] != (3 * spec.patch_size**2,):
            raise ValueError(
                f"the model expects packed patches of {spec.patch_size} pixels and {spec.input}_grid, got "
                f"{spec.input} {patches.shape}: set naflex of the image input"
            )
        valid, pos = places(grid, patches.shape[1])
        kernel = self.kernel[...].reshape(-1, width).astype(self.dtype)
        x = patches.astype(self.dtype) @ kernel + self.bias[...].astype(self.dtype)
        x = x + sample_grid(self.position[...].astype(self.dtype), spec.position_grid, grid, pos)
        return Tokens(x, valid=valid, pos=pos, segments=((spec.input, x.shape[1]),)), {}


def places(grid: jax.Array, length: int) -> tuple[jax.Array, jax.Array]:
    """Says where in its picture each patch of a sequence lies.

    Args:
      grid: int32 [batch, 2], patches of each picture (down, across), each at least 1.
      length: of the sequences.

    Returns:
      valid bool [batch, length], false for padding, and the patch (down, across) int32 [batch, length, 2], of padding
      the first.
    """
    number = jnp.arange(length, dtype=grid.dtype)
    valid = number < jnp.prod(grid, axis=1, keepdims=True)
    pos = jnp.stack(jnp.divmod(number, grid[:, 1:]), axis=-1)
    return valid, jnp.where(valid[..., None], pos, 0)
