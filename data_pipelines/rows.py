"""Fills the rows of a batch: decode, crop, choose a caption, tokenise. What the decoding threads run."""

import hashlib
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.errors import BadSample, DataError, Fault
from data_pipelines.hooks import Hooks
from data_pipelines.host import Memory, aligned_empty
from data_pipelines.images import augment
from data_pipelines.images.decode import Options, training_image
from data_pipelines.samples import Sample
from data_pipelines.text.tokenizers import Tokenizer
from data_pipelines.windows import Window

_SUBSTITUTES = 100  # tried for one row before the window is given up


class Row(NamedTuple):
    """What a row shows: a place of a window, and its random numbers."""

    window: Window
    place: int
    crop: np.ndarray  # uniform numbers, float64 [augment.WORDS]
    word: int  # chooses the caption; what a user's transforms draw derives from it, too


def empty_batch(
    rows: int, size: int, length: int, memory: Memory | None = None, labels: int = 0
) -> dict[str, np.ndarray]:
    """Returns a batch to be filled, whose arrays nothing else uses; its images are in `memory`.

    With `size` 0 it has no images. With `labels` it has class ids, int32 [rows, labels].
    """
    own = dict(label=aligned_empty((rows, labels), np.int32)) if labels else {}
    if size:
        own["image"] = (memory or Memory()).empty(rows * size * size * 3).reshape(rows, size, size, 3)
    return own | dict(
        text=aligned_empty((rows, length), np.int32),
        text_valid=aligned_empty((rows, length), np.bool_),
        key_id=aligned_empty((rows, 2), np.uint32),
        caption_id=aligned_empty((rows, 2), np.uint32),
    )


class RowFiller:
    """Turns samples into the rows of a batch.

    Args:
        image: `config.data.image`.
        tokenizer: encodes the captions.
        transform: `config.data.text.transform`.

    Raises:
        DataError: the configuration asks for something that does not exist.
    """

    def __init__(self, image: Any, tokenizer: Tokenizer, transform: str = ""):
        self._size, self._crop, self._options = image.size, augment.cropper(image), Options.of(image)
        self._hooks = Hooks(image.transform, transform, image.size)
        self._tokenizer = tokenizer

    def fill(self, batch: dict[str, np.ndarray], first: int, rows: list[Row]) -> list[list[Fault]]:
        """Writes rows [first, first + len(rows)) of a batch.

        A sample that cannot be read is replaced by a fixed other one of its window, so that the order never shifts.

        Returns:
            For each row that was replaced, the faults of the sample meant for it and of failed substitutes.

        Raises:
            DataError: a window has no readable sample, or a user's transform failed.
        """
        texts, replaced = [], []
        for place, row in enumerate(rows, first):
            sample, faults = self._sample(row, batch["image"][place] if "image" in batch else None)
            if faults:
                replaced.append(faults)
            captions = row.window.source.captions
            text = captions.choose(sample.record, row.word)
            texts.append(self._hooks.text(text, row.word, f"{sample.key} of {sample.shard}"))
            identity = captions.identity(sample.record)
            batch["key_id"][place] = hash64(sample_name(sample) if identity is None else identity)
            batch["caption_id"][place] = hash64(texts[-1])
            if "label" in batch:
                batch["label"][place] = captions.labels.ids(sample.record.fields)
        here = slice(first, first + len(rows))
        length = batch["text"].shape[1]
        batch["text"][here], batch["text_valid"][here] = self._tokenizer.encode(texts, length)
        return replaced

    def _sample(self, row: Row, out: np.ndarray | None) -> tuple[Sample, list[Fault]]:
        """Returns the sample of a row, whose image is written to `out` if there are images."""
        crop = lambda height, width: self._crop(height, width, row.crop)
        window, faults = row.window, []
        for place in itertools.chain((row.place,), _substitutes(row.place, len(window))):
            sample = window[place]
            try:
                if sample.fault:
                    raise BadSample(sample.fault)
                if out is not None:
                    training_image(sample.image, self._size, crop, self._options, out)
                    self._hooks.image(out, row.word, f"{sample.key} of {sample.shard}")
                return sample, faults
            except BadSample as bad:
                faults.append(Fault(sample.shard, sample.key, bad.reason))
        raise DataError(
            f"none of {len(faults)} samples of one shuffle window can be read; the first is {faults[0].key} of "
            f"{faults[0].shard} ({faults[0].reason})"
        )


def _substitutes(place: int, size: int) -> Iterator[int]:
    """Yields the places that stand in for one whose sample cannot be read, in turn."""
    # Half a window away: a neighbour is likely to be in the same batch, where it would be a duplicate.
    others = ((place + size // 2 + i) % size for i in range(min(size, _SUBSTITUTES)))
    return (other for other in others if other != place)


def sample_name(sample: Sample) -> str:
    """Returns the identity of a sample without a group key; many data sets number the keys of every shard anew."""
    return f"{sample.shard.rpartition('/')[2]}/{sample.key}"


def hash64(text: str) -> np.ndarray:
    """Returns a stable 64-bit hash of a text as uint32 [2]."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return np.frombuffer(digest, "<u4")
