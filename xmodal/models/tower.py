"""A tower: embedder, trunk and heads; its edges say what it reads, attends to and is conditioned by."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from xmodal import keys as key_tools
from xmodal.models.connectors import ConnectorSpec, Source, joined_items
from xmodal.models.embed import EmbedSpec
from xmodal.models.heads import HEADS, HeadSpec, PooledSpec
from xmodal.models.heads.base import Site
from xmodal.models.init import Draws, scheme
from xmodal.models.tokens import Tokens, concatenate
from xmodal.models.trunk import AnyTrunk

Edges = dict[str, ConnectorSpec]
OVERRIDES = ("group", "media", "shows", "pos")  # fields of `Tokens` that `<input>_<field>` of a batch may set


@dataclasses.dataclass(frozen=True)
class TowerSpec:
    """Description of a tower.

    Attributes:
      trunk: its stack of layers.
      embed: how an array of the batch, or nothing, becomes tokens; None when the tower only reads other towers.
      reads: {tower: edge}; their tokens come first in this tower's sequence (a prefix, or the whole input).
      attends: {tower: edge}; the tower's cross sublayers look at their tokens.
      condition: {tower: edge}; the sum of their `pooled` outputs is the condition of adaLN.
      heads: {name: head}; what the tower gives beside its tokens, as `<tower>.<name>`.
    """

    trunk: AnyTrunk
    embed: EmbedSpec | None = None
    reads: dict[str, ConnectorSpec] = dataclasses.field(default_factory=dict)
    attends: dict[str, ConnectorSpec] = dataclasses.field(default_factory=dict)
    condition: dict[str, ConnectorSpec] = dataclasses.field(default_factory=dict)
    heads: dict[str, HeadSpec] = dataclasses.field(default_factory=dict)

    @property
    def width(self) -> int:
        """Width of the tower's tokens."""
        return self.trunk.width

    @property
    def outputs(self) -> dict[str, int]:
        """{output: width} of all that the tower gives."""
        return {"tokens": self.width} | {name: head.width(self) for name, head in self.heads.items()}

    @property
    def wired(self) -> tuple[str, ...]:
        """All towers that this one needs."""
        return (*self.reads, *self.attends, *self.condition)

    @property
    def read_order(self) -> list[str]:
        """The towers in `reads` in the order of their sequences."""
        return sorted(self.reads, key=lambda name: (self.reads[name].order, name))

    @property
    def pooled(self) -> PooledSpec | None:
        """The head `pooled`."""
        return self.heads.get("pooled")

    @property
    def pool(self) -> str:
        """How the head `pooled` pools; "none" without one."""
        return self.pooled.pool if self.pooled else "none"

    @property
    def embed_dim(self) -> int:
        """Width of the projection of the head `pooled`; 0 without one."""
        return self.pooled.embed_dim if self.pooled else 0

    @property
    def pooled_width(self) -> int:
        """Width of what the head `pooled` returns."""
        return self.embed_dim or self.width

    @property
    def head(self) -> str:
        """Kind of map of the head `logits`; "none" without one."""
        return self.heads["logits"].map if "logits" in self.heads else "none"


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a tower sees in one call.

    Attributes:
      batch: raw arrays by name; its own input has one row for each sequence.
      rows: sequences.
      read: {tower: tokens} of those in `reads` that take part.
      attended: the same of `attends`.
      condition: the same of `condition`, each a vector [rows, width].
      items: {tower: items of a sample that are rows of it}, for edges that fold them.
      there: {tower: bool [batch, items]}, where the batch says which items there are.
    """

    batch: Mapping[str, jax.Array]
    rows: int
    read: Mapping[str, Tokens] = dataclasses.field(default_factory=dict)
    attended: Mapping[str, Tokens] = dataclasses.field(default_factory=dict)
    condition: Mapping[str, jax.Array] = dataclasses.field(default_factory=dict)
    items: Mapping[str, int] = dataclasses.field(default_factory=dict)
    there: Mapping[str, jax.Array] = dataclasses.field(default_factory=dict)


class Tower(nnx.Module):
    """See `TowerSpec`. Heads are read one by one, so the wiring computes only what is asked for."""

    def __init__(self, spec: TowerSpec, sources: Mapping[str, Source], dtype, draw: Draws):
        self.spec = spec
        width, chosen = spec.width, scheme(spec.trunk.init, spec.width, spec.trunk.depth)
        self.embed = spec.embed.build(width, chosen, dtype, draw) if spec.embed else None
        edges = lambda wired, into: nnx.Dict(
            {name: edge.build(sources[name], into or sources[name].width, chosen, draw) for name, edge in wired}
        )
        self.connectors = edges([(name, spec.reads[name]) for name in spec.read_order], width)
        widths = {name: edge.width(sources[name].width, width) for name, edge in sorted(spec.attends.items())}
        self.contexts = nnx.Dict(
            {name: spec.attends[name].build(sources[name], into, chosen, draw) for name, into in widths.items()}
        )
        self.conditions = edges(sorted(spec.condition.items()), spec.trunk.condition_width)
        if len(set(widths.values())) > 1:
            raise ValueError(f"contexts of the widths {widths} are attended to: give their edges a linear map")
        grid, prefix = (spec.embed.grid, spec.embed.prefix) if spec.embed else (None, 0)
        self.trunk = spec.trunk.placed(grid or (0, 0), prefix).build(max(widths.values(), default=0), draw)
        self._build_heads(Site(spec, spec.trunk.mlp, chosen, draw))

    def _build_heads(self, site: Site) -> None:
        taken = {"spec", "embed", "connectors", "contexts", "conditions", "trunk"}
        kinds = list(HEADS)
        for name, head in sorted(self.spec.heads.items(), key=lambda item: (kinds.index(item[1].type), item[0])):
            parts = head.parts(site)
            at_home = name == head.type
            for part, module in (parts if at_home else {name: nnx.Dict(parts)} if parts else {}).items():
                if part in taken:
                    raise ValueError(f"the head {name!r} would be stored as {part!r}, which is taken: rename it")
                taken.add(part)
                setattr(self, part, module)

    def part(self, head: str, part: str) -> nnx.Module | None:
        """Returns a module of a head, or None where the head has no such part."""
        if head == self.spec.heads[head].type:
            return getattr(self, part, None)
        home = getattr(self, head, {})
        return home.get(part)

    def __call__(self, inputs: Inputs, *, keys=None, cache=None):
        """Returns (the trunk's tokens, its cache when decoding or else None, moments of the BatchNorms by path).

        Args:
          inputs: what the tower sees.
          keys: per-row keys [rows] or None.
          cache: the trunk's cache or None.
        """
        spec = self.spec
        parts = [self._carried("connectors", name, inputs, keys) for name in spec.read_order if name in inputs.read]
        absorbs = spec.embed is not None and spec.embed.absorbs
        if not absorbs and len(spec.reads) + (self.embed is not None) > 1:
            # Rotary positions of another modality mean nothing here, unless the edge says so.
            said = [edge.position for name in spec.read_order if name in inputs.read for edge in [spec.reads[name]]]
            parts = [part if how else part.replace(pos=None) for part, how in zip(parts, said)]
        moments = {}
        if self.embed is not None:
            with jax.named_scope("embed"):
                read = dict(rows=inputs.rows, read=tuple(parts) if absorbs else ())
                embedded, carry = self.embed(inputs.batch, key_tools.fold(keys, "embed"), **read)
            if carry:
                moments["embed"] = carry
            parts = [*(() if absorbs else parts), overridden(embedded, inputs.batch, spec.embed.input)]
        attended = [self._carried("contexts", name, inputs, keys) for name in sorted(inputs.attended)]
        context = concatenate([part.replace(pos=None) for part in attended]) if attended else None
        with jax.named_scope("trunk"):
            options = dict(context=context, condition=self._condition(inputs), cache=cache)
            out = self.trunk(concatenate(parts), keys=key_tools.fold(keys, "trunk"), **options)
        return (out, None, moments) if cache is None else (*out, moments)

    def _carried(self, kind: str, name: str, inputs: Inputs, keys) -> Tokens:
        """Takes the tokens of another tower through their edge."""
        edges, given = {
            "connectors": (self.spec.reads, inputs.read), "contexts": (self.spec.attends, inputs.attended)
        }[kind]  # fmt: skip
        tokens = given[name]
        if keys is not None and len(keys) != len(tokens.x):
            keys = key_tools.spread(keys, len(tokens.x))
        carried = getattr(self, kind)[name](tokens, key_tools.fold(keys, f"edge {name}"))
        return joined_items(edges[name], carried, inputs.items.get(name, 1), inputs.there.get(name))

    def _condition(self, inputs: Inputs) -> jax.Array | None:
        """Sums the conditions, float32 [rows, condition_width]."""
        total = None
        for name, vector in sorted(inputs.condition.items()):
            one = Tokens(vector[:, None], segments=((name, 1),))
            carried = self.conditions[name](one).x[:, 0]
            total = carried if total is None else total + carried
        return total

    def read(self, name: str, tokens: Tokens, batch: Mapping[str, jax.Array]) -> Any:
        """Returns the output `<tower>.<name>` of the tower's tokens; see `HeadSpec`."""
        return self.spec.heads[name](name, self, tokens, batch)


def overridden(tokens: Tokens, batch: Mapping[str, jax.Array], name: str) -> Tokens:
    """Returns tokens with what the batch says of them in place of their embedder's default.

    Args:
      tokens: of one segment, [batch, seq, width].
      batch: with `<name>_group`, `_media`, `_shows` int32 [batch, all tokens] or `_pos` [batch, all tokens(, axes)].
      name: of the input.
    """
    for field in OVERRIDES:
        given = batch.get(f"{name}_{field}")
        if given is None:
            continue
        given = given[..., None] if field == "pos" and given.ndim == 2 else given
        if tokens.index is not None:
            index = tokens.index if given.ndim == 2 else tokens.index[..., None]
            given = jnp.take_along_axis(given, index, axis=1)
        if given.shape[:2] != tokens.x.shape[:2]:
            raise ValueError(f"{name}_{field} of the batch is {given.shape}, the tokens are {tokens.x.shape[:2]}")
        tokens = tokens.replace(**{field: given.astype(jnp.int32)})
    return tokens
