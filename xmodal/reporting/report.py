"""The run report: one self-contained `report.html`, built from the files of the run folder alone.

What it reads (every file may be missing: the report of a run that only just began is short):

| file | what is used |
|---|---|
| `metrics.jsonl` | all scalars as curves; `alarms` of a row |
| `environment.json` | program, machine, command; `run.total_steps`, `run.chance_loss`, `run.parameters` |
| `results.json` | the final evaluation; until it is written, the last `eval/...` scalars |
| `gallery.json` | examples with pictures; format: `xmodal.reporting.gallery` |
| `skipped*.jsonl` | one object per dropped sample; `reason` is counted, the other fields are shown |
| `config.json` | the resolved config |

Captions and file names come from data and are not trusted: all text is escaped by construction (`markup.el`),
pictures must be `data:` URIs, and the page's own security policy allows no script but the one that is built in.
"""

import itertools
import json
import os
import shlex
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from xmodal.reporting import curves
from xmodal.reporting.classes import render_classes
from xmodal.reporting.during import Evaluations
from xmodal.reporting.environment import read_environment
from xmodal.reporting.files import read_json, write_text
from xmodal.reporting.formatting import TIMES, compact, difference, duration, figure, number, percent, size, words
from xmodal.reporting.gallery import read_gallery, render_gallery
from xmodal.reporting.markup import Markup, el, join
from xmodal.reporting.messages import dotted, reason, say, term
from xmodal.reporting.metrics import read_metrics
from xmodal.reporting.page import card, document, table
from xmodal.reporting.results import Figure, Table, evaluation_tables, nest, read_results
from xmodal.reporting.settings import changed, flat_settings, readable
from xmodal.reporting.svg import smoothed

FILE = "report.html"
SKIPPED_SHOWN = 20
_KNOTS = 300  # points at which a page knows samples and time of a step


