"""A model in use: placed whole or in part, run with its parameters or with others."""

import jax
import numpy as np
import pytest

import xmodal
from tests import tiny_runs
from xmodal.config import ConfigError
from xmodal.distributed.mesh import make_mesh
from xmodal.interop.tables import InteropError
from xmodal.live import Live
from xmodal.paths import flatten_paths
from xmodal.stored import base, opening
from xmodal.stored.opening import open_stored, parse
from xmodal.stored.project import write_stored


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("live")
    data = tiny_runs.make_data(folder)
    tiny_runs.run(folder / "run", tiny_runs.flags(data, evals="{}"), tiny_runs.StopAt(0))
    return folder / "run"


@pytest.fixture(scope="module")
def stored(run):
    return open_stored(run)


def mesh_of(devices=8, **axes):
    return make_mesh(dict(data=-1, fsdp=1, tensor=1) | axes, jax.devices()[:devices])


def texts(live, count=8):
    return live.preparing.rows("text", [f"thing {i}" for i in range(count)])


def test_a_tower_alone_embeds_as_the_whole_model_does(stored):
    whole, part = Live.place(stored, mesh_of(1)), Live.place(stored, mesh_of(1), towers=("text",))
    assert whole.inputs == {"image": "image", "text": "text"} and part.inputs == {"text": "text"}
    assert set(part.params) == {"text"} and part.width("text") == 32
    prepare = lambda start, stop: {name: a[start:stop] for name, a in texts(whole, 11).items()}
    expected = whole.embed_rows("text", prepare, 11, batch_size=8)
    np.testing.assert_array_equal(part.embed_rows("text", prepare, 11, batch_size=8), expected)
    np.testing.assert_array_equal(xmodal.load(stored.origin, mesh=mesh_of(1), batch_size=8).embed_text(
        [f"thing {i}" for i in range(11)]), expected)  # fmt: skip
    assert whole.embed_rows("text", prepare, 0).shape == (0, 32)
    with pytest.raises(ConfigError, match="has no tower that embeds images alone"):
        part.tower_of("image")
    with pytest.raises(ConfigError, match="has no tower 'sound': its towers are image, text"):
        Live.place(stored, mesh_of(1), towers=("sound",))


def test_parameters_are_sharded_and_may_be_arguments_of_a_step(stored):
    live = Live.place(stored, mesh_of(fsdp=2, tensor=2))
    assert any(not a.sharding.is_fully_replicated for a in jax.tree.leaves(live.params)), "by the rules of the run"
    batch = texts(live)
    step = jax.jit(lambda params, batch: live.embedding("text", batch, params))
    with jax.set_mesh(live.mesh):
        np.testing.assert_array_equal(step(live.params, batch), live.embed["text"](live.params, batch))
        nothing = jax.tree.map(np.zeros_like, jax.device_get(live.params))
        assert not np.allclose(step(nothing, batch), step(live.params, batch), equal_nan=True)
        found = live.outputs(batch, {"text.tokens", "text.pooled"})
        assert set(found) == {"text.tokens", "text.pooled"}
        local = live.embed_local["text"](live.params, batch)
    assert local["x"].shape == (8, 8, 32) and local["valid"].shape == (8, 8)
    with pytest.raises(ValueError, match="give them with each call"):
        Live.of(stored, live.mesh).outputs(batch, {"text.pooled"})


def test_what_lies_on_the_mesh_already_stays_there(stored):
    live = Live.place(stored, mesh_of(2))
    again = Live.place(base.Stored(stored.config, live.params, stored.tokenizers, "here"), mesh_of(2))
    assert all(a is b for a, b in zip(jax.tree.leaves(live.params), jax.tree.leaves(again.params)))


def test_it_knows_what_it_is(stored):
    live = Live.place(stored, mesh_of(1), dtype="bfloat16", identify=True)
    assert live.model.spec.dtype == "bfloat16" and stored.config.model.dtype == "float32"
    assert live.fingerprint == stored.fingerprint() and Live.place(stored, mesh_of(1)).fingerprint == ""
    scale = float(stored.params["objectives"]["contrastive"]["logit_scale"])
    assert live.temperature() == live.temperature("text", "image") == stored.temperature()
    assert live.temperature().logit_scale == scale and live.temperature("image", "caption") is None
    assert set(live.stored.params) == {"objectives"}, "the towers' arrays on the host are let go"
    assert Live.place(stored, mesh_of(8)).sizes(60) == [8, 64] and live.sizes(60) == [1, 8, 60]


def test_a_kind_of_folder_is_a_line_in_the_registry(stored, tmp_path, monkeypatch):
    (tmp_path / "other.model").write_text("")
    with pytest.raises(InteropError, match=r"no model that is known here: expected one of a run \(checkpoints/\), an"):
        parse(tmp_path)
    holds = lambda path: (path / "other.model").is_file()
    kind = base.Kind("other", "another folder (other.model)", holds, lambda path, choice, _: stored, prefixed=True)
    monkeypatch.setitem(opening.KINDS, "other", kind)
    assert parse(tmp_path) == parse(f"other:{tmp_path}") == ("other", tmp_path)
    assert open_stored(tmp_path) is stored
    with pytest.raises(InteropError, match="it has no other steps and no averaged weights"):
        open_stored(tmp_path, step=3)
    write_stored(stored, tmp_path / "written")
    assert parse(tmp_path / "written")[0] == "project" and parse(stored.origin)[0] == "run"
    same = flatten_paths(open_stored(tmp_path / "written").params)
    assert all((np.asarray(a) == same[path]).all() for path, a in flatten_paths(stored.params).items())
