"""Weights & Biases beside the other series; the library itself is a stand-in, of which only what is called exists."""

import json
import sys
import types

import pytest

from xmodal.config import ConfigError, load_config
from xmodal.distributed.mesh import make_mesh
from xmodal.reporting.metrics import MetricsWriter, read_metrics
from xmodal.training.task import build_task


class StandIn(types.ModuleType):
    """The module `wandb`, which notes what is asked of it."""

    def __init__(self, reachable: bool = True):
        super().__init__("wandb")
        self.reachable, self.runs = reachable, []

    def init(self, **how):
        if not self.reachable and how.get("mode") != "offline":
            raise RuntimeError("no API key configured\nUse `wandb login`")
        self.runs.append(types.SimpleNamespace(how=how, rows=[], alerts=[], finished=0))
        run = self.runs[-1]
        run.log = lambda row, step: run.rows.append((step, row))
        run.alert = lambda title, text: run.alerts.append((title, text))

        def finish():
            run.finished += 1

        run.finish = finish
        return run


@pytest.fixture
def wandb(monkeypatch):
    module = StandIn()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_rows_alarms_and_config_arrive(wandb, tmp_path):
    workdir = tmp_path / "first"
    workdir.mkdir()
    (workdir / "config.json").write_text('{"seed": 3}')
    with MetricsWriter(workdir, False, 0, "birds") as writer:
        writer.write(10, 80, {"train/loss": 2.5}, alarms=["the loss rises"])
        writer.write(10, 80, {"eval/r": 0.5})
    (run,) = wandb.runs
    assert run.rows == [(10, {"samples": 80, "train/loss": 2.5}), (10, {"samples": 80, "eval/r": 0.5})]
    assert run.alerts == [("step 10", "the loss rises")] and run.finished == 1
    assert (run.how["project"], run.how["name"], run.how["config"]) == ("birds", "first", {"seed": 3})
    assert run.how["dir"] == str(workdir) and "mode" not in run.how


def test_a_resumed_run_goes_on_under_its_name(wandb, tmp_path):
    for step, folder in ((0, "a"), (10, "a"), (0, "b")):
        MetricsWriter(tmp_path / folder, False, step, "birds").close()
    first, again, other = (run.how["id"] for run in wandb.runs)
    assert first == again == json.loads((tmp_path / "a" / "wandb.json").read_text())["id"] != other
    assert all(run.how["resume"] == "allow" for run in wandb.runs)


def test_without_a_network_rows_stay_in_the_run_folder(wandb, tmp_path, capsys):
    wandb.reachable = False
    with MetricsWriter(tmp_path, False, 0, "birds") as writer:
        writer.write(1, 8, {"loss": 2.0})
    (run,) = wandb.runs
    assert run.how["mode"] == "offline" and run.rows == [(1, {"samples": 8, "loss": 2.0})]
    out = capsys.readouterr().out
    assert "(RuntimeError: no API key configured); upload it with `wandb sync`\n" in out and out.count("\n") == 1


def test_what_fails_later_does_not_end_the_run(wandb, tmp_path, capsys):
    def log(row, step):
        raise OSError("the service is gone")

    with MetricsWriter(tmp_path, False, 0, "birds") as writer:
        wandb.runs[0].log = log
        for step in (1, 2):
            writer.write(step, 8 * step, {"loss": 2.0})
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]
    assert capsys.readouterr().out.count("wandb: no more rows are logged (OSError: the service is gone)") == 1


def test_no_project_asks_nothing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it is an error
    MetricsWriter(tmp_path, False, 0).close()
    assert not (tmp_path / "wandb.json").exists()
    with pytest.raises(
        ConfigError, match=r"log\.wandb='birds', and wandb cannot be imported .*`pip install 'xmodal\[wan"
    ):
        MetricsWriter(tmp_path, False, 0, "birds")


def test_a_run_is_refused_before_anything_is_built(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = load_config("demo.py", ["log.wandb=birds"])
    with pytest.raises(ConfigError, match=r"log\.wandb='birds'"):
        build_task(config, make_mesh(config.mesh), None, epoch_size=1000)  # without the tokenizer that models need


def test_the_library_itself(tmp_path, monkeypatch):
    """With the real one, where it is installed: an offline run leaves its file in the run folder."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with MetricsWriter(tmp_path, False, 0, "birds") as writer:
        writer.write(1, 8, {"loss": 2.0}, alarms=["slow"])
    assert list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
