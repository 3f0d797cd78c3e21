"""Runs side by side: the right figures, paired where the queries are the same, and a page that needs nothing else."""

import io
import json
import re

import numpy as np
import pytest
from rich.console import Console
from test_run_report import EVIL, Page

from xmodal.__main__ import main
from xmodal.reporting.bootstrap import differences
from xmodal.reporting.comparison import document, lines, open_compared, settings
from xmodal.reporting.comparison_page import render
from xmodal.reporting.files import write_json
from xmodal.reporting.metrics import MetricsWriter
from xmodal.reporting.results import results_of, write_results
from xmodal.reporting.scores import Scores, digest_of
from xmodal.reporting.summary import print_comparison

QUERIES = 400


def scores_of(skill, names="a"):
    """Two groups; the queries are equally hard for every run."""
    rank = np.floor(np.random.default_rng(0).gamma(1, 20 / skill, QUERIES))
    ways = ("image_to_text", "text_to_image")
    groups = {f"retrieval/val/{way}": Scores({"R@1": rank < 1, "R@5": rank < 5}, digest_of(names)) for way in ways}
    hits = {"top1": rank < 9}
    classes = Scores(hits, digest_of(names), group=np.arange(QUERIES) % 4, macro={"mean_per_class": "top1"})
    return groups | {"zero_shot/groups": classes}


def write_run(folder, skill=1.0, names="a", lr=1e-3, **changes):
    own = scores_of(skill, names)
    flat = {f"{group}/{name}": value for group, found in own.items() for name, value in found.figures().items()}
    flat |= {f"{name.rpartition('/')[0]}/chance/{name.rpartition('/')[2]}": 0.01 for name in list(flat)}
    flat |= {"retrieval/val/images": 400.0, "retrieval/val/image_to_text/median_rank": round(20 / skill)}
    write_results(folder, results_of(dict(step=200, samples=51200), flat | changes, own), own)
    with MetricsWriter(folder, False, 0) as writer:
        for step in (100, 200):
            writer.write(step, 256 * step, {"train/loss": 5 - step / 100, "train/contrastive/loss": 5 - step / 100})
            writer.write(step, 256 * step, {"eval/retrieval/val/image_to_text/R@5": 0.001 * step})
    write_json(folder / "config.json", {"optimizer": {"lr": lr, "name": "adamw"}, "seed": 0})
    return folder


@pytest.fixture
def runs(tmp_path):
    return [write_run(tmp_path / "a"), write_run(tmp_path / "b", 1.5, lr=2e-3)]


def test_figures_and_paired_differences(runs):
    found = {(line.path, line.metric): line for line in lines(open_compared(runs))}
    line = found[("retrieval", "val", "image_to_text"), "R@5"]
    expected = differences(*(scores_of(skill)["retrieval/val/image_to_text"] for skill in (1.0, 1.5)))["R@5"]
    assert line.differences == (expected,) and expected.paired and expected.clear
    assert line.figures[1].value - line.figures[0].value == pytest.approx(expected.value)
    assert line.figures[0].chance == 0.01 and line.figures[0].interval[0] < line.figures[0].value
    rank = found[("retrieval", "val", "image_to_text"), "median_rank"].differences[0]
    assert rank.value == -7 and np.isnan(rank.low) and not rank.clear
    assert found[("zero_shot", "groups"), "mean_per_class"].differences[0].paired
    assert [key[0][0] for key in found] == ["retrieval"] * 5 + ["zero_shot"] * 2, "without the number of images"


def test_other_queries_are_not_paired(runs, tmp_path):
    other = write_run(tmp_path / "c", 1.5, names="b")
    found = [line.differences for line in lines(open_compared([*runs, other])) if line.metric == "R@5"]
    assert len(found) == 2
    for same, apart in found:
        assert same.value == pytest.approx(apart.value) and same.paired and not apart.paired
        assert apart.high - apart.low > same.high - same.low


