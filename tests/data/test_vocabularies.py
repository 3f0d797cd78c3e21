"""Tokenizers trained in any script: whole characters, no joints across scripts, the same file every time."""

import hashlib
import json
import random
import re
import subprocess
import sys

import pytest
import tokenizers as hf
from tiny_shards import sample, write_tar

from data_pipelines.errors import DataError
from data_pipelines.examine.coverage import OTHER, Coverage, script_of
from data_pipelines.io.paths import REPOSITORY
from data_pipelines.text.tokenizers import Tokenizer, train_bpe
from data_pipelines.text.vocabularies import BYTE_SYMBOLS, KINDS, Rules, train
from xmodal.__main__ import main

WORDS = dict(
    en=("a", "red", "heart", "dog's", "face", "of", "2021", "smile"),
    zh=("一只", "猫", "坐在", "垫子", "红心", "骑", "自行车"),
    ja=("あかい", "ハート", "ネコ", "が", "スキー", "しています"),
    hi=("नमस्ते", "बिल्ली"),
)


def captions() -> list[str]:
    draw, texts = random.Random(0), ["一只猫 with hat 和 Dog", "猫cat", "❤️ heart", "👩‍🚀 face"] * 3
    for language, words in WORDS.items():
        space = " " if language in ("en", "hi") else ""
        texts += [space.join(draw.choice(words) for _ in range(7)) for _ in range(150)]
    return texts


CAPTIONS = captions()


def trained(kind: str, size: int = 700, **rules) -> Tokenizer:
    return train(CAPTIONS, Rules(kind, size, **rules))


