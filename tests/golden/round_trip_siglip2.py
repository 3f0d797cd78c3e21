"""Takes SigLIP 2 models of transformers through xmodal and back, and compares: see docs/interop.md and `round_trip.py`.

reference -> `xmodal import` -> `xmodal export` -> loaded by transformers -> the same embeddings and logits? Packed
patches (`Siglip2Model`) and a fixed resolution (`SiglipModel`, also 14-pixel patches that leave a rest), both with a
tokenizer built as Gemma's. All weights, pictures and texts are random; nothing is downloaded.

    python -m tests.golden.round_trip_siglip2
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
from tests.golden.round_trip import LABELS, PHOTOS, TEXTS, difference, perturbed, pictures, run
from tests.interop.folders import SIGLIP2_MARKS, gemma_tokenizer, write_json

VOCAB, LENGTH, ROOM = 440, 64, 25
# Whole patches, so that no library's resizing takes part. None is one patch wide: positions that torch 2.13 resizes to
# one column differ, on a CPU, from what it gives for the same grid turned on its side.
PICTURES = ((80, 80), (96, 64), (400, 16), (128, 48))
MIXED = [*TEXTS, "A Photo of a CAT"]


def tokenizer(folder: pathlib.Path) -> None:
    write_json(folder / "tokenizer.json", gemma_tokenizer([t.lower() for t in TEXTS if t] * 5))
    write_json(folder / "tokenizer_config.json", SIGLIP2_MARKS)


def save(model: torch.nn.Module, folder: pathlib.Path) -> None:
    with torch.no_grad():
        model.logit_scale.fill_(1.5)
        model.logit_bias.fill_(-2.0)
    perturbed(model).save_pretrained(folder)


def sizes(**vision) -> dict:
    common = dict(num_hidden_layers=2, num_attention_heads=4)
    words = dict(hidden_size=48, intermediate_size=96, vocab_size=VOCAB, projection_size=64)
    vision = dict(hidden_size=64, intermediate_size=160) | common | vision
    return dict(text_config=common | words, vision_config=vision)


def naflex(folder: pathlib.Path) -> None:
    tokenizer(folder)
    save(transformers.Siglip2Model(transformers.Siglip2Config(**sizes(num_patches=16, patch_size=16))), folder)
    transformers.Siglip2ImageProcessor(max_num_patches=ROOM, do_convert_rgb=True).save_pretrained(folder)


def fixed(folder: pathlib.Path, size: int = 64, patch: int = 16) -> None:
    tokenizer(folder)
    config = transformers.SiglipConfig(**sizes(image_size=size, patch_size=patch))
    save(transformers.SiglipModel(config), folder)
    square = dict(height=size, width=size)
    transformers.SiglipImageProcessor(size=square, resample=2, do_convert_rgb=True).save_pretrained(folder)


def by_transformers(folder: pathlib.Path, images: list, texts: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings and logits of `AutoModel` with what `AutoTokenizer` and `AutoImageProcessor` prepare."""
    model, info = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    if info["missing_keys"] or info["unexpected_keys"]:
        raise SystemExit(f"{folder}: {info}")
    words = transformers.AutoTokenizer.from_pretrained(folder)
    ids = words(texts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt")["input_ids"]
    shown = transformers.AutoImageProcessor.from_pretrained(folder)(images=images, return_tensors="pt")
    with torch.no_grad():
        out = model.eval()(input_ids=ids, **shown)
    return out.image_embeds.numpy(), out.text_embeds.numpy(), out.logits_per_image.numpy()


def pipeline(folder: pathlib.Path) -> str:
    """The probabilities of transformers' pipeline against `zero_shot`."""
    classify = transformers.pipeline("zero-shot-image-classification", model=str(folder))
    found = classify(pictures(PHOTOS), candidate_labels=LABELS, hypothesis_template="{}")
    theirs = np.array([[next(r["score"] for r in row if r["label"] == label) for label in LABELS] for row in found])
    return difference([theirs], [xmodal.load(f"hf:{folder}").zero_shot(pictures(PHOTOS), LABELS)])


def main() -> None:
    """Prints one row of a markdown table for each model."""
    torch.set_num_threads(2)
    warnings.simplefilter("ignore")
    makers = {
        "SigLIP 2, NaFlex": (naflex, PICTURES, MIXED),
        "SigLIP 2, fixed resolution": (fixed, ((64, 64),) * 4, TEXTS),
        "SigLIP 2, 14-pixel patches in 64 pixels": (lambda f: fixed(f, patch=14), ((64, 64),) * 4, TEXTS),
    }
    with tempfile.TemporaryDirectory() as root:
        for number, (name, (make, shapes, texts)) in enumerate(makers.items()):
            source, own, out = (pathlib.Path(root) / f"{number}_{kind}" for kind in ("in", "own", "out"))
            source.mkdir()
            make(source)
            run("import", f"hf:{source}", "--out", str(own))
            run("export", "--workdir", str(own), "--to", "hf", "--out", str(out))
            model, shown = xmodal.load(own), pictures(shapes)
            lowered = [text.lower() for text in texts]  # a GemmaTokenizer keeps capitals that the model never saw
            before = by_transformers(source, shown, texts if "NaFlex" in name else lowered)
            ours = difference(before, (model.embed_image(shown), model.embed_text(texts)))
            odd = by_transformers(source, pictures(PHOTOS), lowered)[0], model.embed_image(pictures(PHOTOS))
            cosine = f"{np.min(np.sum(odd[0] * odd[1], axis=1)):.6f}"
            after = difference(before, by_transformers(out, shown, texts))
            print(f"| {name} (transformers) | {ours} | {cosine} | hf | {after} | {pipeline(out)} |", flush=True)


if __name__ == "__main__":
    main()
