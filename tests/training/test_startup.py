"""What a run says before its first step and when it ends."""

import shlex

import pytest

from xmodal import messages
from xmodal.configs import base
from xmodal.reporting.during import closing
from xmodal.training import startup
from xmodal.training.optimizer import Row


def a_config(sources, **text):
    config = base.get_config()
    config.objectives = dict(contrastive=dict(between=("image", "text")))
    config.data.sources = sources
    config.data.inputs = dict(image=dict(type="image"), text=dict(type="text") | text)
    return config


@pytest.mark.parametrize("folder", ["my runs/the first", "运行/一", "a'b", "."])
def test_commands_for_a_finished_run_can_be_pasted(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(startup, "target", lambda *_: "hf")
    config = a_config({})
    name = (tmp_path / folder).resolve().name
    export, embed = startup.next_commands(config, dict(params={}), startup.Path(folder))
    assert shlex.split(export)[3:] == ["export", "--workdir", folder, "--to", "hf", "--out", f"exported/{name}"]
    assert shlex.split(embed)[3:] == ["embed", "SHARDS", "--model", folder, "--out", f"indexes/{name}"]


@pytest.mark.parametrize(
    "entry, text, typed",
    [
        (dict(urls="my photos/*.csv", caption="title", root="d"), {}, "'my photos/*.csv' --caption title --root d"),
        (
            dict(urls=("a.tar", "b.tar")),
            dict(templates=((1.0, "{label}, {tags}"),)),
            "a.tar b.tar --template '{label}, {tags}'",
        ),
        (dict(dataset="coco", split="val"), {}, "coco --type tfds --split val"),
        (dict(type="synthetic", samples=9), {}, "SHARDS"),
    ],
)
def test_the_search_command_names_the_data(entry, text, typed, monkeypatch):
    monkeypatch.setattr(startup, "target", lambda *_: "hf")
    _, embed = startup.next_commands(a_config(dict(train=entry), **text), dict(params={}), startup.Path("run"))
    assert f" embed {typed} --model run " in embed


@pytest.mark.parametrize(
    "typed, executable, path, said",
    [
        ("{here}/bin/xmodal", "{here}/bin/python", "{here}/bin", "xmodal"),
        ("{here}/.venv/bin/xmodal", "{here}/.venv/bin/python", "", ".venv/bin/xmodal"),
        ("train.py", "{here}/.venv/bin/python", "", ".venv/bin/python -m xmodal"),
        ("train.py", "{here}/bin/python", "{here}/bin", "python -m xmodal"),
        ("train.py", "/else where/python", "", "'/else where/python' -m xmodal"),
    ],
)
def test_commands_start_as_this_one_did(tmp_path, monkeypatch, typed, executable, path, said):
    for folder in ("bin", ".venv/bin"):
        (tmp_path / folder).mkdir(parents=True)
        for name in ("xmodal", "python"):
            (tmp_path / folder / name).touch(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", path.format(here=tmp_path))
    monkeypatch.setattr(messages.sys, "argv", [typed.format(here=tmp_path)])
    monkeypatch.setattr(messages.sys, "executable", executable.format(here=tmp_path))
    assert messages.program() == said


def test_rows_that_look_alike_are_one():
    row = lambda lr, arrays: Row("image", "", "image/x", arrays, 1000 * arrays, "adamw", lr, 0.05)
    found = startup.trained_how([row((0.75,), 2), row((0.75,), 3), row((0.5, 0.75), 1), row(0.5625, 4)])
    assert found == [
        ["image", "(default)", 5, "5K", "adamw", "0.75", "0.05"],
        ["image", "(default)", 1, "1K", "adamw", "0.5 to 0.75", "0.05"],
        ["image", "(default)", 4, "4K", "adamw", "0.562", "0.05"],
    ]


class Tuned:
    def __init__(self, total, every, init_from="models/clip"):
        self.config = a_config({})
        self.config.update(init_from=init_from, evals=dict(held_out=dict(every=every)))
        self.total_steps = total

    def steps(self, every, where):
        return every

    def chance_losses(self):
        return dict(contrastive=4.852, masked=9.0)

    def max_logit_scales(self):
        return dict(contrastive=100.0)


def test_a_short_fine_tuning_run_is_told_so():
    assert startup._few_steps(Tuned(9, 1)) == (
        "only 9 steps, and an evaluation after nearly every one: lower batch_size (now 256) or lengthen schedule.total "
        "(now 10epochs)"
    )
    assert startup._few_steps(Tuned(40, 10)).startswith("only 40 steps: lower")
    assert not startup._few_steps(Tuned(60, 10)) and not startup._few_steps(Tuned(9, 1, ""))
    assert startup._chance(Tuned(9, 1))["contrastive"].startswith("4.852 (a fine-tuned model begins above it")
    assert (
        startup._chance(Tuned(9, 1))["masked"] == "9.000" and startup._chance(Tuned(9, 1, ""))["contrastive"] == "4.852"
    )


def test_the_end_names_the_best_step_where_it_is_not_the_newest(tmp_path):
    best = ("retrieval/x/R@1", 20, 0.3)
    assert closing(tmp_path, 40, 9, best, ("export",))["next"] == (
        "export",
        "they take the newest checkpoint; --step 20 names the best one",
    )
    assert closing(tmp_path, 20, 9, best, ("export",))["next"] == ("export",)
    assert closing(tmp_path, 20, 9, None, ("export",))["next"] == ("export",)
