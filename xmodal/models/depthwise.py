"""Depthwise convolution: one filter a channel. On CPUs tap by tap, because the compiler's own loops crawl there.

A filter of 3 x 3 is nine shifted copies of the image, each times a row of the kernel: additions that the compiler fuses
into one pass. On two CPU cores that is some 40 times as fast as its convolution, and as much for the gradient of the
kernel; GPUs and TPUs have fast convolutions of this kind, which they get.
"""

import functools

import jax
import jax.numpy as jnp

Padding = tuple[tuple[int, int], tuple[int, int]]


def depthwise(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """Convolves each channel with a filter of its own.

    Args:
      x: [batch, height, width, channels].
      kernel: [rows, columns, 1, channels].
      stride: in both directions.
      padding: zeros (before, after) of the height and of the width.

    Returns:
      [batch, down, across, channels], of the type of x; sums are in float32.
    """
    return _depthwise(x, kernel, stride, padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise(x, kernel, stride, padding):
    forward = lambda f: functools.partial(f, stride=stride, padding=padding)
    return jax.lax.platform_dependent(x, kernel, cpu=forward(_by_taps), default=forward(_convolution))


def _forward(x, kernel, stride, padding):
    return _depthwise(x, kernel, stride, padding), (x, kernel)


def _backward(stride, padding, saved, g):
    return jax.lax.platform_dependent(
        *saved, g, cpu=functools.partial(_gradients_by_taps, stride=stride, padding=padding),
        default=lambda x, kernel, g: jax.vjp(lambda a, b: _convolution(a, b, stride, padding), x, kernel)[1](g),
    )  # fmt: skip


_depthwise.defvjp(_forward, _backward)


def _convolution(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel.astype(x.dtype), (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )  # fmt: skip


def _by_taps(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    wide, (rows, columns) = _padded(x, padding), kernel.shape[:2]
    size = [(wide.shape[1 + axis] - kernel.shape[axis]) // stride + 1 for axis in (0, 1)]
    total = jnp.zeros((), jnp.float32)
    for i in range(rows):
        for j in range(columns):
            total += _shifted(wide, (i, j), size, stride) * kernel[i, j, 0].astype(jnp.float32)
    return total.astype(x.dtype)


def _gradients_by_taps(x, kernel, g, stride: int, padding: Padding):
    """Gradients of `_by_taps` for x and kernel, when the output has the gradient g."""
    # For x: the filter turned about, over g with the strides' gaps as zeros.
    edges = [(k - 1 - before, size + before - (n - 1) * stride - 1)
             for k, (before, _), size, n in zip(kernel.shape, padding, x.shape[1:3], g.shape[1:3])]  # fmt: skip
    spread = jax.lax.pad(g, jnp.zeros((), g.dtype), [(0, 0, 0), *((*edge, stride - 1) for edge in edges), (0, 0, 0)])
    grad_x = _by_taps(spread, kernel[::-1, ::-1], 1, ((0, 0), (0, 0)))

    wide, small = _padded(x, padding), g.astype(jnp.float32)
    (rows, columns), (down, across) = kernel.shape[:2], g.shape[1:3]

    # For the kernel: image rows are added up one after the other (sums of vectors), and only then the rest.
    def tap(number):
        i, j = number // columns, number % columns

        def add(total, h):
            size = (x.shape[0], 1, (across - 1) * stride + 1, x.shape[3])
            line = jax.lax.dynamic_slice(wide, (0, i + h * stride, j, 0), size)[:, 0, ::stride]
            return total + line * jax.lax.dynamic_index_in_dim(small, h, 1, keepdims=False), None

        total, _ = jax.lax.scan(add, jnp.zeros_like(small[:, 0]), jnp.arange(down))
        return jnp.sum(jnp.sum(total, axis=1), axis=0)

    grad_kernel = jax.lax.map(tap, jnp.arange(rows * columns))
    return grad_x, grad_kernel.reshape(kernel.shape).astype(kernel.dtype)


def _padded(x: jax.Array, padding: Padding) -> jax.Array:
    return jnp.pad(x, ((0, 0), *padding, (0, 0))).astype(jnp.float32)


def _shifted(wide: jax.Array, start: tuple[int, int], size: list[int], stride: int) -> jax.Array:
    (i, j), (down, across) = start, size
    return wide[:, i : i + (down - 1) * stride + 1 : stride, j : j + (across - 1) * stride + 1 : stride]
