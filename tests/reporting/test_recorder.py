"""The recorder writes a row every so many steps, and loses none when a run is interrupted."""

import json

import pytest
from ml_collections import ConfigDict

from xmodal.reporting.recorder import Recorder


def rows(workdir, steps: int, *, every: int, interrupted: bool) -> list[dict]:
    log = ConfigDict(dict(every=every, tensorboard=False, intervals="bca"))
    options = dict(batch_size=2, total_steps=100, start_step=0, chance_losses={}, max_logit_scales={})
    with Recorder(workdir, log, flops_per_sample=None, **options) as recorder:
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
