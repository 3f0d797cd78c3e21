"""Edges: what the tokens of one tower pass through before another reads them, attends to them or is conditioned."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from xmodal.kinds import Kind
from xmodal.models.init import Draws, Scheme
from xmodal.models.layers import Linear, Norm
from xmodal.models.options import SHAPES
from xmodal.models.spec import Sublayer
from xmodal.models.tokens import Tokens, folded
from xmodal.models.trunk import Trunk, TrunkSpec


@dataclasses.dataclass(frozen=True)
class Source:
    """The tower at the other end of an edge.

    Attributes:
      width: of its tokens.
      tokens: length of its sequence, of a text the longest; 0 where that is not known.
    """

    width: int
    tokens: int


CONNECTORS: dict[str, type["ConnectorSpec"]] = {}  # by `type`


@dataclasses.dataclass(frozen=True)
class ConnectorSpec(Kind):
    """Description of an edge; this one changes no values, so both towers are equally wide.

    Attributes:
      order: place among the sequences that a tower reads: low ones come first, equal ones in the order of their names.
      position: positions that the tokens bring along: those of their tower (`keep`), 0, 1, 2 ... (`restart`), or none
        (`drop`); "" keeps them where a tower has one sequence alone. `learned` drops them and adds learned vectors.
      fold: the items of a sample, such as the images of a document, become one sequence, and each shows a medium of
        its own (Flamingo, Alayrac et al. 2022, section 2.3). Without it, each item is a sample.
    """

    KINDS: ClassVar[Mapping[str, type]] = CONNECTORS
    DEFAULT: ClassVar[str] = "none"

    type: Literal["none"] = "none"
    order: int = 0
    position: Literal["", "keep", "restart", "drop", "learned"] = ""
    fold: bool = False

    def build(self, source: Source, width: int, scheme: Scheme, draw: Draws) -> "Connector":
        """Builds the module that carries tokens as wide as the source's into `width`."""
        if source.width != width:
            raise ValueError(
                f"tokens of width {source.width} are read by a tower of width {width}: set the `type` of its edge, "
                "such as 'linear'"
            )
        return Connector(self, source, width, scheme, draw)

    def length(self, tokens: int) -> int:
        """Tokens that come out where so many go in, before items are folded."""
        return tokens

    def width(self, source: int, width: int) -> int:
        """Width that cross attention gets, which takes any: that of the source, unless the edge maps it to `width`."""
        del width
        return source


@dataclasses.dataclass(frozen=True)
class LinearSpec(ConnectorSpec):
    """A linear map."""

    type: Literal["linear"] = "linear"

    def width(self, source, width):
        """See `ConnectorSpec`."""
        return width

    def build(self, source, width, scheme, draw):
        """See `ConnectorSpec`."""
        return Connector(self, source, width, scheme, draw, linear=True)


@dataclasses.dataclass(frozen=True)
class LinearNormSpec(LinearSpec):
    """A linear map and a norm (GIT, Wang et al. 2022, section 3.1)."""

    type: Literal["linear_norm"] = "linear_norm"

    def build(self, source, width, scheme, draw):
        """See `ConnectorSpec`."""
        return Connector(self, source, width, scheme, draw, linear=True, norm=True)


@dataclasses.dataclass(frozen=True)
class ResamplerSpec(LinearSpec):
    """Any number of tokens to a fixed one: learned latents attend to the tokens and to themselves, layer by layer.

    The Perceiver resampler (Flamingo, Alayrac et al. 2022, section 2.1 and figure 5). Items are resampled one by one.

    Attributes:
      latents: tokens that come out.
      depth: layers, each of cross attention and an MLP.
      heads: attention heads.
      hidden: hidden width of the MLPs; 0: four times the width.
    """

    type: Literal["resampler"] = "resampler"
    latents: int = dataclasses.field(default=64, metadata=SHAPES)
    depth: int = dataclasses.field(default=6, metadata=SHAPES)
    heads: int = 8
    hidden: int = 0

    def build(self, source, width, scheme, draw):
        """See `ConnectorSpec`."""
        return Resampler(self, source, width, scheme, draw)

    def length(self, tokens):
        """See `ConnectorSpec`."""
        return self.latents


