"""Writes what transformers' configuration classes hold by default, and how they read old files (README.md beside it).

Run it as `make_golden.py`.
"""

import argparse
import json
import pathlib

import transformers

PARTS = {"CLIP": ("", "Text", "Vision"), "Siglip": ("", "Text", "Vision"), "Siglip2": ("", "Text", "Vision"),
         "ChineseCLIP": ("", "Text", "Vision"), "Align": ("", "Text", "Vision"), "ViT": ("",), "Dinov2": ("",),
         "Dinov2WithRegisters": ("",), "Bert": ("",), "ConvNext": ("",), "ResNet": ("",),
         "EfficientNet": ("",)}  # fmt: skip
SIZES = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2)
# Files of before 2023 hold `text_config_dict` and `vision_config_dict`, alone or beside the sections.
OLD = {
    "alone": dict(text_config_dict=SIZES, vision_config_dict=SIZES),
    "null": dict(text_config=SIZES, vision_config=SIZES, text_config_dict=None, vision_config_dict=None),
    "both": dict(text_config=SIZES, text_config_dict=dict(SIZES, hidden_act="relu", num_hidden_layers=3)),
    "less": dict(vision_config=dict(SIZES, image_size=48, layer_norm_eps=1e-3), vision_config_dict=SIZES),
    "empty": dict(text_config=SIZES, text_config_dict={}),
}


def main() -> None:
    """Writes configurations.json into the folder given by --out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent)
    path = parser.parse_args().out / "configurations.json"
    plain = lambda config: json.loads(config.to_json_string(use_diff=False))
    defaults = {
        f"{name}{part}Config": plain(getattr(transformers, f"{name}{part}Config")())
        for name, parts in PARTS.items()
        for part in parts
    }
    old = {
        f"{name}/{case}": dict(
            given=given, read=plain(getattr(transformers, f"{name}Config")(**json.loads(json.dumps(given))))
        )
        for name in ("CLIP", "ChineseCLIP")
        for case, given in OLD.items()
    }
    document = dict(transformers=transformers.__version__, defaults=defaults, old=old)
    path.write_text(json.dumps(document, sort_keys=True, indent=1) + "\n")


if __name__ == "__main__":
    main()
