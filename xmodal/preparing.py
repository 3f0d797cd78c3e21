"""What users have (images, texts, sounds) becomes the arrays that a model reads, as its inputs say."""

import dataclasses
import itertools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines.errors import BadSample, DataError
from data_pipelines.host import aligned_empty
from data_pipelines.modalities import Inputs

Picture = str | os.PathLike | bytes | Image.Image | np.ndarray


@dataclasses.dataclass(frozen=True)
class Preparing:
    """How raw parts become rows of a batch.

    Attributes:
      inputs: of the model, each text with its tokenizer.
    """

    inputs: Inputs

    def rows(self, name: str, raw: Sequence[Any], first: int = 0) -> dict[str, np.ndarray]:
        """Returns the rows of what a user has for an input, see `Modality.evaluate`.

        Args:
          name: of the input.
          raw: a part for each row.
          first: number of the first of them among all that the user has.

        Raises:
          DataError: one cannot be read; the message says which.
        """
        modality = self.inputs[name]
        batch = {name: aligned_empty(*spec) for name, spec in modality.read(len(raw)).items()}

        def prepare(row: int, part: Any) -> None:
            try:
                modality.evaluate(part, batch, row)
            except (BadSample, OSError, ValueError) as error:
                raise DataError(f"{named(first + row, part, modality.noun)} cannot be used: {error}") from None

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(prepare, itertools.count(), raw))
        return batch

    def text(self, name: str, text: str) -> str:
        """Returns a text as captions are in training: cleaned, lower-cased, as far as the input's are."""
        return self.inputs.texts[name].prepare(text)

    def encoded(self, name: str, prepared: Sequence[str]) -> dict[str, np.ndarray]:
        """Returns the rows of texts that went through `text`: ids int32 and validity bool, [texts, length]."""
        return self.inputs.texts[name].encode(prepared)


def named(number: int, raw: Any, noun: str = "image") -> str:
    """What messages call a part of a user."""
    return f"{noun} {raw if isinstance(raw, str | os.PathLike) else f'number {number}'}"
