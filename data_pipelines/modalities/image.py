"""Images: squares, or packed patches of their own shape (NaFlex)."""

import base64
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from PIL import Image as Pillow

from data_pipelines import rng
from data_pipelines.errors import BadSample, DataError
from data_pipelines.images import augment
from data_pipelines.images.decode import (
    Options,
    check_image,
    evaluation_pixels,
    full_image,
    resized,
    to_rgb,
    training_image,
)
from data_pipelines.images.formats import IMAGE_EXTENSIONS
from data_pipelines.images.naflex import Naflex, pack, unpack
from data_pipelines.io.listing import IMAGE_COLUMNS
from data_pipelines.modalities.base import ArraySpec, Fact, Modality, Part, Random, folded, keys_of, shown
from data_pipelines.stream.hooks import pixel_hook

if TYPE_CHECKING:
    import jax

_WHOLE = ("squash", "whole")  # crops that decide how the evaluation shows images, too
_THUMBNAIL = 96  # pixels of an image in HTML


@dataclass(frozen=True)
class NaflexOptions:
    """Images at their own aspect ratio, as sequences of patches (SigLIP 2), for towers of `presets.naflex`.

    `size` then means nothing, and `crop` is whole, random_resized or inception, whose parts keep their shape, too.

    Attributes:
        lengths: patches that a batch has room for, such as (128, 256, 576); one is drawn for each batch.
        weights: how often each of them is drawn; () equally often.
        length: patches in evaluation, embedding and export; 0: the longest.
        patch_size: pixels of a patch's side.
    """

    lengths: tuple = ()
    weights: tuple = ()
    length: int = 0
    patch_size: int = 16


