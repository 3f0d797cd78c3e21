"""Fills the rows of a batch: decode, crop, choose a caption, tokenise. What the decoding threads run."""

import functools
import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.errors import BadSample, DataError, Fault, Replaced
from data_pipelines.host import aligned_empty
from data_pipelines.images import augment
from data_pipelines.images.arrays import ImageArrays
from data_pipelines.names import sample_name
from data_pipelines.samples import Sample
from data_pipelines.stream.hooks import Hooks
from data_pipelines.stream.windows import Window
from data_pipelines.text.preparation import Preparation
from data_pipelines.text.tokenizers import Tokenizer

_SUBSTITUTES = 100  # tried for one row before the window is given up


class Row(NamedTuple):
    """What a row shows: a place of a window, and its random numbers."""

    window: Window
    place: int
    crop: np.ndarray  # uniform numbers, float64 [augment.WORDS]
    word: int  # chooses the caption; what a user's transforms draw derives from it, too


class OtherText(NamedTuple):
    """The captions once more, as another model reads them.

    Attributes:
        tokenizer: of that model.
        length: tokens of a caption.
        preparation: what that model wants beside what the captions already are; see `Preparation.after`.
    """

    tokenizer: Tokenizer
    length: int
    preparation: Preparation = Preparation()


def empty_batch(
    rows: int,
    length: int,
    images: dict[str, np.ndarray],
    labels: int = 0,
    captions: int = 1,
    texts: Mapping[str, OtherText] = MappingProxyType({}),
) -> dict[str, np.ndarray]:
    """Returns a batch to be filled, whose arrays nothing else uses.

    Args:
        rows: of the batch.
        length: tokens of a caption.
        images: from `ImageArrays.empty`; {} where samples have none.
        labels: classes of a sample, int32 [rows, labels]; 0 for none.
        captions: of a sample; with more than one, texts are [rows, captions, length].
        texts: captions for other models, by the name of their ids in the batch.
    """
    shape = (rows, captions) if captions > 1 else (rows,)
    classes = dict(label=aligned_empty((rows, labels), np.int32)) if labels else {}
    others = {}
    for name, text in texts.items():
        others[name] = aligned_empty((*shape, text.length), np.int32)
        others[f"{name}_valid"] = aligned_empty((*shape, text.length), np.bool_)
    return classes | dict(
        **images,
        **others,
        text=aligned_empty((*shape, length), np.int32),
        text_valid=aligned_empty((*shape, length), np.bool_),
        key_id=aligned_empty((rows, 2), np.uint32),
        caption_id=aligned_empty((*shape, 2), np.uint32),
    )


class RowFiller:
    """Turns samples into the rows of a batch.

    Args:
        image: `config.data.image`.
        tokenizer: encodes the captions.
        transform: `config.data.text.transform`.
        texts: captions for other models, by the name of their ids in the batch.

    Attributes:
        images: makes the arrays of the images.
        texts: as given.
        labels: of all shards of the stream, see `names.shard_labels`.

    Raises:
        DataError: the configuration asks for something that does not exist.
    """

    def __init__(
        self,
        image: Any,
        tokenizer: Tokenizer,
        transform: str = "",
        texts: Mapping[str, OtherText] = MappingProxyType({}),
    ):
        self.images, self._crop = ImageArrays(image), augment.cropper(image)
        packing = self.images.naflex
        example = (image.size,) * 2 if packing is None else packing.pixels(2, 3, packing.length)
        self._hooks = Hooks(image.transform, transform, example)
        self._tokenizer, self.texts = tokenizer, texts
        self.labels: dict[str, str] = {}

    def fill(self, batch: dict[str, np.ndarray], first: int, rows: list[Row]) -> list[Replaced]:
        """Writes rows [first, first + len(rows)) of a batch.

        A sample that cannot be read is replaced by a fixed other one of its window, so that the order never shifts.

        Returns:
            The rows that were replaced.

        Raises:
            DataError: a window has no readable sample, or a user's transform failed.
        """
        texts, identities, replaced, shape = [], [], [], batch["text"].shape[1:]
        for place, row in enumerate(rows, first):
            sample, faults = self._sample(row, batch, place)
            if faults:
                replaced.append(Replaced(row.window.source.name, faults))
            captions = row.window.source.captions
            drawn = captions.several(sample.record, row.word, math.prod(shape[:-1]))
            name = f"{sample.key} of {sample.shard}"
            texts += [self._hooks.text(text, row.word ^ i, name) for i, text in enumerate(drawn)]
            identity = captions.identity(sample.record)
            identities.append(sample_name(sample.shard, sample.key, self.labels) if identity is None else identity)
            if "label" in batch:
                batch["label"][place] = captions.labels.ids(sample.record.fields)
        here = slice(first, first + len(rows))
        batch["key_id"][here] = hash64(identities)
        batch["caption_id"][here] = hash64(texts).reshape(-1, *shape[:-1], 2)
        for name, values in zip(("text", "text_valid"), self._tokenizer.encode(texts, shape[-1])):
            batch[name][here] = values.reshape(-1, *shape)
        for name, other in self.texts.items():
            read = [other.preparation(text) for text in texts]
            for kind, values in zip((name, f"{name}_valid"), other.tokenizer.encode(read, other.length)):
                batch[kind][here] = values.reshape(-1, *shape[:-1], other.length)
        return replaced

    def _sample(self, row: Row, batch: dict[str, np.ndarray], place: int) -> tuple[Sample, list[Fault]]:
        """Returns the sample of a row, whose image is written into the batch if that has images."""
        crop = lambda height, width: self._crop(height, width, row.crop)
        window, faults = row.window, []
        for turn in _turns(row.place, len(window)):
            sample = window[turn]
            name = f"{sample.key} of {sample.shard}"
            transform = functools.partial(self._hooks.image, word=row.word, sample=name)
            try:
                if sample.fault:
                    raise BadSample(sample.fault)
                if "image" in batch:
                    self.images.train(sample.image, crop, transform, batch, place)
                return sample, faults
            except BadSample as bad:
                faults.append(Fault(sample.shard, sample.key, bad.reason))
        raise DataError(
            f"none of {len(faults)} samples of one shuffle window can be read; the first is {faults[0].key} of "
            f"{faults[0].shard} ({faults[0].reason})"
        )


def _turns(place: int, size: int) -> Iterator[int]:
    """Yields a place, and then those that stand in for it, one after another, where its sample cannot be read."""
    yield place
    # Half a window away: a neighbour is likely to be in the same batch, where it would be a duplicate.
    others = ((place + size // 2 + i) % size for i in range(min(size, _SUBSTITUTES)))
    yield from (other for other in others if other != place)


def hash64(texts: Iterable[str]) -> np.ndarray:
    """Returns stable 64-bit hashes of texts as uint32 [texts, 2]."""
    encoded = (text.encode("utf-8", "surrogatepass") for text in texts)
    digests = b"".join(hashlib.blake2b(content, digest_size=8).digest() for content in encoded)
    return np.frombuffer(digests, "<u4").reshape(-1, 2)
