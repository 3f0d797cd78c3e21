"""Heads of embeddings: one of the whole sequence, and one of every patch or word."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from xmodal.models.attention import AttentionPool
from xmodal.models.heads.base import HeadSpec, Site
from xmodal.models.layers import Linear, Norm
from xmodal.models.options import SHAPES
from xmodal.models.sublayer import MapPool


@dataclasses.dataclass(frozen=True)
class PooledSpec(HeadSpec):
    """The embedding of a sequence, float32 [batch, embed_dim], not normalised: pooled, then projected.

    Attributes:
      pool: which token, or mean, or attention pool becomes the embedding; `eos` is the last valid token, `last` the
        last position, `map` asks with a learned probe (SigLIP), `attention` with the mean (CLIP's ResNets).
      pool_heads: attention heads of the `map` and `attention` pools.
      pool_norm: a norm after the pooling, of the trunk's kind and epsilon (ConvNeXt).
      pooler: a linear map and tanh after the pooling (BERT; ViT's first published models).
      embed_dim: width of the shared space, or number of classes; 0: no projection.
      projection_bias: bias of the projection.
    """

    type: Literal["pooled"] = "pooled"
    pool: Literal["cls", "eos", "last", "mean", "map", "attention"] = "cls"
    pool_heads: int = 0
    pool_norm: bool = False
    pooler: bool = False
    embed_dim: int = 0
    projection_bias: bool = False

    def parts(self, site):
        """See `HeadSpec`."""
        tower, chosen, draw, parts = site.tower, site.scheme, site.draw, {}
        if (pool := self._attention(site)) is not None:
            parts["pool"] = pool
        if self.pool_norm:
            parts["pool_norm"] = Norm(tower.width, kind=tower.trunk.norm, eps=tower.trunk.norm_eps)
        if self.pooler:
            parts["pooler"] = Linear(tower.width, tower.width, draw=draw, kernel_init=chosen.projection)
        if self.embed_dim:
            parts["projection"] = Linear(
                tower.width, self.embed_dim, draw=draw, bias=self.projection_bias, kernel_init=chosen.projection
            )
        return parts

    def _attention(self, site: Site) -> MapPool | AttentionPool | None:
        """The module of a `map` or `attention` pool; other pools have none."""
        tower, shared = site.tower, dict(scheme=site.scheme, draw=site.draw)
        if self.pool == "map":
            return MapPool(tower.width, self.pool_heads, mlp=site.mlp, norm_eps=tower.trunk.norm_eps, **shared)
        if self.pool != "attention":
            return None
        if tower.reads or not (tower.embed and tower.embed.is_grid):
            raise ValueError("the pool 'attention' has a position for each place of an image: it needs an image tower")
        return AttentionPool(tower.width, self.pool_heads, tower.embed.tokens, **shared)

    def width(self, tower):
        """See `HeadSpec`."""
        return self.embed_dim or tower.width

    def __call__(self, name, tower, tokens, batch):
        """See `HeadSpec`."""
        x, part = tokens.x, lambda which: tower.part(name, which)
        if self.pool == "cls":
            x = x[:, 0]
        elif self.pool == "last":
            x = x[:, -1]
        elif self.pool == "eos":
            last = x.shape[1] - 1 if tokens.valid is None else _last_valid(tokens.valid)
            x = jnp.take_along_axis(x, jnp.broadcast_to(last, x.shape[:1])[:, None, None], axis=1)[:, 0]
        elif self.pool == "mean":
            weight = jnp.ones(x.shape[:2]) if tokens.valid is None else tokens.valid
            weight = weight.astype(jnp.float32)[..., None]
            x = ((x * weight).sum(1) / jnp.maximum(weight.sum(1), 1.0)).astype(x.dtype)
        else:  # map, attention
            x = part("pool")(x, tokens.valid)[:, 0]
        x = part("pool_norm")(x) if self.pool_norm else x
        x = jnp.tanh(part("pooler")(x)) if self.pooler else x
        return part("projection")(x, jnp.float32) if self.embed_dim else x.astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class LocalSpec(HeadSpec):
    """The embeddings of the tower's patches or words, one by one, where the head `of` has its embedding.

    Returns `x`, float32 [batch, seq, embed_dim], not normalised and without class token and registers, and `valid`,
    float32 [batch, seq], 1 or 0.

    Attributes:
      of: the head whose projection is used; a tower without it gives its tokens as they are.
    """

    type: Literal["local"] = dataclasses.field(default="local", metadata=SHAPES)
    of: str = dataclasses.field(default="pooled", metadata=SHAPES)

    def width(self, tower):
        """See `HeadSpec`."""
        return tower.heads[self.of].width(tower) if self.of in tower.heads else tower.width

    def __call__(self, name, tower, tokens, batch):
        """See `HeadSpec`; the batch knows the padding even where a tower attends to it (SigLIP)."""
        spec = tower.spec
        tokens = tokens.segment(-1) if spec.reads else tokens
        before = spec.embed.prefix if spec.embed else 0
        x, valid = tokens.x[:, before:], tokens.valid
        if valid is None and spec.embed is not None:
            valid = batch.get(f"{spec.embed.input}_valid")
        valid = jnp.ones(tokens.x.shape[:2]) if valid is None else valid.astype(jnp.float32)
        projection = tower.part(self.of, "projection") if self.of in spec.heads else None
        x = x.astype(jnp.float32) if projection is None else projection(x, jnp.float32)
        return {"x": x, "valid": valid[:, before:]}


def _last_valid(valid: jax.Array) -> jax.Array:
    """Index of the last true entry of each row of bool [batch, seq]."""
    return valid.shape[1] - 1 - jnp.argmax(valid[:, ::-1], axis=1)
