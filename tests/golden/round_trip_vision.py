"""Takes image towers of transformers through xmodal and back, and compares: see docs/interop.md and `round_trip.py`.

reference -> `xmodal import` -> `xmodal export` -> loaded by transformers -> the same embeddings (and logits)? All
weights and pictures are random; nothing is downloaded.

    python -m tests.golden.round_trip_vision
"""

import json
import os
import pathlib
import tempfile
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["JAX_PLATFORMS"] = "cpu"

import numpy as np
import torch
import transformers

import xmodal
from tests.golden.round_trip import PHOTOS, difference, perturbed, pictures, run

SIZE = dict(hidden_size=64, num_hidden_layers=3, num_attention_heads=4, patch_size=16)
NAMES = dict(enumerate(("ant", "bee", "cat", "dog", "elk")))


def dinov2(**more) -> torch.nn.Module:
    config = transformers.Dinov2Config(**SIZE, image_size=112, **more)
    return transformers.Dinov2Model(config)


def registers() -> torch.nn.Module:
    config = transformers.Dinov2WithRegistersConfig(**SIZE, image_size=112)
    return transformers.Dinov2WithRegistersModel(config)


def vit() -> torch.nn.Module:
    return transformers.ViTModel(transformers.ViTConfig(**SIZE, intermediate_size=160, image_size=64))


def classifier() -> torch.nn.Module:
    config = transformers.ViTConfig(**SIZE, intermediate_size=160, image_size=64, id2label=NAMES)
    return transformers.ViTForImageClassification(config)


def resnet(**more) -> torch.nn.Module:
    config = transformers.ResNetConfig(embedding_size=16, hidden_sizes=[32, 64, 128], depths=[1, 2, 2], **more)
    return transformers.ResNetModel(config)


def resnet_classifier() -> torch.nn.Module:
    config = transformers.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32, 64], depths=[2, 1, 2], layer_type="basic", id2label=NAMES
    )
    return transformers.ResNetForImageClassification(config)


def by_transformers(folder: pathlib.Path, images: list) -> np.ndarray:
    """Unit vectors of the pooled output, or of the logits, with what `AutoImageProcessor` prepares."""
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    model, info = getattr(transformers, name).from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    if info["missing_keys"] or info["unexpected_keys"]:
        raise SystemExit(f"{folder}: {info}")
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        out = model.eval()(**processor(images=images, return_tensors="pt"))
    return torch.nn.functional.normalize(out.logits if "logits" in out else out.pooler_output.flatten(1)).numpy()


def main() -> None:
    """Prints one row of a markdown table for each family."""
    torch.manual_seed(0)
    torch.set_num_threads(2)
    warnings.simplefilter("ignore")
    makers = {"DINOv2": dinov2, "DINOv2, SwiGLU": lambda: dinov2(use_swiglu_ffn=True),
              "DINOv2 with registers": registers, "ViT": vit, "ViT, classifier": classifier,
              "ResNet, v1.5": resnet, "ResNet, v1": lambda: resnet(downsample_in_bottleneck=True),
              "ResNet, classifier": resnet_classifier}  # fmt: skip
    with tempfile.TemporaryDirectory() as root:
        for number, (name, make) in enumerate(makers.items()):
            source, own, out = (pathlib.Path(root) / f"{number}_{kind}" for kind in ("in", "own", "out"))
            perturbed(make()).save_pretrained(source)
            if name.startswith("ViT"):
                processor = transformers.ViTImageProcessor(size=dict(height=64, width=64))
            elif name.startswith("ResNet"):
                processor = transformers.ConvNextImageProcessor(size=dict(shortest_edge=64), crop_pct=0.875)
            else:
                square = dict(height=64, width=64)
                processor = transformers.BitImageProcessor(size=dict(shortest_edge=72), crop_size=square)
            processor.save_pretrained(source)
            run("import", f"hf:{source}", "--out", str(own))
            run("export", "--workdir", str(own), "--to", "hf", "--out", str(out))
            side = {"D": 72, "V": 64, "R": 73}[name[0]]  # to which the processor resizes: nothing is resized then
            model, squares = xmodal.load(own), pictures(((side, side),) * 4)
            before, ours = by_transformers(source, squares), model.embed_image(squares)
            odd = by_transformers(source, pictures(PHOTOS)), model.embed_image(pictures(PHOTOS))
            cosine = f"{np.min(np.sum(odd[0] * odd[1], axis=1)):.6f}"
            after = difference([before], [by_transformers(out, squares)])
            print(f"| {name} (transformers) | {difference([before], [ours])} | {cosine} | hf | {after} |", flush=True)


if __name__ == "__main__":
    main()
