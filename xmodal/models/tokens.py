"""Tokens, the only sequence type inside the network, and the one mask rule that all attention follows."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tokens:
    """A batch of sequences.

    Attributes:
      x: values, [batch, seq, width].
      valid: bool [batch, seq]; false marks padding. None: everything is valid.
      group: int32 [batch, seq]; 1 starts a new causal group, 0 joins the previous one. None: one group.
      pos: int32 [batch, seq, axes], positions for rotary embeddings. None: no positions.
      media: int32 [batch, seq]; for keys the id of the medium they show, for queries the id of the medium they may
        look at (0: none). None: no media rule.
      segments: static ((name, length), ...) in order; lengths sum to seq.
    """

    x: jax.Array
    valid: jax.Array | None = None
    group: jax.Array | None = None
    pos: jax.Array | None = None
    media: jax.Array | None = None
    segments: tuple[tuple[str, int], ...] = dataclasses.field(default=(), metadata={"static": True})

    def replace(self, **changes) -> "Tokens":
        """Returns a copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def last_segment(self) -> "Tokens":
        """Returns the tokens of the last segment: those that a tower with a prefix predicts from."""
        length = self.segments[-1][1]
        cut = lambda a: None if a is None else a[:, -length:]
        return Tokens(*(cut(getattr(self, f.name)) for f in dataclasses.fields(self)[:-1]), self.segments[-1:])


def grid_tokens(x: jax.Array, name: str) -> Tokens:
    """A grid of features [batch, down, across, width] as one segment, row by row; positions are (row, column)."""
    batch, down, across, width = x.shape
    pos = jnp.stack(jnp.meshgrid(jnp.arange(down), jnp.arange(across), indexing="ij"), axis=-1)
    pos = jnp.broadcast_to(pos.reshape(1, -1, 2).astype(jnp.int32), (batch, down * across, 2))
    return Tokens(x.reshape(batch, -1, width), pos=pos, segments=((name, down * across),))


def _filled(field: str, tokens: Tokens, like: Tokens) -> jax.Array:
    """The field's array, or what its absence means, shaped so that sequences can be joined."""
    value = getattr(tokens, field)
    if value is not None:
        return value
    shape = tokens.x.shape[:2]
    if field == "valid":
        return jnp.ones(shape, bool)
    if field == "pos":
        return jnp.zeros((*shape, like.pos.shape[-1]), jnp.int32)
    return jnp.zeros(shape, jnp.int32)


def concatenate(parts: Sequence[Tokens]) -> Tokens:
    """Joins sequences along `seq`; the first token of a later part keeps its group mark (0 joins the part before)."""
    if len(parts) == 1:
        return parts[0]
    joined = {}
    for field in ("valid", "group", "pos", "media"):
        known = next((p for p in parts if getattr(p, field) is not None), None)
        if known is not None:
            joined[field] = jnp.concatenate([_filled(field, p, known) for p in parts], axis=1)
    return Tokens(
        x=jnp.concatenate([p.x for p in parts], axis=1),
        segments=sum((p.segments for p in parts), ()),
        **joined,
    )


def attention_mask(
    query_group: jax.Array | None,
    key_group: jax.Array | None,
    key_valid: jax.Array | None,
    query_media: jax.Array | None = None,
    key_media: jax.Array | None = None,
) -> jax.Array | None:
    """Who sees whom: query q sees key k when `group[k] <= group[q]`, k is valid and their media agree.

    Full, causal, prefix and interleaved attention are this rule on different data (DESIGN: one mask rule).

    Args:
      query_group: int32 [batch, queries], already accumulated (`cumsum` of the group marks); None skips the rule.
      key_group: int32 [batch, keys], accumulated likewise.
      key_valid: bool [batch, keys] or None.
      query_media: int32 [batch, queries] or None.
      key_media: int32 [batch, keys] or None.

    Returns:
      bool [batch, 1, queries or 1, keys], or None when everything is visible.
    """
    rules = []
    if query_group is not None and key_group is not None:
        rules.append(key_group[:, None, None, :] <= query_group[:, None, :, None])
    if key_valid is not None:
        rules.append(key_valid[:, None, None, :])
    if query_media is not None and key_media is not None:
        rules.append(key_media[:, None, None, :] == query_media[:, None, :, None])
    if not rules:
        return None
    mask = rules[0]
    for rule in rules[1:]:
        mask = mask & rule
    return mask
