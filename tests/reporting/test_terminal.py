"""What a person sees in a terminal and what lands in a log file."""

import argparse
import io
import re

import pytest
from rich.console import Console

from xmodal.commands import evaluate, train
from xmodal.evaluation import EvalResult
from xmodal.reporting.formatting import compact, duration, number, percent, size, words
from xmodal.reporting.progress import Progress
from xmodal.reporting.results import Figure, evaluation_tables, nest, read_results, results_of, write_results
from xmodal.reporting.summary import print_evaluation, print_summary, print_table
from xmodal.reporting.terminal import Output
from xmodal.training import command

RESULTS = {
    "retrieval/unseen_vendor/images": 1811.0,
    "retrieval/unseen_vendor/image_to_text/R@1": 0.17,
    "retrieval/unseen_vendor/image_to_text/R@10": 0.53,
    "retrieval/unseen_vendor/image_to_text/chance/R@1": 1 / 1811,
    "retrieval/unseen_vendor/image_to_text/chance/R@10": 10 / 1811,
    "retrieval/unseen_vendor/text_to_image/R@1": 0.16,
    "retrieval/unseen_vendor/text_to_image/median_rank": 8.0,
    "zero_shot/groups/top1": 0.7,
    "zero_shot/groups/chance/top1": 0.1,
    "zero_shot/groups/images": 1811.0,
}


def plain_console(width=80):
    return Console(file=io.StringIO(), width=width, force_terminal=False)


def shown(console):
    return console.file.getvalue()


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_numbers_are_short_and_exact_enough():
    assert [number(v) for v in (0.0123456, 5.5452, 12300.0, 3, float("nan"))] == [
        "0.01235",
        "5.545",
        "12,300",
        "3",
        "nan",
    ]
    assert [compact(v) for v in (999, 12_345, 86_200_000, 999_600)] == ["999", "12.3K", "86.2M", "1M"]
    assert [percent(v) for v in (0.531, 0.00552, 0.000552, 0.0)] == ["53.1 %", "0.55 %", "0.055 %", "0.0 %"]
    assert [duration(v) for v in (42, 192, 7500, 367200)] == ["42s", "3m12s", "2h05m", "4d06h"]
    assert size(150_000_000_000) == "139.7 GiB"
    assert words("image_to_text") == "image → text" and words("top5") == "top-5"


def test_log_lines_come_now_and_then_without_control_codes():
    console, clock = plain_console(), Clock()
    with Progress(100_000, console=console, clock=clock) as progress:
        for step in range(1, 501):
            clock.now += 0.125
            progress.update(step, epoch=step / 300, loss=5.0, lr=3e-4, samples_per_s=2560.0, data_wait=0.02)
    lines = shown(console).splitlines()
    assert len(lines) == 7  # at the first step and every 10 seconds
    assert "\x1b" not in shown(console) and "\r" not in shown(console)
    assert re.match(r"\d\d:\d\d:\d\d  step +481/100000  epoch 1\.6  loss 5\.000  lr 3\.00e-04  2,560 samp", lines[-1])
    assert lines[-1].endswith("samples/s  wait 2 %  left 3h27m")


def test_a_short_run_logs_every_twentieth_and_its_end():
    console, clock = plain_console(), Clock()
    with Progress(40, console=console, clock=clock) as progress:
        for step in range(1, 41):
            clock.now += 1.0
            progress.update(step, loss=1.0)
    steps = [int(re.search(r"(\d+)/40", line)[1]) for line in shown(console).splitlines()]
    assert steps == [1, *range(3, 41, 2), 40]


def test_time_left_leaves_out_compilation_and_the_steps_before_a_resume():
    clock = Clock()
    progress = Progress(1000, enabled=False, start_step=500, clock=clock)
    assert progress.seconds_left() is None
    clock.now = 60.0  # the first step compiles for a minute
    progress.update(501)
    clock.now = 160.0
    progress.update(601)
    assert progress.seconds_left() == pytest.approx(399.0)


def test_a_disabled_display_is_silent():
    console = plain_console()
    with Progress(10, enabled=False, console=console) as progress:
        progress.update(10, loss=1.0)
        progress.message("hello")
    assert shown(console) == ""


@pytest.mark.parametrize(
    "width, line",
    [
        (80, "step  801/1600  loss 2.346  1,130 samples/s  wait 25 %  MFU 41 %  left 1m00s"),
        (100, f"{'━' * 12:23} step  801/1600  loss 2.346  1,130 samples/s  wait 25 %  MFU 41 %  left 1m00s"),
        (60, "step  801/1600  loss 2.346  1,130 samples/s  left 1m00s"),
    ],
)
def test_the_live_line_fits_the_terminal_and_messages_stand_above_it(width, line):
    console, clock = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None), Clock()
    with Progress(1600, console=console, clock=clock) as progress:
        progress.update(1, loss=5.5)
        clock.now = 60.0
        progress.message("[alarm] at chance")
        progress.update(801, loss=2.3456, samples_per_s=1130.4, data_wait=0.25, mfu=0.412)
    lines = [re.sub(r"\x1b\[[0-9?]*[A-Za-z]", "", part) for part in re.split(r"[\r\n]+", shown(console))]
    last = [text.rstrip() for text in lines if "step" in text][-1]
    assert last.replace("╸", "━").replace("╺", "━") == line and len(last) <= width
    assert "[alarm] at chance" in lines


