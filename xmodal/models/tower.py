"""A tower: embedder, trunk, pooling and projection; what it reads and attends to is decided by the wiring."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from xmodal import keys as key_tools
from xmodal.models.attention import AttentionPool
from xmodal.models.convnext import ConvNextSpec
from xmodal.models.efficientnet import EfficientNetSpec
from xmodal.models.embed import EMBEDDERS, NaflexSpec, PatchSpec, TokenSpec
from xmodal.models.heads import MaskedHead, tied_logits
from xmodal.models.init import Draws, Scheme, scheme
from xmodal.models.layers import Linear, Norm
from xmodal.models.options import SHAPES
from xmodal.models.resnet import ResNetSpec
from xmodal.models.spec import Sublayer
from xmodal.models.spectrogram_patches import SpectrogramSpec
from xmodal.models.sublayer import MapPool
from xmodal.models.tokens import Tokens, concatenate
from xmodal.models.trunk import Trunk, TrunkSpec


@dataclasses.dataclass(frozen=True)
class TowerSpec:
    """Description of a tower.

    Attributes:
      trunk: its stack of layers.
      embed: how the raw modality becomes tokens; None when the tower only reads other towers.
      reads: towers whose tokens come first in this tower's sequence (a prefix, or the whole input).
      attends: the tower that this one's cross sublayers look at.
      connector: what tokens that are read pass through: nothing (same width), a linear map, or linear and norm (GIT).
      pool: which token, or mean, or attention pool becomes the embedding; `eos` is the last valid token, `last` the
        last position, `map` asks with a learned probe (SigLIP), `attention` with the mean (CLIP's ResNets).
      pool_heads: heads of the `map` and `attention` pools.
      pool_norm: a norm after the pooling, of the trunk's kind and epsilon (ConvNeXt).
      pooler: a linear map and tanh after the pooling (BERT; ViT's first published models).
      embed_dim: width of the shared space, or number of classes; 0: no projection.
      projection_bias: bias of the projection.
      head: logits over the vocabulary: none, own linear map, tied to the token table, or BERT's (`masked`: linear map,
        activation and norm before the token table).
      vocab_size: outputs of an untied head; 0 takes the tokenizer's.
    """

    trunk: TrunkSpec
    embed: (
        PatchSpec | NaflexSpec | ConvNextSpec | ResNetSpec | EfficientNetSpec | TokenSpec | SpectrogramSpec | None
    ) = None
    reads: tuple[str, ...] = ()
    attends: str = ""
    connector: Literal["none", "linear", "linear_norm"] = "none"
    pool: Literal["none", "cls", "eos", "last", "mean", "map", "attention"] = "none"
    pool_heads: int = 0
    pool_norm: bool = False
    pooler: bool = False
    embed_dim: int = 0
    projection_bias: bool = False
    head: Literal["none", "linear", "tied", "masked"] = dataclasses.field(default="none", metadata=SHAPES)
    vocab_size: int = dataclasses.field(default=0, metadata=SHAPES)

    @property
    def width(self) -> int:
        """Width of the tower's tokens."""
        return self.trunk.width

    @property
    def pooled_width(self) -> int:
        """Width of what `pooled` returns."""
        return self.embed_dim or self.width

    @property
    def outputs(self) -> int:
        """Logits of the head: the size of its vocabulary."""
        return self.vocab_size if self.head == "linear" else getattr(self.embed, "vocab_size", 0)


class Connector(nnx.Module):
    """Carries another tower's tokens into this one's width."""

    def __init__(self, kind: str, source: int, width: int, draw: Draws):
        if kind == "none" and source != width:
            raise ValueError(f"tokens of width {source} are read by a tower of width {width}: set its `connector`")
        self.linear = Linear(source, width, draw=draw) if kind != "none" else None
        self.norm = Norm(width, eps=1e-5) if kind == "linear_norm" else None

    def __call__(self, tokens: Tokens) -> Tokens:
        x = tokens.x if self.linear is None else self.linear(tokens.x)
        return tokens.replace(x=x if self.norm is None else self.norm(x))


class Tower(nnx.Module):
    """See `TowerSpec`. The parts are methods, so the wiring computes only what is asked for."""

    def __init__(self, spec: TowerSpec, source_widths: dict[str, int], dtype, draw: Draws):
        self.spec = spec
        width, chosen = spec.width, scheme(spec.trunk.init, spec.width, spec.trunk.depth)
        embedder = spec.embed and EMBEDDERS[spec.embed.type][1]
        self.embed = embedder(spec.embed, width, chosen, dtype, draw) if embedder else None
        self.connectors = nnx.Dict(
            {name: Connector(spec.connector, source_widths[name], width, draw) for name in spec.reads}
        )
        self.trunk = Trunk(spec.trunk, context_width=source_widths[spec.attends] if spec.attends else 0, draw=draw)
        mlp = next((s for layer in spec.trunk.pattern for s in layer if s.kind == "mlp"), Sublayer("mlp"))
        self.pool = _attention_pool(spec, mlp, chosen, draw)
        self.pool_norm = Norm(width, kind=spec.trunk.norm, eps=spec.trunk.norm_eps) if spec.pool_norm else None
        linear = lambda outputs, bias, start: (
            Linear(width, outputs, draw=draw, bias=bias, kernel_init=start) if outputs else None
        )
        self.pooler = linear(width if spec.pooler else 0, True, chosen.projection)
        self.projection = linear(spec.embed_dim, spec.projection_bias, chosen.projection)
        if spec.head in ("tied", "masked") and not spec.outputs:
            raise ValueError(f"head={spec.head!r} is tied to a token table, and the tower embeds no tokens")
        self.head = (
            MaskedHead(width, spec.outputs, mlp=mlp, scheme=chosen, draw=draw)
            if spec.head == "masked"
            else linear(spec.vocab_size if spec.head == "linear" else 0, True, chosen.head)
        )

    def __call__(self, batch: dict, *, read: dict[str, Tokens], context: Tokens | None, keys=None, cache=None):
        """Returns (the trunk's tokens, its cache when decoding or else None, moments of the BatchNorms by path).

        Args:
          batch: raw arrays by name.
          read: tokens of the towers in `reads` that take part in this call.
          context: tokens of the tower in `attends`.
          keys: per-sample keys [batch] or None.
          cache: the trunk's cache or None.
        """
        parts, moments = [self.connectors[name](tokens) for name, tokens in read.items()], {}
        if len(self.spec.reads) + (self.embed is not None) > 1:
            # Rotary positions of another modality mean nothing here.
            parts = [part.replace(pos=None) for part in parts]
        if self.embed is not None:
            with jax.named_scope("embed"):
                own = self.embed(batch, key_tools.fold(keys, "embed"))
            if isinstance(own, tuple):  # an embedder with BatchNorms
                own, moments["embed"] = own
            parts.append(own)
        with jax.named_scope("trunk"):
            out = self.trunk(concatenate(parts), context=context, keys=key_tools.fold(keys, "trunk"), cache=cache)
        return (out, None, moments) if cache is None else (*out, moments)

    def pooled(self, tokens: Tokens) -> jax.Array:
        """Pools and projects tokens [batch, seq, width] to float32 [batch, embed_dim]; not normalised."""
        x, how = tokens.x, self.spec.pool
        if how == "none":
            raise ValueError("an objective or evaluator wants `pooled` of a tower whose `pool` is none")
        if how == "cls":
            x = x[:, 0]
        elif how == "last":
            x = x[:, -1]
        elif how == "eos":
            last = x.shape[1] - 1 if tokens.valid is None else _last_valid(tokens.valid)
            x = jnp.take_along_axis(x, jnp.broadcast_to(last, x.shape[:1])[:, None, None], axis=1)[:, 0]
        elif how == "mean":
            weight = jnp.ones(x.shape[:2]) if tokens.valid is None else tokens.valid
            weight = weight.astype(jnp.float32)[..., None]
            x = ((x * weight).sum(1) / jnp.maximum(weight.sum(1), 1.0)).astype(x.dtype)
        else:  # map, attention
            x = self.pool(x, tokens.valid)[:, 0]
        x = x if self.pool_norm is None else self.pool_norm(x)
        x = x if self.pooler is None else jnp.tanh(self.pooler(x))
        return x.astype(jnp.float32) if self.projection is None else self.projection(x, jnp.float32)

    def local(self, tokens: Tokens, batch: dict) -> dict[str, jax.Array]:
        """Projects the tower's own patches or words, one by one, to where `pooled` lives.

        Args:
          tokens: of the trunk [batch, seq, width].
          batch: raw arrays by name: they know the padding even where a tower attends to it (SigLIP).

        Returns:
          `x`, float32 [batch, own seq, embed_dim], not normalised and without class token and registers, and `valid`,
          float32 [batch, own seq], 1 or 0.
        """
        own = tokens.last_segment() if self.spec.reads else tokens
        before, embed = getattr(self.spec.embed, "prefix", 0), self.spec.embed
        x, valid = own.x[:, before:], own.valid
        if valid is None and embed is not None:
            valid = batch.get(f"{embed.input}_valid")
        valid = jnp.ones(own.x.shape[:2]) if valid is None else valid.astype(jnp.float32)
        x = x.astype(jnp.float32) if self.projection is None else self.projection(x, jnp.float32)
        return {"x": x, "valid": valid[:, before:]}

    def logits(self, tokens: Tokens, places: jax.Array | None = None) -> jax.Array:
        """Returns logits for the last segment: the tower's own text, without any prefix.

        Args:
          tokens: [batch, seq, width].
          places: int32 [batch, count], the positions that are wanted; None: all. A head costs as much as several
            layers, and masked modelling reads one position in seven.

        Returns:
          float32 [batch, seq or count, vocab].
        """
        x = tokens.last_segment().x
        if places is not None:
            x = jnp.take_along_axis(x, places[..., None], axis=1)
        if self.spec.head == "tied":
            return tied_logits(x, self.embed.embedding[...])
        if self.spec.head == "masked":
            return self.head(x, self.embed.embedding[...])
        if self.head is None:
            raise ValueError("an objective wants `logits` of a tower whose `head` is none")
        return self.head(x, jnp.float32)


def _attention_pool(spec: TowerSpec, mlp: Sublayer, chosen: Scheme, draw: Draws) -> MapPool | AttentionPool | None:
    """The module of a `map` or `attention` pool; other pools have none."""
    if spec.pool == "map":
        options = dict(mlp=mlp, norm_eps=spec.trunk.norm_eps, scheme=chosen, draw=draw)
        return MapPool(spec.width, spec.pool_heads, **options)
    if spec.pool != "attention":
        return None
    if spec.reads or not hasattr(spec.embed, "tokens"):
        raise ValueError("the pool 'attention' has a position for each place of an image: it needs an image tower")
    return AttentionPool(spec.width, spec.pool_heads, spec.embed.tokens, scheme=chosen, draw=draw)


def _last_valid(valid: jax.Array) -> jax.Array:
    """Index of the last true entry of each row of bool [batch, seq]."""
    return valid.shape[1] - 1 - jnp.argmax(valid[:, ::-1], axis=1)
