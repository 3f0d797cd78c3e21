"""The trunk: a stack of layers over `Tokens`, scanned or unrolled, rematerialised or not, cached or not."""

import abc
import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import zeros

from xmodal import keys as key_tools
from xmodal.kinds import Kind
from xmodal.models.init import Draws, scheme
from xmodal.models.layers import Linear, Norm, routed
from xmodal.models.options import SHAPES, TRAINING
from xmodal.models.relative import RelativeBias
from xmodal.models.spec import Flow, Sublayer
from xmodal.models.sublayer import Residual, modulate
from xmodal.models.tokens import Tokens, attention_mask

REMAT = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


TRUNKS: dict[str, type["AnyTrunk"]] = {}  # by `type`


@dataclasses.dataclass(frozen=True)
class AnyTrunk(Kind, abc.ABC):
    """Description of a network from tokens to tokens.

    Every kind has the fields `width`, `depth`, `init` and `condition_width`, and `norm` and `norm_eps`, which norms of
    heads follow. Its module is called like `Trunk`, and where it can decode it has `init_cache`.
    """

    KINDS: ClassVar[Mapping[str, type]] = TRUNKS
    DEFAULT: ClassVar[str] = "transformer"

    @abc.abstractmethod
    def build(self, context_width: int, draw: Draws) -> nnx.Module:
        """Builds the module; `context_width` is that of what the tower attends to, 0 without."""

    @abc.abstractmethod
    def placed(self, grid: tuple[int, int], prefix: int) -> "AnyTrunk":
        """Returns the description for a tower with this grid of an image ((0, 0): none) behind so many tokens."""

    @property
    @abc.abstractmethod
    def mlp(self) -> Sublayer:
        """An MLP sublayer whose activation, biases and norm those of heads follow."""


@dataclasses.dataclass(frozen=True)
class TrunkSpec(AnyTrunk):
    """A transformer: a stack of layers.

    Attributes:
      width: of the residual stream.
      depth: number of layers; a multiple of the pattern's length. 0, with the pattern (), for embedders that are a
        whole network, as convolutional ones are.
      pattern: the layers, each a tuple of sublayers, that repeat along the depth. One layer for most models;
        Flamingo's has cross-attention in every fourth.
      final_norm: a norm after the last layer (pre-norm trunks).
      final_adaln: shift and scale behind that norm, from the condition (DiT, Peebles and Xie 2023, section 3.2).
      final_routes: ((segment, expert), ...) of that shift and scale, as `routes` of a sublayer.
      norm: kind of the final norm.
      norm_eps: of the final norm.
      drop_path: stochastic depth of the last layer, rising linearly from 0.
      init: clip | siglip | bert | resnet (xmodal.models.init).
      condition_width: width of the condition that adaLN gates read; 0: none.
      scan: run the layers as one `lax.scan` (compile time and memory) or unrolled (fewer, larger fusions).
      remat: what the backward pass recomputes: nothing, everything, or all but matrix products.
    """

    width: int
    depth: int = dataclasses.field(metadata=SHAPES)
    pattern: tuple[tuple[Sublayer, ...], ...]
    type: Literal["transformer"] = "transformer"
    final_norm: bool = True
    final_adaln: bool = False
    final_routes: tuple[tuple[str, int], ...] = ()
    norm: Literal["ln", "rms", "rms1p"] = "ln"
    norm_eps: float = 1e-6
    drop_path: float = dataclasses.field(default=0.0, metadata=TRAINING)
    init: Literal["clip", "siglip", "bert", "resnet"] = dataclasses.field(default="clip", metadata=TRAINING)
    condition_width: int = 0
    scan: bool = dataclasses.field(default=True, metadata=TRAINING)
    remat: Literal["none", "full", "dots"] = dataclasses.field(default="none", metadata=TRAINING)

    def build(self, context_width, draw):
        """See `AnyTrunk`."""
        return Trunk(self, context_width=context_width, draw=draw)

    def placed(self, grid, prefix):
        """See `AnyTrunk`: relative positions learn the size of the image."""

        def settle(s: Sublayer) -> Sublayer:
            if s.relative is None or s.relative.kind != "grid":
                return s
            own = s.relative
            own = dataclasses.replace(own, grid=own.grid if all(own.grid) else grid)
            return dataclasses.replace(
                s, relative=dataclasses.replace(own, prefix=prefix if own.prefix < 0 else own.prefix)
            )

        return dataclasses.replace(self, pattern=tuple(tuple(settle(s) for s in layer) for layer in self.pattern))

    @property
    def mlp(self):
        """See `AnyTrunk`."""
        return next((s for layer in self.pattern for s in layer if s.kind == "mlp"), Sublayer("mlp"))


