"""Makes the golden files of ConvNeXt, EfficientNet and ALIGN from transformers (see README.md beside it).

Run it as `make_golden.py`. Running means and variances are perturbed as the weights are. The loss of an image tower is
a fixed random combination of its outputs or the classifier's own; ALIGN's is its contrastive loss.
"""

import argparse
import json
import pathlib
from collections.abc import Callable

import numpy as np
import torch
import transformers
from make_golden import PAD, SEED, captions, describe, nhwc, pixels, prepare
from make_vision import LABELS, saved
from PIL import Image

COUNTER = "num_batches_tracked"  # of every batch norm; nothing reads it
CONVNEXT = dict(hidden_sizes=[8, 12, 16, 24], depths=[1, 2, 1, 1], layer_norm_eps=1e-3)
# Four stages of the published kinds, narrow, each of two blocks after scaling.
STAGES = dict(in_channels=[32, 16, 24, 40], out_channels=[16, 24, 40, 80], kernel_sizes=[3, 3, 5, 5],
              strides=[1, 2, 2, 1], num_block_repeats=[1, 1, 1, 1], expand_ratios=[1, 3, 2, 2])  # fmt: skip
EFFICIENTNET = dict(**STAGES, width_coefficient=0.24, depth_coefficient=1.1, batch_norm_eps=0.02)
NAMES = dict(enumerate(("ant", "bee", "cat", "dog", "elk")))


def perturb(model: torch.nn.Module, images: torch.Tensor, generator: torch.Generator) -> None:
    """Weights as `prepare` does; running means and variances near those of the images, exact in float16.

    Far from them the signal would fade from norm to norm, until no picture differed from another.
    """
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        for module in norms:  # these classes start their scales near 0
            module.weight.fill_(1.0)
        prepare(model, generator)
        momenta = [module.momentum for module in norms]
        for module in norms:
            module.momentum = 1.0
        getattr(model, "vision_model", model).train()(pixel_values=images)
        model.eval()
        for module, momentum in zip(norms, momenta):
            module.momentum = momentum
            module.num_batches_tracked.zero_()
            noise = torch.randn((2, *module.running_mean.shape), generator=generator)
            module.running_mean.add_(0.3 * noise[0] * module.running_var.sqrt()).copy_(module.running_mean.half())
            module.running_var.mul_(torch.exp(0.3 * noise[1])).copy_(module.running_var.half())