class Run(NamedTuple):
    """The content of a run folder."""

    folder: Path
    rows: list[dict[str, Any]]
    environment: dict[str, Any]
    results: dict[str, Any]
    gallery: dict[str, Any]
    config: dict[str, Any]

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the run worked out at start: total_steps, chance_loss, parameters and more."""
        return self.environment.get("run", {})

    @property
    def step(self) -> int:
        """Steps done, as far as the metrics tell."""
        return self.rows[-1]["step"] if self.rows else 0

    @property
    def best(self) -> int | None:
        """Step of the best value of the metric that `checkpoint.best` names, None where it names none."""
        chosen = self.config.get("checkpoint", {})
        found = Evaluations(self.rows).best(chosen.get("best", ""), chosen.get("best_mode", "max"))
        return found[0] if found else None

    @property
    def start(self) -> dict[str, Any]:
        """Nested results of the weights that the run started from, empty of one that started from scratch."""
        return self.at(0)

    @property
    def evaluated(self) -> list[int]:
        """Steps at which something was evaluated, in their order."""
        return sorted({row["step"] for row in self.rows if any(name.startswith("eval/") for name in row)})

    def at(self, step: int) -> dict[str, Any]:
        """Nested results of the evaluations at one step, empty where there were none; 0 is before training."""
        return _last_evaluation([row for row in self.rows if row["step"] == step])


def build_report(workdir: str | os.PathLike) -> Path:
    """Writes `report.html` into a run folder and returns its path. Works at any moment of a run.

    Raises:
      FileNotFoundError: there is no such folder.
      ValueError: a file of the folder is damaged; the message names it.
    """
    folder = Path(workdir)
    if not folder.is_dir():
        raise FileNotFoundError(f"no run folder at {folder}; --workdir names the folder that train.py wrote")
    try:
        page = _page(read_run(folder))
    except (TypeError, KeyError, IndexError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ValueError(
            f"{folder}: its files do not hold what a run writes ({type(error).__name__}: {error}); restore or delete "
            "the damaged one of results.json, environment.json, gallery.json and metrics.jsonl"
        ) from error
    return write_text(folder / FILE, page)


def read_run(folder: Path) -> Run:
    """Reads a run folder, in which every file may be missing. Raises ValueError if one is damaged."""
    rows = read_metrics(folder)
    final, latest = read_results(folder), _last_evaluation(rows)  # a run that was prolonged has passed its results
    return Run(
        folder=folder,
        rows=rows,
        environment=read_environment(folder),
        results=latest if latest.get("step", -1) > final.get("step", -1) else final,
        gallery=read_gallery(folder),
        config=read_json(folder / "config.json", default={}),
    )


def _page(run: Run) -> str:
    sections = [(title, content) for title, content in _sections(run) if content]
    name = run.folder.resolve().name
    footer = say(
        "Written by xmodal on {time} from the files of this run.", time=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    )
    return document(name, _header(run, name), sections, footer, clock=_clock(run))


def _clock(run: Run) -> dict[str, list[float]]:
    """What charts over steps need to be shown over samples and time: {step, sample, time: [knots]}."""
    rows = list({row["step"]: row for row in run.rows}.values())
    times = dict(zip((row["step"] for row in run.rows), itertools.accumulate(_gaps(run), initial=0.0)))
    kept = sorted({round(i * (len(rows) - 1) / _KNOTS) for i in range(_KNOTS + 1)}) if rows else []
    knots = [(rows[i]["step"], rows[i]["samples"], round(times[rows[i]["step"]], 1)) for i in kept]
    return dict(zip(("step", "sample", "time"), map(list, zip(*knots)))) if len(knots) > 1 else {}


def _sections(run: Run) -> Iterator[tuple[str, Markup | None]]:
    chance = run.facts.get("chance_loss", {})
    charts = curves.metric_charts(run.rows)
    yield say("Alarms"), _alarms(run)
    yield say("Evaluation"), _evaluation(run)
    yield say("Classes"), render_classes(run.results)
    yield (
        say("Retrievals"),
        _both(render_gallery(run.gallery, "image_to_text"), render_gallery(run.gallery, "text_to_image")),
    )
    yield say("Captions"), render_gallery(run.gallery, "captions")
    yield say("Words point to patches"), render_gallery(run.gallery, "pointing")
    yield say("Training"), _both(curves.loss_charts(run.rows, chance), charts.pop("Training", None))
    yield from charts.items()
    yield say("Skipped samples"), _skipped(run.folder)
    yield say("Details"), _details(run)


def _both(*parts: Markup | None) -> Markup | None:
    return join([el("div", part, class_="block") for part in parts if part]) or None


def _header(run: Run, name: str) -> Markup:
    total = run.facts.get("total_steps")
    if not run.rows:
        status = say("no metrics yet")
    elif total and run.step >= total:
        status = say("finished after {step:,} steps", step=run.step)
    elif total:
        status = say(
            "step {step:,} of {total:,} ({share})", step=run.step, total=total, share=percent(run.step / total)
        )
    else:
        status = say("step {step:,}", step=run.step)
    parts = [status]
    if run.rows:
        parts.append(f"{datetime.fromtimestamp(run.rows[-1]['time'], UTC):%Y-%m-%d %H:%M} UTC")
    if run.best is not None:
        parts.append(say("best: step {step:,}", step=run.best))
    parts += [f"{d['count']} {TIMES} {d['kind']}" for d in run.environment.get("devices", [])]
    groups = [(list(_headline(run)), "cards key"), (list(_numbers(run)), "cards")]
    return el(
        "header",
        el("p", say("xmodal run"), class_="eyebrow"),
        el("h1", name),
        el("p", [[" · " if i else "", part] for i, part in enumerate(parts)], class_="soft"),
        [el("div", cards, class_=name) for cards, name in groups if cards],
    )


def _headline(run: Run) -> Iterator[Markup]:
    """What the model can do: recall at the ends of its range, otherwise the first figure, of each evaluator.

    The set is the one that `checkpoint.best` names, where it does.
    """
    best = str(run.config.get("checkpoint", {}).get("best", "")).split("/")
    chosen, start = words(best[1]) if len(best) > 1 else "", _figures_of(run.start)
    for found in evaluation_tables(run.results):
        row = next((row for row in found.rows if chosen and str(row[0]).startswith(chosen)), found.rows[0])
        place = str(row[0])
        judged = [cell for cell in row if isinstance(cell, Figure) and cell.chance is not None]
        recalls = [cell for cell in judged if cell.metric.startswith("R@")]
        for cell in [recalls[0], recalls[-1]] if len(recalls) > 1 else judged[:1]:
            label = say("{evaluator} {metric}", evaluator=term(found.title), metric=term(cell.metric))
            notes = [say("start {value}", value=value)] if (value := _start(start, found, row, cell)) else []
            notes += [say("95 % interval {ends}", ends=cell.between)] if cell.interval else []
            chance = say("chance {value}", value=figure(cell.metric, cell.chance))
            yield card(label, figure(cell.metric, cell.value), _place(place), *notes, chance)


def _place(text: str) -> str:
    """A set and what is asked of it, as `evaluation_tables` joins them."""
    return dotted(text.split(" · "))


def _figures_of(results: Mapping[str, Any]) -> dict[tuple[str, str, str], Figure]:
    """{(evaluator, set, metric): figure} of nested results."""
    return {
        (table.title, str(row[0]), cell.metric): cell
        for table in evaluation_tables(results)
        for row in table.rows
        for cell in row
        if isinstance(cell, Figure)
    }


def _start(start: Mapping, table: Table, row: Sequence[Any], cell: Any) -> str:
    """What the weights scored that the run started from, and the change since; "" where that is not known."""
    before = start.get((table.title, str(row[0]), cell.metric)) if isinstance(cell, Figure) else None
    if before is None or (before.chance is None and cell.chance is None and not before.interval and not cell.interval):
        return ""
    change = difference(cell.metric, cell.value - before.value)
    return f"{figure(cell.metric, before.value)} ({change})"


def _numbers(run: Run) -> Iterator[Markup]:
    """What it took: loss, samples, time, speed, size."""
    if losses := _values(run, "train/loss"):
        chance = run.facts.get("chance_loss", {})
        level = chance.get("total") or (next(iter(chance.values())) if len(chance) == 1 else None)
        note = say("chance {value}", value=number(level)) if level else say("smoothed")
        yield card(term("loss"), f"{smoothed(losses)[-1]:.3g}", note)
    if run.rows:
        yield card(say("samples seen"), compact(run.rows[-1]["samples"]), say("{step:,} steps", step=run.step))
        yield card(say("training time"), duration(sum(_gaps(run))), say("pauses left out"))
    if rates := _values(run, "throughput/samples_per_s"):
        rate, waits = statistics.median(rates), _values(run, "throughput/data_wait")
        wait = say("data wait {share}", share=percent(statistics.median(waits))) if waits else say("median")
        yield card(say("samples per second"), f"{rate:,.0f}" if 10 < rate < 100_000 else compact(rate), wait)
    if parameters := run.facts.get("parameters"):
        towers = [[" · " if i else "", term(tower), f" {compact(count)}"]
                  for i, (tower, count) in enumerate(parameters.items()) if count >= 1000]  # fmt: skip
        yield card(say("parameters"), compact(sum(parameters.values())), towers)


def _values(run: Run, name: str) -> list[float]:
    return [row[name] for row in run.rows if isinstance(row.get(name), int | float)]


def _gaps(run: Run) -> list[float]:
    """Seconds between the rows; gaps far longer than usual are interruptions, and count as none."""
    times = [row["time"] for row in run.rows]
    gaps = [b - a for a, b in itertools.pairwise(times)]
    limit = max(600.0, 50 * statistics.median(gaps)) if gaps else 0.0
    return [gap if 0 <= gap <= limit else 0.0 for gap in gaps]


def _alarms(run: Run) -> Markup | None:
    found = [(row["step"], text) for row in run.rows for text in row.get("alarms", ())]
    items = [el("li", el("b", say("step {step:,}", step=step)), text) for step, text in found]
    return el("ul", items, class_="alarms") if items else None


def _last_evaluation(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The latest value of every evaluation figure; evaluators may run at different steps."""
    found: dict[str, Any] = {}
    last: dict[str, Any] = {}
    for row in rows:
        figures = {name.removeprefix("eval/"): value for name, value in row.items() if name.startswith("eval/")}
        found, last = found | figures, row if figures else last
    return {"step": last["step"], "samples": last["samples"]} | nest(found) if last else {}


