"""Augmentation policies on the device: RandAugment, TrivialAugment and AutoAugment, in Pillow's operations on uint8.

The rows of a batch take different operations, and a `lax.switch` under `vmap` would compute every operation for every
row. So each row goes once through a form that all operations share, and the operation only chooses its numbers:

    warp   one affine map, nearest pixel, in Pillow's 16.16 fixed point      ShearX ShearY TranslateX TranslateY Rotate
    table  256 entries for each channel     Brightness Contrast Posterize Solarize AutoContrast Equalize Invert
    blend  with the row's grey or its smoothed version                       Color Sharpness

An operation leaves the other two at their identity, which is exact. Measured at 224 pixels on a CPU: 2 ms of one core
for each image and operation, of which the histogram for Equalize is 1.2, against 8 ms with a switch. Not measured on
accelerators; these are two gathers and one scatter of every pixel, which a TPU does slowly.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.errors import DataError, did_you_mean

OPERATIONS = (
    "Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast",
    "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize", "Invert",
)  # fmt: skip
FILL = 128  # what a warp brings in from outside, as in the authors' code of AutoAugment and RandAugment
_LEVELS = 30  # strength of RandAugment and TrivialAugment is counted from 0 to this
_NAMES = ("randaugment", "trivial", "autoaugment")

Policy = Callable[[jax.Array, jax.Array], jax.Array]


@dataclass(frozen=True)
class _Ranges:
    """The strongest that a policy makes each operation.

    Attributes:
        shear: pixels moved per pixel of distance.
        translate: share of the side, or pixels where above 1.
        rotate: degrees.
        enhance: distance of a blending factor from 1 (brightness, colour, contrast, sharpness).
        posterize: bits taken away.
    """

    shear: float = 0.3
    translate: float = 150 / 331
    rotate: float = 30.0
    enhance: float = 0.9
    posterize: int = 4


_WIDE = _Ranges(shear=0.99, translate=32.0, rotate=135.0, enhance=0.99, posterize=6)

# The policy that AutoAugment found on ImageNet (Cubuk et al. 2018, appendix): each line is two times operation,
# probability and strength from 0 to 9.
_AUTOAUGMENT = """
    Posterize 0.4 8, Rotate 0.6 9          Solarize 0.6 5, AutoContrast 0.6 0     Equalize 0.8 0, Equalize 0.6 0
    Posterize 0.6 7, Posterize 0.6 6       Equalize 0.4 0, Solarize 0.2 4         Equalize 0.4 0, Rotate 0.8 8
    Solarize 0.6 3, Equalize 0.6 0         Posterize 0.8 5, Equalize 1.0 0        Rotate 0.2 3, Solarize 0.6 8
    Equalize 0.6 0, Posterize 0.4 6        Rotate 0.8 8, Color 0.4 0              Rotate 0.4 9, Equalize 0.6 0
    Equalize 0.0 0, Equalize 0.8 0         Invert 0.6 0, Equalize 1.0 0           Color 0.6 4, Contrast 1.0 8
    Rotate 0.8 8, Color 1.0 2              Color 0.8 8, Solarize 0.8 7            Sharpness 0.4 7, Invert 0.6 0
    ShearX 0.6 5, Equalize 1.0 0           Color 0.4 0, Equalize 0.6 0            Equalize 0.4 0, Solarize 0.2 4
    Solarize 0.6 5, AutoContrast 0.6 0     Invert 0.6 0, Equalize 1.0 0           Color 0.6 4, Contrast 1.0 8
    Equalize 0.8 0, Equalize 0.6 0
