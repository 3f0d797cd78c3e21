"""Packed patches: positions as an image resize gives them, padding that nothing sees, one program for all shapes."""

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmodal.generation.autoregressive import generate
from xmodal.models import presets
from xmodal.models.naflex import places
from xmodal.models.resample import sample_grid

GRIDS = ((3, 5), (1, 16), (4, 4), (7, 2), (2, 3), (1, 1))
LENGTH, PATCH, SIDE = 16, helpers.PATCH, 5


def tower(**changes):
    """A tiny image tower for packed patches."""
    return presets.naflex(helpers.image("siglip", **changes), SIDE)


def batch(grids=GRIDS, length=LENGTH, seed=0):
    """Patches in about [-1, 1]; behind each picture lies noise."""
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(len(grids), length, 3 * PATCH**2)).astype(np.float32)
    return dict(image=image, image_grid=np.array(grids, np.int32))


def room(grids=GRIDS):
    return np.prod(grids, axis=1)


@pytest.fixture(scope="module")
def model():
    built = helpers.build(dict(image=tower()))
    return helpers.forward(built, "image.pooled", "image.tokens"), helpers.random_params(built)


@pytest.mark.parametrize("side", [5, 16])
def test_positions_are_those_of_an_image_resize(side):
    """Value and gradient, for grids that shrink, grow, and do both."""
    grids = np.array([*GRIDS, (16, 4), (20, 3), (8, 8), (2, 30), (64, 1)], np.int32)
    rng = np.random.default_rng(side)
    table, weight = rng.normal(size=(side**2, 12)).astype(np.float32), rng.normal(size=(len(grids), 64, 12))
    valid, pos = places(jnp.asarray(grids), 64)
    weight = (weight * np.asarray(valid)[..., None]).astype(np.float32)

    def ours(table):
        found = sample_grid(table, (side, side), jnp.asarray(grids), pos)
        return jnp.sum(found * weight), found

    def reference(table):
        total, found = 0.0, []
        for (down, across), own in zip(grids.tolist(), weight):
            shape = (down, across, table.shape[1])
            resized = jax.image.resize(table.reshape(side, side, -1), shape, "bilinear", antialias=True)
            found.append(resized.reshape(down * across, -1))
            total += jnp.sum(found[-1] * own[: down * across])
        return total, found

    (_, found), grad = jax.jit(jax.value_and_grad(ours, has_aux=True))(table)
    (_, expected), expected_grad = jax.jit(jax.value_and_grad(reference, has_aux=True))(table)
    for row, wanted in zip(found, expected):
        np.testing.assert_allclose(row[: len(wanted)], wanted, atol=1e-6)
        np.testing.assert_array_equal(row[len(wanted) :], np.broadcast_to(row[:1], row[len(wanted) :].shape))
    np.testing.assert_allclose(grad, expected_grad, atol=1e-5 * np.abs(expected_grad).max())


def test_padding_is_seen_by_nothing(model):
    run, params = model
    data, other = batch(), batch(seed=1)
    inside = np.arange(LENGTH) < room()[:, None]
    other["image"][inside] = data["image"][inside]
    a, b = run(params, data), run(params, other)
    np.testing.assert_array_equal(a["image.pooled"], b["image.pooled"])
    np.testing.assert_array_equal(a["image.tokens"].valid, inside)
    np.testing.assert_array_equal(np.asarray(a["image.tokens"].x)[inside], np.asarray(b["image.tokens"].x)[inside])
    assert not np.array_equal(a["image.tokens"].x, b["image.tokens"].x)


def test_a_picture_is_the_same_in_any_bucket_that_holds_it(model):
    run, params = model
    data = batch()
    short = run(params, data)
    for length in (20, 33):
        longer = batch(length=length, seed=length)
        longer["image"][:, :LENGTH] = data["image"]
        found = run(params, longer)
        np.testing.assert_allclose(found["image.pooled"], short["image.pooled"], atol=1e-6)
    # And whatever else is in its batch: rows in another order.
    order = np.arange(len(GRIDS))[::-1]
    turned = run(params, {name: array[order] for name, array in data.items()})
    np.testing.assert_allclose(turned["image.pooled"], np.asarray(short["image.pooled"])[order], atol=1e-6)


def test_the_shape_of_a_picture_counts(model):
    """The same patches laid out otherwise are another picture."""
    run, params = model
    flat, square = batch(((2, 8),) * 2), batch(((4, 4), (8, 2)))
    a, b = run(params, flat)["image.pooled"], run(params, square)["image.pooled"]
    assert np.all(np.max(np.abs(np.asarray(a) - b), axis=1) > 1e-3)