CONNECTORS |= dict(none=ConnectorSpec, linear=LinearSpec, linear_norm=LinearNormSpec, resampler=ResamplerSpec)


class Connector(nnx.Module):
    """Carries another tower's tokens into this one's width."""

    def __init__(
        self, spec: ConnectorSpec, source: Source, width: int, scheme: Scheme, draw: Draws, *,
        linear: bool = False, norm: bool = False,
    ):  # fmt: skip
        self.spec = spec
        self.linear = Linear(source.width, width, draw=draw) if linear else None
        self.norm = Norm(width, eps=1e-5) if norm else None
        self.position = _positions(spec, source, width, scheme, draw)

    def __call__(self, tokens: Tokens, keys: jax.Array | None = None) -> Tokens:
        """[rows, seq, source width] -> [rows, seq, width]; `keys` are per-row random keys or None."""
        del keys
        x = tokens.x if self.linear is None else self.linear(tokens.x)
        return placed(self, tokens.replace(x=x if self.norm is None else self.norm(x)))


class Resampler(nnx.Module):
    """See `ResamplerSpec`."""

    def __init__(self, spec: ResamplerSpec, source: Source, width: int, scheme: Scheme, draw: Draws):
        self.spec = spec
        cross = Sublayer("cross", heads=spec.heads, bias=False, joined=True, norm_eps=1e-5)
        mlp = Sublayer("mlp", hidden=spec.hidden, bias=False, norm_eps=1e-5)
        self.latents = draw(scheme.token, spec.latents, width)
        self.linear = Linear(source.width, width, draw=draw) if source.width != width else None
        self.position = _positions(spec, source, width, scheme, draw)
        trunk = TrunkSpec(width=width, depth=spec.depth, pattern=((cross, mlp),), norm_eps=1e-5)
        self.trunk = Trunk(trunk, context_width=width, draw=draw)

    def __call__(self, tokens: Tokens, keys: jax.Array | None = None) -> Tokens:
        """[rows, seq, source width] -> [rows, latents, width]."""
        latents = jnp.broadcast_to(self.latents[...].astype(tokens.x.dtype), (tokens.x.shape[0], *self.latents.shape))
        tokens = tokens if self.linear is None else tokens.replace(x=self.linear(tokens.x))
        latents = Tokens(latents, segments=((tokens.segments[-1][0], self.spec.latents),))
        out = self.trunk(latents, context=placed(self, tokens), keys=keys)
        number = jnp.arange(self.spec.latents, dtype=jnp.int32)[:, None]
        pos = None if self.spec.position in ("drop", "learned") else jnp.broadcast_to(number, (*out.x.shape[:2], 1))
        return out.replace(pos=pos)


def _positions(spec: ConnectorSpec, source: Source, width: int, scheme: Scheme, draw: Draws) -> nnx.Param | None:
    if spec.position != "learned":
        return None
    if not source.tokens:
        raise ValueError("an edge with position='learned' needs a tower whose sequence has a known length")
    return draw(scheme.text_position, source.tokens, width)


def placed(edge: Connector | Resampler, tokens: Tokens) -> Tokens:
    """Gives tokens the positions that their edge's `position` asks for; "" leaves them to the tower that reads."""
    how, length = edge.spec.position, tokens.x.shape[1]
    if how == "learned":
        table = edge.position[...].astype(tokens.x.dtype)
        places = table[:length] if tokens.index is None else jnp.take(table, tokens.index, axis=0)
        return tokens.replace(x=tokens.x + places, pos=None)
    if how == "restart":
        number = jnp.arange(length, dtype=jnp.int32)[:, None]
        return tokens.replace(pos=jnp.broadcast_to(number, (*tokens.x.shape[:2], 1)))
    return tokens.replace(pos=None) if how == "drop" else tokens


def joined_items(spec: ConnectorSpec, tokens: Tokens, items: int, there: jax.Array | None) -> Tokens:
    """Folds the items of samples into sequences, where the edge says so; see `xmodal.models.tokens.folded`."""
    return folded(tokens, items, there) if spec.fold else tokens
