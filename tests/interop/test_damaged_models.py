"""Damaged model folders: whatever a file holds, it is read or refused in a few words, at once."""

import json
import random
import struct

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from data_pipelines.errors import DataError
from tests import fuzzing
from tests.interop import folders
from xmodal.config import ConfigError, make_spec
from xmodal.interop import FAMILIES, OPEN_CLIP, open_clip
from xmodal.interop.huggingface import family_of, model_config
from xmodal.interop.preprocessing import from_open_clip, from_processor, read_processor
from xmodal.interop.tables import InteropError
from xmodal.interop.weights import open_weights
from xmodal.models.model import ModelSpec
from xmodal.stored.opening import open_stored
from xmodal.stored.project import write_stored

USER_ERRORS = (ConfigError, DataError)
GOLDEN = {  # by model_type: the golden file with a config.json of it
    "clip": "clip_vit", "siglip": "siglip", "siglip2": "siglip2", "vit": "vit_classifier", "dinov2": "dinov2",
    "dinov2_with_registers": "dinov2_with_registers", "bert": "bert", "convnext": "convnext_classifier",
    "resnet": "resnet", "efficientnet": "efficientnet", "align": "align", "chinese_clip": "chinese_clip",
}  # fmt: skip


def settings(name):
    return json.loads(str(folders.load(GOLDEN[name])["config"]))


def build(family, model):
    """The table of the arrays, with errors as a folder gives them."""
    spec = make_spec(ModelSpec, model, "model")
    try:
        family.table(spec)
    except ValueError as error:  # of shapes: "image size (40, 40) is not a multiple of the patch size 32"
        raise InteropError(str(error)) from None


@pytest.mark.parametrize("name", FAMILIES)
def test_damaged_configurations(name, fuzz_cases):
    """From a config.json to a checked spec and its table of arrays."""
    given = settings(name)

    def read(document):
        if not isinstance(document, dict):
            raise InteropError("read_json refuses it")
        build(family_of(document), model_config(document))

    for seed in range(4 * fuzz_cases):
        document = fuzzing.damaged_json(given, seed)
        fuzzing.survives(lambda document=document: read(document), USER_ERRORS, f"{name}, seed {seed}")


def test_damaged_open_clip_configurations(fuzz_cases):
    given = json.loads(str(folders.load("clip_vit_wide")["config"]))["model_cfg"]

    def read(document):
        if not isinstance(document, dict):
            raise InteropError("refused before")
        family = OPEN_CLIP[open_clip.kind_of(document)]
        build(family, family.model_config(document))

    allowed = (*USER_ERRORS, KeyError)  # open_stored says which key is missing, and which kind is not known
    for seed in range(4 * fuzz_cases):
        document = fuzzing.damaged_json(given, seed)
        fuzzing.survives(lambda document=document: read(document), allowed, f"seed {seed}")


@pytest.mark.parametrize("part", ["vision_cfg", "text_cfg"])
def test_a_quick_gelu_takes_no_settings(part):
    given = json.loads(str(folders.load("clip_vit_wide")["config"]))["model_cfg"] | dict(quick_gelu=True)
    given = given | {part: given[part] | dict(act_kwargs={"approximate": "tanh"})}
    with pytest.raises(InteropError, match="takes none"):
        open_clip.model_config(given)


def test_damaged_processors(tmp_path, fuzz_cases):
    kinds = [json.loads(str(a)) for name, a in folders.load("processors").items() if name.startswith("config/")]
    kinds.append(json.loads((folders.hugging_face(tmp_path / "clip") / "preprocessor_config.json").read_text()))
    path = tmp_path / "preprocessor_config.json"
    for seed in range(2 * fuzz_cases):
        for kind, given in enumerate(kinds):
            path.write_text(json.dumps(fuzzing.damaged_json(given, seed)))
            read = lambda: from_processor(read_processor(tmp_path), 40, "x")
            fuzzing.survives(read, USER_ERRORS, f"kind {kind}, seed {seed}")
    given = dict(
        size=[40, 40], mode="RGB", mean=[0.5] * 3, std=[0.5] * 3, interpolation="bicubic", resize_mode="squash"
    )
    for seed in range(2 * fuzz_cases):
        document = fuzzing.damaged_json(given, seed)
        read = lambda document=document: from_open_clip(document if isinstance(document, dict) else {}, 40, "x")
        fuzzing.survives(read, USER_ERRORS, f"open_clip, seed {seed}")


def test_damaged_weights(tmp_path, fuzz_cases):
    arrays = {"a": np.ones((3, 4), np.float32), "b": np.zeros((2,), ml_dtypes.bfloat16), "c": np.ones((), np.float16)}
    save_file(arrays, tmp_path / "model.safetensors")
    data = (tmp_path / "model.safetensors").read_bytes()
    index = json.dumps({"metadata": {}, "weight_map": dict.fromkeys(arrays, "whole.safetensors")}).encode()

    def read():
        weights = open_weights(tmp_path)
        return {name: np.asarray(weights[name], np.float32) for name in weights}

    for seed in range(6 * fuzz_cases):
        (tmp_path / "model.safetensors").write_bytes(fuzzing.damaged(data, seed))
        fuzzing.survives(read, USER_ERRORS, f"seed {seed}")
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "whole.safetensors").write_bytes(data)
    (tmp_path / "model.safetensors.index.json").write_bytes(index.replace(b"whole", b"whole" * 60))
    with pytest.raises(InteropError, match=r"names a file of 312 letters, 'wholewhole"):
        read()
    for seed in range(2 * fuzz_cases):
        (tmp_path / "model.safetensors.index.json").write_bytes(fuzzing.damaged(index, seed))
        fuzzing.survives(read, USER_ERRORS, f"index, seed {seed}")


