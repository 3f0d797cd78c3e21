"""Policies: every operation is Pillow's, and policies draw what their papers say, by row and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from data_pipelines.errors import DataError
from data_pipelines.images import policies
from data_pipelines.images.policies import FILL, OPERATIONS, apply, make_policy


def picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    """A smooth picture with some noise, which leaves no value out."""
    y, x = np.mgrid[:height, :width] / max(width, height)
    waves = 127.5 + 127.5 * np.stack([np.sin(9 * x + 2 * y), np.cos(7 * y - x), np.sin(5 * x * y + 1)], -1)
    return np.clip(waves * 0.6 + np.random.default_rng(seed).integers(0, 100, waves.shape), 0, 255).astype(np.uint8)


def warped(image: Image.Image, *matrix: float) -> Image.Image:
    nearest = Image.Resampling.NEAREST
    return image.transform(image.size, Image.Transform.AFFINE, matrix, nearest, fillcolor=(FILL,) * 3)


# Operation -> what Pillow does, and the magnitudes to compare.
PILLOW = dict(
    Identity=(lambda image, m: image, (0,)),
    ShearX=(lambda image, m: warped(image, 1, m, 0, 0, 1, 0), (0.3, -0.123, 0.99)),
    ShearY=(lambda image, m: warped(image, 1, 0, 0, m, 1, 0), (0.3, -0.123, -0.99)),
    TranslateX=(lambda image, m: warped(image, 1, 0, -m, 0, 1, 0), (10, -7)),
    TranslateY=(lambda image, m: warped(image, 1, 0, 0, 0, 1, -m), (10, -7)),
    Rotate=(lambda image, m: image.rotate(m, fillcolor=(FILL,) * 3), (30, -17.3, 135, 90)),
    Brightness=(lambda image, m: ImageEnhance.Brightness(image).enhance(m), (0.1, 1.33, 1.9)),
    Color=(lambda image, m: ImageEnhance.Color(image).enhance(m), (0.1, 1.33, 1.9)),
    Contrast=(lambda image, m: ImageEnhance.Contrast(image).enhance(m), (0.1, 1.33, 1.9)),
    Sharpness=(lambda image, m: ImageEnhance.Sharpness(image).enhance(m), (0.1, 1.33, 1.9)),
    Posterize=(lambda image, m: ImageOps.posterize(image, m), (8, 7, 4, 2)),
    Solarize=(lambda image, m: ImageOps.solarize(image, m), (255, 100.5, 0)),
    AutoContrast=(lambda image, m: ImageOps.autocontrast(image), (0,)),
    Equalize=(lambda image, m: ImageOps.equalize(image), (0,)),
    Invert=(lambda image, m: ImageOps.invert(image), (0,)),
)
EXACT = {"Identity", "Posterize", "Solarize", "Equalize", "Invert"}
WARPS = {"ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"}
one = jax.jit(apply)


def compare(name: str, pixels: np.ndarray) -> None:
    """Warps may take a neighbouring pixel in 1 of 500 places, tables and blends may round to the next value."""
    pillow, magnitudes = PILLOW[name]
    for magnitude in magnitudes:
        found = np.asarray(one(pixels, OPERATIONS.index(name), jnp.float32(magnitude))).astype(int)
        expected = np.asarray(pillow(Image.fromarray(pixels), magnitude)).astype(int)
        difference = np.abs(found - expected)
        if name in WARPS:
            assert (difference.max(-1) > 0).mean() <= 0.002, magnitude
        else:
            assert difference.max() <= (name not in EXACT) and (difference > 0).mean() < 0.02, magnitude


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_pillows(name):
    compare(name, picture(48, 40))


@pytest.mark.parametrize("name", ["AutoContrast", "Equalize", "Contrast", "Sharpness"])
def test_statistics_of_unusual_images(name):
    flat = np.full((40, 48, 3), (7, 0, 255), np.uint8)
    two = flat.copy()
    two[:3] = (9, 1, 254)
    few = (picture(48, 40) // 64) * 16 + 100
    for pixels in (flat, two, few):
        compare(name, pixels)


def test_table_of_autoaugment():
    """25 pairs, and sums over the published table."""
    words = policies._AUTOAUGMENT.replace(",", " ").split()
    names, chances, levels = words[::3], np.array(words[1::3], float), np.array(words[2::3], int)
    assert len(names) == 50 and set(names) <= set(OPERATIONS)
    count = {name: names.count(name) for name in sorted(set(names))}
    assert count == dict(AutoContrast=2, Color=6, Contrast=2, Equalize=17, Invert=3, Posterize=5, Rotate=6, Sharpness=1,
                         ShearX=1, Solarize=7)  # fmt: skip
    assert round(chances.sum(), 1) == 31.0 and levels.sum() == 159
    assert sum(levels[i] for i in range(50) if names[i] == "Solarize") == 36


def test_strengths_reach_the_ranges_of_the_papers():
    """At the strongest level and for each sign: the magnitudes that torchvision's tables hold."""
    wide = policies._WIDE
    magnitude = jax.jit(
        lambda name, strength, key, most: policies._magnitude(name, strength, key, (64, 331, 3), most), static_argnums=3
    )
    plain = policies._Ranges()
    cases = [
        ("ShearX", plain, 1, 0.3), ("ShearY", wide, 1, 0.99), ("TranslateX", plain, 1, 150),
        ("TranslateY", plain, 1, 29), ("Posterize", plain, 0.3, 7),
        ("TranslateY", wide, 1, 32), ("Rotate", plain, 1, 30), ("Rotate", wide, 1, 135), ("Brightness", plain, 1, 0.9),
        ("Sharpness", wide, 1, 0.99), ("Posterize", plain, 1, 4), ("Posterize", wide, 1, 2),
        ("Solarize", plain, 1, 0), ("Solarize", plain, 0, 255), ("Color", plain, 0.3, 0.27),
    ]  # fmt: skip
    for name, most, strength, expected in cases:
        found = {float(magnitude(OPERATIONS.index(name), strength, jax.random.key(i), most)) for i in range(12)}
        if name in ("Posterize", "Solarize"):
            wanted = {expected}
        elif name in ("Brightness", "Sharpness", "Color"):
            wanted = {1 - expected, 1 + expected}
        else:
            wanted = {-expected, expected}
        assert len(found) == len(wanted)
        np.testing.assert_allclose(sorted(found), sorted(wanted), rtol=1e-5, atol=1e-6)


