"""Makes `open_clip_texts.npz`: how open_clip cleans, tokenises and pools texts, for every option of both.

One tiny CLIP; each case changes its `text_cfg`. Texts go through open_clip's own `HFTokenizer`, which reads a folder
with one of two tokenizers. Run it as `make_resnet.py`. The reference computes in float64.
"""

import argparse
import dataclasses
import json
import pathlib
import tempfile

import numpy as np
import open_clip
import tokenizers
import torch
from make_golden import SEED, prepare
from open_clip.tokenizer import HFTokenizer, get_clean_fn

LENGTH = 12
WORDS = ["red", "Red", "heart", "cat", "dog", "a", "&", ";", "amp", '"', "“", "”", ",", "!", "_", "café", "\uff21", "A",
         "(", "b"]  # fmt: skip
TEXTS = [
    "red heart", "Red  heart\n", "\tred\u00a0heart", "cat &amp;amp; dog", "“a” cat, a_b!", "cafe\u0301 (a)",
    "\uff21 cat", "", "a " * 30, "red cat dog a b heart red cat dog a",
]  # fmt: skip
ODD = [
    *TEXTS, "â€œquotedâ€\x9d", "schÃ¶n", "\u2018single\u2019", "\uff26\uff35\uff2c\uff2c\u3000width",
    "&lt;b&gt; &nbsp; x",
    "ΑΣ İ", "\x1b[36mcolour", "a\r\nb\rc\x0b\u2028d", "😀 ok", " ", "a_b, c! (d) {label} [e]", "l'été \ufb01ne",
    "&#39;x&#39;",
    "&amp;amp;amp;lt;",
]  # fmt: skip
CASES = {
    "argmax": dict(pool_type="argmax"), "eos": dict(pool_type="eos", eos_id=23), "first": dict(pool_type="first"),
    "last": dict(pool_type="last"), "first_both_ways": dict(pool_type="first", no_causal_mask=True),
    "last_both_ways": dict(pool_type="last", no_causal_mask=True),
    "strip": dict(pool_type="last", no_causal_mask=True, tokenizer_kwargs=dict(strip_sep_token=True)),
    "strip_causal": dict(pool_type="last", tokenizer_kwargs=dict(strip_sep_token=True, clean="lower")),
    **{clean: dict(tokenizer_kwargs=dict(clean=clean)) for clean in ("whitespace", "lower", "canonicalize")},
}  # fmt: skip


def tokenizer(bert: bool) -> tuple[dict, dict]:
    """A tokenizer.json and its settings: words whose end token has the largest id, or BERT's special tokens."""
    around = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"] if bert else ["<pad>", "<unk>", "<bos>", "<eos>"]
    names = [*around, *WORDS] if bert else [*around[:3], *WORDS, around[3]]
    pieces = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({name: i for i, name in enumerate(names)}, unk_token=around[1])
    )
    pieces.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    pieces.add_special_tokens(around)
    pieces.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{around[2]} $A {around[3]}", special_tokens=[(name, names.index(name)) for name in around[2:]]
    )
    kinds = ("pad", "unk", "cls", "sep") if bert else ("pad", "unk", "bos", "eos")
    settings = dict(tokenizer_class="PreTrainedTokenizerFast", model_max_length=5)  # which open_clip does not ask for
    return json.loads(pieces.to_str()), settings | {f"{kind}_token": name for kind, name in zip(kinds, around)}


def model_config(changes: dict) -> dict:
    """The `model_cfg` of a case."""
    text = dict(context_length=LENGTH, vocab_size=24, width=16, heads=2, layers=2, hf_tokenizer_name=".")
    vision = dict(image_size=8, patch_size=8, layers=1, width=8, head_width=4)
    return dict(embed_dim=12, vision_cfg=vision, text_cfg=text | changes)


def build(config: dict) -> open_clip.CLIP:
    """The model of a `model_cfg`; what belongs to the tokenizer alone is not given to it."""
    return open_clip.CLIP(**config)


def main() -> None:
    """Writes the golden file into the folder given by --out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent)
    path = parser.parse_args().out / "open_clip_texts.npz"
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    weights = prepare(build(model_config({})), torch.Generator().manual_seed(SEED + 50)).state_dict()
    weights = {name: value.half() for name, value in weights.items()}
    fields = {kind.__name__: [f.name for f in dataclasses.fields(kind)]
              for kind in (open_clip.CLIPTextCfg, open_clip.CLIPVisionCfg)}  # fmt: skip
    files = {name: tokenizer(name == "bert") for name in ("words", "bert")}
    cleaned = {clean: [get_clean_fn(clean)(text) for text in ODD] for clean in ("whitespace", "lower", "canonicalize")}
    stated = dict(
        texts=TEXTS, odd=ODD, cleaned=cleaned, tokenizers=files, fields=fields, cases={},
        versions=dict(torch=torch.__version__, open_clip=open_clip.__version__),
    )  # fmt: skip
    arrays = {f"weights/{name}": value.numpy() for name, value in weights.items()}
    for name, changes in CASES.items():
        kind, config = "bert" if name.startswith("strip") else "words", model_config(changes)
        stated["cases"][name] = dict(tokenizer=kind, model_cfg=config)
        with tempfile.TemporaryDirectory() as folder:
            for file, value in zip(("tokenizer.json", "tokenizer_config.json"), files[kind]):
                pathlib.Path(folder, file).write_text(json.dumps(value), encoding="utf-8")
            reader = HFTokenizer(folder, context_length=LENGTH, **changes.get("tokenizer_kwargs", {}))
            ids = reader(TEXTS)
        model = build(config).double().eval()
        model.load_state_dict({key: value.double() for key, value in weights.items()})
        with torch.no_grad():
            outputs = model.encode_text(ids, normalize=True)
        arrays[f"ids/{name}"] = ids.numpy().astype(np.int32)
        arrays[f"outputs/{name}"] = outputs.numpy().astype(np.float32)
    arrays["stated"] = np.array(json.dumps(stated, ensure_ascii=False))
    np.savez_compressed(path, **arrays)
    print(f"{path.name}: {len(arrays)} arrays, {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
