"""Images to patch tokens (ViT)."""

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
from xmodal.models.layers import Norm, patches_matmul, sincos_positions
from xmodal.models.options import SHAPES, TRAINING
from xmodal.models.resample import Filter, resample_grid
from xmodal.models.tokens import Tokens


@dataclasses.dataclass(frozen=True)
class PatchSpec(EmbedSpec):
    """Images to patch tokens (ViT).

    Attributes:
      image_size: pixels, a side or (height, width); 0 takes the data's size.
      patch_size: pixels; with a stem the strides of the stem are part of it.
      ragged: images may be larger than a whole number of patches; what is left over, below and on the right, is not
        looked at (So400m/14 at 384 pixels).
      stem: convolutions before the patch map (Xiao et al. 2021, "Early convolutions"), each (channels, kernel size,
        stride); () is the plain ViT.
      class_token: prepend a learned token.
      registers: learned tokens between the class token and the patches, without positions (Darcet et al. 2024).
      position: learned (added to class token and patches), fixed sine-cosine (patches only) or none (trunks with
        rotary positions, `rope`, rotate by row and column; class token and registers are at (0, 0)).
      position_size: pixels, as `image_size`, for which there are learned positions; they are resampled for images of
        another size, in training too (DINOv2). 0: as many as there are patches.
      position_filter: of that resampling, see `xmodal.models.resample`.
      bias: bias of the patch map (CLIP has none).
      pre_norm: a norm after the positions (CLIP's `ln_pre`).
      norm_eps: of the pre-norm.
      patch_dropout: share of patches left out in training (FLIP).
      input: name of the array in the batch, [batch, height, width, 3]; where the batch has `<input>_keep`, int32
        [batch, kept], only these patches go on.
    """

    takes: ClassVar = "pixels"
    rank: ClassVar = 4

    type: Literal["patch"] = "patch"
    image_size: int | tuple[int, int] = dataclasses.field(default=0, metadata=SHAPES)
    patch_size: int = 16
    ragged: bool = dataclasses.field(default=False, metadata=SHAPES)
    stem: tuple[tuple[int, int, int], ...] = ()
    class_token: bool = True
    registers: int = 0
    position: Literal["learned", "sincos", "none"] = "learned"
    position_size: int | tuple[int, int] = dataclasses.field(default=0, metadata=SHAPES)
    position_filter: Filter = dataclasses.field(default="bicubic_antialias", metadata=SHAPES)
    bias: bool = True
    pre_norm: bool = False
    norm_eps: float = 1e-6
    patch_dropout: float = dataclasses.field(default=0.0, metadata=TRAINING)
    input: str = "image"

    def build(self, width, scheme, dtype, draw):
        """See `EmbedSpec`."""
        return PatchEmbed(self, width, scheme, dtype, draw)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches (down, across)."""
        return self._patches(self.image_size, "image size")

    @property
    def position_grid(self) -> tuple[int, int]:
        """Learned positions (down, across)."""
        return self._patches(self.position_size, "position size") if self.position_size else self.grid

    @property
    def prefix(self) -> int:
        """Tokens before the patches."""
        return self.class_token + self.registers

    @property
    def tokens(self) -> int:
        """Length of the sequence."""
        return self.prefix + math.prod(self.grid)

    def _patches(self, size: int | tuple[int, int], what: str) -> tuple[int, int]:
        size = size if isinstance(size, tuple) else (size,) * 2
        if any(s < self.patch_size or (s % self.patch_size and not self.ragged) for s in size):
            raise ValueError(f"{what} {size} is not a multiple of the patch size {self.patch_size}")
        return size[0] // self.patch_size, size[1] // self.patch_size


class PatchEmbed(nnx.Module):
    """Cuts images into patches; [batch, height, width, 3] -> Tokens [batch, tokens, width]."""

    def __init__(self, spec: PatchSpec, width: int, scheme: init.Scheme, dtype, draw: init.Draws):
        self.spec, self.dtype = spec, dtype
        stride = math.prod(step for _, _, step in spec.stem)
        if spec.patch_size % stride:
            raise ValueError(f"patch_size {spec.patch_size} is not a multiple of the strides of the stem, {stride}")
        sizes = (3, *(channels for channels, _, _ in spec.stem))
        self.stem = nnx.Dict({str(i): StemStage(sizes[i], *stage, draw=draw) for i, stage in enumerate(spec.stem)})
        channels, patch = sizes[-1], spec.patch_size // stride
        self.kernel = draw(scheme.patch, patch, patch, channels, width)
        self.bias = nnx.Param(jnp.zeros((width,), jnp.float32)) if spec.bias else None
        count = math.prod(spec.position_grid) + spec.class_token
        self.class_token = draw(scheme.class_token, width) if spec.class_token else None
        self.registers = draw(scheme.class_token, spec.registers, width) if spec.registers else None
        self.position = draw(scheme.image_position, count, width) if spec.position == "learned" else None
        self.pre_norm = Norm(width, eps=spec.norm_eps) if spec.pre_norm else None

    def __call__(self, batch: dict[str, jax.Array], keys=None, rows=0, read=()) -> tuple[Tokens, dict]:
        images, spec = batch[self.spec.input].astype(self.dtype), self.spec
        down, across = spec.grid
        if spec.ragged:
            images = images[:, : down * spec.patch_size, : across * spec.patch_size]
        for i in range(len(spec.stem)):
            images = self.stem[str(i)](images)
        if images.shape[1] != down * self.kernel.shape[0] or images.shape[2] != across * self.kernel.shape[1]:
            raise ValueError(f"the model expects {spec.image_size} pixels, got images {batch[spec.input].shape}")
        x = patches_matmul(images, self.kernel[...].astype(self.dtype))
        if self.bias is not None:
            x = x + self.bias[...].astype(self.dtype)
        y, z = jnp.meshgrid(jnp.arange(down), jnp.arange(across), indexing="ij")
        pos = jnp.stack([y.ravel(), z.ravel()], axis=-1).astype(jnp.int32)
        if spec.position == "sincos":
            x = x + sincos_positions(spec.grid, x.shape[-1]).astype(x.dtype)
        before = lambda a: jnp.broadcast_to(a[...].astype(x.dtype), (x.shape[0], *a.shape))
        if self.class_token is not None:
            x = jnp.concatenate([before(self.class_token)[:, None], x], axis=1)
        if self.position is not None:
            table = resample_grid(self.position[...], spec.position_grid, spec.grid, spec.position_filter)
            x = x + table.astype(x.dtype)
        if self.registers is not None:
            parts = jnp.split(x, [int(spec.class_token)], axis=1)
            x = jnp.concatenate([parts[0], before(self.registers), parts[1]], axis=1)
        pos = jnp.concatenate([jnp.zeros((spec.prefix, 2), jnp.int32), pos])
        pos = jnp.broadcast_to(pos, (x.shape[0], *pos.shape))
        keep, index = batch.get(f"{spec.input}_keep"), None
        if keep is None and keys is not None and spec.patch_dropout:
            keep = random_patches(keys, down * across, spec.patch_dropout)
        if keep is not None:
            always = jnp.broadcast_to(jnp.arange(spec.prefix), (x.shape[0], spec.prefix))
            index = jnp.concatenate([always, keep + spec.prefix], axis=1)
            x, pos = (jnp.take_along_axis(a, index[..., None], axis=1) for a in (x, pos))
        x = x if self.pre_norm is None else self.pre_norm(x)
        return Tokens(x, pos=pos, index=index, segments=((spec.input, x.shape[1]),)), {}


class StemStage(nnx.Module):
    """A strided convolution, LayerNorm over channels and GELU: one stage of a stem."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int, *, draw: init.Draws):
        self.stride = stride
        self.kernel = draw(init.he, size, size, inputs, outputs)
        self.norm = Norm(outputs)

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel, (b, h, w, _) = self.kernel[...].astype(x.dtype), x.shape
        if kernel.shape[0] == self.stride:
            y = patches_matmul(x, kernel).reshape(b, h // self.stride, w // self.stride, -1)
        else:
            y = convolve(x, kernel, self.stride)
        return jax.nn.gelu(self.norm(y), approximate=True)


def random_patches(keys: jax.Array, count: int, rate: float) -> jax.Array:
    """Chooses a random share 1 - rate of the patches of each sample, in order (FLIP, Li et al. 2023).

    Args:
      keys: per-sample keys [batch].
      count: patches of an image.
      rate: share to leave out.

    Returns:
      int32 [batch, max(1, round(count * (1 - rate)))], their numbers.
    """
    keep = max(1, round(count * (1.0 - rate)))
    scores = key_tools.uniform(key_tools.fold(keys, "patch_dropout"), (count,))
    return jnp.sort(jnp.argsort(scores, axis=1)[:, :keep], axis=1)
