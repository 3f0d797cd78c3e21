import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time

import jax
import pytest

from xmodal.config import ConfigError
from xmodal.distributed import runtime as runtime_module
from xmodal.distributed.runtime import Runtime, barrier, initialize, set_compile_cache
from xmodal.distributed.watchdog import EXIT_CODE, Watchdog


def start(script, *args, **environment):
    """Starts a script in a process of its own."""
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "XLA_FLAGS": "", "PYTHONUNBUFFERED": "1"} | environment
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, args)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(process, line):
    """Reads standard output up to a line."""
    for text in process.stdout:
        if text.strip() == line:
            return
    raise AssertionError(f"{line!r} did not come:\n{process.stderr.read()}")


def finish(process, seconds=60):
    """Returns (exit code, rest of the output, errors)."""
    try:
        out, error = process.communicate(timeout=seconds)
    finally:
        process.kill()
    return process.returncode, out, error


# ------------------------------------------------------------------------------------------ one process

LOOP = """
    import time
    from xmodal.distributed.runtime import Runtime, initialize
    with Runtime.start() as runtime:
        initialize()  # a second time changes nothing
        import jax
        assert jax.distributed.is_initialized() and runtime.process_count == 1 and runtime.process_index == 0
        print("ready")
        for step in range(3000):
            if runtime.preempted(step):
                print("stopped")
                break
            time.sleep(0.01)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_stops_at_the_next_step(number):
    process = start(LOOP)
    wait_for(process, "ready")
    began = time.monotonic()
    process.send_signal(number)
    code, out, error = finish(process)
    assert (code, out) == (0, "stopped\n"), error
    assert time.monotonic() - began < 10
    assert ("Ctrl-C: saving after this step" in error) == (number == signal.SIGINT)


def test_a_hangup_that_takes_the_reader_of_the_output_along_still_stops_in_order(tmp_path):
    """As `python train.py ... | tee log` in a terminal that is closed: the state must be saved, whoever listens."""
    saved = tmp_path / "saved"
    process = start(LOOP + "    import pathlib, sys; pathlib.Path(sys.argv[1]).touch()\n", saved)
    wait_for(process, "ready")
    process.stdout.close()
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 0, process.stderr.read()
    assert saved.exists()


def test_second_interrupt_quits_although_the_main_thread_is_stuck():
    process = start("""
        import threading
        from xmodal.distributed.runtime import Runtime
        with Runtime.start():
            lock = threading.Lock()
            lock.acquire()
            print("ready")
            lock.acquire()  # for ever, without a chance for Python's own signal handling
    """)
    wait_for(process, "ready")
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    code, _, error = finish(process)
    assert code == 130 and "quitting without saving" in error


def test_signals_are_given_back(monkeypatch):
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    threads = threading.active_count()
    with Runtime.start() as runtime:  # JAX is in use already, as in a notebook
        assert signal.getsignal(signal.SIGTERM) not in before and not runtime.preempted(0)
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(500):
            if runtime.preempted(1):
                break
            time.sleep(0.01)
        assert runtime.preempted(1)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    assert threading.active_count() == threads


def test_initialize_with_jax_in_use():
    assert len(jax.devices()) == 8
    initialize()
    barrier("alone")


@pytest.mark.parametrize(
    "variables, message",
    [
        ({"JAX_NUM_PROCESSES": "2"}, "sets JAX_NUM_PROCESSES but not JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID"),
        (
            {"JAX_COORDINATOR_ADDRESS": "host:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"},
            "expected JAX_COORDINATOR_ADDRESS=host:port",
        ),
    ],
)
def test_bad_environment(monkeypatch, variables, message):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        initialize()


def test_compile_cache(monkeypatch, tmp_path):
    given = {}
    monkeypatch.setattr(runtime_module.jax.config, "update", given.__setitem__)
    set_compile_cache(str(tmp_path / "a"))
    assert not given, "the environment's choice stands"
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    set_compile_cache("")
    assert not given
    monkeypatch.setenv("HOME", str(tmp_path))
    set_compile_cache("~/cache/jax")
    assert given["jax_compilation_cache_dir"] == str(tmp_path / "cache" / "jax")
    assert (tmp_path / "cache" / "jax").stat().st_mode & 0o077 == 0
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="nothing is kept"):
        set_compile_cache(str(tmp_path / "file" / "jax"))


# ------------------------------------------------------------------------------------------ watchdog


def test_watchdog_ends_a_stuck_run_and_says_where():
    process = start("""
        import threading
        from xmodal.distributed.watchdog import Watchdog
        def read_from_dead_disk():
            threading.Event().wait()
        with Watchdog(60, 0.3) as watchdog:
            watchdog.beat()
            with watchdog.slow("opening the data"):
                read_from_dead_disk()
    """)
    code, _, error = finish(process)
    assert code == EXIT_CODE == 83
    assert "no progress for 0.3 s while waiting for: opening the data (1 steps finished)" in error
    assert "read_from_dead_disk" in error and "Raise watchdog.slow" in error


def test_watchdog_names_the_shard_that_does_not_come():
    process = start("""
        import socket
        from data_pipelines.io.storage import Files, stalled_reads
        from xmodal.distributed.watchdog import Watchdog
        server = socket.create_server(("127.0.0.1", 0))  # accepts, and never answers
        with Watchdog(1.0, 1.0, evidence=lambda: stalled_reads(0.1)):
            Files().read(f"http://127.0.0.1:{server.getsockname()[1]}/shard-07.tar?secret=1", 512, 1024)
    """)
    code, _, error = finish(process)
    assert code == EXIT_CODE
    assert "reading bytes 512 to 1,024 of http://127.0.0.1" in error and "shard-07.tar for" in error
    assert "secret" not in error.partition("Stacks")[0]


def watch(step, slow, work):
    """Runs `work` under a watchdog that only notes that it would have ended the process."""
    ended = []
    with Watchdog(step, slow, end=ended.append) as watchdog:
        work(watchdog)
    return ended


def test_watchdog_leaves_a_working_run_alone(capfd):
    def work(watchdog):
        with watchdog.slow("compiling"):
            time.sleep(0.8)
        for _ in range(10):
            time.sleep(0.08)
            watchdog.beat()

    assert watch(0.5, 5.0, work) == []
    assert watch(0, 0, lambda _: time.sleep(0.3)) == [], "0 is no limit"
    assert watch(0.1, 5.0, lambda _: time.sleep(0.5)) == [EXIT_CODE]
    assert "waiting for: a training step" in capfd.readouterr().err


def test_watchdog_does_not_count_a_suspension():
    process = start("""
        import time
        from xmodal.distributed.watchdog import Watchdog
        with Watchdog(2.0, 2.0) as watchdog:
            print("ready")
            for _ in range(30):
                time.sleep(0.05)
                watchdog.beat()
        print("done")
    """)
    wait_for(process, "ready")
    process.send_signal(signal.SIGSTOP)
    time.sleep(3.0)
    process.send_signal(signal.SIGCONT)
    code, out, error = finish(process)
    assert (code, out) == (0, "done\n"), error


# ------------------------------------------------------------------------------------------ two processes


def start_two(script, *args):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    environment = {
        "JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }  # fmt: skip
    return [start(script, *args, **environment, JAX_PROCESS_ID=str(i)) for i in range(2)]


TOGETHER = """
    import os, signal, sys, time
    from pathlib import Path
    from xmodal.distributed.runtime import Runtime, barrier
    from xmodal.distributed.mesh import assert_same_rows, make_mesh, process_shard, to_global

    with Runtime.start() as runtime:
        import jax, jax.numpy as jnp, numpy as np
        from xmodal.checkpoints.writing import Checkpoints
        from xmodal.checkpoints.reading import CheckpointError
        me = runtime.process_index
        assert (jax.process_count(), jax.device_count()) == (2, 4)

        # data: split over the processes, or the same rows on both
        rows = np.arange(8, dtype=np.float32)
        split = make_mesh({"data": 2, "fsdp": 1, "tensor": 2})
        assert process_shard(split, 8) == (me, 2)
        own = {"x": rows[4 * me : 4 * me + 4]}
        assert_same_rows(own, split, 8)
        assert float(jnp.sum(to_global(own, split)["x"])) == 28
        across = make_mesh({"data": 1, "fsdp": 1, "tensor": 4})
        assert process_shard(across, 8) == (0, 1)
        assert_same_rows({"x": rows}, across, 8)
        try:
            assert_same_rows({"x": rows + me}, across, 8)
            raise SystemExit("different rows went unnoticed")
        except RuntimeError as error:
            assert "processes [0, 1]" in str(error)

        # checkpoints: written by both, damaged for both
        sharding = jax.NamedSharding(make_mesh({"data": 1, "fsdp": 4, "tensor": 1}), jax.P("fsdp"))
        noise = np.random.default_rng(0).normal(size=(2, 4096)).astype(np.float32)  # does not compress away
        make = lambda step: {"w": jax.make_array_from_callback((8, 4096), sharding, lambda _: noise + step)}
        folder = Path(sys.argv[1]) / "checkpoints"
        with Checkpoints(sys.argv[1], keep_last=2) as checkpoints:
            for step in (1, 2, 3):
                checkpoints.save(step, make(step), position=step)
        barrier("saved")
        assert sorted(p.name for p in folder.iterdir()) == ["2", "3"]
        barrier("seen")
        if me == 0:
            data = max((folder / "3" / "state").glob("ocdbt.process_1/d/*"), key=lambda p: p.stat().st_size)
            data.write_bytes(b"")
        barrier("damaged")
        with Checkpoints(sys.argv[1]) as checkpoints:
            wanted = {"w": jax.ShapeDtypeStruct((8, 4096), np.float32, sharding=sharding)}
            state, meta = checkpoints.restore(wanted)
        assert meta["position"] == 2 and float(jnp.max(state["w"] - make(2)["w"])) == 0

        # a barrier that one process does not reach
        if me == 0:
            try:
                barrier("lunch", seconds=0.5)
                raise SystemExit("the barrier did not end")
            except RuntimeError as error:
                assert "'lunch'" in str(error) and "1" in str(error), error
                print(error, file=sys.stderr)
        else:
            time.sleep(1)

        # a signal to one stops both at the same step
        print("ready")
        for step in range(3000):
            if runtime.preempted(step):
                break
            time.sleep(0.01)
        assert runtime.preempted(step)
        print("stopped at", step)
