"""Every parameter starts from its published distribution (CLIP's and SigLIP's code)."""

import re

import helpers
import jax
import numpy as np
import pytest
from flax import nnx

from xmodal.models import presets
from xmodal.models.init import Draws
from xmodal.paths import flatten_paths

WIDTH, DEPTH, VOCAB, PATCH = 256, 2, 600, 8
ATTENTION_IN = r".*/attn/(query|key|value)/kernel"
XAVIER = dict(square=(2 / (WIDTH + WIDTH)) ** 0.5, mlp=(2 / (WIDTH + 4 * WIDTH)) ** 0.5)

# (path, standard deviation) or (path, constant); the first that matches decides.
CLIP = (
    (r".*/(scale)", "one"),
    (r".*bias", "zero"),
    (r"image/embed/kernel", (3 * PATCH * PATCH * 3) ** -0.5),  # PyTorch's convolutions: uniform, +-fan_in^-0.5
    (r"image/embed/(class_token|position)", WIDTH**-0.5),
    (r"text/embed/embedding", 0.02),
    (r"text/embed/position", 0.01),
    (ATTENTION_IN, WIDTH**-0.5),
    (r".*/attn/out/kernel", WIDTH**-0.5 * (2 * DEPTH) ** -0.5),
    (r".*/fc1/kernel", (2 * WIDTH) ** -0.5),
    (r".*/fc2/kernel", WIDTH**-0.5 * (2 * DEPTH) ** -0.5),
    (r".*/projection/kernel", WIDTH**-0.5),
)
SIGLIP = (
    (r".*/(scale)", "one"),
    (r".*/mlp/fc[12]/bias", 1e-6),
    (r".*bias", "zero"),
    (r"image/embed/kernel", (PATCH * PATCH * 3) ** -0.5),
    (r".*/embed/(position|embedding)", WIDTH**-0.5),
    (ATTENTION_IN, XAVIER["square"]),
    (r".*/attn/out/kernel", XAVIER["square"]),
    (r".*/(fc1|fc2)/kernel", XAVIER["mlp"]),
    (r"image/pool/probe", (2 / (1 + WIDTH)) ** 0.5),
    (r".*/projection/kernel", WIDTH**-0.5),
)


@pytest.mark.parametrize("style", ["clip", "siglip"])
def test_standard_deviations_are_the_published_ones(style):
    rules = dict(clip=CLIP, siglip=SIGLIP)[style]
    shared = WIDTH if style == "clip" else 0
    towers = dict(
        image=presets.image_tower(WIDTH, DEPTH, 4, patch_size=PATCH, style=style, embed_dim=shared,
                                  embed=dict(image_size=64)),
        text=presets.text_tower(WIDTH, DEPTH, 4, style=style, embed_dim=WIDTH, embed=dict(vocab_size=VOCAB, length=64)),
    )  # fmt: skip
    params = flatten_paths(jax.jit(helpers.build(towers).init)(jax.random.key(3)))
    used = set()
    for path, value in params.items():
        pattern, wanted = next(((p, w) for p, w in rules if re.fullmatch(p, path)), (None, None))
        assert pattern, f"no published distribution for {path}"
        used.add(pattern)
        value = np.asarray(value, np.float64)
        if wanted in ("zero", "one"):
            assert np.all(value == (wanted == "one")), path
            continue
        deviations = 5 / np.sqrt(value.size)  # of mean and standard deviation, five times over
        assert abs(value.mean()) < deviations * wanted, path
        assert abs(value.std() / wanted - 1) < deviations, f"{path}: {value.std():.5f}, published {wanted:.5f}"
    assert used == {pattern for pattern, _ in rules}


def test_patch_kernels_of_clip_are_uniform_and_projections_differ_between_towers():
    model = helpers.build(helpers.clip())
    params = jax.jit(model.init)(jax.random.key(0))
    kernel = np.asarray(params["image"]["embed"]["kernel"])
    bound = (3 * helpers.PATCH**2) ** -0.5
    assert np.abs(kernel).max() <= bound
    assert np.mean(np.abs(kernel) > bound / 2) == pytest.approx(0.5, abs=0.05)
    image, text = (np.asarray(params[tower]["projection"]["kernel"]).ravel() for tower in ("image", "text"))
    assert abs(np.corrcoef(image, text)[0, 1]) < 0.3
    other = jax.jit(model.init)(jax.random.key(1))
    assert not np.array_equal(other["image"]["projection"]["kernel"], params["image"]["projection"]["kernel"])


def test_keys_are_those_of_nnx():
    """Also of the second and third lot that is derived, and inside of stacks; so a seed means what it always meant."""
    draw, rngs = Draws(jax.random.key(5)), nnx.Rngs(params=jax.random.key(5))
    value = lambda key, shape, dtype: jax.random.bits(key, shape)
    expected = lambda own: jax.random.bits(own.params(), (2,))
    for turn in range(40):
        np.testing.assert_array_equal(draw(value, 2)[...], expected(rngs))
        if turn in (7, 15, 31):
            assert draw.alike(lambda own: nnx.Dict(), 0) is None  # a key is used up all the same
            rngs.params()
            stack = draw.alike(lambda own: nnx.Dict(a=own(value, 2), b=own(value, 2)), 3)
            single = nnx.vmap(lambda own: (expected(own), expected(own)))(nnx.Rngs(params=rngs.params()).split(3))
            np.testing.assert_array_equal([stack["a"][...], stack["b"][...]], single)


def test_a_model_is_traced_once_for_equal_descriptions():
    towers = helpers.clip()
    assert helpers.build(towers) is helpers.build(helpers.clip())
    assert helpers.build(towers, "bfloat16") is not helpers.build(towers)
