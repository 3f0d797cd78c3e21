"""A run that is killed and continued any number of times is, bit for bit, the run that nothing happened to.

The recipe has all that is random or carried along: crops, colour jitter, dropout, patch dropout, stochastic depth,
two micro-batches a step, averaged weights.
"""

import json
import random
import re
import signal
import time

import pytest

from tests import tiny_runs
from xmodal.training.command import INTERRUPTED

STEPS = 24
BEST = "retrieval/held_out/text_to_image/R@10"


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    data = tiny_runs.make_data(tmp_path_factory.mktemp("data"))
    return tiny_runs.flags(
        data, "noisy", schedule__total=STEPS, checkpoint__every=8, checkpoint__keep_last=100, checkpoint__best=BEST,
        evals__held_out__every=10,
    )  # fmt: skip


@pytest.fixture(scope="module")
def straight(tmp_path_factory, arguments):
    """Folders of two unbroken runs of the same command."""
    folder = tmp_path_factory.mktemp("straight")
    script = "import sys, train; [train.main([*sys.argv[3:], '--workdir', f]) for f in sys.argv[1:3]]"
    process = tiny_runs.start(["-c", script, str(folder / "a"), str(folder / "b"), *arguments])
    code, _, error = tiny_runs.finish(process)
    assert code == 0, error
    return folder / "a", folder / "b"


def series(workdir):
    """The metric rows without what a clock decides."""
    clocked = re.compile("time|throughput/.*|alarms")
    return [{k: v for k, v in row.items() if not clocked.fullmatch(k)} for row in tiny_runs.rows(workdir)]


def checkpoints(workdir):
    """{step: all arrays, as names, shapes and checksums}."""
    steps = sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())
    return {step: tiny_runs.arrays(workdir, step) for step in steps}


def test_two_straight_runs_are_the_same(straight):
    a, b = straight
    saved = checkpoints(a)
    assert saved == checkpoints(b)
    assert {name.split("/")[0] for name in saved[STEPS]} >= {"params", "opt_state", "ema", "step"}
    assert series(a) == series(b)
    assert (a / "results.json").read_bytes() == (b / "results.json").read_bytes()
    assert sum("train/loss" in row for row in series(a)) == STEPS
    sums = [[entry["checksum"] for entry in saved[step].values()] for step in saved]
    assert len({tuple(s) for s in sums}) == len(saved), "each checkpoint has weights of its own"


def test_the_best_checkpoint_is_one_whose_weights_were_measured(straight):
    """A checkpoint is scored by its own evaluation or not at all, and an evaluation of `best` brings one."""
    saved = checkpoints(straight[0])
    assert set(saved) == {8, 10, 16, 20, STEPS}
    for step in saved:
        meta = json.loads((straight[0] / "checkpoints" / str(step) / "meta" / "data.json").read_text())
        assert (BEST in meta["metrics"]) == (step in (10, 20, STEPS))


def interrupt(workdir, arguments, number, row, pause):
    """Runs until `row` is written and a moment longer, then sends the signal; returns exit code and output."""
    process = tiny_runs.start_training(workdir, arguments)
    metrics = workdir / "metrics.jsonl"
    try:
        while process.poll() is None and not (metrics.exists() and f'"step": {row},' in metrics.read_text()):
            time.sleep(0.002)
        time.sleep(pause)
        process.send_signal(number)
    finally:
        code, out, error = tiny_runs.finish(process)
    return code, out, error


def test_killed_and_continued_is_the_same(straight, arguments, tmp_path):
    rng = random.Random(0)
    workdir = tmp_path / "run"
    plan = [(signal.SIGKILL, 7), (signal.SIGTERM, 11), (signal.SIGHUP, 14), (signal.SIGKILL, 17)]
    for number, row in plan:
        code, out, error = interrupt(workdir, arguments, number, row + rng.randrange(4), 0.05 * rng.random())
        if number == signal.SIGKILL:
            assert code == -signal.SIGKILL, error
            continue
        assert code == INTERRUPTED == 75, error
        step = int(re.search(r"interrupted: saved step (\d+); run the same command to continue", out)[1])
        assert row <= step < STEPS and step in checkpoints(workdir)
        assert max(r["step"] for r in series(workdir)) == step
        assert not (workdir / "results.json").exists()
    code, out, error = tiny_runs.finish(tiny_runs.start_training(workdir, arguments))
    assert code == 0, error
    assert re.search(r"start +continues from step \d+", out) and "changed" not in out
    unbroken, broken = checkpoints(straight[0]), checkpoints(workdir)
    assert broken.keys() >= unbroken.keys()
    for step, arrays in unbroken.items():
        assert broken[step] == arrays, f"step {step}"
    assert series(workdir) == series(straight[0])
    assert (workdir / "results.json").read_bytes() == (straight[0] / "results.json").read_bytes()
