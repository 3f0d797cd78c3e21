"""Models out and in again: nothing is lost, and what a format cannot express is refused."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

import xmodal
from tests import tiny_runs
from tests.interop import folders
from xmodal.__main__ import main
from xmodal.commands import export_model
from xmodal.interop import export as export_lib
from xmodal.interop import preprocessing
from xmodal.interop.export import export
from xmodal.interop.tables import InteropError
from xmodal.interop.weights import Weights
from xmodal.paths import flatten_paths
from xmodal.stored.opening import open_stored
from xmodal.stored.project import write_stored


@pytest.fixture(scope="module", params=["clip_vit", "siglip"])
def stored(request, tmp_path_factory):
    return open_stored(folders.hugging_face(tmp_path_factory.mktemp("in") / request.param, request.param))


def name_of(stored):
    return "clip_vit" if stored.spec.towers["image"].pool == "cls" else "siglip"


def read(folder, name="model.safetensors"):
    weights = Weights([folder / name])
    return {key: weights[key] for key in weights}


def test_hugging_face_gets_back_what_it_gave(stored, tmp_path):
    done = export(stored, tmp_path / "out", to="hf")
    assert done.differences == {"image": 0.0, "text": 0.0}
    golden, back = folders.part(folders.load(name_of(stored)), "weights/"), read(tmp_path / "out")
    assert back.keys() == golden.keys()
    for key, weight in golden.items():
        np.testing.assert_array_equal(back[key], weight, err_msg=key)
    given = json.loads(str(folders.load(name_of(stored))["config"]))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    for part in ("vision_config", "text_config"):
        for key, value in config[part].items():
            assert given[part].get(key, value) == value or key.endswith("token_id"), (part, key)
    marks = {k: config["text_config"].get(f"{k}_token_id") for k in ("bos", "eos", "pad")}
    clip = name_of(stored) == "clip_vit"
    assert marks == dict(bos=97 if clip else None, eos=7, pad=1 if clip else 7)
    settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert settings["model_max_length"] == 12 and settings["pad_token"] == ("<pad>" if clip else "<eos>")
    assert ("attention_mask" in settings["model_input_names"]) == clip, "SigLIP sees its padding"
    card = (tmp_path / "out" / "README.md").read_text()
    assert "differ" not in card.split("## Export")[0] and "\n# out\n" in card
    if clip:
        assert 'candidate_labels=["a cat", "a dog"], hypothesis_template="{}")' in card


def test_files_of_an_export_have_the_usual_mode(stored, tmp_path):
    export(stored, tmp_path / "out", to="hf")
    (tmp_path / "mine").touch()
    modes = {path.stat().st_mode for path in (tmp_path / "out").iterdir()}
    assert modes == {(tmp_path / "mine").stat().st_mode}


def test_what_pipelines_make_of_transparent_images_is_noted():
    (note,) = preprocessing.pipeline_note(dict(background="white"))
    assert "shown them on white, and transformers' pipelines drop the alpha channel" in note
    assert not preprocessing.pipeline_note(dict(background="drop"))


def test_the_labels_of_the_card_are_in_the_language_of_the_data():
    gallery = lambda *texts: {"retrieval/x": {"image_to_text": [{"image": "data:", "truth": list(texts)}]}}
    assert export_model._mostly_chinese(gallery("红色的心", "a 笑脸"))
    assert not export_model._mostly_chinese(gallery("a red heart", "笑脸"))
    assert not export_model._mostly_chinese(gallery("赤いハート")) and not export_model._mostly_chinese({})


def test_bfloat16_weights(stored, tmp_path):
    done = export(stored, tmp_path / "out", to="hf", dtype="bf16")
    assert 0 < done.differences["image"] < 5e-2
    assert all(str(a.dtype) == "bfloat16" for a in read(tmp_path / "out").values())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    assert not open_stored(tmp_path / "out").config.data.inputs.text.lower


def test_open_clip_and_back(stored, tmp_path):
    if name_of(stored) == "siglip":
        with pytest.raises(InteropError, match="SigLIP's image tower comes from timm"):
            export(stored, tmp_path / "out", to="open_clip")
        assert not list(tmp_path.iterdir()), "nothing is left behind"
        return
    done = export(stored, tmp_path / "out", to="open_clip")
    assert done.differences == {"image": 0.0, "text": 0.0}
    weights = read(tmp_path / "out", "open_clip_model.safetensors")
    packed = weights["visual.transformer.resblocks.2.attn.in_proj_weight"]
    golden = folders.part(folders.load("clip_vit"), "weights/vision_model.encoder.layers.2.self_attn.")
    np.testing.assert_array_equal(packed, np.concatenate([golden[f"{p}_proj.weight"] for p in "qkv"]))
    model = json.loads((tmp_path / "out" / "open_clip_config.json").read_text())["model_cfg"]
    assert model["text_cfg"]["pool_type"] == "eos" and model["text_cfg"]["eos_id"] == 7 and model["quick_gelu"]
    again = open_stored(f"open_clip:{tmp_path / 'out'}")
    assert again.spec == stored.spec
    a, b = flatten_paths(again.params), flatten_paths(stored.params)
    assert a.keys() == b.keys() and all((a[key] == b[key]).all() for key in a)


def test_programs_run_with_jax_alone(stored, tmp_path):
    dtype = "f32" if name_of(stored) == "clip_vit" else "bf16"
    export(stored, tmp_path / "out", to="jax", dtype=dtype)
    model = xmodal.load(stored.origin)
    shown = [folders.picture(seed=i) for i in range(3)]
    np.savez(tmp_path / "in.npz", **model.prepare_images(shown), **model.prepare_texts(folders.TEXTS))
    code = """
