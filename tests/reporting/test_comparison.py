"""Runs side by side: the right figures, paired where the queries are the same, and a page that needs nothing else."""

import io
import json
import re
import warnings

import numpy as np
import pytest
from rich.console import Console
from test_run_report import EVIL, Page

from xmodal.__main__ import main
from xmodal.reporting.bootstrap import differences
from xmodal.reporting.comparison import comparable, document, group_lines, lines, open_compared, seed_groups, settings
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


def write_run(folder, skill=1.0, names="a", lr=1e-3, seed=0, **changes):
    own = scores_of(skill, names)
    flat = {f"{group}/{name}": value for group, found in own.items() for name, value in found.figures().items()}
    flat |= {f"{name.rpartition('/')[0]}/chance/{name.rpartition('/')[2]}": 0.01 for name in list(flat)}
    flat |= {"retrieval/val/images": 400.0, "retrieval/val/image_to_text/median_rank": round(20 / skill)}
    write_results(folder, results_of(dict(step=200, samples=51200), flat | changes, own), own)
    with MetricsWriter(folder, False, 0) as writer:
        for step in (100, 200):
            writer.write(step, 256 * step, {"train/loss": 5 - step / 100, "train/contrastive/loss": 5 - step / 100})
            writer.write(step, 256 * step, {"eval/retrieval/val/image_to_text/R@5": 0.001 * step})
    write_json(folder / "config.json", {"optimizer": {"lr": lr, "name": "adamw"}, "seed": seed})
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
    assert [a["id"] for a in page.of("section")] == ["metrics", "learning-curves", "settings"]
    assert not [a for _, a in page.elements for key in ("src", "href") if not a.get(key, "#").startswith("#")]
    assert len(page.of("figure", "chart")) == 2  # one loss, one figure that was measured twice
    clear = sum(d.clear for line in lines(opened) for d in line.differences if d)
    assert len(page.of("b", "better")) == clear >= 6 and not page.of("b", "worse")
    assert "optimizer.lr" in page.text and "same queries" in page.text


def test_without_curves_and_settings_the_page_has_figures(tmp_path):
    for name, value in (("a", 0.4), ("b", 0.5)):
        write_results(tmp_path, results_of({}, {"zero_shot/x/top1": value}), name=f"{name}.json")
    opened = open_compared([tmp_path / "a.json", tmp_path / "b.json"])
    assert [a["id"] for a in Page(render(opened, lines(opened))).of("section")] == ["metrics"]


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ("compare {a}", 2, "takes two or more runs"),
        ("compare {a} {a}/nowhere", 1, r"there is no run folder and no result file .*nowhere"),
        ("compare {a} {a}/config.json", 1, r"config\.json holds no evaluation"),
        ("compare {a} {b} --names x", 2, "1 names for 2 runs"),
    ],
)
def test_what_cannot_be_compared_is_said(runs, tmp_path, capsys, command, code, message):
    write_json(runs[0] / "config.json", {"seed": 0})
    with pytest.raises(SystemExit) as end:
        main(command.format(a=runs[0], b=runs[1]).split())
    assert end.value.code == code
    assert re.search(message, capsys.readouterr().err)


@pytest.fixture
def seeds(tmp_path):
    """Two recipes with two seeds each."""
    made = [
        ("base_seed0", 1.0, 1e-3, 0),
        ("base_seed1", 1.5, 1e-3, 1),
        ("high_seed0", 3.0, 2e-3, 0),
        ("high_seed1", 3.2, 2e-3, 1),
    ]
    return open_compared([write_run(tmp_path / name, skill, lr=lr, seed=seed) for name, skill, lr, seed in made])


def test_runs_that_differ_in_the_seed_have_a_mean_and_a_deviation(seeds):
    groups, found = seed_groups(seeds), lines(seeds)
    assert [(group.name, group.members) for group in groups] == [("base", (0, 1)), ("high", (2, 3))]
    line = next(line for line in group_lines(groups, found) if line.metric == "R@5")
    one = next(line for line in found if line.metric == "R@5")
    values = [figure.value for figure in one.figures]
    assert line.spreads[0].mean == pytest.approx(np.mean(values[:2]))
    assert line.spreads[1].deviation == pytest.approx(np.std(values[2:], ddof=1)) and line.spreads[1].count == 2
    assert line.differences[0].value == pytest.approx(np.mean(values[2:]) - np.mean(values[:2]))
    assert line.differences[0].low < line.differences[0].value < line.differences[0].high
    assert group_lines(seed_groups(seeds[:1] + seeds[2:3]), found) == [], "nothing to put together"