SMALL = np.stack([picture(10, 12, seed) for seed in range(16)])
KEYS = jax.random.split(jax.random.key(0), 16)
NAMES = ["randaugment", "randaugment-m15-n3", "trivial", "autoaugment"]


@pytest.mark.parametrize("name", NAMES)
def test_a_row_depends_on_its_key_and_pixels_alone(name):
    policy = jax.jit(make_policy(name))
    found = np.asarray(policy(SMALL, KEYS))
    assert found.dtype == np.uint8 and found.shape == SMALL.shape
    np.testing.assert_array_equal(policy(SMALL[::-1], KEYS[::-1]), found[::-1])
    np.testing.assert_array_equal(policy(SMALL[4:8], KEYS[4:8]), found[4:8])
    changed = (found != SMALL).any((1, 2, 3)).mean()
    assert changed > 0.4
    same = np.asarray(policy(np.broadcast_to(SMALL[:1], SMALL.shape), KEYS))
    assert len({row.tobytes() for row in same}) > 6


def test_sharded_rows_stay_where_they_are():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.NamedSharding(mesh, jax.P("data"))
    program = jax.jit(make_policy("randaugment"), in_shardings=rows, out_shardings=rows).lower(SMALL, KEYS).compile()
    assert not any(f" {word}" in program.as_text() for word in ("all-gather", "all-reduce", "all-to-all", "collective"))
    found = program(jax.device_put(SMALL, rows), jax.device_put(KEYS, rows))
    np.testing.assert_array_equal(found, jax.jit(make_policy("randaugment"))(SMALL, KEYS))


