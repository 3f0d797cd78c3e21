"""Token ids to tokens."""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from xmodal import keys as key_tools
from xmodal.distributed.sharding import constrain
from xmodal.models import init
from xmodal.models.embedder import EmbedSpec
from xmodal.models.layers import Norm
from xmodal.models.options import SHAPES, TRAINING
from xmodal.models.tokens import Tokens


@dataclasses.dataclass(frozen=True)
class TokenSpec(EmbedSpec):
    """Token ids to tokens.

    Attributes:
      vocab_size: rows of the table; 0 takes the input's vocabulary.
      length: positions; 0 takes the input's length.
      position: learned, or none (rotary trunks).
      types: kinds of tokens that are told apart by a learned vector (BERT's first and second sentence; 2), in
        `<input>_types` of the batch, int32 [batch, seq]; where the batch has none every token is of kind 0. 0: none.
      causal: each token starts a group of its own, so it sees only those before it.
      mask_padding: padding is invisible (SigLIP trains without).
      norm: a norm after the sum (BERT, GIT).
      norm_eps: of that norm.
      scale: multiplies the embedding by sqrt(width) (Gemma).
      dropout: on the embedded tokens.
      input: name of the ids in the batch, int32 [batch, seq]; `<input>_valid` marks padding with false, and
        `<input>_pos`, int32 [batch, seq], may give the position of each.
    """

    takes: ClassVar = "ids"
    rank: ClassVar = 2

    type: Literal["token"] = "token"
    vocab_size: int = dataclasses.field(default=0, metadata=SHAPES)
    length: int = dataclasses.field(default=0, metadata=SHAPES)
    position: Literal["learned", "none"] = "learned"
    types: int = 0
    causal: bool = True
    mask_padding: bool = True
    norm: bool = False
    norm_eps: float = 1e-6
    scale: bool = False
    dropout: float = dataclasses.field(default=0.0, metadata=TRAINING)
    input: str = "text"

    def build(self, width, scheme, dtype, draw):
        """See `EmbedSpec`."""
        return TokenEmbed(self, width, scheme, dtype, draw)

    @property
    def tokens(self) -> int:
        """Length of the longest sequence."""
        return self.length

    @property
    def vocabulary(self) -> int:
        """Rows of the token table."""
        return self.vocab_size


class TokenEmbed(nnx.Module):
    """Looks tokens up; ids [batch, seq] -> Tokens [batch, seq, width]."""

    def __init__(self, spec: TokenSpec, width: int, scheme: init.Scheme, dtype, draw: init.Draws):
        self.spec, self.dtype = spec, dtype
        self.embedding = draw(scheme.token, spec.vocab_size, width)
        self.position = draw(scheme.text_position, spec.length, width) if spec.position == "learned" else None
        self.types = draw(scheme.token, spec.types, width) if spec.types else None
        self.norm = Norm(width, eps=spec.norm_eps) if spec.norm else None

    def __call__(self, batch: dict[str, jax.Array], keys=None, rows=0, read=()) -> tuple[Tokens, dict]:
        spec, ids = self.spec, batch[self.spec.input]
        places = batch.get(f"{spec.input}_pos")
        # A table sharded along the width would be rematerialised whole by the gather; along the rows it is not.
        table = constrain(self.embedding[...], jax.P("tensor", None))
        x = jnp.take(table, ids, axis=0).astype(self.dtype)
        if spec.scale:
            x = x * jnp.asarray(x.shape[-1] ** 0.5, x.dtype)
        if self.position is not None and places is None:
            x = x + jax.lax.dynamic_slice_in_dim(self.position[...], 0, ids.shape[1]).astype(x.dtype)
        elif self.position is not None:
            x = x + jnp.take(self.position[...], places, axis=0).astype(x.dtype)
        if self.types is not None:
            kinds = batch.get(f"{spec.input}_types")
            x = x + (self.types[0] if kinds is None else jnp.take(self.types[...], kinds, axis=0)).astype(x.dtype)
        x = x if self.norm is None else self.norm(x)
        if spec.dropout:
            x = key_tools.dropout(x, spec.dropout, key_tools.fold(keys, "embed_dropout"))
        valid = batch.get(f"{spec.input}_valid") if spec.mask_padding else None
        number = jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.int32), ids.shape) if places is None else places
        pos = number[..., None]
        group = jnp.ones(ids.shape, jnp.int32) if spec.causal else None
        return Tokens(x, valid=valid, group=group, pos=pos, segments=((spec.input, ids.shape[1]),)), {}