TRUNKS |= dict(transformer=TrunkSpec)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Decoding state of a trunk: keys and values of every attention, and who may see what has been written.

    Attributes:
      layers: {"<layer>/<sublayer>": {"k", "v"}}, each [repeats, batch, length, kv_heads, head_dim].
      index: int32 scalar, positions written so far.
      group: int32 [batch, length], accumulated groups of the written positions.
      valid: bool [batch, length]; false where nothing is written yet.
      context_valid: bool [batch, context_seq] or None.
      context_shows: int32 [batch, context_seq] or None.
      shows: int32 [batch, length], media of the written positions, or None where none show any.
      condition: [batch, condition_width] or None.
    """

    layers: dict
    index: jax.Array
    group: jax.Array
    valid: jax.Array
    context_valid: jax.Array | None = None
    context_shows: jax.Array | None = None
    shows: jax.Array | None = None
    condition: jax.Array | None = None


def cache_rows(cache: Cache, rows: jax.Array) -> Cache:
    """Returns the state of these rows of the batch (int32 [rows]), each as often as it is named."""
    take = lambda tree, axis: jax.tree.map(lambda a: jnp.take(a, rows, axis=axis), tree)
    fields = {f.name: getattr(cache, f.name) for f in dataclasses.fields(cache)}
    layers, index = fields.pop("layers"), fields.pop("index")
    return Cache(layers=take(layers, 1), index=index, **{name: take(a, 0) for name, a in fields.items()})


class LayerGroup(nnx.Module):
    """One repetition of the pattern: parameters at `<layer>/<sublayer>/...`."""

    def __init__(self, spec: TrunkSpec, context_width: int, draw: Draws):
        build = lambda s: Residual(
            s, spec.width, context_width=context_width, condition_width=spec.condition_width,
            scheme=scheme(spec.init, spec.width, spec.depth), draw=draw,
        )  # fmt: skip
        self.names = tuple((str(i), str(j)) for i, layer in enumerate(spec.pattern) for j in range(len(layer)))
        for i, layer in enumerate(spec.pattern):
            setattr(self, str(i), nnx.Dict({str(j): build(s) for j, s in enumerate(layer)}))

    def __call__(self, x: jax.Array, flow: Flow, keys, drop_path, number, caches: dict):
        """Runs the layers; `drop_path` [layers] rates or None, `number` tells repetitions apart for random keys."""
        new, names = {}, [f"{i}/{j}" for i, j in self.names]
        each = [None] * len(names)
        if keys is not None:
            each = jax.vmap(lambda own: key_tools.fold(own, number))(key_tools.fold_each(keys, names))
        for (i, j), name, own in zip(self.names, names, each):
            sublayer = getattr(self, i)[j]
            rate = 0.0 if drop_path is None else drop_path[int(i)]
            with jax.named_scope(f"{sublayer.spec.kind}_{i}_{j}"):
                x, cache = sublayer(x, flow, keys=own, drop_path=rate, cache=caches.get(name))
            if cache is not None:
                new[name] = cache
        return x, new


class Trunk(nnx.Module):
    """A stack of layers: `Tokens` in, `Tokens` of the same shape out."""

    def __init__(self, spec: TrunkSpec, *, context_width: int = 0, draw: Draws):
        period = max(len(spec.pattern), 1)
        if spec.depth % period or (spec.depth > 0) != (spec.pattern != ()):
            raise ValueError(f"depth {spec.depth} is not a multiple of the {len(spec.pattern)} layers of the pattern")
        kinds = {s.kind for layer in spec.pattern for s in layer}
        if ("cross" in kinds) != bool(context_width):
            raise ValueError(
                "a trunk with cross sublayers needs something to attend to and one without must not have it: "
                f"sublayers {sorted(kinds)}, context width {context_width}. Set the tower's `attends`."
            )
        self.spec, self.repeats = spec, spec.depth // period
        self.layers = draw.alike(lambda own: LayerGroup(spec, context_width, own), self.repeats)
        self.final_norm = Norm(spec.width, kind=spec.norm, eps=spec.norm_eps) if spec.final_norm else None
        modulation = lambda: Linear(spec.condition_width, 2 * spec.width, draw=draw, kernel_init=zeros)
        self.final_modulation = routed(modulation, spec.final_routes) if spec.final_adaln else None
        shared = [s for layer in spec.pattern for s in layer if s.relative is not None and s.relative.shared]
        if len({(s.relative, s.heads) for s in shared}) > 1:
            raise ValueError("sublayers that share relative positions need the same `relative` and `heads`")
        self.relative = RelativeBias(shared[0].relative, shared[0].heads, draw) if shared else None

    def __call__(self, tokens: Tokens, *, context: Tokens | None = None, condition=None, keys=None, cache=None):
        """Runs the trunk.

        Args:
          tokens: [batch, seq, width].
          context: what cross sublayers attend to; with a cache only needed the first time.
          condition: [batch, condition_width] for adaLN gates.
          keys: per-sample random keys [batch]; None is deterministic.
          cache: from `init_cache`; then `tokens` are only the new ones.

        Returns:
          The tokens with new values, or (tokens, cache) when a cache was given.
        """
        flow, cache = self._flow(tokens, context, condition, cache)
        x, layers = self._run(tokens.x, flow, keys, {} if cache is None else cache.layers)
        if self.final_norm is not None:
            x = self.final_norm(x)
        if self.final_modulation is not None:
            shift, scale = jnp.split(modulate(self.final_modulation, x, flow), 2, axis=-1)
            x = x * (1 + scale) + shift
        out = tokens.replace(x=x)
        if cache is None:
            return out
        index = cache.index + tokens.x.shape[1]
        return out, dataclasses.replace(cache, layers=layers, index=index)

    def _flow(self, tokens: Tokens, context: Tokens | None, condition, cache: Cache | None) -> tuple[Flow, Cache]:
        group = None if tokens.group is None else jnp.cumsum(tokens.group, axis=1)
        seen, keys = (None, None) if context is None else (context.valid, context.shows), tokens.x.shape[1]
        if cache is None:
            mask = attention_mask(group, group, tokens.valid, tokens.media, tokens.shows)
        else:
            nothing = jnp.zeros(tokens.x.shape[:2], jnp.int32)
            last = jax.lax.dynamic_index_in_dim(cache.group, jnp.maximum(cache.index - 1, 0), axis=1)
            group = last + (nothing if group is None else group)
            valid = jnp.ones_like(nothing, bool) if tokens.valid is None else tokens.valid
            write = lambda buffer, new: jax.lax.dynamic_update_slice(buffer, new, (0, cache.index))
            if context is None:
                seen = (cache.context_valid, cache.context_shows)
            shows, keys = cache.shows, cache.valid.shape[1]
            if shows is not None or tokens.shows is not None:
                shows = jnp.nothinglike(cache.group) if shows is None else shows
                shows = write(shows, nothing if tokens.shows is None else tokens.shows)
            condition = cache.condition if condition is None else condition
            cache = dataclasses.replace(
                cache, group=write(cache.group, group), valid=write(cache.valid, valid), shows=shows,
                context_valid=seen[0], context_shows=seen[1], condition=condition,
            )  # fmt: skip
            mask = attention_mask(group, cache.group, cache.valid, tokens.media, cache.shows)
        cross = attention_mask(None, None, seen[0], tokens.media, seen[1])
        index = None if cache is None else cache.index
        flow = Flow(
            segments=tokens.segments, pos=tokens.pos, self_mask=mask, context=None if context is None else context.x,
            cross_mask=cross, condition=condition, index=index,
            bias=None if self.relative is None else self.relative(tokens.x.shape[1], keys, index),
        )  # fmt: skip
        return flow, cache

    def _run(self, x: jax.Array, flow: Flow, keys, caches: dict):
        spec, period = self.spec, len(self.spec.pattern)
        if not spec.depth:
            return x, {}
        rates = None
        if spec.drop_path and keys is not None:
            rates = jnp.linspace(0.0, spec.drop_path, spec.depth).reshape(self.repeats, period)

        def body(x, repetition):
            group, caches, rate, number = repetition
            return group(x, flow, keys, rate, number, caches)

        if spec.remat != "none":
            body = jax.checkpoint(body, policy=REMAT[spec.remat], prevent_cse=not spec.scan)
        repetitions = (self.layers, caches, rates, jnp.arange(self.repeats))
        if spec.scan:
            return jax.lax.scan(body, x, repetitions)
        new = []
        for i in range(self.repeats):
            x, cache = body(x, jax.tree.map(lambda a: a[i], repetitions))  # noqa: B023 (used at once)
            new.append(cache)
        return x, jax.tree.map(lambda *a: jnp.stack(a), *new)

    def init_cache(self, batch: int, length: int, context_length: int, dtype) -> Cache:
        """Returns an empty cache for up to `length` positions and a context of `context_length`."""
        layers = {}
        for i, layer in enumerate(self.spec.pattern):
            for j, s in enumerate(layer):
                if s.kind != "mlp":
                    size = length if s.kind == "self" else context_length
                    shape = (
                        self.repeats,
                        batch,
                        size,
                        s.kv_heads or s.heads,
                        s.head_dim or self.spec.width // s.heads,
                    )
                    layers[f"{i}/{j}"] = {"k": jnp.zeros(shape, dtype), "v": jnp.zeros(shape, dtype)}
        return Cache(
            layers=layers, index=jnp.zeros((), jnp.int32), group=jnp.zeros((batch, length), jnp.int32),
            valid=jnp.zeros((batch, length), bool),
        )  # fmt: skip
