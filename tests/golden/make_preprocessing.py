"""Makes `preprocessing.npz`: pictures of mixed sizes, modes and formats as six processors show them.

Needs torch, torchvision and transformers; see README.md beside it. The pictures are random and drawn here.
"""

import io
import json
import os
import pathlib

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import PIL
import torchvision
import transformers
from PIL import Image

SEED, COUNT = 20260726, 200
SQUARE = lambda pixels: dict(height=pixels, width=pixels)
PROCESSORS = {  # by the name of the array; the last four are small, and cut odd margins where they cut
    "clip": (transformers.CLIPImageProcessor, dict(size=dict(shortest_edge=16), crop_size=SQUARE(16))),
    "siglip": (transformers.SiglipImageProcessor, dict(size=SQUARE(16), do_convert_rgb=True)),
    "vit": (transformers.ViTImageProcessor, dict(size=SQUARE(9), do_convert_rgb=True)),
    "bit": (transformers.BitImageProcessor, dict(size=dict(shortest_edge=12), crop_size=SQUARE(9))),
    "convnext": (
        transformers.ConvNextImageProcessor, dict(size=dict(shortest_edge=9), crop_pct=0.8, do_convert_rgb=True)),
    "efficientnet": (
        transformers.EfficientNetImageProcessor,
        dict(size=SQUARE(12), crop_size=SQUARE(9), do_center_crop=True, resample=0, include_top=False,
             do_convert_rgb=True)),
}  # fmt: skip
FORMATS = {  # mode -> formats that keep it
    "RGB": ("PNG", "JPEG", "WEBP", "BMP"),
    "L": ("PNG", "JPEG"),
    "RGBA": ("PNG", "WEBP"),
    "LA": ("PNG",),
    "P": ("PNG", "GIF"),
    "CMYK": ("JPEG",),
    "1": ("PNG",),
}
SIZES = ((1, 40), (40, 1), (1, 1), (2, 63), (16, 16), (17, 15), (15, 31), (90, 16), (33, 90), (64, 64), (7, 5))


def picture(rng: np.random.Generator, mode: str, size: tuple[int, int]) -> Image.Image:
    """Noise at two scales, with a transparent part where the mode has one."""
    coarse = Image.fromarray(rng.integers(0, 256, (4, 3, 4), np.uint8), "RGBA").resize(size, Image.Resampling.BICUBIC)
    fine = rng.integers(-20, 21, (size[1], size[0], 4))
    values = np.clip(np.asarray(coarse).astype(int) + fine, 0, 255).astype(np.uint8)
    image = Image.fromarray(values, "RGBA")
    if mode == "1":  # line art; dithered noise would only measure how often a filter clips
        return image.convert(mode, dither=Image.Dither.NONE)
    return image if mode == "RGBA" else image.convert("P", colors=32) if mode == "P" else image.convert(mode)


def encode(image: Image.Image, kind: str, rng: np.random.Generator) -> bytes:
    buffer, options = io.BytesIO(), {}
    if image.mode == "P" and rng.random() < 0.5:
        options["transparency"] = 3
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def shown(processor, image: Image.Image) -> np.ndarray:
    """What the processor makes of a picture before normalisation, as uint8 [pixels, pixels, 3]."""
    tensor = processor(images=image, do_normalize=False, return_tensors="np")["pixel_values"][0]
    values = np.asarray(tensor).transpose(1, 2, 0) * 255
    assert np.abs(values - np.round(values)).max() < 1e-2
    return np.round(values).astype(np.uint8)


def main() -> None:
    rng = np.random.default_rng(SEED)
    processors = {name: kind(**settings) for name, (kind, settings) in PROCESSORS.items()}
    files, names, pixels = [], [], {name: [] for name in processors}
    for i in range(COUNT):
        mode = list(FORMATS)[i % len(FORMATS)]
        kind = FORMATS[mode][(i // len(FORMATS)) % len(FORMATS[mode])]
        size = SIZES[i % len(SIZES)] if i % 2 else tuple(int(s) for s in rng.integers(3, 80, 2))
        files.append(encode(picture(rng, mode, size), kind, rng))
        names.append(f"{mode} {kind} {size[0]}x{size[1]}")
        for name, processor in processors.items():
            with Image.open(io.BytesIO(files[-1])) as image:
                image.load()
                pixels[name].append(shown(processor, image))
    versions = {m.__name__: m.__version__ for m in (transformers, torchvision, PIL, np)}
    path = pathlib.Path(__file__).with_name("preprocessing.npz")
    np.savez_compressed(
        path,
        files=np.frombuffer(b"".join(files), np.uint8),
        ends=np.cumsum([len(f) for f in files]),
        names=np.array(names),
        versions=np.array(json.dumps(versions)),
        **{f"config/{name}": np.array(json.dumps(p.to_dict(), sort_keys=True)) for name, p in processors.items()},
        **{name: np.stack(p) for name, p in pixels.items()},
    )
    print(f"{path.name}: {COUNT} pictures, {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
