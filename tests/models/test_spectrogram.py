"""Log-mel front ends: equal to the reference ones, and what padding does."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmodal.models.spectrogram import FRONT_ENDS, log_mel, valid_frames

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "spectrograms.npz")
LENGTH = dict(whisper=16000, kaldi=10800, clap=48000)  # samples that the golden spectrograms are of
# Absolute, of values as the tower sees them: about 1, but decibels for CLAP. Float32 here and in the references.
TOLERANCE = dict(whisper=1e-4, kaldi=1e-5, clap=3e-4)


def padded(kind, wave):
    """The wave as the data pipeline gives it: CLAP repeats short ones, the others have zeros."""
    repeated = np.tile(wave, LENGTH[kind] // len(wave)) if kind == "clap" else wave[: LENGTH[kind]]
    return np.pad(repeated, (0, LENGTH[kind] - len(repeated)))


@pytest.mark.parametrize("kind", FRONT_ENDS)
def test_equal_to_the_reference(kind):
    names = ("short", "long")
    waves = [GOLDEN[f"{kind}/{name}/wave"] for name in names]
    valid = jnp.array([min(len(wave), LENGTH[kind]) for wave in waves], jnp.int32)
    wave = jnp.stack([padded(kind, wave) for wave in waves])
    got = jax.jit(lambda w, v: log_mel(w, FRONT_ENDS[kind], v))(wave, valid)
    wanted = np.stack([GOLDEN[f"{kind}/{name}/mel"] for name in names])
    frames = min(got.shape[2], wanted.shape[2])
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got[..., :frames], wanted[..., :frames], atol=TOLERANCE[kind])


def test_frames():
    assert FRONT_ENDS["whisper"].frames(480000) == 3000
    assert FRONT_ENDS["clap"].frames(480000) == 1001
    assert FRONT_ENDS["kaldi"].frames(160000) == 998 and FRONT_ENDS["kaldi"].frames(32000) == 198
    for front in FRONT_ENDS.values():
        assert log_mel(jnp.ones((2, 5000), jnp.int16), front).shape == (2, front.mels, front.frames(5000))
        with pytest.raises(ValueError, match="too few for a frame"):
            log_mel(jnp.ones((2, 100), jnp.int16), front)


def test_blank_frames_hold_padding():
    front = FRONT_ENDS["kaldi"]
    wave = jnp.asarray(np.random.default_rng(0).integers(-1000, 1000, (2, 8000)), jnp.int16)
    valid = jnp.array([8000, 4000])
    shown = valid_frames(valid, front.frames(8000), front)
    assert shown.sum(axis=1).tolist() == [front.frames(8000), front.frames(4000)]
    mel = log_mel(wave, front, valid)
    np.testing.assert_allclose(mel[1][:, ~shown[1]], -front.mean / front.std, rtol=1e-6)
    np.testing.assert_array_equal(mel[1][:, shown[1]], log_mel(wave, front)[1][:, shown[1]])
    np.testing.assert_array_equal(mel[0], log_mel(wave, front)[0])


def test_rows_do_not_see_each_other():
    wave = jnp.asarray(np.random.default_rng(0).integers(-9000, 9000, (3, 4000)), jnp.int16)
    for front in FRONT_ENDS.values():
        np.testing.assert_allclose(log_mel(wave, front)[1:2], log_mel(wave[1:2], front), atol=1e-5)


def test_another_number_of_bands():
    front = dataclasses.replace(FRONT_ENDS["whisper"], mels=40)
    assert log_mel(jnp.ones((1, 1600), jnp.int16), front).shape == (1, 40, 10)
