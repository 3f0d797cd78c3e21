"""Folders as the references write them, made from the golden files: tiny CLIP and SigLIP with a word tokenizer."""

import io
import json
import pathlib

import numpy as np
import tokenizers
from PIL import Image
from safetensors.numpy import save_file

from data_pipelines.text.tokenizers import wordpiece

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden"
PAD, BOS, EOS, VOCAB, LENGTH = 1, 97, 7, 99, 12
PIXELS = {"clip_vit": 40, "siglip": 48}
TEXTS = ["w10 w20 w30", "w8", "", "w50 " * 20]


def load(name):
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


def part(golden, prefix):
    """The arrays under a prefix, half precision widened."""
    wide = lambda a: a.astype(np.float32) if a.dtype == np.float16 else a
    return {name.removeprefix(prefix): wide(a) for name, a in golden.items() if name.startswith(prefix)}


def tokenizer(bos=True) -> dict:
    """A tokenizer.json of words "w8" to "w96", whose template adds the marks and which says nothing of padding."""
    names = {PAD: "<pad>", EOS: "<eos>", BOS: "<bos>", 98: "<unk>"}
    vocab = {names.get(i, f"w{i}"): i for i in range(VOCAB)}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.add_special_tokens(list(names.values()))
    marks = [("<bos>", BOS), ("<eos>", EOS)] if bos else [("<eos>", EOS)]
    words.post_processor = tokenizers.processors.TemplateProcessing(
        single="<bos> $A <eos>" if bos else "$A <eos>", special_tokens=marks
    )
    return json.loads(words.to_str())


def gemma_tokenizer(texts, vocab=420) -> dict:
    """A tokenizer.json built as SigLIP 2's of Gemma: BPE over whole texts with spaces as "▁", bytes for the rest.

    It ends texts without beginning them, and keeps capitals.
    """
    marks = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    model = tokenizers.models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    pieces = tokenizers.Tokenizer(model)
    pieces.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    pieces.pre_tokenizer = tokenizers.pre_tokenizers.Split(" ", "merged_with_previous")
    decoders = tokenizers.decoders
    pieces.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=[*marks, *(f"<0x{i:02X}>" for i in range(256))], show_progress=False
    )
    pieces.train_from_iterator(texts, trainer)
    pieces.post_processor = tokenizers.processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    stated = json.loads(pieces.to_str())
    stated["added_tokens"] = [token for token in stated["added_tokens"] if token["content"] in marks]
    return stated


# tokenizer_config.json of SigLIP 2: of a fixed resolution, which says nothing that would lower-case, and NaFlex.
SIGLIP2_MARKS = dict(
    tokenizer_class="GemmaTokenizer", add_bos_token=False, add_eos_token=True, bos_token="<bos>", eos_token="<eos>",
    pad_token="<pad>", unk_token="<unk>", do_lower_case=True, padding_side="right", model_max_length=64,
    model_input_names=["input_ids"],
)  # fmt: skip


def write_json(path, value):
    path.write_text(json.dumps(value))


def hugging_face(folder, name="clip_vit"):
    """A Hugging Face folder; SigLIP's tokenizer has no begin mark and pads with its end mark."""
    golden, clip = load(name), name == "clip_vit"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", json.loads(str(golden["config"])))
    save_file(part(golden, "weights/"), folder / "model.safetensors")
    size, square = PIXELS[name], dict(height=PIXELS[name], width=PIXELS[name])
    shape = dict(size=dict(shortest_edge=size), crop_size=square, do_center_crop=True) if clip else dict(size=square)
    numbers = dict(image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.25, 0.3], resample=3, rescale_factor=1 / 255)
    write_json(folder / "preprocessor_config.json", shape | numbers | dict(do_resize=True, do_rescale=True))
    write_json(folder / "tokenizer.json", tokenizer(bos=clip))
    pad = "<pad>" if clip else "<eos>"
    marks = dict(pad_token=pad, eos_token="<eos>", model_max_length=LENGTH)
    write_json(folder / "tokenizer_config.json", marks)
    return folder


def bert(folder, name="bert", *, vocab_only=False):
    """A Hugging Face folder of a BERT, with a tokenizer.json or with nothing but a vocab.txt."""
    golden = load(name)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", json.loads(str(golden["config"])) | dict(pad_token_id=0))
    save_file(part(golden, "weights/"), folder / "model.safetensors")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "heart", "##s", "cafe", "café", "a", "A", "苹", "果"]
    words += [f"w{i}" for i in range(len(words), VOCAB)]
    if vocab_only:
        (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    else:
        wordpiece(words, lower=True).save(str(folder / "tokenizer.json"))
        write_json(folder / "tokenizer_config.json", dict(model_max_length=LENGTH, pad_token="[PAD]"))
    return folder


def picture(mode="RGB", size=(50, 60), seed=0):
    """A random picture with smooth and sharp parts."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (7, 5, 4), np.uint8), "RGBA").resize(size, Image.Resampling.BICUBIC)
    return small.convert(mode)


def enlarged(squares, name):
    """A picture of `scores.npz` at the model's size: uint8 [pixels, pixels, 3] of patches of one colour each."""
    patches = PIXELS[name] // 8
    return squares[:patches, :patches].repeat(8, axis=0).repeat(8, axis=1)


def encoded(image, kind="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()