def _evaluation(run: Run) -> Markup | None:
    tables = evaluation_tables(run.results)
    if not tables:
        return None
    step, samples = run.results.get("step", run.step), compact(run.results.get("samples", 0))
    head = say("Held-out data at step {step:,}, {samples} samples seen.", step=step, samples=samples)
    blocks, start = [el("p", head, class_="soft")], _figures_of(run.start)
    for found in tables:
        rows = [[_place(str(row[0])), *(_cell(cell, _start(start, found, row, cell)) for cell in row[1:])]
                for row in found.rows]  # fmt: skip
        blocks += [el("h3", term(found.title)), table(list(map(term, found.columns)), rows)]
    charts = curves.evaluation_charts(run.rows, run.best)
    if charts:
        blocks += [el("h3", say("Over training")), charts]
    return join(blocks)


def _cell(cell: Any, start: str) -> Any:
    if not isinstance(cell, Figure):
        return cell
    value, notes = figure(cell.metric, cell.value), []
    if cell.interval is not None:
        notes.append(el("small", cell.between, title=say("95 % interval")))
    if cell.chance is not None:
        notes.append(el("small", say("chance {value}", value=figure(cell.metric, cell.chance))))
    if start:
        notes.append(el("small", say("start {value}", value=start), class_="start"))
    return join(el("b", value), notes) if notes else value


