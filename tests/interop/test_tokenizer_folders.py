"""Tokenizers of folders as the reference reads them: settings that win over the file, templates, and damaged files."""

import json

import pytest
import tokenizers as hf

from data_pipelines.errors import DataError
from data_pipelines.text.preparation import CLEANING, Preparation
from data_pipelines.text.tokenizers import Tokenizer, train_bpe
from tests import fuzzing
from tests.interop import folders
from xmodal.interop.tables import InteropError
from xmodal.interop.tokenizer_files import read_tokenizer, same_tokens, swap_ids, unsaid, write_tokenizer
from xmodal.stored.opening import open_stored

CASING = json.loads((folders.GOLDEN / "bert_casing.json").read_text(encoding="utf-8"))
WORDS = ["<s>", "<pad>", "</s>", "<unk>", "red", "heart", "a", "en_XX", "de_DE"]


@pytest.mark.parametrize("case", CASING["cases"], ids=lambda case: f"{case['document']}-{case['settings']}")
def test_bert_folders_are_read_as_transformers_reads_them(case, tmp_path):
    folders.write_json(tmp_path / "config.json", dict(model_type="bert"))
    folders.write_json(tmp_path / "tokenizer.json", CASING["documents"][case["document"]])
    if case["settings"] is not None:
        folders.write_json(tmp_path / "tokenizer_config.json", case["settings"])
    tokenizer, _ = read_tokenizer(tmp_path)
    ids, valid = tokenizer.encode(CASING["texts"], 16)
    assert [row[mask].tolist() for row, mask in zip(ids, valid)] == case["ids"]


def words(template: str) -> dict:
    """A tokenizer.json of a few words whose template is as mBART's or NLLB's."""
    pieces = hf.Tokenizer(hf.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    pieces.pre_tokenizer = hf.pre_tokenizers.Whitespace()
    pieces.add_special_tokens([word for word in WORDS if word not in ("red", "heart", "a")])
    marks = [(word, i) for i, word in enumerate(WORDS)]
    pieces.post_processor = hf.processors.TemplateProcessing(single=template, special_tokens=marks)
    return json.loads(pieces.to_str())


@pytest.mark.parametrize(
    "template, prefix, suffix",
    [("$A </s> en_XX", (), (2, 7)), ("en_XX $A </s>", (7,), (2,)), ("<s> de_DE $A </s> en_XX", (0, 8), (2, 7)),
     ("<s> <s> $A </s> </s>", (0, 0), (2, 2))],
)  # fmt: skip
def test_all_special_tokens_of_a_template_are_there(template, prefix, suffix, tmp_path):
    stated = words(template)
    tokenizer = Tokenizer(json.dumps(stated))
    assert (tokenizer.prefix, tokenizer.suffix, tokenizer.marks) == (prefix, suffix, len(prefix) + len(suffix))
    assert (tokenizer.bos_id, tokenizer.eos_id) == (prefix[0] if prefix else None, suffix[-1])
    ids, valid = tokenizer.encode(["red heart", "a " * 30], 8)
    assert ids[0][valid[0]].tolist() == hf.Tokenizer.from_str(json.dumps(stated)).encode("red heart").ids
    assert ids[0][valid[0]].tolist() == [*prefix, 4, 5, *suffix] and not valid[0, len(prefix) + len(suffix) + 2 :].any()
    assert ids[1].tolist() == [*prefix, *[6] * (8 - tokenizer.marks), *suffix], "cut in front of what ends a text"
    assert tokenizer.decode(ids[0]) == "red heart"
    assert [place for place, _ in tokenizer.spans("red heart", 8)] == [len(prefix), len(prefix) + 1]
    with pytest.raises(DataError, match=rf"{tokenizer.marks} tokens has no room"):
        tokenizer.encode(["red"], tokenizer.marks)
    write_tokenizer(tmp_path, tokenizer, length=8, preparation=Preparation())
    again, _ = read_tokenizer(tmp_path)
    assert not same_tokens(tokenizer, again)
    swapped = swap_ids(tokenizer, 2, 8)
    assert swapped.suffix == tuple({2: 8, 8: 2}.get(i, i) for i in suffix)


def changed(change) -> str:
    stated = words("<s> $A </s>")
    change(stated)
    return json.dumps(stated)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s["model"]["vocab"].update(red=2**32 - 1), "9 ids go from 0 to 4294967295 and have gaps"),
        (lambda s: s["added_tokens"][0].update(id=2**32 - 1), "have gaps|has the id 4294967295"),
        (lambda s: s["model"]["vocab"].update(red=9), "9 ids go from 0 to 9 and have gaps: the first is 4"),
        (lambda s: s["model"]["vocab"].update(red=-1), "."),
        (lambda s: s["post_processor"]["special_tokens"]["</s>"].update(ids=[5000]), "puts the id 5000 around texts"),
        (lambda s: s.update(padding=dict(
            strategy="BatchLongest", direction="Right", pad_to_multiple_of=None, pad_id=99, pad_type_id=0, pad_token="")
        ), "puts the id 99 around texts; its ids go from 0 to 8"),
        (lambda s: s["model"].update(unk_token="<nothing>"), "tokenizer.json that can be used: .*UNK"),
        (lambda s: s.update(model=None), "it has no model"),
    ],
)  # fmt: skip
def test_ids_that_no_model_has_are_refused_at_once(change, message):
    def read():
        with pytest.raises(DataError, match=message):
            Tokenizer(changed(change))

    fuzzing.survives(read, (), message)