def test_one_program_serves_all_shapes():
    built = helpers.build(dict(image=tower()))
    params = helpers.random_params(built)
    run = jax.jit(lambda params, batch: built(params, batch, frozenset({"image.pooled"})))
    with jax.set_mesh(helpers.mesh()):
        for grid in ((1, 1), (16, 1), (3, 4)):
            run(params, batch((grid,) * 4))
        assert run._cache_size() == 1
        run(params, batch(((3, 4),) * 4, length=20))
        assert run._cache_size() == 2


def test_a_full_square_is_what_the_square_tower_computes(model):
    """The parameters mean the same, so that a run can go on with packed patches."""
    run, params = model
    square = helpers.build(dict(image=helpers.image("siglip", embed=dict(image_size=SIDE * PATCH))))
    pixels = np.random.default_rng(2).normal(size=(3, SIDE * PATCH, SIDE * PATCH, 3)).astype(np.float32)
    patches = pixels.reshape(3, SIDE, PATCH, SIDE, PATCH, 3).swapaxes(2, 3).reshape(3, SIDE**2, -1)
    packed = run(params, dict(image=patches, image_grid=np.full((3, 2), SIDE, np.int32)))
    expected = helpers.forward(square, "image.pooled")(params, dict(image=pixels))
    np.testing.assert_allclose(packed["image.pooled"], expected["image.pooled"], atol=2e-6)


def test_mean_pooling_leaves_padding_out():
    built = helpers.build(dict(image=tower(pool="mean", embed_dim=0)))
    run, data = helpers.forward(built, "image.tokens", "image.pooled"), batch()
    out = run(helpers.random_params(built), data)
    for tokens, pooled, n in zip(out["image.tokens"].x, out["image.pooled"], room()):
        np.testing.assert_allclose(pooled, np.asarray(tokens[:n]).mean(axis=0), atol=2e-6)


def test_bfloat16_is_close(model):
    run, params = model
    half = helpers.build(dict(image=tower()), dtype="bfloat16")
    found = helpers.forward(half, "image.pooled")(params, batch())["image.pooled"]
    exact = np.asarray(run(params, batch())["image.pooled"])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, exact, atol=0.05 * np.abs(exact).max())


def test_decoding_from_a_prefix_of_patches_is_the_parallel_forward():
    """GIT over packed patches: the cache has room for the padding, and hides it."""
    towers = helpers.git()
    towers["image"] = tower(pool="none")
    towers["image"]["embed"]["length"] = LENGTH
    built = helpers.build(towers)
    params, data = helpers.random_params(built), batch()
    marks = dict(bos_id=helpers.BOS, eos_id=helpers.EOS, pad_id=helpers.PAD)
    with jax.set_mesh(helpers.mesh()):
        written = jax.jit(lambda p, b: generate(built, p, b, tower="caption", length=6, **marks))(params, data)
    texts = dict(text=np.asarray(written), text_valid=np.ones(written.shape, bool))
    logits = helpers.forward(built, "caption.logits")(params, data | texts)["caption.logits"]
    greedy = np.argmax(logits, axis=-1)[:, :-1]
    ended = np.cumsum(np.asarray(written) == helpers.EOS, axis=1)[:, :-1] > 0
    np.testing.assert_array_equal(np.where(ended, helpers.PAD, greedy), written[:, 1:])


def test_what_does_not_fit_is_named(model):
    run, params = model
    with pytest.raises(ValueError, match="expects packed patches of 8 pixels and image_grid"):
        run(params, dict(image=batch()["image"]))
    with pytest.raises(ValueError, match=r"set naflex of the image input"):
        run(params, batch() | dict(image=np.zeros((6, LENGTH, 48), np.float32)))
    with pytest.raises(ValueError, match="no class token, norm or stem"):
        presets.naflex(helpers.image("clip"))


def test_pixels_beyond_the_last_patch_are_not_looked_at():
    """So400m/14 at 384 pixels: `ragged`."""
    ragged = helpers.build(dict(image=helpers.image("siglip", embed=dict(image_size=21, ragged=True))))
    whole = helpers.build(dict(image=helpers.image("siglip")))
    params = helpers.random_params(whole)
    pixels = np.random.default_rng(3).normal(size=(2, 21, 21, 3)).astype(np.float32)
    found = helpers.forward(ragged, "image.pooled")(params, dict(image=pixels))["image.pooled"]
    cut = helpers.forward(whole, "image.pooled")(params, dict(image=pixels[:, :16, :16]))["image.pooled"]
    np.testing.assert_array_equal(found, cut)
    with pytest.raises(ValueError, match=r"image size .* is not a multiple of the patch size 8"):
        helpers.build(dict(image=helpers.image("siglip", embed=dict(image_size=21))))
