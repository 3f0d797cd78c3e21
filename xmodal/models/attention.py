"""Multi-head attention over self or context, with the options that the field's models need and a key-value cache.

CLIP's attention pool, which is one such attention without its output map, is here, too.
"""

import contextlib
import contextvars
import functools
from collections.abc import Iterator

import jax
import jax.extend.backend
import jax.numpy as jnp
from flax import nnx

from xmodal import keys as key_tools
from xmodal.models.init import Draws, Scheme
from xmodal.models.layers import Linear, Norm, apply_routed, lora_of, rotary, routed
from xmodal.models.relative import RelativeBias
from xmodal.models.spec import Flow, Sublayer

_portable = contextvars.ContextVar("portable", default=False)


@contextlib.contextmanager
def portable() -> Iterator[None]:
    """What is traced inside contains nothing of one vendor's alone: for programs that other devices will run."""
    token = _portable.set(True)
    try:
        yield
    finally:
        _portable.reset(token)


def _fits_cudnn(dtype: jnp.dtype, head_dim: int) -> bool:
    """Whether cuDNN's fused attention (never a matrix of all weights in memory) knows such heads, and is there.

    Masked attention stays with XLA: a mask is as large as the weights that cuDNN saves.
    """
    if jnp.dtype(dtype).itemsize != 2 or head_dim % 8 or head_dim > 128 or _portable.get():
        return False
    return _on_nvidia()


