"""Decoding of audio: all formats, windows and padding, and what damaged or hostile files do."""

import builtins
import io

import numpy as np
import pytest

from data_pipelines.audio import decode as audio
from data_pipelines.audio.decode import Options, decode, from_wave, window_start
from data_pipelines.errors import BadSample, DataError

soundfile = pytest.importorskip("soundfile", reason="the optional extra `audio`")
RATE = 16000
FORMATS = dict(
    wav=dict(format="WAV", subtype="PCM_16"),
    flac=dict(format="FLAC", subtype="PCM_16"),
    mp3=dict(format="MP3", subtype="MPEG_LAYER_III"),
    vorbis=dict(format="OGG", subtype="VORBIS"),
    opus=dict(format="OGG", subtype="OPUS"),
)


def tone(seconds, rate=RATE, hertz=440.0):
    time = np.arange(round(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * hertz * time) * (0.6 + 0.4 * np.cos(2 * np.pi * 3 * time))).astype(np.float32)


def encoded(wave, name="wav", rate=RATE, **changes):
    out = io.BytesIO()
    soundfile.write(out, wave, rate, **(FORMATS[name] | changes))
    return out.getvalue()


def refused(content, options=None, **arguments):
    with pytest.raises(BadSample) as error:
        decode(content, options or Options(seconds=1.0), **arguments)
    return error.value.reason


@pytest.mark.parametrize("name", FORMATS)
def test_formats(name):
    wave = tone(2.0)
    clip = decode(encoded(wave, name), Options(seconds=2.0), stated=2.0)
    assert clip.samples.dtype == np.int16 and clip.samples.shape == (32000,)
    exact = name in ("wav", "flac")
    assert clip.valid == 32000 if exact else clip.valid > 31900
    got = clip.samples / audio.FULL_SCALE
    if exact:
        np.testing.assert_allclose(got, wave, atol=4e-5)
    else:  # lossy: the waves agree up to their noise
        assert np.corrcoef(got[1000:-1000], wave[1000:-1000])[0, 1] > 0.98
    again = decode(encoded(wave, name), Options(seconds=2.0), stated=2.0)
    np.testing.assert_array_equal(clip.samples, again.samples)


@pytest.mark.parametrize(("rate", "wanted"), [(48000, 16000), (8000, 16000), (44100, 48000)])
def test_other_rates_are_resampled(rate, wanted):
    clip = decode(encoded(tone(1.0, rate), rate=rate), Options(rate=wanted, seconds=1.0))
    assert clip.valid == wanted
    np.testing.assert_allclose(clip.samples[200:-200] / audio.FULL_SCALE, tone(1.0, wanted)[200:-200], atol=2e-3)


def test_windows():
    wave = np.linspace(0.1, 0.9, 10 * RATE, dtype=np.float32)  # each sample says where it was
    content, options = encoded(wave), Options(seconds=1.0)
    starts = [decode(content, options, place).samples[0] / audio.FULL_SCALE for place in (0.0, None, 1 - 1e-12)]
    expected = [wave[0], wave[round(4.5 * RATE)], wave[9 * RATE]]
    np.testing.assert_allclose(starts, expected, atol=1e-4)
    assert {window_start(3, 2, place) for place in (0.0, 0.49, 0.5, 0.99)} == {0, 1}
    assert window_start(5, 5, 0.9) == 0


def test_padding():
    wave = tone(0.3)
    zeros = decode(encoded(wave), Options(seconds=1.0))
    assert zeros.valid == 4800 and not zeros.samples[4800:].any()
    repeated = decode(encoded(wave), Options(seconds=1.0, pad="repeat"))
    assert repeated.valid == 3 * 4800 and not repeated.samples[14400:].any()
    np.testing.assert_array_equal(repeated.samples[4800:9600], zeros.samples[:4800])


def test_mono():
    wave = tone(1.0)
    content = encoded(np.stack([np.zeros_like(wave), wave], axis=1))
    mean, loudest = (decode(content, Options(seconds=1.0, mono=mono)).samples for mono in ("mean", "loudest"))
    np.testing.assert_allclose(loudest / audio.FULL_SCALE, wave, atol=5e-5)
    np.testing.assert_allclose(mean.astype(int) * 2, loudest, atol=2)


