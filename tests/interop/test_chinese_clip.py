"""Chinese-CLIP in Hugging Face folders: in, out, its Chinese texts, and a recipe of it."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import xmodal
from data_pipelines.text.tokenizers import wordpiece
from tests import tiny_runs
from tests.interop import folders
from xmodal.config import load_config
from xmodal.interop.export import export
from xmodal.models import presets
from xmodal.stored.opening import open_stored
from xmodal.stored.project import write_stored

PIXELS = 40


def hugging_face(folder, *, vocab_only=False):
    """A folder as published: both sides of the images are resized, and texts have BERT's tokenizer."""
    golden = folders.load("chinese_clip")
    folder.mkdir()
    folders.write_json(folder / "config.json", json.loads(str(golden["config"])))
    save_file(folders.part(golden, "weights/"), folder / "model.safetensors")
    square = dict(height=PIXELS, width=PIXELS)
    numbers = dict(image_mean=[0.48145466, 0.4578275, 0.40821073], image_std=[0.26862954, 0.26130258, 0.27577711])
    processor = dict(feature_extractor_type="ChineseCLIPFeatureExtractor", size=square, crop_size=square, resample=3)
    flags = dict(do_resize=True, do_center_crop=False, do_normalize=True, do_convert_rgb=True)
    folders.write_json(folder / "preprocessor_config.json", processor | numbers | flags)
    vocab = json.loads(str(golden["vocab"]))
    if vocab_only:
        (folder / "vocab.txt").write_text("\n".join(vocab) + "\n", encoding="utf-8")
    else:
        wordpiece(vocab, lower=True).save(str(folder / "tokenizer.json"))
    folders.write_json(folder / "tokenizer_config.json", dict(pad_token="[PAD]", do_lower_case=True))
    return folder


@pytest.mark.parametrize("vocab_only", [False, True])
def test_chinese_texts_are_embedded_as_the_reference_does(vocab_only, tmp_path):
    golden = folders.load("chinese_clip")
    model = xmodal.load(f"hf:{hugging_face(tmp_path / 'in', vocab_only=vocab_only)}")
    found = model.embed_text(json.loads(str(golden["texts"])))
    np.testing.assert_allclose(found, golden["outputs/texts"], atol=1e-6)


def test_in_and_out_again(tmp_path):
    given = hugging_face(tmp_path / "in")
    stored = open_stored(f"hf:{given}")
    image, text = stored.config.data.inputs.image, stored.config.data.inputs.text
    assert (image.size, image.crop, image.resize) == (PIXELS, "squash", 0) and text.length == 14
    assert stored.config.objectives.contrastive.type == "softmax"
    write_stored(stored, tmp_path / "own")
    done = export(open_stored(tmp_path / "own"), tmp_path / "out", to="hf")
    assert max(done.differences.values()) < 1e-30
    before, after = load_file(given / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    for key in before:
        np.testing.assert_array_equal(before[key], after[key], err_msg=key)
    again = open_stored(f"hf:{tmp_path / 'out'}")
    assert again.spec == stored.spec and again.config.data.inputs.image == stored.config.data.inputs.image
    read = lambda folder, name: json.loads((folder / name).read_text())
    config = read(tmp_path / "out", "config.json")
    assert (config["model_type"], config["architectures"]) == ("chinese_clip", ["ChineseCLIPModel"])
    assert read(tmp_path / "out", "preprocessor_config.json")["image_processor_type"] == "ChineseCLIPImageProcessor"


def test_a_tiny_recipe_is_trained_says_how_it_leaves_and_leaves(tmp_path, capsys):
    config = load_config("configs/align.py:emoji")
    config.model = presets.dual_tower(
        image=presets.image_tower(16, 1, 2, patch_size=16, embed_dim=8),
        text=presets.bert_tower(16, 1, 2, pooler=False, embed_dim=8, projection_bias=False, dropout=0.0),
    )
    config.data.inputs.image.size, config.data.inputs.text.length, config.data.threads, config.batch_size = 32, 8, 1, 32
    config.schedule.update(total="2steps", warmup="0%")
    config.checkpoint.update(every=0, best="")
    config.log.update(every=1, tensorboard=False)
    config.evals = {}
    tiny_runs.run_config(tmp_path / "run", config)
    line = next(line for line in capsys.readouterr().out.splitlines() if "leaves as" in line)
    assert "hf chinese_clip, xmodal, jax" in line
    export(open_stored(tmp_path / "run"), tmp_path / "hf", to="hf")
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["projection_dim"] == 8
