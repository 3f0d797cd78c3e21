"""Makes the golden files of image towers from the reference implementations in PyTorch (see README.md beside it).

Run it as `make_golden.py`. The loss is a fixed random combination of all outputs, or the classifier's own.
"""

import argparse
import json
import pathlib
import tempfile

import numpy as np
import torch
import transformers
from make_golden import SEED, describe, nhwc, pixels, prepare
from safetensors.numpy import load_file

SIZE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "patch_size": 8,
    "layer_norm_eps": 1e-3,  # far above the published ones: those would hide in the rounding
    "attn_implementation": "eager",
}
LABELS = (4, 0, 2)


def saved(model: torch.nn.Module, arrays: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Arrays by the names that `save_pretrained` writes, which are not those of the modules."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, state_dict=arrays)
        return load_file(f"{folder}/model.safetensors")


def record(model: torch.nn.Module, images: torch.Tensor, generator: torch.Generator) -> dict[str, np.ndarray]:
    """Runs forward, loss and backward once and returns the arrays of a golden file."""
    prepare(model, generator)
    model.config.architectures = [type(model).__name__]  # as a published file has it
    images.requires_grad_()
    base = getattr(model, model.base_model_prefix, model)
    arrays = {}
    if base is model:
        out = model(images)
        outputs = {"tokens": out.last_hidden_state, "pooled": out.pooler_output}
        outputs = {name: value for name, value in outputs.items() if value is not None}
        weights = {k: torch.randn(v.shape, generator=generator).half().float() for k, v in outputs.items()}
        loss = sum((outputs[name] * weights[name]).mean() for name in outputs)
        arrays |= {f"inputs/{name}_weight": weight.numpy().astype(np.float16) for name, weight in weights.items()}
    else:
        out = model(images, labels=torch.tensor(LABELS))
        outputs, loss = {"pooled": out.logits}, out.loss
        arrays["inputs/labels"] = np.array(LABELS, np.int32)
    loss.backward()
    state = dict(model.named_parameters())
    grads = {name: p.grad for name, p in state.items() if p.grad is not None}
    arrays |= {
        "config": np.array(describe(model.config)),
        "versions": np.array(json.dumps({"torch": torch.__version__, "transformers": transformers.__version__})),
        "inputs/pixel_values": nhwc(images).astype(np.float16),
        "loss": loss.detach().numpy(),
        "input_grads/pixel_values": nhwc(images.grad),
    }
    arrays |= {f"outputs/{name}": value.detach().numpy() for name, value in outputs.items()}
    arrays |= {f"weights/{k}": v.astype(np.float16) for k, v in saved(model, dict(model.state_dict())).items()}
    return arrays | {f"grads/{name}": value for name, value in saved(model, grads).items()}


def dinov2() -> dict[str, np.ndarray]:
    """DINOv2 with SwiGLU; positions of 5 x 5 patches for pictures of 7 x 4."""
    generator = torch.Generator().manual_seed(SEED + 10)
    config = transformers.Dinov2Config(**SIZE, mlp_ratio=2, image_size=40, use_swiglu_ffn=True)
    return record(transformers.Dinov2Model(config), pixels(generator, 56, 32), generator)


def dinov2_with_registers() -> dict[str, np.ndarray]:
    """DINOv2 with three registers; positions of 7 x 7 patches for pictures of 3 x 5, antialiased."""
    generator = torch.Generator().manual_seed(SEED + 11)
    config = transformers.Dinov2WithRegistersConfig(**SIZE, mlp_ratio=2, image_size=56, num_register_tokens=3)
    return record(transformers.Dinov2WithRegistersModel(config), pixels(generator, 24, 40), generator)


def vit() -> dict[str, np.ndarray]:
    """ViT with its pooler, for pictures of 3 x 5 patches."""
    generator = torch.Generator().manual_seed(SEED + 12)
    config = transformers.ViTConfig(**SIZE, intermediate_size=56, image_size=(24, 40))
    return record(transformers.ViTModel(config), pixels(generator, 24, 40), generator)


def vit_classifier() -> dict[str, np.ndarray]:
    """ViT that classifies, with its cross entropy."""
    generator = torch.Generator().manual_seed(SEED + 13)
    names = dict(enumerate(("ant", "bee", "cat", "dog", "elk")))
    config = transformers.ViTConfig(**SIZE, intermediate_size=56, image_size=24, id2label=names)
    config.label2id = {name: i for i, name in names.items()}
    return record(transformers.ViTForImageClassification(config), pixels(generator, 24, 24), generator)


def main() -> None:
    """Writes the golden files into the folder given by --out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent)
    folder = parser.parse_args().out
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    for make in (dinov2, dinov2_with_registers, vit, vit_classifier):
        arrays = make()
        path = folder / f"{make.__name__}.npz"
        np.savez_compressed(path, **arrays)
        print(f"{path.name}: {len(arrays)} arrays, {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
