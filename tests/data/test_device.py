"""Pixels on the device: normalised, and random by row and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.base import get_config
from data_pipelines.device import preprocess_images


@pytest.fixture
def spec():
    return get_config().data.image


IMAGES = np.random.default_rng(0).integers(0, 256, (8, 6, 6, 3), dtype=np.uint8)
KEYS = jax.random.split(jax.random.key(0), 8)


def test_normalised(spec):
    found = jax.jit(lambda x: preprocess_images(x, None, spec))(IMAGES)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, (IMAGES / 255 - np.array(spec.mean)) / np.array(spec.std), atol=1e-5)


def test_evaluation_and_plain_training_use_no_chance(spec):
    plain = preprocess_images(IMAGES, None, spec)
    np.testing.assert_array_equal(preprocess_images(IMAGES, KEYS, spec), plain)
    spec.flip, spec.jitter = True, 0.4
    np.testing.assert_array_equal(preprocess_images(IMAGES, None, spec), plain)


def test_flip_mirrors_about_half(spec):
    spec.flip = True
    keys = jax.random.split(jax.random.key(1), 200)
    images = np.broadcast_to(IMAGES[:1], (200, 6, 6, 3))
    found = np.asarray(jax.jit(lambda x, k: preprocess_images(x, k, spec))(images, keys))
    plain = np.asarray(preprocess_images(IMAGES[:1], None, spec)[0])
    flipped = [np.allclose(row, plain[:, ::-1], atol=1e-5) for row in found]
    assert all(f or np.allclose(row, plain, atol=1e-5) for f, row in zip(flipped, found))
    assert 70 < sum(flipped) < 130


def test_a_row_depends_on_its_key_alone(spec):
    spec.flip, spec.jitter = True, 0.4
    call = jax.jit(lambda x, k: preprocess_images(x, k, spec))
    whole = call(IMAGES, KEYS)
    parts = jnp.concatenate([call(IMAGES[:4], KEYS[:4]), call(IMAGES[4:], KEYS[4:])])
    np.testing.assert_allclose(parts, whole, atol=1e-6)
    assert not np.allclose(call(IMAGES, KEYS[::-1]), whole, atol=0.1)


def test_jitter_is_what_it_says(spec):
    spec.jitter, spec.mean, spec.std = 0.4, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    found = np.asarray(jax.jit(lambda x, k: preprocess_images(x, k, spec))(IMAGES, KEYS))
    assert found.min() >= 0 and found.max() <= 1
    assert np.abs(found - IMAGES / 255).mean() > 0.02
    draw = lambda key: jax.random.uniform(jax.random.fold_in(key, 1), (3,), minval=0.6, maxval=1.4)
    for row, image, (b, c, s) in zip(found, IMAGES, np.asarray(jax.jit(jax.vmap(draw))(KEYS))):
        luma = np.array([0.299, 0.587, 0.114])
        x = np.clip(image / 255 * b, 0, 1)
        x = np.clip((x @ luma).mean() * (1 - c) + x * c, 0, 1)
        grey = (x @ luma)[..., None]
        np.testing.assert_allclose(row, np.clip(grey * (1 - s) + x * s, 0, 1), atol=1e-5)
