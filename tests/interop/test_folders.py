"""Folders that cannot be read are refused with what is wrong, where, and what to do."""

import json
import math
import pickle

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from data_pipelines.errors import DataError
from data_pipelines.modalities import MODALITIES
from data_pipelines.modalities.inputs import open_inputs
from data_pipelines.text.preparation import Preparation
from data_pipelines.text.tokenizers import train_bpe
from tests.interop import folders
from xmodal.__main__ import main
from xmodal.config import ConfigError
from xmodal.interop.tables import InteropError
from xmodal.interop.tokenizer_files import read_tokenizer, same_tokens, swap_ids, write_tokenizer
from xmodal.stored.opening import open_stored, parse
from xmodal.stored.project import write_stored


@pytest.fixture
def folder(tmp_path):
    return folders.hugging_face(tmp_path / "hf")


def edit(path, **changes):
    value = json.loads(path.read_text())
    for key, change in changes.items():
        *parents, last = key.split("__")
        section = value
        for parent in parents:
            section = section[parent]
        section[last] = change
    folders.write_json(path, value)


def refused(where):
    with pytest.raises(InteropError) as error:
        open_stored(where)
    return str(error.value)


def test_unknown_models(folder):
    edit(folder / "config.json", model_type="blip")
    assert "config.json: model_type 'blip' cannot be converted: known are clip, siglip" in refused(f"hf:{folder}")
    edit(folder / "config.json", model_type="clip", vision_config__hidden_act="mish")
    assert "hidden_act 'mish' is not known: known are quick_gelu, gelu" in refused(f"hf:{folder}")
    edit(folder / "config.json", vision_config__hidden_act="gelu", vision_config__image_size=41)
    assert "image size (41, 41) is not a multiple of the patch size 8" in refused(f"hf:{folder}")
    (folder / "config.json").write_text("{")
    assert "config.json is not JSON" in refused(f"hf:{folder}")


def test_weights_of_another_architecture(folder, tmp_path):
    other = folders.hugging_face(tmp_path / "siglip", "siglip")
    (other / "model.safetensors").rename(folder / "model.safetensors")
    message = refused(f"hf:{folder}")
    for part in ("missing: vision_model.pre_layrnorm.weight (48,)", "unexpected: vision_model.head.probe"):
        assert part in message


def test_weights_of_another_size(folder):
    edit(folder / "config.json", text_config__num_hidden_layers=3, vision_config__intermediate_size=81)
    message = refused(f"hf:{folder}")
    assert "missing: text_model.encoder.layers.2.layer_norm1.weight (32,)" in message
    assert "shape: vision_model.encoder.layers.0.mlp.fc1.weight is (80, 48), the model needs (81, 48)" in message


def test_pickled_weights_are_never_opened(folder):
    class Trap:
        def __reduce__(self):
            return (folder.joinpath("trapped").write_text, ("",))

    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    message = refused(f"hf:{folder}")
    assert "no model.safetensors, only pytorch_model.bin" in message and "safe_serialization=True" in message
    for name in ("model.pt", "open_clip_pytorch_model.bin"):
        (folder / name).write_bytes(pickle.dumps(Trap()))
        assert "not a safetensors file" in refused(f"open_clip:{folder / name}")
    assert not (folder / "trapped").exists()
    (folder / "pytorch_model.bin").rename(folder / "model.safetensors")
    assert "not a complete safetensors file" in refused(f"hf:{folder}")


@pytest.mark.parametrize("keep", [0, 5, 2000, -1])
def test_truncated_weights(folder, keep):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:keep])
    message = refused(f"hf:{folder}")
    assert "is not a complete safetensors file" in message and "fetch it again" in message
    (folder / "model.safetensors").unlink()
    assert "has no model.safetensors; files there: config.json" in refused(f"hf:{folder}")


def test_weights_in_parts(folder):
    whole = open_stored(f"hf:{folder}").params["image"]["embed"]["kernel"]
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for name, own in parts.items():
        save_file({key: weights[key] for key in own}, folder / name)
    index = {key: name for name, own in parts.items() for key in own}
    folders.write_json(folder / "model.safetensors.index.json", {"weight_map": index})
    np.testing.assert_array_equal(open_stored(f"hf:{folder}").params["image"]["embed"]["kernel"], whole)
    folders.write_json(folder / "model.safetensors.index.json", {"weight_map": {"x": "../../a.safetensors"}})
    assert "outside its folder" in refused(f"hf:{folder}")
    folders.write_json(folder / "model.safetensors.index.json", {"weight_map": {"x": "c.safetensors"}})
    assert "there is no weight file" in refused(f"hf:{folder}")


