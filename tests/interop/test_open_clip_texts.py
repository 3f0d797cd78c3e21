"""open_clip's texts: cleaned, tokenised and pooled as it does, every option of its configuration read or refused."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

import xmodal
from data_pipelines.text.preparation import Preparation
from tests.interop import folders
from xmodal.interop import open_clip, open_clip_text
from xmodal.interop.export import export
from xmodal.interop.tables import InteropError
from xmodal.stored.opening import open_stored

GOLDEN = folders.load("open_clip_texts")
STATED = json.loads(str(GOLDEN["stated"]))
LENGTH = 12


def write(folder, name="argmax", kind="", **changes):
    """An open_clip folder of a case with other settings of its texts, or with another tokenizer."""
    case = STATED["cases"][name]
    config = case["model_cfg"] | dict(text_cfg=case["model_cfg"]["text_cfg"] | changes)
    folder.mkdir(exist_ok=True)
    preprocess = dict(size=8, mode="RGB", mean=[0.5] * 3, std=[0.5] * 3)
    folders.write_json(folder / "open_clip_config.json", dict(model_cfg=config, preprocess_cfg=preprocess))
    files = STATED["tokenizers"][kind or case["tokenizer"]]
    for file, value in zip(("tokenizer.json", "tokenizer_config.json"), files):
        folders.write_json(folder / file, value)
    save_file(folders.part(GOLDEN, "weights/"), folder / "open_clip_model.safetensors")
    return folder


@pytest.mark.parametrize("clean", STATED["cleaned"])
def test_texts_are_cleaned_as_open_clip_cleans_them(clean):
    preparation = Preparation(clean)
    assert [preparation(text) for text in STATED["odd"]] == STATED["cleaned"][clean]


@pytest.mark.parametrize("name", STATED["cases"])
def test_every_way_to_pool_and_to_clean(name, tmp_path):
    model = xmodal.load(f"open_clip:{write(tmp_path / 'in', name)}")
    np.testing.assert_array_equal(model.prepare_texts(STATED["texts"])["text"], GOLDEN[f"ids/{name}"])
    np.testing.assert_allclose(model.embed_text(STATED["texts"]), GOLDEN[f"outputs/{name}"], atol=2e-6)


@pytest.mark.parametrize("name", ["eos", "first_both_ways", "last", "strip", "canonicalize"])
def test_out_and_in_again(name, tmp_path):
    stored = open_stored(f"open_clip:{write(tmp_path / 'in', name)}")
    done = export(stored, tmp_path / "out", to="open_clip")
    given, back = (json.loads((tmp_path / at / "open_clip_config.json").read_text()) for at in ("in", "out"))
    wanted, made = ({**open_clip_text.READ, **config["model_cfg"]["text_cfg"]} for config in (given, back))
    clean = {"clean": (given["model_cfg"]["text_cfg"].get("tokenizer_kwargs") or {}).get("clean", "whitespace")}
    end = dict(pool_type="argmax", eos_id=2) if name == "eos" else {}  # which are the same here
    assert made == wanted | dict(tokenizer_kwargs=clean) | end
    assert not any("cleans every text" in note for note in done.notes)
    np.testing.assert_allclose(
        xmodal.load(tmp_path / "out").embed_text(STATED["texts"]), GOLDEN[f"outputs/{name}"], atol=2e-6
    )
    if name in ("first_both_ways", "last", "strip"):
        with pytest.raises(InteropError, match="CLIPModel has no such model"):
            export(stored, tmp_path / "hf", to="hf")


def test_what_a_format_cannot_say_is_said(tmp_path):
    stored = open_stored(f"open_clip:{write(tmp_path / 'in', 'canonicalize')}")
    for to in ("hf", "jax"):
        done = export(stored, tmp_path / to, to=to)
        note = next(note for note in done.notes if "ftfy.fix_text mends them, and HTML entities" in note)
        assert note in (tmp_path / to / "README.md").read_text()
    for clean, words in (("none", "ftfy.fix_text and html.unescape, which"), ("basic", "ftfy.fix_text, which")):
        stored.config.data.inputs.text.clean = clean
        done = export(stored, tmp_path / clean, to="open_clip")
        (note,) = (note for note in done.notes if "open_clip cleans every text" in note)
        assert words in note and note in (tmp_path / clean / "README.md").read_text()
    stored = open_stored(f"open_clip:{write(tmp_path / 'last', 'last')}")
    stored.config.data.inputs.text.length = LENGTH - 1
    with pytest.raises(InteropError, match=r"data\.inputs\.text\.length=11: open_clip pads texts to the 12 positions"):
        export(stored, tmp_path / "out", to="open_clip")


def test_every_field_of_open_clips_configuration_is_known():
    text = {*open_clip_text.READ, *open_clip_text.UNUSED, *open_clip_text.IDLE}
    vision = {*open_clip._VISION, *open_clip._VISION_UNUSED, *open_clip._VISION_IDLE}
    assert text == {*STATED["fields"]["CLIPTextCfg"]} and vision == {*STATED["fields"]["CLIPVisionCfg"]}


REFUSED = [
    ("argmax", "", dict(pool_type="none"), "text_cfg.pool_type='none', needs one of argmax, eos, first, last"),
    ("argmax", "", dict(no_causal_mask=True), "text_cfg.no_causal_mask=True with pool_type='argmax'"),
    ("eos", "", dict(no_causal_mask=True), "text_cfg.no_causal_mask=True with pool_type='eos'"),
    ("eos", "", dict(eos_id=5), "text_cfg.eos_id=5: .* the end token of tokenizer.json has the id 23"),
    ("argmax", "bert", {}, "text_cfg.pool_type='argmax': .* may be 23, and the end token .* has the id 3"),
    ("argmax", "", dict(embed_cls=True), "text_cfg.embed_cls=True, needs False"),
    ("argmax", "", dict(proj_type="none"), "text_cfg.proj_type='none', needs 'linear'"),
    ("argmax", "", dict(proj_bias=True), "text_cfg.proj_bias=True, needs False"),
    ("argmax", "", dict(ls_init_value=0.1), "text_cfg.ls_init_value=0.1, needs None"),
    ("argmax", "", dict(tokenizer_mode="clips"), "text_cfg.tokenizer_mode='clips', needs None"),
    ("argmax", "", dict(something=1), "text_cfg.something=1"),
    ("argmax", "", dict(tokenizer_kwargs=dict(clean="upper")), "kwargs.clean='upper', needs one of whitespace"),
    ("argmax", "", dict(tokenizer_kwargs=dict(context_length=5)), "text_cfg.tokenizer_kwargs.context_length=5"),
    ("argmax", "", dict(tokenizer_kwargs=dict(language="de")), "text_cfg.tokenizer_kwargs.language='de'"),
    ("argmax", "", dict(tokenizer_kwargs=3), "text_cfg.tokenizer_kwargs=3, needs an object"),
    ("last", "", dict(tokenizer_kwargs=dict(strip_sep_token=True)), "strip_sep_token=True, .* has no separator"),
    ("argmax", "", dict(hf_tokenizer_name=None, tokenizer_kwargs=dict(reduction_mask="random")),
     "text_cfg.tokenizer_kwargs.reduction_mask='random'"),
]  # fmt: skip


@pytest.mark.parametrize("name, kind, changes, message", REFUSED)
def test_what_is_not_done_here_is_refused_by_name(name, kind, changes, message, tmp_path):
    with pytest.raises(InteropError, match=message):
        open_stored(f"open_clip:{write(tmp_path / 'in', name, kind, **changes)}")


def test_the_tokenizer_of_openais_models_is_meant_where_none_is_named(tmp_path):
    stored = open_stored(f"open_clip:{write(tmp_path / 'in', 'last', hf_tokenizer_name=None)}")
    assert stored.config.data.inputs.text.clean == "lower" and stored.tokenizer.pad_id == 0
    lower = dict(hf_tokenizer_name=None, tokenizer_kwargs=dict(clean="canonicalize"))
    assert open_stored(f"open_clip:{write(tmp_path / 'in', **lower)}").config.data.inputs.text.clean == "canonicalize"
    for kind in ("in", "named"):
        stored = open_stored(f"open_clip:{write(tmp_path / kind, **(lower if kind == 'in' else {}))}")
        assert stored.config.data.inputs.text.length == LENGTH, "model_max_length is not asked for"
