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
      media: int32 [batch, seq], the id of the medium that a token may look at, as a query; 0: of none.
      shows: int32 [batch, seq], the id of the medium that a token shows, as a key; 0: of none, so that every query may
        see it. None: of none. An image's tokens in a document show and look at the same; its words only look.
      index: int32 [batch, seq], which tokens of the input these are, where some were left out. None: all, in order.
      segments: static ((name, length), ...) in order; lengths sum to seq.
    """

    x: jax.Array
    valid: jax.Array | None = None
    group: jax.Array | None = None
    pos: jax.Array | None = None
    media: jax.Array | None = None
    shows: jax.Array | None = None
    index: jax.Array | None = None
    segments: tuple[tuple[str, int], ...] = dataclasses.field(default=(), metadata={"static": True})

    def replace(self, **changes) -> "Tokens":
        """Returns a copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def segment(self, number: int) -> "Tokens":
        """Returns the tokens of one segment; -1 is the last, what a tower with a prefix predicts from."""
        number %= len(self.segments)
        start = sum(length for _, length in self.segments[:number])
        cut = lambda a: None if a is None else a[:, start : start + self.segments[number][1]]
        arrays = (cut(getattr(self, f.name)) for f in dataclasses.fields(self)[:-1])
        return Tokens(*arrays, self.segments[number : number + 1])


def folded(tokens: Tokens, items: int, there: jax.Array | None = None) -> Tokens:
    """Joins the items of a sample to one sequence: [batch * items, seq, width] -> [batch, items * seq, width].

    Item i shows the medium i + 1, and looks at it alone.

    Args:
      tokens: of items that are rows, those of a sample side by side.
      items: of a sample.
      there: bool [batch, items]; tokens of items that a sample lacks become invalid.
    """
    length = tokens.x.shape[1]
    fold = lambda a: None if a is None else a.reshape(-1, items * length, *a.shape[2:])
    number = jnp.broadcast_to(jnp.arange(1, items + 1, dtype=jnp.int32)[:, None], (items, length)).reshape(1, -1)
    out = Tokens(**{f.name: fold(getattr(tokens, f.name)) for f in dataclasses.fields(tokens)[:-1]})
    media = jnp.broadcast_to(number, out.x.shape[:2])
    if there is not None:
        known = jnp.repeat(there, length, axis=1)
        out = out.replace(valid=known if out.valid is None else known & out.valid)
    return out.replace(media=media, shows=media, index=None, segments=((tokens.segments[-1][0], items * length),))


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
    """Joins sequences along `seq`; the first token of a later part keeps its group (0 joins the part before)."""
    if len(parts) == 1:
        return parts[0]
    axes = {p.pos.shape[-1] for p in parts if p.pos is not None}
    if len(axes) > 1:
        raise ValueError(
            f"sequences with positions of {sorted(axes)} axes are joined: set `position='restart'` of the edge"
        )
    joined = {}
    for field in ("valid", "group", "pos", "media", "shows"):
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
    key_shows: jax.Array | None = None,
) -> jax.Array | None:
    """Who sees whom, in self and in cross attention: the one mask rule.

    Query q sees key k when `group[k] <= group[q]`, k is valid, and k shows no medium or the one that q may look at.
    Full, causal, prefix, packed and interleaved attention are this rule on different data.

    Args:
      query_group: int32 [batch, queries], already accumulated (`cumsum` of the groups); None skips the rule.
      key_group: int32 [batch, keys], accumulated likewise.
      key_valid: bool [batch, keys] or None.
      query_media: int32 [batch, queries] or None.
      key_shows: int32 [batch, keys] or None.

    Returns:
      bool [batch, 1, queries or 1, keys], or None when everything is visible.
    """
    rules = []
    if query_group is not None and key_group is not None:
        rules.append(key_group[:, None, None, :] <= query_group[:, None, :, None])
    if key_valid is not None:
        rules.append(key_valid[:, None, None, :])
    if query_media is not None and key_shows is not None:
        shows = key_shows[:, None, None, :]
        rules.append((shows == query_media[:, None, :, None]) | (shows == 0))
    if not rules:
        return None
    mask = rules[0]
    for rule in rules[1:]:
        mask = mask & rule
    return mask
