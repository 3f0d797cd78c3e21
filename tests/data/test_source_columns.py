"""What a batch says of the sources of its samples."""

import jax
import numpy as np
import pytest
from test_stream import assert_equal, take, texts

import xmodal
from data_pipelines.errors import DataError
from data_pipelines.modalities import inputs_of
from data_pipelines.stream.source_columns import source_columns, source_names
from tests import tiny_runs
from xmodal.config import load_config
from xmodal.distributed.mesh import make_mesh
from xmodal.training.startup import abstract_batch
from xmodal.training.task import build_task


@pytest.fixture
def mixed(config, shards):
    """Three sources, in another order than that of their names; the first shard holds numbers below 90."""
    urls = [str(shards / f"s-0{i}.tar") for i in range(3)]
    config.sources = dict(
        web=dict(urls=urls[0], weight=2.0, loss_weight=0.5), curated=dict(urls=urls[1], temperature=1.5),
        noisy=dict(urls=urls[2]), unused=dict(urls="missing.tar", weight=0.0, loss_weight=7.0),
    )  # fmt: skip
    return config


@pytest.mark.parametrize("buckets", [(), (6, 9)])
def test_each_row_says_what_its_source_is(mixed, buckets):
    mixed.inputs.text.buckets, mixed.batches = buckets, "by_source" if buckets else "mixed"
    assert source_names(mixed.sources) == ("curated", "noisy", "web")
    batches = take(mixed, 8)
    for batch in batches:
        numbers = np.array([int(text.split()[-1]) for text in texts(mixed, [batch])])
        web, curated = numbers < 90, (numbers >= 90) & (numbers < 150)
        np.testing.assert_array_equal(batch["source"], np.where(web, 2, np.where(curated, 0, 1)))
        np.testing.assert_array_equal(batch["loss_weight"], np.where(web, 0.5, 1))
        np.testing.assert_array_equal(batch["temperature"], np.where(curated, 1.5, 1))
    assert len(set(np.concatenate([batch["source"] for batch in batches]))) == 3
    halves = [take(mixed, 1, position=48, shard=(i, 2))[0] for i in range(2)]
    assert_equal([{k: np.concatenate([h[k] for h in halves]) for k in halves[0]}], batches[3:4])


def test_a_batch_says_only_what_tells_sources_apart(config, mixed):
    assert set(source_columns(mixed.sources)) == {"source", "loss_weight", "temperature"}
    assert set(source_columns(dict(a={}, b=dict(loss_weight=1)))) == {"source"}
    assert set(source_columns(dict(a=dict(temperature=2.0), b=dict(weight=0)))) == {"temperature"}
    assert not source_columns(dict(a=dict(loss_weight=1.0)))


@pytest.mark.parametrize(
    "option,value,message",
    [
        ("loss_weight", -1.0, "a number from 0"),
        ("temperature", 0.0, "above 0"),
        ("loss_weight", "much", "expected float"),
    ],
)
def test_what_is_no_factor_is_named(mixed, option, value, message):
    mixed.sources.web[option] = value
    with pytest.raises(DataError, match=rf"data\.sources\.web\.{option}.*{message}"):
        take(mixed, 1)


def test_a_run_learns_a_temperature_for_each_source(tmp_path, monkeypatch):
    monkeypatch.setattr("xmodal.training.loop.make_mesh", lambda config: make_mesh(config, jax.devices()[:1]))
    data = tiny_runs.make_data(tmp_path)
    urls = [str(data / f"s-0{i}.tar") for i in range(2)]
    sources = dict(web=dict(urls=urls[0], loss_weight=0.5), curated=dict(urls=urls[1]))
    flags = {"data.sources": repr(sources), "objectives.contrastive.by_source": True, "schedule.total": 3}
    flags = [flag for flag in tiny_runs.flags(data, evals="{}", **flags) if "sources.main" not in flag]
    tiny_runs.run(tmp_path / "run", flags)
    params = tiny_runs.arrays(tmp_path / "run", 3)
    names = {path for path in params if path.startswith("params/objectives")}
    assert names == {f"params/objectives/contrastive/sources/{s}/logit_scale" for s in ("curated", "web")}
    last = tiny_runs.rows(tmp_path / "run")[-1]
    assert last["train/contrastive/logit_scale_web"] != last["train/contrastive/logit_scale_curated"]
    model = xmodal.load(tmp_path / "run")
    picture = np.zeros((16, 16, 3), np.uint8)
    assert model.zero_shot(picture, ["thing 1", "thing 2"]).sum() == pytest.approx(1)  # by the mean temperature

    config = load_config(flags[1], flags[2:])
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    with jax.set_mesh(mesh):
        task = build_task(config, mesh, inputs_of(config.data), tiny_runs.SAMPLES)
    decayed = {row.example for row in task.plan.rows if row.weight_decay and row.part == "objectives"}
    assert not decayed and task.config.objectives.contrastive.sources == ("curated", "web")
    made = {name: (a.shape, a.dtype) for name, a in take(config.data, 1)[0].items()}
    assert {name: (s.shape, s.dtype) for name, s in abstract_batch(task).items()} == made
