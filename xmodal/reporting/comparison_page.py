"""The page of `compare`: figures of several runs with their intervals, differences, learning curves and settings."""

import itertools
import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from xmodal.reporting.bootstrap import Difference
from xmodal.reporting.comparison import (
    Compared,
    Group,
    GroupLine,
    Line,
    comparable,
    group_lines,
    notes,
    seed_groups,
    settings,
)
from xmodal.reporting.curves import scalar_names
from xmodal.reporting.formatting import compact, difference, figure, is_share, spread
from xmodal.reporting.markup import Markup, el, join
from xmodal.reporting.messages import Message, dotted, say, term
from xmodal.reporting.page import card, document, table
from xmodal.reporting.results import CHANCE, Figure
from xmodal.reporting.svg import COLOURS, Series, chart, ticks

MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"
_CURVES = 9  # charts of evaluations that are not folded away


def render(runs: Sequence[Compared], lines: Sequence[Line]) -> str:
    """Returns the page.

    Args:
      runs: what is compared; differences are to the first.
      lines: `comparison.lines` of them.
    """
    if len(runs) == 2:
        title = say("{first} and {second}", first=runs[0].name, second=runs[1].name)
    else:
        title = say("{count} runs", count=len(runs))
    header = el(
        "header",
        el("p", say("xmodal compare"), class_="eyebrow"),
        el("h1", title),
        el("div", [_run(i, run, runs[0]) for i, run in enumerate(runs)], class_="cards"),
    )
    groups, shared = seed_groups(runs), comparable(lines)
    sections = [
        (say("Over seeds"), _groups(groups, group_lines(groups, shared))),
        (say("Metrics"), _figures(runs, shared, notes(runs, lines))),
        (say("Learning curves"), _curves(runs)),
        (say("Settings"), _settings(runs)),
    ]
    footer = say(
        "Bars are 95 % bootstrap intervals, by resampling images. A difference is to the first run; in colour where "
        "its interval leaves out zero and more than the seed differs. Of many metrics some do so by chance: one in "
        "twenty where nothing differs. Written by xmodal on {time}.",
        time=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    )
    shown = [(name, content) for name, content in sections if content]
    return document(title, header, shown, footer, ("report.css", "compare.css"))


def _run(number: int, run: Compared, first: Compared) -> Markup:
    results = run.run.results
    step = say("step {step:,}", step=results["step"]) if "step" in results else say("results")
    samples = str(results.get("model", ""))
    if "samples" in results:
        samples = say("{samples} samples seen", samples=compact(results["samples"]))
    paired = [group for group, own in run.scores.items() if group in first.scores and own.digest]
    same = all(first.scores[group].digest == run.scores[group].digest for group in paired)
    note = say("same queries") if paired and same else say("not all queries are the same")
    label = join(el("i", class_=f"key-dot c{number % COLOURS}"), run.name)
    return card(label, step, *filter(None, (samples, "" if run is first else note)))


def _groups(groups: Sequence[Group], lines: Sequence[GroupLine]) -> Markup | None:
    """Mean and deviation of each metric over the seeds, and differences of the means."""
    if not lines:
        return None
    note = say(
        "Mean ± standard deviation over runs that differ in the seed alone. Differences with their 95 % interval over "
        "seeds (Welch's t), which needs two seeds on both sides."
    )
    columns = [
        "", *(say("{name}, seeds: {count}", name=group.name, count=len(group.members)) for group in groups),
        *(f"{group.name} {MINUS} {groups[0].name}" for group in groups[1:]),
    ]  # fmt: skip
    blocks = [el("p", note, class_="soft")]
    for evaluator, own in itertools.groupby(lines, key=lambda line: line.path[0]):
        rows, place = [], None
        for line in own:
            if line.path[1:] != place and line.path[1:]:
                rows.append(_heading(line.path[1:], len(columns)))
            place = line.path[1:]
            means = [el("b", spread(x.metric, x.mean, x.deviation)) if x else DASH for x in line.spreads]
            apart = [_difference(line.metric, d and d._replace(paired=True)) for d in line.differences]
            rows.append([el("span", term(line.metric), class_="metric"), *means, *apart])
        blocks.append(el("div", el("h3", term(evaluator)), table(columns, rows, "compare"), class_="block"))
    return join(blocks)


