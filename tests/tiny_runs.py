"""Runs of the tiny recipe (recipes/tiny.py), in this process or in one of their own."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import pytest
from ml_collections import ConfigDict

import train as train_script
from data_pipelines.text.tokenizers import train_bpe
from tests.data.tiny_shards import sample, write_tar
from xmodal.config import load_config
from xmodal.distributed.mesh import make_mesh
from xmodal.distributed.runtime import Runtime
from xmodal.errors import user_errors
from xmodal.training import loop

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "tests" / "recipes" / "tiny.py"
SAMPLES = 48
ACCEPT = "--accept-changes"


def make_data(folder: Path) -> Path:
    """Writes two shards of 24 samples in all and a tokenizer, which `flags` names."""
    for shard in range(2):
        numbers = range(shard * SAMPLES // 2, (shard + 1) * SAMPLES // 2)
        write_tar(folder / f"s-{shard:02d}.tar", {f"{i:05d}": sample(i) for i in numbers})
    (folder / "tokenizer.json").write_text(train_bpe([f"thing {i}" for i in range(SAMPLES)], 320).json)
    return folder


def flags(data: Path, variant: str = "clip", **changes) -> list[str]:
    """Returns the arguments of train.py that name recipe and data; a key of `changes` has `__` for a dot."""
    urls = str(data / "s-{00..01}.tar")
    values = {"data.sources.main.urls": urls, "data.inputs.text.tokenizer": data / "tokenizer.json"}
    more = dict(coca=["written"], naflex=["named"]).get(variant, [])
    values |= {f"evals.{name}.urls": urls for name in ("held_out", *more)}
    values |= {key.replace("__", "."): value for key, value in changes.items()}
    return ["--config", f"{RECIPE}:{variant}", *(f"--config.{key}={value}" for key, value in values.items())]


class StopAt(Runtime):
    """A process that is told to stop before a step, as by a signal."""

    def __init__(self, step: int):
        super().__init__()
        self._step = step

    def preempted(self, step: int) -> bool:
        return step >= self._step or super().preempted(step)


class ActAt(Runtime):
    """A process around which something happens before a step."""

    def __init__(self, step: int, action: Callable[[], None]):
        super().__init__()
        self._step, self._action = step, action

    def preempted(self, step: int) -> bool:
        if step == self._step:
            self._action()
        return super().preempted(step)


def run(workdir: Path, arguments: list[str], runtime: Runtime | None = None, devices: int = 1) -> dict:
    """Trains in this process, with the arguments of train.py."""
    options = [text for text in arguments[2:] if text != ACCEPT]
    config = load_config(arguments[1], options)
    return run_config(workdir, config, runtime, devices, accept_changes=ACCEPT in arguments)


def run_config(
    workdir: Path, config: ConfigDict, runtime: Runtime | None = None, devices: int = 1, accept_changes: bool = False
) -> dict:
    """Trains in this process, on some of its devices: a program for all eight takes much longer to compile."""
    with pytest.MonkeyPatch.context() as patch, runtime or Runtime.start() as runtime:
        patch.setattr(loop, "make_mesh", lambda config: make_mesh(config, jax.devices()[:devices]))
        return loop.train(config, workdir, runtime, accept_changes=accept_changes)


def fail(workdir: Path, arguments: list[str], capsys, runtime: Runtime | None = None) -> str:
    """Runs train.py, which must end with exit code 1 and one message, and returns that message."""
    capsys.readouterr()
    try:
        if runtime is None:
            train_script.main([*arguments, "--workdir", str(workdir)])
        else:
            with user_errors():
                run(workdir, arguments, runtime)
    except SystemExit as end:
        assert end.code == 1
        error = capsys.readouterr().err
        assert "error: " in error and "Traceback" not in error
        return error[error.index("error: ") :]
    raise AssertionError("the run did not fail")


def start(command: list[str], **environment: str) -> subprocess.Popen:
    """Starts a Python process with one device at the root of the repository."""
    alone = re.sub(r"(device_count)=\d+", r"\1=1", os.environ["XLA_FLAGS"])
    environment = os.environ | {"XLA_FLAGS": alone, "PYTHONUNBUFFERED": "1"} | environment
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen([sys.executable, *command], cwd=ROOT, env=environment, **pipes)


def start_training(workdir: Path, arguments: list[str], **environment: str) -> subprocess.Popen:
    """Starts train.py in a process of its own."""
    return start(["train.py", *arguments, "--workdir", str(workdir)], **environment)


def finish(process: subprocess.Popen, seconds: float = 300) -> tuple[int, str, str]:
    """Returns (exit code, output, errors)."""
    try:
        out, error = process.communicate(timeout=seconds)
    finally:
        process.kill()
    return process.returncode, out, error


def rows(workdir: Path) -> list[dict]:
    """Metric rows; a line that is not JSON is an error."""
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def without_times(row: dict) -> dict:
    return {key: value for key, value in row.items() if key != "time" and not key.startswith("throughput/")}


def arrays(workdir: Path, step: int) -> dict[str, dict]:
    """{path: shape, type, checksum} of a checkpoint: equal descriptions are equal bits."""
    meta = json.loads((workdir / "checkpoints" / str(step) / "meta" / "data.json").read_text())
    return meta["arrays"]
