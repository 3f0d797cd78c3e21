"""Line charts as inline SVG, drawn here and readable without JavaScript.

The drawing is stretched to the width of its place while strokes and letters keep their size (non-scaling strokes,
labels in HTML), so the same chart is sharp on a phone and on a wide screen. `assets/report.js` adds the read-out
under the pointer.
"""

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Sequence

import numpy as np

from xmodal.reporting.formatting import compact, number, percent
from xmodal.reporting.markup import Markup, el
from xmodal.reporting.messages import say

SIDE = 1000  # units of the drawing in both directions
POINTS = 400  # per drawn line
COLOURS = 6  # defined in report.css; later series start again
SMOOTH_FROM = 60  # points from which a noisy series gets a smoothed line


@dataclasses.dataclass(frozen=True)
class Series:
    """One line: name and points in order of x. Points that are not finite interrupt the line.

    Its colour is that of its place among the lines, unless it is given.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int | None = None


@dataclasses.dataclass(frozen=True)
class Scale:
    """Maps values of one axis to 0..1."""

    low: float
    high: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            low, high, value = (math.log10(max(v, 1e-300)) for v in (low, high, value))
        return min(1.0, max(0.0, (value - low) / (high - low)))


AXES = {"step": say("training steps"), "sample": say("samples seen"), "time": say("training time")}


def chart(
    title: str,
    series: Sequence[Series],
    *,
    share: bool = False,
    references: Sequence[tuple[str, float]] = (),
    smooth: bool = False,
    log_switch: bool = False,
    unit: str = "step",
    y: str = "",
    events: Sequence[tuple[str, float]] = (),
) -> Markup:
    """Draws lines over training steps, or over what `unit` names.

    Args:
      title: what is drawn.
      series: at most a handful of lines.
      share: values are shares 0..1, shown as percent from zero.
      references: (label, value) of dashed horizontal lines, such as a chance level.
      smooth: draws a local mean over the faint raw line of a long series.
      log_switch: offers a logarithmic vertical axis.
      unit: what x counts, a key of `AXES`; the page can show steps as samples or time where it has a `clock`.
      y: title of the vertical axis.
      events: (label, x) of dashed vertical lines, such as the best step.
    """
    series = [s for s in series if any(map(math.isfinite, s.y))]
    if not series:
        return Markup()
    text = percent if share else number
    positive = all(y > 0 for s in series for y in s.y if math.isfinite(y))
    logs = [False, True] if log_switch and positive else [False]
    steps = [x for s in series for x in s.x]
    across = Scale(min(steps), max(steps) if max(steps) > min(steps) else min(steps) + 1)
    named = len(series) > 1 or series[0].name not in title  # a line that is alone is named by the title
    plots = [
        _plot(series, across, *_vertical(series, references, share, log), references, events, smooth, text, unit)
        for log in logs
    ]
    events = [el("li", el("i", class_="event"), label) for label, x in events if across.low <= x <= across.high]
    switch = el("label", el("input", type="checkbox"), "log", class_="switch") if len(logs) > 1 else None
    return el(
        "figure",
        el("figcaption", el("b", title), switch),
        el("ul", [_legend(i, s, text, named) for i, s in enumerate(series)], events, class_="legend"),
        el("div", y, class_="up") if y else None,
        plots,
        class_="chart",
        data_chart=json.dumps(_data(series, across, share) | {"unit": unit}, separators=(",", ":")),
    )


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values (1, 2, 2.5 or 5 times a power of ten) that cover low..high in about `count` steps."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * (1 - 1e-9))
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten within low..high; their 1-2-5 fractions too when that makes fewer than three."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    whole = [10.0**p for p in powers]
    fine = [m * t for t in whole for m in (1, 2, 5)]
    inside = [t for t in whole if low <= t <= high]
    return inside if len(inside) >= 3 else [t for t in fine if low <= t <= high]


def thin(x: Sequence[float], y: Sequence[float], limit: int = POINTS) -> tuple[list[float], list[float]]:
    """Keeps the lowest and the highest point of each of `limit / 2` stretches: spikes survive."""
    if len(x) <= limit:
        return list(x), list(y)
    kept: list[int] = []
    edges = [round(i * len(x) / (limit // 2)) for i in range(limit // 2 + 1)]
    for start, stop in itertools.pairwise(edges):
        finite = [i for i in range(start, stop) if math.isfinite(y[i])]
        ends = {min(finite, key=y.__getitem__), max(finite, key=y.__getitem__)} if finite else {start}
        kept += sorted(ends)
    return [x[i] for i in kept], [y[i] for i in kept]


def smoothed(y: Sequence[float]) -> list[float]:
    """Mean over a centred window of about a fortieth of the series: unlike a running mean it does not lag."""
    values = np.asarray(y, np.float64)
    finite = np.isfinite(values)
    window = np.hanning(2 * max(2, len(values) // 40) + 3)[1:-1]
    total = np.convolve(np.where(finite, values, 0.0), window, "full")
    weight = np.convolve(finite.astype(np.float64), window, "full")
    centre = slice(len(window) // 2, len(window) // 2 + len(values))
    known = weight[centre] > 1e-12
    return np.where(known, total[centre] / np.where(known, weight[centre], 1.0), np.nan).tolist()


def _vertical(
    series: Sequence[Series], references: Sequence[tuple[str, float]], share: bool, log: bool
) -> tuple[Scale, list[float]]:
    """The vertical scale and its marks; the scale ends on a mark unless it is logarithmic."""
    values = [y for s in series for y in s.y if math.isfinite(y)] + [y for _, y in references if not log or y > 0]
    low, high = min(values), max(values)
    if log:
        scale = Scale(low * 0.95, high * 1.05, log=True)
        return scale, log_ticks(scale.low, scale.high)
    if share or 0 <= low <= 0.4 * high:
        low = min(low, 0.0)
    if high - low <= 1e-9 * abs(high):  # a constant sits in the middle, zero at the bottom
        low, high = (low - abs(low) / 2, high + abs(high) / 2) if high else (0.0, 1.0)
    marks = ticks(low, high)
    return Scale(marks[0], marks[-1]), marks


def _plot(
    series: Sequence[Series],
    across: Scale,
    up: Scale,
    marks: Sequence[float],
    references: Sequence[tuple[str, float]],
    events: Sequence[tuple[str, float]],
    smooth: bool,
    text: Callable[[float], str],
    unit: str,
) -> Markup:
    steps = [t for t in ticks(across.low, across.high, 4) if across.low <= t <= across.high and t == int(t)]
    drawing = [_line(f"M0 {_y(up, t)}H{SIDE}", "grid") for t in marks]
    drawing += [_line(f"M0 {_y(up, value)}H{SIDE}", "reference") for _, value in references if value > 0 or not up.log]
    inside = [x for _, x in events if across.low <= x <= across.high]
    drawing += [_line(f"M{SIDE * across(x):.0f} 0V{SIDE}", "event") for x in inside]
    for index, line in enumerate(series):
        colour = _colour(index, line)
        noisy = smooth and len(line.x) >= SMOOTH_FROM
        lone = " dot" if sum(map(math.isfinite, line.y)) == 1 else ""
        drawing.append(_line(_path(line.x, line.y, across, up), f"{colour} raw" if noisy else colour + lone))
        if noisy:
            drawing.append(_line(_path(line.x, smoothed(line.y), across, up), colour))
    return el(
        "div",
        el("svg", drawing, viewBox=f"0 0 {SIDE} {SIDE}", preserveAspectRatio="none", aria_hidden="true"),
        [el("span", _tick(t, text), class_="y", style=f"bottom:{100 * up(t):.2f}%") for t in marks],
        [el("span", compact(t), class_="x", data_x=f"{t:g}", style=f"left:{100 * across(t):.2f}%") for t in steps],
        [
            el(
                "span",
                label,
                class_="note under" if up(value) > 0.88 else "note",
                style=f"bottom:{100 * up(value):.2f}%",
            )
            for label, value in references
            if value > 0 or not up.log
        ],
        el("div", [el("div", name, class_=f"x-{axis}") for axis, name in _titles(unit)], class_="across"),
        el("i", el("b", class_="at"), class_="cursor"),
        class_="plot log" if up.log else "plot",
    )


def _titles(unit: str) -> list[tuple[str, object]]:
    """The titles of the horizontal axis: steps can be shown as all of them."""
    return list(AXES.items()) if unit == "step" else [("step", AXES[unit])]


def _tick(value: float, text: Callable[[float], str]) -> str:
    if text is percent:
        return f"{100 * value:.3g} %"
    return compact(value) if abs(value) >= 10_000 else f"{value:.4g}"


def _y(up: Scale, value: float) -> str:
    return f"{SIDE * (1 - up(value)):.0f}"


def _line(path: str, class_: str) -> Markup:
    return el("path", d=path, class_=class_)


def _path(x: Sequence[float], y: Sequence[float], across: Scale, up: Scale) -> str:
    """SVG path with a gap at each point that is not finite; a lone point becomes a dot (a line of no length)."""
    x, y = thin(x, y)
    parts, pen = [], "M"
    for step, value in zip(x, y):
        if not math.isfinite(value):
            pen = "M"
            continue
        place = f"{SIDE * across(step):.0f} {_y(up, value)}"
        parts.append(f"{pen}{place}" + ("h0" if pen == "M" else ""))
        pen = "L"
    return "".join(parts)


def _legend(index: int, line: Series, text: Callable[[float], str], named: bool) -> Markup:
    value = el("b", text(next(y for y in reversed(line.y) if math.isfinite(y))), class_="last")
    return el("li", [el("i", class_=_colour(index, line)), line.name, " "] if named else None, value)


def _colour(index: int, line: Series) -> str:
    return f"c{(index if line.colour is None else line.colour) % COLOURS}"


def _data(series: Sequence[Series], across: Scale, share: bool) -> dict[str, object]:
    """What the read-out needs: at most 400 points a line, four digits each."""
    lines = []
    for line in series:
        x, y = thin(line.x, line.y)
        lines.append([x, [float(f"{value:.4g}") if math.isfinite(value) else None for value in y]])
    return {"low": across.low, "high": across.high, "share": share, "lines": lines}