def _figures(runs: Sequence[Compared], lines: Sequence[Line], told: Sequence[Message]) -> Markup:
    blocks = [el("p", note, class_="soft") for note in told]
    for evaluator, own in itertools.groupby(lines, key=lambda line: line.path[0]):
        blocks.append(el("div", el("h3", term(evaluator)), _table(runs, list(own)), class_="block"))
    return join(blocks)


def _table(runs: Sequence[Compared], lines: Sequence[Line]) -> Markup:
    """One row a figure: its values as dots with intervals, as text, and the differences likewise."""
    shares = [line for line in lines if _is_share(line)]
    figures = [f for line in shares for f in line.figures if f]
    top = max((end for f in figures for end in (f.value, *(f.interval or ()))), default=0.0)
    far = max((abs(end) for line in shares for d in line.differences if d for end in _ends(d)), default=0.0)
    top, far = ticks(0, max(top, 1e-3), 4)[-1], ticks(0, max(far, 1e-3), 2)[-1]
    columns = [
        say("metric"), *[_axis("0", figure("", top))] * bool(shares), *(run.name for run in runs),
        *[_axis(f"{MINUS}{100 * far:.3g}", f"+{100 * far:.3g}", say("difference"))] * bool(shares),
        *(f"{run.name} {MINUS} {runs[0].name}" for run in runs[1:]),
    ]  # fmt: skip
    rows, place = [], None
    for line in lines:
        if line.place != place and line.place:
            rows.append(_heading(line.path[1:], len(columns)))
        place = line.place
        left, right = _strips(line, top, far) if _is_share(line) else ("", "")
        apart = (_difference(line.metric, d) for d in line.differences)
        strips = ([left], [right]) if shares else ([], [])
        rows.append([_metric(line), *strips[0], *map(_value, line.figures), *strips[1], *apart])
    return table(columns, rows, "compare")


def _heading(path: Sequence[str], columns: int) -> Markup:
    return el("tr", el("td", el("b", dotted(path)), colspan=columns), class_="heading")


def _metric(line: Line) -> Markup:
    chance = _chance(line)
    note = el("small", say("chance {value}", value=figure(line.metric, chance))) if chance is not None else None
    return join(el("span", term(line.metric), class_="metric"), note)


def _strips(line: Line, top: float, far: float) -> tuple[Markup, Markup]:
    values = [(f.value, *(f.interval or (math.nan, math.nan))) if f else None for f in line.figures]
    apart = [None, *((d.value, d.low, d.high) if d else None for d in line.differences)]
    return _strip(values, 0.0, top, _chance(line)), _strip(apart, -far, far, 0.0)


def _is_share(line: Line) -> bool:
    spread = line.metric.endswith("std")  # of draws, a share too, but not one to be placed among the others
    return not spread and all(is_share(line.metric, f.value) for f in line.figures if f)


def _ends(apart: Difference) -> list[float]:
    return [end for end in (apart.value, apart.low, apart.high) if math.isfinite(end)]


def _chance(line: Line) -> float | None:
    return next((f.chance for f in line.figures if f and f.chance is not None), None)


def _axis(low: str, high: str, name: str = "") -> Markup:
    return el("span", el("span", low), el("span", name), el("span", high), class_="axis")


