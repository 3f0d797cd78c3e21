"""The settings of an image processor's file, checked before they are read: types, ranges, and what is unknown."""

from collections.abc import Mapping
from typing import Any

from xmodal.interop.settings import shown
from xmodal.interop.tables import fail

_LARGEST = 2**14  # pixels of a side
_SIZES = ("size", "crop_size", "pad_size")
_FLAGS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb", "do_pad", "default_to_square",
          "include_top", "rescale_offset")  # fmt: skip
_COLOURS = ("image_mean", "image_std", "mean", "std")
_NUMBERS = ("rescale_factor", "crop_pct")
_COUNTS = ("resample", "patch_size", "max_num_patches")
# Of the classes, and of how the processor is run.
_IDLE = ("_name_or_path", "_processor_class", "_valid_processor_keys", "auto_map", "data_format", "device",
         "disable_grouping", "feature_extractor_type", "image_processor_type", "image_seq_length", "input_data_format",
         "processor_class", "return_tensors", "tokenizer_class", "transformers_version")  # fmt: skip
_OPEN_CLIP = dict(mode="RGB", interpolation=None, resize_mode=None, fill_color=None)  # None: checked where it is read


def check_processor(config: Mapping[str, Any], where: str) -> None:
    """Raises an InteropError for settings of a preprocessor_config.json that are unknown or damaged; lists all."""
    problems = []
    for key, value in config.items():
        if value is None or key in _IDLE:
            continue
        if key in _SIZES:
            problem = _wrong_size(value)
        elif key in _FLAGS:
            problem = "" if isinstance(value, bool) else "true or false"
        elif key in _COLOURS:
            problem = _wrong_colours(value)
        elif key in _NUMBERS:
            problem = "" if _is_number(value) and value > 0 else "a number above 0"
        elif key in _COUNTS:
            problem = "" if _is_whole(value) and 0 <= value <= _LARGEST else "a whole number"
        else:
            problem = "to be taken out: it is not known, and may change the pictures"
        problems += [f"{key} is {shown(value)}, needs {problem}"] if problem else []
    kind = processor_class(config)
    if not kind.startswith("Siglip2"):
        missing = (key for key in ("image_mean", "image_std") if config.get(key) is None)
        problems += [f"{key} is missing" for key in missing]
    size, shrunk = config.get("size"), kind.startswith("ConvNext") or config.get("crop_pct") is not None
    if shrunk and isinstance(size, Mapping) and "shortest_edge" not in size:
        problems.append(f"size is {shown(size)}, needs shortest_edge")
    fail(f"{where}: these pictures cannot be prepared here", problems)


def processor_class(config: Mapping[str, Any]) -> str:
    """Class of the reference that a preprocessor_config.json is of, "" where it does not say."""
    return str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")


def check_padding(config: Mapping[str, Any], pixels: tuple[int, int]) -> list[str]:
    """Says what is wrong where pictures are padded to another size than `pixels` (down, across)."""
    size = config.get("pad_size")
    if not config.get("do_pad") or size is None or sides(size) == pixels:
        return []
    return [f"do_pad is true and pad_size {shown(size)}: pictures of {pixels[0]} x {pixels[1]} pixels would be padded"]


def check_open_clip(config: Mapping[str, Any], where: str) -> None:
    """Raises an InteropError for settings of a `preprocess_cfg` that are unknown or damaged; lists all."""
    problems = []
    for key, value in config.items():
        if key == "size":
            problem = _wrong_size(value)
        elif key in ("mean", "std"):
            problem = _wrong_colours(value)
        elif key not in _OPEN_CLIP:
            problem = "to be taken out: it is not known, and may change the pictures"
        else:
            problem = "" if _OPEN_CLIP[key] in (None, value) else repr(_OPEN_CLIP[key])
        problems += [f"preprocess_cfg.{key} is {shown(value)}, needs {problem}"] if problem else []
    fail(f"{where}: these pictures cannot be prepared here", problems)


def sides(size: Any) -> tuple[int, int]:
    """Pixels down and across of a size in any of its forms, but for a shorter side alone."""
    if isinstance(size, Mapping):
        return size["height"], size["width"]
    return tuple(size) if isinstance(size, list | tuple) else (size, size)


def _wrong_size(value: Any) -> str:
    if isinstance(value, Mapping):
        numbers = list(value.values()) if value.keys() in ({"height", "width"}, {"shortest_edge"}) else [None]
    else:
        numbers = value if isinstance(value, list | tuple) and len(value) == 2 else [value]
    if all(_is_whole(n) and 0 < n <= _LARGEST for n in numbers):
        return ""
    return f"pixels (1 to {_LARGEST:,}): a number, or height and width, or shortest_edge"


def _wrong_colours(value: Any) -> str:
    good = isinstance(value, list | tuple) and len(value) == 3 and all(map(_is_number, value))
    return "" if good else "three numbers"


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e6  # not NaN
