"""Which metrics are drawn together: a table of patterns, so that a new metric finds its place or its own chart."""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from xmodal.reporting.formatting import figure, is_share, words
from xmodal.reporting.markup import Markup, el
from xmodal.reporting.results import CHANCE
from xmodal.reporting.svg import Series, chart

Rows = Sequence[Mapping[str, Any]]
NOT_SCALARS = {"step", "samples", "time", "alarms"}


@dataclasses.dataclass(frozen=True)
class Plot:
    """One chart: all scalars whose name matches; the pattern's group, if any, names the line."""

    section: str
    title: str
    pattern: str
    share: bool = False
    smooth: bool = False
    quiet: bool = False  # not drawn while all values are zero: counters of trouble


PLOTS = (
    Plot("training", "learning rate", r"lr(?:/(.+))?"),
    Plot("training", "gradient norm", r"(?:train|health)/(?:.+/)?grad(?:ient)?_norm", smooth=True),
    Plot("training", "temperature (logit scale)", r"train/(.+)/logit_scale"),
    Plot("training", "logit bias", r"train/(.+)/logit_bias"),
    Plot("health", "embedding norms", r"(?:.*/)?health/(.+)_norm"),
    Plot("health", "mean cosine within a modality", r"(?:.*/)?health/(.+)_mean_cosine"),
    Plot("health", "modality gap", r"(?:.*/)?health/modality_gap"),
    Plot("health", "cosine of true pairs", r"(?:.*/)?health/pair_cosine"),
    Plot("health", "duplicates in the batch", r"(?:.*/)?health/duplicate_share", share=True, smooth=True),
    Plot("health", "skipped steps (not finite)", r"(?:.*/)?health/(nonfinite.*)", quiet=True),
    Plot("speed", "samples per second", r"throughput/samples_per_s", smooth=True),
    Plot("speed", "data wait", r"throughput/data_wait", share=True, smooth=True),
    Plot("data", "samples replaced", r"data/replaced", quiet=True),
    Plot("data", "samples replaced, by reason", r"data/bad/(.+)", quiet=True),
    Plot("data", "share of samples replaced", r"data/bad_share", share=True, quiet=True),
    Plot("data", "samples left out by the index", r"data/skipped/(.+)", quiet=True),
    Plot("speed", "model FLOP utilisation", r"throughput/mfu", share=True),
)
SECTIONS = {"training": "Training", "health": "Health", "speed": "Speed", "data": "Data", "other": "Other metrics"}


def loss_charts(rows: Rows, chance: Mapping[str, float]) -> Markup:
    """One chart per objective with its chance level, and the weighted sum when there are several objectives.

    Args:
      rows: metric rows.
      chance: objective name -> its loss for a model that knows nothing.
    """
    names = [match[1] for name in scalar_names(rows) if (match := re.fullmatch(r"train/(.+)/loss", name))]
    charts = []
    if len(names) != 1 and "train/loss" in scalar_names(rows):
        charts.append(_loss("total loss", rows, "train/loss", chance.get("total")))
    charts += [_loss(f"{words(name)} loss", rows, f"train/{name}/loss", chance.get(name)) for name in names]
    return _grid(charts, "charts wide" if len(charts) <= 2 else "charts")


def metric_charts(rows: Rows) -> dict[str, Markup]:
    """Section title -> its charts, for every scalar that is neither a loss nor an evaluation figure."""
    lines: dict[Plot, list[str]] = defaultdict(list)
    rest: dict[str, list[str]] = defaultdict(list)
    for name in scalar_names(rows):
        if name.startswith("eval/") or re.fullmatch(r"train/(.+/)?loss", name):
            continue
        plot = next((plot for plot in PLOTS if re.fullmatch(plot.pattern, name)), None)
        if plot is not None:
            lines[plot].append(name)
        else:  # what an objective reports about one batch stays together; strangers get a chart each
            parts = name.split("/")
            rest["/".join(parts[:2]) if parts[0] == "train" and len(parts) > 2 else name].append(name)
    sections: dict[str, list[Markup]] = {title: [] for title in SECTIONS.values()}
    for plot in sorted(lines, key=PLOTS.index):
        sections[SECTIONS[plot.section]].append(_plot(rows, plot, lines[plot]))
    for group, names in rest.items():
        inside = group.startswith("train/")
        series = [_series(rows, name, words(name.rpartition("/")[2])) for name in names]
        title = " · ".join(map(words, group.split("/")[1:])) or group
        shares = all(is_share(s.name, y) for s in series for y in s.y if math.isfinite(y))
        drawn = chart(f"{title}: in the batch" if inside else title, series, share=shares, smooth=True)
        sections[SECTIONS["training" if inside else "other"]].append(drawn)
    return {title: _grid(charts, "charts") for title, charts in sections.items() if any(charts)}


def evaluation_charts(rows: Rows) -> Markup | None:
    """One chart per evaluated set and direction: its shares (recall, accuracy) over training, with chance."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in scalar_names(rows):
        parts = name.split("/")
        if parts[0] == "eval" and CHANCE not in parts:
            groups["/".join(parts[:-1])].append(name)
    charts = []
    for group, names in groups.items():
        series = [_series(rows, name, words(name.rpartition("/")[2])) for name in names]
        series = [s for s in series if all(is_share(s.name, y) for y in s.y)]
        levels = [
            (words(name.rpartition("/")[2]), _series(rows, f"{group}/{CHANCE}/{name.rpartition('/')[2]}", ""))
            for name in names
        ]
        known = [(metric, s.y[-1]) for metric, s in levels if s.y and is_share(metric, s.y[-1])]
        best = [max(known, key=lambda level: level[1])] if known else []  # one line: they crowd at the floor
        reference = [(f"chance {metric} {figure(metric, value)}", value) for metric, value in best]
        charts.append(chart(" · ".join(map(words, group.split("/")[1:])), series, share=True, references=reference))
    return _grid(charts, "charts") if any(charts) else None


def scalar_names(rows: Rows) -> list[str]:
    """Names of all scalars, in order of their first appearance."""
    return [name for name in dict.fromkeys(key for row in rows for key in row) if name not in NOT_SCALARS]


def _loss(title: str, rows: Rows, name: str, chance: float | None) -> Markup:
    references = [] if chance is None else [(f"chance {figure('loss', chance)}", chance)]
    return chart(title, [_series(rows, name, "loss")], references=references, smooth=True, log_switch=True)


def _plot(rows: Rows, plot: Plot, names: Sequence[str]) -> Markup:
    matches = [re.fullmatch(plot.pattern, name) for name in names]
    labels = [words(match[1]) if match.lastindex else plot.title for match in matches]
    series = [_series(rows, name, label) for name, label in zip(names, labels)]
    if plot.quiet and not any(any(s.y) for s in series):
        return Markup()
    return chart(plot.title, series, share=plot.share, smooth=plot.smooth)


def _series(rows: Rows, name: str, label: str) -> Series:
    points = [(row["step"], row[name]) for row in rows if isinstance(row.get(name), int | float)]
    return Series(label, [step for step, _ in points], [float(value) for _, value in points])


def _grid(charts: Sequence[Markup], class_: str) -> Markup:
    return el("div", list(charts), class_=class_) if any(charts) else Markup()
