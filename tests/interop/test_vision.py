"""Image towers without texts in Hugging Face folders: in, out, and as the start of a run."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import xmodal
from tests.interop import folders
from xmodal.__main__ import main
from xmodal.interop.export import export
from xmodal.interop.preprocessing import shown_size
from xmodal.stored.opening import open_stored
from xmodal.stored.project import write_stored

NAMES = ("dinov2", "dinov2_with_registers", "vit", "vit_classifier")
PIXELS = 32  # DINOv2 makes pictures of any size


def hugging_face(folder, name):
    """A Hugging Face folder; a ViT's pictures are squares of the size of its positions."""
    golden = folders.load(name)
    config, weights = json.loads(str(golden["config"])), folders.part(golden, "weights/")
    if name == "vit":  # the golden one is not square
        config["image_size"], rows = 24, "embeddings.position_embeddings"
        weights[rows] = weights[rows][:, :10]
    size = PIXELS if name.startswith("dinov2") else config["image_size"]
    folder.mkdir()
    folders.write_json(folder / "config.json", config)
    save_file(weights, folder / "model.safetensors")
    shape = dict(size=dict(shortest_edge=size + 4), crop_size=dict(height=size, width=size), do_center_crop=True)
    numbers = dict(image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.25, 0.3], resample=3, rescale_factor=1 / 255)
    folders.write_json(folder / "preprocessor_config.json", shape | numbers | dict(do_resize=True, do_rescale=True))
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_in_and_out_again(name, tmp_path):
    given = hugging_face(tmp_path / "in", name)
    stored = open_stored(f"hf:{given}")
    assert stored.tokenizer is None
    tower, image = stored.spec.towers["image"], stored.config.data.inputs.image
    assert (image.size, image.resize) == (tower.embed.image_size, tower.embed.image_size + 4)
    done = export(stored, tmp_path / "out", to="hf")
    assert done.differences == {"image": 0.0}
    before, after = load_file(given / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    for key in before.keys() - {"embeddings.mask_token"}:
        np.testing.assert_array_equal(before[key], after[key], err_msg=key)
    config, wanted = (json.loads((f / "config.json").read_text()) for f in (tmp_path / "out", given))
    assert {key: wanted.get(key, value) for key, value in config.items()} | dict(dtype="float32") == config
    card = (tmp_path / "out" / "README.md").read_text()
    task = "image-classification" if name == "vit_classifier" else "image-feature-extraction"
    assert f"pipeline_tag: {task}\n" in card


def test_a_vit_without_pooler(tmp_path):
    folder = hugging_face(tmp_path / "in", "vit")
    weights = load_file(folder / "model.safetensors")
    weights = {key: a for key, a in weights.items() if not key.startswith("pooler.")}
    save_file(weights, folder / "model.safetensors")
    stored = open_stored(f"hf:{folder}")
    assert not stored.spec.towers["image"].pooled.pooler
    export(stored, tmp_path / "out", to="hf")
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == weights.keys()


def test_the_command_brings_in_what_embeds(tmp_path, capsys):
    folder = hugging_face(tmp_path / "in", "dinov2")
    main(["import", f"hf:{folder}", "--out", str(tmp_path / "own")])
    assert "32 pixels" in capsys.readouterr().out
    model, same = xmodal.load(f"hf:{folder}"), xmodal.load(tmp_path / "own")
    picture = folders.picture()
    np.testing.assert_array_equal(model.embed_image(picture), same.embed_image(picture))
    assert model.inputs == ("image",)


def test_the_classes_keep_their_names(tmp_path):
    stored = open_stored(f"hf:{hugging_face(tmp_path / 'in', 'vit_classifier')}")
    assert stored.config.data.inputs.label.classes == ("ant", "bee", "cat", "dog", "elk")
    write_stored(stored, tmp_path / "own")
    assert open_stored(tmp_path / "own").config.data.inputs.label.classes == stored.config.data.inputs.label.classes
    export(open_stored(tmp_path / "own"), tmp_path / "out", to="hf")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["id2label"]["3"] == "dog" and config["label2id"]["elk"] == 4


@pytest.mark.parametrize(
    "config, size",
    [
        (dict(size=dict(shortest_edge=256), crop_size=dict(height=224, width=224)), 224),
        (dict(size=dict(shortest_edge=256), crop_size=224, do_center_crop=True), 224),
        (dict(size=dict(height=384, width=384), crop_size=dict(height=224, width=224), do_center_crop=False), 384),
        (dict(size=192), 192),
        (dict(), 518),
    ],
)
def test_pictures_are_as_large_as_the_processor_makes_them(config, size):
    assert shown_size(config, 518) == size
