"""Heads: from tokens to logits over a vocabulary."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import zeros

from xmodal.models.init import Draws, Scheme
from xmodal.models.layers import ACTIVATIONS, Linear, Norm
from xmodal.models.spec import Sublayer


class MaskedHead(nnx.Module):
    """BERT's head of masked language modelling: linear map, activation, norm, then the token table and a bias.

    Activation, kind of norm and biases are those of the tower's layers; the output's bias is always there.
    """

    def __init__(self, width: int, vocab_size: int, *, mlp: Sublayer, scheme: Scheme, draw: Draws):
        self.act = mlp.act
        self.dense = Linear(width, width, draw=draw, bias=mlp.bias, kernel_init=scheme.head)
        self.norm = Norm(width, kind=mlp.norm, eps=mlp.norm_eps)
        self.bias = nnx.Param(zeros(None, (vocab_size,), jnp.float32))

    def __call__(self, x: jax.Array, table: jax.Array) -> jax.Array:
        """[batch, seq, width] and the table [vocab, width] -> float32 [batch, seq, vocab]."""
        x = self.norm(ACTIVATIONS[self.act](self.dense(x)))
        return tied_logits(x, table) + self.bias[...]


def tied_logits(x: jax.Array, table: jax.Array) -> jax.Array:
    """Products with every row of a token table: [batch, seq, width], [vocab, width] -> float32 [batch, seq, vocab]."""
    return jnp.einsum("bsd,vd->bsv", x, table.astype(x.dtype), preferred_element_type=jnp.float32)
