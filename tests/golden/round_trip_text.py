"""Takes BERT of transformers through xmodal and back, and compares: see docs/interop.md and `round_trip.py`.

reference -> `xmodal import` -> `xmodal export` -> loaded by transformers -> the same embeddings and logits, with what
`AutoTokenizer` makes of the texts? All weights and texts are random; nothing is downloaded. The first folder has no
tokenizer.json: what `BertTokenizer` reads from its vocab.txt is compared with what is made of it here.

    python -m tests.golden.round_trip_text
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
from data_pipelines.text.tokenizers import train_wordpiece
from tests.golden.round_trip import difference, perturbed, run

TEXTS = ["a red square", "Ein Ärgernis, 苹果!", "", "unaffable words go on " * 9, "naïve 1,000.5 #tags"]
SIZE = dict(hidden_size=64, intermediate_size=160, num_hidden_layers=3, num_attention_heads=4,
            max_position_embeddings=24)  # fmt: skip


def write(folder: pathlib.Path, cls: type, vocab_only: bool) -> None:
    """A Hugging Face folder."""
    words = train_wordpiece([text.lower() for text in TEXTS] * 3, 200)
    vocab = json.loads(words.json)["model"]["vocab"]
    config = transformers.BertConfig(vocab_size=len(vocab), **SIZE)
    perturbed(cls(config)).save_pretrained(folder)
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in sorted(vocab, key=vocab.get)), encoding="utf-8")
    tokenizer = transformers.BertTokenizer.from_pretrained(folder, model_max_length=24)
    if not vocab_only:
        (folder / "vocab.txt").unlink()
        tokenizer.save_pretrained(folder)


def by_transformers(folder: pathlib.Path, tokenizer) -> np.ndarray:
    """Unit vectors of the pooler's output, or the unit logits of every valid token."""
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    model, info = getattr(transformers, name).from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    if info["missing_keys"] or info["unexpected_keys"]:
        raise SystemExit(f"{folder}: {info}")
    batch = tokenizer(TEXTS, padding="max_length", truncation=True, max_length=24, return_tensors="pt")
    with torch.no_grad():
        out = model.eval()(**batch)
    if "logits" not in out:
        return torch.nn.functional.normalize(out.pooler_output).numpy()
    return torch.nn.functional.normalize(out.logits, dim=-1)[batch["attention_mask"].bool()].numpy()


def main() -> None:
    """Prints one row of a markdown table for each class."""
    torch.manual_seed(0)
    torch.set_num_threads(2)
    warnings.simplefilter("ignore")
    makers = {"BERT, vocab.txt": (transformers.BertModel, True), "BERT": (transformers.BertModel, False),
              "BERT, masked language model": (transformers.BertForMaskedLM, False)}  # fmt: skip
    with tempfile.TemporaryDirectory() as root:
        for number, (name, (cls, vocab_only)) in enumerate(makers.items()):
            source, own, out = (pathlib.Path(root) / f"{number}_{kind}" for kind in ("in", "own", "out"))
            write(source, cls, vocab_only)
            theirs = transformers.BertTokenizer.from_pretrained(source)
            run("import", f"hf:{source}", "--out", str(own))
            run("export", "--workdir", str(own), "--to", "hf", "--out", str(out))
            model = xmodal.load(own)
            before = by_transformers(source, theirs)
            same = ""
            if cls is transformers.BertModel:
                same = difference([before], [model.embed_text(TEXTS)])
            after = difference([before], [by_transformers(out, transformers.AutoTokenizer.from_pretrained(out))])
            print(f"| {name} (transformers) | {same} | | hf | {after} |", flush=True)


if __name__ == "__main__":
    main()
