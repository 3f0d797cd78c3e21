"""Settings of a config.json: every key is read, fixed, idle or refused by name, as transformers' classes have them."""

import json

import pytest

import xmodal
from tests.interop import folders
from xmodal.config import ConfigError, make_spec
from xmodal.interop import FAMILIES
from xmodal.interop.huggingface import model_config
from xmodal.models.model import ModelSpec
from xmodal.stored.opening import open_stored

FILE = json.loads((folders.GOLDEN / "configurations.json").read_text())
DEFAULTS = {document["model_type"]: document for document in FILE["defaults"].values()}
PARTS = {name: ("text_config", "vision_config") if "text_config" in DEFAULTS[name] else ("",) for name in FAMILIES}


def spec_of(document):
    return make_spec(ModelSpec, model_config(document), "model")


@pytest.mark.parametrize("name", FAMILIES)
def test_what_a_file_leaves_out_has_the_classs_default(name):
    """The whole file of a class's defaults is read, and says nothing that a file of one line does not."""
    assert spec_of(dict(model_type=name)) == spec_of(DEFAULTS[name])


@pytest.mark.parametrize("case", FILE["old"])
def test_sections_of_old_files_win_as_they_do_in_transformers(case):
    kind = {"CLIP": "clip", "ChineseCLIP": "chinese_clip"}[case.split("/")[0]]
    given, read = FILE["old"][case]["given"], FILE["old"][case]["read"]
    assert spec_of(given | dict(model_type=kind)) == spec_of(read)


def test_old_sections_reach_the_embeddings_and_the_place_of_pooling(tmp_path):
    folder = folders.hugging_face(tmp_path / "hf")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    before = xmodal.load(f"hf:{folder}").embed_text(folders.TEXTS)
    path.write_text(json.dumps(config | dict(text_config_dict=config["text_config"] | dict(hidden_act="relu"))))
    assert abs(xmodal.load(f"hf:{folder}").embed_text(folders.TEXTS) - before).max() > 1e-3
    path.write_text(json.dumps(config | dict(text_config_dict=config["text_config"] | dict(eos_token_id=8))))
    with pytest.raises(ConfigError, match=r"text_config_dict\.eos_token_id: this model pools a text at the id 8"):
        open_stored(f"hf:{folder}")


@pytest.mark.parametrize("name", FAMILIES)
def test_settings_that_may_change_the_model_are_refused_by_name(name):
    for part in PARTS[name]:
        document = json.loads(json.dumps(DEFAULTS[name]))
        box, where = (document[part], f"{part}.") if part else (document, "")
        channels = {} if part == "text_config" or name == "bert" else {"num_channels": (4, "is 4, needs 3")}
        changes = channels | {
            "attention_bias": (False, "=False is not known"), "quantization_config": ({"bits": 8}, "quantised weights"),
            "pruned_heads": ({"0": [1]}, "needs {}"), "is_decoder": (True, "needs False"),
        }  # fmt: skip
        for key, (value, said) in changes.items():
            before = dict(box)
            box[key] = value
            with pytest.raises(ConfigError) as error:
                model_config(document)
            assert f"{where}{key}" in str(error.value) and said in str(error.value)
            box.clear()
            box.update(before)


def test_more_that_was_accepted_without_being_used():
    changes = {
        "vit": dict(hidden_dropout_prob=0.1), "dinov2": dict(drop_path_rate=0.1), "siglip": dict(text_config_dict={}),
        "clip": dict(architectures=["CLIPForX"]), "bert": dict(position_embedding_type="relative_key"),
        "align": dict(vision_config_dict={"image_size": 9}), "convnext": dict(num_stages=3),
    }  # fmt: skip
    for name, change in changes.items():
        with pytest.raises(ConfigError, match=next(iter(change))):
            model_config(DEFAULTS[name] | change)
    assert not spec_of(DEFAULTS["vit"]).towers["image"].embed_dim
    ids = dict(architectures=["ViTForImageClassification"], id2label={"0": "a", "2": "b"})
    with pytest.raises(ConfigError, match=r"id2label is .*, needs a name for each of the ids 0, 1, 2"):
        model_config(DEFAULTS["vit"] | ids)


@pytest.mark.parametrize("name, part, key", [
    ("clip", "text_config", "attention_dropout"), ("siglip", "vision_config", "attention_dropout"),
    ("vit", "", "attention_probs_dropout_prob"), ("dinov2", "", "attention_probs_dropout_prob"),
    ("chinese_clip", "text_config", "attention_probs_dropout_prob"),
])  # fmt: skip
def test_dropout_of_the_attention_is_read_and_written(name, part, key):
    document = json.loads(json.dumps(DEFAULTS[name]))
    (document[part] if part else document)[key] = 0.25
    spec = spec_of(document)
    assert sum(s.attn_dropout == 0.25 for t in spec.towers.values() for s in t.trunk.pattern[0]) == 1
    written = FAMILIES[name].to_config(spec)
    assert (written[part] if part else written)[key] == 0.25


def test_padding_of_a_processor_is_refused_where_it_would_change_the_images(tmp_path):
    folder = folders.hugging_face(tmp_path / "hf")
    path = folder / "preprocessor_config.json"
    processor = json.loads(path.read_text())
    pixels = folders.PIXELS["clip_vit"]
    pads = dict(do_pad=True, pad_size=dict(height=pixels, width=pixels))
    path.write_text(json.dumps(processor | pads))
    assert open_stored(f"hf:{folder}").params
    path.write_text(json.dumps(processor | pads | dict(pad_size=dict(height=pixels, width=pixels + 1))))
    with pytest.raises(ConfigError, match="do_pad is true and pad_size"):
        open_stored(f"hf:{folder}")
    path.write_text(json.dumps(processor | dict(do_sharpen=True)))
    with pytest.raises(ConfigError, match="do_sharpen is True, needs to be taken out"):
        open_stored(f"hf:{folder}")
