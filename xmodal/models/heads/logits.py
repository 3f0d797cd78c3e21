"""Heads of logits over a vocabulary: at every position, or at those alone that are to be guessed."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import zeros

from xmodal.models.heads.base import HeadSpec, segment_of
from xmodal.models.init import Draws, Scheme
from xmodal.models.layers import ACTIVATIONS, Linear, Norm
from xmodal.models.options import SHAPES
from xmodal.models.spec import Sublayer


@dataclasses.dataclass(frozen=True)
class LogitsSpec(HeadSpec):
    """Logits over a vocabulary, float32 [batch, length of the segment, vocab].

    Attributes:
      map: a linear map, the token table itself (`tied`), or BERT's (`masked`: linear map, activation and norm before
        the token table).
      vocab_size: outputs of a linear map; 0 takes that of the input whose ids they are.
      segment: input whose positions are read; "" is the last segment, the tower's text without any prefix.
    """

    type: Literal["logits"] = dataclasses.field(default="logits", metadata=SHAPES)
    map: Literal["linear", "tied", "masked"] = dataclasses.field(default="linear", metadata=SHAPES)
    vocab_size: int = dataclasses.field(default=0, metadata=SHAPES)
    segment: str = dataclasses.field(default="", metadata=SHAPES)

    def parts(self, site):
        """See `HeadSpec`."""
        tower, chosen = site.tower, site.scheme
        if self.map != "linear" and not self.width(tower):
            raise ValueError(f"head={self.map!r} is tied to a token table, and the tower embeds no tokens")
        if self.map == "masked":
            return dict(head=MaskedHead(tower.width, self.width(tower), mlp=site.mlp, scheme=chosen, draw=site.draw))
        if self.map == "tied":
            return {}
        return dict(head=Linear(tower.width, self.vocab_size, draw=site.draw, kernel_init=chosen.head))

    def width(self, tower):
        """See `HeadSpec`."""
        return self.vocab_size if self.map == "linear" else tower.embed.vocabulary if tower.embed else 0

    def __call__(self, name, tower, tokens, batch):
        """See `HeadSpec`."""
        return self.of(name, tower, segment_of(tokens, self.segment)[1].x)

    def of(self, name: str, tower, x: jax.Array) -> jax.Array:
        """Returns logits, float32 [batch, seq, vocab], of values [batch, seq, width]."""
        head = tower.part(name, "head")
        if self.map == "linear":
            return head(x, jnp.float32)
        table = tower.embed.embedding[...]
        return tied_logits(x, table) if self.map == "tied" else head(x, table)

    def factors(self, name: str, tower, x: jax.Array) -> dict[str, jax.Array]:
        """Returns `x`, `kernel` and `bias` of which the logits are `x @ kernel + bias`; see `LogitFactorsSpec`."""
        head = tower.part(name, "head")
        if self.map == "linear":
            return dict(x=x, kernel=head.kernel[...], bias=head.bias[...])
        table = tower.embed.embedding[...].T
        if self.map == "tied":
            return dict(x=x, kernel=table, bias=jnp.zeros(table.shape[1], jnp.float32))
        return dict(x=head.features(x), kernel=table, bias=head.bias[...])


@dataclasses.dataclass(frozen=True)
class LogitFactorsSpec(HeadSpec):
    """What the logits of another head are products of, for losses that never hold all of them.

    Returns `x` [batch, length of the segment, width], `kernel` [width, vocab] and `bias` float32 [vocab]: the logits
    are `x @ kernel + bias`, see `logits_of`.

    Attributes:
      of: the head that gives logits.
    """

    type: Literal["logit_factors"] = dataclasses.field(default="logit_factors", metadata=SHAPES)
    of: str = dataclasses.field(default="logits", metadata=SHAPES)

    def width(self, tower):
        """See `HeadSpec`."""
        return _width_of(self, tower)

    def __call__(self, name, tower, tokens, batch):
        """See `HeadSpec`."""
        head = tower.spec.heads[self.of]
        return head.factors(self.of, tower, segment_of(tokens, head.segment)[1].x)


def logits_of(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """The logits [batch, seq, vocab], float32, of factors that `LogitFactorsSpec` describes."""
    return jnp.einsum("bsd,dv->bsv", x, kernel.astype(x.dtype), preferred_element_type=jnp.float32) + bias


def _width_of(spec, tower) -> int:
    if spec.of not in tower.heads:
        raise ValueError(f"a head {spec.type!r} reads the head {spec.of!r}, which the tower does not have")
    return tower.heads[spec.of].width(tower)


@dataclasses.dataclass(frozen=True)
class MaskedLogitsSpec(HeadSpec):
    """The logits of another head at the positions `<segment>_places` of the batch alone, int32 [batch, count].

    A head costs as much as several layers, and masked modelling reads one position in seven.

    Attributes:
      of: the head that gives logits.
    """

    type: Literal["masked_logits"] = dataclasses.field(default="masked_logits", metadata=SHAPES)
    of: str = dataclasses.field(default="logits", metadata=SHAPES)

    def width(self, tower):
        """See `HeadSpec`."""
        return _width_of(self, tower)

    def __call__(self, name, tower, tokens, batch):
        """See `HeadSpec`."""
        head = tower.spec.heads[self.of]
        segment, tokens = segment_of(tokens, head.segment)
        x = jnp.take_along_axis(tokens.x, batch[f"{segment}_places"][..., None], axis=1)
        return head.of(self.of, tower, x)


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
        return tied_logits(self.features(x), table) + self.bias[...]

    def features(self, x: jax.Array) -> jax.Array:
        """What is compared with the rows of the table, [batch, seq, width]."""
        return self.norm(ACTIVATIONS[self.act](self.dense(x)))


def tied_logits(x: jax.Array, table: jax.Array) -> jax.Array:
    """Products with every row of a token table: [batch, seq, width], [vocab, width] -> float32 [batch, seq, vocab]."""
    return jnp.einsum("bsd,vd->bsv", x, table.astype(x.dtype), preferred_element_type=jnp.float32)
