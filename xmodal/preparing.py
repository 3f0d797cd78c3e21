"""Images and texts as users have them become the arrays that a model reads, as its config says."""

import dataclasses
import itertools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines.errors import BadSample, DataError
from data_pipelines.images.arrays import ImageArrays
from data_pipelines.images.decode import full_image, to_rgb
from data_pipelines.text.preparation import Preparation
from data_pipelines.text.tokenizers import Tokenizer

Picture = str | os.PathLike | bytes | Image.Image | np.ndarray


@dataclasses.dataclass(frozen=True)
class Preparing:
    """How raw images and texts become rows of a batch.

    Attributes:
      data: `config.data` of the model.
      tokenizer: of its texts; None for a model of images alone.
    """

    data: Any
    tokenizer: Tokenizer | None

    def images(self, images: Sequence[Picture], first: int = 0) -> dict[str, np.ndarray]:
        """Returns the rows of some images, of which the first is number `first` of the user's.

        Raises:
          DataError: an image cannot be read; the message says which.
        """
        arrays = ImageArrays(self.data.image)
        batch = arrays.empty(len(images))

        def prepare(row: int, image: Picture) -> None:
            arrays.evaluate(_decoded(first + row, image, arrays), batch, row)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(prepare, itertools.count(), images))
        return batch

    def texts(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Returns the rows of some texts, as users have them."""
        return self.encoded([self.text(text) for text in texts])

    def text(self, text: str) -> str:
        """Returns a text as captions are in training: cleaned, lower-cased, as far as the model's data are."""
        return Preparation.of(self.data.text)(text)

    def encoded(self, prepared: Sequence[str]) -> dict[str, np.ndarray]:
        """Returns the rows of texts that went through `text`: `text` int32 and `text_valid` bool [texts, length]."""
        ids, valid = self.tokenizer.encode(prepared, self.data.text.length)
        return {"text": ids, "text_valid": valid}


def named(number: int, image: Picture) -> str:
    """What messages call an image."""
    return f"picture {image if isinstance(image, str | os.PathLike) else f'number {number}'}"


def _decoded(number: int, image: Picture, arrays: ImageArrays) -> Image.Image:
    """Reads an image as RGB."""
    try:
        if isinstance(image, np.ndarray):
            grey = image.ndim == 2
            if image.dtype != np.uint8 or not (grey or (image.ndim == 3 and image.shape[2] in (3, 4))):
                raise BadSample(f"expected uint8 [height, width, 3], got {image.dtype} {image.shape}")
            image = Image.fromarray(image)
        if isinstance(image, Image.Image):
            return to_rgb(image, arrays.options.background)
        data = image if isinstance(image, bytes) else Path(image).read_bytes()
        return full_image(data, arrays.options)
    except (BadSample, OSError, ValueError) as error:
        raise DataError(f"{named(number, image)} cannot be used: {error}") from None
