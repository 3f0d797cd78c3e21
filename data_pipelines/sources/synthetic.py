"""Made-up images and captions, for benchmarks and dry runs without data."""

import io
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from PIL import Image

from data_pipelines.errors import DataError
from data_pipelines.io.storage import Files
from data_pipelines.modalities import Image as ImageInput
from data_pipelines.rules import Rules
from data_pipelines.samples import Record, Sample
from data_pipelines.sources.base import Source, SourceSpec
from data_pipelines.sources.blocks import Blocks
from data_pipelines.sources.rows import row_blocks

_SIZES = ((640, 480), (480, 640), (512, 512), (768, 512), (1024, 768), (500, 375), (320, 240))  # width, height
_DISTINCT = 64  # images; the samples take turns, so that making them does not hide the cost of reading them
_SHARD = 10_000  # samples
_TEXT = 64  # bytes of a caption
_DETAIL = 8  # pixels of one random colour: files as large as those of photographs
_COLOURS = ("red", "green", "blue", "yellow", "black", "white", "grey", "brown")
_THINGS = ("dog", "cat", "boat", "house", "tree", "chair", "mountain", "bicycle", "clock", "bridge")


@dataclass(frozen=True)
class SyntheticSpec(SourceSpec):
    """Made-up samples.

    Attributes:
        samples: how many.
        seed: other seeds give other images and captions.
        scale: of the sides of the images, which are 320 to 1024 pixels at 1.
    """

    samples: int = field(default=0, metadata=dict(example=100_000))
    seed: int = 0
    scale: float = 1.0


class SyntheticSource(Source):
    """JPEGs of several sizes with captions, a pure function of seed and number; see `Source`."""

    Spec = SyntheticSpec

    def __init__(self, name: str, spec: SyntheticSpec, rules: Rules, files: Files):
        if spec.samples < 1 or not 0 < spec.scale <= 8:
            raise DataError(f"samples is {spec.samples} and scale {spec.scale}; expected from 1, and above 0 to 8")
        self.name, self.spec, self.rules = name, spec, rules
        self._images = list(rules.inputs.of_type(ImageInput.type))
        self.samples, self.shards = spec.samples, -(-spec.samples // _SHARD)
        self.bytes = spec.samples * self._size()
        self.skipped = {}
        strange = [modality for modality in rules.inputs.stored.values() if modality.type != ImageInput.type]
        if any(modality.required for modality in strange):
            raise DataError(f"synthetic samples have images and captions, and {strange[0].where} is neither")
        rules.check_fields(dict.fromkeys(_fields(0, 0), 1), _fields(0, 0), "synthetic samples")
        rules.check(self._record(0))

    def blocks(self, target: int) -> Blocks:
        """See `Source`."""
        rows = (min(_SHARD, self.samples - first) for first in range(0, self.samples, _SHARD))
        return row_blocks([(np.full(count, self._size(), np.int32), (0,)) for count in rows], target)

    def read(self, blocks: Blocks, i: int) -> list[Sample]:
        """See `Source`."""
        shard, seed = int(blocks.shard[i]), self.spec.seed
        samples = []
        for row in range(int(blocks.start[i]), int(blocks.end[i])):
            number = shard * _SHARD + row
            make = lambda i, number=number: synthetic_jpeg(seed + i, number % _DISTINCT, self.spec.scale)
            parts = {name: make(i) for i, name in enumerate(self._images)}
            samples.append(Sample(self._shard_name(shard), f"{number:09d}", parts, self._record(number)))
        return samples

    def shard_names(self) -> list[str]:
        """See `Source`."""
        return [self._shard_name(shard) for shard in range(self.shards)]

    def identity(self) -> tuple[int, int, float]:
        """See `Source`."""
        return self.spec.samples, self.spec.seed, self.spec.scale

    def _record(self, number: int) -> Record:
        text = _caption(self.spec.seed, number)
        return self.rules.from_fields(_fields(self.spec.seed, number), dict.fromkeys(self.rules.texts, text))

    def _shard_name(self, shard: int) -> str:
        """Returns the name of a shard, in a folder that tells these images from others."""
        return f"seed-{self.spec.seed}-scale-{self.spec.scale:g}/synthetic-{shard:06d}"

    def _size(self) -> int:
        """Returns the bytes of an image, about, or of a text."""
        if not self._images:
            return _TEXT
        pixels = sum(width * height for width, height in _SIZES) / len(_SIZES)
        return max(1, int(0.25 * pixels * self.spec.scale**2))


@lru_cache(4 * _DISTINCT)
def synthetic_jpeg(seed: int, number: int, scale: float = 1.0) -> bytes:
    """Returns a JPEG that follows from seed and number, of one of several sizes and in the detail of a photograph."""
    width, height = (max(8, int(side * scale)) for side in _SIZES[number % len(_SIZES)])
    random = np.random.Generator(np.random.Philox(key=[seed % 2**64, number]))
    coarse = random.integers(0, 256, (height // _DETAIL + 1, width // _DETAIL + 1, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _fields(seed: int, number: int) -> dict[str, str | int]:
    turn = number + seed
    return dict(
        number=number, label=_THINGS[turn % len(_THINGS)], colour=_COLOURS[turn // len(_THINGS) % len(_COLOURS)]
    )


def _caption(seed: int, number: int) -> str:
    fields = _fields(seed, number)
    return f"a {fields['colour']} {fields['label']}, picture {number}"
