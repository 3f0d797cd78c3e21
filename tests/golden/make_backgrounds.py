"""Makes `backgrounds.npz`: what the references make of transparent and other odd images before they resize them.

Needs transformers (5.24) and open_clip; torchvision is not used. The images are random and drawn here.
"""

import ast
import importlib
import importlib.util
import io
import json
import pathlib
from unittest import mock

import numpy as np
import PIL
from PIL import Image

SIZE = 24
CONVERTING, OTHERS = ("CLIP", "Siglip", "Bit"), ("ViT", "ConvNext")  # processors that convert to RGB unless told not to
find_spec = importlib.util.find_spec


def processor_of(name: str):
    """The class of a processor that needs no torchvision; none must be found, or all import it."""
    module = name.lower()
    hidden = lambda name, *rest: None if name.split(".")[0] == "torchvision" else find_spec(name, *rest)
    with mock.patch("importlib.util.find_spec", hidden):
        module = importlib.import_module(f"transformers.models.{module}.image_processing_pil_{module}")
    return getattr(module, f"{name}ImageProcessorPil")


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
    for kind in CONVERTING:
        name, processor = f"{kind}ImageProcessor", processor_of(kind)(**plain)
        configs[name] = dict(image_processor_type=name)
        arrays[name] = np.stack([shown(processor, data) for data in encoded_files.values()])
    transformers = importlib.import_module("transformers.image_utils")
    for kind in OTHERS:  # they take no such image; pipelines convert before
        name, told = f"{kind}ImageProcessor", processor_of(kind)(**plain, do_convert_rgb=True)
        loaded = [transformers.load_image(Image.open(io.BytesIO(data))) for data in encoded_files.values()]
        configs[name] = dict(image_processor_type=name)
        arrays[name] = np.stack([np.asarray(image) for image in loaded])
        configs[f"{name}, told"] = dict(image_processor_type=name, do_convert_rgb=True)
        arrays[f"{name}, told"] = np.stack([shown(told, data) for data in encoded_files.values()])
    convert = open_clips_conversion()
    arrays["open_clip"] = np.stack(
        [np.asarray(convert(Image.open(io.BytesIO(data)))) for data in encoded_files.values()]
    )
    versions = {m.__name__: m.__version__ for m in (importlib.import_module("transformers"), PIL, np)}
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
