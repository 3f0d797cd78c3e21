"""Runs that learn from a teacher: what it sees, what is kept of it, and what is refused."""

import dataclasses
import json
import shutil

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import xmodal
from data_pipelines.modalities import inputs_of
from data_pipelines.stream.stream import open_stream
from data_pipelines.text.tokenizers import train_bpe
from tests import tiny_runs
from xmodal.config import load_config
from xmodal.configs import base
from xmodal.distributed.mesh import make_mesh, to_global
from xmodal.interop.recipe import continue_from
from xmodal.paths import flatten_paths
from xmodal.stored.base import Stored
from xmodal.stored.opening import open_stored
from xmodal.stored.project import write_stored
from xmodal.training import loop
from xmodal.training.init_from import start_from
from xmodal.training.losses import Given
from xmodal.training.providers import host_texts, open_providers
from xmodal.training.task import build_task


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """Runs on one of the devices: nothing here is about how a batch is cut, and eight shards compile slowly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_mesh", lambda config: make_mesh(config, jax.devices()[:1]))
        yield


OBJECTIVES = {  # both kinds, of a student that is half as wide as its teacher
    "objectives.contrastive.type": "distillation",
    "objectives.contrastive.soft": 0.5,
    "objectives.features": "{'type': 'feature_matching', 'weight': 2.0}",
    "model.towers.image.heads.pooled.embed_dim": 16,
    "model.towers.text.heads.pooled.embed_dim": 16,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_runs.make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def teacher(data, tmp_path_factory):
    """A model with tokens, text length, size and normalisation of its own."""
    folder = tmp_path_factory.mktemp("teacher")
    (folder / "other.json").write_text(train_bpe([f"a thing called {i}" for i in range(60)], 300).json)
    changes = {
        "evals": "{}", "data.inputs.text.tokenizer": folder / "other.json", "data.inputs.text.length": 12,
        "data.inputs.text.lower": True,
        "data.inputs.image.size": 24, "data.inputs.image.mean": "(0.5, 0.4, 0.3)",
    }  # fmt: skip
    task = task_of(tiny_runs.flags(data, **changes))
    write(folder / "model", task.config, helpers.random_params(task.losses.model), task.inputs.tokenizers)
    return folder / "model"


def write(folder, config, towers, tokenizers):
    params = towers | {"objectives": {"contrastive": {"logit_scale": np.float32(2.5)}}}
    write_stored(Stored(config, params, tokenizers, "a test"), folder)


def flags(data, teacher, **changes):
    provider = repr(dict(type="teacher", model=str(teacher)))
    return tiny_runs.flags(data, **{"providers.teacher": provider, "evals": "{}"} | OBJECTIVES | changes)


def task_of(arguments):
    config = load_config(arguments[1], arguments[2:])
    mesh, inputs = make_mesh(config.mesh, jax.devices()[:1]), inputs_of(config.data)
    with jax.set_mesh(mesh):
        opened = open_providers(config, mesh, inputs)
        return build_task(config, mesh, inputs, tiny_runs.SAMPLES, opened)


def test_the_teacher_sees_images_and_captions_as_it_was_trained_with_them(data, teacher):
    """Of a student whose size is the teacher's nothing is resized, and its embeddings are those of `xmodal.load`."""
    task = task_of(flags(data, teacher, **{"data.inputs.image.size": 24}))
    config = task.config
    texts = host_texts(task.providers)
    with jax.set_mesh(task.mesh), open_stream(config.data, batch_size=16, seed=0, texts=texts) as stream:
        rows = next(stream)
        assert rows["teacher_text"].shape == (16, 12) and rows["text"].shape == (16, 8)
        batch = to_global(rows, task.mesh)
        ask = lambda frozen, b: task.losses.forward(params, b, None, Given(frozen))[1]
        params = helpers.random_params(task.losses.model) | {"objectives": {}}
        said = jax.jit(ask)(task.frozen, batch)
    model = xmodal.load(teacher)
    captions = [task.inputs.caption.vocabulary.decode(ids) for ids in rows["text"]]
    np.testing.assert_allclose(said["teacher.text"], model.embed_text(captions), atol=1e-5)
    np.testing.assert_allclose(said["teacher.image"], model.embed_image(list(rows["image"])), atol=1e-5)
    assert task.config.objectives.features.widths == (32, 32)
    own = flatten_paths(jax.tree.map(np.asarray, model.live.params))
    assert all(np.array_equal(own[path], array) for path, array in flatten_paths(task.frozen["teacher"]).items())


def test_towers_that_nothing_learns_from_take_no_memory(data, teacher):
    one = {"objectives.contrastive": "{'type': 'softmax'}", "objectives.features": "{'type': 'feature_matching'}"}
    arguments = [a for a in flags(data, teacher, **one) if "contrastive." not in a]
    task = task_of([*arguments, "--config.objectives.features.towers=('image',)"])
    assert set(task.frozen["teacher"]) == {"image"} and not task.providers["teacher"].texts
    assert task.config.objectives.features.widths == (32,)


