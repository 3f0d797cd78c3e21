"""What a run folder goes on with: the same run, computed or watched in another way; another one only when told so."""

import json
import re
import shutil

import pytest

from tests import tiny_runs
from tests.data.tiny_shards import sample, write_tar
from tests.tiny_runs import ACCEPT, StopAt, fail, flags, run
from xmodal.config import ConfigError, from_json
from xmodal.training.durations import Pace, samples_of, to_steps


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_runs.make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def begun(data, tmp_path_factory):
    """A run of which two steps are done."""
    workdir = tmp_path_factory.mktemp("begun") / "run"
    run(workdir, flags(data, evals="{}"), StopAt(2))
    return workdir


@pytest.fixture
def workdir(begun, tmp_path):
    return shutil.copytree(begun, tmp_path / "run")


def content(workdir):
    return {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}


CHANGES = {  # of what is learned: options, and lines of the message
    "data": (dict(data__inputs__text__lower=False), [r"data.inputs.text.lower: True -> False"]),
    "model": (dict(model__towers__text__trunk__drop_path=0.1), [r"model.towers.text.trunk.drop_path: 0.0 -> 0.1"]),
    "objectives": (dict(objectives__contrastive__weight=2.0), [r"objectives.contrastive.weight: 1.0 -> 2.0"]),
    "init": (dict(init_from="elsewhere"), [r"init_from: None -> 'elsewhere'"]),
    "seed": (dict(seed=7), [r"seed: 0 -> 7", "the training data or their order"]),
    "batch size": (dict(batch_size=32), [r"batch_size: 16 -> 32"]),
    "optimizer": (dict(optimizer__lr=1e-4), [r"optimizer.lr: 0.003 -> 0.0001"]),
    "schedule": (dict(schedule__decay="linear", log__every=5), [r"schedule.decay: 'cosine' -> 'linear'"]),
    "averages": (dict(optimizer__ema=0.9), [r"optimizer.ema: 0.0 -> 0.9"]),
}


@pytest.mark.parametrize("case", CHANGES)
def test_another_run_is_refused_with_the_list_of_changes(data, workdir, capsys, case):
    changes, lines = CHANGES[case]
    before = content(workdir)
    error = fail(workdir, flags(data, evals="{}", **changes), capsys)
    head, *listed, advice = error.rstrip().splitlines()
    assert head == f"error: --workdir {workdir} holds a run (2 steps done) that was begun with other settings:"
    assert len(listed) == len(lines) and all(re.search(line, text) for line, text in zip(lines, listed)), listed
    assert "--accept-changes goes on from the checkpoint with the new ones" in advice
    assert content(workdir) == before, "nothing was touched"


def test_what_does_not_change_what_is_learned_may_change(data, workdir, capsys):
    changes = dict(
        log__every=5, watchdog__step=100, checkpoint__every=4, checkpoint__keep_last=3, evals__held_out__every=4,
        data__threads=3, data__prefetch=1, data__remote__attempts=2, optimizer__max_nonfinite=9, accumulation=2,
        model__towers__text__trunk__remat="full", schedule__total="9steps",
    )  # fmt: skip
    assert run(workdir, flags(data, **changes), StopAt(2)) == {"step": 2}
    out = capsys.readouterr().out
    assert re.search(r"start +continues from step 2 *\nchanged +\S+", out)
    assert "log.every: 1 -> 5" in out and "schedule.total: '8steps' -> '9steps'" in out
    assert json.loads((workdir / "config.json").read_text())["log"]["every"] == 5


