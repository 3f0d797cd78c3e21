"""Audio: clips of one length, mono, 16 bit; the device makes spectrograms of them."""

import base64
import io
import os
import wave
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np
from PIL import Image as Pillow

from data_pipelines import rng
from data_pipelines.audio.decode import AUDIO_EXTENSIONS, FULL_SCALE, Clip, Options, decode, from_wave, verify
from data_pipelines.errors import BadSample
from data_pipelines.modalities.base import ArraySpec, Fact, Modality, Part, Random, shown
from data_pipelines.samples import Sample
from data_pipelines.text.fields import lookup


class Encoded(NamedTuple):
    """An encoded file and what its sample says of it.

    Attributes:
        content: the file.
        seconds: that it should have; 0 where nobody knows.
    """

    content: bytes | memoryview
    seconds: float


@dataclass(frozen=True)
class Audio(Modality):
    """A sound: WAV, FLAC, MP3, Ogg Vorbis or Ogg Opus. Needs the extra `audio` (pip install "xmodal[audio]").

    The batch has `<input>` int16 [rows, rate * seconds] and `<input>_length` int32 [rows], how many of the samples are
    not padding. The training takes a random window of a longer sound, the evaluation the central one.

    Attributes:
        rate: samples a second; other files are resampled. Whisper and AST: 16000, CLAP: 48000.
        seconds: of a clip. Longer sounds are cut, shorter ones are padded.
        mono: mean of the channels, or the loudest channel, as a mean halves recordings of which one channel is empty.
        pad: with zeros, or repeat as often as it fits, then zeros (CLAP).
        stated: json field with the seconds that a file should have, such as "seconds": files that are cut off decode
            without an error, and more than 50 ms less make a bad sample. "" does not look.
        max_seconds: longer sounds are bad samples; a small file can claim any length.
    """

    rate: int = shown(16000)
    seconds: float = shown(10.0)
    mono: str = shown("mean")
    pad: str = shown("zeros")
    stated: str = ""
    max_seconds: float = 3600.0

    type: ClassVar[str] = "audio"
    noun: ClassVar[str] = "audio"
    extensions: ClassVar[tuple[str, ...]] = AUDIO_EXTENSIONS
    columns: ClassVar[tuple[str, ...]] = ("audio", "audio_path", "wav", "sound")
    words: ClassVar[int] = 4
    use: ClassVar[str] = "window"

    def find(self, sample: Sample) -> Part:
        """See `Modality`; with `stated` the content is an `Encoded`."""
        part = super().find(sample)
        if not self.stated:
            return part
        seconds = lookup(sample.record.fields, self.stated)
        if isinstance(seconds, bool) or not isinstance(seconds, int | float):
            raise BadSample("no length of the audio")
        return part._replace(content=Encoded(part.content, float(seconds)))

    def arrays(self, rows: int, draw: int = 0) -> dict[str, ArraySpec]:
        """See `Modality`."""
        samples = ArraySpec((rows, self.options.length), np.int16)
        return {self.name: samples, self.length: ArraySpec((rows,), np.int32)}

    def train(self, part: Part, random: Random, batch: Mapping[str, np.ndarray], row: int) -> None:
        """See `Modality`: a random window."""
        place = float(rng.uniform(random.words[self.name])[0])
        self._write(self.opened(part.content, place), batch, row)

    def evaluate(self, raw: Any, batch: Mapping[str, np.ndarray], row: int) -> None:
        """See `Modality`: the central window; for `raw` see `opened`."""
        self._write(self.opened(raw), batch, row)

    def opened(self, raw: Any, place: float | None = None) -> Clip:
        """Returns what a user has as a clip.

        Args:
            raw: encoded bytes, a path, or (samples, rate) with int16 or float samples [samples] or [samples, channels].
            place: of the window, see `decode`.

        Raises:
            BadSample: it is no audio, damaged, silent or too long.
        """
        if isinstance(raw, tuple) and not isinstance(raw, Encoded):
            samples, rate = raw
            return from_wave(np.asarray(samples), rate, self.options, place)
        if isinstance(raw, np.ndarray):
            raise BadSample("expected (samples, rate): an array does not say its rate")
        content, seconds = encoded(raw)
        return decode(content, self.options, place, seconds)

    def show(self, batch: Mapping[str, np.ndarray], row: int) -> str:
        """See `Modality`: a player."""
        samples, out = batch[self.name][row][: int(batch[self.length][row])], io.BytesIO()
        with wave.open(out, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(self.rate)
            file.writeframes(samples.astype("<i2").tobytes())
        return f'<audio controls src="data:audio/wav;base64,{base64.b64encode(out.getvalue()).decode()}"></audio>'

    def describe(self, batch: Mapping[str, np.ndarray], row: int) -> str:
        """See `Modality`."""
        count = int(batch[self.length][row])
        peak = np.abs(batch[self.name][row].astype(np.int32)).max() / FULL_SCALE
        return f"{count / self.rate:.2f} s of {self.seconds:g} s at {self.rate} Hz, peak {peak:.2f}"

    def thumbnail(self, content: Any, size: int) -> bytes:
        """See `Modality`: the amplitude over time, of the central window."""
        clip, buffer = self.opened(content), io.BytesIO()
        columns = np.array_split(np.abs(clip.samples[: clip.valid].astype(np.float32)), size)
        level = np.array([column.max() if len(column) else 0.0 for column in columns])
        height = level / max(level.max(), 1.0) * size / 2
        inside = np.abs(np.arange(size)[:, None] - (size - 1) / 2) <= height
        Pillow.fromarray(np.where(inside, 64, 255).astype(np.uint8)).save(buffer, "PNG", optimize=True)
        return buffer.getvalue()

    def check(self, device: bool = False) -> None:
        """See `Modality`."""
        self.options.check()

    def verify(self, content: Any, whole: bool = False) -> None:
        """See `Modality`: without `whole` the window that the evaluation takes is decoded."""
        raw, seconds = encoded(content)
        if whole:
            verify(raw, self.options, seconds)
        else:
            decode(raw, self.options, stated=seconds)

    def signature(self) -> dict[str, Any]:
        """See `Modality`."""
        return super().signature() | (dict(stated=self.stated) if self.stated else {})

    def fields(self) -> tuple[str, ...]:
        """See `Modality`."""
        return (self.stated,) if self.stated else ()

    def field_use(self, field: str) -> str:
        """See `Modality`."""
        return f"{self.where}.stated"

    def facts(self) -> dict[str, Fact]:
        """See `Modality`."""
        return dict(
            rate=Fact(self.rate, f"{self.where}.rate"),
            samples=Fact(self.options.length, f"{self.where}.rate times {self.where}.seconds"),
        )

    @property
    def length(self) -> str:
        """Name of the array that says how many samples are not padding."""
        return f"{self.name}_length"

    @cached_property
    def options(self) -> Options:
        """How audio is decoded."""
        return Options(self.rate, self.seconds, self.mono, self.pad, self.max_seconds, self.where)

    def _write(self, clip: Clip, batch: Mapping[str, np.ndarray], row: int) -> None:
        batch[self.name][row], batch[self.length][row] = clip


def encoded(raw: Any) -> Encoded:
    """Returns encoded bytes, the file at a path, or what `Audio.find` gives, as an `Encoded`."""
    if isinstance(raw, Encoded):
        return raw
    if isinstance(raw, str | os.PathLike):
        with open(raw, "rb") as file:
            raw = file.read()
    return Encoded(raw, 0.0)
