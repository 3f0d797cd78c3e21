"""Tokenizers in and out: what a folder says beside its tokenizer.json is written into it, and back.

A `tokenizer.json` alone does not always say what the reference does: the padding of SigLIP (its end mark) and the marks
of Gemma's are in tokenizer_config.json, and that SigLIP 2 was trained on lower-cased texts is nowhere. Here the file
states all of it, in its normaliser, its template and its padding, and the stream, the inference and the exports read
nothing else.
"""

import copy
import json
import string
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.errors import DataError
from data_pipelines.text.preparation import Preparation
from data_pipelines.text.tokenizers import Tokenizer, reading, token_ids, wordpiece
from xmodal.interop.preprocessing import read_json
from xmodal.interop.tables import InteropError

_ENDLESS = 10**6  # "no limit" of a tokenizer_config.json is 1e30
# Settings that are read: their types, and the words for them.
_TOKEN = (str, Mapping, type(None)), "a token"
_SWITCH = (bool, type(None)), "true or false"
_TYPES = dict(
    bos_token=_TOKEN, eos_token=_TOKEN, pad_token=_TOKEN, sep_token=_TOKEN, add_bos_token=_SWITCH,
    add_eos_token=_SWITCH, do_lower_case=((bool,), "true or false"), strip_accents=_SWITCH,
    tokenize_chinese_chars=((bool,), "true or false"),
    padding_side=((str, type(None)), "left or right"), tokenizer_class=((str, type(None)), "a name"),
    model_max_length=((int, float, type(None)), "a number"),
)  # fmt: skip
_BERT_CLASSES, _BERT_MODELS = ("BertTokenizer", "BertTokenizerFast"), ("bert", "align", "chinese_clip")
# Settings of these classes: the normaliser's names, and the defaults.
_BERT_SETTINGS = dict(
    tokenize_chinese_chars=("handle_chinese_chars", True), strip_accents=("strip_accents", None),
    do_lower_case=("lowercase", True),
)  # fmt: skip
_SPACE = r"[\s\x1c-\x1f]+"  # what `str.split` takes for white space
_PUNCTUATION = "[" + "".join(f"\\x{ord(mark):02x}" for mark in string.punctuation if mark != "_") + "]"


def read_tokenizer(folder: Path, cased: Collection[str] = ()) -> tuple[Tokenizer, int]:
    """Reads the tokenizer of a Hugging Face or open_clip folder.

    Args:
      folder: to read.
      cased: classes of the reference whose files keep capitals, for a model that was trained on lower-cased texts.

    Returns:
      The tokenizer, and the tokens per text that its folder states, or 0.

    Raises:
      InteropError: there is no tokenizer.json, or it cannot be used.
    """
    path, settings = folder / "tokenizer.json", _settings(folder)
    stated = read_json(path) if path.is_file() else _from_vocab(folder, settings)
    try:
        with reading(str(path), (InteropError,)):
            _complete(stated, settings, folder, cased)
            text = json.dumps(stated, ensure_ascii=False)
        tokenizer = Tokenizer(text, str(path))
    except InteropError:
        raise
    except DataError as error:
        raise InteropError(str(error)) from None
    length = settings.get("model_max_length") or 0
    return tokenizer, int(length) if length < _ENDLESS else 0


def _settings(folder: Path) -> dict:
    """What a folder says beside its tokenizer.json; raises an InteropError for a value of the wrong type."""
    settings = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            settings |= read_json(folder / name)
    for key, (kinds, wanted) in _TYPES.items():
        value = settings.get(key)
        fits = isinstance(value, kinds) and not (isinstance(value, bool) and bool not in kinds)
        if isinstance(value, Mapping) and not isinstance(value.get("content"), str):
            fits = False
        if key in settings and not fits:
            raise InteropError(f"{folder}: {key} of the tokenizer's settings is {str(value)[:80]!r}, expected {wanted}")
    if not (settings.get("model_max_length") or 0) >= 0:
        raise InteropError(f"{folder}: model_max_length of the tokenizer's settings is {settings['model_max_length']}")
    return settings


