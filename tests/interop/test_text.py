"""Text towers without images in Hugging Face folders: in, out, and their tokenizers."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

import xmodal
from tests.interop import folders
from xmodal.__main__ import main
from xmodal.interop.export import export
from xmodal.interop.tables import InteropError
from xmodal.stored.opening import open_stored

NAMES = ("bert", "bert_masked")


@pytest.mark.parametrize("name", NAMES)
def test_in_and_out_again(name, tmp_path):
    given = folders.bert(tmp_path / "in", name)
    stored = open_stored(f"hf:{given}")
    assert stored.config.data.inputs.text.length == folders.LENGTH and not stored.config.data.inputs.text.lower
    done = export(stored, tmp_path / "out", to="hf")
    assert done.differences == {"text": 0.0}
    before, after = load_file(given / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    for key in before:
        np.testing.assert_array_equal(before[key], after[key], err_msg=key)
    config, wanted = (json.loads((f / "config.json").read_text()) for f in (tmp_path / "out", given))
    marks = dict(dtype="float32", bos_token_id=2, eos_token_id=3, pad_token_id=0)
    assert {key: wanted.get(key, value) for key, value in config.items()} | marks == config
    words = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert [words[f"{mark}_token"] for mark in ("cls", "sep", "pad", "mask", "unk")] == [
        "[CLS]", "[SEP]", "[PAD]", "[MASK]", "[UNK]"
    ]  # fmt: skip
    task = "fill-mask" if name == "bert_masked" else "feature-extraction"
    assert f"pipeline_tag: {task}\n" in (tmp_path / "out" / "README.md").read_text()


def test_a_vocabulary_alone_becomes_a_tokenizer(tmp_path):
    folder = folders.bert(tmp_path / "in", vocab_only=True)
    tokenizer = open_stored(f"hf:{folder}").tokenizer
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.mask_id) == (0, 2, 3, 4)
    assert tokenizer.special_ids == (0, 1, 2, 3, 4) and tokenizer.vocab_size == folders.VOCAB
    assert tokenizer.encode(["A red Hearts café 苹果 [MASK]"], 12)[0][0].tolist() == [
        2, 10, 5, 6, 7, 8, 12, 13, 1, 1, 1, 3
    ]  # fmt: skip
    folders.write_json(folder / "tokenizer_config.json", dict(do_lower_case=False))
    assert open_stored(f"hf:{folder}").tokenizer.tokens(["A café"]) == [[11, 9]]
    (folder / "vocab.txt").write_text("[PAD]\nred\n")
    with pytest.raises(InteropError, match=r"vocab\.txt: a vocabulary of 2 tokens is not BERT's: it has no \[UNK\]"):
        open_stored(f"hf:{folder}")
    (folder / "vocab.txt").unlink()
    with pytest.raises(InteropError, match=r"has no tokenizer\.json"):
        open_stored(f"hf:{folder}")


def test_the_command_brings_in_what_embeds_and_runs_without_xmodal(tmp_path, capsys):
    folder = folders.bert(tmp_path / "in", "bert", vocab_only=True)
    main(["import", f"hf:{folder}", "--out", str(tmp_path / "own")])
    assert "16 tokens, vocabulary 99" in capsys.readouterr().out
    model, same = xmodal.load(f"hf:{folder}"), xmodal.load(tmp_path / "own")
    texts = ["red heart", "a", ""]
    np.testing.assert_array_equal(model.embed_text(texts), same.embed_text(texts))
    assert model.inputs == ("text",)
    with pytest.raises(ValueError, match="no tower that embeds images"):
        model.embed_image(folders.picture())
    done = export(open_stored(tmp_path / "own"), tmp_path / "jax", to="jax")
    assert done.differences["text"] < 1e-6