import sys; sys.modules["xmodal"] = sys.modules["flax"] = sys.modules["data_pipelines"] = None
import jax.export, numpy as np
batch, out = np.load("in.npz"), {}
for name, keys in (("image", ("image",)), ("text", ("text", "text_valid"))):
    tower = jax.export.deserialize(open(f"out/{name}.jaxexport", "rb").read())
    weights = dict(np.load(f"out/{name}.npz"))
    out[name] = tower.call(weights, {key: batch[key] for key in keys})
    assert len(tower.platforms) == 3
np.savez("found.npz", **out)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    found, limit = np.load(tmp_path / "found.npz"), 2e-6 if dtype == "f32" else 3e-2
    np.testing.assert_allclose(found["image"], model.embed_image(shown), atol=limit)
    np.testing.assert_allclose(found["text"], model.embed_text(folders.TEXTS), atol=limit)
    card = (tmp_path / "out" / "README.md").read_text()
    assert 'jax.export.deserialize(open("image.jaxexport", "rb").read())' in card
    with pytest.raises(InteropError, match="programs for JAX alone"):
        open_stored(tmp_path / "out")


def test_what_is_read_back_wrong_is_not_written(stored, tmp_path, monkeypatch):
    monkeypatch.setattr(export_lib, "cast", lambda arrays, dtype: {k: a * np.float32(1.001) for k, a in arrays.items()})
    with pytest.raises(InteropError, match="was read back and its image embeddings differ by"):
        export(stored, tmp_path / "out", to="hf")
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_left_alone(stored, tmp_path):
    (tmp_path / "note").write_text("mine")
    with pytest.raises(InteropError, match="exists already"):
        export(stored, tmp_path, to="hf")
    assert [p.name for p in tmp_path.iterdir()] == ["note"]


# ------------------------------------------------------------------------------------------------ from a run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    data = tiny_runs.make_data(folder)
    tiny_runs.run(folder / "run", tiny_runs.flags(data, schedule__total=4, optimizer__ema=0.5))
    return folder / "run", data


def command(*arguments):
    assert main([str(a) for a in arguments]) == 0


