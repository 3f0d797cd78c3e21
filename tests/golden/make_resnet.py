"""Makes the golden files of ResNets from transformers and open_clip (see README.md beside it).

Run it as `make_golden.py`; open_clip is needed, too. Each model runs twice, with running statistics and with those of
its batch, which also moves the running ones. The references compute in float64: a batch of 4 leaves few values to a
channel of the last stage, and float32 would differ by itself.
"""

import argparse
import json
import pathlib

import numpy as np
import open_clip
import torch
import transformers
from make_golden import BOS, EOS, LENGTHS, PAD, SEED, captions, describe, nhwc, prepare
from torch.nn.functional import cross_entropy, normalize

ROWS, EPS, MOMENTUM = 4, 2e-3, 0.2  # an epsilon of 1e-5 would hide in the rounding
MARGIN = 1e-5  # of values before a ReLU, which are of the order of 1
LABELS = (4, 0, 2, 2)
NAMES = ("ant", "bee", "cat", "dog", "elk")
MODES = ("eval", "train")


def pixels(generator: torch.Generator, height: int, width: int) -> torch.Tensor:
    """Random images [batch, 3, height, width] whose values float16 holds exactly."""
    return torch.randn((ROWS, 3, height, width), generator=generator).half().double()


def perturb(model: torch.nn.Module, images: torch.Tensor, generator: torch.Generator) -> torch.nn.Module:
    """Noise on every parameter and on the running statistics; float64 with values that float16 holds exactly.

    The statistics are first those of the images, as a trained model's are near those of its data.
    """
    prepare(model, generator).double()
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for module in norms:
        module.eps, module.momentum = EPS, 1.0
    vision = getattr(model, "visual", model)
    with torch.no_grad():
        vision.train()(images)
    for module in norms:
        draw = lambda like: torch.randn(like.shape, generator=generator)
        module.momentum, mean, var = MOMENTUM, module.running_mean, module.running_var
        mean.copy_((mean + 0.2 * var.sqrt() * draw(mean)).half())
        var.copy_((var * (0.5 + draw(var).abs())).half())
    return model


def margin(model: torch.nn.Module, images: torch.Tensor) -> float:
    """How far the values before all ReLUs are from zero, in both modes: where one is within rounding of it, float32 may
    take the other branch on one machine and not on another, and gradients jump.
    """
    state, smallest = {name: value.detach().clone() for name, value in model.state_dict().items()}, []
    relus = [module for module in model.modules() if isinstance(module, torch.nn.ReLU)]
    look = lambda module, given: smallest.append(given[0].detach().abs().min().item())
    hooks = [module.register_forward_pre_hook(look) for module in relus]
    for mode in MODES:
        model.train(mode == "train")
        with torch.no_grad():
            model(images)
    for hook in hooks:
        hook.remove()
    model.load_state_dict(state)
    return min(smallest)


def clear(make, seed: int) -> tuple[torch.nn.Module, torch.Tensor, torch.Generator]:
    """Returns the first `make(generator)` (model, images) with a margin, and its generator; tries seeds in order."""
    while True:
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        model, images = make(generator)
        if margin(model, images) > MARGIN:
            return model, images, generator
        seed += 1000


def record(model: torch.nn.Module, images: torch.Tensor, run) -> dict[str, np.ndarray]:
    """Both modes of a golden file; `run(images)` returns ({output: value}, loss)."""
    half = lambda arrays: {k: v.numpy().astype(np.float16) for k, v in arrays.items() if v.is_floating_point()}
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    arrays = {f"weights/{name}": value for name, value in half(state).items()}
    arrays |= {
        "inputs/pixel_values": nhwc(images).astype(np.float16),
        "eps": np.array(EPS),
        "momentum": np.array(MOMENTUM),
    }
    versions = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "open_clip": open_clip.__version__,
    }
    arrays["versions"] = np.array(json.dumps(versions))
    single = lambda a: a.detach().numpy().astype(np.float32)
    for mode in MODES:
        model.train(mode == "train")
        model.zero_grad()
        leaf = images.clone().requires_grad_()
        outputs, loss = run(leaf)
        loss.backward()
        arrays[f"{mode}/loss"] = single(loss)
        arrays |= {f"{mode}/outputs/{name}": single(value) for name, value in outputs.items()}
        grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        arrays |= {f"{mode}/grads/{name}": single(grad) for name, grad in grads.items()}
        arrays[f"{mode}/input_grads/pixel_values"] = nhwc(leaf.grad[:1]).astype(np.float32)  # of the first image
    moved = {name: value for name, value in model.state_dict().items() if ".running_" in name}
    arrays |= {f"train/statistics/{name}": single(value) for name, value in moved.items()}
    model.load_state_dict(state)
    return arrays


