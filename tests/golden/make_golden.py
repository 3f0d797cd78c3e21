"""Makes the golden parity files from the reference implementations in PyTorch (see README.md beside it).

Needs torch and transformers, which the project and its tests do not: run it from an environment of its own.
Every number is random and drawn here; no published weights are read and nothing is downloaded.
"""

import argparse
import json
import os
import pathlib

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
import transformers
from transformers.models.clip.modeling_clip import image_text_contrastive_loss

SEED = 20260726
PAD, BOS, EOS = 1, 97, 7  # eos is neither 2 (the legacy pooling rule) nor the largest id
LENGTHS = (12, 6, 9)  # tokens of each caption, marks included; the first one fills the row
VISION = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "patch_size": 8,
    "layer_norm_eps": 1e-3,  # far above the published ones: those would hide in the rounding
}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 99,
    "max_position_embeddings": LENGTHS[0],
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "layer_norm_eps": 2e-3,
}


def captions(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns ids [batch, seq] and mask [batch, seq]: bos, random words, eos, padding."""
    ids = torch.full((len(LENGTHS), LENGTHS[0]), PAD)
    for row, length in zip(ids, LENGTHS):
        row[0], row[length - 1] = BOS, EOS
        row[1 : length - 1] = torch.randint(8, 97, (length - 2,), generator=generator)
    return ids, (torch.arange(LENGTHS[0]) < torch.tensor(LENGTHS)[:, None]).long()


def prepare(model: torch.nn.Module, generator: torch.Generator) -> torch.nn.Module:
    """Adds noise to every parameter, so that no zero bias and no unit scale can hide a missing term.

    Values are rounded to float16, the type in which they are stored; the model itself computes in float32.
    """
    model.eval().float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
            parameter.copy_(parameter.half())
    return model


def pixels(generator: torch.Generator, height: int, width: int) -> torch.Tensor:
    """Returns random images [batch, 3, height, width] whose values float16 holds exactly."""
    return torch.randn((len(LENGTHS), 3, height, width), generator=generator).half().float()


def nhwc(images: torch.Tensor) -> np.ndarray:
    """[batch, channels, height, width] -> [batch, height, width, channels]."""
    return images.detach().numpy().transpose(0, 2, 3, 1)


def describe(config: transformers.PretrainedConfig) -> str:
    """The configuration as in `config.json` of a published model, but with every default written out."""
    return json.dumps(config.to_dict(), sort_keys=True)


def record(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Runs forward, loss and backward once and returns the arrays of a golden file."""
    images = inputs["pixel_values"].requires_grad_()
    out = model(**inputs, return_loss=True)
    out.loss.backward()
    arrays = {
        "config": np.array(describe(model.config)),
        "versions": np.array(json.dumps({"torch": torch.__version__, "transformers": transformers.__version__})),
        "inputs/pixel_values": nhwc(images).astype(np.float16),
        "inputs/input_ids": inputs["input_ids"].numpy().astype(np.int32),
        "outputs/image_embeds": out.image_embeds,
        "outputs/text_embeds": out.text_embeds,
        "outputs/vision_last_hidden_state": out.vision_model_output.last_hidden_state,
        "outputs/text_last_hidden_state": out.text_model_output.last_hidden_state,
        "outputs/logits_per_image": out.logits_per_image,
        "loss": out.loss,
        "input_grads/pixel_values": nhwc(images.grad),
    }
    if "attention_mask" in inputs:
        arrays["inputs/attention_mask"] = inputs["attention_mask"].numpy().astype(np.int32)
    for name, parameter in model.named_parameters():
        arrays[f"weights/{name}"] = parameter.detach().half()
        arrays[f"grads/{name}"] = parameter.grad
    return {k: v.detach().numpy() if isinstance(v, torch.Tensor) else v for k, v in arrays.items()}


def clip_vit() -> dict[str, np.ndarray]:
    """CLIP with a ViT: causal text with padding, pooled at the first eos; class token, quick GELU, 40 px."""
    generator = torch.Generator().manual_seed(SEED)
    config = transformers.CLIPConfig(
        vision_config=dict(**VISION, image_size=40, projection_dim=24),
        text_config=dict(**TEXT, projection_dim=24),
        projection_dim=24,
        attn_implementation="eager",
    )
    model = prepare(transformers.CLIPModel(config), generator)
    ids, mask = captions(generator)
    return record(model, {"pixel_values": pixels(generator, 40, 40), "input_ids": ids, "attention_mask": mask})


def siglip_model(generator: torch.Generator, vision: dict, text: dict) -> torch.nn.Module:
    """SigLIP, perturbed, with temperature and bias as in training."""
    config = transformers.SiglipConfig(vision_config=vision, text_config=text, attn_implementation="eager")
    model = transformers.SiglipModel(config)
    with torch.no_grad():
        model.logit_scale.fill_(1.5)
        model.logit_bias.fill_(-2.0)
    return prepare(model, generator)


def siglip() -> dict[str, np.ndarray]:
    """SigLIP: attention pooling, bidirectional text pooled at its last position, no padding mask, 48 px."""
    generator = torch.Generator().manual_seed(SEED + 1)
    vision, text = dict(**VISION, image_size=48), dict(**TEXT, projection_size=VISION["hidden_size"])
    model = siglip_model(generator, vision, text)
    ids, _ = captions(generator)
    return record(model, {"pixel_values": pixels(generator, 48, 48), "input_ids": ids})


def siglip_wide() -> dict[str, np.ndarray]:
    """A smaller SigLIP, whose 4 x 4 patches are laid out as 2 x 8 (8 x 32 px): same positions, other grid."""
    generator = torch.Generator().manual_seed(SEED + 3)
    small = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    vision = VISION | small | dict(image_size=16, patch_size=4)
    model = siglip_model(generator, vision, TEXT | small | dict(projection_size=16))
    ids, _ = captions(generator)
    return record(model, {"pixel_values": pixels(generator, 8, 32), "input_ids": ids})


def softmax_loss(logits: torch.Tensor, positives: torch.Tensor | None) -> torch.Tensor:
    """CLIP's loss; with `positives` [n, n] each row's target is uniform over its positives."""
    if positives is None:
        return image_text_contrastive_loss(logits)
    rows = positives / positives.sum(1, keepdim=True)
    columns = positives.T / positives.T.sum(1, keepdim=True)
    image_to_text = -(rows * torch.log_softmax(logits, 1)).sum(1).mean()
    text_to_image = -(columns * torch.log_softmax(logits.T, 1)).sum(1).mean()
    return (image_to_text + text_to_image) / 2


def sigmoid_loss(logits: torch.Tensor, positives: torch.Tensor | None) -> torch.Tensor:
    """SigLIP's loss (Zhai et al. 2023, equation 1): the sum over all pairs divided by the batch size."""
    positives = torch.eye(len(logits), dtype=logits.dtype) if positives is None else positives
    return -torch.nn.functional.logsigmoid((2 * positives - 1) * logits).sum() / len(logits)


def contrastive_loss() -> dict[str, np.ndarray]:
    """Both contrastive losses with their gradients in float64, with one and with several positives a row."""
    generator = torch.Generator().manual_seed(SEED + 2)
    n, width = 16, 8
    image, text = (torch.randn((n, width), generator=generator, dtype=torch.float64) for _ in range(2))
    # Pairs 0, 5 and 11 share a key; 5 and 9 share a caption: 0-5 and 5-9 are positives but 0-9 is not.
    key_id = np.stack([np.arange(n) % 3, np.arange(n) + 100], 1).astype(np.uint32)
    caption_id = np.stack([np.arange(n) + 7, np.arange(n) % 2], 1).astype(np.uint32)
    key_id[[5, 11]] = key_id[0]
    key_id[[2, 3]] = key_id[1]
    caption_id[9] = caption_id[5]
    caption_id[14] = caption_id[8]
    positives = np.zeros((n, n), bool)
    for ids in (key_id, caption_id):
        positives |= (ids[:, None] == ids[None]).all(-1)
    arrays = {
        "inputs/image": image.numpy().copy(),
        "inputs/text": text.numpy().copy(),
        "inputs/logit_scale": np.array(1.7),
        "inputs/logit_bias": np.array(-2.3),
        "inputs/key_id": key_id,
        "inputs/caption_id": caption_id,
        "inputs/positives": positives,
    }
    losses = {"softmax": softmax_loss, "sigmoid": sigmoid_loss}
    labels = {"": None, "_multi": torch.from_numpy(positives).double()}
    for case, loss in losses.items():
        for suffix, target in labels.items():
            names = ("image", "text", "logit_scale") + (("logit_bias",) if case == "sigmoid" else ())
            leaves = {k: torch.tensor(arrays[f"inputs/{k}"], requires_grad=True) for k in names}
            units = [torch.nn.functional.normalize(leaves[k], dim=1) for k in ("image", "text")]
            logits = leaves["logit_scale"].exp() * units[0] @ units[1].T + leaves.get("logit_bias", 0.0)
            value = loss(logits, target)
            value.backward()
            arrays[f"{case}{suffix}/loss"] = value.detach().numpy()
            arrays |= {f"{case}{suffix}/grads/{k}": leaf.grad.numpy() for k, leaf in leaves.items()}
    return arrays


def main() -> None:
    """Writes the golden files into the folder given by --out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent)
    folder = parser.parse_args().out
    torch.manual_seed(SEED)  # the references draw their own initial values from the global generator
    torch.set_num_threads(1)  # one order of summation: the files come out the same every time
    for make in (clip_vit, siglip, siglip_wide, contrastive_loss):
        arrays = make()
        path = folder / f"{make.__name__}.npz"
        np.savez_compressed(path, **arrays)
        print(f"{path.name}: {len(arrays)} arrays, {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
