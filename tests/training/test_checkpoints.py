import json
import logging
import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmodal.checkpoints.reading import (
    CheckpointError,
    DamagedError,
    list_steps,
    open_newest,
    read_meta,
    restore_params,
)
from xmodal.checkpoints.writing import Checkpoints
from xmodal.config import ConfigError
from xmodal.distributed.mesh import make_mesh
from xmodal.distributed.sharding import shardings

SHAPES = {"image": {"fc1": {"kernel": (2, 32, 64), "bias": (2, 64)}}, "objectives": {"logit_scale": ()}}


def mesh_of(data, fsdp, tensor):
    return make_mesh({"data": data, "fsdp": fsdp, "tensor": tensor}, devices=jax.devices()[: data * fsdp * tensor])


def make_state(seed, mesh=None, shapes=SHAPES, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    is_shape = lambda s: isinstance(s, tuple)
    params = jax.tree.map(lambda s: rng.normal(size=s).astype(dtype), shapes, is_leaf=is_shape)
    moment = jax.tree.map(lambda x: (x * 0.5).astype(jnp.bfloat16), params)
    state = {"step": np.int32(seed), "params": params, "opt_state": ({"mu": moment}, [np.bool_(True)])}
    mesh = mesh or mesh_of(2, 2, 2)
    return jax.device_put(state, shardings(state, mesh, min_size=64))


def abstract(state, mesh=None):
    placed = shardings(state, mesh or mesh_of(2, 2, 2), min_size=64)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, placed)


def assert_equal(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def save_steps(workdir, *steps, **options):
    with Checkpoints(workdir, **({"keep_last": 9} | options)) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step), position=step * 8)


def newest_array_file(workdir, step):
    files = (workdir / "checkpoints" / str(step) / "state").glob("ocdbt.process_0/d/*")
    return max(files, key=lambda path: path.stat().st_size)


def test_round_trip_with_document(tmp_path):
    state = make_state(3)
    with Checkpoints(tmp_path, every=3) as checkpoints:
        assert checkpoints.restore(abstract(state)) is None
        assert checkpoints.due(3) and not checkpoints.due(4)
        extra = {"config": '{"seed": 1}', "tokenizer": "ü" * 5000, "samples": 24}
        metrics = {"loss": 2.5, "broken": float("nan")}
        assert checkpoints.save(3, state, position=24, metrics=metrics, extra=extra)
        assert not checkpoints.due(3)
        assert not checkpoints.save(3, state, position=24, wait=True), "a step is written once"
    restored, meta = Checkpoints(tmp_path).restore(abstract(state))
    assert_equal(state, restored)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert jax.tree.map(lambda x: x.sharding, restored) == jax.tree.map(lambda x: x.sharding, state)
    assert (meta["position"], meta["step"], meta["metrics"]) == (24, 3, {"loss": 2.5})
    assert read_meta(open_newest(tmp_path, lambda path: path))["tokenizer"] == "ü" * 5000


def test_reserved_names_of_the_document(tmp_path):
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(ValueError, match="position"):
        checkpoints.save(1, make_state(1), position=0, extra={"position": 5})


@pytest.mark.parametrize("sizes", [(2, 2, 1), (1, 1, 1), (1, 4, 2)])
def test_restores_on_another_mesh(tmp_path, sizes):
    save_steps(tmp_path, 1)
    mesh = mesh_of(*sizes)
    restored, _ = Checkpoints(tmp_path).restore(abstract(make_state(1), mesh))
    assert_equal(make_state(1), restored)
    kernel = restored["params"]["image"]["fc1"]["kernel"]
    assert kernel.sharding.mesh == mesh and len(kernel.sharding.device_set) == np.prod(sizes)