def test_another_size_is_resized_on_the_device(data, teacher):
    task = task_of(flags(data, teacher))
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 16, 3)).astype(np.uint8)
    image = task.losses.preprocess({"image": jnp.asarray(pixels)}, None)["image"]
    seen = []
    spy = lambda params, batch, want: seen.append(batch["image"]) or {name: jnp.ones((16, 4)) for name in want}
    teacher = dataclasses.replace(task.providers["teacher"], model=spy, captions={})
    teacher({}, {"image": image}, {}, None, task.mesh)
    back = np.asarray(seen[0]) * teacher.image.std + np.array((0.5, 0.4, 0.3))
    wanted = jax.image.resize(pixels / np.float32(255), (16, 24, 24, 3), "cubic").clip(0, 1)
    np.testing.assert_allclose(back, wanted, atol=1e-5)


def test_the_state_holds_nothing_of_the_teacher(data, teacher):
    task = task_of(flags(data, teacher, **{"optimizer.ema": 0.9}))
    state = flatten_paths(task.abstract_state())
    plain = flatten_paths(task_of(tiny_runs.flags(data, **{"optimizer.ema": 0.9})).abstract_state())
    new = {path for path in state if path not in plain}
    maps = {f"{tower}/projection/kernel" for tower in ("image", "text")}
    assert {path.partition("objectives/features/")[2] for path in new} == maps
    assert {path.split("/")[0] for path in new} == {"params", "ema", "opt_state"}


def test_interrupted_and_continued_is_the_same_and_needs_the_same_teacher(data, teacher, tmp_path, capsys):
    copy = tmp_path / "teacher"
    shutil.copytree(teacher, copy)
    arguments = flags(data, copy, **{"accumulation": 2, "schedule.total": 6})
    tiny_runs.run(tmp_path / "straight", arguments)
    tiny_runs.run(tmp_path / "broken", arguments, tiny_runs.StopAt(3))

    copy.rename(tmp_path / "moved")
    assert "there is no folder" in tiny_runs.fail(tmp_path / "broken", arguments, capsys)
    other = open_stored(teacher)  # another model in its place
    write(copy, other.config, jax.tree.map(lambda a: 2 * a, other.params), other.tokenizers)
    assert "is not what this run has learned from" in tiny_runs.fail(tmp_path / "broken", arguments, capsys)
    shutil.rmtree(copy)
    (tmp_path / "moved").rename(copy)
    tiny_runs.run(tmp_path / "broken", arguments)
    saved = {name: tiny_runs.arrays(tmp_path / name, 6) for name in ("straight", "broken")}
    assert saved["straight"] == saved["broken"]
    shutil.rmtree(copy)  # the student is a model of its own
    assert xmodal.load(tmp_path / "broken").embed_text("thing 3").shape == (1, 16)
    continued = continue_from(base.get_config(), tmp_path / "broken")  # and can be tuned as one
    continued.data.sources.main = dict(urls=str(data / "s-{00..01}.tar"))
    again = build_task(continued, helpers.mesh(), inputs_of(continued.data), tiny_runs.SAMPLES)
    with jax.set_mesh(again.mesh):
        placed = jax.tree.map(lambda a: jax.device_put(np.zeros(a.shape, a.dtype), a.sharding), again.abstract_state())
        params = flatten_paths(start_from(again, placed)[0]["params"])
    student = flatten_paths(open_stored(tmp_path / "broken").params)
    assert student.keys() - params.keys() == {
        f"objectives/features/{tower}/projection/kernel" for tower in ("image", "text")
    }
    assert all(np.array_equal(array, student[path]) for path, array in params.items())
    last = json.loads((tmp_path / "straight" / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"train/contrastive/teacher_kl", "train/features/image_cosine"} <= last.keys()


def test_the_average_of_the_weights_is_a_teacher(data, tmp_path):
    """ALBEF's momentum distillation: it reads what the student reads, and costs one more forward pass."""
    changes = {"optimizer.ema": 0.9, "objectives.contrastive.type": "distillation", "objectives.contrastive.soft": 0.4}
    changes |= {"providers.teacher": "{'type': 'ema'}", "evals": "{}", "schedule.total": 3}
    arguments = tiny_runs.flags(data, **changes)
    task = task_of(arguments)
    assert task.frozen == {} and not task.providers["teacher"].texts
    tiny_runs.run(tmp_path / "run", arguments)
    first, *_ = tiny_runs.rows(tmp_path / "run")
    # At the first step the average is the student itself: nothing to learn from it.
    assert abs(first["train/contrastive/teacher_kl"]) < 1e-5 < first["train/contrastive/teacher_entropy"]


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"providers": "{}"}, "objectives.contrastive needs 'teacher.image' of a provider: add providers.teacher"),
        ({"providers.teacher.model": "nowhere"}, "providers.teacher.model=nowhere: there is no folder"),
        ({"providers.teacher": "{'type': 'ema'}"}, "optimizer.ema is 0"),
        (
            {"objectives.contrastive.type": "softmax", "objectives.features": "{'type': 'softmax'}"},
            "nothing reads what it gives",
        ),
    ],
)
def test_what_is_wrong_with_a_teacher_is_said(data, teacher, tmp_path, capsys, changes, message):
    arguments = flags(data, teacher, **changes)
    if changes.get("objectives.contrastive.type"):
        arguments = [a for a in arguments if "contrastive.soft" not in a]
    assert message in tiny_runs.fail(tmp_path / "run", arguments, capsys)
