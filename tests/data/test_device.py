"""Pixels on the device: normalised, and random by row and nothing else."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps
from tiny_inputs import LooseImage

from data_pipelines.errors import DataError
from data_pipelines.images.device import blurred, check_augmentation, preprocess_images
from data_pipelines.images.policies import make_policy


@pytest.fixture
def spec():
    return LooseImage()


IMAGES = np.random.default_rng(0).integers(0, 256, (8, 6, 6, 3), dtype=np.uint8)
KEYS = jax.random.split(jax.random.key(0), 8)
ALL = dict(flip=True, policy="trivial", jitter=0.4, grey=0.5, blur=0.5, solarize=0.5, erase=0.5)


def test_normalised(spec):
    found = jax.jit(lambda x: preprocess_images(x, None, spec))(IMAGES)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, (IMAGES / 255 - np.array(spec.mean)) / np.array(spec.std), atol=1e-5)


def test_evaluation_and_plain_training_use_no_chance(spec):
    plain = preprocess_images(IMAGES, None, spec)
    np.testing.assert_array_equal(preprocess_images(IMAGES, KEYS, spec), plain)
    spec.update(**ALL)
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
    spec.update(**ALL)
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


PICTURE = np.asarray(Image.fromarray(IMAGES[0]).resize((40, 32), Image.Resampling.BICUBIC))


def pixels_of(spec, images=PICTURE[None], keys=KEYS[:1]) -> np.ndarray:
    """What preprocessing gives, in the units of the input."""
    spec.mean, spec.std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return 255 * np.asarray(jax.jit(lambda x, k: preprocess_images(x, k, spec))(images, keys))


def test_grey_and_solarize_are_pillows(spec):
    spec.grey = 1.0
    grey = np.asarray(Image.fromarray(PICTURE).convert("L"), float)[..., None]
    np.testing.assert_allclose(pixels_of(spec)[0], np.broadcast_to(grey, PICTURE.shape), atol=0.51)
    spec.grey, spec.solarize = 0.0, 1.0
    np.testing.assert_allclose(pixels_of(spec)[0], ImageOps.solarize(Image.fromarray(PICTURE)), atol=1e-3)


@pytest.mark.parametrize("sigma", [0.4, 1.0, 2.0])
def test_blur_is_a_gaussian(sigma):
    distance = np.arange(-6, 7)
    weights = np.exp(-0.5 * (distance / sigma) ** 2)
    found = jax.jit(blurred)(PICTURE.astype(np.float32), (weights / weights.sum()).astype(np.float32))
    mirrored = cv2.GaussianBlur(PICTURE.astype(np.float32), (13, 13), sigma, borderType=cv2.BORDER_REFLECT_101)
    np.testing.assert_allclose(found, mirrored, atol=1e-2)
    pillow = np.asarray(Image.fromarray(PICTURE).filter(ImageFilter.GaussianBlur(sigma)), float)
    # Pillow repeats the border and approximates the kernel by boxes.
    assert np.abs(found - pillow)[6:-6, 6:-6].mean() < 1


def test_blur_takes_widths_in_proportion_to_the_image(spec):
    spec.blur = 0.5
    dot = np.zeros((1, 112, 112, 3), np.uint8)
    dot[0, 56, 56] = 255
    keys = jax.random.split(jax.random.key(4), 120)
    found = pixels_of(spec, np.broadcast_to(dot, (120, 112, 112, 3)), keys)[..., 0] / 255
    np.testing.assert_allclose(found.sum((1, 2)), 1, atol=1e-4)
    sigma = np.sqrt((found.sum(1) * (np.arange(112) - 56) ** 2).sum(1))
    assert 45 < (sigma > 0.05).sum() < 75  # the other half is not blurred
    sigma = sigma[sigma > 0.05]
    assert sigma.max() < 1.0 and sigma.max() > 0.9 and 0.4 < sigma.mean() < 0.65  # half of 0.1 to 2


@pytest.mark.parametrize("name", ["grey", "solarize", "erase"])
def test_probabilities(spec, name):
    spec[name] = 0.3
    keys = jax.random.split(jax.random.key(1), 400)
    found = pixels_of(spec, np.broadcast_to(PICTURE, (400, *PICTURE.shape)), keys)
    same = (np.abs(found - PICTURE) < 1e-3).all((1, 2, 3))
    assert 0.2 < 1 - same.mean() < 0.4


def test_erased_rectangles(spec):
    spec.erase = 1.0
    keys = jax.random.split(jax.random.key(2), 300)
    found = np.asarray(preprocess_images(np.full((300, 48, 64, 3), 200, np.uint8), keys, spec))
    erased = (found == 0).all(-1)
    y, x = erased.any(2), erased.any(1)
    np.testing.assert_array_equal(erased, y[:, :, None] & x[:, None, :])
    height, width = y.sum(1), x.sum(1)
    for line, length in ((y, height), (x, width)):  # without gaps
        np.testing.assert_array_equal(line.shape[1] - line[:, ::-1].argmax(1) - line.argmax(1), length)
    area, ratio = height * width / (48 * 64), height / width
    assert area.min() > 0.015 and area.max() < 0.35 and 0.12 < area.mean() < 0.2
    assert ratio.min() > 0.27 and ratio.max() < 3.6 and abs(np.log(ratio).mean()) < 0.15
    dots = np.full((300, 1, 1, 3), 200, np.uint8)  # nothing fits into them
    assert (np.asarray(preprocess_images(dots, keys, spec)) != 0).all()
    assert y[:, 0].any() and y[:, -1].any() and x[:, 0].any() and x[:, -1].any()


def test_a_policy_acts_on_the_pixels_as_they_come(spec):
    spec.policy = "randaugment"
    policy = jax.jit(jax.vmap(jax.random.fold_in, (0, None)))(KEYS, 2)
    np.testing.assert_allclose(pixels_of(spec, IMAGES, KEYS), make_policy("randaugment")(IMAGES, policy), atol=1e-3)


def test_options_are_checked(spec):
    for name, value in (("grey", 1.5), ("blur", -0.1), ("erase", 2.0), ("solarize", float("nan")), ("jitter", -1.0)):
        spec[name] = value
        with pytest.raises(DataError, match=rf"data\.inputs\.image\.{name} is"):
            check_augmentation(spec)
        spec[name] = 0.0
    spec.policy = "randomaugment"
    with pytest.raises(DataError, match="did you mean 'randaugment'"):
        preprocess_images(IMAGES, None, spec)
