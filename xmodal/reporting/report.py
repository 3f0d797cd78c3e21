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
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from xmodal.reporting import curves
from xmodal.reporting.classes import render_classes
from xmodal.reporting.environment import read_environment
from xmodal.reporting.files import read_json, write_text
from xmodal.reporting.formatting import TIMES, compact, duration, figure, number, percent, size, words
from xmodal.reporting.gallery import read_gallery, render_gallery
from xmodal.reporting.markup import Markup, el, join
from xmodal.reporting.metrics import read_metrics
from xmodal.reporting.page import card, document
from xmodal.reporting.results import CHANCE, Figure, evaluation_tables, nest, read_results
from xmodal.reporting.svg import smoothed

FILE = "report.html"
SKIPPED_SHOWN = 20


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
    footer = f"Written by xmodal on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC from the files of this run."
    return document(name, _header(run, name), sections, footer)


def _sections(run: Run) -> Iterator[tuple[str, Markup | None]]:
    chance = run.facts.get("chance_loss", {})
    charts = curves.metric_charts(run.rows)
    yield "Alarms", _alarms(run)
    yield "Evaluation", _evaluation(run)
    yield "Classes", render_classes(run.results)
    yield (
        "Retrievals",
        _both(render_gallery(run.gallery, "image_to_text"), render_gallery(run.gallery, "text_to_image")),
    )
    yield "Captions", render_gallery(run.gallery, "captions")
    yield "Words point to patches", render_gallery(run.gallery, "pointing")
    yield "Training", _both(curves.loss_charts(run.rows, chance), charts.pop("Training", None))
    yield from charts.items()
    yield "Skipped samples", _skipped(run.folder)
    yield "Details", _details(run)


def _both(*parts: Markup | None) -> Markup | None:
    return join([el("div", part, class_="block") for part in parts if part]) or None


def _header(run: Run, name: str) -> Markup:
    total = run.facts.get("total_steps")
    if not run.rows:
        status = "no metrics yet"
    elif total and run.step >= total:
        status = f"finished after {run.step:,} steps"
    else:
        status = f"step {run.step:,}" + (f" of {total:,} ({percent(run.step / total)})" if total else "")
    parts = [status]
    if run.rows:
        parts.append(f"{datetime.fromtimestamp(run.rows[-1]['time'], UTC):%d %B %Y, %H:%M} UTC".lstrip("0"))
    parts += [f"{d['count']} {TIMES} {d['kind']}" for d in run.environment.get("devices", [])]
    groups = [(list(_headline(run)), "cards key"), (list(_numbers(run)), "cards")]
    return el(
        "header",
        el("p", "xmodal run", class_="eyebrow"),
        el("h1", name),
        el("p", " · ".join(parts), class_="soft"),
        [el("div", cards, class_=name) for cards, name in groups if cards],
    )


def _headline(run: Run) -> Iterator[Markup]:
    """What the model can do: recall at the ends of its range, otherwise the first figure, of each evaluator.

    The set is the one that `checkpoint.best` names, where it does.
    """
    best = str(run.config.get("checkpoint", {}).get("best", "")).split("/")
    chosen = words(best[1]) if len(best) > 1 else ""
    for table in evaluation_tables(run.results):
        row = next((row for row in table.rows if chosen and str(row[0]).startswith(chosen)), table.rows[0])
        place = str(row[0])
        judged = [cell for cell in row if isinstance(cell, Figure) and cell.chance is not None]
        recalls = [cell for cell in judged if cell.metric.startswith("R@")]
        for cell in [recalls[0], recalls[-1]] if len(recalls) > 1 else judged[:1]:
            label = f"{table.title} {words(cell.metric)}"
            notes = [f"95 % interval {cell.between}"] if cell.interval else []
            yield card(
                label, figure(cell.metric, cell.value), place, *notes, f"chance {figure(cell.metric, cell.chance)}"
            )


def _numbers(run: Run) -> Iterator[Markup]:
    """What it took: loss, samples, time, speed, size."""
    if losses := _values(run, "train/loss"):
        chance = run.facts.get("chance_loss", {})
        level = chance.get("total") or (next(iter(chance.values())) if len(chance) == 1 else None)
        yield card("loss", f"{smoothed(losses)[-1]:.3g}", f"chance {number(level)}" if level else "smoothed")
    if run.rows:
        yield card("samples seen", compact(run.rows[-1]["samples"]), f"{run.step:,} steps")
        yield card("training time", duration(_seconds(run)), "pauses left out")
    if rates := _values(run, "throughput/samples_per_s"):
        rate, waits = statistics.median(rates), _values(run, "throughput/data_wait")
        wait = f"data wait {percent(statistics.median(waits))}" if waits else "median"
        yield card("samples per second", f"{rate:,.0f}" if 10 < rate < 100_000 else compact(rate), wait)
    if parameters := run.facts.get("parameters"):
        towers = [f"{words(tower)} {compact(count)}" for tower, count in parameters.items() if count >= 1000]
        yield card("parameters", compact(sum(parameters.values())), " · ".join(towers))


