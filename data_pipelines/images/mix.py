"""Mixed images: mixup (Zhang et al. 2017) and cutmix (Yun et al. 2019), on the device.

The partner of a row is its neighbour: rows 0 and 1, 2 and 3, and so on. Neighbours are consecutive samples of one lane
of the shuffled stream, so they are as random as any other pair; and where each device holds an even number of rows of
each micro-batch, a pair is never split: neither sharding nor accumulation changes what is mixed, and no pixels travel.

What a row shows is then two samples, by shares: of two classes, or of two captions that both belong to it. Objectives
that know of one sample a row, such as captioning, cannot use mixed images.
"""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import betaincinv

from data_pipelines.errors import DataError

_QUANTILES = 4096  # between which the distribution of the shares is taken to be even


def mix_images(
    images: jax.Array, keys: jax.Array, *, mixup: float = 0.0, cutmix: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """Mixes each image with its neighbour's.

    Args:
        images: float [batch, height, width, 3], as `preprocess_images` returns them.
        keys: typed random keys [batch], used for nothing else; how much of its neighbour a row gets depends on its own.
        mixup: parameter of the symmetric Beta distribution of the share of the image in a weighted mean; 0 never takes
            one. Zhang et al. use 0.2 on ImageNet.
        cutmix: the same of the area that stays beside a pasted rectangle; Yun et al. use 1. Where both are above 0,
            each row takes either with a probability of one half.

    Returns:
        The images, mixed, and float32 [batch], the share of the row's own target: see `mix_targets`.

    Raises:
        DataError: the batch has an odd number of rows, or a parameter is negative or both are 0.
    """
    if min(mixup, cutmix) < 0 or max(mixup, cutmix) == 0:
        raise DataError(f"mixup={mixup} and cutmix={cutmix}: expected numbers from 0, not both 0")
    with jax.named_scope("mix_images"):
        others = swap_neighbours(images)
        return jax.vmap(_mix, in_axes=(0, 0, 0, None, None))(images, others, keys, mixup, cutmix)


def mix_targets(targets: jax.Array, mix_weight: jax.Array) -> jax.Array:
    """Returns the soft targets of mixed images: [batch, classes], from those of the images and `mix_weight` [batch]."""
    weight = mix_weight[:, None]
    return weight * targets + (1 - weight) * swap_neighbours(targets)


def swap_neighbours(rows: jax.Array) -> jax.Array:
    """Returns rows 1, 0, 3, 2, ... of an array [batch, ...]: the partners of `mix_images`."""
    if len(rows) % 2:
        raise DataError(f"a batch of {len(rows)} images cannot be mixed in pairs; expected an even number")
    return jnp.flip(rows.reshape(-1, 2, *rows.shape[1:]), axis=1).reshape(rows.shape)


def _mix(
    image: jax.Array, other: jax.Array, key: jax.Array, mixup: float, cutmix: float
) -> tuple[jax.Array, jax.Array]:
    choice, share, place = jax.random.split(key, 3)
    pastes = jax.random.bernoulli(choice) if mixup and cutmix else bool(cutmix)
    chance = jax.random.uniform(share)
    weight = jnp.where(pastes, _beta(chance, cutmix), _beta(chance, mixup))
    blended = weight * image + (1 - weight) * other
    pasted = _rectangle(image.shape, 1 - weight, place)
    result = jnp.where(pastes, jnp.where(pasted[..., None], other, image), blended)
    return result.astype(image.dtype), jnp.where(pastes, 1 - jnp.mean(pasted, dtype=jnp.float32), weight)


def _beta(chance: jax.Array, alpha: float) -> jax.Array:
    """The `chance`-quantile of Beta(alpha, alpha)."""
    # From a table, as jax.random.beta draws until all rows are accepted: a loop in which all devices have to agree.
    if not alpha:
        return jnp.float32(1)
    quantiles = jnp.array(betaincinv(alpha, alpha, np.linspace(0, 1, _QUANTILES + 1)), jnp.float32)
    place = chance * _QUANTILES
    below = place.astype(jnp.int32)
    return quantiles[below] + (place - below) * (quantiles[below + 1] - quantiles[below])


def _rectangle(shape: tuple[int, ...], area: jax.Array, key: jax.Array) -> jax.Array:
    """Bool [height, width]: a rectangle of the image's shape and an `area` from 0 to 1, cut off at the border."""
    sides = jnp.array(shape[:2])
    half = jnp.round(sides * jnp.sqrt(area)).astype(jnp.int32) // 2
    centre = jnp.floor(jax.random.uniform(key, (2,)) * sides).astype(jnp.int32)
    inside = lambda axis: jnp.abs(jnp.arange(shape[axis]) - centre[axis] + 0.5) < half[axis]
    return inside(0)[:, None] & inside(1)[None, :]
