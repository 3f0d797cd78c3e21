"""One run at a time in a folder: living ones are left alone, dead ones give way."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests import tiny_runs
from xmodal.errors import TrainingError
from xmodal.training import lock as lock_module
from xmodal.training.lock import FILE, Owner, RunLock, refuse_second


def write(folder, **changes):
    """A lock as another run would have written it."""
    owner = dataclasses.replace(Owner.me(), **changes)
    (folder / FILE).write_text(json.dumps(dataclasses.asdict(owner)))
    return owner


def age(folder, seconds):
    """Makes the lock look as if it was touched that long ago."""
    now = time.time()
    os.utime(folder / FILE, (now - seconds, now - seconds))


@pytest.fixture
def other():
    """A living process."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.wait()


def test_a_living_run_keeps_its_folder(tmp_path, other):
    with RunLock(tmp_path):
        with pytest.raises(TrainingError, match=rf"another run is at work there \(process {os.getpid()} on "):
            RunLock(tmp_path)
        with pytest.raises(TrainingError, match=r"Wait for it or stop it, or name another --workdir"):
            refuse_second(tmp_path)
    assert not list(tmp_path.iterdir()), "nothing is left"
    refuse_second(tmp_path)
    write(tmp_path, pid=other.pid, began=lock_module._began(other.pid))
    with pytest.raises(TrainingError, match=f"process {other.pid}"):
        RunLock(tmp_path)


def test_a_folder_in_place_of_the_lock_is_named(tmp_path):
    (tmp_path / FILE).mkdir()
    with pytest.raises(TrainingError, match=r"run\.lock is a folder, and a run keeps a file of that name: delete it"):
        RunLock(tmp_path)


def test_locks_of_dead_runs_are_taken_over(tmp_path, other):
    began = lock_module._began(other.pid)
    other.kill()
    time.sleep(0.2)  # dead, and not yet waited for
    left = [
        dict(pid=other.pid, began=began),
        dict(pid=os.getpid(), began="1"),  # the number was given to another process
        dict(boot="before the machine was started again"),
    ]
    for changes in left:
        write(tmp_path, **changes)
        refuse_second(tmp_path)
        with RunLock(tmp_path):
            assert json.loads((tmp_path / FILE).read_text())["began"] == lock_module._began(os.getpid())
        assert not list(tmp_path.iterdir())
    (tmp_path / FILE).write_text('{"host": "half a')
    age(tmp_path, 100)
    with RunLock(tmp_path):
        pass


@pytest.mark.parametrize("elsewhere", [dict(host="another-machine"), dict(space="pid:[of another container]")])
def test_runs_of_other_machines_are_judged_by_their_beat(tmp_path, monkeypatch, capsys, elsewhere):
    monkeypatch.setattr(lock_module, "SILENT_SECONDS", 3.0)
    owner = write(tmp_path, pid=1, **elsewhere)
    beats = subprocess.Popen(
        [sys.executable, "-c", "import os, sys, time\nfor _ in range(99): time.sleep(0.3); os.utime(sys.argv[1])",
         str(tmp_path / FILE)]
    )  # fmt: skip
    try:
        began = time.monotonic()
        with pytest.raises(TrainingError, match=f"process 1 on {owner.host}"):
            RunLock(tmp_path)
        assert time.monotonic() - began < 3
        assert f"by process 1 on {owner.host}: waiting for a sign of life" in capsys.readouterr().out
    finally:
        beats.kill()
        beats.wait()
    age(tmp_path, 2.5)
    with RunLock(tmp_path):
        assert json.loads((tmp_path / FILE).read_text())["host"] == socket.gethostname()