@functools.cache
def _on_nvidia() -> bool:
    return "cuda" in jax.extend.backend.get_backend().platform_version.lower()


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None, softcap: float = 0.0,
    dropout: float = 0.0, keys: jax.Array | None = None, bias: jax.Array | None = None,
) -> jax.Array:  # fmt: skip
    """Scaled dot-product attention with float32 logits.

    Args:
      q: [batch, queries, heads, head_dim].
      k: [batch, keys, kv_heads, head_dim]; heads must be a multiple of kv_heads.
      v: same shape as k.
      mask: bool, broadcastable to [batch, heads, queries, keys], or None.
      softcap: bound of the logits (Gemma 2); 0 leaves them.
      dropout: on the weights (Vaswani et al. 2017's code, BERT).
      keys: per-sample keys [batch] for it, or None.
      bias: float32 [heads, queries, keys], added to the logits, or None.

    Returns:
      [batch, queries, heads, head_dim].
    """
    dropout = dropout if keys is not None else 0.0
    if mask is None and bias is None and not softcap and not dropout and _fits_cudnn(q.dtype, q.shape[-1]):
        return _fused(q, k, v)
    if bias is None and not (softcap or dropout):
        return jax.nn.dot_product_attention(q, k, v, mask=mask)
    k, v = (jnp.repeat(a, q.shape[2] // a.shape[2], axis=2) for a in (k, v))
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    if softcap:
        logits = softcap * jnp.tanh(logits / softcap)
    logits = logits if bias is None else logits + bias
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    if dropout:
        weights = key_tools.dropout(weights, dropout, keys)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


def _fused(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """cuDNN's attention; it trains on even lengths alone, so that odd ones get one token more that no query sees."""
    queries, keys = q.shape[1], k.shape[1]
    even = lambda a: jnp.pad(a, ((0, 0), (0, a.shape[1] % 2), (0, 0), (0, 0)))
    lengths = jnp.full(k.shape[0], keys, jnp.int32) if keys % 2 else None
    y = jax.nn.dot_product_attention(even(q), even(k), even(v), key_value_seq_lengths=lengths, implementation="cudnn")
    return y[:, :queries]


class Attention(nnx.Module):
    """Projects, attends, projects back: [batch, seq, width] -> [batch, seq, width]."""

    def __init__(self, spec: Sublayer, width: int, source_width: int, scheme: Scheme, draw: Draws):
        if not spec.heads or (not spec.head_dim and width % spec.heads):
            raise ValueError(f"{spec.kind} attention needs heads that divide the width {width}, got {spec.heads}")
        dim = spec.head_dim or width // spec.heads
        kv_heads = spec.kv_heads or spec.heads
        linear = lambda name, inputs, outputs, init, bias=spec.bias: (
            lambda: Linear(inputs, outputs, draw=draw, bias=bias, kernel_init=init, lora=lora_of(spec, name))
        )
        self.spec, self.dim, self.kv_heads = spec, dim, kv_heads
        self.query = routed(linear("query", width, spec.heads * dim, scheme.attn_in), spec.routes)
        # Context tokens carry no segments of this stream: only the self kind routes keys and values.
        routes = spec.routes if spec.kind == "self" else ()
        key_bias = spec.bias and spec.key_bias
        self.key = routed(linear("key", source_width, kv_heads * dim, scheme.attn_in, key_bias), routes)
        self.value = routed(linear("value", source_width, kv_heads * dim, scheme.attn_in), routes)
        self.query_norm = Norm(dim, kind=spec.norm, eps=spec.norm_eps) if spec.qk_norm else None
        self.key_norm = Norm(dim, kind=spec.norm, eps=spec.norm_eps) if spec.qk_norm else None
        inner = lambda: Norm(spec.heads * dim, kind=spec.norm, eps=spec.norm_eps)
        self.inner_norm = routed(inner, spec.routes) if spec.inner_norm else None
        own_bias = spec.relative is not None and not spec.relative.shared
        self.relative = RelativeBias(spec.relative, spec.heads, draw) if own_bias else None
        if spec.joined and spec.kind != "cross":
            raise ValueError("`joined` joins a context to the stream: it belongs to a cross sublayer")
        self.context_norm = Norm(source_width, kind=spec.norm, eps=spec.norm_eps) if spec.joined else None
        self.out = routed(linear("out", spec.heads * dim, width, scheme.attn_out), spec.routes)

    def _keys_values(self, source: jax.Array, flow: Flow):
        heads = lambda a: a.reshape(*a.shape[:2], self.kv_heads, self.dim)
        k = heads(apply_routed(self.key, source, flow.segments))
        v = heads(apply_routed(self.value, source, flow.segments))
        return (k if self.key_norm is None else self.key_norm(k)), v

    def _source(self, x: jax.Array, flow: Flow) -> jax.Array:
        """What keys and values are made of."""
        if self.spec.kind != "cross":
            return x
        return flow.context if self.context_norm is None else jnp.concatenate(
            [self.context_norm(flow.context), x], axis=1
        )  # fmt: skip

    def _bias(self, queries: int, keys: int, flow: Flow) -> jax.Array | None:
        """Biases of the logits by distance, float32 [heads, queries, keys], or None."""
        if self.relative is not None:
            return self.relative(queries, keys, flow.index)
        return flow.bias if self.spec.relative is not None else None

    def __call__(self, x: jax.Array, flow: Flow, cache: dict | None = None, keys: jax.Array | None = None):
        """Returns (output [batch, seq, width], new cache or None); `keys` [batch] are for dropout of the weights.

        With a cache, self attention writes its new keys at `flow.index` and reads all of them; cross attention
        computes the context's keys when a context is given and reuses them when it is not.
        """
        spec, cross = self.spec, self.spec.kind == "cross"
        q = apply_routed(self.query, x, flow.segments).reshape(*x.shape[:2], spec.heads, self.dim)
        q = q if self.query_norm is None else self.query_norm(q)
        if cross and cache is not None and flow.context is None:
            k, v = cache["k"], cache["v"]
        else:
            k, v = self._keys_values(self._source(x, flow), flow)
        if spec.rope and not cross:  # two sequences share no positions
            if flow.pos is None:
                raise ValueError(
                    "rotary positions (`rope`) in a tower whose tokens carry none: it reads several sequences"
                )
            q, k = rotary(q, flow.pos, spec.rope), rotary(k, flow.pos, spec.rope)
        if cache is not None:
            if not cross:
                k, v = (
                    jax.lax.dynamic_update_slice(cache[n], a.astype(cache[n].dtype), (0, flow.index, 0, 0))
                    for n, a in (("k", k), ("v", v))
                )
            cache = {"k": k, "v": v}
        mask = flow.cross_mask if cross else flow.self_mask
        if spec.joined and mask is not None:  # the stream sees all of itself
            mask = jnp.pad(mask, ((0, 0), (0, 0), (0, 0), (0, x.shape[1])), constant_values=True)
        y = attend(q, k, v, mask, spec.softcap, spec.attn_dropout, keys, self._bias(x.shape[1], k.shape[1], flow))
        y = y.reshape(*x.shape[:2], -1)
        if self.inner_norm is not None:
            y = apply_routed(self.inner_norm, y, flow.segments)
        y = apply_routed(self.out, y, flow.segments)
        if cross and mask is not None:
            # A query that sees nothing adds nothing, no bias either (Flamingo, section 3.1.3).
            y = jnp.where(jnp.any(mask, axis=-1).transpose(0, 2, 1), y, jnp.zeros((), y.dtype))
        return y, cache


class AttentionPool(nnx.Module):
    """Attention pooling by the mean (CLIP's ResNets, Radford et al. 2021, section 2.4).

    The mean of the tokens goes in front of them, all get learned positions, and the mean attends to all. What follows
    in CLIP, a linear map with bias into the shared space, is the tower's projection.
    Pools [batch, seq, width] to [batch, 1, width].
    """

    def __init__(self, width: int, heads: int, tokens: int, *, scheme: Scheme, draw: Draws):
        if not heads or width % heads:
            raise ValueError(f"pool_heads must divide the width {width}, got {heads}")
        self.heads = heads
        self.position = draw(scheme.image_position, tokens + 1, width)
        linear = lambda: Linear(width, width, draw=draw, kernel_init=scheme.attn_in)
        self.query, self.key, self.value = linear(), linear(), linear()

    def __call__(self, x: jax.Array, valid: jax.Array | None) -> jax.Array:
        if valid is not None or x.shape[1] + 1 != self.position.shape[0]:
            raise ValueError(
                f"the pool 'attention' was built for {self.position.shape[0] - 1} tokens that are all there, got "
                f"{x.shape[1]}"
            )
        mean = jnp.mean(x, axis=1, keepdims=True, dtype=jnp.float32).astype(x.dtype)
        x = jnp.concatenate([mean, x], axis=1) + self.position[...].astype(x.dtype)
        heads = lambda a: a.reshape(*a.shape[:2], self.heads, -1)
        y = attend(heads(self.query(x[:, :1])), heads(self.key(x)), heads(self.value(x)), None)
        return y.reshape(*y.shape[:2], -1)
