"""Start-up summary and tables for the terminal: coloured where colours work, plain and uncut in a log file."""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from xmodal.reporting.bootstrap import Difference
from xmodal.reporting.formatting import difference, number, words
from xmodal.reporting.results import Figure, evaluation_tables

if TYPE_CHECKING:
    from xmodal.reporting.comparison import Line

LOG_WIDTH = 240  # a log file does not wrap, so its tables may be as wide as this


def print_summary(title: str, sections: Mapping[str, object], console: Console | None = None) -> None:
    """Prints labelled facts in two columns, labels dim and values plain.

    Args:
      title: headline, such as `xmodal · runs/demo`.
      sections: label -> value: text, a number, a sequence (one line each) or a mapping (`key value` pairs
        joined on one line). Empty values are left out.
      console: where to print; standard output by default.
    """
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, value in sections.items():
        if value is not None and value != "" and value != () and value != {}:
            grid.add_row(Text(label), _lines(value))
    console = console or Console(highlight=False)
    console.print()
    console.print(Text(title, style="bold"))
    _print(console, grid)
    console.print()


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], console: Console | None = None
) -> None:
    """Prints a table; columns that hold only numbers or figures are aligned right.

    Args:
      title: headline above the table.
      columns: column names.
      rows: cells; floats are shortened to four digits, `""` and None stay empty.
      console: where to print; standard output by default.
    """
    rows = [list(row) for row in rows]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), header_style="bold")
    for index, name in enumerate(columns):
        cells = [row[index] for row in rows if row[index] not in ("", None)]
        right = bool(cells) and not any(isinstance(cell, str | bool) for cell in cells)
        table.add_column(Text(name), justify="right" if right else "left", overflow="fold", no_wrap=right)
    for row in rows:
        table.add_row(*map(_cell, row))
    console = console or Console(highlight=False)
    console.print(Text(title, style="bold"))
    _print(console, table)


def print_evaluation(results: Mapping[str, object], console: Console | None = None) -> None:
    """Prints one table per evaluator of nested results: figures, behind them chance, below them their intervals."""
    for title, columns, rows in evaluation_tables(results):
        figures = [cell for row in rows for cell in row if isinstance(cell, Figure)]
        notes = ["in brackets: chance"] * any(cell.chance is not None for cell in figures)
        notes += ["below: 95 % interval"] * any(cell.interval is not None for cell in figures)
        print_table(f"{title} ({'; '.join(notes)})" if notes else title, columns, rows, console)


def print_comparison(names: Sequence[str], lines: "Sequence[Line]", console: Console | None = None) -> None:
    """Prints one table per evaluator: each figure of all runs, and the differences to the first one.

    Args:
      names: of the runs.
      lines: `comparison.lines` of them.
      console: where to print; standard output by default.
    """
    console = console or Console(highlight=False)
    columns = ["set", "figure", *names, *(f"{name} - {names[0]}" for name in names[1:])]
    for evaluator, own in itertools.groupby(lines, key=lambda line: line.path[0]):
        rows, place = [], None
        for line in own:
            figures = [f and dataclasses.replace(f, chance=None) for f in line.figures]
            apart = [_Apart(line.metric, d) if d else "" for d in line.differences]
            rows.append([line.place if line.place != place else "", words(line.metric), *figures, *apart])
            place = line.place
        print_table(words(evaluator), columns, rows, console)
    notes = "Below each figure and difference: 95 % bootstrap interval. * it leaves out zero."
    if any(d and not d.paired and d.low == d.low for line in lines for d in line.differences):
        notes += " ~ not the same queries: unpaired."
    console.print(Text(notes, "dim"))


class _Apart(NamedTuple):
    """A difference as a cell."""

    metric: str
    found: Difference


def _lines(value: object) -> Text:
    if isinstance(value, Mapping):
        pairs = [Text.assemble((f"{key} ", "cyan"), _cell(item)) for key, item in value.items()]
        return Text("   ").join(pairs)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return Text("\n").join(map(_cell, value))
    return _cell(value)


def _cell(value: object) -> Text:
    """Never parses console markup: path rules and captions are full of square brackets."""
    if value is None:
        return Text()
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Text(number(value))
    if isinstance(value, _Apart):
        d = value.found
        if d.low != d.low:  # no interval
            return Text(difference(value.metric, d.value))
        text, _, ends = difference(value.metric, d.value, d.low, d.high).partition(" ")
        marks = "*" * d.clear + "~" * (not d.paired)
        return Text.assemble((text + marks, "bold" if d.clear else ""), (f"\n{ends}", "dim"))
    if isinstance(value, Figure) and value.interval is not None:
        return _cell(str(dataclasses.replace(value, interval=None))) + Text(f"\n{value.between}", "dim")
    head, bracket, tail = str(value).partition(" (")
    return Text.assemble(head, (bracket + tail, "dim"))


def _print(console: Console, table: Table) -> None:
    width = None
    if not console.is_terminal:
        options = console.options.update(max_width=LOG_WIDTH)
        width = max(console.width, Measurement.get(console, options, table).maximum)
        console = Console(file=console.file, width=width, highlight=False)
    console.print(table, width=width)