def test_missing_tokenizer_and_processor(folder):
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    assert "no preprocessor_config.json, which says how" in refused(f"hf:{folder}")
    folders.write_json(folder / "processor_config.json", {"image_processor": processor})  # as transformers 5 writes it
    mean = open_stored(f"hf:{folder}").config.data.inputs.image.mean
    assert mean == (0.5, 0.4, 0.3)
    (folder / "tokenizer.json").unlink()
    message = refused(f"hf:{folder}")
    assert "has no tokenizer.json" in message and "AutoTokenizer" in message


def test_a_tokenizer_of_another_model(folder):
    (folder / "tokenizer.json").write_text(train_bpe(["a b c"], 300).json)
    edit(folder / "tokenizer_config.json", pad_token="<pad>")
    assert "the model has 99 tokens: it is another model's tokenizer" in refused(f"hf:{folder}")
    folders.write_json(folder / "tokenizer.json", folders.tokenizer())
    edit(folder / "config.json", text_config__eos_token_id=8)
    assert "pools a text at the id 8, and the end mark of tokenizer.json has the id 7" in refused(f"hf:{folder}")
    edit(folder / "config.json", text_config__eos_token_id=2)  # OpenAI's files mean the largest id by it
    assert "the largest id of a text" in refused(f"hf:{folder}")
    edit(folder / "tokenizer_config.json", pad_token="<nothing>")
    assert "'<nothing>' is not in the vocabulary" in refused(f"hf:{folder}")


def test_what_is_no_model(tmp_path, folder):
    assert "there is no folder" in refused(tmp_path / "none")
    assert "hf download openai/clip-vit-base-patch32" in refused("hf:openai/clip-vit-base-patch32")
    assert "is no model that is known here" in refused(tmp_path)
    assert parse(folder) == ("hf", folder)
    with pytest.raises(InteropError, match="is not a run: it has no other steps"):
        open_stored(folder, step=3)


