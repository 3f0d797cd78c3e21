"""Masked autoencoding: most patches of an image are left out, and their pixels guessed from the others."""

import dataclasses

import jax
import jax.numpy as jnp

from xmodal import keys as key_tools
from xmodal.objectives.base import Loss, Objective, View, count_rows, weighed


@dataclasses.dataclass(frozen=True)
class DropPatches(View):
    """Leaves patches out: `<input>_keep`, int32 [batch, kept], holds the numbers of those that the encoder sees.

    Beside it stands `<input>_dropped`, int32 [batch, left out], the numbers of the others; both are in rising order.

    Attributes:
      input: name of the images.
      patch_size: pixels.
      rate: share of the patches that is left out.
    """

    input: str = "image"
    patch_size: int = 16
    rate: float = 0.75

    def __call__(self, batch, keys):
        """See `View`; without keys every batch of a size leaves out the same patches."""
        images = batch[self.input]
        keys = key_tools.sample_keys(0, 0, len(images)) if keys is None else keys
        count = (images.shape[1] // self.patch_size) * (images.shape[2] // self.patch_size)
        keep = min(max(1, round(count * (1.0 - self.rate))), count - 1)
        order = jnp.argsort(key_tools.uniform(key_tools.fold(keys, "patches"), (count,)), axis=1)
        parts = dict(keep=order[:, :keep], dropped=order[:, keep:])
        return {**batch, **{f"{self.input}_{name}": jnp.sort(part, axis=1) for name, part in parts.items()}}


@dataclasses.dataclass(frozen=True)
class MaskedPixels(Objective):
    """Squared error of the pixels of patches that were left out, mean over them (He et al. 2021, section 3).

    Attributes:
      tower: the decoder, whose `pixels` [batch, patches, values] guess.
      input: name of the images in the batch.
      patch_size: pixels along a side of a patch; as in the tower's head.
      rate: share of the patches that is left out.
      normalize: every patch is guessed as its values minus their mean, over their deviation ("w/ norm" in table 1d).
    """

    tower: str = "decoder"
    input: str = "image"
    patch_size: int = 16
    rate: float = 0.75
    normalize: bool = True

    def __post_init__(self):
        if not 0.0 < self.rate < 1.0:
            raise ValueError(f"rate is {self.rate}, and some patches are left out and some seen: between 0 and 1")

    @property
    def view(self) -> View:
        """Images of which the encoder sees a share."""
        return DropPatches(self.input, self.patch_size, self.rate)

    @property
    def needs(self) -> frozenset[str]:
        """Pixels of all patches."""
        return frozenset({f"{self.tower}.pixels"})

    def check(self, model_spec) -> None:
        """The head guesses patches of this size."""
        head = model_spec.towers[self.tower].heads["pixels"]
        if head.patch_size != self.patch_size:
            raise ValueError(
                f"patch_size is {self.patch_size}, and model.towers.{self.tower}.heads.pixels.patch_size is "
                f"{head.patch_size}: make them agree"
            )

    def chance_loss(self, batch_size: int, model_spec) -> float:
        """The variance of a normalised patch; that of the pixels is not known, and near 1 for normalised images."""
        return 1.0

    def __call__(self, outputs, batch, params, mesh):
        dropped = batch[f"{self.input}_dropped"][..., None]
        guess = jnp.take_along_axis(outputs[f"{self.tower}.pixels"], dropped, axis=1)
        target = jnp.take_along_axis(patches(batch[self.input], self.patch_size), dropped, axis=1)
        if self.normalize:
            mean, var = jnp.mean(target, -1, keepdims=True), jnp.var(target, -1, ddof=1, keepdims=True)
            target = (target - mean) * jax.lax.rsqrt(var + 1e-6)
        losses = jnp.mean(jnp.square(guess - target), axis=(1, 2))
        return Loss(jnp.sum(weighed(losses, batch)), count_rows(batch, len(losses)), {})


def patches(images: jax.Array, size: int) -> jax.Array:
    """Cuts images [batch, height, width, channels] into patches, float32 [batch, patches, size * size * channels]."""
    b, h, w, c = images.shape
    x = images[:, : h // size * size, : w // size * size].astype(jnp.float32)
    x = x.reshape(b, h // size, size, w // size, size, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, (h // size) * (w // size), size * size * c)
