"""Which metrics are drawn together: a table of patterns, so that a new metric finds its place or its own chart."""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from xmodal.reporting.formatting import figure, is_share, words
from xmodal.reporting.markup import Markup, el
from xmodal.reporting.messages import Message, dotted, say, term
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
    y: str = ""  # title of the vertical axis


_LENGTH, _COSINE, _SAMPLES = say("length (L2 norm)"), say("cosine"), say("samples")
PLOTS = (
    Plot("training", say("learning rate"), r"lr(?:/(.+))?", y=say("learning rate")),
    Plot("training", say("gradient norm"), r"(?:train|health)/(?:.+/)?grad(?:ient)?_norm", smooth=True, y=_LENGTH),
    Plot("training", say("temperature (logit scale)"), r"train/(.+)/logit_scale", y=say("factor on the cosine")),
    Plot("training", say("logit bias"), r"train/(.+)/logit_bias", y=say("added to the logits")),
    Plot("health", say("embedding norms"), r"(?:.*/)?health/(.+)_norm", y=_LENGTH),
    Plot("health", say("mean cosine within a modality"), r"(?:.*/)?health/(.+)_mean_cosine", y=_COSINE),
    Plot("health", say("modality gap"), r"(?:.*/)?health/modality_gap", y=say("distance of the means")),
    Plot("health", say("cosine of true pairs"), r"(?:.*/)?health/pair_cosine", y=_COSINE),
    Plot("health", say("duplicates in the batch"), r"(?:.*/)?health/duplicate_share", share=True, smooth=True,
         y=say("share of the batch")),
    Plot("health", say("skipped steps (not finite)"), r"(?:.*/)?health/(nonfinite.*)", quiet=True, y=say("steps")),
    Plot("speed", say("samples per second"), r"throughput/samples_per_s", smooth=True, y=say("samples per second")),
    Plot("speed", say("data wait"), r"throughput/data_wait", share=True, smooth=True, y=say("share of the time")),
    Plot("data", say("samples replaced"), r"data/replaced", quiet=True, y=_SAMPLES),
    Plot("data", say("samples replaced, by reason"), r"data/bad/(.+)", quiet=True, y=_SAMPLES),
    Plot("data", say("share of samples replaced"), r"data/bad_share", share=True, quiet=True, y=say("share")),
    Plot("data", say("samples left out by the index"), r"data/skipped/(.+)", quiet=True, y=_SAMPLES),
    Plot("speed", say("model FLOP utilisation"), r"throughput/mfu", share=True, y=say("share of the peak")),
)  # fmt: skip
SECTIONS = {
    "training": say("Training"), "health": say("Health"), "speed": say("Speed"), "data": say("Data"),
    "other": say("Other metrics"),
}  # fmt: skip


def loss_charts(rows: Rows, chance: Mapping[str, float]) -> Markup:
    """One chart per objective with its chance level, and the weighted sum when there are several objectives.

    Args:
      rows: metric rows.
      chance: objective name -> its loss for a model that knows nothing.
    """
    names = [match[1] for name in scalar_names(rows) if (match := re.fullmatch(r"train/(.+)/loss", name))]
    charts = []
    if len(names) != 1 and "train/loss" in scalar_names(rows):
        charts.append(_loss(say("total loss"), rows, "train/loss", chance.get("total")))
    charts += [
        _loss(say("{objective} loss", objective=term(name)), rows, f"train/{name}/loss", chance.get(name))
        for name in names
    ]
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
        series = [_series(rows, name, term(name.rpartition("/")[2])) for name in names]
        title = dotted(group.split("/")[1:]) or group
        shares = all(is_share(s.name, y) for s in series for y in s.y if math.isfinite(y))
        title = say("{title}: in the batch", title=title) if inside else title
        drawn = chart(title, series, share=shares, smooth=True, y=say("share") if shares else say("value"))
        sections[SECTIONS["training" if inside else "other"]].append(drawn)
    return {title: _grid(charts, "charts") for title, charts in sections.items() if any(charts)}


def evaluation_charts(rows: Rows, best: int | None = None) -> Markup | None:
    """One chart per evaluated set and direction: its shares (recall, accuracy) over training, with chance.

    Args:
      rows: metric rows.
      best: step of the best checkpoint, which is marked; None marks none.
    """
    events = [] if best is None else [(say("best: step {step:,}", step=best), float(best))]
    groups: dict[str, list[str]] = defaultdict(list)
    for name in scalar_names(rows):
        parts = name.split("/")
        if parts[0] == "eval" and CHANCE not in parts:
            groups["/".join(parts[:-1])].append(name)
    charts = []
    for group, names in groups.items():
        series = [_series(rows, name, term(name.rpartition("/")[2])) for name in names]
        series = [s for s in series if all(is_share(s.name, y) for y in s.y)]
        levels = [
            (words(name.rpartition("/")[2]), _series(rows, f"{group}/{CHANCE}/{name.rpartition('/')[2]}", ""))
            for name in names
        ]
        known = [(metric, s.y[-1]) for metric, s in levels if s.y and is_share(metric, s.y[-1])]
        highest = [max(known, key=lambda level: level[1])] if known else []  # one line: they crowd at the floor
        reference = [(_chance(metric, value), value) for metric, value in highest]
        options = dict(share=True, references=reference, y=say("share of the queries"), events=events)
        charts.append(chart(dotted(group.split("/")[1:]), series, **options))
    return _grid(charts, "charts") if any(charts) else None


def scalar_names(rows: Rows) -> list[str]:
    """Names of all scalars, in order of their first appearance."""
    return [name for name in dict.fromkeys(key for row in rows for key in row) if name not in NOT_SCALARS]


def _chance(metric: str, value: float) -> Message:
    return say("chance {metric} {value}", metric=metric, value=figure(metric, value))


def _loss(title: str, rows: Rows, name: str, chance: float | None) -> Markup:
    references = [] if chance is None else [(say("chance {value}", value=figure("loss", chance)), chance)]
    options = dict(references=references, smooth=True, log_switch=True, y=term("loss"))
    return chart(title, [_series(rows, name, "loss")], **options)


def _plot(rows: Rows, plot: Plot, names: Sequence[str]) -> Markup:
    matches = [re.fullmatch(plot.pattern, name) for name in names]
    labels = [term(match[1]) if match.lastindex else plot.title for match in matches]
    series = [_series(rows, name, label) for name, label in zip(names, labels)]
    if plot.quiet and not any(any(s.y) for s in series):
        return Markup()
    return chart(plot.title, series, share=plot.share, smooth=plot.smooth, y=plot.y)


def _series(rows: Rows, name: str, label: str) -> Series:
    points = [(row["step"], row[name]) for row in rows if isinstance(row.get(name), int | float)]
    return Series(label, [step for step, _ in points], [float(value) for _, value in points])


def _grid(charts: Sequence[Markup], class_: str) -> Markup:
    return el("div", list(charts), class_=class_) if any(charts) else Markup()