"""


def test_two_processes(tmp_path):
    first, second = start_two(TOGETHER, tmp_path)
    try:
        wait_for(first, "ready")
        wait_for(second, "ready")
        second.send_signal(signal.SIGINT)
        (code, out, error), (other_code, other_out, other_error) = finish(first), finish(second)
        assert (code, other_code) == (0, 0), error + other_error
        assert out == other_out and 0 < int(out.split()[-1]) < 2999
        assert "Ctrl-C: saving after this step" in other_error
    finally:
        first.kill(), second.kill()


def test_exception_ends_its_process_at_once():
    first, second = start_two("""
        import time
        from xmodal.distributed.runtime import Runtime
        with Runtime.start() as runtime:
            if runtime.process_index == 1:
                raise ValueError("broken on one host")
            time.sleep(100)
    """)
    try:
        began = time.monotonic()
        code, _, error = finish(second)
        assert code == 1 and "ValueError: broken on one host" in error
        assert time.monotonic() - began < 30, "it waited for the other process"
    finally:
        first.kill(), second.kill()
        finish(first)


@pytest.mark.parametrize("killed", [0, 1])
def test_the_survivor_says_which_process_is_gone(killed):
    processes = start_two("""
        from xmodal.distributed.runtime import Runtime
        from xmodal.errors import user_errors
        with user_errors(), Runtime.start() as runtime:
            import numpy as np
            from jax.experimental import multihost_utils
            multihost_utils.process_allgather(np.ones(3))
            print("ready")
            while True:
                multihost_utils.process_allgather(np.ones(3))
    """)
    survivor = processes[1 - killed]
    try:
        for process in processes:
            wait_for(process, "ready")
        processes[killed].kill()
        code, _, error = finish(survivor, 120)
        last = error.rstrip().splitlines()[-1]
        assert code == 1 and last.startswith(f"error: process {1 - killed} of 2 ends, because process {killed} is gone")
        assert "The same command on all machines goes on from the last checkpoint" in last
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.parametrize("variables", [
    dict(SLURM_JOB_ID="77", SLURM_STEP_NODELIST="localhost", SLURM_NTASKS="2", SLURM_PROCID="1", SLURM_LOCALID="0"),
    dict(JAX_COORDINATOR_ADDRESS="localhost:61517", JAX_NUM_PROCESSES="2", JAX_PROCESS_ID="1"),
])  # fmt: skip
def test_what_is_waited_for_is_said_at_once_and_ends(variables):
    script = "from xmodal.distributed.runtime import Runtime\nwith Runtime.start() as r: print(r.process_count)"
    code, _, error = finish(start(script, **variables, XMODAL_JOIN_SECONDS="2"), 120)
    first, last = error.splitlines()
    assert "this is process 1 of 2 and waits up to 2 s (XMODAL_JOIN_SECONDS) for the others at localhost:6" in first
    assert first.endswith("To run this process alone, set XMODAL_ALONE=1")
    assert code == 1 and last.startswith("error: not all processes have come in 2 s. ")
    assert ("that of SLURM" in last) == ("SLURM_JOB_ID" in variables)
    code, out, error = finish(start(script, **variables, XMODAL_ALONE="1"), 120)
    assert (code, out, error) == (0, "1\n", "")


def test_a_process_that_failed_ends_although_a_thread_is_stuck():
    """Output that cannot be shown is no failure."""
    process = start("""
        import sys, threading
        from xmodal.errors import TrainingError, end_process, user_errors
        def main(argv):
            print("größe 日本")
            threading.Thread(target=threading.Event().wait).start()
            with user_errors():
                raise TrainingError("the end")
        end_process(main, [])
    """, PYTHONIOENCODING="ascii")  # fmt: skip
    code, out, error = finish(process, 120)
    assert (code, out, error) == (1, "gr\\xf6\\xdfe \\u65e5\\u672c\n", "error: the end\n")


def test_a_terminal_that_is_gone_stops_a_run_as_a_signal_does():
    master, terminal = os.openpty()
    script = LOOP.replace('print("ready")', 'print("ready", flush=True)').replace(
        'print("stopped")', 'print("x" * 9999, flush=True); open(sys.argv[1], "w").write("stopped")'
    ).replace("import time", "import sys, time")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script), f"{folder}/out"], stdin=terminal, stdout=terminal,
            stderr=terminal, start_new_session=True, env=os.environ | {"PYTHONPATH": os.getcwd(), "XLA_FLAGS": ""},
        )  # fmt: skip
        os.close(terminal)
        seen = b""
        while b"ready" not in seen:
            seen += os.read(master, 1000)
        os.close(master)
        process.send_signal(signal.SIGHUP)
        assert process.wait(120) == 0
        with open(f"{folder}/out") as file:
            assert file.read() == "stopped"