def test_a_run_goes_out_with_its_figures(run, tmp_path):
    workdir, _ = run
    command("export", "--workdir", workdir, "--to", "hf", "--out", tmp_path / "out")
    live, back = xmodal.load(workdir), xmodal.load(tmp_path / "out")
    texts = ["Thing 3", "thing 41", "something quite else that is much too long for eight tokens"]
    np.testing.assert_allclose(back.embed_text(texts), live.embed_text(texts), atol=1e-6)
    shown = [folders.picture(seed=i) for i in range(3)]
    np.testing.assert_allclose(back.embed_image(shown), live.embed_image(shown), atol=1e-6)
    # The end mark has id 2 here, which a CLIPModel takes for its legacy rule.
    assert (live.tokenizer.eos_id, back.tokenizer.eos_id) == (2, live.tokenizer.vocab_size - 1)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "step 4" in card and "image → text" in card and "After 64 samples" in card and "contrastive (softmax" in card
    published = (tmp_path / "out" / "xmodal_config.json").read_text()
    assert str(workdir.parent) not in json.dumps(json.loads(published)["data"]["sources"])


def test_trained_averaged_and_mean_weights(run, tmp_path):
    workdir, _ = run
    for name, flags in dict(
        trained=["--no-ema"], ema=["--ema"], mean=["--average", "2,4", "--no-ema"],
        last=["--average", "last:2", "--no-ema"],
    ).items():  # fmt: skip
        command("export", "--workdir", workdir, "--to", "open_clip", "--out", tmp_path / name, *flags)
    weights = {p.name: read(p, "open_clip_model.safetensors") for p in tmp_path.iterdir()}
    two, four = (flatten_paths(open_stored(workdir, step=s, ema=False).params) for s in (2, 4))
    path, key = "image/embed/class_token", "visual.class_embedding"
    np.testing.assert_array_equal(weights["trained"][key], four[path])
    assert (weights["ema"][key] != weights["trained"][key]).any()
    np.testing.assert_allclose(weights["mean"][key], (two[path] + four[path]) / 2, rtol=1e-6)
    np.testing.assert_array_equal(weights["last"][key], weights["mean"][key])
    assert "None were measured" in (tmp_path / "mean" / "README.md").read_text()


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--average", "2,3"], "has the checkpoints 2, 4"),
        (["--average", "last:9"], "has the checkpoints 2, 4; a run keeps the newest checkpoint.keep_last=N"),
        (["--average", "few"], "expected steps such as 100,200 or last:3"),
        (["--average", "2", "--step", "2"], "exclude each other"),
        (["--step", "3"], "Complete steps there: 2, 4"),
    ],
)
def test_steps_that_are_not_there(run, tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit):
        main(["export", "--workdir", str(run[0]), "--to", "hf", "--out", str(tmp_path / "out"), *flags])
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_model_that_a_format_cannot_express_is_refused(run, tmp_path, capsys):
    _, data = run
    flags = tiny_runs.flags(data, evals="{}", model__towers__image__embed__stem="((8, 4, 4),)")
    tiny_runs.run(tmp_path / "run", flags, tiny_runs.StopAt(0))
    for to, reason in (("hf", "image/embed/stem"), ("open_clip", "image/embed/stem")):
        with pytest.raises(SystemExit):
            main(["export", "--workdir", str(tmp_path / "run"), "--to", to, "--out", str(tmp_path / to)])
        assert reason in capsys.readouterr().err
    command("export", "--workdir", tmp_path / "run", "--to", "jax", "--out", tmp_path / "jax")
    with pytest.raises(SystemExit):
        main(["export", "--workdir", str(tmp_path / "run"), "--to", "hf", "--ema", "--out", str(tmp_path / "x")])
    assert "holds no 'ema'" in capsys.readouterr().err
    assert jax.device_count() == 8 and not (tmp_path / "x").exists()


def test_import_command(stored, tmp_path, capsys):
    command("import", f"hf:{stored.origin}", "--out", tmp_path / "own")
    assert "12 tokens, vocabulary 99" in capsys.readouterr().out
    a, b = flatten_paths(open_stored(tmp_path / "own").params), flatten_paths(stored.params)
    assert a.keys() == b.keys() and all((a[key] == b[key]).all() for key in a)
    with pytest.raises(InteropError, match="exists already"):
        write_stored(stored, tmp_path / "own")