@pytest.mark.parametrize("name", ["wav", "mp3", "vorbis", "opus"])
def test_half_a_file_is_shorter_than_stated(name):
    content = encoded(tone(4.0), name)
    assert refused(content[: len(content) // 2], stated=4.0) in ("truncated audio", "empty audio", "corrupt audio")


def test_half_a_flac_file_is_corrupt():
    content = encoded(tone(4.0), "flac")
    assert refused(content[: len(content) // 2], Options(seconds=4.0)) in ("corrupt audio", "truncated audio")


def test_reasons():
    silence, broken = np.full(RATE, 5e-5, np.float32), tone(1.0)
    broken[100] = np.nan
    assert refused(b"") == "empty audio"
    assert refused(b"GIF89a" + bytes(100)) == "not audio"
    assert refused(b"ffconcat version 1.0\nfile x.wav\n") == "not audio"
    assert refused(b"OggS" + bytes(100)) == "corrupt audio"
    assert refused(encoded(tone(1.0))[:44]) == "empty audio"
    assert refused(encoded(silence, subtype="FLOAT")) == "silent audio"
    assert refused(encoded(broken, subtype="FLOAT")) == "non-finite audio"
    assert refused(encoded(tone(3.0)), Options(seconds=1.0, max_seconds=2.0)) == "audio too long"
    assert refused(encoded(np.stack([tone(0.1)] * 9, axis=1))) == "audio of too many channels"
    assert refused(encoded(tone(0.1), rate=500)) == "audio rate out of range"
    assert refused(encoded(tone(1.0)), stated=1.2) == "truncated audio"
    decode(encoded(tone(1.0)), Options(seconds=1.0), stated=1.04)  # 40 ms less than stated is no damage


def test_a_bomb_is_not_decoded():
    """A FLAC file of nearly silent hours is tiny; only the window is decoded, or nothing."""
    wave = np.zeros(1200 * RATE, np.int16)
    wave[::RATE] = 20000
    content = encoded(wave, "flac")
    assert len(content) < 2**20
    assert refused(content, Options(seconds=1.0, max_seconds=600.0)) == "audio too long"
    assert decode(content, Options(seconds=1.0)).samples.shape == (RATE,)


def test_verify():
    options = Options(seconds=0.1)
    late = tone(3.0)
    late[-100] = np.inf
    content = encoded(late, subtype="FLOAT")
    decode(content, options, 0.0)  # the window is good
    for stated, reason in ((0.0, "non-finite audio"), (3.1, "truncated audio")):
        with pytest.raises(BadSample) as error:
            audio.verify(content, options, stated)
        assert error.value.reason == reason
    audio.verify(encoded(tone(3.0), "opus"), options, 3.0)
    with pytest.raises(BadSample, match="silent audio"):
        audio.verify(encoded(np.zeros(1000, np.float32)), options)


def test_waves_of_users():
    options = Options(seconds=1.0)
    wave = tone(1.0)
    both = from_wave(wave, RATE, options), from_wave(np.round(wave * 32768).astype(np.int16), RATE, options)
    np.testing.assert_allclose(both[0].samples, both[1].samples, atol=1)
    loud = from_wave(4 * wave, RATE, options).samples  # beyond full scale: clipped, never wrapped around
    assert loud.max() == 32767 and loud.min() == -32768
    with pytest.raises(BadSample, match="expected float or int16"):
        from_wave(np.zeros((2, 3, 4), np.float32), RATE, options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(rate=10), "audio.rate is 10; expected 1000 to"),
        (dict(seconds=0), "audio.seconds is 0; expected more than 0"),
        (dict(seconds=10, max_seconds=5), "at most audio.max_seconds=5"),
        (dict(mono="loud"), "audio.mono is 'loud', not mean or loudest; did you mean 'loudest'?"),
        (dict(pad="zero"), "audio.pad is 'zero', not zeros or repeat; did you mean 'zeros'?"),
    ],
)
def test_options(options, message):
    with pytest.raises(DataError) as error:
        Options(**options).check()
    assert message in str(error.value)


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **keywords):
        if name == "soundfile":
            raise ImportError("no", name="soundfile")
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DataError, match=r"audio needs soundfile, .*xmodal\[audio\]"):
        Options().check()