def state(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """Weights and statistics by their names in files."""
    arrays = saved(model, dict(model.state_dict()))
    return {name: a for name, a in arrays.items() if not name.endswith(COUNTER)}


def tokens(last: torch.Tensor) -> torch.Tensor:
    """[batch, channels, down, across] -> [batch, down * across, channels]."""
    return last.flatten(2).transpose(1, 2)


def record(model: torch.nn.Module, images: torch.Tensor, generator: torch.Generator, *, train: bool = False) -> dict:
    """Runs forward, loss and backward once; with `train` also in training mode, and the statistics after it."""
    model.config.architectures = [type(model).__name__]  # as a published file has it
    images.requires_grad_()
    base = getattr(model, model.base_model_prefix, model)
    arrays = {"inputs/pixel_values": nhwc(images).astype(np.float16)}
    arrays |= {f"weights/{name}": a.astype(np.float16) for name, a in state(model).items()}

    def run(prefix: str, kept: Callable[[str], bool]) -> None:
        if base is model:
            out = model(images)
            outputs = {"tokens": tokens(out.last_hidden_state), "pooled": out.pooler_output}
            shares = {k: torch.randn(v.shape, generator=generator).half().float() for k, v in outputs.items()}
            loss = sum((outputs[name] * shares[name]).mean() for name in outputs)
            arrays.update({f"{prefix}inputs/{n}_weight": w.numpy().astype(np.float16) for n, w in shares.items()})
        else:
            out = model(images, labels=torch.tensor(LABELS))
            outputs, loss = {"pooled": out.logits}, out.loss
            arrays["inputs/labels"] = np.array(LABELS, np.int32)
        images.grad = None
        model.zero_grad()
        loss.backward()
        grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        arrays[f"{prefix}loss"] = loss.detach().numpy()
        arrays[f"{prefix}input_grads/pixel_values"] = nhwc(images.grad)
        arrays.update({f"{prefix}outputs/{name}": value.detach().numpy() for name, value in outputs.items()})
        arrays.update({f"{prefix}grads/{name}": a for name, a in saved(model, grads).items() if kept(name)})

    run("", lambda name: True)
    if train:  # the stem's gradients have come through every layer
        model.train()
        run("train/", lambda name: name.startswith("embeddings."))
        arrays.update({f"train/statistics/{n}": a for n, a in state(model).items() if "running" in n})
    return about(model) | arrays


def about(model: torch.nn.Module) -> dict[str, np.ndarray]:
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return {"config": np.array(describe(model.config)), "versions": np.array(json.dumps(versions))}


def tinted(generator: torch.Generator, height: int, width: int) -> torch.Tensor:
    """Random pictures, each of a colour of its own: the mean of noise is the same for all."""
    noise = pixels(generator, height, width)
    return (noise + 2 * torch.randn((len(noise), 3, 1, 1), generator=generator)).half().float()


def small_variances(model: torch.nn.Module) -> None:
    """Shrinks what two norms of fixed epsilon 1e-6 read, so that it shows."""
    with torch.no_grad():
        for module in (model.embeddings.patch_embeddings, model.encoder.stages[1].layers[0].dwconv):
            for parameter in module.parameters():
                parameter.copy_((parameter / 256).half())


def convnext() -> dict[str, np.ndarray]:
    """ConvNeXt with LayerScale; 45 x 54 px, of which patches and strides leave some out."""
    generator = torch.Generator().manual_seed(SEED + 20)
    config = transformers.ConvNextConfig(**CONVNEXT, layer_scale_init_value=0.5, image_size=(45, 54))
    model = prepare(transformers.ConvNextModel(config), generator)
    small_variances(model)
    return record(model, pixels(generator, 45, 54), generator)


def convnext_classifier() -> dict[str, np.ndarray]:
    """ConvNeXt that classifies, with three stages, patches of 2 and without LayerScale."""
    generator = torch.Generator().manual_seed(SEED + 21)
    sizes = dict(num_stages=3, hidden_sizes=[8, 12, 20], depths=[1, 1, 2], patch_size=2, layer_norm_eps=1e-3)
    config = transformers.ConvNextConfig(**sizes, layer_scale_init_value=0.0, image_size=32, id2label=NAMES)
    config.label2id = {name: i for i, name in NAMES.items()}
    model = prepare(transformers.ConvNextForImageClassification(config), generator)
    return record(model, pixels(generator, 32, 32), generator)


def efficientnet() -> dict[str, np.ndarray]:
    """EfficientNet with its top, 37 x 30 px, one strided block padded alike on all sides; also in training mode."""
    generator = torch.Generator().manual_seed(SEED + 22)
    config = transformers.EfficientNetConfig(
        **EFFICIENTNET, depthwise_padding=[4], hidden_dim=304, drop_connect_rate=0.0, batch_norm_momentum=0.1,
        image_size=(37, 30),
    )  # fmt: skip
    model, images = transformers.EfficientNetModel(config), tinted(generator, 37, 30)
    perturb(model, images, generator)
    return record(model, images, generator, train=True)


def efficientnet_classifier() -> dict[str, np.ndarray]:
    """EfficientNet that classifies squares."""
    generator = torch.Generator().manual_seed(SEED + 23)
    config = transformers.EfficientNetConfig(**EFFICIENTNET, hidden_dim=304, image_size=33, id2label=NAMES)
    config.label2id = {name: i for i, name in NAMES.items()}
    model, images = transformers.EfficientNetForImageClassification(config), tinted(generator, 33, 33)
    perturb(model, images, generator)
    return record(model, images, generator)


def align() -> dict[str, np.ndarray]:
    """ALIGN: EfficientNet without its top, BERT read at its first token, temperature, label smoothing."""
    generator = torch.Generator().manual_seed(SEED + 24)
    text = dict(hidden_size=32, intermediate_size=56, num_hidden_layers=2, num_attention_heads=2, vocab_size=99,
                max_position_embeddings=14, pad_token_id=PAD, layer_norm_eps=2e-3)  # fmt: skip
    vision = dict(**EFFICIENTNET, hidden_dim=304, image_size=33)
    config = transformers.AlignConfig(text_config=text, vision_config=vision, projection_dim=24)
    config._attn_implementation = "eager"
    model = transformers.AlignModel(config)
    model.config.architectures = ["AlignModel"]
    with torch.no_grad():
        model.temperature.fill_(0.3)
    images = tinted(generator, 33, 33)
    perturb(model, images, generator)
    images.requires_grad_()
    ids, mask = captions(generator)
    out = model(pixel_values=images, input_ids=ids, attention_mask=mask, return_loss=True)
    out.loss.backward()
    arrays = {
        "inputs/pixel_values": nhwc(images).astype(np.float16),
        "inputs/input_ids": ids.numpy().astype(np.int32),
        "inputs/attention_mask": mask.numpy().astype(np.int32),
        "input_grads/pixel_values": nhwc(images.grad),
        "loss": out.loss,
        "outputs/image_embeds": out.image_embeds,
        "outputs/text_embeds": out.text_embeds,
        "outputs/vision_tokens": tokens(out.vision_model_output.last_hidden_state),
        "outputs/text_last_hidden_state": out.text_model_output.last_hidden_state,
        "outputs/logits_per_image": out.logits_per_image,
    }
    arrays = {k: v.detach().numpy() if isinstance(v, torch.Tensor) else v for k, v in arrays.items()}
    arrays |= {f"weights/{name}": a.astype(np.float16) for name, a in state(model).items()}
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return about(model) | arrays | {f"grads/{name}": a for name, a in saved(model, grads).items()}


PROCESSORS = {  # by the name of the class's family, with the settings of published files but for their sizes
    "align": ("EfficientNetImageProcessor", dict(
        size=dict(height=24, width=24), crop_size=dict(height=17, width=17), do_center_crop=True, do_normalize=False,
        rescale_factor=1 / 127.5, rescale_offset=True, include_top=False, resample=2)),
    "efficientnet": ("EfficientNetImageProcessor", dict(
        size=dict(height=17, width=17), do_center_crop=False, image_mean=[0.485, 0.456, 0.406], resample=0,
        image_std=[0.47853944, 0.4732864, 0.47434163])),
    "convnext": ("ConvNextImageProcessor", dict(
        size=dict(shortest_edge=17), crop_pct=0.8, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])),
}  # fmt: skip