def test_result_files_and_what_a_run_lacks(runs, tmp_path):
    assert main(["compare", *map(str, runs), "--json", str(tmp_path / "c.json")]) == 0
    write_results(tmp_path, results_of({"model": "hf:clip"}, {"zero_shot/groups/top1": 0.5}), name="clip.json")
    opened = open_compared([runs[0], tmp_path / "clip.json"])
    assert [run.name for run in opened] == ["a", "clip"]
    found = {(line.path[0], line.metric): line for line in lines(opened)}
    assert found["retrieval", "R@5"].figures[1] is None and found["retrieval", "R@5"].differences == (None,)
    assert np.isnan(found["zero_shot", "top1"].differences[0].low), "without scores there is no interval"
    written = json.loads((tmp_path / "c.json").read_text())
    assert [run["name"] for run in written["runs"]] == ["a", "b"]
    entry = next(e for e in written["figures"] if e["name"] == "retrieval/val/image_to_text/R@5")
    assert entry["differences"][0]["paired"] and len(entry["ci95"][1]) == 2
    assert document(opened, lines(opened))["runs"][1]["model"] == "hf:clip"


def test_scores_of_other_weights_do_not_count(runs):
    results = json.loads((runs[1] / "results.json").read_text())
    results["zero_shot"]["groups"]["top1"] += 0.01
    write_json(runs[1] / "results.json", results)
    opened = open_compared(runs)
    assert set(opened[1].scores) == {"retrieval/val/image_to_text", "retrieval/val/text_to_image"}


def test_runs_of_one_name_are_told_apart(tmp_path):
    folders = [write_run(tmp_path / "x" / "run"), write_run(tmp_path / "y" / "run")]
    assert [run.name for run in open_compared(folders)] == ["x/run", "y/run"]
    assert [run.name for run in open_compared(folders, ["one", "two"])] == ["one", "two"]
    assert len({run.name for run in open_compared([folders[0]] * 2)}) == 2


def test_settings_that_differ(runs):
    assert settings(open_compared(runs)) == [("optimizer.lr", ["0.001", "0.002"])]


def test_the_table(runs):
    console = Console(file=io.StringIO(), width=200, force_terminal=False)
    opened = open_compared(runs)
    print_comparison([run.name for run in opened], lines(opened), console)
    text = console.file.getvalue()
    line = next(line for line in lines(opened) if line.metric == "R@5")
    assert f"+{100 * line.differences[0].value:.1f}*" in text and "val · image → text" in text
    assert "* it leaves out zero" in text and "unpaired" not in text


def test_the_page_needs_nothing_from_outside_and_trusts_nothing(runs, tmp_path):
    evil = write_run(tmp_path / "c", 1.2, **{f"retrieval/val/{EVIL.replace('/', '')}": 0.5})
    opened = open_compared([*runs, evil], ["a", "b", EVIL])
    page = Page(render(opened, lines(opened)))
    assert len(page.of("script")) == 1 and EVIL in page.text
    assert not [a for _, a in page.elements if any(key.startswith("on") for key in a)]
    assert [a["id"] for a in page.of("section")] == ["figures", "learning-curves", "settings"]
    assert not [a for _, a in page.elements for key in ("src", "href") if not a.get(key, "#").startswith("#")]
    assert len(page.of("figure", "chart")) == 2  # one loss, one figure that was measured twice
    clear = sum(d.clear for line in lines(opened) for d in line.differences if d)
    assert len(page.of("b", "better")) == clear >= 6 and not page.of("b", "worse")
    assert "optimizer.lr" in page.text and "same queries" in page.text


def test_without_curves_and_settings_the_page_has_figures(tmp_path):
    for name, value in (("a", 0.4), ("b", 0.5)):
        write_results(tmp_path, results_of({}, {"zero_shot/x/top1": value}), name=f"{name}.json")
    opened = open_compared([tmp_path / "a.json", tmp_path / "b.json"])
    assert [a["id"] for a in Page(render(opened, lines(opened))).of("section")] == ["figures"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("compare {a}", "takes two or more runs"),
        ("compare {a} {a}/nowhere", r"there is no run folder and no result file .*nowhere"),
        ("compare {a} {a}/config.json", r"config\.json holds no evaluation"),
        ("compare {a} {b} --names x", "1 names for 2 runs"),
    ],
)
def test_what_cannot_be_compared_is_said(runs, tmp_path, capsys, command, message):
    write_json(runs[0] / "config.json", {"seed": 0})
    with pytest.raises(SystemExit) as end:
        main(command.format(a=runs[0], b=runs[1]).split())
    assert end.value.code == 1
    assert re.search(message, capsys.readouterr().err)