def test_two_that_find_a_dead_lock_do_not_both_get_it(tmp_path):
    script = """
        import sys
        from pathlib import Path
        from xmodal.errors import TrainingError
        from xmodal.training.lock import RunLock
        print("ready", flush=True); input()
        try:
            with RunLock(sys.argv[1]):
                print("mine", flush=True); input()
        except TrainingError:
            print("refused", flush=True); input()
    """
    write(tmp_path, boot="before")
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    command = [sys.executable, "-c", "\n".join(line[8:] for line in script.splitlines()), str(tmp_path)]
    processes = [subprocess.Popen(command, **pipes) for _ in range(4)]
    try:
        assert [p.stdout.readline() for p in processes] == ["ready\n"] * 4
        for process in processes:
            process.stdin.write("\n")
            process.stdin.flush()
        assert sorted(p.stdout.readline() for p in processes) == ["mine\n", *["refused\n"] * 3]
    finally:
        for process in processes:
            process.communicate("\n")


def wait_until(test, seconds=10):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if test():
            return True
        time.sleep(0.05)
    return False


def lost(lock):
    try:
        lock.check()
    except TrainingError as error:
        return str(error)
    return ""


def test_the_owner_beats_and_notices_what_happens_to_its_folder(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with RunLock(folder, beat_seconds=0.05) as lock:
        age(folder, 100)
        assert wait_until(lambda: time.time() - (folder / FILE).stat().st_mtime < 50)
        (folder / FILE).unlink()
        assert wait_until((folder / FILE).exists), "deleted by hand: it is written again"
        assert not lost(lock)
        folder.rename(tmp_path / "moved")
        folder.mkdir()  # as writing any file would
        assert wait_until(lambda: "was deleted or replaced while the run was at work" in lost(lock))
    assert not list(folder.iterdir())
    with RunLock(folder, beat_seconds=0.05) as lock:
        owner = write(folder, token="of another")
        assert wait_until(lambda: f"taken over the run folder {folder}" in lost(lock))
    assert json.loads((folder / FILE).read_text())["token"] == owner.token, "it is not ours to delete"


def test_a_disk_that_fails_once_does_not_end_the_beat(tmp_path, monkeypatch):
    answers = iter([OSError("stale file handle"), "", "taken over"])

    def look(_):
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr(RunLock, "_look", look)
    with RunLock(tmp_path, beat_seconds=0.01) as lock:
        lock._thread.join(10)
        with pytest.raises(TrainingError, match="taken over"):
            lock.check()


def test_a_second_run_is_refused_and_the_first_is_untouched(tmp_path):
    """Also: a run whose folder is deleted ends with one line, and files that a killed run left are gone."""
    data = tiny_runs.make_data(tmp_path)
    workdir = tmp_path / "run"
    workdir.mkdir()
    left = workdir / f".results.json.{os.getpid()}.tmp"
    left.write_text("half")
    arguments = tiny_runs.flags(data, evals="{}", schedule__total=100_000, checkpoint__every=0)
    first = tiny_runs.start_training(workdir, arguments)
    try:
        assert wait_until(lambda: (workdir / "metrics.jsonl").exists() and tiny_runs.rows(workdir), 120)
        assert not left.exists()
        code, out, error = tiny_runs.finish(tiny_runs.start_training(workdir, arguments))
        assert (code, out) == (1, "") and error.count("\n") == 1
        assert error.startswith(f"error: --workdir {workdir}: another run is at work there (process {first.pid} on ")
        seen = len(tiny_runs.rows(workdir))
        assert wait_until(lambda: len(tiny_runs.rows(workdir)) > seen)
        workdir.rename(tmp_path / "moved")
        code, _, error = tiny_runs.finish(first, 60)
    finally:
        first.kill()
    assert code == 1 and error.splitlines()[-1].startswith(f"error: the run folder {workdir} was deleted or replaced")
    assert "Traceback" not in error
    assert not workdir.exists() or not any(workdir.iterdir())


def test_a_killed_run_goes_on_at_once(tmp_path):
    data = tiny_runs.make_data(tmp_path)
    arguments = tiny_runs.flags(data, evals="{}", schedule__total=100_000, checkpoint__every=0)
    process = tiny_runs.start_training(tmp_path / "run", arguments)
    assert wait_until((tmp_path / "run" / "metrics.jsonl").exists, 120)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / "run" / FILE).exists()
    assert tiny_runs.run(tmp_path / "run", arguments, tiny_runs.StopAt(1)) == {"step": 1}
    assert not (tmp_path / "run" / FILE).exists()
