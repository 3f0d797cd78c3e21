"""A masked autoencoder is wired from parts: the encoder sees what was kept, the decoder guesses the rest."""

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmodal.models import presets
from xmodal.objectives.masked_pixels import DropPatches, MaskedPixels, patches

PIXELS, PATCH, WIDTH = 32, 8, helpers.WIDTH
COUNT = (PIXELS // PATCH) ** 2
SIZE = dict(image_size=PIXELS)
OBJECTIVE = MaskedPixels(patch_size=PATCH, rate=0.75)


def towers(**embed):
    """He et al. 2021: a ViT, and a narrower decoder with mask tokens and a head of pixels."""
    encoder = presets.without_heads(helpers.image("vit", embed=SIZE | dict(position="sincos") | embed), "pooled")
    decoder = presets.pixel_decoder(12, 1, 2, patch_size=PATCH, embed=SIZE)
    return dict(image=encoder, decoder=decoder)


@pytest.fixture(scope="module")
def parts():
    model = helpers.build(towers())
    rng = np.random.default_rng(0)
    batch = dict(image=rng.normal(size=(6, PIXELS, PIXELS, 3)).astype(np.float32))
    return model, helpers.random_params(model), batch


def test_the_view_keeps_a_share_in_order(parts):
    view, keys = DropPatches(patch_size=PATCH), helpers.sample_keys(6)
    out = view(parts[2], keys)
    keep, dropped = np.asarray(out["image_keep"]), np.asarray(out["image_dropped"])
    assert keep.shape == (6, COUNT // 4) and dropped.shape == (6, 3 * COUNT // 4)
    for row in range(6):
        assert sorted([*keep[row], *dropped[row]]) == list(range(COUNT))
    assert np.all(np.diff(keep, axis=1) > 0) and len(np.unique(keep, axis=0)) > 1
    np.testing.assert_array_equal(view(helpers.rows(parts[2], [2]), keys[2:3])["image_keep"][0], keep[2])


def test_the_encoder_sees_only_what_was_kept_and_the_decoder_puts_it_in_its_place(parts):
    model, params, batch = parts
    batch = OBJECTIVE.view(batch, helpers.sample_keys(6))
    run = helpers.forward(model, "image.tokens", "decoder.pixels")
    out = run(params, batch)
    assert out["image.tokens"].x.shape[1] == 1 + COUNT // 4
    assert out["decoder.pixels"].shape == (6, COUNT, 3 * PATCH**2)
    # Pixels of a patch that was left out change nothing, those of one that was kept do.
    grid = patches(jnp.asarray(batch["image"]), PATCH)
    hidden, shown = int(batch["image_dropped"][0, 0]), int(batch["image_keep"][0, 0])

    def with_patch(number):
        y, x = divmod(number, PIXELS // PATCH)
        image = batch["image"].copy()
        image[0, y * PATCH : (y + 1) * PATCH, x * PATCH : (x + 1) * PATCH] += 1.0
        return batch | dict(image=image)

    assert np.abs(patches(jnp.asarray(with_patch(hidden)["image"]), PATCH) - grid)[0, hidden].min() > 0.9
    np.testing.assert_array_equal(run(params, with_patch(hidden))["decoder.pixels"], out["decoder.pixels"])
    assert np.abs(run(params, with_patch(shown))["decoder.pixels"] - out["decoder.pixels"])[0].max() > 1e-4
    # All patches kept are the image without a mask.
    whole = dict(batch, image_keep=np.broadcast_to(np.arange(COUNT), (6, COUNT)))
    plain = {name: a for name, a in batch.items() if name == "image"}
    np.testing.assert_allclose(
        run(params, whole)["decoder.pixels"], run(params, plain)["decoder.pixels"], rtol=1e-5, atol=1e-5
    )


def test_random_patch_dropout_tells_the_decoder_too():
    model = helpers.build(towers(patch_dropout=0.5))
    image = np.zeros((2, PIXELS, PIXELS, 3), np.float32)
    out = helpers.forward(model, "image.tokens", "decoder.pixels")(
        helpers.random_params(model), dict(image=image), helpers.sample_keys(2)
    )
    assert out["image.tokens"].index.shape == (2, 1 + COUNT // 2)
    assert out["decoder.pixels"].shape == (2, COUNT, 3 * PATCH**2)


@pytest.mark.parametrize("normalize", [True, False])
def test_loss_follows_the_formula(parts, normalize):
    objective = MaskedPixels(patch_size=PATCH, normalize=normalize)
    batch = objective.view(parts[2], helpers.sample_keys(6))
    guess = np.random.default_rng(1).normal(size=(6, COUNT, 3 * PATCH**2)).astype(np.float32)
    losses = []
    for row in range(6):
        for number in np.asarray(batch["image_dropped"][row]):
            y, x = divmod(int(number), PIXELS // PATCH)
            target = batch["image"][row, y * PATCH : (y + 1) * PATCH, x * PATCH : (x + 1) * PATCH].reshape(-1)
            if normalize:
                target = (target - target.mean()) / np.sqrt(target.var(ddof=1) + 1e-6)
            losses.append(np.mean((guess[row, number] - target) ** 2))
    total, weight, *_ = objective({"decoder.pixels": jnp.asarray(guess)}, batch, {}, None)
    np.testing.assert_allclose(total / weight, np.mean(losses), rtol=1e-5)


def test_it_learns_and_every_parameter_takes_part(parts):
    _, params, batch = parts
    losses = helpers.losses(towers(), dict(pixels=OBJECTIVE), helpers.mesh())
    with jax.set_mesh(helpers.mesh()):
        run = jax.jit(lambda p: losses.value_and_grad(p, batch, helpers.sample_keys(6))[0::1])
        (loss, *_), grads = run(params | {"objectives": {}})
        assert np.isfinite(loss)
        for path, grad in jax.tree.leaves_with_path({name: grads[name] for name in ("image", "decoder")}):
            name = jax.tree_util.keystr(path)
            assert np.max(np.abs(grad)) > 0 or "'key']['bias']" in name, name
        stepped = jax.tree.map(lambda p, g: p - 0.02 * g, params, {name: grads[name] for name in params})
        (after, *_), _ = run(stepped | {"objectives": {}})
    assert after < loss


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"patch_size is 16, and .*pixels\.patch_size is 8"):
        MaskedPixels().check(helpers.build(towers()).spec)
    with pytest.raises(ValueError, match="between 0 and 1"):
        MaskedPixels(rate=1.0)
