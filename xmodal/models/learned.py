"""Embedders that read no array: learned queries, and mask tokens in the places of tokens that were left out."""

import dataclasses
import math
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from xmodal.models import init
from xmodal.models.embedder import EmbedSpec
from xmodal.models.layers import sincos_positions
from xmodal.models.options import SHAPES
from xmodal.models.tokens import Tokens


@dataclasses.dataclass(frozen=True)
class QuerySpec(EmbedSpec):
    """Learned tokens that are the same for all samples (the queries of BLIP-2's Q-Former, of DETR).

    Attributes:
      count: tokens.
      input: name of their segment; the batch may say `<input>_group`, `_media`, `_shows` and `_pos` of them.
    """

    type: Literal["query"] = "query"
    count: int = dataclasses.field(default=32, metadata=SHAPES)
    input: str = "query"

    def build(self, width, scheme, dtype, draw):
        """See `EmbedSpec`."""
        return QueryEmbed(self, width, scheme, dtype, draw)

    @property
    def tokens(self) -> int:
        """Length of the sequence."""
        return self.count


class QueryEmbed(nnx.Module):
    """See `QuerySpec`."""

    def __init__(self, spec: QuerySpec, width: int, scheme: init.Scheme, dtype, draw: init.Draws):
        self.spec, self.dtype = spec, dtype
        self.query = draw(scheme.token, spec.count, width)

    def __call__(self, batch, keys=None, rows=0, read=()) -> tuple[Tokens, dict]:
        x = jnp.broadcast_to(self.query[...].astype(self.dtype), (rows, *self.query.shape))
        return Tokens(x, segments=((self.spec.input, self.spec.count),)), {}


@dataclasses.dataclass(frozen=True)
class MaskTokensSpec(EmbedSpec):
    """All tokens of an image again: those that are read, and a learned token in the place of each that was left out.

    The decoder of a masked autoencoder (He et al. 2021, section 3): the tower reads one other, whose embedder knows
    which tokens it kept (`Tokens.index`), and all tokens get positions.

    Attributes:
      image_size: pixels, as of the embedder that left tokens out; 0 takes the data's size.
      patch_size: pixels of its patches.
      prefix_tokens: of its tokens those before the patches.
      position: learned, or fixed sine-cosine (of the patches alone).
      input: name of the segment.
    """

    takes: ClassVar = "pixels"
    absorbs: ClassVar = True

    type: Literal["mask_tokens"] = "mask_tokens"
    image_size: int | tuple[int, int] = dataclasses.field(default=0, metadata=SHAPES)
    patch_size: int = 16
    prefix_tokens: int = 1
    position: Literal["learned", "sincos"] = "sincos"
    input: str = "image"

    def build(self, width, scheme, dtype, draw):
        """See `EmbedSpec`."""
        return MaskTokensEmbed(self, width, scheme, dtype, draw)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches (down, across)."""
        size = self.image_size if isinstance(self.image_size, tuple) else (self.image_size,) * 2
        return size[0] // self.patch_size, size[1] // self.patch_size

    @property
    def prefix(self) -> int:
        """Tokens before the patches."""
        return self.prefix_tokens

    @property
    def tokens(self) -> int:
        """Length of the sequence."""
        return self.prefix + math.prod(self.grid)


class MaskTokensEmbed(nnx.Module):
    """See `MaskTokensSpec`."""

    def __init__(self, spec: MaskTokensSpec, width: int, scheme: init.Scheme, dtype, draw: init.Draws):
        self.spec, self.dtype = spec, dtype
        self.mask_token = draw(scheme.token, 1, width)
        self.position = draw(scheme.image_position, spec.tokens, width) if spec.position == "learned" else None

    def __call__(self, batch, keys=None, rows=0, read=()) -> tuple[Tokens, dict]:
        spec = self.spec
        if len(read) != 1:
            raise ValueError(f"mask tokens stand among the tokens of one other tower, and {len(read)} are read")
        (kept,) = read
        x = kept.x.astype(self.dtype)
        if kept.index is not None:
            shape = (x.shape[0], spec.tokens, x.shape[2])
            empty = jnp.broadcast_to(self.mask_token[...].astype(x.dtype), shape)
            x = jax.vmap(lambda all_tokens, index, values: all_tokens.at[index].set(values))(empty, kept.index, x)
        if x.shape[1] != spec.tokens:
            raise ValueError(f"{spec.tokens} tokens are expected ({spec.prefix} and {spec.grid}), got {x.shape[1]}")
        if self.position is not None:
            x = x + self.position[...].astype(x.dtype)
        else:
            places = sincos_positions(spec.grid, x.shape[-1])
            x = x + jnp.concatenate([jnp.zeros((spec.prefix, x.shape[-1])), places]).astype(x.dtype)
        return Tokens(x, segments=((spec.input, spec.tokens),)), {}
