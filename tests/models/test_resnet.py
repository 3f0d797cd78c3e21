"""ResNets as towers: shapes, initial values, rematerialisation, wiring, and what makes no sense."""

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmodal.models import presets
from xmodal.models.conv import Conv, convolve, max_pool, mean_pool
from xmodal.models.resnet import ResNetSpec
from xmodal.paths import flatten_paths
from xmodal.reporting.flops import count_flops

CLIP = dict(style="clip", block="bottleneck")
POOLED, TOKENS = frozenset({"image.pooled"}), frozenset({"image.tokens"})


def test_the_grid_is_that_of_the_feature_map():
    grids = {("v1.5", 224): (7, 7), ("v1.5", 225): (8, 8), ("clip", 224): (7, 7), ("clip", 288): (9, 9),
             ("clip", (95, 64)): (3, 2), ("v1", (33, 64)): (2, 2)}  # fmt: skip
    for (style, size), grid in grids.items():
        spec = ResNetSpec(image_size=size, style=style)
        assert (spec.grid, spec.tokens) == (grid, grid[0] * grid[1])
        if isinstance(size, int):
            continue
        tower = presets.resnet_tower(dict(image_size=size, style=style, widths=(8,) * 4, depths=(1,) * 4, stem_width=2),
                                     init="resnet")  # fmt: skip
        model, batch = helpers.build(dict(image=tower)), dict(image=jax.ShapeDtypeStruct((2, *size, 3), jnp.float32))
        params = jax.eval_shape(model.init, jax.random.key(0))
        tokens = jax.eval_shape(lambda p, b, m=model: m(p, b, TOKENS), params, batch)["image.tokens"]
        assert tokens.x.shape == (2, spec.tokens, 8) and tokens.pos.shape == (2, spec.tokens, 2)


def test_parameters_and_arithmetic_are_the_published_ones():
    model = helpers.build(dict(image=presets.classifier(presets.resnet("50", image_size=224), 1000)))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["image"])) == 25_557_032
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    flops = count_flops(lambda p, x: model(p, dict(image=x), POOLED), shapes, image)
    # 4.09 billion multiply-adds are given with those of the padding, which count nothing here.
    assert 3.9 < flops / 2e9 < 4.09
    clip = helpers.build(dict(image=presets.clip_resnet("RN50", image_size=224)))
    shapes = jax.eval_shape(clip.init, jax.random.key(0))["image"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 38_316_896


def test_blocks_start_as_the_identity_and_convolutions_as_published():
    own = lambda **changes: flatten_paths(
        jax.jit(helpers.build(dict(image=helpers.resnet(**changes))).init)(jax.random.key(0))
    )
    params = own(widths=(32, 64), stem_width=32)
    for path, value in params.items():
        last = "conv2/norm/scale" in path
        expected = {"scale": not last, "bias": 0, "mean": 0, "var": 1}.get(path.rpartition("/")[2])
        assert expected is None or np.all(value == expected), path
    kernel = params["image/embed/stages/1/layers/conv1/conv/kernel"]  # [blocks, 3, 3, 64, 64]
    np.testing.assert_allclose(np.std(kernel), np.sqrt(2 / (9 * 64)), rtol=0.02)
    tower = presets.resnet_tower(dict(image_size=16, depths=(1,), widths=(64,), stem_width=64, **CLIP), init="clip",
                                 pool="attention", embed_dim=32)  # fmt: skip
    params = flatten_paths(jax.jit(helpers.build(dict(image=tower)).init)(jax.random.key(0)))
    kernel = params["image/embed/stem/1/conv/kernel"]
    limit = (9 * 32) ** -0.5
    assert 0.98 * limit < np.max(np.abs(kernel)) <= limit
    for name in ("pool/query/kernel", "pool/position", "projection/kernel"):
        np.testing.assert_allclose(np.std(params[f"image/{name}"]), 64**-0.5, rtol=0.1, err_msg=name)
    assert not np.any(params["image/embed/stages/0/first/conv3/norm/scale"])


def test_recomputation_costs_what_it_says():
    """That they compute the same is what the golden files say, which run in all of these ways."""
    batch, keys, cost = helpers.batch(4), helpers.sample_keys(4), {}
    hows = {"plain": {}, "full": dict(remat="full"), "first": dict(remat=("full", "none")),
            "convolutions": dict(remat="convolutions", scan=True)}  # fmt: skip
    for name, how in hows.items():
        model = helpers.build(dict(image=helpers.resnet(**how)))
        loss = lambda p, m=model: jnp.sum(m(p, batch, POOLED, keys)["image.pooled"] ** 2)
        cost[name] = count_flops(jax.value_and_grad(loss), helpers.random_params(model))
    assert cost["convolutions"] == cost["plain"] < cost["first"] < cost["full"]


def test_a_decoder_attends_to_a_resnet_in_bfloat16():
    towers = helpers.coca()
    towers["image"] = helpers.resnet(pool="attention")
    model = helpers.build(towers, "bfloat16")
    params, batch = helpers.random_params(model), helpers.batch(4)
    want = frozenset({"caption.logits", "image.pooled", "image.tokens", "statistics"})
    with jax.set_mesh(helpers.mesh()):
        out = jax.jit(lambda p, b: model(p, b, want, helpers.sample_keys(4)))(params, batch)
        other = batch | dict(image=batch["image"][::-1])
        changed = jax.jit(lambda p, b: model(p, b, want, helpers.sample_keys(4)))(params, other)
    assert out["image.tokens"].x.dtype == jnp.bfloat16 and out["image.pooled"].dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(out["statistics"]))
    assert np.max(np.abs(out["caption.logits"] - changed["caption.logits"])) > 0.05


