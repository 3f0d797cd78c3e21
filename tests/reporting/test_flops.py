"""FLOPs from the jaxpr: exact through loops, shards and convolutions."""

import jax
import jax.numpy as jnp
import pytest

from xmodal.reporting.flops import count_flops, device_peak_flops, mfu

ROWS, WIDTH, DEPTH = 8, 16, 6
LAYER = 2 * ROWS * WIDTH * WIDTH


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def stack(weights, x, body=lambda x, w: (jnp.tanh(x @ w), None)):
    return jnp.sum(jax.jit(lambda w, x: jax.lax.scan(body, x, w)[0])(weights, x))


def test_scan_bodies_count_once_per_layer():
    assert count_flops(stack, shape(DEPTH, WIDTH, WIDTH), shape(ROWS, WIDTH)) == DEPTH * LAYER


def test_training_costs_three_forward_passes_and_four_with_remat():
    arguments = shape(DEPTH, WIDTH, WIDTH), shape(ROWS, WIDTH)
    train = jax.jit(jax.value_and_grad(stack, argnums=(0, 1)))
    assert count_flops(train, *arguments) == 3 * DEPTH * LAYER
    body = jax.checkpoint(lambda x, w: (jnp.tanh(x @ w), None), prevent_cse=False)
    train = jax.jit(jax.value_and_grad(lambda w, x: stack(w, x, body), argnums=(0, 1)))
    assert count_flops(train, *arguments) == 4 * DEPTH * LAYER


def test_batched_products():
    attention = lambda q, k: jnp.einsum("bqhd,bkhd->bhqk", q, k)
    assert count_flops(attention, shape(2, 5, 3, 4), shape(2, 7, 3, 4)) == 2 * 2 * 3 * 5 * 7 * 4


@pytest.mark.parametrize("stride, padding", [(1, "SAME"), (2, "SAME"), (4, "VALID")])
@pytest.mark.parametrize("groups", [1, 4])
def test_convolutions_and_their_gradients(stride, padding, groups):
    def convolve(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jnp.sum(
            jax.lax.conv_general_dilated(
                x, kernel, (stride, stride), padding, dimension_numbers=numbers, feature_group_count=groups
            )
        )

    arguments = shape(2, 16, 16, 4), shape(4, 4, 4 // groups, 8)
    forward = count_flops(convolve, *arguments)
    if padding == "VALID":  # nothing is padded: the textbook formula
        assert forward == 2 * (2 * 4 * 4 * 8) * (4 * 4 * 4 // groups)
    assert count_flops(jax.value_and_grad(convolve, argnums=(0, 1)), *arguments) == 3 * forward


def test_a_patch_embedding_is_a_matrix_product():
    numbers = ("NHWC", "HWIO", "NHWC")
    embed = lambda x, k: jax.lax.conv_general_dilated(x, k, (16, 16), "VALID", dimension_numbers=numbers)
    product = lambda x, k: x.reshape(2 * 4, 768) @ k.reshape(768, 32)
    arguments = shape(2, 32, 32, 3), shape(16, 16, 3, 32)
    assert count_flops(embed, *arguments) == count_flops(product, *arguments)


def test_shards_count_together():
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    for axes in ({"data"}, {"data", "tensor"}):
        names = tuple(sorted(axes))
        sharded = jax.shard_map(
            lambda x, w: x @ w,
            mesh=mesh,
            in_specs=(jax.P(names), jax.P()),
            out_specs=jax.P(names),
            axis_names=axes,
            check_vma=False,
        )
        assert count_flops(sharded, shape(ROWS, WIDTH), shape(WIDTH, WIDTH)) == LAYER


def test_custom_derivatives_branches_and_while():
    @jax.custom_vjp
    def product(x, w):
        return x @ w

    product.defvjp(lambda x, w: (x @ w, (x, w)), lambda kept, g: (g @ kept[1].T, kept[0].T @ g))
    arguments = shape(ROWS, WIDTH), shape(WIDTH, WIDTH)
    assert count_flops(product, *arguments) == LAYER
    train = jax.grad(lambda x, w: jnp.sum(product(x, w)), argnums=(0, 1))
    assert count_flops(train, *arguments) == 3 * LAYER
    branch = lambda x, w: jax.lax.cond(x[0, 0] > 0, lambda: x @ w @ w, lambda: x @ w)
    assert count_flops(branch, *arguments) == 2 * LAYER
    loop = lambda x, w: jax.lax.while_loop(lambda c: c[0, 0] > 0, lambda c: c @ w, x)
    assert count_flops(loop, *arguments) == LAYER


@pytest.mark.parametrize(
    "kind, tflops",
    [
        ("NVIDIA H200", 989.4),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA B200", 2250),
        ("NVIDIA GB200", 2500),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("Tesla V100-SXM2-16GB", 125),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("TPU v4", 275),
        ("TPU v4 lite", 138),
        ("TPU v5 lite", 197),
        ("TPU v5p", 459),
        ("TPU v6 lite", 918),
        ("TPU7x", 1153.5),
    ],
)
def test_known_devices(kind, tflops):
    assert device_peak_flops(kind) == tflops * 1e12


def test_utilisation_needs_known_devices():
    assert device_peak_flops("cpu") is None and device_peak_flops("NVIDIA Z9000") is None
    assert mfu(1e9, 1000.0) is None  # this machine's CPU

    class Device:
        device_kind = "NVIDIA A100-SXM4-80GB"

    assert mfu(156e9, 1000.0, [Device(), Device()]) == pytest.approx(0.25)