def _values(run: Run, name: str) -> list[float]:
    return [row[name] for row in run.rows if isinstance(row.get(name), int | float)]


def _seconds(run: Run) -> float:
    """Time between the rows; gaps far longer than usual are interruptions."""
    times = [row["time"] for row in run.rows]
    gaps = [b - a for a, b in itertools.pairwise(times)]
    limit = max(600.0, 50 * statistics.median(gaps)) if gaps else 0.0
    return sum(gap for gap in gaps if 0 <= gap <= limit)


def _alarms(run: Run) -> Markup | None:
    found = [(row["step"], text) for row in run.rows for text in row.get("alarms", ())]
    items = [el("li", el("b", f"step {step:,}"), text) for step, text in found]
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
    step, samples = run.results.get("step", run.step), run.results.get("samples", 0)
    blocks = [el("p", f"Held-out data at step {step:,}, {compact(samples)} samples seen.", class_="soft")]
    for title, columns, rows in tables:
        head = el("tr", [el("th", column) for column in columns])
        body = [el("tr", [el("td", _cell(cell)) for cell in row]) for row in rows]
        blocks += [el("h3", title), el("div", el("table", el("thead", head), el("tbody", body)), class_="scroll")]
    charts = curves.evaluation_charts(run.rows)
    if charts:
        blocks += [el("h3", "Over training"), charts]
    return join(blocks)


def _cell(cell: Any) -> Any:
    if not isinstance(cell, Figure):
        return cell
    value, notes = figure(cell.metric, cell.value), []
    if cell.interval is not None:
        notes.append(el("small", cell.between, title="95 % interval"))
    if cell.chance is not None:
        notes.append(el("small", f"{CHANCE} {figure(cell.metric, cell.chance)}"))
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
    counts = [el("tr", el("td", reason), el("td", f"{count:,}")) for reason, count in reasons.most_common()]
    rows = [
        el("tr", el("td", row.get("reason", "")), [el("td", row.get(name, "")) for name in fields]) for row in first
    ]
    table = el("table", el("tr", el("th", "reason"), [el("th", words(name)) for name in fields]), rows, class_="list")
    return join(
        el(
            "p",
            f"{sum(reasons.values()):,} samples could not be used; each one is named in the run folder.",
            class_="soft",
        ),
        el("table", el("tr", el("th", "reason"), el("th", "samples")), counts),
        el("details", el("summary", f"The first {len(first)}"), el("div", table, class_="scroll")),
    )


def _details(run: Run) -> Markup | None:
    blocks = []
    if command := _command(run.environment):
        blocks.append(("How to reproduce", command))
    if run.config:
        search = el("input", type="search", class_="search", placeholder="Search keys and values", aria_label="Search")
        blocks.append(("Configuration", join(search, _facts(dict(flat_settings(run.config))))))
    if run.environment:
        blocks.append(("Environment", _facts(_environment(run.environment))))
    if run.environment.get("packages"):
        blocks.append(("Packages", _facts({"Python": run.environment.get("python")} | run.environment["packages"])))
    return join([el("details", el("summary", title), el("div", content)) for title, content in blocks]) or None


def _command(environment: Mapping[str, Any]) -> Markup | None:
    arguments = environment.get("command")
    if not arguments:
        return None
    git, lines = environment.get("git", {}), []
    if commit := git.get("commit"):
        lines.append(f"git checkout {commit}")
    lines.append("python " + shlex.join(arguments))
    dirty = "The source tree had uncommitted changes." if git.get("dirty") else None
    return join(
        el("pre", el("code", "\n".join(lines))),
        el("p", dirty, class_="soft") if dirty else None,
        el("p", "The same config, seed and devices give the same bits.", class_="soft"),
    )


def _environment(environment: Mapping[str, Any]) -> dict[str, Any]:
    cpu, git = environment.get("cpu", {}), environment.get("git", {})
    devices = [
        f"{d['count']} {TIMES} {d['kind']}" + (f", {size(d['memory_bytes'])} each" if d.get("memory_bytes") else "")
        for d in environment.get("devices", [])
    ]
    facts = {
        "devices": "; ".join(devices),
        "hosts": environment.get("hosts"),
        "processor": f" {TIMES} ".join(str(part) for part in (cpu.get("cores"), cpu.get("model")) if part),
        "memory": size(environment["memory_bytes"]) if environment.get("memory_bytes") else None,
        "system": environment.get("system"),
        "commit": git.get("commit", "") + (" with uncommitted changes" if git.get("dirty") else ""),
    }
    shown = {"total_steps", "chance_loss", "parameters"}  # elsewhere in the report
    run = {words(k): v for k, v in environment.get("run", {}).items() if k not in shown}
    return facts | dict(flat_settings(run)) | environment.get("variables", {})


def flat_settings(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the leaves of nested settings as (dotted key, text)."""
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flat_settings(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _facts(facts: Mapping[str, Any]) -> Markup:
    rows = [el("div", el("dt", key), el("dd", value)) for key, value in facts.items() if value not in (None, "")]
    return el("dl", rows, class_="facts")
