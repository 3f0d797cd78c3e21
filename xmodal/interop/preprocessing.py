"""What is done to a picture before a model sees it: options of an image input <-> the references' files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipelines.images.naflex import Naflex
from xmodal.interop.processor_settings import check_open_clip, check_padding, check_processor, processor_class, sides
from xmodal.interop.tables import InteropError, fail

_FILTERS = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # numbers of Pillow
_UNIT = 1 / 255
_NOT_TO_RGB = ("ViT", "ConvNext", "EfficientNet", "Siglip2")  # processors that convert only where they are told to


def read_processor(folder: Path) -> dict:
    """Returns the settings of a folder's image processor.

    Raises:
      InteropError: there are none; guessing them would shift every embedding.
    """
    for name, part in (("preprocessor_config.json", None), ("processor_config.json", "image_processor")):
        path = folder / name
        if path.is_file():
            config = read_json(path)
            config = config if part is None else config.get(part)
            if isinstance(config, Mapping) and ("image_mean" in config or "size" in config):
                check_processor(config, str(path))
                return in_plain_words({key: value for key, value in config.items() if value is not None})
    raise InteropError(
        f"{folder} has no preprocessor_config.json, which says how the model's pictures are resized and normalised. "
        "Copy it from where the weights come from"
    )


def in_plain_words(config: Mapping[str, Any]) -> dict:
    """Returns a Hugging Face image processor's settings without the rules that two classes of it have of their own.

    ConvNeXt's resizes the shorter side to `size` / `crop_pct` and crops, or both sides from 384 pixels on.
    EfficientNet's (and ALIGN's) may subtract 1 (`rescale_offset`) and divide by the deviations again (`include_top`),
    which are other means and deviations.
    """
    config = dict(config)
    kind = processor_class(config)
    if kind.startswith("ConvNext") or "crop_pct" in config:
        size = config.get("size", 384)
        size = size["shortest_edge"] if isinstance(size, Mapping) else max(sides(size))
        square = dict(height=size, width=size)
        if size < 384:
            short = int(size / config.pop("crop_pct", 224 / 256))
            config |= dict(size=dict(shortest_edge=short), crop_size=square, do_center_crop=True)
        else:
            config |= dict(size=square, do_center_crop=False)
            config.pop("crop_pct", None)
    if kind.startswith("EfficientNet"):
        factor = config.get("rescale_factor", _UNIT) if config.get("do_rescale", True) else 1.0
        normalise = config.get("do_normalize", True)
        mean = config["image_mean"] if normalise else (0.0,) * 3
        std = config["image_std"] if normalise else (1.0,) * 3
        again = config["image_std"] if config.get("include_top", True) else (1.0,) * 3
        offset, unit = float(config.get("rescale_offset", False) and config.get("do_rescale", True)), factor / _UNIT
        config |= dict(image_mean=[(offset + m) / unit for m in mean], do_rescale=True, rescale_factor=_UNIT,
                       image_std=[s * t / unit for s, t in zip(std, again)], do_normalize=True)  # fmt: skip
        config |= dict(do_center_crop=config.get("do_center_crop", False))
    return config


def shown_size(config: Mapping[str, Any], default: int) -> int:
    """Returns the pixels, a side, of the pictures that a Hugging Face image processor makes."""
    size = config.get("size", default)
    cropped = config.get("do_center_crop", isinstance(size, Mapping) and "shortest_edge" in size)
    return max(sides(config.get("crop_size", default) if cropped else size))


def from_processor(config: Mapping[str, Any], size: int, where: str) -> dict:
    """Returns options of an image input that prepare pictures as a Hugging Face image processor does.

    Args:
      config: of the processor.
      size: pixels of the model's square.
      where: its file, for messages.

    Raises:
      InteropError: it does something that the evaluation here does not.
    """
    problems, kind = _common(config, default=3)
    resized, crop = config.get("size", size), config.get("crop_size", size)
    if not isinstance(resized, Mapping):  # files of before 2022: CLIP meant the shorter side, and crops; ViT both
        square = config.get("default_to_square", not config.get("do_center_crop")) or not isinstance(resized, int)
        resized = dict(zip(("height", "width"), sides(resized))) if square else dict(shortest_edge=resized)
    short = resized.get("shortest_edge")
    if short is not None and not config.get("do_center_crop", True):
        problems.append("do_center_crop is false, and only the shorter side is resized: the picture is not square")
    both = None if short is not None else (resized["height"], resized["width"])
    cropped = short is not None or config.get("do_center_crop", False)
    shown = sides(crop) if cropped else both
    if both is not None and (both[0] != both[1] or min(both) < max(shown)):
        problems.append(f"both sides are resized, to {both[0]} x {both[1]} pixels, and {shown[0]} x {shown[1]} cut out")
    problems += check_padding(config, shown)
    if shown != (size, size):
        problems.append(f"it makes pictures of {shown[0]} x {shown[1]} pixels, and the model takes {size} x {size}")
    fail(f"{where}: these pictures cannot be prepared here", problems)
    numbers = config["image_mean"], config["image_std"]
    resized = short if both is None else both[0]
    shown = _image(size, *numbers, _FILTERS[kind], resized, "down", squash=both is not None)
    return shown | dict(background=_background(config))


def from_packing_processor(config: Mapping[str, Any], patch_size: int, where: str) -> dict:
    """Returns options of an image input that prepare pictures as `Siglip2ImageProcessor` does: packed patches.

    Args:
      config: of the processor.
      patch_size: of the model, in pixels.
      where: its file, for messages.

    Raises:
      InteropError: it does something that the evaluation here does not.
    """
    problems, kind = _common(config, default=2)
    if config.get("patch_size", 16) != patch_size:
        problems.append(f"patch_size is {config.get('patch_size', 16)}, and the model takes {patch_size}")
    fail(f"{where}: these pictures cannot be prepared here", problems)
    lengths = (config.get("max_num_patches", 256),)
    numbers = {key: tuple(map(float, config.get(f"image_{key}", (0.5,) * 3))) for key in ("mean", "std")}
    naflex = dict(lengths=lengths, weights=(), length=0, patch_size=patch_size)
    background = _background(config, "Siglip2")
    return dict(crop="whole", filter=_FILTERS[kind], background=background, naflex=naflex, **numbers)


def to_processor(image: Mapping[str, Any], image_processor: str, processor: str) -> dict:
    """Returns the preprocessor_config.json that prepares pictures as our evaluation does.

    Args:
      image: options of an image input.
      image_processor: class of the reference.
      processor: class of the reference for images and texts.
    """
    size, square = image["size"], dict(height=image["size"], width=image["size"])
    resized = image["resize"] or size
    if packing := Naflex.of(image):
        shape = dict(patch_size=packing.patch_size, max_num_patches=packing.length)
    elif image["crop"] == "squash":
        cut = dict(do_center_crop=True, crop_size=square) if resized != size else dict(do_center_crop=False)
        shape = dict(size=dict(height=resized, width=resized), **cut)
    else:
        shape = dict(size=dict(shortest_edge=resized), do_center_crop=True, crop_size=square)
    if image_processor.startswith("EfficientNet"):
        if image["crop"] == "squash":
            shape |= dict(rescale_offset=False, include_top=False)
        else:  # that class resizes both sides alone
            image_processor = "BitImageProcessor"
    # "Bit" stands in for processors of image models whose references take RGB and leave alpha to what feeds them.
    keeps = image["background"] == "drop" and image_processor.startswith((*_NOT_TO_RGB, "Bit"))
    return dict(
        image_processor_type=image_processor, processor_class=processor, do_convert_rgb=not keeps, do_resize=True,
        **shape, resample={name: number for number, name in _FILTERS.items()}[image["filter"]], do_rescale=True,
        rescale_factor=_UNIT, do_normalize=True, image_mean=list(image["mean"]), image_std=list(image["std"]),
    )  # fmt: skip


def from_open_clip(config: Mapping[str, Any], size: int, where: str) -> dict:
    """Returns options of an image input for a `preprocess_cfg` of open_clip; its defaults are OpenAI's."""
    check_open_clip(config, where)
    shown, mode = config.get("size", size), config.get("resize_mode", "shortest")
    if sides(shown) != (size, size):
        raise InteropError(f"{where}: preprocess_cfg.size is {shown}, and the model takes {size} pixels")
    if mode not in ("shortest", "squash"):
        raise InteropError(f"{where}: preprocess_cfg.resize_mode {mode!r} is not known: known are shortest, squash")
    kind = config.get("interpolation", "bicubic")
    if kind not in ("bicubic", "bilinear"):
        raise InteropError(
            f"{where}: preprocess_cfg.interpolation {kind!r:.100} is not known: known are bicubic, bilinear"
        )
    mean = config.get("mean", (0.48145466, 0.4578275, 0.40821073))
    std = config.get("std", (0.26862954, 0.26130258, 0.27577711))
    shown = _image(size, mean, std, kind, size, "even", squash=mode == "squash")
    return shown | dict(background="drop")  # its transforms convert with Pillow's `convert("RGB")`