def test_saved_values_survive_donation(tmp_path):
    sharding = jax.NamedSharding(mesh_of(2, 2, 2), jax.P("fsdp"))
    state = {"w": jax.device_put(np.arange(2**22, dtype=np.float32).reshape(1024, -1), sharding)}
    update = jax.jit(lambda s: {"w": s["w"] * -1 - 7}, donate_argnums=0, out_shardings={"w": sharding})
    expected, aim = np.array(state["w"]), {"w": jax.ShapeDtypeStruct((1024, 4096), "float32", sharding=sharding)}
    jax.block_until_ready(update({"w": jnp.copy(state["w"])}))  # compiled before the race
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, position=0)
        for _ in range(3):
            state = update(state)
        jax.block_until_ready(state)
    np.testing.assert_array_equal(np.asarray(Checkpoints(tmp_path).restore(aim)[0]["w"]), expected)


def test_random_keys_round_trip(tmp_path):
    state = {"key": jax.random.key(3), "x": jnp.ones(4)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, position=0)
    restored, _ = Checkpoints(tmp_path).restore(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state))
    assert jax.random.uniform(restored["key"]) == jax.random.uniform(state["key"])


# ------------------------------------------------------------------------------------------ what is kept


def test_keeps_last_every_and_best(tmp_path):
    scores = {1: 0.1, 2: 0.9, 3: float("nan"), 4: 0.3, 5: 0.2, 6: 0.4, 7: 0.4}
    small = {"x": jnp.ones(3)}
    options = {"keep_last": 2, "keep_every": 4, "best": "R@1"}
    with Checkpoints(tmp_path, **options) as checkpoints:
        for step in (1, 2, 3, 4):
            checkpoints.save(step, small, position=0, metrics={"R@1": scores[step]})
    with Checkpoints(tmp_path, **options) as checkpoints:  # the scores are read back
        for step in (5, 6, 7):
            checkpoints.save(step, small, position=0, metrics={"R@1": scores[step]})
    assert list_steps(tmp_path / "checkpoints") == [2, 4, 6, 7]


def test_best_by_minimum_and_without_metric(tmp_path):
    with Checkpoints(tmp_path, keep_last=1, best="loss", best_mode="min") as checkpoints:
        for step, metrics in enumerate([{"loss": 3.0}, {"loss": 1.0}, {"loss": 2.0}, {"other": 0.0}, None]):
            checkpoints.save(step, {"x": jnp.ones(3)}, position=0, metrics=metrics)
    assert list_steps(tmp_path / "checkpoints") == [1, 4]


def test_bad_settings(tmp_path):
    with pytest.raises(ConfigError, match="keep_last"):
        Checkpoints(tmp_path, keep_last=0)
    with pytest.raises(ConfigError, match="best_mode"):
        Checkpoints(tmp_path, best_mode="largest")


# ------------------------------------------------------------------------------------------ damage


