"""The recorder writes a row every so many steps, loses none when a run is interrupted, and prints evaluations."""

import json
import types

import jax
import pytest
from ml_collections import ConfigDict

from xmodal.checkpoints.reading import list_steps
from xmodal.checkpoints.writing import Checkpoints
from xmodal.reporting.during import Evaluations
from xmodal.reporting.files import write_text
from xmodal.reporting.metrics import read_metrics
from xmodal.reporting.recorder import Recorder
from xmodal.reporting.report import build_report


def recorder_of(workdir, every: int = 1, **changes) -> Recorder:
    log = ConfigDict(dict(every=every, tensorboard=False, intervals="bca"))
    options = dict(batch_size=2, epoch_size=50, total_steps=100, start_step=0, chance_losses={}, max_logit_scales={})
    return Recorder(workdir, log, flops_per_sample=None, **(options | changes))


def rows(workdir, steps: int, *, every: int, interrupted: bool) -> list[dict]:
    with recorder_of(workdir, every) as recorder:
        for step in range(1, steps + 1):
            recorder.push(step, 2 * step, {"train/loss": float(step), "lr": step / 10}, {})
        if interrupted:
            recorder.close_row()
            recorder.close_row()  # there is nothing left to write
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_row_is_the_mean_of_its_steps(tmp_path):
    found = rows(tmp_path, 9, every=4, interrupted=False)
    assert [(row["step"], row["samples"], row["train/loss"]) for row in found] == [(4, 8, 2.5), (8, 16, 6.5)]
    assert found[1]["lr"] == pytest.approx(0.8)


def test_an_interruption_closes_the_row(tmp_path):
    found = rows(tmp_path, 10, every=4, interrupted=True)
    assert [(row["step"], row["train/loss"]) for row in found] == [(4, 2.5), (8, 6.5), (10, 9.5)]


def test_an_interruption_right_after_an_evaluation_closes_the_row(tmp_path):
    with recorder_of(tmp_path, every=4) as recorder:
        for step in (1, 2, 3):
            recorder.push(step, 2 * step, {"train/loss": float(step)}, {})
        recorder.pause()
        recorder.close_row()
    (row,) = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert (row["step"], row["train/loss"]) == (3, 2.0) and "throughput/samples_per_s" not in row


METRIC = "retrieval/val/image_to_text/R@1"


def measured(value: float) -> types.SimpleNamespace:
    chance = {"retrieval/val/image_to_text/chance/R@1": 0.01}
    return types.SimpleNamespace(metrics={METRIC: value} | chance, gallery={}, scores={}, details={})


def test_evaluations_are_printed_as_they_come_with_the_change_since_the_start(tmp_path, capsys):
    with recorder_of(tmp_path) as recorder:
        recorder.evaluated(0, 0, measured(0.5))
        recorder.evaluated(10, 20, measured(0.4))
    with recorder_of(tmp_path, start_step=10) as recorder:  # a continued run knows where it began
        recorder.evaluated(20, 40, measured(0.45))
    lines = [line for line in capsys.readouterr().out.splitlines() if "val" in line]
    assert lines == [
        "step 0  retrieval · val · image → text  R@1 50.0 %",
        "step 10  retrieval · val · image → text  R@1 40.0 % (-10.0)  (change since the start)",
        "step 20  retrieval · val · image → text  R@1 45.0 % (-5.0)  (change since the start)",
    ]


def test_a_fresh_run_compares_with_the_evaluation_before(tmp_path, capsys):
    with recorder_of(tmp_path) as recorder:
        for step, value in ((5, 0.1), (10, 0.2), (15, float("nan"))):
            recorder.evaluated(step, 2 * step, measured(value))
    lines = [line for line in capsys.readouterr().out.splitlines() if "val" in line]
    assert lines[0].endswith("R@1 10.0 %")
    assert lines[1].endswith("R@1 20.0 % (+10.0)  (change since step 5)")
    assert "R@1 nan" in lines[2] and "(+" not in lines[2]


def test_the_best_of_equal_steps_is_the_one_whose_checkpoint_is_kept(tmp_path):
    kept = Checkpoints(tmp_path, keep_last=1, best=METRIC)
    with recorder_of(tmp_path, best=(METRIC, "max")) as recorder, kept:
        for step, value in ((10, 0.2), (20, 0.3), (30, 0.3), (40, 0.1)):
            recorder.evaluated(step, 2 * step, measured(value))
            kept.save(step, {"x": jax.numpy.ones(3)}, position=2 * step, metrics=measured(value).metrics)
    write_text(tmp_path / "config.json", json.dumps({"checkpoint": {"best": METRIC, "best_mode": "max"}}))
    assert list_steps(kept.directory) == [30, 40]
    assert Evaluations(read_metrics(tmp_path)).best(METRIC, "max") == (30, 0.3)
    assert "best: step 30" in build_report(tmp_path).read_text()


def test_a_best_metric_that_is_not_measured_is_named(tmp_path, capsys):
    with recorder_of(tmp_path, best=("retrieval/val/image_to_txt/R@1", "max")) as recorder:
        recorder.evaluated(10, 20, measured(0.5))
    said = " ".join(capsys.readouterr().out.split())
    assert f"no step is kept as the best. Did you mean '{METRIC}'? This evaluation measures {METRIC}" in said
    with recorder_of(tmp_path, best=("retrieval/other/R@1", "max"), start_step=10) as recorder:
        recorder.evaluated(20, 40, measured(0.5))  # another evaluation has it
    assert "checkpoint.best" not in capsys.readouterr().out


def evaluations(workdir) -> list[tuple[int, float]]:
    return [(row["step"], row[f"eval/{METRIC}"]) for row in read_metrics(workdir) if f"eval/{METRIC}" in row]


def test_a_run_that_was_killed_before_its_first_checkpoint_measures_its_start_anew(tmp_path, capsys):
    for start in (0.1, 0.5):  # the second time from other weights
        with recorder_of(tmp_path) as recorder:
            recorder.evaluated(0, 0, measured(start))
    assert evaluations(tmp_path) == [(0, 0.5)]
    assert capsys.readouterr().out.count("step 0 ") == 2


def test_a_finished_run_that_is_run_again_gets_only_the_rows_that_it_lacks(tmp_path):
    with recorder_of(tmp_path) as recorder:
        recorder.evaluated(50, 100, measured(0.5))
    for _ in range(2):  # as when `schedule.total` was lowered to where the run was stopped
        with recorder_of(tmp_path, start_step=100) as recorder:
            recorder.evaluated(100, 200, measured(0.6))
    assert evaluations(tmp_path) == [(50, 0.5), (100, 0.6)]


def test_the_end_names_report_best_step_and_next_command(tmp_path, capsys):
    with recorder_of(tmp_path, best=(METRIC, "max"), commands=("python -m xmodal export",)) as recorder:
        recorder.push(1, 2, {"train/loss": 1.0}, {})
        for step, value in ((10, 0.2), (20, 0.3), (30, 0.25), (40, float("nan"))):
            recorder.evaluated(step, 2 * step, measured(value))
        recorder.finish(100, 200)
    end = capsys.readouterr().out.partition("finished")[2]
    assert "report.html" in end and f"20 ({METRIC} 30.0 %)" in end and "python -m xmodal export" in end
