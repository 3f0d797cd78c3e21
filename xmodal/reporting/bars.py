"""Histograms as inline SVG, in the manner of `svg.chart`."""

import math
from collections.abc import Callable

import numpy as np

from data_pipelines.examine.distributions import Distribution
from xmodal.reporting.formatting import number, percent
from xmodal.reporting.markup import Markup, el
from xmodal.reporting.messages import say
from xmodal.reporting.svg import SIDE, Scale, log_ticks, ticks

_BARS = 48  # at most, about
_TAILS = (0.001, 0.995)  # what the axis shows; the outermost bars hold what lies outside


def histogram(
    title: str,
    values: Distribution,
    *,
    log: bool = False,
    whole: bool = True,
    text: Callable[[float], str] = number,
    base: int = 10,
    reference: tuple[str, float] | None = None,
) -> Markup | None:
    """Draws how often which numbers occur; None of no numbers.

    Args:
      title: what is counted.
      values: the numbers.
      log: logarithmic axis.
      whole: the numbers are integers.
      text: writes one of them.
      base: 1024 where `text` writes KiB and MiB, so that the axis has round ones.
      reference: (label, value) of a dashed line.
    """
    if not values.count:
        return None
    edges = _edges(values, log, whole)
    counts = values.histogram(edges)
    across, up = Scale(edges[0], edges[-1], log), Scale(0.0, float(counts.max()) * 1.04)
    step = lambda i: (
        f"M{_x(across, edges[i])} {SIDE}V{SIDE * (1 - up(counts[i])):.1f}H{_x(across, edges[i + 1])}V{SIDE}Z"
    )
    drawing = [el("path", d="".join(step(i) for i in np.flatnonzero(counts)), class_="fill c0")]
    marks = _marks(edges[0], edges[-1], log, whole, base)
    labels = [el("span", text(t), class_="x", style=f"left:{100 * across(t):.2f}%") for t in marks]
    if reference and edges[0] <= reference[1] <= edges[-1]:
        name, value = reference
        drawing.append(el("path", d=f"M{_x(across, value)} 0V{SIDE}", class_="reference"))
        side = "right" if across(value) > 0.5 else "left"
        place = 100 * (1 - across(value) if side == "right" else across(value))
        labels.append(el("span", name, class_="mark", style=f"{side}:{place:.2f}%"))
    low, middle, high = (text(values.quantile(share)) for share in (0.05, 0.5, 0.95))
    return el(
        "figure",
        el("figcaption", el("b", title)),
        el(
            "p",
            say("median {middle}, 90 % from {low} to {high}", middle=middle, low=low, high=high),
            class_="soft small",
        ),
        el(
            "div",
            el("svg", drawing, viewBox=f"0 0 {SIDE} {SIDE}", preserveAspectRatio="none", aria_hidden="true"),
            el("span", f"{percent(float(counts.max()) / values.count)}", class_="y", style="bottom:96%"),
            labels,
            class_="plot",
        ),
        class_="bars",
    )


def share_bar(share: float) -> Markup:
    """A share 0..1 as a short bar with its figure."""
    return el(
        "span", el("i", style=f"width:{100 * min(1.0, max(0.0, share)):.1f}%"), class_="share", title=percent(share)
    )


def _edges(values: Distribution, log: bool, whole: bool) -> np.ndarray:
    low, high = (values.quantile(share) for share in _TAILS)
    if log:
        low, high = low / 1.02, high * 1.02
        return np.geomspace(low, high, _BARS + 1)
    if not whole:
        return np.linspace(low, max(high, low + 1e-6), _BARS + 1)
    low, high = math.floor(low), math.ceil(high) + 1
    width = max(1, -(-(high - low) // _BARS))
    return np.arange(low, high + width, width, dtype=np.float64)


def _marks(low: float, high: float, log: bool, whole: bool, base: int) -> list[float]:
    """The round numbers along the axis."""
    unit = 1024.0 ** max(0, math.floor(math.log(high, 1024))) if base == 1024 else 1.0
    round_ones = lambda marks: [unit * t for t in marks if low <= unit * t <= high and (t == int(t) or not whole)]
    found = round_ones(log_ticks(low / unit, high / unit)) if log else []
    return found if len(found) > 2 else round_ones(ticks(low / unit, high / unit))


def _x(across: Scale, value: float) -> str:
    return f"{SIDE * across(value):.1f}"