def test_randaugment_is_its_operations_in_turn():
    found = np.asarray(jax.jit(make_policy("randaugment-m30-n1"))(SMALL, KEYS))
    explained = 0
    for row, pixels in zip(found, SMALL):
        for operation, name in enumerate(OPERATIONS[:-1]):
            strongest = dict(ShearX=0.3, ShearY=0.3, TranslateX=4, TranslateY=5, Rotate=30, Posterize=4, Solarize=0)
            magnitudes = [strongest[name]] if name in strongest else [1.9, 0.1]
            if name in WARPS:
                magnitudes.append(-strongest[name])
            if any((np.asarray(one(pixels, operation, jnp.float32(m))) == row).all() for m in magnitudes):
                explained += 1
                break
    assert explained == 16


def test_operations_of_a_row_are_drawn_one_by_one():
    keys = jax.random.split(jax.random.key(5), 300)
    found = np.asarray(jax.jit(make_policy("randaugment-m30-n2"))(np.broadcast_to(SMALL[0], (300, 12, 10, 3)), keys))
    assert len({row.tobytes() for row in found}) > 100  # the same one twice gives 24


def autoaugment_outcomes(pixels: np.ndarray) -> dict[bytes, set[int]]:
    """Everything that AutoAugment can make of an image, and by which pairs; with the magnitudes of torchvision."""
    step = lambda low, high, level: np.linspace(low, high, 10)[level]
    magnitudes = dict(
        Rotate=lambda level: (step(0, 30, level), -step(0, 30, level)),
        ShearX=lambda level: (step(0, 0.3, level), -step(0, 0.3, level)),
        Posterize=lambda level: (8 - np.round(level / (9 / 4)),),
        Solarize=lambda level: (step(255, 0, level),),
        **dict.fromkeys(
            ("Color", "Contrast", "Sharpness"), lambda level: (1 + step(0, 0.9, level), 1 - step(0, 0.9, level))
        ),
    )
    words = policies._AUTOAUGMENT.replace(",", " ").split()
    outcomes: dict[bytes, set[int]] = {}
    for pair in range(25):
        found = [pixels]
        for name, chance, level in (words[i : i + 3] for i in (6 * pair, 6 * pair + 3)):
            values = magnitudes.get(name, lambda level: (0,))(int(level))
            changed = [
                np.asarray(one(image, OPERATIONS.index(name), jnp.float32(m))) for image in found for m in values
            ]
            found = (found if float(chance) < 1 else []) + (changed if float(chance) > 0 else [])
        for image in found:
            outcomes.setdefault(image.tobytes(), set()).add(pair)
    return outcomes


def test_autoaugment_makes_what_its_table_says():
    pixels = picture(24, 32)  # large enough for Equalize to change it
    outcomes = autoaugment_outcomes(pixels)
    keys = jax.random.split(jax.random.key(6), 600)
    found = np.asarray(jax.jit(make_policy("autoaugment"))(np.broadcast_to(pixels, (600, *pixels.shape)), keys))
    pairs = [outcomes[row.tobytes()] for row in found]
    unique = set().union(*(p for p in pairs if len(p) == 1))  # pairs that alone explain what was found
    assert unique >= {0, 5, 6, 7, 8, 9, 11, 15, 16, 17, 18}
    chances = np.array(policies._AUTOAUGMENT.replace(",", " ").split()[1::3], float).reshape(25, 2)
    untouched = (found == pixels).all((1, 2, 3)).mean()  # a colour factor of 1 does so, too
    assert abs(untouched - np.mean((1 - chances).prod(1))) < 0.04


def test_operations_are_drawn_evenly():
    keys = jax.random.split(jax.random.key(3), 2800)
    drawn = np.asarray(jax.jit(jax.vmap(policies._any_operation))(keys))
    counts = np.bincount(drawn, minlength=15)
    assert counts[14] == 0 and counts[:14].min() > 140 and counts[:14].max() < 260


@pytest.mark.parametrize(
    "name",
    [
        "randaugmnt",
        "randaugment-m31",
        "randaugment-n0",
        "randaugment-x3",
        "trivial-m9",
        "auto",
        "randaugment-",
        "m9-n2",
    ],
)
def test_unknown_policies(name):
    with pytest.raises(DataError, match=r"data\.inputs\.image\.policy"):
        make_policy(name)


def test_no_policy():
    assert make_policy("") is None
    with pytest.raises(DataError, match="did you mean 'randaugment'"):
        make_policy("randaugmnt-m9")
