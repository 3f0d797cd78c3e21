"""Numbers of single samples that are kept in the index: what makes two samples alike, how long a caption is."""

import abc
import hashlib
import json
from typing import Any, ClassVar

import cv2
import numpy as np

from data_pipelines.errors import BadSample
from data_pipelines.images.decode import image_header
from data_pipelines.text.captions import Captions, Record
from data_pipelines.text.tokenizers import Tokenizer

_STEP = 2.0  # of 255 that count as brighter: in a plain background noise would decide
_SIDE = 8  # of the grid of a perceptual hash: 64 comparisons, 64 bits


class Measure(abc.ABC):
    """A number for every usable sample.

    Attributes:
        dtype: of the numbers.
        needs_image: `of` looks at the image.
        signature: tells other rules from this one; numbers of another rule are other numbers.
    """

    dtype: ClassVar[Any]
    needs_image: ClassVar[bool] = False
    signature: str

    @abc.abstractmethod
    def of(self, key: str, record: Record, image: bytes | memoryview) -> int:
        """Returns the number of a sample; `image` is its encoded image, b"" where none is needed."""


class KeyHash(Measure):
    """Two samples are alike if they have the same key."""

    dtype, signature = np.uint64, "key"

    def of(self, key: str, record: Record, image: bytes | memoryview) -> int:
        """See `Measure`."""
        return hash_key(key)


class CaptionHash(Measure):
    """Two samples are alike if their captions are, whatever their case."""

    dtype, signature = np.uint64, "caption"

    def __init__(self, captions: Captions):
        self._captions = captions

    def of(self, key: str, record: Record, image: bytes | memoryview) -> int:
        """See `Measure`."""
        return _hash64("\n".join(self._captions.every(record)).lower().encode())


class ImageHash(Measure):
    """Two samples are alike if their images look alike: the difference hash (dHash) of both is the same.

    It says for 8 x 8 places whether the image gets brighter to the right. Copies of other sizes, qualities and formats
    differ in few of these bits, and good ones in none. Pictures without any contrast are all alike to it.
    """

    dtype, signature, needs_image = np.uint64, "image", True

    def of(self, key: str, record: Record, image: bytes | memoryview) -> int:
        """See `Measure`."""
        return difference_hash(image)


class TokenCount(Measure):
    """Tokens of the longest caption of a sample, begin and end marks included; at most `length`."""

    dtype = np.uint16

    def __init__(self, captions: Captions, tokenizer: Tokenizer, length: int):
        self._captions, self._tokenizer, self._length = captions, tokenizer, length
        digest = hashlib.blake2b(tokenizer.json.encode(), digest_size=8).hexdigest()
        self.signature = json.dumps(["tokens", digest, length, captions.rendering])

    def of(self, key: str, record: Record, image: bytes | memoryview) -> int:
        """See `Measure`."""
        return int(self._tokenizer.encode(self._captions.longest(record), self._length)[1].sum(axis=1).max())


LIKENESS = ("key", "caption", "image")


def likeness(kind: str, captions: Captions) -> Measure:
    """Returns the measure of an entry of LIKENESS: samples with the same number are duplicates."""
    return dict(key=KeyHash, caption=lambda: CaptionHash(captions), image=ImageHash)[kind]()


def difference_hash(image: bytes | memoryview) -> int:
    """Returns 64 bits of which small changes of an image turn few; of bytes that are no image, their hash."""
    grey = _grey(image)
    if grey is None:
        return _hash64(bytes(image))
    grid = cv2.resize(grey.astype(np.float32), (_SIDE + 1, _SIDE), interpolation=cv2.INTER_AREA)
    return int.from_bytes(np.packbits(np.diff(grid) > _STEP).tobytes(), "big")


def _grey(image: bytes | memoryview) -> np.ndarray | None:
    """Returns an image in shades of grey, as small as still does; None where it cannot or must not be decoded."""
    try:
        image_header(image)  # a small file can claim any size
        for reduction in (cv2.IMREAD_REDUCED_GRAYSCALE_4, cv2.IMREAD_GRAYSCALE):  # JPEG decoders give away the first
            grey = cv2.imdecode(np.frombuffer(image, np.uint8), reduction)
            if grey is None or min(grey.shape) >= 4 * _SIDE:
                break
        return grey
    except (BadSample, cv2.error):
        return None


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