@dataclass(frozen=True)
class Image(Modality):
    """An image: JPEG, PNG, WebP, GIF or BMP. The batch has `<input>` uint8 [rows, size, size, 3].

    With `naflex` it has `<input>` uint8 [rows, patches, 3 * patch_size**2] and `<input>_grid` int32 [rows, 2], the
    patches of each image (down, across).

    Attributes:
        size: pixels of the square that the model sees.
        crop: of the training: random_resized | inception (the same, always with 5 to 100 % of the area) | resize_crop
            (a square as large as the shorter side, anywhere) | center | squash (of `resize` pixels a square of `size`,
            anywhere) | whole (naflex). Evaluation: squash where that is chosen here, or else the shorter side; the
            central square. With naflex always whole.
        resize: evaluation: the shorter side (squash: both sides) gets this many pixels before the square is cut; 0:
            `size`.
        filter: of the evaluation's resizing: bicubic | bilinear | nearest.
        rounding: of odd margins of that square: even (as torchvision, open_clip) | down (transformers).
        scale: share of the area that a random crop keeps (CLIP: 0.9 to 1).
        ratio: aspect ratio of a random crop.
        naflex: packed patches, see `NaflexOptions`: `lengths`, `weights`, `length`, `patch_size`.
        exif: turn photographs as their EXIF orientation says; published CLIP and SigLIP models were not.
        background: of transparent images: white | black | drop (the colours under the transparency, as OpenAI's CLIP
            and open_clip show them). Imported models say what their reference does.
        max_pixels: larger images are bad samples; a small file can claim any size.
        mean: of RGB in 0..1; subtracted on the device.
        std: of the same; divides on the device.
        flip: random horizontal flip, on the device.
        policy: "" | "randaugment" (in full "randaugment-m9-n2") | "trivial" | "autoaugment", on the device.
        jitter: strength of brightness, contrast and saturation changes, on the device.
        grey: probability of losing the colours (SimCLR: 0.2), on the device.
        blur: probability of a Gaussian blur (SimCLR: 0.5), on the device.
        solarize: probability of inverting the brighter half of the values (BYOL: 0.2), on the device.
        erase: probability of erasing a random rectangle (Zhong et al. 2017: 0.5), on the device.
        mixup: alpha of weighted means of two images (Zhang et al. 2017: 0.2); 0 mixes none.
        cutmix: alpha of rectangles pasted from another image (Yun et al. 2019: 1); with mixup, one of both.
        transform: a function of your own for training images, "my_package.module:function", see
            data_pipelines/stream/hooks.py.
    """

    size: int = shown(224)
    crop: str = "random_resized"
    resize: int = shown(0)
    filter: str = shown("bicubic")
    rounding: str = shown("even")
    scale: tuple[float, float] = (0.9, 1.0)
    ratio: tuple[float, float] = (0.75, 4 / 3)
    naflex: NaflexOptions = NaflexOptions()
    exif: bool = shown(False)
    background: str = shown("white")
    max_pixels: int = 2**26
    mean: tuple[float, float, float] = shown((0.48145466, 0.4578275, 0.40821073))
    std: tuple[float, float, float] = shown((0.26862954, 0.26130258, 0.27577711))
    flip: bool = False
    policy: str = ""
    jitter: float = 0.0
    grey: float = 0.0
    blur: float = 0.0
    solarize: float = 0.0
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    transform: str = ""

    type: ClassVar[str] = "image"
    noun: ClassVar[str] = "image"
    extensions: ClassVar[tuple[str, ...]] = IMAGE_EXTENSIONS
    columns: ClassVar[tuple[str, ...]] = IMAGE_COLUMNS
    words: ClassVar[int] = augment.WORDS
    use: ClassVar[str] = "crop"
    meaning: ClassVar[tuple[str, ...]] = ("mean", "std")

    def arrays(self, rows: int, draw: int = 0) -> dict[str, ArraySpec]:
        """See `Modality`."""
        if self.packing is None:
            return {self.name: ArraySpec((rows, self.size, self.size, 3), np.uint8)}
        shape = (rows, draw or self.packing.length, 3 * self.packing.patch_size**2)
        return {self.name: ArraySpec(shape, np.uint8), self.grid: ArraySpec((rows, 2), np.int32)}

    def train(self, part: Part, random: Random, batch: Mapping[str, np.ndarray], row: int) -> None:
        """See `Modality`: decodes, crops, resizes and transforms."""
        out, uniform = batch[self.name][row], rng.uniform(random.words[self.name])
        crop = lambda height, width: self._crop(height, width, uniform)
        if self.packing is None:
            pixels = training_image(part.content, self.size, crop, self.options, out)
            self._hook(pixels, random.row, part.sample)
            return
        room = lambda *sides: self.packing.pixels(*sides, len(out))
        pixels = training_image(part.content, room, crop, self.options)
        self._hook(pixels, random.row, part.sample)
        batch[self.grid][row] = pack(pixels, self.packing.patch_size, out)

    def evaluate(self, raw: Any, batch: Mapping[str, np.ndarray], row: int) -> None:
        """See `Modality`: a filter over all pixels, no chance. `raw` may also be a Pillow image."""
        image, out = self.opened(raw), batch[self.name][row]
        if self.packing is None:
            out[:] = evaluation_pixels(image, self.size, self.crop == "squash", self.options)
            return
        height, width = self.packing.pixels(image.height, image.width, len(out))
        batch[self.grid][row] = pack(resized(image, height, width, self.options), self.packing.patch_size, out)

    def opened(self, raw: Any) -> Pillow.Image:
        """Returns what a user has as a decoded RGB image.

        Args:
            raw: encoded bytes, a path, uint8 [height, width(, 3 or 4)], or a Pillow image.

        Raises:
            BadSample: it is no image, damaged or too large.
        """
        if isinstance(raw, np.ndarray):
            if raw.dtype != np.uint8 or not (raw.ndim == 2 or (raw.ndim == 3 and raw.shape[2] in (3, 4))):
                raise BadSample(f"expected uint8 [height, width, 3], got {raw.dtype} {raw.shape}")
            raw = Pillow.fromarray(raw)
        if isinstance(raw, Pillow.Image):
            return to_rgb(raw, self.options.background)
        if isinstance(raw, str | os.PathLike):
            with open(raw, "rb") as file:
                raw = file.read()
        return full_image(raw, self.options)

    def on_device(self, batch: "Mapping[str, jax.Array]", keys: "jax.Array | None") -> "dict[str, jax.Array]":
        """See `Modality`: normalises; with keys flips, changes colours and mixes neighbours, too.

        Mixed images come with `mix_weight` float32 [rows], the share of the row's own target.
        """
        from data_pipelines.images import device, mix  # JAX takes a second to import: what only reads does without

        if self.name not in batch:
            return dict(batch)
        keys = keys_of(self, keys)
        if self.packing is None:
            pixels = device.preprocess_images(batch[self.name], keys, self)
        else:
            pixels = device.preprocess_patches(batch[self.name], batch[self.grid], keys, self)
        batch = {**batch, self.name: pixels}
        if keys is None or not (self.mixup or self.cutmix):
            return batch
        mixed, weight = mix.mix_images(pixels, folded(keys, "mix"), mixup=self.mixup, cutmix=self.cutmix)
        return {**batch, self.name: mixed, "mix_weight": weight}

    def identity(self) -> dict[str, Any]:
        """See `Modality`."""
        packed = {} if self.packing is None else dict(patches=self.packing.length, patch_size=self.packing.patch_size)
        return super().identity() | dict(squash=self.crop == "squash") | packed

    def summary(self) -> str:
        """See `Modality`."""
        shown = f"{self.size} pixels, crop {self.crop} of {self.resize or self.size} pixels"
        if self.packing is not None:
            shown = f"at most {self.packing.lengths[-1]} patches of {self.packing.patch_size} pixels"
        return f"{shown}, {self.filter}, mean {self.mean}, std {self.std}"

    def show(self, batch: Mapping[str, np.ndarray], row: int) -> str:
        """See `Modality`."""
        image, buffer = Pillow.fromarray(np.ascontiguousarray(self.pixels(batch, row))), io.BytesIO()
        image.thumbnail((_THUMBNAIL, _THUMBNAIL))
        image.save(buffer, "PNG")
        return f'<img alt="" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'

    def describe(self, batch: Mapping[str, np.ndarray], row: int) -> str:
        """See `Modality`."""
        pixels = self.pixels(batch, row)
        return (
            f"{pixels.shape[0]} x {pixels.shape[1]} pixels, mean colour {pixels.mean(axis=(0, 1)).round().astype(int)}"
        )

    def pixels(self, batch: Mapping[str, np.ndarray], row: int) -> np.ndarray:
        """Returns the image of a row as the model sees it, uint8 [height, width, 3] of a host batch."""
        image = batch[self.name][row]
        if self.packing is None:
            return image
        return unpack(image, batch[self.grid][row], self.packing.patch_size)

    @classmethod
    def continued(cls, saved: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
        """See `Modality`; the crop, too, where one of both shows whole images."""
        taken = super().continued(saved, given) | ({"naflex": saved["naflex"]} if "naflex" in saved else {})
        crop = saved.get("crop", cls.crop)
        return taken | ({"crop": crop} if {crop, given.get("crop")} & set(_WHOLE) else {})

    def check(self, device: bool = False) -> None:
        """See `Modality`."""
        if self.size < 1:
            raise DataError(f"{self.where}.size is {self.size}; it must be at least 1")
        _ = self.options, self.packing, self._crop, self._hook
        if device:
            from data_pipelines.images.device import check_augmentation  # as in `on_device`

            check_augmentation(self)

    def verify(self, content: bytes | memoryview, whole: bool = False) -> None:
        """See `Modality`."""
        full_image(content, self.options) if whole else check_image(content, self.options)

    def facts(self) -> dict[str, Fact]:
        """See `Modality`."""
        if self.packing is None:
            return dict(image_size=Fact(self.size, f"{self.where}.size"))
        return dict(
            patch_size=Fact(self.packing.patch_size, f"{self.where}.naflex.patch_size"),
            length=Fact(self.packing.length, f"{self.where}.naflex.length"),
        )

    def lengths(self) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """See `Modality`."""
        return (self.packing.lengths, self.packing.weights) if self.packing else super().lengths()

    def draw(self, first: int, seed: int) -> int:
        """See `Modality`."""
        return self.packing.draw(first, seed, *self.purpose("naflex")) if self.packing else 0

    def blank(self, batch: Mapping[str, np.ndarray], rows: Any) -> None:
        """See `Modality`."""
        super().blank(batch, rows)
        if self.packing is not None:
            batch[self.grid][rows] = 1

    def thumbnail(self, content: bytes | memoryview, size: int) -> bytes:
        """See `Modality`; small images keep their size."""
        image, buffer = full_image(content, self.options), io.BytesIO()
        image.thumbnail((size, size), Pillow.Resampling.BICUBIC)
        image.save(buffer, "PNG", optimize=True)
        return buffer.getvalue()

    @property
    def grid(self) -> str:
        """Name of the array with the patches of each image."""
        return f"{self.name}_grid"

    @cached_property
    def packing(self) -> Naflex | None:
        """The checked options of packed patches; None for squares."""
        return Naflex.of(self)

    @cached_property
    def options(self) -> Options:
        """How images are decoded."""
        return Options.of(self)

    @cached_property
    def _crop(self) -> Any:
        return augment.cropper(self)

    @cached_property
    def _hook(self) -> Any:
        square = self.packing is None
        example = (self.size,) * 2 if square else self.packing.pixels(2, 3, self.packing.length)
        return pixel_hook(f"{self.where}.transform", self.transform, example, self.name)

    def __getstate__(self) -> dict[str, Any]:
        """Without what another process makes for itself."""
        return {name: value for name, value in vars(self).items() if name not in ("_crop", "_hook")}