def test_between_seeds_there_is_no_star(seeds):
    line = next(line for line in lines(seeds) if line.metric == "R@5")
    seed, other, _ = line.differences
    assert (seed.low > 0 or seed.high < 0) and not seed.clear and seed.chance
    assert other.clear and not other.chance
    console = Console(file=io.StringIO(), width=200, force_terminal=False)
    groups = seed_groups(seeds)
    print_comparison([run.name for run in seeds], lines(seeds), console, groups, group_lines(groups, lines(seeds)))
    text = console.file.getvalue()
    assert f"+{100 * seed.value:.1f} " in text
    assert "No star between runs that differ in the seed alone" in text and "mean ± standard deviation" in text
    alone = Console(file=io.StringIO(), width=200, force_terminal=False)
    print_comparison([run.name for run in seeds[:2]], lines(seeds[:2]), alone)
    assert "*" not in alone.file.getvalue().partition("Below each")[0]
    page = Page(render(seeds, lines(seeds)))
    assert "the seed alone differs" in page.text and "base, seeds: 2" in page.text
    assert page.of("section")[0]["id"] == "over-seeds"
    written = document(seeds, lines(seeds))
    assert written["groups"][0] == {"name": "base", "runs": ["base_seed0", "base_seed1"]}


def test_settings_are_readable(tmp_path):
    runs = [write_run(tmp_path / name) for name in "ab"]
    configs = [
        {"optimizer": {"rules": [[".*/bias", {"weight_decay": 0.0}], ["text/.*", {"lr": 0.1}]]}, "objectives": {}},
        {"optimizer": {"rules": []}, "objectives": {"local": {"type": "late", "between": ["image", "text"]}}},
    ]
    for run, config in zip(runs, configs):
        write_json(run / "config.json", config)
    assert settings(open_compared(runs)) == [
        ("optimizer.rules", [".*/bias → weight_decay=0.0\ntext/.* → lr=0.1", "none"]),
        ("objectives.local", ["", "type=late, between=(image, text)"]),
    ]


@pytest.mark.parametrize("queries", [1, 2])
def test_few_queries_give_no_warning(tmp_path, queries):
    for name, hit in (("a", True), ("b", False)):
        own = {"masked_text/val": Scores({"top1": np.array([hit] * queries)}, digest_of("a"),
                                         weights={"top1": np.arange(queries) + (queries == 1)})}  # fmt: skip
        write_results(tmp_path / name, results_of({}, {"masked_text/val/top1": float(hit)}, {}), own)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = Scores(
            {"top1": np.array([True] * queries)}, digest_of("a"), weights={"top1": np.arange(queries) + (queries == 1)}
        )
        differences(plain, plain)
        lines(open_compared([tmp_path / "a", tmp_path / "b"]))


def test_a_step_of_a_run_is_compared_with_its_end(runs, capsys):
    opened = open_compared([f"{runs[0]}@100", runs[0]])
    assert [run.name for run in opened] == ["a@100", "a"] and len(seed_groups(opened)) == 2
    (line,) = [line for line in comparable(lines(opened)) if line.metric == "R@5"]
    assert line.figures[0].value == pytest.approx(0.1) and line.figures[0].interval is None
    assert line.differences[0].value == pytest.approx(line.figures[1].value - 0.1)
    with pytest.raises(SystemExit):
        main(["compare", f"{runs[0]}@7", str(runs[0])])
    assert "a evaluated nothing at step 7; it did at 100, 200" in capsys.readouterr().err


def test_runs_without_a_common_evaluation_say_so(runs, tmp_path, capsys):
    write_results(tmp_path, results_of({}, {"zero_shot/x/top1": 0.5, "zero_shot/x/top5": 0.7}), name="other.json")
    pages = [tmp_path / "c.html", tmp_path / "c.json"]
    main(["compare", str(runs[0]), str(tmp_path / "other.json"), "--html", str(pages[0]), "--json", str(pages[1])])
    said = capsys.readouterr().out
    assert said == (
        "other has no evaluation in common with a.\n"
        "Figures that a alone has and that are left out: 7.\n"
        f"Figures that other alone has and that are left out: 2.\n{pages[0]}\n{pages[1]}\n"
    )
    assert "other has no evaluation in common with a." in pages[0].read_text()
    assert len(json.loads(pages[1].read_text())["figures"]) == 9