def bare(seed: int, height: int, width: int, **config) -> dict[str, np.ndarray]:
    """A `ResNetModel`; its loss is a fixed random combination of both outputs."""

    def make(generator):
        images = pixels(generator, height, width)
        return perturb(transformers.ResNetModel(transformers.ResNetConfig(**config)), images, generator), images

    model, images, generator = clear(make, seed)
    model.config.architectures = ["ResNetModel"]
    weights: dict[str, torch.Tensor] = {}

    def run(leaf):
        out = model(leaf)
        outputs = {"tokens": out.last_hidden_state.flatten(2).mT, "pooled": out.pooler_output.flatten(1)}
        for name, value in outputs.items():
            weights.setdefault(name, torch.randn(value.shape, generator=generator).half().double())
        return outputs, sum((outputs[name] * weights[name]).mean() for name in outputs)

    arrays = record(model, images, run) | {"config": np.array(describe(model.config))}
    return arrays | {f"inputs/{name}_weight": weight.numpy().astype(np.float16) for name, weight in weights.items()}


def resnet() -> dict[str, np.ndarray]:
    """v1.5 with bottlenecks, for pictures with odd sides that differ."""
    config = dict(embedding_size=6, hidden_sizes=[8, 16, 24], depths=[1, 3, 2])
    return bare(SEED + 40, 37, 51, **config)


def resnet_v1() -> dict[str, np.ndarray]:
    """v1: the stride is in the first convolution of a bottleneck."""
    config = dict(embedding_size=8, hidden_sizes=[8, 16], depths=[2, 2], downsample_in_bottleneck=True)
    return bare(SEED + 31, 27, 18, **config)


def resnet_classifier() -> dict[str, np.ndarray]:
    """Blocks of two convolutions, and the cross entropy of a classifier."""
    names = dict(enumerate(NAMES))
    config = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 8, 8], depths=[2, 1, 2], layer_type="basic", id2label=names
    )
    config.label2id = {name: i for i, name in names.items()}

    def make(generator):
        images = pixels(generator, 32, 32)
        return perturb(transformers.ResNetForImageClassification(config), images, generator), images

    model, images, _ = clear(make, SEED + 32)
    model.config.architectures = ["ResNetForImageClassification"]

    def run(leaf):
        out = model(leaf, labels=torch.tensor(LABELS))
        return {"pooled": out.logits}, out.loss

    arrays = record(model, images, run)
    return arrays | {"config": np.array(describe(model.config)), "inputs/labels": np.array(LABELS, np.int32)}


def contrast(model: open_clip.CLIP, images: torch.Tensor, ids: torch.Tensor) -> tuple[dict, torch.Tensor]:
    """Returns ({output: value}, CLIP's loss) of pairs."""
    image, text = normalize(model.encode_image(images)), normalize(model.encode_text(ids))
    logits = model.logit_scale.exp() * image @ text.T
    labels = torch.arange(len(logits))
    loss = (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2
    return {"image_embeds": image, "text_embeds": text}, loss


def clip_resnet() -> dict[str, np.ndarray]:
    """open_clip's CLIP with a ResNet for 64 px, and CLIP's loss; also pictures of 45 x 70 px, with other positions."""
    generator = torch.Generator().manual_seed(SEED + 33)
    config = dict(
        embed_dim=12, quick_gelu=True,
        vision_cfg=dict(image_size=64, layers=[1, 3, 1, 1], width=2, head_width=16, patch_size=None),
        text_cfg=dict(context_length=LENGTHS[0], vocab_size=99, width=16, heads=2, layers=1, pool_type="eos",
                      eos_id=EOS, pad_id=PAD),
    )  # fmt: skip
    images = pixels(generator, 64, 64)
    model = perturb(open_clip.CLIP(**config), images, generator)
    ids, mask = captions(generator)
    ids, mask = (torch.cat([a, a.flip(0)[:1]]) for a in (ids, mask))
    ids[-1, 3] = BOS - 1  # another caption than the first of that length

    arrays = record(model, images, lambda leaf: contrast(model, leaf, ids)) | {
        "config": np.array(json.dumps(dict(model_cfg=config))),
        "inputs/input_ids": ids.numpy().astype(np.int32), "inputs/attention_mask": mask.numpy().astype(np.int32),
    }  # fmt: skip
    wide, pool = pixels(generator, 45, 70), model.visual.attnpool
    arrays["wide/inputs/pixel_values"] = nhwc(wide).astype(np.float16)
    pool.positional_embedding = torch.nn.Parameter(pool.positional_embedding[:3])  # of the mean, and 1 x 2 places
    with torch.no_grad():
        arrays["wide/train/image_embeds"] = normalize(model.train().encode_image(wide)).numpy().astype(np.float32)
    return arrays


def main() -> None:
    """Writes the golden files into the folder given by --out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent)
    folder = parser.parse_args().out
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    for make in (resnet, resnet_v1, resnet_classifier, clip_resnet):
        arrays = make()
        path = folder / f"{make.__name__}.npz"
        np.savez_compressed(path, **arrays)
        print(f"{path.name}: {len(arrays)} arrays, {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
