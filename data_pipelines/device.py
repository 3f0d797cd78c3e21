"""What is done to pixels on the accelerator: random flips and colours, then normalisation. Runs inside `jax.jit`."""

from typing import Any

import jax
import jax.numpy as jnp

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as torchvision's grey


def preprocess_images(images: jax.Array, keys: jax.Array | None, spec: Any) -> jax.Array:
    """Turns pixels into the input of a tower.

    Args:
        images: uint8 [batch, height, width, 3], RGB.
        keys: a typed random key for each row, [batch]; what happens to a row depends on nothing else, so that slicing
            a batch never changes it. None for evaluation: no chance.
        spec: `config.data.image`: `flip`, `jitter`, `mean`, `std`.

    Returns:
        float32 [batch, height, width, 3], normalised.
    """
    with jax.named_scope("preprocess_images"):
        pixels = images.astype(jnp.float32) / 255
        if keys is not None and spec.flip:
            pixels = jax.vmap(_flip)(pixels, keys)
        if keys is not None and spec.jitter > 0:
            pixels = jax.vmap(_jitter, in_axes=(0, 0, None))(pixels, keys, spec.jitter)
        return (pixels - jnp.array(spec.mean)) / jnp.array(spec.std)


def _flip(pixels: jax.Array, key: jax.Array) -> jax.Array:
    return jnp.where(jax.random.bernoulli(jax.random.fold_in(key, 0)), pixels[:, ::-1], pixels)


def _jitter(pixels: jax.Array, key: jax.Array, strength: float) -> jax.Array:
    """Brightness, contrast, saturation, in this order, each blended by a factor in [1 - strength, 1 + strength]."""
    low = max(0.0, 1.0 - strength)
    brightness, contrast, saturation = jax.random.uniform(
        jax.random.fold_in(key, 1), (3,), minval=low, maxval=1.0 + strength
    )
    pixels = jnp.clip(pixels * brightness, 0, 1)
    mean = jnp.mean(_grey(pixels))
    pixels = jnp.clip(mean + contrast * (pixels - mean), 0, 1)
    grey = _grey(pixels)
    return jnp.clip(grey + saturation * (pixels - grey), 0, 1)


def _grey(pixels: jax.Array) -> jax.Array:
    # Products and a sum, not a matrix product, which an accelerator might round to bfloat16.
    return jnp.sum(pixels * jnp.array(_LUMA), axis=-1, keepdims=True)
