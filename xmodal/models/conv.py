"""Parts of convolutional towers; images are [batch, height, width, channels]."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn.initializers import Initializer, ones, zeros

from xmodal.models.batch_norm import BatchNorm, Moments
from xmodal.models.depthwise import depthwise
from xmodal.models.init import Draws, he_out
from xmodal.models.layers import ACTIVATIONS, patches_matmul

Padding = int | str | Sequence[tuple[int, int]]


def convolve(x: jax.Array, kernel: jax.Array, stride: int = 1, padding: Padding = "SAME", groups: int = 1) -> jax.Array:
    """A convolution (cross-correlation, as everywhere in the field) in the type of x.

    Args:
      x: [batch, height, width, channels].
      kernel: [height, width, channels / groups, outputs].
      stride: of both axes.
      padding: zeros on every side, ((top, bottom), (left, right)), or JAX's "SAME" or "VALID".
      groups: groups of channels that do not mix; as many as channels for a depthwise convolution.
    """
    kernel, (down, across) = kernel.astype(x.dtype), kernel.shape[:2]
    # Two kinds are matrix products, which every device is best at.
    if down == across == 1 and groups == 1 and padding in (0, "SAME", "VALID"):
        return x[:, ::stride, ::stride] @ kernel[0, 0]
    if down == across == stride and groups == 1 and padding in (0, "VALID"):
        rows, columns = x.shape[1] // stride, x.shape[2] // stride
        y = patches_matmul(x[:, : rows * stride, : columns * stride], kernel)
        return y.reshape(x.shape[0], rows, columns, -1)
    sides = ((padding, padding),) * 2 if isinstance(padding, int) else padding
    if groups == x.shape[-1] == kernel.shape[-1]:
        if isinstance(sides, str):
            sides = jax.lax.padtype_to_pads(x.shape[1:3], (down, across), (stride, stride), sides)
        return depthwise(x, kernel, stride, tuple(map(tuple, sides)))
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), sides, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )


class Conv(nnx.Module):
    """See `convolve`; `padding` None is half the kernel's size on every side, as in PyTorch's models."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        *,
        draw: Draws,
        stride: int = 1,
        padding: Padding | None = None,
        groups: int = 1,
        bias: bool = False,
        kernel_init: Initializer = he_out,
    ):
        if inputs % groups or outputs % groups:
            raise ValueError(f"{groups} groups do not divide {inputs} and {outputs} channels")
        self.stride, self.groups = stride, groups
        self.padding = size // 2 if padding is None else padding
        self.kernel = draw(kernel_init, size, size, inputs // groups, outputs)
        self.bias = nnx.Param(zeros(None, (outputs,), jnp.float32)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = convolve(x, self.kernel[...], self.stride, self.padding, self.groups)
        return y if self.bias is None else y + self.bias[...].astype(y.dtype)


class ConvNorm(nnx.Module):
    """A convolution without bias, BatchNorm, and an activation (a key of `ACTIVATIONS`, "" for none)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        *,
        draw: Draws,
        act: str = "relu",
        eps: float = 1e-5,
        momentum: float = 0.9,
        scale_init: Initializer = ones,
        **conv,
    ):
        """`eps`, `momentum` and `scale_init` are of the norm, other options of the convolution."""
        self.act = act
        self.conv = Conv(inputs, outputs, size, draw=draw, **conv)
        self.norm = BatchNorm(outputs, eps=eps, momentum=momentum, scale_init=scale_init)

    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, dict[str, Moments | None]]:
        """Returns (output, moments by the name of the norm); see `BatchNorm`."""
        y, moments = self.norm(self.conv(x), train)
        return ACTIVATIONS[self.act](y) if self.act else y, {"norm": moments}


def mean_pool(x: jax.Array, size: int) -> jax.Array:
    """Means of squares of `size` pixels that do not overlap; pixels left over at the lower and right edge are cut."""
    if size == 1:
        return x
    batch, height, width, channels = x.shape
    down, across = height // size, width // size
    x = x[:, : down * size, : across * size]
    return jnp.mean(x.reshape(batch, down, size, across, size, channels), axis=(2, 4))


def max_pool(x: jax.Array, size: int, stride: int) -> jax.Array:
    """Largest values of overlapping squares, padded by half their size."""
    lowest = np.asarray(-np.inf, x.dtype)  # a constant, which has JAX see that this is a maximum
    sides = ((0, 0), (size // 2,) * 2, (size // 2,) * 2, (0, 0))
    return jax.lax.reduce_window(x, lowest, jax.lax.max, (1, size, size, 1), (1, stride, stride, 1), sides)