def test_the_command_says_it_in_one_line(folder, tmp_path, capsys):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(SystemExit):
        main(["import", f"hf:{folder}", "--out", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "no tokenizer.json" in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_our_own_folder_is_checked(folder, tmp_path):
    own = tmp_path / "own"
    write_stored(open_stored(folder), own)
    edit(own / "config.json", model__towers__text__trunk__depth=1)
    message = refused(own)
    assert "shape: text/trunk/layers/0/0/attn/key/kernel is (2, 32, 32), the model needs (1, 32, 32)" in message
    edit(own / "config.json", model__towers__text__trunk__depth=2, xmodal__format=9)
    assert "has format 9" in refused(own)
    edit(own / "config.json", xmodal__format=1)
    assert "has format 1; this version of xmodal reads format 2" in refused(own), "of before data.inputs"
    edit(own / "config.json", xmodal__format=2)
    (own / "tokenizer.json").unlink()
    assert "has no tokenizer.json" in refused(own)


def test_open_clip_models_that_are_not_known(tmp_path):
    vision = dict(image_size=64, layers=3, width=64, patch_size=16, head_width=16)
    model = dict(embed_dim=40, vision_cfg=vision, text_cfg=dict(width=48, heads=3, layers=2))
    write = lambda **changes: folders.write_json(tmp_path / "open_clip_config.json", {"model_cfg": model | changes})
    act = vision | dict(act_kwargs={"approximate": "sometimes"})
    cases = {
        "vision_cfg.attentional_pool=True, needs False": dict(vision_cfg=vision | dict(attentional_pool=True)),
        "text_cfg.pool_type='none', needs one of argmax, eos, first, last": dict(text_cfg=dict(pool_type="none")),
        "a model with timm towers": dict(vision_cfg=dict(timm_model_name="vit_base")),
        "a model with transformers towers": dict(text_cfg=dict(hf_model_name="bert")),
        "act_kwargs {'approximate': 'sometimes'}": dict(vision_cfg=act),
        "model_cfg has no 'embed_dim'": {},
        "has no open_clip_model.safetensors": {},
    }  # fmt: skip
    for message, changes in cases.items():
        write(**changes)
        if "embed_dim" in message:
            folders.write_json(tmp_path / "open_clip_config.json", {"model_cfg": dict(vision_cfg=vision, text_cfg={})})
        assert message in refused(f"open_clip:{tmp_path}")
    (tmp_path / "open_clip_config.json").unlink()
    assert "has no open_clip_config.json" in refused(f"open_clip:{tmp_path}")


# ---------------------------------------------------------------------------------------------------- tokenizers


def test_marks_and_padding_are_those_that_the_folder_states(folder):
    read = lambda: read_tokenizer(folder)[0]
    assert (read().bos_id, read().eos_id, read().pad_id) == (folders.BOS, folders.EOS, folders.PAD)
    edit(folder / "tokenizer_config.json", pad_token={"content": "<eos>"})
    assert read().pad_id == folders.EOS
    # As Gemma's: the marks are those of these switches, not of the file's template.
    edit(folder / "tokenizer_config.json", add_bos_token=False, add_eos_token=True, bos_token="<bos>")
    assert (read().bos_id, read().eos_id) == (None, folders.EOS)


def test_written_tokenizers_read_back_and_lower_case(tmp_path):
    tokenizer = train_bpe(["red heart", "a cat"] * 3, 300)
    write_tokenizer(tmp_path, tokenizer, length=9, preparation=Preparation(lower=True))
    again, length = read_tokenizer(tmp_path)
    assert length == 9 and not same_tokens(tokenizer, again)
    np.testing.assert_array_equal(again.encode(["RED Heart"], 9)[0], tokenizer.encode(["red heart"], 9)[0])
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert {k: settings[k] for k in ("bos_token", "eos_token", "pad_token")} == dict(
        bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    )


def test_exchanged_ids_are_exchanged_everywhere():
    tokenizer = train_bpe(["red heart", "a cat"] * 3, 300)
    last = tokenizer.vocab_size - 1
    swapped = swap_ids(tokenizer, 2, last)
    assert (swapped.eos_id, swapped.bos_id, swapped.pad_id) == (last, 1, 0)
    before, after = (t.encode(["red heart", "a cat"], 12)[0] for t in (tokenizer, swapped))
    exchange = np.arange(last + 1)
    exchange[[2, last]] = last, 2
    np.testing.assert_array_equal(exchange[before], after)
    assert "eos_id is 2" in same_tokens(tokenizer, swapped)
    back = swap_ids(swapped, last, 2)
    assert not same_tokens(tokenizer, back)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("std", (0.2, 0.0, 0.2), r"data\.inputs\.image\.std is \(0\.2, 0\.0, 0\.2\); expected a finite number above 0"),
        ("std", (0.2, float("nan"), 0.2), r"data\.inputs\.image\.std is"),
        ("std", (0.2, -0.1, 0.2), r"data\.inputs\.image\.std is"),
        ("std", (0.2, 0.3), r"data\.inputs\.image\.std is"),
        ("mean", (0.2, float("inf"), 0.2), r"data\.inputs\.image\.mean is .*a finite number for each of R, G, B"),
        ("mean", (0.2, "0.2", 0.2), r"data\.inputs\.image\.mean is"),
    ],
)
def test_pixels_are_normalised_by_what_they_can_be(folder, tmp_path, key, value, message):
    write_stored(open_stored(f"hf:{folder}"), tmp_path / "own")
    edit(tmp_path / "own" / "config.json", **{f"data__inputs__image__{key}": value})
    numbers = all(isinstance(x, float) for x in value) and len(value) == 3
    of_its_type = rf"/config\.json: data\.inputs\.image\.{key}"
    with pytest.raises(ConfigError, match=f"{tmp_path}/own" + (f": {message}" if numbers else of_its_type)):
        open_stored(tmp_path / "own")
    entry = dict(type="image", size=32) | {key: value}
    with pytest.raises(DataError, match=f"^{message}"):
        open_inputs(dict(image=entry), MODALITIES)["image"].check(device=True)
    if numbers:
        edit(folder / "preprocessor_config.json", **{f"image_{key}": value})
        finite = all(map(math.isfinite, value))
        theirs = f"{folder}: {message}" if finite else rf"image_{key} is \[.*\], needs three numbers"
        with pytest.raises(InteropError, match=theirs):
            open_stored(f"hf:{folder}")
