"""The residual sublayer: the one building block of every transformer here.

A layer is an ordered tuple of sublayers, each `self` attention, `cross` attention or an `mlp`, with its norm placed
before, after or on both sides, and an optional gate on what it adds. CLIP, BERT, CoCa, Flamingo, BEiT-3 and DiT
differ only in this description.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import zeros

from xmodal import keys as key_tools
from xmodal.models.attention import Attention
from xmodal.models.init import Draws, Scheme
from xmodal.models.layers import ACTIVATIONS, Linear, Norm, apply_routed, lora_of, routed, spread_routed
from xmodal.models.spec import Flow, Segments, Sublayer


class Mlp(nnx.Module):
    """Two linear maps around an activation, optionally gated; [batch, seq, width] -> the same."""

    def __init__(self, spec: Sublayer, width: int, scheme: Scheme, draw: Draws):
        hidden = spec.hidden or 4 * width
        common = dict(draw=draw, bias=spec.bias, bias_init=scheme.fc_bias)
        linear = lambda name, inputs, outputs, init: (
            lambda: Linear(inputs, outputs, kernel_init=init, lora=lora_of(spec, name), **common)
        )
        self.spec = spec
        self.fc1 = routed(linear("fc1", width, hidden, scheme.fc_in), spec.routes)
        self.gate = routed(linear("gate", width, hidden, scheme.fc_in), spec.routes) if spec.glu else None
        self.inner_norm = (
            routed(lambda: Norm(hidden, kind=spec.norm, eps=spec.norm_eps), spec.routes) if spec.inner_norm else None
        )
        self.fc2 = routed(linear("fc2", hidden, width, scheme.fc_out), spec.routes)

    def __call__(self, x: jax.Array, segments: Segments = ()) -> jax.Array:
        act = ACTIVATIONS[self.spec.act]
        h = apply_routed(self.fc1, x, segments)
        h = act(h) if self.gate is None else act(apply_routed(self.gate, x, segments)) * h
        if self.inner_norm is not None:
            h = apply_routed(self.inner_norm, h, segments)
        return apply_routed(self.fc2, h, segments)


class Residual(nnx.Module):
    """A sublayer with its norms, gate, dropout and residual connection."""

    def __init__(
        self,
        spec: Sublayer,
        width: int,
        *,
        context_width: int,
        condition_width: int,
        scheme: Scheme,
        draw: Draws,
    ):
        norm = lambda: routed(lambda: Norm(width, kind=spec.norm, eps=spec.norm_eps), spec.routes)
        self.spec = spec
        self.norm = norm()
        self.after = norm() if spec.place == "sandwich" else None
        source_width = context_width if spec.kind == "cross" else width
        is_mlp = spec.kind == "mlp"
        self.attn = None if is_mlp else Attention(spec, width, source_width, scheme, draw)
        self.mlp = Mlp(spec, width, scheme, draw) if is_mlp else None
        start = {"tanh": lambda: jnp.zeros((), jnp.float32),
                 "layerscale": lambda: jnp.full((width,), spec.gate_init, jnp.float32)}  # fmt: skip
        self.gate = nnx.Param(start[spec.gate]()) if spec.gate in start else None
        adaln = spec.gate == "adaln"
        if adaln and not condition_width:
            raise ValueError("adaLN gates need a condition: set `condition_width` of the trunk")
        modulation = lambda: Linear(condition_width, 3 * width, draw=draw, kernel_init=zeros)
        self.modulation = routed(modulation, spec.routes) if adaln else None

    def __call__(self, x: jax.Array, flow: Flow, *, keys=None, drop_path=0.0, cache=None):
        """Returns (x plus what the sublayer adds, the sublayer's new cache or None).

        Args:
          x: the residual stream [batch, seq, width].
          flow: masks, positions, context and condition.
          keys: per-sample keys [batch] for dropout, or None.
          drop_path: probability of leaving the whole sublayer out for a sample (stochastic depth).
          cache: {"k", "v"} of this sublayer when decoding.
        """
        spec = self.spec
        if spec.kind == "cross" and flow.context is None and cache is None:  # the edge is cut
            return x, None
        h = x if spec.place == "post" else apply_routed(self.norm, x, flow.segments)
        gate = self.gate[...].astype(x.dtype) if self.gate is not None else None
        if self.modulation is not None:
            shift, scale, gate = jnp.split(modulate(self.modulation, x, flow), 3, axis=-1)
            h = h * (1 + scale) + shift
        if spec.kind == "mlp":
            h = self.mlp(h, flow.segments)
        else:
            h, cache = self.attn(h, flow, cache, key_tools.fold(keys, "attn_dropout") if spec.attn_dropout else None)
        if self.after is not None:
            h = apply_routed(self.after, h, flow.segments)
        if gate is not None:
            h = h * (jnp.tanh(gate) if spec.gate == "tanh" else gate)
        if spec.dropout:
            h = key_tools.dropout(h, spec.dropout, key_tools.fold(keys, "dropout"))
        if not isinstance(drop_path, float) or drop_path:
            h = key_tools.dropout(h, drop_path, key_tools.fold(keys, "drop_path"), shape=(1, 1))
        x = x + h
        return (apply_routed(self.norm, x, flow.segments) if spec.place == "post" else x), cache


def modulate(module: nnx.Module, x: jax.Array, flow: Flow) -> jax.Array:
    """Maps the condition to what modulates x: [batch, 1, n * width], or with routes by segment [batch, seq, n * width].

    Args:
      module: made by `routed`, condition_width -> n * width.
      x: the residual stream, [batch, seq, width].
      flow: with the condition.
    """
    if flow.condition is None:
        raise ValueError("adaLN gates in a tower without a condition: set the tower's `condition`")
    condition = jax.nn.silu(flow.condition).astype(x.dtype)[:, None]
    return spread_routed(module, condition, flow.segments)


class MapPool(nnx.Module):
    """Attention pooling by a learned probe: cross-attention, then a residual MLP (SigLIP's MAP head).

    Pools [batch, seq, width] to [batch, 1, width].
    """

    def __init__(self, width: int, heads: int, *, mlp: Sublayer, norm_eps: float, scheme: Scheme, draw: Draws):
        self.probe = draw(scheme.probe, 1, width)
        self.attn = Attention(Sublayer("cross", heads=heads), width, width, scheme, draw)
        own = Sublayer("mlp", act=mlp.act, hidden=mlp.hidden, norm_eps=norm_eps)
        self.mlp = Residual(own, width, context_width=0, condition_width=0,
                            scheme=scheme, draw=draw)  # fmt: skip

    def __call__(self, x: jax.Array, valid: jax.Array | None) -> jax.Array:
        probe = jnp.broadcast_to(self.probe[...].astype(x.dtype), (x.shape[0], *self.probe.shape))
        mask = None if valid is None else valid[:, None, None, :]
        flow = Flow(segments=(("probe", probe.shape[1]),), context=x, cross_mask=mask)
        pooled, _ = self.attn(probe, flow)
        return self.mlp(pooled, flow)[0]
