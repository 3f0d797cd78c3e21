"""What a sublayer is told: its description, and what flows past it besides the residual stream."""

import dataclasses
from typing import Literal

import jax

from xmodal.models.options import SHAPES, TRAINING

Segments = tuple[tuple[str, int], ...]


@dataclasses.dataclass(frozen=True)
class Lora:
    """Low-rank updates of linear maps (Hu et al. 2022): x @ kernel + alpha / rank * (x @ lora_a) @ lora_b.

    Attributes:
      rank: inner width.
      alpha: scale; 0: as large as the rank.
      targets: the maps that have one: query, key, value, out; fc1, gate, fc2.
    """

    rank: int
    alpha: float = 0.0
    targets: tuple[str, ...] = ("query", "value")

    def __post_init__(self):
        if self.rank < 1:
            raise ValueError(f"rank is {self.rank}; expected at least 1")
        if unknown := [name for name in self.targets if name not in LORA_TARGETS]:
            raise ValueError(f"targets names {unknown[0]!r}; expected some of {', '.join(LORA_TARGETS)}")

    @property
    def scale(self) -> float:
        """What multiplies the product of both matrices."""
        return (self.alpha or self.rank) / self.rank


LORA_TARGETS = ("query", "key", "value", "out", "fc1", "gate", "fc2")


@dataclasses.dataclass(frozen=True)
class Relative:
    """Learned biases of the attention's logits by the distance of query and key.

    Attributes:
      kind: of a grid by rows and columns, with three more for what stands before the grid (BEiT, Bao et al. 2022), or
        of a sequence by buckets that widen with the distance (T5, Raffel et al. 2020, section 2.1).
      shared: one table for all layers of the trunk; otherwise each has one.
      grid: (down, across) of a grid; (0, 0) takes the tower's image.
      prefix: tokens before the grid; -1 takes the tower's.
      buckets: of a sequence.
      distance: of a sequence, from which on all distances are alike.
      both: queries tell keys behind them from those before them; decoders see the latter alone.
    """

    kind: Literal["grid", "buckets"]
    shared: bool = False
    grid: tuple[int, int] = (0, 0)
    prefix: int = -1
    buckets: int = 32
    distance: int = 128
    both: bool = True


@dataclasses.dataclass(frozen=True)
class Sublayer:
    """Description of one residual sublayer.

    Attributes:
      kind: self attention, cross attention to the context, or MLP.
      place: where the norm stands: before the body, after the addition, or around the body (sandwich).
      norm: LayerNorm, RMSNorm, or RMSNorm with weight 1 + w.
      norm_eps: added to the variance.
      heads: attention heads.
      kv_heads: heads of keys and values (grouped-query attention); 0: as many as `heads`.
      head_dim: width of a head; 0: width / heads.
      rope: base of rotary positions over `Tokens.pos`, in self attention; 0: none.
      relative: biases by the distance of query and key, in self attention; None: none.
      joined: keys and values of cross attention are those of the context, behind a norm, and of the stream itself (the
        Perceiver resampler).
      softcap: logits become softcap * tanh(logits / softcap); 0: none.
      qk_norm: normalise queries and keys per head.
      bias: biases in all linear maps of the body.
      key_bias: bias of the keys (BEiT has none although the others have one).
      hidden: hidden width of the MLP; 0: four times the width.
      act: activation of the MLP.
      glu: gated MLP, act(gate(x)) * fc1(x).
      inner_norm: a norm before the output map (BEiT-3's sub-LN).
      gate: what multiplies the body's output: nothing, tanh of a scalar that starts at 0 (Flamingo), a learned vector
        (LayerScale), or adaLN-Zero from the trunk's condition (DiT; by segment with `routes`, MMDiT).
      gate_init: start of the LayerScale vector.
      dropout: on the body's output.
      attn_dropout: on the attention's weights.
      routes: ((segment, expert), ...); segments that are not named use expert 0.
      lora: low-rank updates of its linear maps, for fine-tuning.
    """

    kind: Literal["self", "cross", "mlp"]
    place: Literal["pre", "post", "sandwich"] = "pre"
    norm: Literal["ln", "rms", "rms1p"] = "ln"
    norm_eps: float = 1e-6
    heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    rope: float = 0.0
    relative: Relative | None = None
    joined: bool = False
    softcap: float = 0.0
    qk_norm: bool = False
    bias: bool = True
    key_bias: bool = True
    hidden: int = 0
    act: Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "squared_relu", "silu"] = "gelu"
    glu: bool = False
    inner_norm: bool = False
    gate: Literal["none", "tanh", "layerscale", "adaln"] = "none"
    gate_init: float = dataclasses.field(default=0.1, metadata=TRAINING)
    dropout: float = dataclasses.field(default=0.0, metadata=TRAINING)
    attn_dropout: float = dataclasses.field(default=0.0, metadata=TRAINING)
    routes: tuple[tuple[str, int], ...] = ()
    lora: Lora | None = dataclasses.field(default=None, metadata=SHAPES)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Flow:
    """What every sublayer of a trunk may use besides the residual stream.

    Attributes:
      segments: static segments of the stream, for routing.
      pos: int32 [batch, seq, axes] or None.
      self_mask: bool [batch, 1, seq, keys] or None.
      context: values to attend to, [batch, context_seq, context_width], or None.
      cross_mask: bool [batch, 1, seq or 1, context_seq] or None.
      condition: [batch, condition_width] for adaLN, or None.
      bias: float32 [heads, seq, keys] of self attention that all layers share, or None.
      index: where new keys go in the cache (int32 scalar), or None without a cache.
    """

    segments: Segments = dataclasses.field(metadata={"static": True})
    pos: jax.Array | None = None
    self_mask: jax.Array | None = None
    context: jax.Array | None = None
    cross_mask: jax.Array | None = None
    condition: jax.Array | None = None
    bias: jax.Array | None = None
    index: jax.Array | None = None