def test_a_tokenizer_beyond_the_model_is_refused(tmp_path):
    folder = folders.hugging_face(tmp_path / "hf")
    stated = json.loads((folder / "tokenizer.json").read_text())
    stated["model"]["vocab"]["w99"] = folders.VOCAB
    folders.write_json(folder / "tokenizer.json", stated)
    with pytest.raises(InteropError, match="has ids up to 99, and the model has 99 tokens"):
        open_stored(f"hf:{folder}")


SETTINGS = dict(
    tokenizer_class="BertTokenizer", model_max_length=12, pad_token="[PAD]", cls_token=dict(content="[CLS]"),
    padding_side="right", do_lower_case=True, strip_accents=None, add_bos_token=True, add_eos_token=True,
    bos_token="[CLS]", eos_token=dict(content="[SEP]"),
)  # fmt: skip


def test_damaged_folders_are_refused_in_one_line(tmp_path, fuzz_cases):
    document = CASING["documents"]["lowers"]

    def read():
        tokenizer, length = read_tokenizer(tmp_path)
        assert length >= 0
        tokenizer.encode(["red café", "x"], 12)

    for seed in range(fuzz_cases):
        files = dict(document=document, settings=SETTINGS)
        name = ("document", "settings")[seed % 2]
        files[name] = fuzzing.damaged_json(files[name], seed)
        folders.write_json(tmp_path / "tokenizer.json", files["document"])
        folders.write_json(tmp_path / "tokenizer_config.json", files["settings"])
        fuzzing.survives(read, (InteropError,), (name, seed))


@pytest.mark.parametrize("clean", CLEANING)
@pytest.mark.parametrize("lower", [False, True])
def test_a_written_tokenizer_prepares_as_far_as_its_format_can(clean, lower, tmp_path):
    tokenizer, preparation = train_bpe(["red heart, a cat"] * 3, 300), Preparation(clean, lower)
    write_tokenizer(tmp_path, tokenizer, length=40, preparation=preparation)
    plain = hf.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in (" Red\t\tHeart\n", "cafe\u0301 Äpfel\u00a0x\u2028y", "a_b, (c) [d]! {label} `^~", "", "\x0b \u3000é"):
        ids, valid = tokenizer.encode([preparation(text)], 40)
        assert plain.encode(text).ids == ids[0][valid[0]].tolist(), text
    assert ("html.unescape" in unsaid(preparation)) == (clean != "none")
    assert ("ftfy" in unsaid(preparation)) == (clean not in ("none", "basic"))
    again, _ = read_tokenizer(tmp_path)
    write_tokenizer(tmp_path, again, length=40, preparation=preparation)
    assert (tmp_path / "tokenizer.json").read_text() == json.dumps(
        json.loads(again.json) | dict(truncation=None), indent=2, ensure_ascii=False
    ) + "\n"  # fmt: skip
