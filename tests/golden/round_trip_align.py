"""Takes ConvNeXt, EfficientNet and ALIGN of transformers through xmodal and back: see docs/interop.md.

reference -> `xmodal import` -> `xmodal export` -> loaded by transformers -> the same embeddings (and logits)? All
weights, statistics, pictures and texts are random; nothing is downloaded. Needs torchvision, as `round_trip.py`.

    python -m tests.golden.round_trip_align
"""

import os
import pathlib
import tempfile
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import torch
import transformers

import xmodal
from data_pipelines.text.tokenizers import wordpiece
from tests.golden.round_trip import LABELS, PHOTOS, SEED, TEXTS, difference, perturbed, pictures, run
from tests.golden.round_trip_vision import NAMES, by_transformers
from xmodal.inference import Model

PIXELS, LARGER = 64, 76
MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VISION = dict(width_coefficient=0.5, depth_coefficient=1.1, image_size=PIXELS)
SQUARE = dict(height=PIXELS, width=PIXELS)


def alive(model: torch.nn.Module) -> torch.nn.Module:
    """Noise on every weight, and statistics near those of some pictures: far from them no signal would pass."""
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for module in norms:  # transformers starts their scales near 0
            module.weight.fill_(1.0)
            module.momentum = 1.0
        perturbed(model)
        if norms:
            images = 2 * torch.randn((8, 3, 1, 1), generator=generator) + torch.randn((8, 3, PIXELS, PIXELS))
            getattr(model, "vision_model", model).train()(pixel_values=images)
    return model.eval()


def convnext(head: bool, size: int = PIXELS) -> tuple:
    sizes = dict(hidden_sizes=[16, 32, 48, 64], depths=[1, 2, 3, 1], layer_scale_init_value=0.5, id2label=NAMES)
    kind = transformers.ConvNextForImageClassification if head else transformers.ConvNextModel
    processor = transformers.ConvNextImageProcessor(size=dict(shortest_edge=size), crop_pct=0.875)
    return kind(transformers.ConvNextConfig(**sizes)), processor


def efficientnet(head: bool) -> tuple:
    config = transformers.EfficientNetConfig(**VISION, hidden_dim=640, depthwise_padding=[5], id2label=NAMES)
    kind = transformers.EfficientNetForImageClassification if head else transformers.EfficientNetModel
    published = dict(image_mean=[0.485, 0.456, 0.406], image_std=[0.47853944, 0.4732864, 0.47434163], resample=0)
    return kind(config), transformers.EfficientNetImageProcessor(size=SQUARE, do_center_crop=False, **published)


def align() -> tuple:
    words = dict(hidden_size=48, intermediate_size=112, num_hidden_layers=2, num_attention_heads=3, vocab_size=320)
    config = transformers.AlignConfig(text_config=words, vision_config=VISION, projection_dim=160)
    processor = transformers.EfficientNetImageProcessor(
        size=dict(height=LARGER, width=LARGER), crop_size=SQUARE, do_center_crop=True, do_normalize=False,
        rescale_factor=1 / 127.5, rescale_offset=True, include_top=False, resample=2,
    )  # fmt: skip
    model = transformers.AlignModel(config)
    with torch.no_grad():
        model.temperature.fill_(0.1)
    return model, processor


def write_tokenizer(folder: pathlib.Path) -> None:
    """A WordPiece of whole words and letters."""
    words = sorted({word for text in TEXTS for word in text.lower().split()} | set("abcdefghijklmnopqrstuvwxyz"))
    pieces = wordpiece([*MARKS, *words, *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")], lower=True)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=pieces, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=16,
    ).save_pretrained(folder)  # fmt: skip


def embeddings(folder: pathlib.Path, images: list, texts: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit embeddings of pictures and texts, and logits, of an `AlignModel` and its `AlignProcessor`."""
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    batch = processor(images=images, text=texts, padding="max_length", max_length=16, truncation=True,
                      return_tensors="pt")  # fmt: skip
    with torch.no_grad():
        out = model(**batch)
    return out.image_embeds.numpy(), out.text_embeds.numpy(), out.logits_per_image.numpy()


def pipeline(folder: pathlib.Path, images: list) -> np.ndarray:
    """Probabilities of transformers' zero-shot-image-classification, in the order of the labels."""
    run = transformers.pipeline("zero-shot-image-classification", model=str(folder))
    found = run(images, candidate_labels=LABELS, hypothesis_template="{}")
    return np.array([[next(s["score"] for s in row if s["label"] == label) for label in LABELS] for row in found])


def main() -> None:
    """Prints one row of a markdown table for each model."""
    torch.manual_seed(0)
    torch.set_num_threads(2)
    warnings.simplefilter("ignore")
    makers = {
        "ConvNeXt": lambda: convnext(False), "ConvNeXt, classifier": lambda: convnext(True),
        "ConvNeXt, 384 px": lambda: convnext(False, 384), "EfficientNet": lambda: efficientnet(False),
        "EfficientNet, classifier": lambda: efficientnet(True), "ALIGN": align,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as root:
        for number, (name, make) in enumerate(makers.items()):
            source, own, out = (pathlib.Path(root) / f"{number}_{kind}" for kind in ("in", "own", "out"))
            reference, processor = make()
            alive(reference).save_pretrained(source)
            processor.save_pretrained(source)
            if name == "ALIGN":
                write_tokenizer(source)
            run("import", f"hf:{source}", "--out", str(own))
            run("export", "--workdir", str(own), "--to", "hf", "--out", str(out))
            model, image = xmodal.load(own), xmodal.load(own).stored.config.data.inputs.image
            squares = pictures(((image.resize or image.size,) * 2,) * 4)  # so that no library's resizing takes part
            odd = pictures(PHOTOS)
            if name == "ALIGN":
                print(row(name, model, source, out, squares, odd), flush=True)
                continue
            before, ours = by_transformers(source, squares), model.embed_image(squares)
            cosine = np.min(np.sum(by_transformers(source, odd) * model.embed_image(odd), axis=1))
            after = difference([before], [by_transformers(out, squares)])
            found = difference([before], [ours])
            print(f"| {name} (transformers) | {found} | {cosine:.6f} | hf | {after} |", flush=True)


def row(name: str, model: Model, source: pathlib.Path, out: pathlib.Path, squares, odd) -> str:
    """The row of a model of pictures and texts, with a column for the pipeline."""
    before, ours = embeddings(source, squares, TEXTS), (model.embed_image(squares), model.embed_text(TEXTS))
    shown = embeddings(source, odd, TEXTS)[0], model.embed_image(odd)
    cosine = f"{np.min(np.sum(shown[0] * shown[1], axis=1)):.6f}"
    after = difference(before, embeddings(out, squares, TEXTS))
    probabilities = difference([pipeline(out, odd)], [model.zero_shot(odd, LABELS)])
    return f"| {name} (transformers) | {difference(before[:2], ours)} | {cosine} | hf | {after} | {probabilities} |"


if __name__ == "__main__":
    main()