def _skipped(folder: Path) -> Markup | None:
    """Counts by reason, and the first samples with everything that was written about them."""
    reasons: Counter[str] = Counter()
    first: list[dict[str, Any]] = []
    for path in sorted(folder.glob("skipped*.jsonl")):
        with open(path, encoding="utf-8", errors="replace") as lines:
            for line in lines:  # may be long: never held as a whole
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:
                    continue
                reasons[str(row.get("reason", "unknown"))] += 1
                if len(first) < SKIPPED_SHOWN:
                    first.append(row)
    if not reasons:
        return None
    fields = [name for name in dict.fromkeys(key for row in first for key in row) if name != "reason"]
    total = sum(reasons.values())
    rows = [[reason(str(row.get("reason", ""))), *(row.get(name, "") for name in fields)] for row in first]
    counts = [[reason(name), f"{count:,}"] for name, count in reasons.most_common()]
    note = say("{count:,} samples could not be used; each one is named in the run folder.", count=total)
    more = table([say("reason"), *map(term, fields)], rows, "list")
    return join(
        el("p", note, class_="soft"),
        table([say("reason"), say("samples")], counts),
        el("details", el("summary", say("The first {count}", count=len(first))), more),
    )


def _details(run: Run) -> Markup | None:
    blocks = []
    if command := _command(run.environment):
        blocks.append((say("How to reproduce"), command, False))
    settings = {name: readable(value) for name, value in flat_settings(run.config)}
    if chosen := {name: readable(value) for name, value in changed(run.config).items()}:
        note = el(
            "p", say("Options that differ from their defaults, without those of model and evaluations."), class_="soft"
        )
        blocks.append((say("Changed options ({count})", count=len(chosen)), join(note, _facts(chosen)), True))
    if settings:
        label = say("Search keys and values")
        search = el("input", type="search", class_="search", placeholder=label, aria_label=label)
        blocks.append((say("All options ({count})", count=len(settings)), join(search, _facts(settings)), False))
    if run.environment:
        blocks.append((say("Environment"), _facts(_environment(run.environment)), False))
    if run.environment.get("packages"):
        packages = {"Python": run.environment.get("python")} | run.environment["packages"]
        blocks.append((say("Packages"), _facts(packages), False))
    parts = [el("details", el("summary", title), el("div", content), open=shown) for title, content, shown in blocks]
    return join(parts) or None


def _command(environment: Mapping[str, Any]) -> Markup | None:
    arguments = environment.get("command")
    if not arguments:
        return None
    git, lines = environment.get("git", {}), []
    if commit := git.get("commit"):
        lines.append(f"git checkout {commit}")
    lines.append("python " + shlex.join(arguments))
    dirty = say("The source tree had uncommitted changes.") if git.get("dirty") else None
    return join(
        el("pre", el("code", "\n".join(lines))),
        el("p", dirty, class_="soft") if dirty else None,
        el("p", say("The same config, seed and devices give the same bits."), class_="soft"),
    )


def _environment(environment: Mapping[str, Any]) -> dict[str, Any]:
    cpu, git = environment.get("cpu", {}), environment.get("git", {})
    devices = [
        f"{d['count']} {TIMES} {d['kind']}" + (f", {size(d['memory_bytes'])}" if d.get("memory_bytes") else "")
        for d in environment.get("devices", [])
    ]
    commit = git.get("commit", "")
    facts = {
        say("devices"): "; ".join(devices),
        say("hosts"): environment.get("hosts"),
        say("processor"): f" {TIMES} ".join(str(part) for part in (cpu.get("cores"), cpu.get("model")) if part),
        say("memory"): size(environment["memory_bytes"]) if environment.get("memory_bytes") else None,
        say("system"): environment.get("system"),
        say("commit"): say("{commit} with uncommitted changes", commit=commit) if git.get("dirty") else commit,
    }
    shown = {"total_steps", "chance_loss", "parameters"}  # elsewhere in the report
    run = {words(k): v for k, v in environment.get("run", {}).items() if k not in shown}
    more = {name: readable(value) for name, value in flat_settings(run)}
    return facts | more | environment.get("variables", {})


def _facts(facts: Mapping[str, Any]) -> Markup:
    rows = [el("div", el("dt", key), el("dd", value)) for key, value in facts.items() if value not in (None, "")]
    return el("dl", rows, class_="facts")