def tokens(tokenizer: Tokenizer, text: str) -> list[str]:
    pieces = hf.Tokenizer.from_str(tokenizer.json)
    numbers = {symbol: byte for byte, symbol in enumerate(BYTE_SYMBOLS)}
    shown = [pieces.id_to_token(i) for i in tokenizer.tokens([text])[0]]
    if BYTE_SYMBOLS[0] not in pieces.get_vocab():
        return shown
    return [bytes(numbers[symbol] for symbol in token).decode("utf-8", "replace") for token in shown]


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_deterministic_in_any_order(kind):
    code = (
        "import sys, json, hashlib; from data_pipelines.text.vocabularies import Rules, train; "
        f"print(hashlib.md5(train(json.load(sys.stdin), Rules({kind!r}, 700)).json.encode()).hexdigest(), end='')"
    )
    other = json.dumps(CAPTIONS[::-1])
    done = subprocess.run(
        [sys.executable, "-c", code], input=other, capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    assert done.stdout == hashlib.md5(trained(kind).json.encode()).hexdigest()
    with pytest.raises(DataError, match="is too small"):
        trained(kind, 20)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_any_text_returns_and_special_tokens_cannot_be_written(kind):
    tokenizer = trained(kind)
    assert tokenizer.vocab_size <= 700 and (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    texts = [
        "a Red heart, dog's 20217",
        "一只猫坐在垫子上。",
        "がスキー",
        "नमस्ते",
        "鑫 😀 ok",
        "<eos> <0x41> <unk> <pad>",
    ]
    ids, valid = tokenizer.encode(texts, 64)
    assert [tokenizer.decode(row) for row in ids] == texts
    assert not set(ids[5][valid[5]][1:-1].tolist()) & set(tokenizer.special_ids)
    assert hf.Tokenizer.from_str(tokenizer.json).encode(texts[0]).ids == ids[0][valid[0]].tolist()


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_no_token_joins_words_scripts_or_parts_of_characters(kind):
    tokenizer = trained(kind)
    pieces = hf.Tokenizer.from_str(tokenizer.json)
    longest = set()
    for token in set(pieces.get_vocab()) - set(Rules(kind).names()) - set(BYTE_SYMBOLS):
        if kind == "bpe":
            numbers = [BYTE_SYMBOLS.index(symbol) for symbol in token]
            head = numbers[0] if numbers[0] != 32 else numbers[1]
            if head >= 0xC0 and len(numbers) < 4 and bytes(numbers).decode("utf-8", "ignore") == "":
                continue  # the beginning of one character
            token = bytes(numbers).decode()
        elif token.startswith("<0x"):
            continue
        text = token.replace("▁", " ")
        assert " " not in text[1:], f"{token!r} joins words"
        scripts = {script_of(character) for character in text if character.isalpha()}
        assert len(scripts) < 2 or scripts == {"Chinese", "Japanese"}, f"{token!r} joins {scripts}"
        assert not (text[:1] == " " and scripts & {"Chinese", "Japanese"}), f"{token!r} begins with a space"
        longest |= scripts if len(text) > 1 else set()
    assert {"Chinese", "Japanese", "Latin", "Devanagari"} <= longest
    assert tokens(tokenizer, "猫 cat")[0] == "猫" and tokens(tokenizer, "a 猫")[-1] == "猫"


@pytest.mark.parametrize("kind", KINDS)
def test_a_size_that_texts_cannot_fill_takes_no_memory(kind):
    texts = ["red heart", "red cat", "红色的心", "红色的猫"]
    assert train(texts, Rules(kind, 10**30)).json == train(texts, Rules(kind, 5000)).json
    assert train_bpe(iter(texts), 2**40).json == train_bpe(texts, 5000).json


def test_texts_that_write_special_tokens_give_equal_files():
    texts = ["[CLS] [UNK]", "[MASK]ed b", "<pad> <eos>"] * 3
    (vocabulary,) = {train(texts, Rules("wordpiece", 300)).json for _ in range(12)}  # the library draws its hash seeds
    assert "##]" not in vocabulary and "[C" not in json.loads(vocabulary)["model"]["vocab"]


def test_rules_of_special_tokens():
    masked = trained("bpe", mask=True, special=("<photo>",))
    assert masked.mask_id == 3 and masked.special_ids == (0, 1, 2, 3, 4)
    ended = trained("unigram", begin=False)
    assert (ended.pad_id, ended.bos_id, ended.eos_id, ended.marks) == (0, None, 1, 1)
    assert ended.encode(["a red"], 8)[0][0][0] > 3
    words = train(CAPTIONS, Rules("wordpiece", 400, lower=True, special=("[X]",)))
    assert (words.pad_id, words.bos_id, words.eos_id, words.mask_id) == (0, 2, 3, 4) and 5 in words.special_ids
    assert words.tokens(["RED Heart"]) == words.tokens(["red heart"])
    assert words.decode(words.tokens(["ガ が"])[0]) != words.decode(words.tokens(["カ か"])[0])
    lowered, kept = trained("bpe", lower=True), trained("bpe")
    assert lowered.tokens(["RED"]) == lowered.tokens(["red"]) and kept.tokens(["RED"]) != kept.tokens(["red"])
    for rules, words in (
        (dict(kind="bpee"), "did you mean 'bpe'"),
        (dict(kind="wordpiece", begin=False), "BERT's begin token"),
        (dict(special=("<pad>",)), "named twice"),
    ):
        with pytest.raises(DataError, match=words):
            Rules(**rules)
    with pytest.raises(DataError, match="no captions"):
        train([" "], Rules())


def test_coverage_is_counted_by_script():
    found = {text: script_of(text) for text in ("a cat", "一只猫", "猫がいる", "고양이", "кот", "12 !", "นั่ง")}
    assert list(found.values()) == ["Latin", "Chinese", "Japanese", "Korean", "Cyrillic", OTHER, "Thai"]
    coverage = Coverage(trained("wordpiece", 300))
    coverage.add(["red heart"] * 3 + ["鑫鑫", "一只"])
    rows = {row.script: row for row in coverage.rows()}
    assert list(rows) == ["Latin", "Chinese", "all"] and rows["Latin"].captions == 3
    assert rows["Latin"].percentiles == (4, 4, 4, 4) and rows["Latin"].unknown == 0.0
    assert rows["Chinese"].unknown == pytest.approx(0.5) and rows["Chinese"].partial == 0.0
    assert coverage.suggested() == (8, 0.0)
    for kind in ("bpe", "unigram"):
        coverage = Coverage(trained(kind))
        coverage.add(["鑫", "猫"])
        (row,) = coverage.rows()
        assert row.unknown == 0.0 and 0.5 < row.partial < 1.0, "of four tokens at least two are parts of a character"


def test_the_command_reads_any_source(tmp_path, capsys):
    texts = CAPTIONS[::15]
    members = {f"{i:03d}": sample(i) | dict(txt=text.encode()) for i, text in enumerate(texts)}
    write_tar(tmp_path / "a.tar", members)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(dict(image="x", says=[t])) + "\n" for t in texts))
    (tmp_path / "a.csv").write_text("image,says\n" + "".join(f"x.jpg,{text}\n" for text in texts))
    (tmp_path / "a.txt").write_text("\n".join(texts) + "\n")
    common = ["--size", "500", "--no-lower", "--special", "<a>,<b>"]
    made = []
    for name, more in (
        ("a.tar", []),
        ("a.jsonl", ["--template", "{says}"]),
        ("a.csv", ["--caption", "says"]),
        ("a.txt", []),
    ):
        out = tmp_path / f"{name}.tokenizer.json"
        assert main(["data", "tokenizer", str(tmp_path / name), "--out", str(out), *common, *more]) == 0
        made.append(out.read_text())
        shown = capsys.readouterr().out
        assert "Chinese" in shown and re.search(rf"tokenizer='{out}', length=\d+, lower=False", shown)
    assert made[0] == made[1] == made[2] == made[3]
    assert Tokenizer.load(tmp_path / "a.tar.tokenizer.json").encode(["a red heart"], 16)[1].sum() > 4
    recipe = tmp_path / "recipe.py"
    entry = dict(urls=str(tmp_path / "a.tar"))
    inputs = "dict(image=dict(type='image'), text=dict(type='text'))"
    body = f"    c = base.get_config()\n    c.data.inputs = {inputs}\n"
    body += f"    c.data.sources = dict(x={entry})\n    return c\n"
    recipe.write_text(f"from xmodal.configs import base\n\n\ndef get_config():\n{body}")
    out = tmp_path / "a.tar.tokenizer.json"
    assert main(["data", "tokenizer", "--config", str(recipe), "--out", str(out), *common]) == 0, "the same file again"
    with pytest.raises(SystemExit):
        main(["data", "tokenizer", str(tmp_path / "a.txt"), "--out", str(out), "--size", "400"])
    assert "holds another tokenizer" in capsys.readouterr().err
    some = ["data", "tokenizer", str(tmp_path / "a.txt"), "--sample", "10", "--out", str(tmp_path / "some.json")]
    assert main([*some, "--kind", "unigram", "--size", "400"]) == 0
    assert "from 10 captions" in capsys.readouterr().out
