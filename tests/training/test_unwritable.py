"""A checkpoint that cannot be written ends the process soon, with one last line whose advice fits the cause."""

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

import train as train_script
from tests import tiny_runs
from xmodal.__main__ import main as xmodal_main
from xmodal.config import ConfigError
from xmodal.reporting.files import advice_for, clear_disk_errors
from xmodal.stored.opening import open_stored
from xmodal.training.folder import make_folder

ADVICE = {
    "EPERM": "It may not be written (any more): look at the owner and the permissions",
    "EACCES": "It may not be written (any more): look at the owner and the permissions",
    "EROFS": "That disk is mounted read-only",
    "EIO": "The disk or its server has failed",
    "ENOTDIR": "A part of that path was deleted, moved or replaced",
    "ENOSPC": "MiB were free there. Make room on that disk",
}

SAVING = """
    import errno, os, sys, time
    import jax.numpy as jnp
    from xmodal.errors import end_process, user_errors
    from xmodal.checkpoints.writing import Checkpoints

    def main(argv):
        real, state = os.mkdir, {"x": jnp.ones(10)}
        checkpoints = Checkpoints(argv[0], every=1)
        checkpoints.save(1, state, position=8, wait=True)
        for name in argv[1:]:
            number = getattr(errno, name)
            def mkdir(path, *args, **options):
                if "orbax-checkpoint-tmp" in str(path):
                    raise OSError(number, os.strerror(number), str(path))
                return real(path, *args, **options)
            os.mkdir = mkdir
            try:
                checkpoints.save(2, state, position=16, wait=True)
            except Exception as error:
                print(name, error)
        def broken(*args, **options):
            raise ValueError("time went backwards")
        os.mkdir = broken
        print("saving", flush=True)
        with user_errors(), checkpoints:
            checkpoints.save(2, state, position=16)
            for step in range(2, 2000):
                checkpoints.due(step)
                time.sleep(0.01)

    end_process(main, sys.argv[1:])
"""


def test_every_cause_has_its_advice_and_the_process_ends(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(SAVING), str(tmp_path), *ADVICE]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": os.getcwd(), "XLA_FLAGS": ""}, **pipes) as process:
        said = {}
        for line in process.stdout:
            if line == "saving\n":
                break
            said[line.split()[0]] = line
        began = time.monotonic()
        _, error = process.communicate(timeout=250)
    assert process.returncode == 1 and time.monotonic() - began < 60, "Orbax's threads would keep it for 300 s"
    assert said.keys() == ADVICE.keys()
    for name, advice in ADVICE.items():
        assert advice in said[name] and "it goes on from step 1." in said[name], said[name]
        assert ("room" in said[name]) == (name == "ENOSPC")
    assert error.count("\n") == 1, error
    assert error.startswith("error: the checkpoint of step 2 could not be written to")
    assert "time went backwards" in error and "room" not in error


def test_a_run_whose_checkpoint_folder_is_replaced_ends_with_one_line(tmp_path):
    data, workdir = tiny_runs.make_data(tmp_path), tmp_path / "run"
    arguments = tiny_runs.flags(data, evals="{}", schedule__total=100_000, checkpoint__every=1000)
    process = tiny_runs.start_training(workdir, arguments)
    try:
        while process.poll() is None and not (workdir / "metrics.jsonl").exists():
            time.sleep(0.05)
        shutil.rmtree(workdir / "checkpoints")
        (workdir / "checkpoints").write_text("in the way")
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        code, _, error = tiny_runs.finish(process)
    finally:
        process.kill()
    assert code == 1 and time.monotonic() - began < 60
    last = error.rstrip().splitlines()[-1]
    assert re.match(
        r"error: the checkpoint of step \d+ could not be written to .*Not a directory.* bring it back", last
    )
    assert "Traceback" not in error


def test_advice_finds_the_number_wherever_it_is():
    wrapped = RuntimeError("saving failed")
    wrapped.__cause__ = ValueError("OUT_OF_RANGE: Failed to write: No space left [os_error_code='28']")
    assert "Make room" in advice_for(wrapped)
    assert advice_for(ValueError("steps must rise")) == ""
    assert "permissions" in advice_for(PermissionError(errno.EACCES, "x"))
    read_only = pytest.raises(OSError, match=r"Read-only file system while writing a/b. That disk is mounted read-only")
    with read_only, clear_disk_errors("a/b"):
        raise OSError(errno.EROFS, "x")
    with pytest.raises(KeyError), clear_disk_errors("a/b"):
        raise KeyError


# ------------------------------------------------------------------------------------------ places and exit codes


@pytest.mark.parametrize("url", ["gs://bucket/run", "s3://bucket/run", "https://host/run"])
def test_a_url_is_no_run_folder(url, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    commands = [
        (train_script.main, ["--config", "configs/demo.py", "--workdir", url], 2),
        (xmodal_main, ["report", "--workdir", url], 2),
        (xmodal_main, ["compare", url, url], 1),
    ]
    for main, arguments, code in commands:
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == code
        last = capsys.readouterr().err.rstrip().splitlines()[-1]
        assert f"{url}: a run folder is on a disk of this machine or a mounted one, not at a URL" in last
    for use in (open_stored, lambda where: make_folder(Path(where))):  # in which a Path has "gs:/bucket"
        with pytest.raises(ConfigError, match="not at a URL"):
            use(url)
    assert not list(tmp_path.iterdir())


def test_wrong_arguments_are_code_2(capsys):
    for arguments in (["--workdir", "x"], ["--config", "a.py", "--workdir", "x", "--nothing"]):
        with pytest.raises(SystemExit) as end:
            train_script.main(arguments)
        assert end.value.code == 2