"""


def make_policy(name: str, where: str = "data.inputs.image") -> Policy | None:
    """Reads the option `policy` of an image input.

    * "randaugment", or "randaugment-m9-n2" in full: `n` operations of strength `m`, from 0 to 30 (Cubuk et al. 2019,
      with the ranges of torchvision).
    * "trivial": one operation of a random strength, from wider ranges (Müller & Hutter 2021, TrivialAugmentWide).
    * "autoaugment": the pairs of operations found on ImageNet (Cubuk et al. 2018).

    Returns:
        (uint8 [batch, height, width, 3], typed keys [batch]) -> uint8 of that shape, in which a row depends on its own
        pixels and key alone; None for "", which is no policy.

    Raises:
        DataError: there is no such policy.
    """
    if not name:
        return None
    head, *options = name.split("-")
    strength, count = 9, 2
    for option in options:
        match = re.fullmatch(r"([mn])(\d{1,3})", option)
        if head != "randaugment" or match is None:
            head = ""
        elif match[1] == "m":
            strength = int(match[2])
        else:
            count = int(match[2])
    if head not in _NAMES or strength > _LEVELS or not 1 <= count <= 8:
        raise DataError(
            f"{where}.policy is {name!r}{did_you_mean(name.partition('-')[0], _NAMES)}; expected '', 'trivial', "
            f"'autoaugment', 'randaugment' or, with a strength of 0 to {_LEVELS} and 1 to 8 operations, "
            "'randaugment-m9-n2'"
        )
    if head == "trivial":
        return jax.vmap(_trivial)
    if head == "autoaugment":
        return jax.vmap(_autoaugment)
    return jax.vmap(lambda pixels, key: _randaugment(pixels, key, strength / _LEVELS, count))


def _randaugment(pixels: jax.Array, key: jax.Array, strength: float, count: int) -> jax.Array:
    def draw(i: jax.Array) -> tuple[jax.Array, jax.Array]:
        choice, sign = jax.random.split(jax.random.fold_in(key, i))
        operation = _any_operation(choice)
        return operation, _magnitude(operation, strength, sign, pixels.shape, _Ranges())

    return _in_turn(pixels, draw, count)


def _trivial(pixels: jax.Array, key: jax.Array) -> jax.Array:
    choice, sign, level = jax.random.split(key, 3)
    operation = _any_operation(choice)
    strength = jax.random.randint(level, (), 0, _LEVELS + 1) / _LEVELS
    return apply(pixels, operation, _magnitude(operation, strength, sign, pixels.shape, _WIDE))


def _autoaugment(pixels: jax.Array, key: jax.Array) -> jax.Array:
    words = re.findall(r"(\w+) ([\d.]+) (\d)", _AUTOAUGMENT)
    table = lambda values: jnp.array(np.array(values).reshape(-1, 2))
    operations = table([OPERATIONS.index(word) for word, _, _ in words])
    chances = table([float(chance) for _, chance, _ in words])
    strengths = table([int(level) / 9 for _, _, level in words])
    pair = jax.random.randint(jax.random.fold_in(key, 2), (), 0, len(operations))

    def draw(i: jax.Array) -> tuple[jax.Array, jax.Array]:
        chance, sign = jax.random.split(jax.random.fold_in(key, i))
        operation = jnp.where(jax.random.bernoulli(chance, chances[pair, i]), operations[pair, i], 0)
        return operation, _magnitude(operation, strengths[pair, i], sign, pixels.shape, _Ranges())

    return _in_turn(pixels, draw, 2)


def _any_operation(key: jax.Array) -> jax.Array:
    return jax.random.randint(key, (), 0, OPERATIONS.index("Invert"))  # the last one is AutoAugment's alone


def _in_turn(pixels: jax.Array, draw: Callable, count: int) -> jax.Array:
    """Applies `count` operations; a loop, as unrolled ones are fused into a program that is three times as slow."""
    return jax.lax.scan(lambda pixels, i: (apply(pixels, *draw(i)), None), pixels, jnp.arange(count))[0]


def _magnitude(
    operation: jax.Array, strength: float | jax.Array, sign: jax.Array, shape: tuple, most: _Ranges
) -> jax.Array:
    """What `apply` takes for a strength from 0 to 1, rounded as in torchvision, with a random sign where one exists."""
    height, width = shape[:2]
    signed = jnp.where(jax.random.bernoulli(sign), strength, -strength)
    shift = lambda side: jnp.trunc(signed * (most.translate if most.translate > 1 else most.translate * side))
    return _by_name(
        operation,
        ShearX=signed * most.shear,
        ShearY=signed * most.shear,
        TranslateX=shift(width),
        TranslateY=shift(height),
        Rotate=signed * most.rotate,
        Posterize=8 - jnp.round(strength * most.posterize),
        Solarize=255 * (1 - strength),
        **dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), 1 + signed * most.enhance),
    )


def _by_name(operation: jax.Array, otherwise: float | jax.Array = 0.0, **values: float | jax.Array) -> jax.Array:
    """The value named like the operation."""
    otherwise = jnp.asarray(otherwise)
    rows = [jnp.broadcast_to(values.get(name, otherwise), otherwise.shape) for name in OPERATIONS]
    return jnp.stack(rows)[operation]


def apply(pixels: jax.Array, operation: jax.Array, magnitude: jax.Array) -> jax.Array:
    """Applies one operation to one image, as Pillow defines it.

    Args:
        pixels: uint8 [height, width, 3].
        operation: index into `OPERATIONS`, int32 [].
        magnitude: float32 []: pixels per pixel (shear), pixels (translate), degrees counterclockwise (rotate), blending
            factor (brightness, colour, contrast, sharpness), bits kept (posterize), threshold (solarize), or unused.

    Returns:
        uint8 [height, width, 3].
    """
    grey = _luma(pixels)
    table = _table(pixels, grey, operation, magnitude)
    warped = _warp(pixels, _matrix(pixels.shape, operation, magnitude))
    pixels_of_table = jnp.take(table.reshape(-1), warped.astype(jnp.int32) + 256 * jnp.arange(3), mode="clip")
    # Where an operation blends, warp and table leave the pixels as they are.
    other = jnp.where(operation == OPERATIONS.index("Sharpness"), _smooth(pixels), grey[..., None])
    factor = _by_name(operation, 1.0, Color=magnitude, Sharpness=magnitude)
    return _blend(other, pixels_of_table.astype(jnp.int32), factor).astype(jnp.uint8)


def _matrix(shape: tuple, operation: jax.Array, magnitude: jax.Array) -> jax.Array:
    """The inverse map (x, y) -> (a x + b y + c, d x + e y + f) of an operation, float32 [6]."""
    center_y, center_x = shape[0] / 2, shape[1] / 2
    angle = -jnp.deg2rad(magnitude)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    one, zero = jnp.float32(1), jnp.float32(0)
    row = lambda *values: jnp.stack([jnp.asarray(v, jnp.float32) for v in values])
    return _by_name(
        operation,
        row(one, zero, zero, zero, one, zero),
        ShearX=row(one, magnitude, zero, zero, one, zero),
        ShearY=row(one, zero, zero, magnitude, one, zero),
        TranslateX=row(one, zero, -magnitude, zero, one, zero),
        TranslateY=row(one, zero, zero, zero, one, -magnitude),
        Rotate=row(
            cos, sin, center_x - cos * center_x - sin * center_y, -sin, cos, center_y + sin * center_x - cos * center_y
        ),
    )


def _warp(pixels: jax.Array, matrix: jax.Array) -> jax.Array:
    """Nearest pixels under an inverse map, in the fixed-point numbers of Pillow, which are the same on every device."""
    height, width = pixels.shape[:2]
    fix = lambda value: jnp.floor(value * 65536 + 0.5).astype(jnp.int32)
    a, b, c, d, e, f = matrix
    x, y = jnp.arange(width)[None, :], jnp.arange(height)[:, None]
    from_x = (fix(a) * x + fix(b) * y + fix(c + 0.5 * a + 0.5 * b)) >> 16
    from_y = (fix(d) * x + fix(e) * y + fix(f + 0.5 * d + 0.5 * e)) >> 16
    inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    found = jnp.take(pixels.reshape(-1, 3), from_y * width + from_x, axis=0, mode="clip")
    return jnp.where(inside[..., None], found, jnp.uint8(FILL))


def _table(pixels: jax.Array, grey: jax.Array, operation: jax.Array, magnitude: jax.Array) -> jax.Array:
    """What becomes of each value in each channel, int32 [3, 256]."""
    value = jnp.arange(256)
    same = jnp.broadcast_to(value, (3, 256))
    count = grey.size
    mean = (2 * jnp.sum(grey) + count) // (2 * count)
    return _by_name(
        operation,
        same,
        Brightness=_blend(0, value, magnitude),
        Contrast=_blend(mean, value, magnitude),
        Posterize=value & (256 - (1 << (8 - magnitude.astype(jnp.int32)))),
        Solarize=jnp.where(value < magnitude, value, 255 - value),
        AutoContrast=_stretched(pixels),
        Equalize=_equalized(pixels),
        Invert=255 - value,
    )


def _stretched(pixels: jax.Array) -> jax.Array:
    low, high = (f(pixels, axis=(0, 1)).astype(jnp.int32)[:, None] for f in (jnp.min, jnp.max))
    value = jnp.arange(256)
    stretched = jnp.clip((value - low) * 255 // jnp.maximum(high - low, 1), 0, 255)
    return jnp.where(high > low, stretched, value)


def _equalized(pixels: jax.Array) -> jax.Array:
    # A scatter: a comparison with all 256 values costs 80 times as much on a CPU, a sort 4 times.
    counts = jnp.zeros(768, jnp.int32).at[pixels.astype(jnp.int32) + 256 * jnp.arange(3)].add(1).reshape(3, 256)
    total = jnp.sum(counts, axis=1, keepdims=True)
    highest = jnp.max(pixels, axis=(0, 1)).astype(jnp.int32)[:, None]
    step = (total - jnp.take_along_axis(counts, highest, axis=1)) // 255
    before = jnp.cumsum(counts, axis=1) - counts
    table = jnp.minimum((step // 2 + before) // jnp.maximum(step, 1), 255)
    return jnp.where(step > 0, table, jnp.arange(256))


def _smooth(pixels: jax.Array) -> jax.Array:
    """Pillow's SMOOTH filter, which leaves the border alone."""
    x = pixels.astype(jnp.int32)
    height, width = x.shape[:2]
    if height < 3 or width < 3:
        return x
    around = sum(x[i : height - 2 + i, j : width - 2 + j] for i in range(3) for j in range(3))
    inner = (2 * (around + 4 * x[1:-1, 1:-1]) + 13) // 26  # weights 1 and, in the middle, 5, out of 13; rounded
    return x.at[1:-1, 1:-1].set(inner)


def _luma(pixels: jax.Array) -> jax.Array:
    """Pillow's conversion to "L", in its integers: int32 [height, width]."""
    red, green, blue = jnp.moveaxis(pixels.astype(jnp.int32), -1, 0)
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16


def _blend(other: int | jax.Array, value: jax.Array, factor: jax.Array) -> jax.Array:
    """`Image.blend(other, value, factor)`: beyond both where the factor is above 1, cut off and rounded down."""
    blended = other + factor * (value - other).astype(jnp.float32)
    return jnp.clip(blended, 0, 255).astype(jnp.int32)
