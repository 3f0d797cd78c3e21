"""Makes `backgrounds.npz`: what the references make of transparent and other odd images before they resize them.

Needs transformers (5.24) and open_clip; torchvision is not used. The images are random and drawn here.
"""

import ast
import importlib.util
import io
import json
import pathlib

find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name.split(".")[0] == "torchvision" else find_spec(name, *rest)

import numpy as np
import PIL
import transformers
from PIL import Image
from transformers.image_utils import load_image
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

SIZE = 24
CONVERTING = dict(
    CLIPImageProcessor=CLIPImageProcessorPil, SiglipImageProcessor=SiglipImageProcessorPil,
    BitImageProcessor=BitImageProcessorPil,
)  # fmt: skip
OTHERS = dict(ViTImageProcessor=ViTImageProcessorPil, ConvNextImageProcessor=ConvNextImageProcessorPil)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def files() -> dict[str, bytes]:
    """Images by what is odd about them."""
    rng = np.random.default_rng(7)
    noise = lambda channels, mode: Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, channels), np.uint8), mode)
    palette = noise(3, "RGB").quantize(16)
    grey = Image.fromarray(rng.integers(0, 65536, (SIZE, SIZE)).astype(np.uint16))
    return {
        "RGBA PNG": encoded(noise(4, "RGBA"), "PNG"),
        "RGBA WEBP": encoded(noise(4, "RGBA"), "WEBP", lossless=True, exact=True),
        "LA PNG": encoded(noise(2, "LA"), "PNG"),
        "P PNG, one colour": encoded(palette, "PNG", transparency=3),
        "P PNG, alphas": encoded(palette, "PNG", transparency=bytes(range(0, 256, 16))),
        "P GIF": encoded(palette, "GIF", transparency=5),
        "RGB PNG, one colour": encoded(Image.new("RGB", (SIZE, SIZE), (9, 8, 7)), "PNG", transparency=(9, 8, 7)),
        "CMYK JPEG": encoded(noise(4, "CMYK"), "JPEG", quality=95),
        "RGB PNG": encoded(noise(3, "RGB"), "PNG"),
        "I;16 PNG": encoded(grey, "PNG"),
    }


def open_clips_conversion():
    """open_clip's function alone: its module imports torchvision for others."""
    path = pathlib.Path(find_spec("open_clip").origin).with_name("transform.py")
    tree = ast.parse(path.read_text())
    (function,) = (node for node in tree.body if getattr(node, "name", "") == "_convert_to_rgb")
    names = {}
    exec(compile(ast.Module([function], []), str(path), "exec"), names)
    return names["_convert_to_rgb"]


def shown(processor, data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        values = np.asarray(processor(image, return_tensors="np")["pixel_values"][0])
    values = values if values.shape[-1] == 3 else np.moveaxis(values, 0, -1)
    return values.astype(np.uint8)


def main() -> None:
    plain = dict(do_resize=False, do_center_crop=False, do_rescale=False, do_normalize=False)
    encoded_files, arrays, configs = files(), {}, {}
    for name, kind in CONVERTING.items():
        processor = kind(**plain)
        configs[name] = dict(image_processor_type=name)
        arrays[name] = np.stack([shown(processor, data) for data in encoded_files.values()])
    for name, kind in OTHERS.items():  # take no such image, and say so; pipelines convert before
        configs[name] = dict(image_processor_type=name)
        loaded = [load_image(Image.open(io.BytesIO(data))) for data in encoded_files.values()]
        arrays[name] = np.stack([np.asarray(image) for image in loaded])
        told = kind(**plain, do_convert_rgb=True)
        configs[f"{name}, told"] = dict(image_processor_type=name, do_convert_rgb=True)
        arrays[f"{name}, told"] = np.stack([shown(told, data) for data in encoded_files.values()])
    convert = open_clips_conversion()
    arrays["open_clip"] = np.stack(
        [np.asarray(convert(Image.open(io.BytesIO(data)))) for data in encoded_files.values()]
    )
    versions = {m.__name__: m.__version__ for m in (transformers, PIL, np)}
    path = pathlib.Path(__file__).with_name("backgrounds.npz")
    np.savez_compressed(
        path,
        files=np.frombuffer(b"".join(encoded_files.values()), np.uint8),
        ends=np.cumsum([len(data) for data in encoded_files.values()]),
        names=np.array(list(encoded_files)),
        configs=np.array(json.dumps(configs)),
        versions=np.array(json.dumps(versions)),
        **{f"shown/{name}": array for name, array in arrays.items()},
    )
    print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