def _strip(points: Sequence[tuple[float, float, float] | None], low: float, high: float, mark: float | None) -> Markup:
    """Dots with intervals, one above the other, in colours of the runs; a line at `mark`."""
    at = lambda value: f"{100 * min(1.0, max(0.0, (value - low) / (high - low))):.2f}%"
    parts = [el("u", style=f"left:{at(mark)}")] if mark is not None else []
    for number, point in enumerate(points):
        if point is None:
            continue
        value, start, end = point
        colour = f"c{number % COLOURS}"
        bar = f"calc({at(end)} - {at(start)})"
        whisker = el("s", style=f"left:{at(start)};width:{bar}") if math.isfinite(start) else None
        parts.append(el("span", whisker, el("i", style=f"left:{at(value)}"), class_=f"row {colour}"))
    return el("div", parts, class_="strip", aria_hidden="true")


def _value(cell: Figure | None) -> Markup | str:
    if cell is None:
        return DASH
    notes = [el("small", cell.between, title=say("95 % interval"))] if cell.interval else []
    return join(el("b", figure(cell.metric, cell.value)), notes)


def _difference(metric: str, apart: Difference | None) -> Markup | str:
    if apart is None:
        return DASH
    if math.isnan(apart.low):
        return el("span", difference(metric, apart.value), class_="soft")
    if apart.chance:
        note = say("the seed alone differs")
        return el("span", difference(metric, apart.value), el("small", note), class_="soft")
    value, _, ends = difference(metric, apart.value, apart.low, apart.high).partition(" ")
    note = "" if apart.paired else say(", unpaired")
    return join(
        el("b", value, class_=("better" if apart.low > 0 else "worse") if apart.clear else "soft"),
        el("small", ends, note),
    )


def _curves(runs: Sequence[Compared]) -> Markup | None:
    """Training losses, and every evaluation figure that was measured more than once, over the samples seen."""
    names = dict.fromkeys(name for run in runs for name in scalar_names(run.run.rows))
    losses = [name for name in names if re.fullmatch(r"train/(.+/)?loss", name)]
    if len(losses) == 2:  # of one objective, and the sum that is the same
        losses = ["train/loss"]
    drawn = [_curve(runs, name, _loss_title(name), smooth=True) for name in losses]
    figures = [name for name in names if name.startswith("eval/") and CHANCE not in name.split("/")]
    figures = [name for name in figures if any(len(_points(run, name)) > 1 for run in runs)]
    shares = [name for name in figures if all(is_share(name, y) for run in runs for _, y in _points(run, name))]
    evaluations = [_curve(runs, name, dotted(name.split("/")[2:]), share=True) for name in shares]
    if not any(drawn) and not any(evaluations):
        return None
    more = evaluations[_CURVES:]
    return join(
        el("p", say("Over the training samples seen."), class_="soft"),
        el("div", [*drawn, *evaluations[:_CURVES]], class_="charts"),
        el("details", el("summary", say("{count} more", count=len(more))), el("div", more, class_="charts"))
        if more
        else None,
    )


def _curve(runs: Sequence[Compared], name: str, title: str, *, share: bool = False, smooth: bool = False) -> Markup:
    series = []
    for number, run in enumerate(runs):
        points = _points(run, name)
        series.append(Series(run.name, [x for x, _ in points], [y for _, y in points], colour=number))
    y = say("share of the queries") if share else term("loss")
    return chart(title, series, share=share, smooth=smooth, unit="sample", y=y)


def _loss_title(name: str) -> str:
    objective = name.split("/")[1:-1]
    return say("{objective} loss", objective=term(objective[0])) if objective else say("total loss")


def _points(run: Compared, name: str) -> list[tuple[int, float]]:
    return [(row["samples"], float(row[name])) for row in run.run.rows if isinstance(row.get(name), int | float)]


def _settings(runs: Sequence[Compared]) -> Markup | None:
    found: list[tuple[str, list[Any]]] = settings(runs)
    if not found:
        return None
    rows = [[key, *(_text(value) for value in values)] for key, values in found]
    return table([say("setting"), *(run.name for run in runs)], rows, "list settings")


def _text(value: str) -> Markup | str:
    return value or el("span", DASH, class_="soft")
