"""Embedders: patches are convolutions, positions are where they say, and options change what they name."""

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmodal.models.layers import patches_matmul, rotary, sincos_positions
from xmodal.models.resample import resample_grid
from xmodal.paths import flatten_paths


def embedded(tower, batch):
    """The tokens that enter the trunk, and the embedder's parameters."""
    model = helpers.build(dict(tower=tower))
    params = helpers.random_params(model)
    return model.bind(params).tower.embed(batch)[0], params["tower"]["embed"]


def test_patches_are_a_strided_convolution():
    rng = np.random.default_rng(0)
    images, kernel = rng.normal(size=(2, 12, 8, 3)), rng.normal(size=(4, 4, 3, 5))
    wanted = jax.lax.conv_general_dilated(
        jnp.float32(images), jnp.float32(kernel), (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    got = patches_matmul(jnp.float32(images), jnp.float32(kernel))
    np.testing.assert_allclose(got, wanted.reshape(2, 6, 5), rtol=1e-4, atol=1e-4)


def test_image_tokens_are_patches_class_token_and_positions():
    batch = helpers.batch(2)
    tokens, params = embedded(helpers.image(style="siglip", embed=dict(class_token=True)), batch)
    patches = patches_matmul(batch["image"], params["kernel"]) + params["bias"]
    np.testing.assert_allclose(tokens.x[:, 1:], patches + params["position"][1:], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(tokens.x[0, 0], params["class_token"] + params["position"][0], rtol=1e-6)
    assert tokens.pos[1].tolist() == [[0, 0], [0, 0], [0, 1], [1, 0], [1, 1]]  # class token, then row by row
    assert tokens.valid is tokens.group is None


def test_registers_stand_between_class_token_and_patches_without_positions():
    batch = helpers.batch(2)
    tower = helpers.image(style="siglip", embed=dict(class_token=True, registers=2))
    tokens, params = embedded(tower, batch)
    assert tokens.x.shape[1] == 1 + 2 + helpers.PATCHES and params["position"].shape[0] == 1 + helpers.PATCHES
    np.testing.assert_array_equal(tokens.x[1, 1:3], params["registers"])
    patches = patches_matmul(batch["image"], params["kernel"]) + params["bias"]
    np.testing.assert_allclose(tokens.x[:, 3:], patches + params["position"][1:], rtol=1e-5, atol=1e-5)
    assert tokens.pos[0, :4].tolist() == [[0, 0]] * 4
    model = helpers.build(dict(tower=helpers.image(embed=dict(registers=2, patch_dropout=0.5))))
    kept = model.bind(helpers.random_params(model)).tower.embed(batch, helpers.sample_keys(2))[0]
    assert kept.x.shape[1] == 3 + helpers.PATCHES // 2, "registers are never left out"


def test_positions_of_another_size_are_resampled_and_learn():
    tower = helpers.image(style="siglip", embed=dict(position_size=4 * helpers.PATCH))
    model = helpers.build(dict(tower=tower))
    params = helpers.random_params(model)
    table = params["tower"]["embed"]["position"]
    assert table.shape[0] == 16
    embed = lambda p: model.bind(p).tower.embed(helpers.batch(2))[0].x
    flat = {**params, "tower": {**params["tower"], "embed": {**params["tower"]["embed"], "position": table * 0 + 3.0}}}
    zero = {**params, "tower": {**params["tower"], "embed": {**params["tower"]["embed"], "position": table * 0}}}
    np.testing.assert_allclose(embed(flat) - embed(zero), 3.0, rtol=1e-5)  # the filters keep what is constant
    grads = jax.grad(lambda p: jnp.sum(embed(p)))(params)["tower"]["embed"]["position"]
    np.testing.assert_allclose(jnp.sum(grads, axis=0), 2 * helpers.PATCHES, rtol=1e-5)


@pytest.mark.parametrize("how", ["bicubic", "bicubic_antialias"])
def test_resampling_keeps_straight_lines_and_the_prefix(how):
    old, new = (9, 9), (7, 18)
    rows, columns = np.meshgrid(np.arange(9) + 0.5, np.arange(9) + 0.5, indexing="ij")
    table = np.stack([rows.ravel(), columns.ravel()], axis=1)
    table = jnp.float32(np.concatenate([[[-5.0, 8.0]], table]))
    got = resample_grid(table, old, new, how)
    np.testing.assert_array_equal(got[0], table[0])
    inner = np.asarray(got[1:]).reshape(*new, 2)[2:-2, 5:-5]  # away from the edges
    np.testing.assert_allclose(inner[:, 0, 0], (np.arange(2, 5) + 0.5) * 9 / 7, atol=0.06)
    np.testing.assert_allclose(inner[0, :, 1], (np.arange(5, 13) + 0.5) / 2, atol=0.06)
    assert resample_grid(table, old, old, how) is table


def test_rotary_positions_of_patches_see_only_offsets():
    """Attention logits of 2-D rotary positions depend on the difference of row and of column alone."""
    rng = np.random.default_rng(0)
    q, k = (jnp.float32(rng.normal(size=(1, 1, 1, 8))) for _ in range(2))
    logit = lambda a, b: jnp.sum(rotary(q, jnp.int32([[a]]), 100.0) * rotary(k, jnp.int32([[b]]), 100.0))
    np.testing.assert_allclose(logit((3, 4), (1, 6)), logit((2, 0), (0, 2)), rtol=1e-5)
    assert abs(logit((3, 4), (1, 6)) - logit((3, 4), (6, 1))) > 1e-2
    with pytest.raises(ValueError, match="a multiple of 4, got 6"):
        rotary(q[..., :6], jnp.int32([[(0, 0)]]), 100.0)


def test_a_tower_with_rotary_positions_knows_where_patches_are():
    tower = helpers.image(rope=100.0, embed=dict(position="none"))
    model = helpers.build(dict(tower=tower))
    params, batch = helpers.random_params(model), helpers.batch(2)
    assert "position" not in params["tower"]["embed"]
    run = jax.jit(lambda images: model(params, dict(image=images), frozenset({"tower.pooled"}))["tower.pooled"])
    turned = jnp.roll(batch["image"], helpers.PATCH, axis=1)  # the same patches at other places
    assert np.max(np.abs(run(batch["image"]) - run(turned))) > 1e-3


def test_fixed_positions_are_sines_of_column_and_row():
    """MoCo v3's grid: a quarter each for sine and cosine of the column, then of the row."""
    down, across, width = 2, 3, 8
    got = sincos_positions((down, across), width, temperature=100.0)
    for row in range(down):
        for column in range(across):
            angles = [place * 100.0**-power for place in (column, row) for power in (0.0, 1.0)]
            wanted = np.concatenate([f(part) for part in np.split(np.array(angles), 2) for f in (np.sin, np.cos)])
            np.testing.assert_allclose(got[row * across + column], wanted, atol=1e-6)
    batch = helpers.batch(2)
    tokens, params = embedded(helpers.image(style="siglip", embed=dict(position="sincos")), batch)
    assert "position" not in params
    patches = patches_matmul(batch["image"], params["kernel"]) + params["bias"]
    np.testing.assert_allclose(
        tokens.x - patches, np.tile(sincos_positions((2, 2), helpers.WIDTH), (2, 1, 1)), atol=1e-5
    )


def test_a_stem_shrinks_the_image_before_the_patches():
    tower = helpers.image(embed=dict(stem=((4, 3, 2), (6, 3, 2), (6, 3, 1))))
    tokens, params = embedded(tower, helpers.batch(2))
    assert tokens.x.shape == (2, 1 + helpers.PATCHES, helpers.WIDTH)
    assert params["kernel"].shape == (2, 2, 6, helpers.WIDTH)  # 8 pixels are 2 after the strides 2, 2, 1
    model = helpers.build(dict(tower=tower))
    batch, everything = helpers.batch(2), helpers.random_params(model)
    with jax.set_mesh(helpers.mesh()):
        grads = jax.jit(
            jax.grad(lambda p: jnp.sum(jnp.sin(model(p, batch, frozenset({"tower.pooled"}))["tower.pooled"])))
        )(everything)
    for path, grad in flatten_paths(grads["tower"]["embed"]).items():
        assert np.max(np.abs(grad)) > 1e-5, path
    with pytest.raises(ValueError, match="patch_size 8 is not a multiple of the strides of the stem, 16"):
        helpers.build(dict(tower=helpers.image(embed=dict(stem=((4, 3, 2),) * 4))))


def test_images_that_patches_do_not_fill_are_refused():
    with pytest.raises(ValueError, match=r"image size \(20, 16\) is not a multiple of the patch size 8"):
        helpers.build(dict(tower=helpers.image(embed=dict(image_size=(20, 16)))))


def test_text_tokens_are_words_and_positions():
    batch = helpers.batch(3)
    tokens, params = embedded(helpers.text(), batch)
    wanted = params["embedding"][batch["text"]] + params["position"]
    np.testing.assert_allclose(tokens.x, wanted, rtol=1e-6)
    assert tokens.pos[2, :, 0].tolist() == list(range(helpers.LENGTH))
    np.testing.assert_array_equal(tokens.valid, batch["text_valid"])
    assert np.all(np.asarray(tokens.group) == 1)

    tokens, params = embedded(helpers.text(embed=dict(position="none", scale=True, causal=False)), batch)
    np.testing.assert_allclose(tokens.x, params["embedding"][batch["text"]] * helpers.WIDTH**0.5, rtol=1e-6)
    assert "position" not in params
    assert tokens.group is None

    tokens, params = embedded(helpers.text(embed=dict(norm=True, mask_padding=False)), batch)
    x = params["embedding"][batch["text"]] + params["position"]
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(tokens.x, x * params["norm"]["scale"] + params["norm"]["bias"], rtol=1e-4, atol=1e-5)
    assert tokens.valid is None


def test_a_step_of_decoding_takes_its_own_positions():
    batch = helpers.batch(3)
    whole, _ = embedded(helpers.text(), batch)
    part = dict(text=batch["text"][:, 3:5], text_pos=np.array([[3, 4]] * 3))
    tokens, _ = embedded(helpers.text(), part)
    np.testing.assert_array_equal(tokens.x, whole.x[:, 3:5])
    np.testing.assert_array_equal(tokens.pos, whole.pos[:, 3:5])
