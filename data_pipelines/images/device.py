"""What is done to pixels on the accelerator: random changes, then normalisation. Runs inside `jax.jit`."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from data_pipelines.errors import DataError
from data_pipelines.images.naflex import Naflex
from data_pipelines.images.policies import make_policy

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as torchvision's grey
_SIGMA, _SIGMA_SIDE = (0.1, 2.0), 224  # pixels of blur, at this size of image; in proportion at others
_ERASED, _ERASED_RATIO = (0.02, 0.33), (0.3, 3.3)  # share of the area and height / width of what is erased
_ERASE_ATTEMPTS = 10
_FILTERS = dict(bicubic="cubic", bilinear="linear", nearest="nearest")


def preprocess_images(images: jax.Array, keys: jax.Array | None, spec: Any) -> jax.Array:
    """Turns pixels into the input of a tower.

    Args:
        images: uint8 [batch, height, width, 3], RGB.
        keys: a typed random key for each row, [batch]; what happens to a row depends on nothing else, so that slicing
            a batch never changes it. None for evaluation: no chance.
        spec: an image input: in the order in which they act, `policy`, `flip`, `jitter`, `grey`, `blur`,
            `solarize`, `mean`, `std`, `erase`.

    Returns:
        float32 [batch, height, width, 3], normalised.

    Raises:
        DataError: as `check_augmentation`, while tracing.
    """
    check_augmentation(spec)
    with jax.named_scope("preprocess_images"):
        policy = make_policy(spec.policy, spec.where)
        if keys is not None and policy is not None:
            images = policy(images, jax.vmap(jax.random.fold_in, (0, None))(keys, 2))
        pixels = images.astype(jnp.float32) / 255
        if keys is not None and spec.flip:
            pixels = jax.vmap(_flip)(pixels, keys)
        for name, function in (("jitter", _jitter), ("grey", _decolour), ("blur", _blur), ("solarize", _solarize)):
            if keys is not None and getattr(spec, name) > 0:
                pixels = jax.vmap(function, in_axes=(0, 0, None))(pixels, keys, getattr(spec, name))
        pixels = (pixels - jnp.array(spec.mean)) / jnp.array(spec.std)
        if keys is not None and spec.erase > 0:
            pixels = jax.vmap(_erase, in_axes=(0, 0, None))(pixels, keys, spec.erase)
        return pixels


def preprocess_patches(patches: jax.Array, grid: jax.Array, keys: jax.Array | None, spec: Any) -> jax.Array:
    """Turns packed patches into the input of a tower; changes that need squares are refused by `Naflex.of`.

    Args:
        patches: uint8 [batch, length, 3 * patch_size**2], see `data_pipelines.images.naflex.pack`.
        grid: int32 [batch, 2], patches of each image (down, across).
        keys: as for `preprocess_images`.
        spec: an image input: in the order in which they act, `flip`, `jitter`, `grey`, `solarize`, `mean`, `std`.

    Returns:
        float32, of the shape of `patches`, normalised; padding is 0.
    """
    check_augmentation(spec)
    with jax.named_scope("preprocess_patches"):
        shape, side = patches.shape, spec.naflex.patch_size
        pixels = patches.reshape(*shape[:2], side**2, 3).astype(jnp.float32) / 255
        inside = (jnp.arange(shape[1]) < jnp.prod(grid, axis=1, keepdims=True))[:, :, None, None]
        if keys is not None and spec.flip:
            pixels = jax.vmap(_flip_patches)(pixels, grid, keys)
        if keys is not None and spec.jitter > 0:
            pixels = jax.vmap(_jitter, in_axes=(0, 0, None, 0))(pixels, keys, spec.jitter, inside)
        for name, function in (("grey", _decolour), ("solarize", _solarize)):
            if keys is not None and getattr(spec, name) > 0:
                pixels = jax.vmap(function, in_axes=(0, 0, None))(pixels, keys, getattr(spec, name))
        pixels = (pixels - jnp.array(spec.mean)) / jnp.array(spec.std)
        return jnp.where(inside, pixels, 0.0).reshape(shape)


def prepare_again(images: jax.Array, spec: Any, other: Any) -> jax.Array:
    """Turns the input of one model into that of another one, which so sees the same crop and the same changes.

    Args:
        images: float32 [batch, height, width, 3], as `preprocess_images` returns them with `spec`.
        spec: the image input of the model whose input they are.
        other: that of the other model: its `size`, `filter`, `mean`, `std` count.

    Returns:
        float32 [batch, size, size, 3].
    """
    with jax.named_scope("prepare_again"):
        shape = (images.shape[0], other.size, other.size, images.shape[3])
        if shape == images.shape and (*spec.mean, *spec.std) == (*other.mean, *other.std):
            return images
        pixels = images * jnp.array(spec.std) + jnp.array(spec.mean)
        if shape != images.shape:  # as in a file, values end at black and white
            pixels = jnp.clip(jax.image.resize(pixels, shape, _FILTERS[other.filter], antialias=True), 0, 1)
        return (pixels - jnp.array(other.mean)) / jnp.array(other.std)


def check_normalisation(spec: Any) -> None:
    """Raises DataError if an image input has a mean or standard deviation that pixels cannot be normalised by."""
    for name, least in (("mean", -math.inf), ("std", 0.0)):
        values = getattr(spec, name) if isinstance(getattr(spec, name), tuple | list) else (getattr(spec, name),)
        good = all(isinstance(x, int | float) and least < x < math.inf for x in values)
        if not good or len(values) not in (1, 3):
            above = " above 0" if name == "std" else ""
            raise DataError(
                f"{spec.where}.{name} is {getattr(spec, name)}; expected a finite number{above} for each of R, G, B"
            )


def check_augmentation(spec: Any) -> None:
    """Raises DataError if an image input asks for what does not exist, or not for its images, or cannot be."""
    check_normalisation(spec)
    Naflex.of(spec)
    make_policy(spec.policy, spec.where)
    if not 0 <= spec.jitter < math.inf:
        raise DataError(f"{spec.where}.jitter is {spec.jitter}; expected a strength from 0")
    for name in ("grey", "blur", "solarize", "erase"):
        if not 0 <= getattr(spec, name) <= 1:
            raise DataError(f"{spec.where}.{name} is {getattr(spec, name)}; expected a probability, 0 to 1")


def _flip(pixels: jax.Array, key: jax.Array) -> jax.Array:
    return jnp.where(jax.random.bernoulli(jax.random.fold_in(key, 0)), pixels[:, ::-1], pixels)


def _flip_patches(pixels: jax.Array, grid: jax.Array, key: jax.Array) -> jax.Array:
    """`_flip` of [length, patch_size**2, 3]: patches change places within their row, and are mirrored themselves."""
    length, area, _ = pixels.shape
    down, across = jnp.divmod(jnp.arange(length), grid[1])
    place = jnp.where(down < grid[0], (down + 1) * grid[1] - 1 - across, 0)
    side = math.isqrt(area)
    mirrored = pixels[place].reshape(length, side, side, 3)[:, :, ::-1].reshape(pixels.shape)
    return jnp.where(jax.random.bernoulli(jax.random.fold_in(key, 0)), mirrored, pixels)


def _jitter(pixels: jax.Array, key: jax.Array, strength: float, inside: jax.Array | None = None) -> jax.Array:
    """Brightness, contrast, saturation, in this order, each blended by a factor in [1 - strength, 1 + strength].

    The mean of the image is that of the pixels that are `inside`; None takes all.
    """
    low = max(0.0, 1.0 - strength)
    brightness, contrast, saturation = jax.random.uniform(
        jax.random.fold_in(key, 1), (3,), minval=low, maxval=1.0 + strength
    )
    pixels = jnp.clip(pixels * brightness, 0, 1)
    mean = jnp.mean(_grey(pixels), where=inside)
    pixels = jnp.clip(mean + contrast * (pixels - mean), 0, 1)
    grey = _grey(pixels)
    return jnp.clip(grey + saturation * (pixels - grey), 0, 1)


def _decolour(pixels: jax.Array, key: jax.Array, chance: float) -> jax.Array:
    chosen = jax.random.bernoulli(jax.random.fold_in(key, 3), chance)
    # Not `_grey`: a CPU takes eight times as long for its sum over the channels. The jitter keeps it for its last bit.
    red, green, blue = (pixels[..., i : i + 1] * weight for i, weight in enumerate(_LUMA))
    return jnp.where(chosen, red + green + blue, pixels)


def _blur(pixels: jax.Array, key: jax.Array, chance: float) -> jax.Array:
    """Gaussian blur of a random width, as in SimCLR (Chen et al. 2020)."""
    decide, width = jax.random.split(jax.random.fold_in(key, 4))
    side = min(pixels.shape[:2])
    sigma = jax.random.uniform(width, minval=_SIGMA[0], maxval=_SIGMA[1]) * side / _SIGMA_SIDE
    radius = min(math.ceil(3 * _SIGMA[1] * side / _SIGMA_SIDE), side - 1)
    distance = jnp.arange(-radius, radius + 1)
    weights = jnp.exp(-0.5 * (distance / sigma) ** 2)
    weights /= jnp.sum(weights)
    # The kernel of one pixel leaves the others exactly as they are.
    weights = jnp.where(jax.random.bernoulli(decide, chance), weights, distance == 0)
    return blurred(pixels, weights)


def blurred(pixels: jax.Array, weights: jax.Array) -> jax.Array:
    """Convolves float32 [height, width, 3] with `weights` [2 radius + 1] along both sides, mirrored at the border."""
    # Sums of slices: a convolution with weights of its own for each row would become one of many groups, which is slow.
    radius = len(weights) // 2
    for axis in range(2):
        size = pixels.shape[axis]
        padded = jnp.pad(pixels, [(radius, radius) if i == axis else (0, 0) for i in range(3)], mode="reflect")
        pixels = sum(w * jax.lax.slice_in_dim(padded, i, i + size, axis=axis) for i, w in enumerate(weights))
    return pixels


def _solarize(pixels: jax.Array, key: jax.Array, chance: float) -> jax.Array:
    """Inverts the brighter half of the values, as in BYOL (Grill et al. 2020)."""
    chosen = jax.random.bernoulli(jax.random.fold_in(key, 5), chance)
    return jnp.where(chosen & (pixels >= 0.5), 1 - pixels, pixels)


def _erase(pixels: jax.Array, key: jax.Array, chance: float) -> jax.Array:
    """Sets a random rectangle to zero, the mean colour (random erasing, Zhong et al. 2017)."""
    decide, area, ratio, top, left = jax.random.split(jax.random.fold_in(key, 6), 5)
    size = jnp.array(pixels.shape[:2])
    draw = lambda key, low, high: jax.random.uniform(key, (_ERASE_ATTEMPTS,), minval=low, maxval=high)
    area = draw(area, *_ERASED) * size[0] * size[1]
    ratio = jnp.exp(draw(ratio, *map(math.log, _ERASED_RATIO)))
    sides = jnp.round(jnp.stack([jnp.sqrt(area * ratio), jnp.sqrt(area / ratio)], axis=-1)).astype(jnp.int32)
    fits = jnp.all((sides > 0) & (sides < size), axis=-1)
    sides = sides[jnp.argmax(fits)]  # the first that fits
    start = jnp.stack(
        [jax.random.randint(key, (), 0, jnp.maximum(room, 1)) for key, room in zip((top, left), size - sides + 1)]
    )
    inside = lambda axis: (
        (jnp.arange(pixels.shape[axis]) >= start[axis]) & (jnp.arange(pixels.shape[axis]) < start[axis] + sides[axis])
    )
    erased = inside(0)[:, None] & inside(1) & jnp.any(fits) & jax.random.bernoulli(decide, chance)
    return jnp.where(erased[..., None], 0.0, pixels)


def _grey(pixels: jax.Array) -> jax.Array:
    # Products and a sum, not a matrix product, which an accelerator might round to bfloat16.
    return jnp.sum(pixels * jnp.array(_LUMA), axis=-1, keepdims=True)
