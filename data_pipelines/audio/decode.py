"""Encoded audio to int16 mono samples of one length: WAV, FLAC, MP3, Ogg Vorbis and Ogg Opus.

Decoders fall silent where data end early: of half a WAV, MP3 or Opus file libsndfile gives half the samples without an
error. So a sample's stated length is compared with the decoded one. What libmpg123 says of a damaged MP3 file goes to
stderr from C and cannot be caught.
"""

import io
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.errors import BadSample, DataError, did_you_mean

AUDIO_EXTENSIONS = ("wav", "flac", "mp3", "ogg", "opus")
FULL_SCALE = 32768  # int16 of the amplitude 1
SILENT = 1e-4  # peak amplitude below which nothing is heard
SHORT = 0.05  # seconds that a clip may lack of its stated length
_RATES = (1000, 192_000)  # samples a second that a file may have
_CHANNELS = 8  # that a file may have
_MONO, _PAD = ("mean", "loudest"), ("zeros", "repeat")


class Clip(NamedTuple):
    """Samples of one length.

    Attributes:
        samples: int16 [samples].
        valid: samples that are not padding.
    """

    samples: np.ndarray
    valid: int


@dataclass(frozen=True)
class Options:
    """How audio is decoded.

    Attributes:
        rate: samples a second.
        seconds: of a clip; longer audio is cut to a window, shorter audio is padded.
        mono: mean of the channels, or the loudest channel: a mean halves recordings of which one channel is empty.
        pad: with zeros, or repeat as often as it fits, then zeros (LAION-CLAP, Wu et al. 2023, `repeatpad`).
        max_seconds: longer audio is a bad sample; a small file can claim any length.
        where: path of the options in the config, for messages.
    """

    rate: int = 16000
    seconds: float = 10.0
    mono: str = "mean"
    pad: str = "zeros"
    max_seconds: float = 3600.0
    where: str = "audio"

    @property
    def length(self) -> int:
        """Samples of a clip."""
        return round(self.rate * self.seconds)

    def check(self) -> None:
        """Raises DataError where an option cannot be used, or where the libraries are not installed."""
        if not _RATES[0] <= self.rate <= _RATES[1]:
            raise DataError(f"{self.where}.rate is {self.rate}; expected {_RATES[0]} to {_RATES[1]} samples a second")
        if not 0 < self.seconds <= self.max_seconds:
            raise DataError(
                f"{self.where}.seconds is {self.seconds}; expected more than 0 and at most "
                f"{self.where}.max_seconds={self.max_seconds}"
            )
        for name, allowed in (("mono", _MONO), ("pad", _PAD)):
            if (value := getattr(self, name)) not in allowed:
                expected = " or ".join(allowed)
                raise DataError(f"{self.where}.{name} is {value!r}, not {expected}{did_you_mean(value, allowed)}")
        _libraries()


def decode(content: bytes | memoryview, options: Options, place: float | None = None, stated: float = 0.0) -> Clip:
    """Decodes a clip.

    Args:
        content: an encoded file; only the samples of the window are decoded.
        options: see `Options`.
        place: of the window, 0 <= place < 1; None takes the central one.
        stated: seconds that the file should have; 0 where nobody knows.

    Raises:
        BadSample: "empty audio", "not audio", "corrupt audio", "truncated audio" (more than 50 ms shorter than stated,
            or than its header says), "audio too long", "audio of too many channels", "audio rate out of range",
            "non-finite audio" or "silent audio" (peak below 1e-4 in the window).
        DataError: the libraries are not installed.
    """
    soundfile, _ = _libraries()
    check_kind(content)
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            _check_header(file, options, stated)
            size = min(file.frames, math.ceil(options.seconds * file.samplerate))
            file.seek(window_start(file.frames, size, place))
            wave, rate = file.read(size, dtype="float32", always_2d=True), file.samplerate
    except (soundfile.LibsndfileError, RuntimeError):
        raise BadSample("corrupt audio") from None
    if len(wave) < size:
        raise BadSample("truncated audio")
    return from_wave(wave, rate, options)


