"""Runs that start from weights: the reference's embeddings before the first step, and what does not fit is named."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from data_pipelines.modalities import inputs_of
from tests import tiny_runs
from tests.interop import folders
from tests.recipes.tiny import SHARDED
from xmodal.config import ConfigError
from xmodal.configs import base
from xmodal.distributed.mesh import make_mesh
from xmodal.interop import recipe
from xmodal.interop.positions import resize_grid
from xmodal.objectives.contrastive import normalize
from xmodal.paths import flatten_paths
from xmodal.stored.opening import open_stored
from xmodal.stored.project import write_stored
from xmodal.training.init_from import start_from
from xmodal.training.task import build_task


@pytest.fixture(scope="module", params=["clip_vit", "siglip"])
def imported(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_stored(open_stored(f"hf:{folders.hugging_face(folder / 'hf', request.param)}"), folder / "own")
    return folder / "own", request.param


def task_from(where, change=lambda c: None, devices=1, **mesh):
    config = recipe.continue_from(base.get_config(), where)
    config.batch_size = 8
    config.mesh.update(mesh)
    change(config)
    made = make_mesh(config.mesh, jax.devices()[:devices])
    with jax.set_mesh(made):
        stored = open_stored(where)
        return build_task(config, made, inputs_of(config.data).with_tokenizers(stored.tokenizers), 64)


def started(task):
    """A state of ones (quicker than random numbers, and no weights) with the weights put into it."""
    ones = lambda s: jax.device_put(np.ones(s.shape, s.dtype), s.sharding)
    with jax.set_mesh(task.mesh):
        return start_from(task, jax.tree.map(ones, task.abstract_state()))[0]


def refused(where, change):
    task = task_from(where, change)
    with pytest.raises(ConfigError) as error:
        started(task)
    return str(error.value)


def test_the_references_embeddings_before_the_first_step(imported):
    where, name = imported
    sharded = lambda c: c.mesh.update(rules=SHARDED)
    task = task_from(where, sharded, devices=8, data=2, fsdp=2, tensor=2)
    state, golden = started(task), folders.load(name)
    inputs = folders.part(golden, "inputs/")
    valid = inputs.get("attention_mask", inputs["input_ids"] != folders.PAD).astype(bool)
    batch = dict(image=inputs["pixel_values"], text=inputs["input_ids"], text_valid=valid)
    want = frozenset({"image.pooled", "text.pooled"})
    with jax.set_mesh(task.mesh):
        outputs = jax.jit(lambda p: task.losses.model(p, batch, want))(state["params"])
    for tower in ("image", "text"):
        expected = golden[f"outputs/{tower}_embeds"]
        np.testing.assert_allclose(normalize(outputs[f"{tower}.pooled"]), expected, atol=2e-5 * np.abs(expected).max())
    scale = folders.part(golden, "weights/")["logit_scale"]
    np.testing.assert_array_equal(state["params"]["objectives"]["contrastive"]["logit_scale"], scale.reshape(()))


def test_averaged_weights_start_there_too_in_buffers_of_their_own(imported):
    state = started(task_from(imported[0], lambda c: c.optimizer.update(ema=0.9)))
    averaged, pointer = flatten_paths(state["ema"]), lambda a: a.addressable_shards[0].data.unsafe_buffer_pointer()
    for path, leaf in flatten_paths(state["params"]).items():
        np.testing.assert_array_equal(averaged[path], leaf)
        assert pointer(averaged[path]) != pointer(leaf), "the step consumes both"


def test_another_resolution_resizes_the_positions(imported):
    where, name = imported
    larger = folders.PIXELS[name] + 24

    def change(c):
        c.data.inputs.image.size = c.model.towers.image.embed.image_size = larger

    state = started(task_from(where, change))
    old = open_stored(where)
    grid = old.spec.towers["image"].embed.grid
    table = np.asarray(old.params["image"]["embed"]["position"])
    expected = resize_grid(table, grid, (grid[0] + 3, grid[1] + 3))
    np.testing.assert_array_equal(state["params"]["image"]["embed"]["position"], expected)
    if name == "clip_vit":
        np.testing.assert_array_equal(expected[0], table[0])


def test_shorter_texts_have_the_first_positions_and_longer_ones_none(imported):
    where, _ = imported

    def change(length):
        def change(c):
            c.data.inputs.text.length = c.model.towers.text.embed.length = length

        return change

    state, table = started(task_from(where, change(7))), open_stored(where).params["text"]["embed"]["position"]
    np.testing.assert_array_equal(state["params"]["text"]["embed"]["position"], table[:7])
    assert "shape: text/embed/position is (12, 32), the model needs (20, 32)" in refused(where, change(20))


def test_what_does_not_fit_is_named_and_can_be_excepted(imported):
    where, _ = imported

    def change(c):
        c.model.towers.text.trunk.depth = 1
        c.model.towers.image.trunk.pattern = json.loads(json.dumps(c.model.towers.image.trunk.to_dict()["pattern"]))
        c.model.towers.image.trunk.pattern[0][1]["act"] = "relu"
        c.objectives = dict(pairs=dict(type="softmax"))
        c.data.inputs.image.mean = (0.1, 0.2, 0.3)

    message = refused(where, change)
    for part in (
        "shape: text/trunk/layers/0/0/attn/key/kernel is (2, 32, 32), the model needs (1, 32, 32)",
        "image/trunk/pattern/0/1/act: is 'relu', the weights have",
        "missing: objectives/pairs/logit_scale ()",
        "unexpected: objectives/contrastive/logit_scale",
        "data.inputs.image.mean: is (0.1, 0.2, 0.3), the weights have (0.5, 0.4, 0.3)",
        "init_from_except",
    ):
        assert part in message

    def excepted(c):
        change(c)
        c.init_from_except = ("text/.*", "objectives/.*", "image/trunk/pattern/.*", "data/inputs/image/mean")

    state, stored = started(task_from(where, excepted)), open_stored(where)
    np.testing.assert_array_equal(
        state["params"]["image"]["embed"]["kernel"], stored.params["image"]["embed"]["kernel"]
    )
    assert state["params"]["text"]["trunk"]["layers"]["0"]["0"]["attn"]["key"]["kernel"].shape == (1, 32, 32)
    assert "not regular expressions" in refused(where, lambda c: c.update(init_from_except=("(",)))


def test_another_tokenizer_is_refused(imported, tmp_path):
    where, _ = imported
    task = task_from(where)
    tokenizer = task.inputs["text"].vocabulary
    other = json.loads(tokenizer.json)
    vocab = other["model"]["vocab"]
    vocab["w10"], vocab["w11"] = vocab["w11"], vocab["w10"]
    given = type(tokenizer)(json.dumps(other))
    object.__setattr__(task, "inputs", task.inputs.with_tokenizers({"text": given}))
    with pytest.raises(ConfigError, match=r"is not the weights' tokenizer: the vocabularies differ \(99 and 99"):
        started(task)


@pytest.mark.parametrize("case", range(4))
def test_resized_positions_agree_with_torch(case):
    with np.load(folders.GOLDEN / "positions.npz") as file:
        golden = folders.part(dict(file), f"{case}/")
    prefix = np.ones((2, 6), np.float32)
    for method in ("bicubic", "bilinear"):
        table = np.concatenate([prefix, golden["table"]])
        got = resize_grid(table, tuple(golden["old"]), tuple(golden["new"]), method=method)
        np.testing.assert_array_equal(got[:2], prefix)
        np.testing.assert_allclose(got[2:], golden[method], atol=2e-6 * np.abs(golden[method]).max())


def test_a_run_starts_from_a_folder_and_continues_by_itself(tmp_path, capsys):
    data = tiny_runs.make_data(tmp_path)
    first, second = tmp_path / "first", tmp_path / "second"
    tiny_runs.run(first, tiny_runs.flags(data, evals="{}", seed=1), tiny_runs.StopAt(0))
    arguments = tiny_runs.flags(data, evals="{}", init_from=first)
    tiny_runs.run(second, arguments, tiny_runs.StopAt(0))
    assert f"started from {first}" in capsys.readouterr().out
    a, b = (flatten_paths(open_stored(run).params) for run in (first, second))
    assert all((np.asarray(a[path]) == np.asarray(b[path])).all() for path in a)
    tiny_runs.run(second, arguments, tiny_runs.StopAt(1))
    assert "started from" not in capsys.readouterr().out
    message = tiny_runs.fail(tmp_path / "third", tiny_runs.flags(data, init_from=tmp_path / "nothing"), capsys)
    assert "there is no folder" in message


def test_a_damaged_folder_is_named(imported, tmp_path):
    where, _ = imported
    for file in where.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    weights["image/embed/nothing"] = weights.pop("image/embed/kernel")
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError) as error:
        open_stored(tmp_path)
    assert "missing: image/embed/kernel" in str(error.value) and "unexpected: image/embed/nothing" in str(error.value)