def _complete(stated: dict, settings: Mapping[str, Any], folder: Path, cased: Collection[str]) -> None:
    """Writes what a folder says beside its tokenizer.json into that document."""
    ids = token_ids(stated)
    if settings.get("add_eos_token") is not None and settings.get("add_bos_token") is not None:
        _set_marks(stated, settings, ids)
    pad = _content(settings.get("pad_token"))
    if pad is not None:
        if pad not in ids:
            raise InteropError(f"{folder}: the padding token {pad[:80]!r} is not in the vocabulary of tokenizer.json")
        stated["padding"] = _padding(ids[pad], pad)
    if (settings.get("padding_side") or "right") != "right":
        raise InteropError(
            f"{folder}: padding_side is {settings['padding_side'][:80]!r} in tokenizer_config.json, and texts are "
            "padded on the right here. Set it to 'right' if that is how the model was trained"
        )
    if stated["model"].get("type") == "WordPiece" and _class(folder, settings) in _BERT_CLASSES:
        # The reference makes this class's normaliser from its settings, whatever tokenizer.json says.
        stated["normalizer"] = {"type": "BertNormalizer", "clean_text": True} | {
            theirs: settings.get(key, default) for key, (theirs, default) in _BERT_SETTINGS.items()
        }
    if settings.get("tokenizer_class") in cased and not _lowers(stated.get("normalizer")):
        stated["normalizer"] = _lowering(stated.get("normalizer"))
    stated["truncation"] = None


def _class(folder: Path, settings: Mapping[str, Any]) -> str:
    """The reference's tokenizer class of a folder: what its settings say, or else what the model's kind means."""
    if settings.get("tokenizer_class") or not (folder / "config.json").is_file():
        return settings.get("tokenizer_class") or ""
    return "BertTokenizer" if read_json(folder / "config.json").get("model_type") in _BERT_MODELS else ""


def separator(folder: Path) -> str | None:
    """Returns the separator token of a folder that `read_tokenizer` reads; None where it has none."""
    settings = _settings(folder)
    default = "[SEP]" if _class(folder, settings) in _BERT_CLASSES else None
    return _content(settings.get("sep_token")) or default


def _from_vocab(folder: Path, settings: Mapping[str, Any]) -> dict:
    """The tokenizer.json that a `vocab.txt`, all that BERT's first files have, and the folder's settings stand for."""
    path = folder / "vocab.txt"
    if not path.is_file():
        raise InteropError(
            f"{folder} has no tokenizer.json, so texts would become other tokens than those that the model knows. Copy "
            "it from where the weights come from, or make it once: "
            "`transformers.AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)`"
        )
    try:
        vocab = [line.rstrip("\r") for line in path.read_text(encoding="utf-8").removesuffix("\n").split("\n")]
        pieces = wordpiece(
            vocab, lower=settings.get("do_lower_case", True), strip_accents=settings.get("strip_accents"),
            ideographs=settings.get("tokenize_chinese_chars", True),
        )  # fmt: skip
    except (DataError, UnicodeDecodeError) as error:
        raise InteropError(f"{path}: {error}") from None
    return json.loads(pieces.to_str())


