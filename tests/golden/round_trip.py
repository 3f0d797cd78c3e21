"""Takes reference models through xmodal and back into the reference libraries, and compares: see docs/interop.md.

reference -> `xmodal import` -> `xmodal export` -> loaded by transformers and open_clip -> the same outputs? Also runs
transformers' zero-shot-image-classification pipeline and `open_clip.create_model_and_transforms` on what was exported.

Needs torch, torchvision, transformers and open_clip beside the project's requirements, so it is not part of the test
suite. All weights, pictures and texts are random; nothing is downloaded.

    python -m tests.golden.round_trip [--markdown FILE]
"""

import argparse
import contextlib
import json
import os
import pathlib
import tempfile
from collections.abc import Callable

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import open_clip
import tokenizers
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file

import xmodal
from data_pipelines.text.tokenizers import train_bpe
from xmodal.__main__ import main as command
from xmodal.interop.tokenizer_files import swap_ids

SEED, VOCAB = 20260726, 300
LABELS = ["a red square", "a green circle", "something else"]
PHOTOS = ((64, 64), (90, 64), (64, 131), (200, 150), (33, 47))
TEXTS = [*LABELS, "one", "", "word " * 40, "Ärger, 苹果!"]


def perturbed(model: torch.nn.Module) -> torch.nn.Module:
    """Noise on every parameter and on running statistics, so that no zero or unit hides a missing term."""
    generator = torch.Generator().manual_seed(SEED)
    draw = lambda like: torch.randn(like.shape, generator=generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * draw(parameter))
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.add_(0.3 * draw(module.running_mean))
                module.running_var.mul_(0.5 + draw(module.running_var).abs())
    return model.eval().float()


def words(folder: pathlib.Path, *, bos: bool, pad: str, length: int, last: bool = False) -> int:
    """Saves a byte-level BPE in the manner of CLIP's or SigLIP's through transformers; returns the id of its end mark.

    With `last` the end mark has the largest id, as CLIP's.
    """
    own = train_bpe([t.lower() for t in TEXTS if t] * 5, VOCAB)
    own = swap_ids(own, own.eos_id, own.vocab_size - 1) if last else own
    tokenizer, eos = tokenizers.Tokenizer.from_str(own.json), own.eos_id
    template = ("<bos> $A <eos>", [("<bos>", 1), ("<eos>", eos)]) if bos else ("$A <eos>", [("<eos>", eos)])
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single=template[0], special_tokens=template[1])
    names = ["input_ids", "attention_mask"] if bos else ["input_ids"]
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token=pad, model_max_length=length,
        model_input_names=names,
    ).save_pretrained(folder)  # fmt: skip
    return eos


def vision(**changes) -> dict:
    return dict(hidden_size=64, intermediate_size=160, num_hidden_layers=3, num_attention_heads=4, image_size=64,
                patch_size=16) | changes  # fmt: skip


def text(length: int, **changes) -> dict:
    return dict(hidden_size=48, intermediate_size=112, num_hidden_layers=2, num_attention_heads=3,
                vocab_size=VOCAB + 20, max_position_embeddings=length) | changes  # fmt: skip


def clip(folder: pathlib.Path, act: str = "quick_gelu") -> None:
    """A Hugging Face CLIP folder."""
    eos = words(folder, bos=True, pad="<pad>", length=16, last=True)
    ids = dict(bos_token_id=1, eos_token_id=2 if act == "gelu" else eos, pad_token_id=0)  # 2: as OpenAI's files
    config = transformers.CLIPConfig(vision_config=vision(hidden_act=act), text_config=text(16, hidden_act=act, **ids),
                                     projection_dim=40)  # fmt: skip
    perturbed(transformers.CLIPModel(config)).save_pretrained(folder)
    transformers.CLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}).save_pretrained(
        folder
    )


def siglip(folder: pathlib.Path) -> None:
    """A Hugging Face SigLIP folder: no begin mark, padded with the end mark, 64 tokens."""
    words(folder, bos=False, pad="<eos>", length=64)
    config = transformers.SiglipConfig(vision_config=vision(), text_config=text(64, projection_size=64))
    model = transformers.SiglipModel(config)
    with torch.no_grad():
        model.logit_scale.fill_(1.5)
        model.logit_bias.fill_(-2.0)
    perturbed(model).save_pretrained(folder)
    transformers.SiglipImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)


def open_clip_vit(folder: pathlib.Path) -> None:
    """An open_clip folder with exact GELU and an end mark that is not the largest id."""
    by_hand(folder, dict(image_size=64, layers=3, width=64, patch_size=16, head_width=16))


def open_clip_resnet(folder: pathlib.Path) -> None:
    """An open_clip folder with a ResNet."""
    by_hand(folder, dict(image_size=64, layers=[1, 2, 1, 3], width=8, patch_size=None, head_width=32))


