"""Which part of an image a training sample shows: a pure function of its size and its random words."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.errors import DataError, did_you_mean

WORDS = 24  # random words of a row: 10 attempts of (area, aspect), then the offsets, rounded up for `rng.row_words`
_ATTEMPTS = 10
_CROPS = ("random_resized", "inception", "resize_crop", "center", "squash", "whole")
_INCEPTION = dict(scale=(0.05, 1.0), ratio=(3 / 4, 4 / 3))


class Box(NamedTuple):
    """A rectangle in pixels."""

    top: int
    left: int
    height: int
    width: int


def random_resized(height: int, width: int, u: np.ndarray, scale: tuple, ratio: tuple) -> Box:
    """The rectangle of torchvision's RandomResizedCrop, which CLIP's training uses.

    Args:
        height: of the image, in pixels.
        width: of the image, in pixels.
        u: uniform numbers in [0, 1), float [WORDS].
        scale: smallest and largest share of the area.
        ratio: smallest and largest width / height; drawn uniformly in the logarithm.

    Returns:
        The first of ten random rectangles that fits, or else the largest central one of an allowed shape.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for i in range(_ATTEMPTS):
        area = height * width * (scale[0] + u[2 * i] * (scale[1] - scale[0]))
        aspect = math.exp(low + u[2 * i + 1] * (high - low))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top, left = u[2 * _ATTEMPTS] * (height - h + 1), u[2 * _ATTEMPTS + 1] * (width - w + 1)
            return Box(int(top), int(left), h, w)
    w = min(width, max(1, round(height * ratio[1])))
    h = min(height, max(1, round(width / ratio[0])))
    return Box((height - h) // 2, (width - w) // 2, h, w)


def resize_crop(height: int, width: int, u: np.ndarray) -> Box:
    """A square as large as the shorter side, anywhere along the longer one: `resize_small` and `random_crop` in one."""
    side = min(height, width)
    return Box(int(u[0] * (height - side + 1)), int(u[1] * (width - side + 1)), side, side)


def center(height: int, width: int) -> Box:
    """The central square."""
    side = min(height, width)
    return Box((height - side) // 2, (width - side) // 2, side, side)


def squash(height: int, width: int, u: np.ndarray, share: float) -> Box:
    """A rectangle of this share of both sides, anywhere: what becomes a square wherever it is (ALIGN)."""
    h, w = max(1, round(share * height)), max(1, round(share * width))
    return Box(int(u[0] * (height - h + 1)), int(u[1] * (width - w + 1)), h, w)


def cropper(image: Any) -> Callable[[int, int, np.ndarray], Box]:
    """Returns the training crop of an image input as a function of (height, width, uniform numbers).

    Raises:
        DataError: the crop is unknown, or its ranges cannot be drawn from.
    """
    if image.crop == "random_resized":
        scale, ratio = tuple(image.scale), tuple(image.ratio)
        for name, pair, most in (("scale", scale, 1.0), ("ratio", ratio, math.inf)):
            if not (len(pair) == 2 and 0 < pair[0] <= pair[1] <= most):
                raise DataError(f"{image.where}.{name} is {pair}; expected (smallest, largest) within 0 to {most}")
        return lambda height, width, u: random_resized(height, width, u, scale, ratio)
    if image.crop == "inception":  # the crop of GoogLeNet (Szegedy et al. 2014), and of big_vision's recipes
        return lambda height, width, u: random_resized(height, width, u, **_INCEPTION)
    if image.crop == "resize_crop":
        return resize_crop
    if image.crop == "center":
        return lambda height, width, u: center(height, width)
    if image.crop == "squash":
        share = image.size / (image.resize or image.size)
        return lambda height, width, u: squash(height, width, u, share)
    if image.crop == "whole" and not image.naflex.lengths:
        raise DataError(
            f"{image.where}.crop='whole' keeps the shape of images, which needs {image.where}.naflex.lengths; 'squash' "
            "makes a square of the whole image"
        )
    if image.crop == "whole":
        return lambda height, width, u: Box(0, 0, height, width)
    raise DataError(f"{image.where}.crop is {image.crop!r}, not one of {_CROPS}{did_you_mean(image.crop, _CROPS)}")
