"""Image-text shards for `bench data`: synthetic photos that cost a JPEG decoder what real ones cost.

What a decoder pays for is the number of pixels and of coefficients that are not zero. Photos have amplitudes that fall
with the frequency, broken by edges; so have these, and one setting brings their files to the size of real ones.
"""

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from data_pipelines.text.tokenizers import train_bpe

_SHARDS = 8
_SIZES = ((500, 375), (640, 480), (640, 427), (800, 600), (1024, 683), (1024, 768))  # width x height
_DETAIL = 0.767  # amplitude of an octave, as a share of the octave below: decides the size of the files
_SHAPES = 12


@dataclass(frozen=True)
class PhotoSet:
    """One kind of images.

    Attributes:
        name: of the set.
        short_side: pixels to which images are made smaller; 0 leaves them.
        quality: of the JPEGs.
    """

    name: str
    short_side: int
    quality: int


# As a crawler stores them: the originals, or what img2dataset's defaults make of them.
SETS = (PhotoSet("big", 0, 90), PhotoSet("small", 256, 95))


def write_set(folder: Path, spec: PhotoSet, samples: int, distinct: int) -> list[Path]:
    """Writes a set in webdataset's layout (jpg, txt, json) as 8 shards.

    Args:
        folder: receives the shards.
        spec: the kind of images.
        samples: of all shards together.
        distinct: images that are made; they are repeated.

    Returns:
        The shards.
    """
    folder.mkdir(parents=True)
    photos = [jpeg(spec, i) for i in range(min(distinct, samples))]
    shards = [folder / f"{shard:05d}.tar" for shard in range(_SHARDS)]
    for shard in range(_SHARDS):
        numbers = range(shard * samples // _SHARDS, (shard + 1) * samples // _SHARDS)
        with tarfile.open(shards[shard], "w", format=tarfile.USTAR_FORMAT) as tar:
            for number in numbers:
                for extension, content in _members(number, photos[number % len(photos)]):
                    info = tarfile.TarInfo(f"{number:09d}.{extension}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return shards


def write_tokenizer(path: Path) -> Path:
    """Trains a tokenizer on captions like those of the sets."""
    path.write_text(train_bpe(map(caption, range(2000)), 4096).json)
    return path


def jpeg(spec: PhotoSet, number: int) -> bytes:
    """Returns image `number` of a set, always the same."""
    generator = np.random.default_rng(number)
    width, height = _SIZES[number % len(_SIZES)]
    if generator.random() < 0.25:
        width, height = height, width
    if spec.short_side:
        scale = spec.short_side / min(width, height)
        width, height = round(width * scale), round(height * scale)
    buffer = io.BytesIO()
    Image.fromarray(photo(generator, height, width)).save(buffer, "JPEG", quality=spec.quality)
    return buffer.getvalue()


def photo(generator: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Returns a texture of all scales with smoother shapes in front of it, uint8 [height, width, 3]."""
    shapes = _shapes(generator, height, width)
    front, back = (_texture(generator, height, width, fall) for fall in (0.6 * _DETAIL, _DETAIL))
    luma = 128 + 45 * np.where(shapes > 0, front - 0.5 + 2.5 * shapes, back)
    blue, red = (20 * _texture(generator, height, width, 0.45) + shade * (shapes - 0.5) for shade in (30, -30))
    # YCbCr to RGB (ITU-R BT.601): colours vary less than brightness.
    rgb = np.stack([luma + 1.402 * red, luma - 0.344 * blue - 0.714 * red, luma + 1.772 * blue], axis=-1)
    return np.clip(rgb, 0, 255).astype(np.uint8)


def caption(number: int) -> str:
    """Returns the caption of a sample: 4 to 15 words, frequent and rare ones."""
    generator = np.random.default_rng((number, 1))
    words = np.minimum(generator.zipf(1.4, generator.integers(4, 16)), 10_000)
    return " ".join(map(_word, words.tolist()))


def _word(rank: int) -> str:
    consonants, vowels = "bdfgklmnprstvz", "aeiou"
    word = ""
    while rank or not word:
        rank, syllable = divmod(rank, 70)
        word += consonants[syllable // 5] + vowels[syllable % 5]
    return word


def _members(number: int, image: bytes) -> Iterator[tuple[str, bytes]]:
    text = caption(number)
    fields = dict(caption=text, url=f"https://example.org/{number}.jpg", key=f"{number:09d}", status="success")
    yield "jpg", image
    yield "txt", text.encode()
    yield "json", json.dumps(fields).encode()


def _texture(generator: np.random.Generator, height: int, width: int, fall: float) -> np.ndarray:
    """Sum of octaves of noise, each twice as fine as the one before and `fall` times as strong; [height, width]."""
    texture, amplitude, cells = np.zeros((height, width), np.float32), 1.0, 2
    while cells < 2 * max(height, width):
        shape = (max(2, cells * side // max(height, width)) for side in (height, width))
        grid = generator.standard_normal(tuple(shape), dtype=np.float32)
        way = cv2.INTER_CUBIC if grid.shape[0] < height else cv2.INTER_AREA
        texture += amplitude * cv2.resize(grid, (width, height), interpolation=way)
        amplitude, cells = amplitude * fall, 2 * cells
    return texture


def _shapes(generator: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Polygons of random brightness 0 to 1, one over the other; 0 where there is none; [height, width]."""
    canvas = np.zeros((height, width), np.uint8)
    for _ in range(_SHAPES):
        center, radius = generator.random(2) * (width, height), 8 + generator.random() * height / 4
        angles = 2 * np.pi * np.sort(generator.random(generator.integers(3, 9)))
        corners = center + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        cv2.fillPoly(canvas, [corners.astype(np.int32)], int(generator.integers(1, 256)), lineType=cv2.LINE_AA)
    return canvas.astype(np.float32) / 255