def by_hand(folder: pathlib.Path, vision_cfg: dict) -> None:
    """An open_clip folder, whose files open_clip itself writes only for the Hub."""
    words(folder, bos=True, pad="<pad>", length=16)
    model = dict(
        embed_dim=40, vision_cfg=vision_cfg,
        text_cfg=dict(context_length=16, vocab_size=VOCAB + 20, width=48, heads=3, layers=2, pool_type="eos", eos_id=2,
                      hf_tokenizer_name="."),
    )  # fmt: skip
    preprocess = dict(size=64, interpolation="bicubic", resize_mode="shortest", mean=[0.5, 0.4, 0.3], std=[0.2] * 3)
    (folder / "open_clip_config.json").write_text(json.dumps(dict(model_cfg=model, preprocess_cfg=preprocess)))
    reference, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}", load_weights=False)
    weights = {name: a.contiguous() for name, a in perturbed(reference).state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors", metadata={"format": "pt"})


def pictures(shapes=((64, 64),) * 4) -> list[Image.Image]:
    """Random pictures; by default of the model's size, so that no library's resizing takes part."""
    rng = np.random.default_rng(SEED)
    draw = lambda shape: Image.fromarray(rng.integers(0, 256, (6, 5, 3), np.uint8)).resize(shape)
    return [draw(shape) for shape in shapes]


def by_transformers(folder: pathlib.Path, images=None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings and logits of `AutoModel` with what `AutoProcessor` prepares."""
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    length = model.config.text_config.max_position_embeddings
    inputs = processor(images=images or pictures(), text=TEXTS, padding="max_length", max_length=length,
                       truncation=True, return_tensors="pt")  # fmt: skip
    with torch.no_grad():
        out = model(**inputs)
    return out.image_embeds.numpy(), out.text_embeds.numpy(), out.logits_per_image.numpy()


def by_open_clip(folder: pathlib.Path, images=None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings and logits of open_clip with its own transforms and tokenizer."""
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    model.eval()
    with torch.no_grad():
        image = model.encode_image(torch.stack([preprocess(p) for p in images or pictures()]), normalize=True)
        words = model.encode_text(tokenizer(TEXTS), normalize=True)
        return image.numpy(), words.numpy(), (model.logit_scale.exp() * image @ words.T).numpy()


def difference(a, b) -> str:
    return f"{max(float(np.max(np.abs(x - y))) for x, y in zip(a, b)):.1e}"


def pipeline(folder: pathlib.Path) -> str:
    """The probabilities of transformers' pipeline against `zero_shot`."""
    classify = transformers.pipeline("zero-shot-image-classification", model=str(folder))
    found = classify(pictures(PHOTOS), candidate_labels=LABELS, hypothesis_template="{}")
    theirs = np.array([[next(r["score"] for r in row if r["label"] == label) for label in LABELS] for row in found])
    return difference([theirs], [xmodal.load(f"hf:{folder}").zero_shot(pictures(PHOTOS), LABELS)])


def run(*arguments: str) -> None:
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
        if command(list(arguments)):
            raise SystemExit(f"{' '.join(arguments)} failed")


def rows(folder: pathlib.Path) -> list[list[str]]:
    """One row per journey: reference, export, and the differences found."""
    table = []
    makers: dict[str, tuple[Callable, str]] = {
        "CLIP ViT (transformers)": (clip, "hf"),
        "CLIP ViT, exact GELU, OpenAI's eos_token_id=2 (transformers)": (lambda f: clip(f, "gelu"), "hf"),
        "SigLIP (transformers)": (siglip, "hf"),
        "CLIP ViT (open_clip)": (open_clip_vit, "open_clip"),
        "CLIP ResNet (open_clip)": (open_clip_resnet, "open_clip"),
    }
    readers = {"hf": by_transformers, "open_clip": by_open_clip}
    for number, (name, (make, kind)) in enumerate(makers.items()):
        source, imported = folder / f"{number}_reference", folder / f"{number}_imported"
        source.mkdir()
        make(source)
        run("import", f"{kind}:{source}", "--out", str(imported))
        before, model = readers[kind](source), xmodal.load(imported)
        own = difference(before, (model.embed_image(pictures()), model.embed_text(TEXTS)))
        theirs = readers[kind](source, pictures(PHOTOS))[0]
        cosine = f"{np.min(np.sum(model.embed_image(pictures(PHOTOS)) * theirs, axis=1)):.6f}"
        for to in ("hf", "open_clip"):
            if (make, to) in ((siglip, "open_clip"), (open_clip_resnet, "hf")):  # which have no such model
                continue
            out = folder / f"{number}_{to}"
            run("export", "--workdir", str(imported), "--to", to, "--out", str(out))
            after = difference(before, readers[to](out))
            table.append([name, own, cosine, to, after, pipeline(out) if to == "hf" else ""])
            print(table[-1], flush=True)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown", type=pathlib.Path, help="also write the table to this file")
    args = parser.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        table = rows(pathlib.Path(folder))
    columns = [
        "reference",
        "embeddings in xmodal",
        "cosine, odd sizes",
        "exported to",
        "embeddings and logits there",
        "pipeline",
    ]
    line = lambda cells: "| " + " | ".join(cells) + " |"
    text = "\n".join([line(columns), line(["---"] * len(columns)), *map(line, table)])
    print(text)
    if args.markdown:
        args.markdown.write_text(text + "\n")


if __name__ == "__main__":
    main()