def to_open_clip(image: Mapping[str, Any]) -> dict:
    """Returns the `preprocess_cfg` that prepares pictures as our evaluation does."""
    if image["resize"] not in (0, image["size"]):
        raise InteropError(
            f"data.inputs.image.resize={image['resize']}: open_clip resizes to the size of the model "
            f"({image['size']}), no other"
        )
    return dict(
        size=image["size"], mode="RGB", mean=list(image["mean"]), std=list(image["std"]), fill_color=0,
        interpolation=image["filter"], resize_mode="squash" if image["crop"] == "squash" else "shortest",
    )  # fmt: skip


def background_note(image: Mapping[str, Any], processor: Mapping[str, Any] | None = None) -> list[str]:
    """Says how a model shows transparent images, as a list of one line, where the target shows them in another way.

    Args:
      image: options of an image input.
      processor: the preprocessor_config.json of a Hugging Face export; None: open_clip.
    """
    theirs = "drop" if processor is None else _background(processor)
    if image["background"] == theirs:
        return []
    ours = "drops the alpha channel" if image["background"] == "drop" else f"is shown them on {image['background']}"
    whose = "open_clip" if processor is None else "transformers' image processor"
    does = "drops the alpha channel" if theirs == "drop" else f"puts them on {theirs}"
    return [f"transparent images: this model {ours}, and {whose} {does}; convert them to RGB before"]


