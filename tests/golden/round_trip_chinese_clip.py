"""Takes Chinese-CLIP of transformers through xmodal and back: see docs/interop.md.

reference -> `xmodal import` -> `xmodal export` -> loaded by transformers -> the same embeddings and logits? All weights
and images are random; nothing is downloaded. Needs torchvision, as `round_trip.py`.

    python -m tests.golden.round_trip_chinese_clip
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
from tests.golden.round_trip import PHOTOS, difference, perturbed, pictures, run
from tests.golden.round_trip_align import embeddings

PIXELS = 64
VOCAB = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *"一只红色的苹果猫在桌子上两条狗海边落日雪山",
    "red",
    "apple",
    "##s",
]
TEXTS = ["一只红色的苹果", "猫在桌子上", "两条狗在海边", "雪山上的落日", "Red apples 苹果", "未知"]
LABELS = ["苹果", "猫", "雪山"]


def source(folder: pathlib.Path) -> None:
    """A folder as published: BERT's tokenizer with a vocab.txt, both sides of the images resized."""
    words = dict(
        hidden_size=48, intermediate_size=112, num_hidden_layers=3, num_attention_heads=3, vocab_size=len(VOCAB)
    )
    vision = dict(hidden_size=64, intermediate_size=144, num_hidden_layers=3, num_attention_heads=4, image_size=PIXELS,
                  patch_size=16)  # fmt: skip
    config = transformers.ChineseCLIPConfig(
        text_config=words | dict(vocab_size=len(VOCAB)), vision_config=vision, projection_dim=40
    )
    perturbed(transformers.ChineseCLIPModel(config)).eval().save_pretrained(folder)
    square = dict(height=PIXELS, width=PIXELS)
    transformers.ChineseCLIPImageProcessor(size=square, crop_size=square, do_center_crop=False).save_pretrained(folder)
    transformers.BertTokenizer(
        vocab={word: i for i, word in enumerate(VOCAB)}, do_lower_case=True, model_max_length=16
    ).save_pretrained(folder)  # fmt: skip


def pipeline(folder: pathlib.Path, images: list) -> np.ndarray:
    """Probabilities of transformers' zero-shot-image-classification, in the order of the labels."""
    classify = transformers.pipeline("zero-shot-image-classification", model=str(folder))
    found = classify(images, candidate_labels=LABELS, hypothesis_template="{}")
    return np.array([[next(s["score"] for s in row if s["label"] == label) for label in LABELS] for row in found])


def main() -> None:
    """Prints one row of a markdown table."""
    torch.manual_seed(0)
    torch.set_num_threads(2)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as root:
        given, own, out = (pathlib.Path(root) / kind for kind in ("in", "own", "out"))
        source(given)
        run("import", f"hf:{given}", "--out", str(own))
        run("export", "--workdir", str(own), "--to", "hf", "--out", str(out))
        model, squares, odd = xmodal.load(own), pictures(((PIXELS, PIXELS),) * 4), pictures(PHOTOS)
        before, ours = embeddings(given, squares, TEXTS), (model.embed_image(squares), model.embed_text(TEXTS))
        shown = embeddings(given, odd, TEXTS)[0], model.embed_image(odd)
        cosine = f"{np.min(np.sum(shown[0] * shown[1], axis=1)):.6f}"
        after = difference(before, embeddings(out, squares, TEXTS))
        chances = difference([pipeline(out, odd)], [model.zero_shot(odd, LABELS)])
        print(f"| Chinese-CLIP (transformers) | {difference(before[:2], ours)} | {cosine} | hf | {after} | {chances} |")


if __name__ == "__main__":
    main()
