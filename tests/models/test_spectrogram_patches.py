"""Sound as patch tokens: a strided convolution of the spectrogram, padding, and what training hides."""

import dataclasses

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmodal.models.init import Draws, scheme
from xmodal.models.spectrogram import log_mel
from xmodal.models.spectrogram_patches import SpectrogramSpec, mask_spans

WIDTH, SAMPLES = 8, 6400
SPEC = SpectrogramSpec(rate=16000, samples=SAMPLES, mels=32, patch_size=8)


def embedder(**changes):
    """A module, and what it makes of a batch."""
    spec = dataclasses.replace(SPEC, **changes)
    return spec.build(WIDTH, scheme("siglip", WIDTH, 1), jnp.float32, Draws(jax.random.key(0)))


def batch(lengths=(SAMPLES, SAMPLES)):
    wave = np.random.default_rng(0).integers(-9000, 9000, (len(lengths), SAMPLES)).astype(np.int16)
    wave[np.arange(SAMPLES) >= np.array(lengths)[:, None]] = 0
    return {"audio": jnp.asarray(wave), "audio_length": jnp.asarray(lengths, jnp.int32)}


@pytest.mark.parametrize("stride", [0, 5])
def test_tokens_are_patches_of_the_spectrogram(stride):
    module = embedder(stride=stride)
    spec, given = module.spec, batch()
    tokens, carry = module(given)
    mel, step = log_mel(given["audio"], spec.front), stride or 8
    bands, frames = spec.grid
    assert (bands, frames) == ((32 - 8) // step + 1, (40 - 8) // step + 1)
    assert tokens.x.shape == (2, spec.tokens, WIDTH) == (2, 1 + bands * frames, WIDTH) and carry == {}
    band, frame = 1, 2  # the lowest bands come first, each with all its frames
    patch = mel[:, band * step : band * step + 8, frame * step : frame * step + 8]
    place = 1 + band * frames + frame
    wanted = jnp.einsum("bij,ijd->bd", patch, module.kernel[...][:, :, 0]) + module.position[...][place]
    np.testing.assert_allclose(tokens.x[:, place], wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(tokens.x[0, 0], module.class_token[...][0] + module.position[...][0], rtol=1e-6)
    assert tokens.pos[0, :2].tolist() == [[0, 0], [0, 0]] and tokens.pos[1, place].tolist() == [band, frame]
    assert tokens.segments == (("audio", spec.tokens),)


def test_patches_of_padding_are_invisible():
    tokens, _ = embedder()(batch((SAMPLES, 2000)))  # 2000 samples: 13 frames, 2 columns of patches
    shown = tokens.valid[:, 1:].reshape(2, *SPEC.grid)
    assert tokens.valid[:, 0].all() and shown[0].all()
    np.testing.assert_array_equal(shown[1], np.broadcast_to(np.arange(5) < 2, (4, 5)))
    assert embedder(mask_padding=False)(batch((SAMPLES, 2000)))[0].valid is None


def test_patch_dropout_keeps_the_prefix():
    module, keys = embedder(patch_dropout=0.5, class_tokens=2), helpers.sample_keys(2)
    all_tokens, _ = module(batch())
    tokens, _ = module(batch(), keys)
    assert tokens.x.shape[1] == 2 + 10 and tokens.valid.shape == tokens.pos.shape[:2] == tokens.x.shape[:2]
    assert tokens.index[:, :2].tolist() == [[0, 1]] * 2
    np.testing.assert_array_equal(tokens.x[1], all_tokens.x[1, tokens.index[1]])


def test_spans_are_hidden_in_training_alone():
    mel = jnp.asarray(np.random.default_rng(0).normal(size=(64, 20, 30)), jnp.float32)
    assert mask_spans(mel, 8, 10, None) is mel
    hidden = np.asarray(mask_spans(mel, 8, 10, helpers.sample_keys(64)) != mel)
    bands, frames = hidden.all(axis=2).sum(axis=1), hidden.all(axis=1).sum(axis=1)
    assert set(bands) <= set(range(9)) and set(frames) <= set(range(11)) and max(bands) == 8 and max(frames) == 10
    np.testing.assert_array_equal(hidden, hidden.all(axis=2)[..., None] | hidden.all(axis=1)[:, None])
    alone = mask_spans(mel[5:6], 8, 10, helpers.sample_keys(64)[5:6])
    np.testing.assert_allclose(alone[0], mask_spans(mel, 8, 10, helpers.sample_keys(64))[5], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(rate=8000), "kind='whisper' is defined for 16000 samples a second, got rate=8000"),
        (dict(samples=800), r"a spectrogram of \(32, 5\) bands and frames has no patch of 8"),
    ],
)
def test_what_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        embedder(**changes)


def test_another_length_is_refused():
    given = {"audio": jnp.zeros((1, 3200), jnp.int16)}
    with pytest.raises(ValueError, match="the model expects 6400 samples of audio"):
        embedder()(given)
