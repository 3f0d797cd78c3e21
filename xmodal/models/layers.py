"""The smallest parts: linear maps, norms, activations, rotary positions, and parameter routing by segment."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn.initializers import Initializer, lecun_normal, ones, zeros

from xmodal.models.init import Draws
from xmodal.models.spec import Lora, Sublayer

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "squared_relu": lambda x: jnp.square(jax.nn.relu(x)),
    "silu": jax.nn.silu,
}


class Linear(nnx.Module):
    """y = x @ kernel + bias over the last axis; parameters in float32, arithmetic in the type of x.

    `dtype` is that of the result when it should be finer than x: a bfloat16 product accumulates in float32 anyway.
    With `lora`, plus a low-rank update that starts at 0.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        draw: Draws,
        bias: bool = True,
        kernel_init: Initializer | None = None,
        bias_init: Initializer = zeros,
        lora: Lora | None = None,
    ):
        kernel_init = kernel_init or lecun_normal()
        self.kernel = draw(kernel_init, inputs, outputs)
        self.bias = draw(bias_init, outputs) if bias else None
        self.lora = lora
        if lora is not None:
            self.lora_a = draw(lecun_normal(), inputs, lora.rank)
            self.lora_b = nnx.Param(jnp.zeros((lora.rank, outputs), jnp.float32))

    def __call__(self, x: jax.Array, dtype=None) -> jax.Array:
        dtype = dtype or x.dtype
        # As one matrix: of a product over [batch, seq] the gradient would transpose its inputs in memory (XLA, GPU).
        rows = x.reshape(-1, x.shape[-1])
        y = jnp.matmul(rows, self.kernel[...].astype(x.dtype), preferred_element_type=dtype)
        if self.lora is not None:
            low = jnp.matmul(rows, self.lora_a[...].astype(x.dtype)) * self.lora.scale
            y = y + jnp.matmul(low, self.lora_b[...].astype(x.dtype), preferred_element_type=dtype)
        y = y.reshape(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias[...].astype(dtype)


def lora_of(spec: Sublayer, name: str) -> Lora | None:
    """Returns the low-rank update of the linear map `name` of a sublayer, if it has one."""
    return spec.lora if spec.lora is not None and name in spec.lora.targets else None


class Norm(nnx.Module):
    """LayerNorm (`ln`), RMSNorm (`rms`) or RMSNorm with weight 1 + w (`rms1p`, Gemma), always in float32."""

    def __init__(self, width: int, *, kind: str = "ln", eps: float = 1e-6, bias: bool = True):
        self.kind, self.eps = kind, eps
        start = zeros if kind == "rms1p" else ones
        self.scale = nnx.Param(start(None, (width,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((width,), jnp.float32)) if kind == "ln" and bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        if self.kind == "ln":
            y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        y = y * (self.scale[...] + 1.0 if self.kind == "rms1p" else self.scale[...])
        return (y if self.bias is None else y + self.bias[...]).astype(x.dtype)


class Routed(nnx.Module):
    """Parameter routing: each segment of a sequence goes through its own copy of a module (BEiT-3, MMDiT, Q-Former).

    Routing is static, so it costs slices and no gathers. With one expert the parameters sit directly under the
    module's name; with several, under `expert<i>`.
    """

    def __init__(self, make: Callable[[], nnx.Module], routes: tuple[tuple[str, int], ...]):
        self.routes = routes
        for i in range(1 + max(i for _, i in routes)):
            setattr(self, f"expert{i}", make())

    def __call__(self, x: jax.Array, segments: tuple[tuple[str, int], ...]) -> jax.Array:
        table, parts, start = dict(self.routes), [], 0
        for name, length in segments:
            expert = getattr(self, f"expert{table.get(name, 0)}")
            parts.append(expert(x[:, start : start + length]))
            start += length
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)


def routed(make: Callable[[], nnx.Module], routes: tuple[tuple[str, int], ...]) -> nnx.Module:
    """Returns one module, or one per expert when `routes` names segments that have their own."""
    return Routed(make, routes) if routes else make()


def apply_routed(module: nnx.Module, x: jax.Array, segments: tuple[tuple[str, int], ...]) -> jax.Array:
    """Calls a module made by `routed`."""
    return module(x, segments) if isinstance(module, Routed) else module(x)


def spread_routed(module: nnx.Module, x: jax.Array, segments: tuple[tuple[str, int], ...]) -> jax.Array:
    """Calls a module made by `routed` with one x [batch, 1, width] for all positions of every segment.

    Returns:
      [batch, 1, outputs], or [batch, seq, outputs] where segments differ in their expert.
    """
    if not isinstance(module, Routed):
        return module(x)
    experts = module(jnp.concatenate([x] * len(segments), axis=1), tuple((name, 1) for name, _ in segments))
    lengths = np.array([length for _, length in segments])
    return jnp.repeat(experts, lengths, axis=1, total_repeat_length=int(lengths.sum()))


def patches_matmul(images: jax.Array, kernel: jax.Array) -> jax.Array:
    """A convolution whose stride is its size, as one matrix product.

    Args:
      images: [batch, height, width, channels].
      kernel: [patch, patch, channels, outputs].

    Returns:
      [batch, patches, outputs], row by row.
    """
    (b, h, w, c), (ph, pw, _, d) = images.shape, kernel.shape
    x = images.reshape(b, h // ph, ph, w // pw, pw, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, (h // ph) * (w // pw), ph * pw * c) @ kernel.reshape(ph * pw * c, d)


def rotary(x: jax.Array, pos: jax.Array, theta: float) -> jax.Array:
    """Rotary position embedding (Su et al. 2021), half-split layout; several position axes share the head equally.

    Args:
      x: [batch, seq, heads, head_dim].
      pos: [batch, seq, axes].
      theta: base of the geometric frequencies.

    Returns:
      The rotated x, same shape and type.
    """
    axes, dim = pos.shape[-1], x.shape[-1] // pos.shape[-1]
    if x.shape[-1] % (2 * axes):
        raise ValueError(f"rotary positions of {axes} axes need heads whose width is a multiple of {2 * axes}, "
                         f"got {x.shape[-1]}")  # fmt: skip
    frequency = theta ** (-jnp.arange(0, dim, 2, dtype=jnp.float32) / dim)
    parts = []
    for axis in range(axes):
        part = x[..., axis * dim : (axis + 1) * dim].astype(jnp.float32)
        angle = pos[:, :, None, axis, None].astype(jnp.float32) * frequency
        sin, cos = jnp.sin(angle), jnp.cos(angle)
        a, b = jnp.split(part, 2, axis=-1)
        parts.append(jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1))
    return jnp.concatenate(parts, axis=-1).astype(x.dtype)


def sincos_positions(shape: tuple[int, ...], width: int, temperature: float = 10_000.0) -> jax.Array:
    """Fixed sine-cosine positions of a grid (MoCo v3), float32 [prod(shape), width]; width % (2 * axes) == 0."""
    dim = width // (2 * len(shape))
    frequency = temperature ** (-jnp.arange(dim, dtype=jnp.float32) / max(dim - 1, 1))
    grid = jnp.meshgrid(*(jnp.arange(n, dtype=jnp.float32) for n in shape), indexing="ij")
    angles = [g.reshape(-1, 1) * frequency for g in reversed(grid)]
    return jnp.concatenate([f(a) for a in angles for f in (jnp.sin, jnp.cos)], axis=-1)