@pytest.mark.parametrize("kind", ["own", "hf", "bert", "open_clip"])
def test_damaged_folders(kind, tmp_path, fuzz_cases):
    """One file of a whole folder is damaged, as bytes or as a document."""
    folder = make(kind, tmp_path)
    prefix = {"hf": "hf:", "bert": "hf:"}.get(kind, "")
    there = (path for path in folder.iterdir() if path.suffix in (".json", ".safetensors"))
    files = sorted(path for path in there if not path.name.startswith(("tokenizer", "special_tokens")))
    draw = random.Random(7)
    for seed in range(fuzz_cases // 3):
        path = draw.choice(files)
        before = path.read_bytes()
        if path.suffix == ".json" and draw.random() < 0.7:
            path.write_text(json.dumps(fuzzing.damaged_json(json.loads(before), seed)))
        else:
            path.write_bytes(fuzzing.damaged(before, seed))
        fuzzing.survives(lambda: open_stored(f"{prefix}{folder}"), USER_ERRORS, f"{kind}/{path.name}, seed {seed}")
        path.write_bytes(before)
    open_stored(f"{prefix}{folder}")


def make(kind, tmp_path):
    if kind == "bert":
        return folders.bert(tmp_path / "bert")
    given = folders.hugging_face(tmp_path / "hf")
    if kind == "hf":
        return given
    if kind == "own":
        write_stored(open_stored(given), tmp_path / "own")
        return tmp_path / "own"
    from xmodal.interop.export import export

    export(open_stored(given), tmp_path / "open_clip", to="open_clip")
    return tmp_path / "open_clip"


# ---------------------------------------------------------------------------------------------------- by name


def refused(where):
    with pytest.raises(ConfigError) as error:
        open_stored(where)
    assert len(str(error.value)) < 600
    return str(error.value)


def change(path, **changes):
    document = json.loads(path.read_text())
    for key, value in changes.items():
        *parents, last = key.split("__")
        box = document
        for parent in parents:
            box = box[parent]
        box[last] = value
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    "key, value, said",
    [
        ("text_config__num_hidden_layers", 10**9, "text_config.num_hidden_layers is 1000000000, needs a whole number"),
        (
            "vision_config__hidden_size",
            10**9,
            "vision_config.hidden_size is 1000000000, needs a whole number",
        ),
        ("projection_dim", -1, "projection_dim is -1, needs"),
        ("vision_config__layer_norm_eps", "1e-5", "vision_config.layer_norm_eps is '1e-5', needs a number"),
        ("vision_config__layer_norm_eps", float("nan"), "vision_config.layer_norm_eps is nan, needs a number"),
        ("text_config", "x", "text_config is 'x', needs an object"),
        ("model_type", ["clip"], "model_type ['clip'] cannot be converted"),
    ],
)
def test_numbers_beyond_any_model_are_refused_by_name_before_the_work(key, value, said, tmp_path):
    folder = folders.hugging_face(tmp_path / "hf")
    change(folder / "config.json", **{key: value})
    assert said in refused(f"hf:{folder}")


def test_our_own_and_open_clips_numbers_are_bounded_too(tmp_path):
    own = make("own", tmp_path / "a")
    change(own / "config.json", model__towers__text__trunk__depth=10**9)
    assert "model.towers.text.trunk.depth is 1000000000, at most 1,000 is read" in refused(own)
    change(own / "config.json", model__towers__text__trunk__depth=2, data__inputs__image__size="x")
    assert "data.inputs.image.size is 'x'" in refused(own)
    there = make("open_clip", tmp_path / "b")
    change(there / "open_clip_config.json", model_cfg__text_cfg__layers=10**9)
    assert "model_cfg.text_cfg.layers is 1000000000" in refused(there)


def test_types_of_weights_are_said(tmp_path):
    folder = folders.hugging_face(tmp_path / "hf")
    path = folder / "model.safetensors"
    weights = load_file(path)
    name = "text_projection.weight"
    save_file(weights | {name: weights[name].astype(np.int8)}, path)
    assert f"{name} has the type I8; read are F64, F32, F16, BF16" in refused(f"hf:{folder}")
    data, shape = b"", list(weights[name].shape)
    header = {name: dict(dtype="F8_E4M3", shape=shape, data_offsets=[0, weights[name].size])}
    data = bytes(weights[name].size)
    for other, array in weights.items():
        if other != name:
            array = np.ascontiguousarray(array)
            offsets = [len(data), len(data) + array.nbytes]
            header[other] = dict(dtype="F32", shape=list(array.shape), data_offsets=offsets)
            data += array.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    assert f"{name} has the type F8_E4M3" in refused(f"hf:{folder}")


def test_a_configuration_nested_without_end(tmp_path):
    folder = folders.hugging_face(tmp_path / "hf")
    (folder / "config.json").write_text("[" * 200_000)
    assert "config.json is not JSON" in refused(f"hf:{folder}")
