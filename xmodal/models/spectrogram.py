"""Log-mel spectrograms on the device, as Whisper, Kaldi (AST, ImageBind) and LAION-CLAP define them.

One function with parameters: a `FrontEnd` says what differs. Framing, removal of the mean, pre-emphasis, window and
Fourier transform are linear in the samples of a frame, so they are one matrix; a frame is a few whole hops, so no frame
is copied: the spectrum is a sum of matrix products of the hops with parts of that matrix.
"""

import dataclasses
import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

FULL_SCALE = 32768  # int16 of the amplitude 1
_UNITS = dict(ln=1.0, log10=1 / math.log(10), db=10 / math.log(10))  # of a natural logarithm
_EXACT = jax.lax.Precision.HIGHEST  # a logarithm follows: bfloat16 products would be seen


@dataclasses.dataclass(frozen=True)
class FrontEnd:
    """What a log-mel spectrogram is.

    Attributes:
      rate: samples a second.
      size: samples of a frame.
      hop: samples between frames.
      fft: points of the transform; a frame is filled up with zeros.
      window: hann (periodic) or hanning (symmetric).
      centred: frames are centred on multiples of the hop, the ends are mirrored; else only whole frames are taken
        (Kaldi's `snip_edges`).
      drop_last: leave the last frame out (Whisper).
      dc: remove the mean of each frame.
      preemphasis: of each frame, x[t] - preemphasis * x[t - 1].
      mels: bands.
      low: Hz where the lowest band starts.
      high: Hz where the highest band ends.
      scale: slaney or kaldi: the mel scale. Kaldi draws the triangles on the mel axis, Slaney on that of Hz.
      area: bands have equal areas, and not equal heights.
      log: log10, ln or db (10 * log10).
      floor: least power.
      top: values more than this below the greatest of a clip are raised to it; 0: none (Whisper: 8).
      mean: subtracted from the logarithm.
      std: divides then.
      blank: frames that hold padding are 0 before the normalisation (AST pads spectrograms, not waves).
    """

    rate: int
    size: int
    hop: int
    fft: int
    mels: int
    low: float
    high: float
    window: Literal["hann", "hanning"] = "hann"
    centred: bool = True
    drop_last: bool = False
    dc: bool = False
    preemphasis: float = 0.0
    scale: Literal["slaney", "kaldi"] = "slaney"
    area: bool = True
    log: Literal["log10", "ln", "db"] = "log10"
    floor: float = 1e-10
    top: float = 0.0
    mean: float = 0.0
    std: float = 1.0
    blank: bool = False

    def frames(self, samples: int) -> int:
        """Returns the number of frames of so many samples."""
        if not self.centred:
            return max(0, 1 + (samples - self.size) // self.hop)
        return 1 + samples // self.hop - self.drop_last


FRONT_ENDS = {
    # Radford et al. 2022; transformers' WhisperFeatureExtractor.
    "whisper": FrontEnd(16000, 400, 160, 400, 80, 0.0, 8000.0, drop_last=True, top=8.0, mean=-4.0, std=4.0),
    # Gong et al. 2021, AST; transformers' ASTFeatureExtractor, which is torchaudio's Kaldi with a Hanning window.
    "kaldi": FrontEnd(
        16000, 400, 160, 512, 128, 20.0, 8000.0, window="hanning", centred=False, dc=True, preemphasis=0.97,
        scale="kaldi", area=False, log="ln", floor=2.0**-23, mean=-4.2677393, std=2 * 4.5689974, blank=True,
    ),
    # Wu et al. 2023, LAION-CLAP; transformers' ClapFeatureExtractor with truncation="rand_trunc".
    "clap": FrontEnd(48000, 1024, 480, 1024, 64, 0.0, 14000.0, log="db"),
}  # fmt: skip


def log_mel(wave: jax.Array, front: FrontEnd, valid: jax.Array | None = None) -> jax.Array:
    """Computes log-mel spectrograms.

    Args:
      wave: int16 [batch, samples].
      front: see `FrontEnd`.
      valid: int32 [batch], samples of each row that are not padding; read where `front.blank`. None: all.

    Returns:
      float32 [batch, mels, frames].

    Raises:
      ValueError: there are too few samples for a frame.
    """
    frames = front.frames(wave.shape[1])
    if frames < 1 or (front.centred and wave.shape[1] <= front.fft // 2):
        raise ValueError(f"{wave.shape[1]} samples are too few for a frame of {front.size}")
    x = wave.astype(jnp.float32) / FULL_SCALE
    if front.centred:
        x = jnp.pad(x, ((0, 0), (front.fft // 2,) * 2), mode="reflect")
    spectrum = _spectrum(x, frames, front)
    power = jnp.square(spectrum[..., 0]) + jnp.square(spectrum[..., 1])
    mel = jnp.einsum("bfk,km->bmf", power, jnp.asarray(_bank(front), jnp.float32), precision=_EXACT)
    log = (
        jnp.log(jnp.maximum(mel, front.floor))
        * {"ln": 1.0, "log10": 1 / math.log(10), "db": 10 / math.log(10)}[front.log]
    )
    if front.top:
        log = jnp.maximum(log, jnp.max(log, axis=(1, 2), keepdims=True) - front.top)
    if front.blank and valid is not None:
        log = jnp.where(valid_frames(valid, frames, front)[:, None], log, 0.0)
    return (log - front.mean) / front.std


def valid_frames(valid: jax.Array, frames: int, front: FrontEnd) -> jax.Array:
    """Returns bool [batch, frames]: which frames show samples of the clip.

    Args:
      valid: int32 [batch], samples that are not padding.
      frames: of a row.
      front: centred frames count where their centre is in the clip, others where the whole frame is.
    """
    count = -(-valid // front.hop) if front.centred else (valid - front.size) // front.hop + 1
    return jnp.arange(frames) < count[:, None]


def _spectrum(x: jax.Array, frames: int, front: FrontEnd) -> jax.Array:
    """Returns the Fourier transforms of all frames of x [batch, samples], float32 [batch, frames, bins, 2]."""
    matrix = _transform(front)
    hops = -(-len(matrix) // front.hop)
    matrix = np.pad(matrix, ((0, hops * front.hop - len(matrix)), (0, 0))).reshape(hops, front.hop, -1)
    length = (frames + hops - 1) * front.hop
    x = jnp.pad(x[:, :length], ((0, 0), (0, max(0, length - x.shape[1])))).reshape(len(x), -1, front.hop)
    parts = (
        jnp.einsum("bfh,hk->bfk", x[:, i : i + frames], jnp.asarray(matrix[i]), precision=_EXACT) for i in range(hops)
    )
    return sum(parts).reshape(len(x), frames, -1, 2)


@functools.cache
def _transform(front: FrontEnd) -> np.ndarray:
    """All that happens to a frame up to its Fourier transform, float32 [size, bins * 2] (real, imaginary)."""
    size = front.size
    linear = np.eye(size)
    if front.dc:
        linear -= 1 / size
    if front.preemphasis:
        before = np.eye(size, k=-1)
        before[0, 0] = 1.0  # the first sample stands for the one before it
        linear = (np.eye(size) - front.preemphasis * before) @ linear
    angle = 2 * np.pi * np.arange(size) / size
    window = 0.5 - 0.5 * np.cos(angle) if front.window == "hann" else np.hanning(size)
    return np.stack(_real_and_imaginary(window[:, None] * linear, front.fft), axis=-1).reshape(size, -1)


def _real_and_imaginary(linear: np.ndarray, fft: int) -> tuple[np.ndarray, np.ndarray]:
    found = np.fft.rfft(linear, fft, axis=0).T  # [size, bins]
    return found.real.astype(np.float32), found.imag.astype(np.float32)


def _mel(hertz: np.ndarray, scale: str) -> np.ndarray:
    """Hertz on a mel scale: logarithmic above 1000 Hz (Slaney), or everywhere (Kaldi)."""
    hertz = np.asarray(hertz, np.float64)
    if scale == "kaldi":
        return 1127.0 * np.log(1.0 + hertz / 700.0)
    logarithmic = 15.0 + np.log(np.maximum(hertz, 1e-9) / 1000.0) * 27.0 / math.log(6.4)
    return np.where(hertz >= 1000.0, logarithmic, 3.0 * hertz / 200.0)


@functools.cache
def _bank(front: FrontEnd) -> np.ndarray:
    """Triangular bands, float64 [bins, mels]."""
    bins = front.fft // 2 + 1
    edges = np.linspace(*_mel(np.array([front.low, front.high]), front.scale), front.mels + 2)
    places = np.arange(bins) * front.rate / front.fft
    if front.scale == "kaldi":
        places = _mel(places, front.scale)
    else:
        edges = np.where(edges >= 15.0, 1000.0 * np.exp(math.log(6.4) / 27.0 * (edges - 15.0)), 200.0 * edges / 3.0)
    step, slope = np.diff(edges), edges[None] - places[:, None]
    bank = np.maximum(0.0, np.minimum(-slope[:, :-2] / step[:-1], slope[:, 2:] / step[1:]))
    return bank * (2.0 / (edges[2:] - edges[:-2])) if front.area else bank
