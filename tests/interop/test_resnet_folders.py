"""ResNets in folders of transformers and open_clip: in, out, as programs, and as the start of a run."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import xmodal
from tests.data.tiny_shards import encode, write_tar
from tests.interop import folders
from xmodal.commands.evaluate import evaluate
from xmodal.config import make_spec
from xmodal.evaluation.health import uniformity
from xmodal.interop.export import export
from xmodal.interop.tables import InteropError
from xmodal.models.model import ModelSpec
from xmodal.paths import flatten_paths
from xmodal.stored.opening import open_stored
from xmodal.stored.project import write_stored
from xmodal.stored.starting import resized

PIXELS = {"resnet": 32, "resnet_classifier": 32, "clip_resnet": 64}


def folder_of(name, folder):
    """A folder as the reference writes it, with the counters that PyTorch keeps beside running statistics."""
    golden, size, clip = folders.load(name), PIXELS[name], name == "clip_resnet"
    folder.mkdir()
    weights = folders.part(golden, "weights/")
    norms = [key.removesuffix("running_var") for key in weights if key.endswith(".running_var")]
    weights |= {f"{norm}num_batches_tracked": np.array(7, np.int64) for norm in norms}
    numbers = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
    config = json.loads(str(golden["config"]))
    if clip:
        preparation = dict(size=size, mean=numbers[0], std=numbers[1], interpolation="bicubic", resize_mode="shortest")
        folders.write_json(folder / "open_clip_config.json", config | dict(preprocess_cfg=preparation))
        folders.write_json(folder / "tokenizer.json", folders.tokenizer())
        marks = dict(pad_token="<pad>", eos_token="<eos>", model_max_length=folders.LENGTH)
        folders.write_json(folder / "tokenizer_config.json", marks)
    else:
        folders.write_json(folder / "config.json", config)
        shape = dict(size=dict(shortest_edge=size + 4), crop_size=dict(height=size, width=size), do_center_crop=True)
        rest = dict(do_resize=True, do_rescale=True, resample=3, rescale_factor=1 / 255)
        processor = shape | rest | dict(image_mean=numbers[0], image_std=numbers[1])
        folders.write_json(folder / "preprocessor_config.json", processor)
    save_file(weights, folder / ("open_clip_model.safetensors" if clip else "model.safetensors"))
    return f"{'open_clip' if clip else 'hf'}:{folder}"


@pytest.mark.parametrize("name", PIXELS)
def test_in_and_out_again(name, tmp_path):
    where = folder_of(name, tmp_path / "in")
    stored, kind = open_stored(where), where.partition(":")[0]
    assert stored.spec.towers["image"].embed.image_size == PIXELS[name]
    done = export(stored, tmp_path / "out", to=kind)
    assert set(done.differences.values()) == {0.0}
    weights, settings = {"hf": ("model", "config"), "open_clip": ("open_clip_model", "open_clip_config")}[kind]
    before, after = (load_file(f / f"{weights}.safetensors") for f in (tmp_path / "in", tmp_path / "out"))
    assert before.keys() == after.keys()
    for key in before:
        if key.endswith("num_batches_tracked"):
            assert after[key].dtype == np.int64
        else:
            np.testing.assert_array_equal(before[key], after[key], err_msg=key)
    config, wanted = (json.loads((f / f"{settings}.json").read_text()) for f in (tmp_path / "out", tmp_path / "in"))
    if kind == "hf":
        assert {key: wanted.get(key, value) for key, value in config.items()} | dict(dtype="float32") == config
    else:
        assert config["model_cfg"]["vision_cfg"] == wanted["model_cfg"]["vision_cfg"]


OTHERS = {  # changes of config.json: messages
    "task": (
        dict(architectures=["ResNetBackbone"]),
        "config.json: architectures is ResNetBackbone: known are ResNetModel, ResNetForImageClassification",
    ),
    "activation": (dict(hidden_act="gelu"), "hidden_act is 'gelu', needs 'relu'"),
    "block": (
        dict(layer_type="basic"),
        "shape: encoder.stages.0.layers.0.layer.0.convolution.weight is (2, 6, 1, 1), the model needs (8, 6, 3, 3)",
        "unexpected: encoder.stages.0.layers.0.layer.2.convolution.weight",
    ),
    "depth": (dict(depths=[1, 3, 3]), "missing: encoder.stages.2.layers.2.layer.0.convolution.weight (6, 24, 1, 1)"),
    "classifier": (
        dict(architectures=["ResNetForImageClassification"], id2label={"0": "ant"}, label2id={"ant": 0}),
        "the weights do not fit the model",
        "missing: resnet.embedder.embedder.convolution.weight (6, 3, 7, 7)",
    ),
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_folder_of_another_architecture_is_refused(case, tmp_path):
    where, path = folder_of("resnet", tmp_path / "in"), tmp_path / "in" / "config.json"
    changes, *messages = OTHERS[case]
    folders.write_json(path, json.loads(path.read_text()) | changes)
    with pytest.raises(InteropError) as error:
        open_stored(where)
    for message in messages:
        assert message in str(error.value)


def test_our_own_folder_and_programs_keep_the_statistics(tmp_path):
    stored = open_stored(folder_of("clip_resnet", tmp_path / "in"))
    write_stored(stored, tmp_path / "own")
    again = open_stored(tmp_path / "own")
    given, kept = flatten_paths(stored.params), flatten_paths(again.params)
    assert given.keys() == kept.keys() and all(np.array_equal(given[path], kept[path]) for path in given)
    done = export(again, tmp_path / "out", to="jax")  # compares its programs with the model
    assert max(done.differences.values()) < 1e-5
    arrays = np.load(tmp_path / "out" / "image.npz")
    assert any(path.startswith("statistics/embed/") for path in arrays)
    assert not any(path.startswith("statistics/") for path in np.load(tmp_path / "out" / "text.npz"))
    bare = open_stored(tmp_path / "own")
    del bare.params["statistics"]["image"]["embed"]["stem"]
    with pytest.raises(ValueError, match=r"missing .'statistics/image/embed/stem/0/norm/mean'"):
        xmodal.inference.Model(bare).embed_image(folders.picture())


def test_positions_of_the_pool_are_resized(tmp_path):
    stored = open_stored(folder_of("clip_resnet", tmp_path / "in"))
    config = stored.config.copy_and_resolve_references()
    config.model.towers.image.embed.image_size = 128
    theirs, ours = stored.spec, make_spec(ModelSpec, config.model, where="model")
    table = stored.params["image"]["pool"]["position"]
    found = resized("image/pool/position", table, (17, table.shape[1]), theirs, ours)
    assert found.shape == (17, table.shape[1])
    np.testing.assert_array_equal(found[0], table[0])
    # The corners of a grid that is twice as large lie nearest to those of the smaller one.
    np.testing.assert_allclose(found[1:].reshape(4, 4, -1).mean((0, 1)), table[1:].mean(0), rtol=0.05, atol=0.05)


def test_running_statistics_are_evaluated_with_the_weights(tmp_path):
    """`eval --model` of an imported BatchNorm model gives the figures of what `xmodal.load` embeds."""
    where = folder_of("clip_resnet", tmp_path / "in")
    samples = {f"{i}": {"png": encode(i), "txt": folders.TEXTS[i % 2].encode()} for i in range(5)}
    entry = dict(type="embeddings", urls=str(write_tar(tmp_path / "x.tar", samples)), batch_size=8)
    folders.write_json(tmp_path / "suite.json", dict(evals=dict(x=entry)))
    found = evaluate(where, suite=tmp_path / "suite.json").results["embeddings"]["x"]
    model = xmodal.load(where, batch_size=8)
    images = model.embed_image([samples[f"{i}"]["png"] for i in range(5)])
    assert found["image"]["uniformity"] == pytest.approx(uniformity(images.astype(np.float64)), abs=1e-5)
