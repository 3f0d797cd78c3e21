"""A run gives the same on one device, on any mesh, and on several processes."""

import os
import re
import signal
import socket
import time

import pytest

from tests import tiny_runs
from xmodal.training.command import INTERRUPTED

STEPS = 20
MESHES = {2: (8, 1, 1), 4: (2, 2, 2), 6: (1, 4, 2)}  # last step: (data, fsdp, tensor)


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    data = tiny_runs.make_data(tmp_path_factory.mktemp("data"))
    return tiny_runs.flags(
        data, schedule__total=STEPS, schedule__decay="constant", optimizer__lr=1e-3, evals__held_out__every=3,
        checkpoint__every=0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def reference(tmp_path_factory, arguments):
    """Metric rows of the run on one device."""
    workdir = tmp_path_factory.mktemp("reference")
    tiny_runs.run(workdir, arguments)
    return tiny_runs.rows(workdir)


def assert_same(rows, reference, tolerance):
    """Compares training rows and evaluations step by step."""
    key = lambda row: (row["step"], "train/loss" in row)
    expected = {key(row): row for row in reference}
    for row in rows:
        other = expected[key(row)]
        names = {n for n in row if n != "time" and not n.startswith("throughput/")}
        assert names == {n for n in other if n != "time" and not n.startswith("throughput/")}
        for name in names:
            assert row[name] == pytest.approx(other[name], rel=tolerance, abs=tolerance), (row["step"], name)


def test_every_mesh_trains_like_one_device_and_may_take_over(reference, arguments, tmp_path, capsys):
    workdir = tmp_path / "run"
    for stop, (data, fsdp, tensor) in MESHES.items():
        mesh = [f"--config.mesh.{name}={size}" for name, size in dict(data=data, fsdp=fsdp, tensor=tensor).items()]
        assert tiny_runs.run(workdir, [*arguments, *mesh], tiny_runs.StopAt(stop), 8) == {"step": stop}
        out = capsys.readouterr().out
        assert re.search(rf"mesh +data {data} x fsdp {fsdp} x tensor {tensor}", out)
        sharded = {axis for axis in ("fsdp", "tensor") if re.search(rf"kernel .* {axis}\b", out)}
        assert sharded == {axis for axis, size in (("fsdp", fsdp), ("tensor", tensor)) if size > 1}
        if data < 8:
            assert re.search(rf"changed +mesh.data: .* -> {data}", out)
    rows = tiny_runs.rows(workdir)
    assert [row["step"] for row in rows if "train/loss" in row] == list(range(1, 7))
    assert [row["step"] for row in rows if "train/loss" not in row] == [3, 6]
    assert_same(rows, reference, tolerance=1e-3)


def start_two(workdir, arguments):
    """Starts a run of two processes, with arguments for both or a pair of them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    of = dict(JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES="2")
    own = arguments if isinstance(arguments, tuple) else (arguments, arguments)
    start = lambda i: tiny_runs.start_training(workdir, own[i], JAX_PROCESS_ID=str(i), **of)
    return [start(0), start(1)]


def end(processes):
    """Waits for all, whatever happens to one; returns [(code, output, errors)]."""
    try:
        return [tiny_runs.finish(process) for process in processes]
    finally:
        for process in processes:
            process.kill()


def test_two_processes_are_one_run_and_stop_together(reference, arguments, tmp_path, capsys):
    """Each holds one half of the parameters; one process takes their run over."""
    workdir, halves = tmp_path / "run", [*arguments, "--config.mesh.data=1", "--config.mesh.fsdp=2"]
    processes = start_two(workdir, halves)
    metrics = workdir / "metrics.jsonl"
    while all(p.poll() is None for p in processes) and not (metrics.exists() and '"step": 7,' in metrics.read_text()):
        time.sleep(0.005)
    processes[1].send_signal(signal.SIGTERM)  # the scheduler may tell any of them
    (code, out, error), (other, silent, _) = end(processes)
    assert (code, other) == (INTERRUPTED, INTERRUPTED), error
    assert "2 x cpu (cpu), 2 processes" in out
    assert all(line.startswith("[Gloo]") for line in silent.splitlines()), "one process speaks for all"
    (saved,) = (int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert 7 <= saved < STEPS
    rows = tiny_runs.rows(workdir)
    assert rows[-1]["step"] == saved and sum("train/loss" not in row for row in rows) == saved // 3
    assert_same(rows, reference, tolerance=1e-3)

    tiny_runs.run(workdir, arguments)
    out = capsys.readouterr().out
    assert f"continues from step {saved}" in out and "1 process" in out
    rows = tiny_runs.rows(workdir)
    assert len(rows) == len(reference)
    assert_same(rows, reference, tolerance=5e-3)


@pytest.mark.parametrize(
    ("option", "where"),
    [("data.sources.main.urls", "data.sources"), ("evals.held_out.urls", "evals.held_out.source")],
)
def test_processes_that_see_other_data_end_at_once(arguments, tmp_path, option, where):
    """A copy that is not complete, on one of two machines: each process reads its own rows, so nothing else shows."""
    (tmp_path / "data").mkdir()
    data = tiny_runs.make_data(tmp_path / "data")
    shard = data / "s-01.tar"
    shard.write_bytes(shard.read_bytes().replace(b"thing 30", bytes(8)))  # the size is the same
    other = [*arguments, f"--config.{option}={data}/s-{{00..01}}.tar"]
    for number, (code, _, error) in enumerate(end(start_two(tmp_path / "run", (arguments, other)))):
        assert code == 1 and "Traceback" not in error, error
        if number == 0:  # which other one ended first decides what process 1 can still say
            assert f"error: {where}: process 1 found other data than process 0" in error


def test_a_process_with_a_fault_of_its_own_ends_at_once(arguments, tmp_path):
    """It must not wait for the others, which wait for it."""
    wrong = [*arguments, "--config.data.sources.main.urls=nowhere.tar"]
    began = time.monotonic()
    processes = start_two(tmp_path / "run", (arguments, wrong))
    try:
        code, _, error = tiny_runs.finish(processes[1], seconds=50)
        assert code == 1 and "error: data.sources.main: no shard matches 'nowhere.tar'" in error
        assert "Traceback" not in error and time.monotonic() - began < 50
    finally:
        os.kill(processes[0].pid, signal.SIGKILL)
        tiny_runs.finish(processes[0])