def pipeline_note(image: Mapping[str, Any]) -> list[str]:
    """Says, as a list of one line, that pipelines of transformers show transparent images in another way.

    They open images with `load_image`, whose `convert("RGB")` drops the alpha channel before the processor sees it.

    Args:
      image: the options of the image input.
    """
    if image["background"] == "drop":
        return []
    return [
        f"transparent images: this model is shown them on {image['background']}, and transformers' pipelines drop the "
        f"alpha channel: paste them on {image['background']} before, or use model and processor without a pipeline"
    ]


def read_json(path: Path) -> dict:
    """Reads a JSON object; raises an InteropError that names the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InteropError(f"there is no {path}") from None
    except OSError as error:
        raise InteropError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or nested without end
        raise InteropError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InteropError(f"{path} holds a {type(value).__name__}, not an object")
    return value


def _common(config: Mapping[str, Any], default: int) -> tuple[list[str], int]:
    """Returns what a processor does that is not done here, and its filter by Pillow's number."""
    problems = [f"{key} is false" for key in ("do_resize", "do_rescale", "do_normalize") if not config.get(key, True)]
    if abs(config.get("rescale_factor", _UNIT) - _UNIT) > 1e-9:
        problems.append(f"rescale_factor is {config['rescale_factor']}, needs 1/255")
    kind = config.get("resample", default)
    if kind not in _FILTERS:
        problems.append(f"resample is {kind}, needs 0 (nearest), 2 (bilinear) or 3 (bicubic)")
    return problems, kind


def _background(config: Mapping[str, Any], kind: str = "") -> str:
    """What a Hugging Face image processor makes of transparent images, as `background` of an image input.

    Processors that convert to RGB put them on white (transformers 5.24; older ones drop alpha). The others take RGB
    alone, and what feeds them (`load_image`, and with it all pipelines) converts with Pillow's `convert("RGB")`.
    """
    kind = processor_class(config) or kind
    converts = config.get("do_convert_rgb")
    return "white" if (not kind.startswith(_NOT_TO_RGB) if converts is None else converts) else "drop"


def _image(
    size: int, mean: Any, std: Any, kind: str, resized: int, rounding: str, *, squash: bool = False
) -> dict:  # fmt: skip
    crop, resize = "squash" if squash else "center", 0 if resized == size else resized
    numbers = dict(mean=tuple(map(float, mean)), std=tuple(map(float, std)))
    return dict(size=size, crop=crop, resize=resize, filter=kind, rounding=rounding, **numbers)