def from_wave(wave: np.ndarray, rate: int, options: Options, place: float | None = None) -> Clip:
    """Makes a clip of samples: mono, resampled, cut or padded, rounded to 16 bit.

    Args:
        wave: float [samples] or [samples, channels], amplitudes in -1..1 (beyond, they are clipped), or int16.
        rate: its samples a second.
        options: see `Options`.
        place: of the window, as for `decode`.

    Raises:
        BadSample: as `decode`.
    """
    if wave.dtype == np.int16:
        wave = wave.astype(np.float32) / FULL_SCALE
    wave = wave[:, None] if wave.ndim == 1 else wave
    if wave.ndim != 2 or not np.issubdtype(wave.dtype, np.floating):
        raise BadSample(f"expected float or int16 [samples] or [samples, channels], got {wave.dtype} {wave.shape}")
    if not wave.size:
        raise BadSample("empty audio")
    size = min(len(wave), math.ceil(options.seconds * rate))
    start = window_start(len(wave), size, place)
    wave = _mono(wave[start : start + size].astype(np.float32, copy=False), options.mono)
    if not np.isfinite(wave).all():
        raise BadSample("non-finite audio")
    if np.abs(wave).max() < SILENT:
        raise BadSample("silent audio")
    if rate != options.rate:
        _, soxr = _libraries()
        wave = soxr.resample(wave, rate, options.rate)
        if not len(wave):
            raise BadSample("empty audio")
    return _padded(np.clip(np.round(wave * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1).astype(np.int16), options)


def verify(content: bytes | memoryview, options: Options, stated: float = 0.0) -> None:
    """Raises BadSample, as `decode`, where a file cannot be decoded from its begin to its end."""
    soundfile, _ = _libraries()
    check_kind(content)
    frames, heard = 0, 0.0
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            _check_header(file, options, stated)
            for block in file.blocks(2**16, dtype="float32", always_2d=True):
                if not np.isfinite(block).all():
                    raise BadSample("non-finite audio")
                frames, heard = frames + len(block), max(heard, float(np.abs(block).max(initial=0.0)))
            if frames < file.frames:
                raise BadSample("truncated audio")
    except (soundfile.LibsndfileError, RuntimeError):
        raise BadSample("corrupt audio") from None
    if heard < SILENT:
        raise BadSample("silent audio")


def check_kind(content: bytes | memoryview) -> None:
    """Raises BadSample unless the first bytes are those of a format that is read; libsndfile knows some 20 others."""
    if not len(content):
        raise BadSample("empty audio")
    head = bytes(content[:12])
    known = (
        head[:4] in (b"fLaC", b"OggS") or head[:3] == b"ID3" or (head[:4] in (b"RIFF", b"RF64") and head[8:] == b"WAVE")
    )
    mp3 = len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0  # the sync word of a frame
    if not known and not mp3:
        raise BadSample("not audio")


def window_start(length: int, size: int, place: float | None) -> int:
    """Returns where a window of `size` samples starts: at `place`, 0 <= place < 1, of all starts; None: centred."""
    spare = length - size
    return spare // 2 if place is None else min(int(place * (spare + 1)), spare)


def _check_header(file: Any, options: Options, stated: float) -> None:
    if not file.frames:
        raise BadSample("empty audio")
    if file.channels > _CHANNELS:
        raise BadSample("audio of too many channels")
    if not _RATES[0] <= file.samplerate <= _RATES[1]:
        raise BadSample("audio rate out of range")
    seconds = file.frames / file.samplerate
    if seconds > options.max_seconds:
        raise BadSample("audio too long")
    if stated - seconds > SHORT:
        raise BadSample("truncated audio")


def _mono(wave: np.ndarray, how: str) -> np.ndarray:
    """Returns one channel [samples] of [samples, channels]."""
    if wave.shape[1] == 1:
        return wave[:, 0]
    return wave.mean(axis=1) if how == "mean" else wave[:, int(np.argmax(np.square(wave).sum(axis=0)))]


def _padded(samples: np.ndarray, options: Options) -> Clip:
    samples = samples[: options.length]
    if options.pad == "repeat":
        samples = np.tile(samples, options.length // len(samples))
    out = np.zeros(options.length, np.int16)
    out[: len(samples)] = samples
    return Clip(out, len(samples))


def _libraries() -> tuple[Any, Any]:
    """Returns the modules soundfile and soxr. Raises DataError where they are not installed."""
    try:
        import soundfile
        import soxr
    except (ImportError, OSError) as error:  # OSError: soundfile without its libsndfile
        missing = getattr(error, "name", None) or "libsndfile"
        raise DataError(f'audio needs {missing}, which is not installed: run `pip install "xmodal[audio]"`') from None
    return soundfile, soxr
