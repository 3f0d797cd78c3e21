"""Mixed images: neighbours, in the shares that the weights say, the same however the batch is split."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.errors import DataError
from data_pipelines.images.mix import mix_images, mix_targets, swap_neighbours

IMAGES = np.random.default_rng(0).normal(size=(16, 12, 10, 3)).astype(np.float32)
KEYS = jax.random.split(jax.random.key(0), 16)
ORDER = np.arange(16) ^ 1


def mixed(images=IMAGES, keys=KEYS, **alphas) -> tuple[np.ndarray, np.ndarray]:
    found = jax.jit(lambda images, keys: mix_images(images, keys, **alphas))(images, keys)
    return np.asarray(found[0]), np.asarray(found[1])


def test_mixup_is_a_weighted_mean_of_neighbours():
    image, weight = mixed(mixup=0.4)
    w = weight[:, None, None, None]
    np.testing.assert_allclose(image, w * IMAGES + (1 - w) * IMAGES[ORDER], atol=1e-5)
    assert len(set(weight)) == 16 and weight.min() >= 0 and weight.max() <= 1


def test_cutmix_pastes_the_share_that_it_says():
    image, weight = mixed(cutmix=1.0)
    own = (image == IMAGES).all(-1)
    assert (own | (image == IMAGES[ORDER]).all(-1)).all()
    np.testing.assert_allclose(own.mean((1, 2)), weight, atol=1e-6)
    for kept in own:  # what is pasted is one rectangle
        y, x = np.nonzero(~kept)
        assert not y.size or (y.max() - y.min() + 1) * (x.max() - x.min() + 1) == y.size


def test_rectangles_are_the_papers():
    images = np.zeros((3000, 32, 24, 3), np.float32)
    _, weight = mixed(images, jax.random.split(jax.random.key(3), 3000), cutmix=1.0)
    rng = np.random.default_rng(0)
    half = np.sqrt(1 - rng.beta(1, 1, (20_000, 1))) * (32, 24) // 2
    centre = rng.integers(0, (32, 24), (20_000, 2))
    sides = np.minimum(centre + half, (32, 24)) - np.maximum(centre - half, 0)
    expected = 1 - sides.prod(1) / (32 * 24)
    np.testing.assert_allclose(np.quantile(weight, (0.1, 0.5, 0.9)), np.quantile(expected, (0.1, 0.5, 0.9)), atol=0.03)


def test_both_by_chance_of_one_half():
    images = np.tile(IMAGES[:2], (200, 1, 1, 1))
    image, weight = mixed(images, jax.random.split(jax.random.key(1), 400), mixup=0.5, cutmix=1.0)
    other = images[np.arange(400) ^ 1]
    pasted = ((image == images) | (image == other)).all((1, 2, 3))
    assert 160 < pasted.sum() < 240
    w = weight[~pasted, None, None, None]
    np.testing.assert_allclose(image[~pasted], w * images[~pasted] + (1 - w) * other[~pasted], atol=1e-5)


def test_weights_follow_the_beta_distribution():
    images = np.zeros((4000, 1, 1, 3), np.float32)
    _, weight = mixed(images, jax.random.split(jax.random.key(2), 4000), mixup=0.2)
    assert abs(weight.mean() - 0.5) < 0.03  # Beta(a, a): mean 1/2, variance 1 / (8 a + 4)
    assert abs(weight.var() - 1 / 5.6) < 0.01


@pytest.mark.parametrize("alphas", [dict(mixup=0.4), dict(cutmix=1.0), dict(mixup=0.4, cutmix=1.0)])
def test_neither_slices_nor_sharding_change_a_row(alphas):
    image, weight = mixed(**alphas)
    for rows in (slice(0, 4), slice(4, 16)):
        part = mixed(IMAGES[rows], KEYS[rows], **alphas)
        np.testing.assert_allclose(part[0], image[rows], atol=1e-6)
        np.testing.assert_allclose(part[1], weight[rows], atol=1e-6)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.NamedSharding(mesh, jax.P("data"))
    call = jax.jit(lambda i, k: mix_images(i, k, **alphas), in_shardings=sharding, out_shardings=sharding)
    program = call.lower(IMAGES, KEYS).compile()
    assert not any(
        word in program.as_text() for word in ("all-gather", "all-to-all", "collective-permute", "all-reduce")
    )
    found = program(jax.device_put(IMAGES, sharding), jax.device_put(KEYS, sharding))
    np.testing.assert_allclose(found[0], image, atol=1e-6)
    np.testing.assert_allclose(found[1], weight, atol=1e-6)


def test_targets_are_mixed_alike():
    targets = jax.nn.one_hot(jnp.arange(16) % 5, 5)
    _, weight = mixed(mixup=1.0)
    soft = np.asarray(mix_targets(targets, weight))
    np.testing.assert_allclose(soft.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(soft[3], weight[3] * targets[3] + (1 - weight[3]) * targets[2], atol=1e-6)
    np.testing.assert_array_equal(swap_neighbours(jnp.arange(6)), [1, 0, 3, 2, 5, 4])


def test_what_cannot_be_mixed():
    with pytest.raises(DataError, match="15 images cannot be mixed"):
        mix_images(IMAGES[:15], KEYS[:15], mixup=0.2)
    for alphas in ({}, dict(mixup=-0.1), dict(mixup=1.0, cutmix=-1.0)):
        with pytest.raises(DataError, match=r"mixup"):
            mix_images(IMAGES, KEYS, **alphas)
