"""The head of pixels: what a masked autoencoder's decoder guesses."""

import dataclasses
from typing import Literal

import jax.numpy as jnp

from xmodal.models.heads.base import HeadSpec
from xmodal.models.layers import Linear
from xmodal.models.options import SHAPES


@dataclasses.dataclass(frozen=True)
class PixelsSpec(HeadSpec):
    """Pixels of every patch, float32 [batch, patches, patch_size * patch_size * channels] (He et al. 2021, section 3).

    They are those of the last segment without class token and registers, row by row within a patch.

    Attributes:
      patch_size: pixels along a side.
      channels: values of a pixel.
    """

    type: Literal["pixels"] = dataclasses.field(default="pixels", metadata=SHAPES)
    patch_size: int = dataclasses.field(default=16, metadata=SHAPES)
    channels: int = dataclasses.field(default=3, metadata=SHAPES)

    def parts(self, site):
        """See `HeadSpec`."""
        return dict(
            pixels=Linear(site.tower.width, self.width(site.tower), draw=site.draw, kernel_init=site.scheme.head)
        )

    def width(self, tower):
        """See `HeadSpec`."""
        return self.patch_size**2 * self.channels

    def __call__(self, name, tower, tokens, batch):
        """See `HeadSpec`."""
        before = tower.spec.embed.prefix if tower.spec.embed else 0
        return tower.part(name, "pixels")(tokens.segment(-1).x[:, before:], jnp.float32)
