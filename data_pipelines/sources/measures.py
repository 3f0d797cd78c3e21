"""Numbers of single samples that are kept in the index: what makes two samples alike, how long a caption is."""

import abc
import hashlib
import json
from typing import Any, ClassVar

import cv2
import numpy as np

from data_pipelines.errors import BadSample
from data_pipelines.images.decode import Options, small_pixels
from data_pipelines.modalities import Image, Inputs, Text
from data_pipelines.samples import Record

_STEP = 2.0  # of 255 that count as brighter: in a plain background noise would decide
_SIDE = 8  # of the grid of a perceptual hash: 64 comparisons, 64 bits
_DECODED = 4 * _SIDE  # pixels of both sides that a JPEG is decoded to, at least
_NOTHING = (0, 2**64 - 1)  # hashes of images that get brighter nowhere, or everywhere
_ANY = Options()


class Measure(abc.ABC):
    """A number for every usable sample.

    Attributes:
        dtype: of the numbers.
        needs: the input whose content `of` looks at; "" where it looks at none.
        signature: tells other rules from this one; numbers of another rule are other numbers.
    """

    dtype: ClassVar[Any]
    needs: str = ""
    signature: str

    @abc.abstractmethod
    def of(self, key: str, record: Record, content: bytes | memoryview) -> int:
        """Returns the number of a sample; `content` is that of the input it needs, b"" without one."""


class KeyHash(Measure):
    """Two samples are alike if they have the same key."""

    dtype, signature = np.uint64, "key"

    def of(self, key: str, record: Record, content: bytes | memoryview) -> int:
        """See `Measure`."""
        return hash_key(key)


class CaptionHash(Measure):
    """Two samples are alike if their captions are, whatever their case."""

    dtype = np.uint64

    def __init__(self, text: Text):
        self._captions = captions = text.captions
        self.signature = "caption lines" if captions.lines else "caption"

    def of(self, key: str, record: Record, content: bytes | memoryview) -> int:
        """See `Measure`."""
        return _hash64("\n".join(self._captions.every(record)).lower().encode())


class ImageHash(Measure):
    """Two samples are alike if their images look alike: the difference hash (dHash) of both is the same.

    It says for 8 x 8 places whether the image gets brighter to the right. Copies of other sizes, qualities and formats
    differ in few of these bits, and good ones in none. An image without contrast is like another one only if both are
    the same bytes.

    Args:
        needs: the image input.
        options: how images are decoded, the background of transparent ones among it.
    """

    dtype = np.uint64

    def __init__(self, needs: str, options: Options = _ANY):
        self.needs = needs
        self._options = Options(options.exif, options.max_pixels, background=options.background)
        changed = [value for value, usual in zip(self._options, _ANY) if value != usual]
        self.signature = json.dumps(["image", 2, *changed])

    def of(self, key: str, record: Record, content: bytes | memoryview) -> int:
        """See `Measure`."""
        return difference_hash(content, self._options)


class TokenCount(Measure):
    """Tokens of the longest caption of a sample, begin and end marks included; at most `length`."""

    dtype = np.uint16

    def __init__(self, text: Text):
        self._captions, self._tokenizer, self._length = text.captions, text.vocabulary, text.length
        digest = hashlib.blake2b(self._tokenizer.json.encode(), digest_size=8).hexdigest()
        self.signature = json.dumps(["tokens", text.name, digest, text.length, text.captions.rendering])

    def of(self, key: str, record: Record, content: bytes | memoryview) -> int:
        """See `Measure`."""
        return int(self._tokenizer.encode(self._captions.longest(record), self._length)[1].sum(axis=1).max())


LIKENESS = ("key", "caption", "image")


def likeness(kind: str, inputs: Inputs) -> Measure | None:
    """Returns the measure of an entry of LIKENESS: samples with the same number are duplicates.

    Args:
        kind: the entry; `caption` is the first text, `image` the first image.
        inputs: of the samples.

    Returns:
        None where samples have no such input.
    """
    image = next(iter(inputs.of_type(Image.type).values()), None)
    if kind == "image":
        return ImageHash(image.name, image.options) if image is not None else None
    if kind == "caption":
        return CaptionHash(inputs.caption) if inputs.caption is not None else None
    return KeyHash()


def difference_hash(image: bytes | memoryview, options: Options = _ANY) -> int:
    """Returns 64 bits of which small changes of an image turn few; of images without contrast, the hash of their bytes.

    Bytes that are no image are hashed, too. `options` say how it is decoded.
    """
    try:
        pixels = small_pixels(image, _DECODED, options)
    except BadSample:
        return _hash64(bytes(image))
    grey = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY).astype(np.float32)
    grid = cv2.resize(grey, (_SIDE + 1, _SIDE), interpolation=cv2.INTER_AREA)
    bits = int.from_bytes(np.packbits(np.diff(grid) > _STEP).tobytes(), "big")
    return _hash64(bytes(image)) if bits in _NOTHING else bits


def first_of_each(numbers: np.ndarray) -> np.ndarray:
    """Returns which samples are the first with their number, bool [samples]."""
    keep = np.zeros(len(numbers), bool)
    keep[np.unique(numbers, return_index=True)[1]] = True
    return keep


def hash_key(key: str) -> int:
    """Returns the number that `KeyHash` gives a key."""
    return _hash64(key.encode("utf-8", "surrogatepass"))


def _hash64(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
