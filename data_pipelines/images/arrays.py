"""What a batch holds of its images: squares, or packed patches (`naflex.py`); the same for training and evaluation."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines.host import Memory, aligned_empty
from data_pipelines.images import naflex
from data_pipelines.images.augment import Box
from data_pipelines.images.decode import Options, evaluation_pixels, resized, training_image

# Of `data.image`: all that decides how an image is shown to a tower when nothing is augmented, beside `naflex` and what
# `crop` says (squash, whole). The one such list: what identifies a model and what fine-tuning takes over use it.
SHOWN = ("size", "resize", "filter", "rounding", "exif", "background", "mean", "std")


class ImageArrays:
    """Makes and fills the arrays of a batch that have to do with its images.

    Squares are `image` uint8 [rows, size, size, 3]. Packed patches are `image` uint8 [rows, length, 3 * patch_size**2]
    and `image_grid` int32 [rows, 2], the patches of each image (down, across), which come first.

    Args:
        image: `config.data.image`.

    Attributes:
        naflex: options of packed patches; None for squares.
        options: how images are decoded.

    Raises:
        DataError: the configuration asks for something that does not exist.
    """

    def __init__(self, image: Any):
        self.naflex, self.options = naflex.Naflex.of(image), Options.of(image)
        self._size, self._squash = image.size, image.crop == "squash"

    def shapes(self, length: int = 0) -> dict[str, tuple[tuple[int, ...], type]]:
        """Returns {name: (shape of a row, type)}.

        Args:
            length: patches of a sequence; 0 takes the one outside the training. Squares have none.
        """
        if self.naflex is None:
            return dict(image=((self._size, self._size, 3), np.uint8))
        patch = 3 * self.naflex.patch_size**2
        return dict(image=((length or self.naflex.length, patch), np.uint8), image_grid=((2,), np.int32))

    def empty(self, rows: int, length: int = 0, memory: Memory | None = None) -> dict[str, np.ndarray]:
        """Returns uninitialised arrays, the large one of them in `memory`; `length` as for `shapes`."""
        shapes = self.shapes(length)
        pixels, _ = shapes.pop("image")
        image = (memory or Memory()).empty(rows * math.prod(pixels)).reshape(rows, *pixels)
        return dict(image=image) | {name: aligned_empty((rows, *shape), kind) for name, (shape, kind) in shapes.items()}

    def nbytes(self) -> int:
        """Returns the bytes of a row of the training, at most."""
        shapes = self.shapes(max(self.naflex.lengths) if self.naflex else 0).values()
        return sum(math.prod(shape) * np.dtype(kind).itemsize for shape, kind in shapes)

    def blank(self, batch: Mapping[str, np.ndarray], rows: Any) -> None:
        """Fills rows with an image that shows nothing."""
        batch["image"][rows] = 0
        if self.naflex is not None:
            batch["image_grid"][rows] = 1

    def shown(self, batch: Mapping[str, np.ndarray], place: int) -> np.ndarray:
        """Returns the image of a row as the model sees it, uint8 [height, width, 3]."""
        image = batch["image"][place]
        if self.naflex is None:
            return image
        return naflex.unpack(image, batch["image_grid"][place], self.naflex.patch_size)

    def train(
        self,
        data: bytes | memoryview,
        crop: Callable[[int, int], Box],
        transform: Callable[[np.ndarray], None],
        batch: Mapping[str, np.ndarray],
        place: int,
    ) -> None:
        """Writes the training's view of an encoded image into a row.

        Args:
            data: the encoded image.
            crop: as for `training_image`.
            transform: changes the pixels, uint8 [height, width, 3], in place.
            batch: from `empty`.
            place: of the row.

        Raises:
            BadSample: the data are no image, damaged or too large.
        """
        out = batch["image"][place]
        if self.naflex is None:
            transform(training_image(data, self._size, crop, self.options, out))
            return
        pixels = training_image(data, lambda *sides: self.naflex.pixels(*sides, len(out)), crop, self.options)
        transform(pixels)
        batch["image_grid"][place] = naflex.pack(pixels, self.naflex.patch_size, out)

    def evaluate(self, image: Image.Image, batch: Mapping[str, np.ndarray], place: int) -> None:
        """Writes the evaluation's view of a decoded image into a row: a filter over all pixels, no chance."""
        out = batch["image"][place]
        if self.naflex is None:
            out[:] = evaluation_pixels(image, self._size, self._squash, self.options)
            return
        height, width = self.naflex.pixels(image.height, image.width, len(out))
        pixels = resized(image, height, width, self.options)
        batch["image_grid"][place] = naflex.pack(pixels, self.naflex.patch_size, out)
