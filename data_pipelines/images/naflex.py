"""NaFlex: images at their own aspect ratio, as sequences of patches (Tschannen et al. 2025, "SigLIP 2").

All images of a batch get the same room, a number of patches, and fill it as far as their shape allows; the rest is
padding. How much room a batch has is drawn for it: a pure function of (seed, position), so that order, resuming and
the number of hosts have nothing to do with it, and the step is compiled once for each length.
"""

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from data_pipelines import rng
from data_pipelines.errors import DataError

_CROPS = ("whole", "random_resized", "inception")
# Options of image inputs that need squares, and their values that change nothing.
_SQUARE = dict(policy="", blur=0.0, erase=0.0, mixup=0.0, cutmix=0.0)
_TOLERANCE, _LARGEST = 1e-5, 100.0  # of the scale of an image


class Naflex(NamedTuple):
    """The checked options `naflex` of an image input.

    Attributes:
        patch_size: pixels.
        lengths: patches that batches of the training have room for.
        weights: how often each of `lengths` is drawn, in any unit.
        length: room outside the training.
    """

    patch_size: int
    lengths: tuple[int, ...]
    weights: tuple[float, ...]
    length: int

    @classmethod
    def of(cls, image: Any) -> "Naflex | None":
        """Reads them from an image input; None where its images are squares. Raises DataError."""
        options, lengths = image.naflex, tuple(image.naflex.lengths)
        if not lengths:
            return None
        whole = all(isinstance(n, int) and not isinstance(n, bool) for n in lengths)
        if not whole or list(lengths) != sorted(set(lengths)) or lengths[0] < 1:
            raise DataError(f"{image.where}.naflex.lengths is {lengths}; expected rising numbers of patches from 1")
        weights = tuple(options.weights) or (1.0,) * len(lengths)
        if len(weights) != len(lengths) or not all(weight > 0 for weight in weights):
            raise DataError(
                f"{image.where}.naflex.weights is {weights}; expected a number above 0 for each of the {len(lengths)} "
                "lengths, or ()"
            )
        if options.patch_size < 1 or options.length < 0:
            raise DataError(
                f"{image.where}.naflex.patch_size={options.patch_size} and length={options.length}: expected numbers "
                "from 1 and from 0"
            )
        _check_shapes(image)
        return cls(options.patch_size, lengths, weights, options.length or lengths[-1])

    def draw(self, first: int, seed: int, *purpose: str) -> int:
        """Returns the room of the batch whose first row is the global row `first`; `purpose` names the stream."""
        chance = rng.uniform(rng.row_words(first, 1, 4, seed, *purpose))[0, 0]
        ends = np.cumsum(self.weights) / sum(self.weights)
        return self.lengths[min(int(np.searchsorted(ends, chance, side="right")), len(ends) - 1)]

    def pixels(self, height: int, width: int, length: int) -> tuple[int, int]:
        """Returns height and width of an image once it is resized to fit: see `grid_for`."""
        down, across = grid_for(height, width, self.patch_size, length)
        return down * self.patch_size, across * self.patch_size


def _check_shapes(image: Any) -> None:
    """Raises DataError if an image input asks for something that only squares can have."""
    if image.crop not in _CROPS:
        raise DataError(
            f"{image.where}.crop is {image.crop!r}, which makes squares, and {image.where}.naflex keeps the shape of "
            f"images: choose one of {_CROPS}, or set naflex.lengths to ()"
        )
    for name, neutral in _SQUARE.items():
        if getattr(image, name) != neutral:
            raise DataError(
                f"{image.where}.{name}={getattr(image, name)!r} needs square images of one size, and "
                f"{image.where}.naflex gives each its own shape: set it to {neutral!r}, or naflex.lengths to ()"
            )


@functools.lru_cache(maxsize=4096)
def grid_for(height: int, width: int, patch_size: int, length: int) -> tuple[int, int]:
    """Returns the patches (down, across) of an image that is resized to fill a sequence.

    The image is scaled by the largest factor at which it has at most `length` patches, both sides rounded up to whole
    patches: so its shape may change by less than a patch. The factor is found to 1e-5 by halving an interval up to 100,
    as the published models do it, since at a tie the last digit decides.

    Args:
        height: of the image, in pixels.
        width: of the image, in pixels.
        patch_size: pixels.
        length: patches at most.
    """
    patches = lambda side, scale: max(1, math.ceil(side * scale / patch_size))
    low, high = _TOLERANCE / 10, _LARGEST
    while high - low >= _TOLERANCE:
        scale = (low + high) / 2
        if patches(height, scale) * patches(width, scale) <= length:
            low = scale
        else:
            high = scale
    return patches(height, low), patches(width, low)


def pack(pixels: np.ndarray, patch_size: int, out: np.ndarray) -> tuple[int, int]:
    """Cuts an image into patches, row by row; returns its patches (down, across).

    Args:
        pixels: uint8 [height, width, 3], both sides whole patches.
        patch_size: pixels.
        out: uint8 [length, patch_size * patch_size * 3]; what the image does not fill becomes 0.
    """
    down, across = (side // patch_size for side in pixels.shape[:2])
    patches = pixels.reshape(down, patch_size, across, patch_size, 3).swapaxes(1, 2)
    out[: down * across].reshape(patches.shape)[:] = patches
    out[down * across :] = 0
    return down, across


def unpack(patches: np.ndarray, grid: np.ndarray, patch_size: int) -> np.ndarray:
    """Undoes `pack`: [length, patch_size * patch_size * 3] and the patches (down, across) to [height, width, 3]."""
    down, across = (int(n) for n in grid)
    image = patches[: down * across].reshape(down, across, patch_size, patch_size, 3).swapaxes(1, 2)
    return image.reshape(down * patch_size, across * patch_size, 3)