def processors() -> dict[str, np.ndarray]:
    """Small pictures of several shapes, and what the image processors make of them."""
    rng = np.random.default_rng(SEED + 25)
    shapes = ((24, 24), (17, 17), (40, 31), (19, 60), (9, 13), (33, 34))
    coarse = [Image.fromarray(rng.integers(0, 256, (5, 4, 3), np.uint8)).resize(shape[::-1]) for shape in shapes]
    arrays = {f"pictures/{i}": np.asarray(image) for i, image in enumerate(coarse)}
    for name, (kind, settings) in PROCESSORS.items():
        processor = getattr(transformers, kind)(**settings)
        arrays[f"config/{name}"] = np.array(json.dumps(processor.to_dict(), sort_keys=True))
        pixels = [processor(images=image, return_tensors="np")["pixel_values"][0] for image in coarse]
        arrays[f"pixels/{name}"] = np.stack([np.asarray(p, np.float32).transpose(1, 2, 0) for p in pixels])
    return arrays


def main() -> None:
    """Writes the golden files into the folder given by --out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent)
    folder = parser.parse_args().out
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    for make in (convnext, convnext_classifier, efficientnet, efficientnet_classifier, align, processors):
        arrays = make()
        path = folder / f"{make.__name__}.npz"
        np.savez_compressed(path, **arrays)
        print(f"{path.name}: {len(arrays)} arrays, {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