@pytest.mark.parametrize(
    "changes,message",
    [
        (dict(depths=(1, 2, 3)), r"depths \(1, 2, 3\) and widths \(8, 16\) must have an entry for each stage"),
        (dict(block="bottleneck", widths=(6, 16)), r"widths \(6, 16\) of bottlenecks must be multiples of 4"),
        (dict(style="clip"), "style 'clip' has bottlenecks only"),
        (dict(remat=("full",)), "remat .* must be one word, or one for each of the 2 stages"),
        (dict(widths=(8, 12)), "the last stage has 12 channels and the trunk is 16 wide"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, message):
    tower = helpers.resnet()
    tower["embed"].update(changes)
    with pytest.raises(ValueError, match=message):
        helpers.build(dict(image=tower))


def test_the_attention_pool_is_for_images_of_one_size():
    with pytest.raises(ValueError, match="position for each place of an image"):
        helpers.build(dict(text=helpers.text(pool="attention")))
    with pytest.raises(ValueError, match="pool_heads must divide the width 16, got 3"):
        helpers.build(dict(image=presets.with_head(helpers.resnet(pool="attention"), "pooled", pool_heads=3)))
    model = helpers.build(dict(image=helpers.resnet(pool="attention")))
    with pytest.raises(ValueError, match="the model expects 16 pixels, got images"):
        model(helpers.random_params(model), dict(image=np.zeros((1, 8, 16, 3), np.float32)), POOLED)


# ------------------------------------------------------------------------------------------- parts


@pytest.mark.parametrize("size,stride,groups", [(1, 2, 1), (3, 1, 2), (5, 2, 8)])
def test_convolutions_are_sums_over_windows(size, stride, groups):
    rng = np.random.default_rng(0)
    x, pad = rng.normal(size=(2, 7, 9, 8)).astype(np.float32), size // 2
    kernel = rng.normal(size=(size, size, 8 // groups, 16)).astype(np.float32)
    got = convolve(x, kernel, stride, pad, groups)
    wide = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    for i, j in ((0, 0), (1, 2)):
        window = wide[:, i * stride : i * stride + size, j * stride : j * stride + size]
        parts = zip(np.split(window, groups, -1), np.split(kernel, groups, -1))
        want = np.concatenate([np.einsum("bhwc,hwco->bo", part, own) for part, own in parts], axis=-1)
        np.testing.assert_allclose(got[:, i, j], want, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="3 groups do not divide 8 and 16 channels"):
        helpers.split(lambda draw: Conv(8, 16, 3, groups=3, draw=draw))


def test_pools_cut_or_pad_what_is_left_over():
    x = np.arange(2 * 5 * 7, dtype=np.float32).reshape(2, 5, 7, 1) - 40
    mean = mean_pool(x, 2)
    assert mean.shape == (2, 2, 3, 1) and mean[0, 1, 2, 0] == x[0, 2:4, 4:6].mean()
    largest = max_pool(jnp.asarray(x), 3, 2)
    assert (
        largest.shape == (2, 3, 4, 1) and largest[0, 0, 0, 0] == x[0, :2, :2].max() and largest[1, 2, 3, 0] == x.max()
    )
    np.testing.assert_array_equal(mean_pool(x, 1), x)