def truncate(workdir):
    path = newest_array_file(workdir, 2)
    os.truncate(path, path.stat().st_size // 2)


def flip_bit_of_array(workdir):
    path = newest_array_file(workdir, 2)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def flip_bit_of_document(workdir):
    path = workdir / "checkpoints" / "2" / "meta" / "data.json"
    path.write_text(path.read_text().replace('"position": 16', '"position": 17'))


def delete(name):
    def damage(workdir):
        (workdir / "checkpoints" / "2" / name).unlink()

    return damage


def empty_folder(workdir):
    (workdir / "checkpoints" / "3").mkdir()


DAMAGES = {
    "truncated": truncate,
    "flipped bit of an array": flip_bit_of_array,
    "flipped bit of the document": flip_bit_of_document,
    "no document": delete("meta/data.json"),
    "no marker": delete("_CHECKPOINT_METADATA"),
    "no tree": delete("state/_METADATA"),
    "no manifest": delete("state/manifest.ocdbt"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_step_is_named_and_the_one_before_used(tmp_path, caplog, capfd, damage):
    save_steps(tmp_path, 1, 2)
    DAMAGES[damage](tmp_path)
    with Checkpoints(tmp_path, keep_last=1) as checkpoints, caplog.at_level(logging.WARNING):
        restored, meta = checkpoints.restore(abstract(make_state(1)))
        assert_equal(make_state(1), restored)
        assert meta["position"] == 8
        (message,) = [r.getMessage() for r in caplog.records if r.name.startswith("xmodal")]
        assert "checkpoints/2 is damaged" in message and "step 1 is used" in message
        assert "never retrieved" not in capfd.readouterr().err, "Orbax's own alarm stays off the screen"
        assert checkpoints.save(2, make_state(2), position=16), "the number of the damaged step is free again"
    folder = tmp_path / "checkpoints"
    assert list_steps(folder) == [2] and (folder / "2.damaged").exists()


def test_empty_folder_is_no_checkpoint(tmp_path, caplog):
    save_steps(tmp_path, 1, 2)
    empty_folder(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert Checkpoints(tmp_path).restore(abstract(make_state(1)))[1]["step"] == 2
    assert "checkpoints/3 is damaged (it was never finished)" in caplog.text
    assert open_newest(tmp_path, lambda path: path).name == "2"


def test_all_damaged_is_an_error_and_moves_nothing(tmp_path):
    save_steps(tmp_path, 2)
    truncate(tmp_path)
    with pytest.raises(CheckpointError, match=r"all checkpoints .* are damaged:\n  2: its arrays cannot"):
        Checkpoints(tmp_path).restore(abstract(make_state(1)))
    assert list_steps(tmp_path / "checkpoints") == [2]


def test_only_an_empty_folder_begins_anew(tmp_path):
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    assert Checkpoints(tmp_path).restore(abstract(make_state(1))) is None


# ------------------------------------------------------------------------------------------ another model


def test_other_shapes_types_and_names_are_refused(tmp_path, monkeypatch):
    save_steps(tmp_path, 1)
    monkeypatch.setattr("xmodal.checkpoints.reading.ocp.load_checkpointables", None)  # not reached
    state = abstract(make_state(1))
    fc1 = state["params"]["image"].pop("fc1")
    state["params"]["image"]["fc2"] = fc1
    scale = state["params"]["objectives"]["logit_scale"]
    state["params"]["objectives"]["logit_scale"] = jax.ShapeDtypeStruct((), jnp.bfloat16, sharding=scale.sharding)
    bias = state["opt_state"][0]["mu"]["image"]["fc1"]["bias"]
    state["opt_state"][0]["mu"]["image"]["fc1"]["bias"] = jax.ShapeDtypeStruct(
        (2, 128), bias.dtype, sharding=bias.sharding
    )
    with pytest.raises(ConfigError) as error:
        Checkpoints(tmp_path).restore(state)
    message = str(error.value)
    assert "opt_state/0/mu/image/fc1/bias: saved bfloat16[2, 64], this config wants bfloat16[2, 128]" in message
    assert "params/objectives/logit_scale: saved float32[], this config wants bfloat16[]" in message
    assert "only in the checkpoint: params/image/fc1/bias, params/image/fc1/kernel" in message
    assert "only in the config: params/image/fc2/bias, params/image/fc2/kernel" in message
    assert list_steps(tmp_path / "checkpoints") == [1], "a good checkpoint of another model is left alone"


def test_parameters_alone(tmp_path):
    state = make_state(1)
    state["ema"] = jax.tree.map(lambda x: x * 3, state["params"])
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, position=0)
    path, shapes = open_newest(tmp_path, lambda path: path), jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state["params"]
    )  # fmt: skip
    assert_equal(restore_params(path, shapes), state["params"])
    assert_equal(restore_params(path, shapes, "ema"), state["ema"])
    with pytest.raises(ConfigError, match=r"no 'average'; it has ema, opt_state, params, step"):
        restore_params(path, shapes, "average")
    with pytest.raises(ConfigError, match=r"only in the checkpoint: params/objectives/logit_scale"):
        restore_params(path, {"image": shapes["image"]})
    flip_bit_anywhere = newest_array_file(tmp_path, 1)
    flip_bit_anywhere.write_bytes(b"")
    with pytest.raises(DamagedError):
        restore_params(path, shapes)


# ------------------------------------------------------------------------------------------ kills and full disks


def run(script, *args):
    environment = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, args)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


FULL_DISK = """
    import resource, sys
    import jax.numpy as jnp, numpy as np
    from xmodal.checkpoints.writing import Checkpoints
    checkpoints = Checkpoints(sys.argv[1], every=1)
    checkpoints.save(1, {"x": jnp.ones(10)}, position=0, wait=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # as a full disk: writing beyond it fails
    noise = jnp.asarray(np.random.default_rng(0).normal(size=(400, 400)))
    checkpoints.save(2, {"x": noise}, position=0)
    import time
    try:
        for step in range(2, 1000):
            checkpoints.due(step)
            time.sleep(0.02)
    except Exception as error:
        print(type(error).__name__, error)
    checkpoints.close()
"""


def test_full_disk_is_reported_while_the_run_goes_on(tmp_path):
    result = run(FULL_DISK, tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("CheckpointError the checkpoint of step 2 could not be written to"), result.stdout
    assert "may not become that large there" in result.stdout and "it goes on from step 1" in result.stdout
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"], "no debris stays on a full disk"


def test_full_disk_at_the_start_of_a_save(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device", "x")

    checkpoints = Checkpoints(tmp_path)
    monkeypatch.setattr("xmodal.checkpoints.writing.ocp.save_checkpointables_async", full)
    with pytest.raises(CheckpointError, match=r"step 4 .* No space left .* begins anew"):
        checkpoints.save(4, {"x": jnp.ones(3)}, position=0)
    checkpoints.close()


def test_context_does_not_hide_the_first_error(tmp_path, caplog):
    class Failing:
        def result(self, timeout):
            raise OSError(28, "No space left on device")

    with pytest.raises(KeyError, match="first"), Checkpoints(tmp_path) as checkpoints:
        checkpoints._pending = (5, Failing())
        raise KeyError("first")
    assert "step 5 could not be written" in caplog.text


KILLED = """
    import os, sys
    import jax.numpy as jnp
    from orbax.checkpoint.experimental.v1._src.handlers import json_handler
    from xmodal.checkpoints.writing import Checkpoints
    checkpoints = Checkpoints(sys.argv[1])
    checkpoints.save(1, {"x": jnp.ones(10)}, position=8, wait=True)
    async def kill(*_):
        os.kill(os.getpid(), 9)
    json_handler.async_path.write_text = kill  # the arrays are being written, the document not yet
    checkpoints.save(2, {"x": jnp.zeros(10)}, position=16, wait=True)
"""


def test_kill_in_the_middle_of_a_save(tmp_path):
    assert run(KILLED, tmp_path).returncode == -9
    folder = tmp_path / "checkpoints"
    assert any("tmp" in path.name for path in folder.iterdir()), "the kill came too late to test anything"
    with Checkpoints(tmp_path) as checkpoints:
        assert [path.name for path in folder.iterdir()] == ["1"]
        state, meta = checkpoints.restore({"x": jax.ShapeDtypeStruct((10,), jnp.float32)})
        assert meta["position"] == 8
        checkpoints.save(2, state, position=16)
    assert list_steps(folder) == [1, 2]


def test_half_deleted_step_does_not_count(tmp_path):
    save_steps(tmp_path, 1, 2, 3)
    (tmp_path / "checkpoints" / "1" / "_CHECKPOINT_METADATA").unlink()  # killed while it pruned step 1
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(abstract(make_state(1)))[1]["step"] == 3
        checkpoints.save(4, make_state(4), position=0)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["3", "4"]


def test_document_is_readable_by_eye(tmp_path):
    save_steps(tmp_path, 1)
    document = json.loads((tmp_path / "checkpoints" / "1" / "meta" / "data.json").read_text())
    assert document["arrays"]["params/image/fc1/kernel"]["shape"] == [2, 32, 64]
