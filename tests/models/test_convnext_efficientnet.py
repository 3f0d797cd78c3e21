"""Depthwise convolutions, ConvNeXt and EfficientNet: what options change, and what they leave as it is."""

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmodal.models import depthwise, presets
from xmodal.models.batch_norm import STATISTICS
from xmodal.models.conv import convolve
from xmodal.models.efficientnet import EfficientNetSpec
from xmodal.models.tokens import grid_tokens
from xmodal.paths import flatten_paths

STAGES = ((3, 1, 1, 16, 1), (5, 2, 2, 40, 3))
PIXELS = (21, 18)


def convnext(**changes):
    return presets.convnext_tower((1, 2), (8, 12), **dict(image_size=PIXELS, layer_scale=0.5) | changes)


def efficientnet(**changes):
    return presets.efficientnet_tower(
        0.5, 1.0, **dict(image_size=PIXELS, stages=STAGES, top=64, drop_connect=0) | changes
    )


TOWERS = {"convnext": convnext, "efficientnet": efficientnet}


def batch(rows=4, pixels=PIXELS):
    return dict(image=np.random.default_rng(0).normal(size=(rows, *pixels, 3)).astype(np.float32))


@pytest.mark.parametrize(
    ("size", "stride", "padding"),
    [(3, 1, ((1, 1), (1, 1))), (5, 2, ((1, 2), (2, 2))), (3, 2, ((0, 1), (0, 1))), (7, 1, ((3, 3), (3, 3)))],
)
def test_taps_are_a_convolution(size, stride, padding):
    rng = np.random.default_rng(size + stride)
    x, kernel = (
        rng.normal(size=(3, 11, 8, 5)).astype(np.float32),
        rng.normal(size=(size, size, 1, 5)).astype(np.float32),
    )
    plain = lambda x, kernel: depthwise._convolution(x, kernel, stride, padding)
    wanted, pull = jax.vjp(plain, x, kernel)
    got, own_pull = jax.vjp(lambda x, kernel: convolve(x, kernel, stride, padding, groups=5), x, kernel)
    g = rng.normal(size=wanted.shape).astype(np.float32)
    helpers.assert_trees_close(dict(y=got), dict(y=wanted))
    helpers.assert_trees_close(dict(zip("xk", own_pull(g))), dict(zip("xk", pull(g))))


def test_taps_of_a_batch_on_many_devices():
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(8, 6, 5, 4)).astype(np.float32), rng.normal(size=(3, 3, 1, 4)).astype(np.float32)
    gradients = jax.jit(jax.grad(lambda x, k: jnp.sum(jnp.sin(convolve(x, k, 2, 1, groups=4))), argnums=(0, 1)))
    with jax.set_mesh(mesh := helpers.mesh(2, 2, 2)):
        split = jax.device_put(x, jax.NamedSharding(mesh, jax.P(("data", "fsdp"))))
        helpers.assert_trees_close(dict(zip("xk", gradients(split, kernel))), dict(zip("xk", gradients(x, kernel))))


def test_other_devices_get_their_own_convolution():
    x, kernel = jax.ShapeDtypeStruct((2, 8, 8, 4), np.float32), jax.ShapeDtypeStruct((3, 3, 1, 4), np.float32)
    run = jax.jit(lambda x, kernel: convolve(x, kernel, 1, "SAME", groups=4))
    for platform, count in (("cpu", 0), ("cuda", 1), ("tpu", 1)):
        text = run.trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()
        assert text.count("stablehlo.convolution") == count, platform


def test_a_convolution_as_large_as_its_stride_is_a_product():
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 9, 11, 3)).astype(np.float32), rng.normal(size=(4, 4, 3, 5)).astype(np.float32)
    layout = ("NHWC", "HWIO", "NHWC")
    wanted = jax.lax.conv_general_dilated(x, kernel, (4, 4), "VALID", dimension_numbers=layout)
    np.testing.assert_allclose(convolve(x, kernel, 4, 0), wanted, rtol=1e-4, atol=1e-4)


def test_scan_and_rematerialisation_change_no_number():
    """In training mode; tests/models/test_golden_align.py has the rest."""

    def gradients(**how):
        model = helpers.build(dict(image=efficientnet(stages=((3, 2, 2, 40, 3),), **how)))

        def loss(params):
            out = model(params, batch(), frozenset({"image.pooled", STATISTICS}), helpers.sample_keys(4))
            return jnp.mean(jnp.sin(3 * out["image.pooled"])), out[STATISTICS]

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(helpers.random_params(model))

    (loss, moments), grads = gradients(scan=True)
    (same, other_moments), other_grads = gradients(scan=False, remat="dots")
    np.testing.assert_allclose(same, loss, rtol=1e-5)
    helpers.assert_trees_close(other_grads, grads)
    helpers.assert_trees_close(other_moments, moments)
    for path, grad in flatten_paths(grads["image"]).items():
        # What a block adds to all places alike the last norm takes away again.
        zero = path.endswith("project/norm/bias")
        assert (np.max(np.abs(grad)) > 1e-6) is not zero, path