def test_data_that_have_moved_are_the_same_and_other_ones_are_not(workdir, tmp_path, capsys):
    data = tiny_runs.make_data(tmp_path)
    run(workdir, flags(data, evals="{}"), StopAt(2))  # the same shards in another folder: the same order
    out = capsys.readouterr().out
    assert "data.sources.main.urls: " in out and "the training data" not in out
    write_tar(data / "s-01.tar", {f"{i:05d}": sample(i) for i in range(24, 40)})
    other = flags(data, evals="{}")
    assert "the training data or their order: from here on" in fail(workdir, other, capsys)
    run(workdir, [*other, ACCEPT], StopAt(2))
    assert "the training data or their order: from here on" in capsys.readouterr().out
    error = fail(workdir, flags(data, evals="{}", data__sources__main__urls=data / "s-00.tar"), capsys)
    assert "data.sources.main.urls: " in error, "it may have moved, but these are other data"


def test_accepted_changes_go_on(data, workdir, capsys):
    assert run(workdir, [*flags(data, evals="{}", optimizer__lr=1e-4), ACCEPT], StopAt(3)) == {"step": 3}
    assert "optimizer.lr: 0.003 -> 0.0001" in capsys.readouterr().out
    assert json.loads((workdir / "config.json").read_text())["optimizer"]["lr"] == 1e-4
    run(workdir, flags(data, evals="{}", optimizer__lr=1e-4), StopAt(3))  # from now on this is the run
    assert "changed" not in capsys.readouterr().out


def test_a_finished_run_says_that_nothing_is_left(data, workdir, capsys):
    arguments = flags(data, evals="{}", schedule__total="2steps")
    results = run(workdir, arguments)
    assert (results["step"], results["samples"]) == (2, 32)
    assert "nothing is left to train: 2 of 2 steps are done. To go on, raise schedule.total (now 2steps)" in (
        capsys.readouterr().out
    )
    shutil.rmtree(workdir / "checkpoints")  # to save room
    error = fail(workdir, arguments, capsys)
    assert "holds the results of a finished run and none of its checkpoints" in error


# ------------------------------------------------------------------------------------------ another batch size


def test_a_changed_batch_keeps_the_samples_that_were_seen(data, workdir, capsys):
    """32 samples are done in 2 steps of 16; 128 take 12 more of 8, and no other number of any other start."""
    smaller = flags(data, evals="{}", batch_size=8, schedule__total="128examples", schedule__warmup="16examples")
    smaller.append(ACCEPT)
    assert run(workdir, smaller, StopAt(5)) == {"step": 5}
    assert re.search(r"schedule +14 steps = \S+ epochs = 128 samples", capsys.readouterr().out)
    rows = [row for row in tiny_runs.rows(workdir) if "train/loss" in row]
    assert [(row["step"], row["samples"]) for row in rows] == [(1, 16), (2, 32), (3, 40), (4, 48), (5, 56)]
    document = json.loads((workdir / "checkpoints" / "5" / "meta" / "data.json").read_text())
    assert (document["position"], document["batches"]) == (56, [[0, 0, 16], [2, 32, 8]])
    results = run(workdir, smaller[:-1])  # it is that run now
    assert (results["step"], results["samples"]) == (14, 128)


def test_pace():
    assert Pace.of(16) == Pace.of(16, dict(position=0, step=0)) == Pace(((0, 0, 16),))
    assert Pace.of(16, dict(position=48, step=3)) == Pace.of(16)
    pace = Pace.of(8, dict(position=32, step=2, batches=[[0, 0, 16]]))
    assert pace == Pace(((0, 0, 16), (2, 32, 8))) and pace == Pace.of(8, dict(position=40, step=3, batches=pace.phases))
    assert [pace.step_at(n) for n in (0, 1, 16, 17, 32, 33, 40, 41)] == [0, 1, 1, 2, 2, 3, 3, 4]
    assert [pace.samples_at(n) for n in range(5)] == [0, 16, 32, 40, 48]
    units = dict(batch_size=8, epoch_size=48, pace=pace)
    assert to_steps("2epochs", **units) == 10 and to_steps("3steps", **units) == 3
    config = from_json('{"batch_size": 8, "schedule": {"total": "96examples"}}')
    assert samples_of("50%", config, 48, pace) == 56 and samples_of("48examples", config, 48, pace) == 48
    with pytest.raises(ConfigError, match="not a duration"):
        to_steps("soon", **units)