def write_tokenizer(
    folder: Path,
    tokenizer: Tokenizer,
    *,
    length: int,
    preparation: Preparation,
    masked: bool = True,
    processor: str = "",
) -> None:
    """Writes tokenizer.json, tokenizer_config.json and special_tokens_map.json, as `AutoTokenizer` reads them.

    Args:
      folder: to write to.
      tokenizer: as the model was trained with.
      length: tokens per text.
      preparation: of texts before: the file then does it, but for what `unsaid` says.
      masked: padding is invisible to the model; otherwise its users get no mask that would hide it (SigLIP).
      processor: class of the reference for images and texts.
    """
    stated = json.loads(tokenizer.json)
    names = {i: name for name, i in token_ids(stated).items()}
    marks = dict(
        bos_token=tokenizer.bos_id, eos_token=tokenizer.eos_id, pad_token=tokenizer.pad_id, mask_token=tokenizer.mask_id
    )
    marks = {key: names[i] for key, i in marks.items() if i is not None}
    stated["normalizer"] = _preparing(preparation, stated.get("normalizer"))
    prefix, suffix = ([(names[i], i) for i in ids] for ids in (tokenizer.prefix, tokenizer.suffix))
    stated["post_processor"] = _template(prefix, suffix)
    stated["padding"] = _padding(tokenizer.pad_id, marks["pad_token"])
    stated["truncation"] = None
    unknown = stated["model"].get("unk_token")
    marks |= {"unk_token": unknown} if isinstance(unknown, str) else {}
    if stated["model"].get("type") == "WordPiece":  # BERT's names of its marks
        marks |= {theirs: marks[ours] for theirs, ours in (("cls_token", "bos_token"), ("sep_token", "eos_token"))}
    settings = dict(
        tokenizer_class="PreTrainedTokenizerFast", model_max_length=length, padding_side="right",
        truncation_side="right", clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"] if masked else ["input_ids"], **marks,
    ) | ({"processor_class": processor} if processor else {})  # fmt: skip
    for name, value in (
        ("tokenizer.json", stated), ("tokenizer_config.json", settings), ("special_tokens_map.json", marks)
    ):  # fmt: skip
        (folder / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def swap_ids(tokenizer: Tokenizer, a: int, b: int) -> Tokenizer:
    """Returns the tokenizer with two ids exchanged everywhere in its file."""
    stated = copy.deepcopy(json.loads(tokenizer.json))
    swapped = lambda i: {a: b, b: a}.get(i, i)
    vocab = stated["model"]["vocab"]
    if isinstance(vocab, list):  # Unigram: an id is a place in the list
        if max(a, b) >= len(vocab):
            raise InteropError(f"ids {a} and {b} cannot be exchanged: one is not in the tokenizer's own vocabulary")
        vocab[a], vocab[b] = vocab[b], vocab[a]
        if stated["model"].get("unk_id") is not None:
            stated["model"]["unk_id"] = swapped(stated["model"]["unk_id"])
    else:
        stated["model"]["vocab"] = {token: swapped(i) for token, i in vocab.items()}
    for token in stated.get("added_tokens") or ():
        token["id"] = swapped(token["id"])
    stated["post_processor"] = _swapped_marks(stated.get("post_processor"), swapped)
    stated["padding"] = _padding(swapped(tokenizer.pad_id), "")
    return Tokenizer(json.dumps(stated, ensure_ascii=False))


def with_special_tokens(tokenizer: Tokenizer, prefix: Sequence[int], suffix: Sequence[int], pad_id: int) -> Tokenizer:
    """Returns the tokenizer with other ids around texts."""
    stated = json.loads(tokenizer.json)
    names = {i: name for name, i in token_ids(stated).items()}
    stated["post_processor"] = _template(*([(names[i], i) for i in ids] for ids in (prefix, suffix)))
    stated["padding"] = _padding(pad_id, names[pad_id])
    return Tokenizer(json.dumps(stated, ensure_ascii=False))


def same_tokens(a: Tokenizer, b: Tokenizer) -> str:
    """Returns in what two tokenizers give other ids, or "" when they agree."""
    for name in ("bos_id", "eos_id", "pad_id"):
        if getattr(a, name) != getattr(b, name):
            return f"{name} is {getattr(a, name)} and {getattr(b, name)}"
    for name in ("prefix", "suffix"):
        if getattr(a, name) != getattr(b, name):
            return f"the special tokens around a text ({name}) are {getattr(a, name)} and {getattr(b, name)}"
    if (x := token_ids(json.loads(a.json))) != (y := token_ids(json.loads(b.json))):
        return f"the vocabularies differ ({len(x):,} and {len(y):,} tokens)"
    return ""


def is_gemma(tokenizer: Tokenizer, lower: bool) -> bool:
    """Whether a `Siglip2Tokenizer` made of its vocabulary and merges would give the same ids.

    Args:
      tokenizer: as the model was trained with.
      lower: texts are lower-cased before.
    """
    stated = json.loads(tokenizer.json)
    normalizer, model = stated.get("normalizer"), stated["model"]
    ours = [*_steps(_preparing(Preparation(), None)), {"type": "Lowercase"}]  # of an earlier export
    steps = [step for step in _steps(normalizer) if step not in ours]
    spaces = [{"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    return (
        (lower or _lowers(normalizer))
        and steps == spaces
        and (model.get("type"), model.get("byte_fallback"), model.get("fuse_unk")) == ("BPE", True, True)
    )


# ---------------------------------------------------------------------------------------------- parts of the file


def _content(token: Any) -> str | None:
    return token.get("content") if isinstance(token, Mapping) else token


def unsaid(preparation: Preparation) -> str:
    """Says what a tokenizer.json cannot do to texts of what `preparation` does; "" where it can do it all."""
    entities = "HTML entities become characters (html.unescape, twice)"
    if preparation.clean == "none":
        return ""
    return entities if preparation.clean == "basic" else f"ftfy.fix_text mends them, and {entities}"


def _preparing(preparation: Preparation, normalizer: dict | None) -> dict:
    """A normaliser that prepares a text as far as the format can, and then does what this one does."""
    replace = lambda pattern, by: {"type": "Replace", "pattern": pattern, "content": by}
    steps = [] if preparation.clean == "none" else [{"type": "NFC"}]
    if preparation.clean == "canonicalize":
        steps += [replace({"String": "_"}, " "), replace({"Regex": _PUNCTUATION}, "")]
    steps += [replace({"Regex": _SPACE}, " "), {"type": "Strip", "strip_left": True, "strip_right": True}]
    steps += [{"type": "Lowercase"}] if preparation.lowers else []
    given = _steps(normalizer)
    if given[: len(steps)] == steps:  # written by an earlier export
        return normalizer
    return {"type": "Sequence", "normalizers": [*steps, *given]}


def _lowering(normalizer: dict | None) -> dict:
    """A normaliser that lower-cases, and then does what this one does."""
    return {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, *_steps(normalizer)]}


def _steps(normalizer: dict | None) -> list[dict]:
    """The steps of a normaliser; of none, none."""
    if not normalizer:
        return []
    return normalizer["normalizers"] if normalizer["type"] == "Sequence" else [normalizer]


def _lowers(normalizer: dict | None) -> bool:
    return any(step["type"] == "Lowercase" for step in _steps(normalizer))


def _set_marks(stated: dict, settings: Mapping[str, Any], ids: Mapping[str, int]) -> None:
    """Makes the template that `add_bos_token` and `add_eos_token` ask for; they go before the file's own."""
    marks = []
    for mark in ("bos", "eos"):
        token = _content(settings.get(f"{mark}_token")) if settings[f"add_{mark}_token"] else None
        marks.append([(token, ids[token])] if token in ids else [])
    if any(marks):
        stated["post_processor"] = _template(*marks)


def _template(prefix: Sequence[tuple[str, int]], suffix: Sequence[tuple[str, int]]) -> dict:
    """A post-processor that puts special tokens, (name, id), around a text."""
    pieces = lambda marks, kind=0: [{"SpecialToken": {"id": name, "type_id": kind}} for name, _ in marks]
    text = lambda name, kind: [{"Sequence": {"id": name, "type_id": kind}}]
    single = [*pieces(prefix), *text("A", 0), *pieces(suffix)]
    tokens = {name: {"id": name, "ids": [i], "tokens": [name]} for name, i in (*prefix, *suffix)}
    pair = [*single, *text("B", 1), *pieces(suffix, 1)]
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens}


def _padding(pad_id: int, token: str) -> dict:
    return {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None, "pad_id": pad_id,
            "pad_type_id": 0, "pad_token": token}  # fmt: skip


def _swapped_marks(processor: dict | None, swapped: Any) -> dict | None:
    if not processor:
        return processor
    processor = dict(processor)
    if processor["type"] == "Sequence":
        processor["processors"] = [_swapped_marks(p, swapped) for p in processor["processors"]]
    for key in ("sep", "cls"):  # BertProcessing, RobertaProcessing
        if key in processor:
            processor[key] = [processor[key][0], swapped(processor[key][1])]
    if processor["type"] == "TemplateProcessing":
        tokens = processor["special_tokens"].items()
        processor["special_tokens"] = {n: t | {"ids": [swapped(i) for i in t["ids"]]} for n, t in tokens}
    return processor