@pytest.mark.parametrize("name", TOWERS)
def test_tokens_are_the_places_of_the_grid(name):
    model = helpers.build(dict(image=TOWERS[name]()))
    spec = model.spec.towers["image"]
    params = jax.eval_shape(model.init, jax.random.key(0))
    tokens = jax.eval_shape(lambda p: model(p, batch(), frozenset({"image.tokens"})), params)["image.tokens"]
    assert tokens.x.shape == (4, spec.embed.tokens, spec.width)
    assert tokens.segments == (("image", spec.embed.tokens),)
    grid = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    tokens = grid_tokens(grid, "image")
    assert tokens.pos[1, 6].tolist() == [1, 2] and tokens.x[1, 6].tolist() == grid[1, 1, 2].tolist()


@pytest.mark.parametrize("name", TOWERS)
def test_blocks_are_left_out_in_training_alone(name):
    tower = TOWERS[name](**{"convnext": dict(drop_path=0.6), "efficientnet": dict(drop_connect=0.6)}[name])
    run, params = helpers.forward(model := helpers.build(dict(image=tower)), "image.tokens"), None
    params = helpers.random_params(model)
    still, first, second = (run(params, batch(), keys)["image.tokens"].x for keys in
                            (None, helpers.sample_keys(4), helpers.sample_keys(4, seed=1)))  # fmt: skip
    assert np.max(np.abs(first - second)) > 1e-3 and np.max(np.abs(first - still)) > 1e-3
    np.testing.assert_array_equal(run(params, batch(), helpers.sample_keys(4))["image.tokens"].x, first)


@pytest.mark.parametrize("name", TOWERS)
def test_bfloat16_is_near(name):
    params, found = None, []
    for dtype in ("float32", "bfloat16"):
        model = helpers.build(dict(image=TOWERS[name]()), dtype)
        params = helpers.random_params(model) if params is None else params
        out = helpers.forward(model, "image.tokens", "image.pooled")(params, batch())
        assert out["image.tokens"].x.dtype == dtype and out["image.pooled"].dtype == np.float32
        found.append(np.asarray(out["image.pooled"]))
    assert np.max(np.abs(found[0] - found[1])) < 0.05 * np.max(np.abs(found[0]))


@pytest.mark.parametrize("name", TOWERS)
def test_other_sizes_are_refused(name):
    model = helpers.build(dict(image=TOWERS[name]()))
    with pytest.raises(ValueError, match=r"the model expects \(21, 18\) pixels, got images \(4, 18, 21, 3\)"):
        model(helpers.random_params(model), batch(pixels=PIXELS[::-1]), frozenset({"image.tokens"}))


def test_mistakes_in_a_description():
    with pytest.raises(ValueError, match=r"widths \(8,\) and depths \(1, 2\) are not of the same stages"):
        helpers.build(dict(image=presets.convnext_tower((1, 2), (8,))))
    narrow = convnext()
    narrow["trunk"] |= dict(width=8)
    with pytest.raises(ValueError, match="needs a trunk as wide as the last, not 8"):
        helpers.build(dict(image=narrow))
    narrow = efficientnet()
    narrow["trunk"] |= dict(width=8)
    with pytest.raises(ValueError, match="gives 32 channels and needs a trunk as wide, not 8"):
        helpers.build(dict(image=narrow))
    for make, pixels in ((convnext, 7), (efficientnet, 3)):
        with pytest.raises(ValueError, match=r"less than the [48] pixels that become one token"):
            helpers.build(dict(image=make(image_size=pixels)))
    with pytest.raises(ValueError, match="a stride of 3, expected 1 or 2"):
        helpers.build(dict(image=efficientnet(stages=((3, 3, 1, 16, 1),))))
    tower = convnext() | dict(trunk=presets.no_trunk(12, depth=2))
    with pytest.raises(ValueError, match="depth 2 is not a multiple of the 0 layers of the pattern"):
        helpers.build(dict(image=tower))


@pytest.mark.parametrize("variant", presets.EFFICIENTNET)
def test_published_models_pad_alike_where_grids_are_odd(variant):
    _, _, pixels, padding = presets.EFFICIENTNET[variant]
    spec = EfficientNetSpec(**presets.efficientnet(variant, image_size=pixels)["embed"])
    side, number, odd = pixels // 2, 0, []
    for stage, blocks in zip(spec.stages, spec.blocks):
        odd += [number] if stage[1] == 2 and side % 2 else []
        side, number = -(-side // stage[1]), number + blocks
    assert tuple(odd) == padding and spec.grid == (side, side)  # so that no pixel is cut


def test_channels_round_as_published():
    spec = lambda factor: EfficientNetSpec(width_factor=factor)
    assert [spec(1.1).filters(c) for c in (16, 24, 32, 40, 112)] == [16, 24, 32, 48, 120]
    assert spec(0.24).filters(80) == 24  # 16 would be more than 10 % too few
