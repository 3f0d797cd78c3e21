"""What a person reads while a run goes on and when it ends: evaluations as they come, and what to do next."""

import datetime
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from xmodal.messages import did_you_mean
from xmodal.reporting.formatting import difference, figure, number, words
from xmodal.reporting.results import figure_groups, nest

PREFIX = "eval/"  # of evaluation metrics in the run's time series


class Before(NamedTuple):
    """An earlier evaluation to compare with: its step and its metrics by name."""

    step: int
    metrics: Mapping[str, float]


class Evaluations:
    """The evaluations of a run so far, by metric: which one a new one is compared with, and which was the best.

    Args:
      rows: the run's time series so far (`metrics.read_metrics`), so that a continued run compares as an unbroken one.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]] = ()):
        self._values: dict[str, dict[int, float]] = {}
        for row in rows:
            measured = {n: v for n, v in row.items() if n.startswith(PREFIX) and isinstance(v, int | float)}
            self.add(row["step"], {name.removeprefix(PREFIX): value for name, value in measured.items()})

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes the metrics that were measured at a step."""
        for name, value in metrics.items():
            self._values.setdefault(name, {})[step] = value

    def has(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Whether all these metrics were measured at a step."""
        return all(step in self._values.get(name, {}) for name in metrics)

    def before(self, step: int, metrics: Mapping[str, float]) -> Before | None:
        """The evaluation at step 0 where the run started from weights, else the last one of the same metrics."""
        steps = sorted({s for name in metrics for s in self._values.get(name, {}) if s < step})
        if not steps:
            return None
        at = 0 if steps[0] == 0 else steps[-1]
        return Before(at, {name: self._values[name][at] for name in metrics if at in self._values.get(name, {})})

    def best(self, metric: str, mode: str) -> tuple[int, float] | None:
        """Step and value of the best measurement of a metric (`mode` max or min); None before it is measured."""
        sign = -1 if mode == "min" else 1
        found = [(sign * v, s) for s, v in self._values.get(metric, {}).items() if math.isfinite(v)]
        if not found:
            return None
        value, step = max(found)  # the last of equal ones: that is the checkpoint that is kept
        return step, sign * value


def evaluation_lines(step: int | None, metrics: Mapping[str, float], before: Before | None = None) -> list[str]:
    """One line for each group of metrics: what was measured at a step, and the change since an earlier evaluation.

    Args:
      step: at which the weights were measured; None says nothing of it.
      metrics: flat names of one evaluator, `retrieval/val/image_to_text/R@1` -> value; chance levels are left out.
      before: what to compare with; None compares with nothing.
    """
    earlier = before.metrics if before else {}
    since = f"  (change since {'the start' if before.step == 0 else f'step {before.step}'})" if before else ""
    lines = []
    for path, figures, _ in figure_groups(nest(metrics)):
        shown = []
        for name, found in figures.items():
            text = f"{name} {figure(name, found.value)}"
            old = earlier.get("/".join((*path, name)))
            if old is not None and math.isfinite(old) and math.isfinite(found.value):
                text += f" ({difference(name, found.value - old)})"
            shown.append(text)
        head = "" if step is None else f"step {step}  "
        lines.append(f"{head}{' · '.join(map(words, path))}  {', '.join(shown)}{since}")
    return lines


def missing_metric(best: str, metrics: Mapping[str, float]) -> str:
    """Says that an evaluation does not give the metric that `checkpoint.best` expects of it; "" where all is well.

    Args:
      best: `checkpoint.best`, `<type>/<name>/...`.
      metrics: flat names of one evaluator, with chance levels.
    """
    home = "/".join(best.split("/")[:2]) + "/"
    if not best or best in metrics or not any(name.startswith(home) for name in metrics):
        return ""
    names = [name for name in metrics if "/chance/" not in name]
    return (
        f"checkpoint.best={best!r} is not measured, so no step is kept as the best.{did_you_mean(best, names)} "
        f"This evaluation measures {', '.join(names)}"
    )


def closing(
    workdir: Path, step: int, samples: int, best: tuple[str, int, float] | None, commands: Sequence[str]
) -> dict[str, Any]:
    """Labelled facts for the end of a run: its report, its best step and the commands that go on from here.

    Args:
      workdir: the run folder.
      step: the last one.
      samples: consumed.
      best: metric of `checkpoint.best`, its best step and value; None where the run names no metric.
      commands: what a user does next, a line each.
    """
    when = datetime.datetime.now().strftime("%H:%M:%S")
    name, at, value = best or ("", step, 0.0)
    where = "0, before training, of which no checkpoint is kept" if at == 0 else at
    newest = () if at in (0, step) else (f"they take the newest checkpoint; --step {at} names the best one",)
    return {
        "finished": f"step {step}, {number(samples)} samples, at {when}",
        "report": str(workdir / "report.html"),
        "best step": f"{where} ({name} {figure(name.rsplit('/', 1)[-1], value)})" if best else "",
        "next": (*commands, *newest),
    }
