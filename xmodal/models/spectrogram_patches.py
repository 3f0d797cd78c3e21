"""Sound to patch tokens: a log-mel spectrogram cut into patches (AST, Gong et al. 2021)."""

import dataclasses
import math
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from xmodal import keys as key_tools
from xmodal.models import init
from xmodal.models.conv import convolve
from xmodal.models.embedder import EmbedSpec
from xmodal.models.layers import sincos_positions
from xmodal.models.options import SHAPES, TRAINING
from xmodal.models.patches import random_patches
from xmodal.models.spectrogram import FRONT_ENDS, FrontEnd, log_mel, valid_frames
from xmodal.models.tokens import Tokens


@dataclasses.dataclass(frozen=True)
class SpectrogramSpec(EmbedSpec):
    """Sound to patch tokens, the patches of the lowest bands first (AST, section 2.1).

    Attributes:
      kind: of the log-mel front end: whisper | kaldi (AST, ImageBind) | clap, see `xmodal.models.spectrogram`.
      rate: samples a second; 0 takes the data's. Each kind is defined for one rate.
      samples: of a clip; 0 takes the data's.
      mels: bands; 0: as many as the kind has.
      mean: of the logarithms, subtracted; with `std` 0 those of the kind are taken.
      std: of the logarithms, divides then.
      patch_size: bands and frames of a patch.
      stride: bands and frames between patches (AST: 10); 0: `patch_size`. What fills no patch is left out.
      class_tokens: learned tokens before the patches (AST: 2, class and distillation token).
      position: learned (added to all tokens), fixed sine-cosine (patches only) or none (trunks with rotary positions).
      mask_padding: patches that show padding alone are invisible. AST and CLAP see them: False.
      mask_bands: at most so many neighbouring bands are hidden in training (SpecAugment, Park et al. 2019; AST: 48).
      mask_frames: at most so many neighbouring frames are hidden in training (AST: 192).
      patch_dropout: share of patches left out in training (FLIP).
      input: name of the array in the batch, int16 [batch, samples]; `<input>_length`, int32 [batch], says how many of
        the samples are not padding.
    """

    takes: ClassVar = "samples"
    rank: ClassVar = 2

    type: Literal["spectrogram"] = "spectrogram"
    kind: Literal["whisper", "kaldi", "clap"] = "whisper"
    rate: int = 0
    samples: int = dataclasses.field(default=0, metadata=SHAPES)
    mels: int = 0
    mean: float = 0.0
    std: float = 0.0
    patch_size: int = 16
    stride: int = 0
    class_tokens: int = 1
    position: Literal["learned", "sincos", "none"] = "learned"
    mask_padding: bool = True
    mask_bands: int = dataclasses.field(default=0, metadata=TRAINING)
    mask_frames: int = dataclasses.field(default=0, metadata=TRAINING)
    patch_dropout: float = dataclasses.field(default=0.0, metadata=TRAINING)
    input: str = "audio"

    def build(self, width, scheme, dtype, draw):
        """See `EmbedSpec`."""
        return SpectrogramEmbed(self, width, scheme, dtype, draw)

    @property
    def front(self) -> FrontEnd:
        """The front end. Raises ValueError where the data have another rate."""
        front = FRONT_ENDS[self.kind]
        if self.rate != front.rate:
            raise ValueError(f"kind={self.kind!r} is defined for {front.rate} samples a second, got rate={self.rate}")
        changes = dict(mean=self.mean, std=self.std) if self.std else {}
        return dataclasses.replace(front, mels=self.mels or front.mels, **changes)

    @property
    def step(self) -> int:
        """Bands and frames between patches."""
        return self.stride or self.patch_size

    @property
    def grid(self) -> tuple[int, int]:
        """Patches (bands, frames)."""
        front = self.front
        sides = front.mels, front.frames(self.samples)
        if min(sides) < self.patch_size:
            raise ValueError(f"a spectrogram of {sides} bands and frames has no patch of {self.patch_size}")
        return tuple((side - self.patch_size) // self.step + 1 for side in sides)

    @property
    def prefix(self) -> int:
        """Tokens before the patches."""
        return self.class_tokens

    @property
    def tokens(self) -> int:
        """Length of the sequence."""
        return self.prefix + math.prod(self.grid)


class SpectrogramEmbed(nnx.Module):
    """Cuts spectrograms into patches; int16 [batch, samples] -> Tokens [batch, tokens, width]."""

    def __init__(self, spec: SpectrogramSpec, width: int, scheme: init.Scheme, dtype, draw: init.Draws):
        self.spec, self.dtype = spec, dtype
        self.kernel = draw(scheme.patch, spec.patch_size, spec.patch_size, 1, width)
        self.bias = nnx.Param(jnp.zeros((width,), jnp.float32))
        self.class_token = draw(scheme.class_token, spec.class_tokens, width) if spec.class_tokens else None
        self.position = draw(scheme.image_position, spec.tokens, width) if spec.position == "learned" else None

    def __call__(self, batch: dict[str, jax.Array], keys=None, rows=0, read=()) -> tuple[Tokens, dict]:
        spec, wave = self.spec, batch[self.spec.input]
        if wave.shape[1] != spec.samples:
            raise ValueError(f"the model expects {spec.samples} samples of {spec.input}, got {wave.shape}")
        length, front = batch.get(f"{spec.input}_length"), spec.front
        mel = mask_spans(log_mel(wave, front, length), spec.mask_bands, spec.mask_frames, keys)
        x = convolve(mel[..., None].astype(self.dtype), self.kernel[...], spec.step, "VALID")
        x = x.reshape(len(x), -1, x.shape[-1]) + self.bias[...].astype(self.dtype)
        if spec.position == "sincos":
            x = x + sincos_positions(spec.grid, x.shape[-1]).astype(x.dtype)
        valid = None
        if spec.mask_padding and length is not None:
            # A patch is padding where its first frame is.
            shown = valid_frames(length, mel.shape[2], front)[:, : spec.grid[1] * spec.step : spec.step]
            valid = jnp.broadcast_to(shown[:, None], (len(x), *spec.grid)).reshape(len(x), -1)
            valid = jnp.pad(valid, ((0, 0), (spec.prefix, 0)), constant_values=True)
        if self.class_token is not None:
            first = self.class_token[...].astype(x.dtype)
            x = jnp.concatenate([jnp.broadcast_to(first, (len(x), *first.shape)), x], axis=1)
        if self.position is not None:
            x = x + self.position[...].astype(x.dtype)
        pos = jnp.stack(jnp.meshgrid(*map(jnp.arange, spec.grid), indexing="ij"), axis=-1).reshape(-1, 2)
        pos = jnp.pad(pos.astype(jnp.int32), ((spec.prefix, 0), (0, 0)))
        tokens = Tokens(x, valid=valid, pos=jnp.broadcast_to(pos, (len(x), *pos.shape)))
        if keys is not None and spec.patch_dropout:
            tokens = keep_patches(tokens, random_patches(keys, math.prod(spec.grid), spec.patch_dropout), spec.prefix)
        return tokens.replace(segments=((spec.input, tokens.x.shape[1]),)), {}


def keep_patches(tokens: Tokens, keep: jax.Array, prefix: int) -> Tokens:
    """Returns the prefix and some of the patches behind it.

    Args:
      tokens: [batch, prefix + patches, width].
      keep: int32 [batch, kept], numbers of patches.
      prefix: tokens that always stay.
    """
    always = jnp.broadcast_to(jnp.arange(prefix), (len(keep), prefix))
    index = jnp.concatenate([always, keep + prefix], axis=1)
    take = lambda a: jnp.take_along_axis(a, index[..., None], axis=1)
    valid = None if tokens.valid is None else jnp.take_along_axis(tokens.valid, index, axis=1)
    return tokens.replace(x=take(tokens.x), pos=take(tokens.pos), valid=valid, index=index)


def mask_spans(mel: jax.Array, bands: int, frames: int, keys: jax.Array | None) -> jax.Array:
    """Hides a span of bands and one of frames of each spectrogram (SpecAugment, Park et al. 2019, section 2).

    Args:
      mel: [batch, mels, frames]. Hidden values become the mean of the spectrogram.
      bands: at most so many; 0 hides none. The number is uniform in 0..bands, the place uniform.
      frames: as `bands`.
      keys: per-sample keys [batch]; None hides nothing.
    """
    if keys is None or not (bands or frames):
        return mel
    mean, hidden = jnp.mean(mel, axis=(1, 2), keepdims=True), jnp.zeros(mel.shape, bool)
    for axis, most in ((1, bands), (2, frames)):
        size = mel.shape[axis]
        u = key_tools.uniform(key_tools.fold(keys, f"mask_spans_{axis}"), (2,))
        count = jnp.floor(u[:, :1] * (min(most, size) + 1))
        start = jnp.floor(u[:, 1:] * (size - count + 1))
        place = jnp.arange(size)
        inside = (place >= start) & (place < start + count)
        hidden |= jnp.expand_dims(inside, 3 - axis)
    return jnp.where(hidden, mean, mel)
