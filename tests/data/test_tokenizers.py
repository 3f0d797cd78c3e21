"""One interface over every tokenizer.json: marks in place, cut captions ended, text given back."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tokenizers as hf

from data_pipelines.errors import DataError
from data_pipelines.io.paths import REPOSITORY
from data_pipelines.text.tokenizers import Tokenizer, train_bpe, train_wordpiece

CAPTIONS = ["grinning face", "a red heart, love", "face with tears of joy", "red circle"] * 5


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return train_bpe(CAPTIONS, 300)


def test_marks_and_padding(bpe):
    assert (bpe.pad_id, bpe.bos_id, bpe.eos_id) == (0, 1, 2)
    ids, valid = bpe.encode(["red heart", "", "grinning face with tears of joy and a red heart"], 8)
    assert ids.dtype == np.int32 and valid.dtype == bool and ids.shape == valid.shape == (3, 8)
    for row, mask in zip(ids, valid):
        n = mask.sum()
        assert mask[:n].all() and row[0] == 1 and row[n - 1] == 2 and (row[n:] == 0).all() and (row[:n] != 0).all()
    assert valid[1].sum() == 2 and valid[2].all()
    assert ids.max() < bpe.vocab_size <= 300


def test_any_text_returns(bpe):
    texts = ["a red heart, love", "naïve café", "日本語 テキスト", "😀 ok"]
    ids, _ = bpe.encode(texts, 64)
    assert [bpe.decode(row) for row in ids] == texts


def test_a_caption_cannot_write_marks(bpe):
    ids, valid = bpe.encode(["red <eos> heart <pad> <bos>"], 64)
    inside = ids[0][valid[0]][1:-1]
    assert not np.isin(inside, [0, 1, 2]).any()
    assert bpe.decode(ids[0]) == "red <eos> heart <pad> <bos>"


def test_saved_and_loaded(bpe, tmp_path):
    (tmp_path / "t.json").write_text(bpe.json)
    loaded = Tokenizer.load(tmp_path / "t.json")
    assert loaded.json == bpe.json
    np.testing.assert_array_equal(loaded.encode(CAPTIONS, 9)[0], bpe.encode(CAPTIONS, 9)[0])


def test_other_readers_of_the_file_see_the_same_ids(bpe):
    ids, valid = bpe.encode(["red heart"], 20)
    assert hf.Tokenizer.from_str(bpe.json).encode("red heart").ids == ids[0][valid[0]].tolist()


@pytest.mark.parametrize("train, size", [(train_bpe, 300), (train_wordpiece, 70)])
def test_training_is_deterministic(train, size):
    texts = [*CAPTIONS, "ein rotes Herz", "一颗红心", "あかい ハート"]
    name = train.__name__
    code = f"from data_pipelines.text.tokenizers import {name}; print({name}({texts!r}, {size}).json, end='')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout == train(texts, size).json
    with pytest.raises(DataError, match="vocab_size=20 is too small"):
        train(texts, 20)


def test_word_pieces_have_berts_marks_and_keep_case_and_accents():
    words = train_wordpiece([*CAPTIONS, "Ein schönes Herz", "一颗红心"], 100)
    assert (words.pad_id, words.bos_id, words.eos_id, words.mask_id) == (0, 2, 3, 4) and words.vocab_size <= 100
    assert words.special_ids == (0, 1, 2, 3, 4)
    ids, valid = words.encode(["red circle, Herz", "schönes", "一颗红心", "[MASK] [SEP]"], 12)
    assert [words.decode(row) for row in ids[:3]] == ["red circle, Herz", "schönes", "一 颗 红 心"]
    assert not np.isin(ids[3][valid[3]][1:-1], [0, 2, 3, 4]).any(), "a caption cannot write marks"
    model = json.loads(words.json)["model"]
    assert model["type"] == "WordPiece" and list(model["vocab"])[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert len(words.tokens(["red"])[0]) == 1 and len(words.tokens(["rad"])[0]) > 1
    assert hf.Tokenizer.from_str(words.json).encode("red circle, Herz").ids == ids[0][valid[0]].tolist()


def test_marks_for_masking_are_optional(bpe):
    assert bpe.mask_id is None and bpe.special_ids == (0, 1, 2)


def clip_style() -> str:
    """A tiny vocabulary in the shape of CLIP's file: merges that end words with </w>, marks at the end."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)] + [","]
    merges = [("c", "a"), ("ca", "t</w>"), ("d", "o"), ("do", "g</w>")]
    tokens = letters + [f"{letter}</w>" for letter in letters] + ["".join(m) for m in merges]
    vocab = {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    clip = hf.Tokenizer(hf.models.BPE(vocab, merges, end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    clip.normalizer = hf.normalizers.Lowercase()
    split = hf.pre_tokenizers.Split(hf.Regex(r"[\p{L}]+|[^\s\p{L}]+"), "removed", invert=True)
    clip.pre_tokenizer = hf.pre_tokenizers.Sequence([split, hf.pre_tokenizers.ByteLevel(False, use_regex=False)])
    clip.decoder = hf.decoders.ByteLevel()
    clip.add_special_tokens(["<|startoftext|>", "<|endoftext|>"])
    return clip.to_str()


def test_clips_file_loads():
    clip = Tokenizer(clip_style())
    vocab = json.loads(clip.json)["model"]["vocab"]
    assert (clip.bos_id, clip.eos_id, clip.pad_id) == (58, 59, 59) and clip.vocab_size == 60
    ids, valid = clip.encode(["A cat, dog"], 12)
    expected = [vocab[t] for t in ("<|startoftext|>", "a</w>", "cat</w>", ",</w>", "dog</w>", "<|endoftext|>")]
    assert ids[0][valid[0]].tolist() == expected
    assert (ids[0][~valid[0]] == 59).all()
    assert clip.decode(ids[0]) == "a cat , dog"
    assert clip.encode(["cat cat cat cat cat"], 4)[0][0].tolist() == [58, vocab["cat</w>"], vocab["cat</w>"], 59]


def word_level(tokens: list[str]) -> hf.Tokenizer:
    words = hf.Tokenizer(hf.models.WordLevel({t: i for i, t in enumerate(tokens)}, unk_token=tokens[-1]))
    words.pre_tokenizer = hf.pre_tokenizers.Whitespace()
    return words


def test_marks_of_other_families():
    bert = Tokenizer(word_level(["[PAD]", "[CLS]", "[SEP]", "cat", "[UNK]"]).to_str())
    assert (bert.pad_id, bert.bos_id, bert.eos_id) == (0, 1, 2)
    t5 = Tokenizer(word_level(["<pad>", "</s>", "cat", "<unk>"]).to_str())
    assert t5.bos_id is None and t5.encode(["cat cat cat cat"], 4)[0].tolist() == [[2, 2, 2, 1]]
    own = word_level(["<pad>", "</s>", "cat", "<unk>"])
    own.enable_padding(pad_id=1, pad_token="</s>", length=7)  # as SigLIP's: what the file says goes first
    own.enable_truncation(2)
    siglip = Tokenizer(own.to_str())
    assert siglip.pad_id == 1 and siglip.encode(["cat"], 5)[0].tolist() == [[2, 1, 1, 1, 1]]


def test_what_is_no_tokenizer(tmp_path):
    with pytest.raises(DataError, match="no end token"):
        Tokenizer(word_level(["<pad>", "cat", "<unk>"]).to_str())
    for content in (b"{}", b"nope", b"\xff\xfe", b'{"model": 3}'):
        (tmp_path / "t.json").write_bytes(content)
        with pytest.raises(DataError, match=r"t\.json is not a Hugging Face tokenizer\.json"):
            Tokenizer.load(tmp_path / "t.json")
    with pytest.raises(DataError, match=r"no file .*missing\.json"):
        Tokenizer.load(tmp_path / "missing.json")
    with pytest.raises(DataError, match="the tokenizer is not named"):
        Tokenizer.load("")