def test_the_summary_shows_text_as_it_is():
    console = plain_console()
    sections = {"rules": [".*/(bias|scale)[ab] -> none", "x"], "mesh": {"data": 8}, "empty": "", "steps": 1600}
    print_summary("xmodal", sections, console)
    lines = [line.rstrip() for line in shown(console).splitlines()]
    assert "rules  .*/(bias|scale)[ab] -> none" in lines and "mesh   data 8" in lines and "steps  1,600" in lines
    assert not any("empty" in line for line in lines) and "\x1b" not in shown(console)


def lines_of(monkeypatch, capsys, columns, *table):
    """What a table looks like in a log file where COLUMNS says so."""
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", str(columns))
    print_table(*table)
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("columns", [None, 60, 200])
def test_tables_keep_to_the_width_and_lose_nothing(monkeypatch, capsys, columns):
    names = ["set", *(f"metric {i}" for i in range(14))]
    rows = [[f"set {row} of them", *(Figure("R@1", 0.5 + (row * 14 + i) / 100) for i in range(14))] for row in range(2)]
    lines = lines_of(monkeypatch, capsys, columns, "wide", names, rows)
    assert max(map(len, lines)) <= (columns or 120)
    text = "\n".join(lines)
    assert all(name in text for name in names) and all(str(cell) in text for row in rows for cell in row)
    pieces = sum("metric" in line for line in lines)
    assert text.count("set 1 of them") == pieces and (pieces > 1) == (columns != 200)


def test_long_texts_fold(monkeypatch, capsys):
    long = "image/trunk/layers/" + "x" * 90 + "y" * 40
    lines = lines_of(monkeypatch, capsys, 70, "rules", ["path", "lr"], [[long, 0.5], ["[b]", 1]])
    assert max(map(len, lines)) <= 70 and "[b]" in "".join(lines)
    assert "".join(line.split()[0] for line in lines[4:-2]) == long
    lines = lines_of(monkeypatch, capsys, None, "rules", ["path", "lr"], [[long[:100], 0.5]])
    assert any(long[:100] in line for line in lines)


def test_nested_results_come_back_from_disk(tmp_path):
    written = results_of(dict(step=100, samples=25600), RESULTS)
    write_results(tmp_path, written)
    assert read_results(tmp_path) == written
    assert written["retrieval"]["unseen_vendor"]["image_to_text"]["R@10"] == 0.53
    assert (written["step"], written["samples"]) == (100, 25600)


@pytest.mark.parametrize("names", [("a/b", "a/b/c"), ("a/b/c", "a/b")])
def test_a_name_cannot_be_value_and_group(names):
    with pytest.raises(ValueError, match="rename"):
        nest(dict.fromkeys(names, 1.0))


def test_evaluation_tables_have_a_row_per_direction_and_chance_beside_each_figure():
    retrieval, zero_shot = evaluation_tables({"step": 1, **nest(RESULTS)})
    assert retrieval.columns == ["set", "R@1", "R@10", "median rank", "images"]
    assert retrieval.rows[0][:3] == [
        "unseen vendor · image → text",
        Figure("R@1", 0.17, 1 / 1811),
        Figure("R@10", 0.53, 10 / 1811),
    ]
    assert list(map(str, retrieval.rows[1])) == ["unseen vendor · text → image", "16.0 %", "", "8", "1,811"]
    assert list(map(str, zero_shot.rows[0])) == ["groups", "70.0 % (10.0 %)", "1,811"]
    console = plain_console()
    with_ends = RESULTS | {"zero_shot/groups/ci95/top1": [0.65, 0.75], "zero_shot/groups/per_class": [{"class": "a"}]}
    zero_shot = evaluation_tables(nest(with_ends))[1]
    assert (
        zero_shot.columns == ["set", "top-1", "images"] and str(zero_shot.rows[0][1]) == "70.0 % [65.0, 75.0] (10.0 %)"
    )
    print_evaluation(nest(with_ends), console)
    assert "zero-shot (in brackets: chance; below: 95 % interval)" in shown(console)
    print_evaluation(nest(RESULTS), console)
    assert "retrieval (in brackets: chance)" in shown(console) and "53.0 % (0.55 %)" in shown(console)


def test_a_reader_that_went_away_ends_a_run_with_a_line(tmp_path, monkeypatch, capsys):
    def printed(*_):
        Output().on_broken_pipe()

    monkeypatch.setattr(command, "run_training", printed)
    with pytest.raises(BrokenPipeError):
        train.run(argparse.Namespace(config="r.py", overrides=[], workdir=tmp_path, accept_changes=False))
    assert capsys.readouterr().err.startswith("error: standard output was closed by its reader (such as `| head`), so")


def test_evaluations_are_told_as_they_come(capsys):
    def evaluator(params):
        assert capsys.readouterr().out == "evaluating held_out\n"
        return EvalResult({"retrieval/held_out/image_to_text/R@1": 0.25, "retrieval/held_out/images": 9.0})

    found = evaluate._told("held_out", evaluator, {})
    assert capsys.readouterr().out == "  retrieval · held out · image → text  R@1 25.0 %\n" and len(found.metrics) == 2
