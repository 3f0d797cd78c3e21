import jax
import numpy as np
import pytest

from data_pipelines.errors import DataError
from xmodal.config import ConfigError
from xmodal.distributed.mesh import (
    assert_same_data,
    assert_same_rows,
    batch_fingerprint,
    batch_sharding,
    check_batch,
    check_data,
    check_fingerprints,
    group_rows,
    make_mesh,
    num_batch_shards,
    process_shard,
    to_global,
)


def config(data=-1, fsdp=1, tensor=1):
    return {"data": data, "fsdp": fsdp, "tensor": tensor, "rules": ()}


@pytest.mark.parametrize(
    "sizes, expected",
    [((-1, 1, 1), (8, 1, 1)), ((2, -1, 2), (2, 2, 2)), ((1, 4, -1), (1, 4, 2)), ((2, 2, 2), (2, 2, 2))],
)
def test_mesh_sizes(sizes, expected):
    mesh = make_mesh(config(*sizes))
    assert mesh.axis_names == ("data", "fsdp", "tensor") and mesh.devices.shape == expected
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}
    assert num_batch_shards(mesh) == expected[0] * expected[1]


def test_mesh_of_some_devices():
    assert make_mesh(config(), devices=jax.devices()[:3]).devices.shape == (3, 1, 1)


@pytest.mark.parametrize(
    "sizes, message",
    [
        ((2, 2, 1), "take 4 devices and there are 8; their product must be 8"),
        ((-1, 3, 1), "take 3 devices and there are 8; their product must divide 8"),
        ((-1, -1, 1), "only one axis can be -1"),
        ((8, 1, 0), "mesh.tensor=0: an axis has at least 1"),
    ],
)
def test_bad_mesh_sizes(sizes, message):
    with pytest.raises(ConfigError, match=message):
        make_mesh(config(*sizes))


def test_check_batch():
    mesh = make_mesh(config(2, 2, 2))
    check_batch(24, 3, mesh)
    with pytest.raises(ConfigError) as error:
        check_batch(30, 2, mesh)
    assert "batch_size=30" in str(error.value) and "accumulation=2" in str(error.value)
    assert "4 batch shards" in str(error.value) and "multiple of 8; the nearest are 24 or 32" in str(error.value)
    with pytest.raises(ConfigError, match=r"nearest are 8$"):
        check_batch(3, 2, mesh)
    with pytest.raises(ConfigError, match="accumulation=0"):
        check_batch(8, 0, mesh)


def test_to_global_puts_rows_on_their_shards():
    mesh = make_mesh(config(2, 2, 2))
    batch = {"image": np.arange(32, dtype=np.uint8).reshape(8, 2, 2), "id": np.arange(8)}
    arrays = to_global(batch, mesh)
    assert arrays["image"].shape == (8, 2, 2) and arrays["image"].sharding == batch_sharding(mesh)
    assert {shard.data.shape for shard in arrays["image"].addressable_shards} == {(2, 2, 2)}
    jax.tree.map(np.testing.assert_array_equal, arrays, batch)
    assert process_shard(mesh, 8) == (0, 1)


def test_groups_of_processes():
    replicas = {0: {(0, 4)}, 1: {(0, 4)}, 2: {(4, 8)}, 3: {(4, 8)}}  # the tensor axis crosses processes
    assert [group_rows(replicas, p) for p in replicas] == [(0, 2), (0, 2), (1, 2), (1, 2)]
    woven = {0: {(0, 2), (4, 6)}, 1: {(2, 4), (6, 8)}}  # as on a torus: equal parts, not neighbours
    assert [group_rows(woven, p) for p in woven] == [(0, 2), (1, 2)]
    with pytest.raises(ConfigError, match="share a part of their rows"):
        group_rows({0: {(0, 4)}, 1: {(0, 4), (4, 8)}}, 0)
    with pytest.raises(ConfigError, match="share a part of their rows"):
        group_rows({0: {(0, 2), (2, 4)}, 1: {(2, 4), (4, 6)}}, 0)


def test_fingerprints():
    batch = {"a": np.arange(6, dtype=np.int32).reshape(2, 3), "b": np.array([True, False])}
    same = batch_fingerprint({"b": batch["b"].copy(), "a": np.asfortranarray(batch["a"])})
    assert batch_fingerprint(batch) == same
    assert batch_fingerprint(batch) != batch_fingerprint({**batch, "b": ~batch["b"]})
    assert batch_fingerprint(batch) != batch_fingerprint({**batch, "a": batch["a"].reshape(3, 2)})
    check_fingerprints(np.array([[0, 7], [1, 8], [0, 7]]))
    with pytest.raises(RuntimeError, match=r"processes \[0, 2\] hold the same rows .*part 0"):
        check_fingerprints(np.array([[0, 7], [1, 8], [0, 9]]))
    assert_same_rows(batch, make_mesh(config()), 8)  # one process always agrees with itself


def test_data_of_processes():
    check_data("data.sources", np.array([[7, 1], [7, 1]]))
    with pytest.raises(DataError, match=r"data\.sources: processes 1, 3 found other data than process 0"):
        check_data("data.sources", np.array([[7, 1], [7, 2], [7, 1], [0, 1]]))
    assert_same_data("data.sources", "0123456789abcdef")  # one process always agrees with itself
