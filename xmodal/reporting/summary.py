"""Start-up summary and tables for the terminal: coloured where colours work, plain in a log file, never cut.

A table keeps to the width of the terminal, or to `COLUMNS` where that is set: one that is too wide is printed in
several pieces, each of which repeats the columns that name its rows.
"""

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from xmodal.reporting.bootstrap import Difference
from xmodal.reporting.formatting import difference, number, spread, words
from xmodal.reporting.results import Figure, evaluation_tables
from xmodal.reporting.terminal import Output

if TYPE_CHECKING:
    from xmodal.reporting.comparison import Group, GroupLine, Line

LOG_WIDTH = 120  # columns of a log file where COLUMNS does not say otherwise
_GAP = 3  # between two cells
_FOLDED = 24  # columns that a text needs, which can be folded; a number cannot


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
    console = console or open_console()
    console.print()
    console.print(Text(title, style="bold"))
    console.print(grid)
    console.print()


def open_console() -> Console:
    """Returns standard output; as wide as its terminal, as `COLUMNS` says, or as suits a log file."""
    console = Output()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Output(width=LOG_WIDTH)
    return console


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    console: Console | None = None,
    names: int = 1,
) -> None:
    """Prints a table; columns that hold only numbers or figures are aligned right.

    Args:
      title: headline above the table.
      columns: column names.
      rows: cells; floats are shortened to four digits, `""` and None stay empty.
      console: where to print; standard output by default.
      names: number of the first columns that name a row, repeated in each piece of a table that is too wide.
    """
    console = console or open_console()
    rows = [list(row) for row in rows]
    cells = [[_cell(row[index]) for row in rows] for index in range(len(columns))]
    right = [_is_numeric(row[index] for row in rows) for index in range(len(columns))]
    console.print(Text(title, style="bold"))
    widths = [_room(console, (Text(name), *own), number) for name, own, number in zip(columns, cells, right)]
    for piece in _pieces(widths, console.width, min(names, len(columns))):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), header_style="bold")
        for index in piece:
            justify = "right" if right[index] else "left"
            table.add_column(Text(columns[index]), justify=justify, overflow="fold", no_wrap=right[index])
        for row in range(len(rows)):
            table.add_row(*(cells[index][row] for index in piece))
        console.print(table)


def _is_numeric(cells: Iterable[object]) -> bool:
    filled = [cell for cell in cells if cell not in ("", None)]
    return bool(filled) and not any(isinstance(cell, str | bool) for cell in filled)


def _room(console: Console, cells: Sequence[Text], number: bool) -> int:
    widest = max(Measurement.get(console, console.options.update(max_width=10_000), cell).maximum for cell in cells)
    return _GAP + (widest if number else min(widest, _FOLDED))


def _pieces(widths: Sequence[int], room: int, names: int) -> list[list[int]]:
    """Which columns stand side by side: as many as there is room for, behind those that name the rows."""
    first = list(range(names))
    pieces, left = [list(first)], room - sum(widths[:names])
    for index in range(names, len(widths)):
        if widths[index] > left and len(pieces[-1]) > names:
            pieces.append(list(first))
            left = room - sum(widths[:names])
        pieces[-1].append(index)
        left -= widths[index]
    return pieces


def print_evaluation(results: Mapping[str, object], console: Console | None = None) -> None:
    """Prints one table per evaluator of nested results: figures, behind them chance, below them their intervals."""
    for title, columns, rows in evaluation_tables(results):
        figures = [cell for row in rows for cell in row if isinstance(cell, Figure)]
        notes = ["in brackets: chance"] * any(cell.chance is not None for cell in figures)
        notes += ["below: 95 % interval"] * any(cell.interval is not None for cell in figures)
        print_table(f"{title} ({'; '.join(notes)})" if notes else title, columns, rows, console)


def print_comparison(
    names: Sequence[str],
    lines: "Sequence[Line]",
    console: Console | None = None,
    groups: "Sequence[Group]" = (),
    group_lines: "Sequence[GroupLine]" = (),
) -> None:
    """Prints one table per evaluator: each metric of all runs, and the differences to the first one.

    Args:
      names: of the runs.
      lines: `comparison.lines` of them.
      console: where to print; standard output by default.
      groups: runs that differ in the seed alone.
      group_lines: `comparison.group_lines` of them.
    """
    if not lines:
        return
    console = console or open_console()
    columns = ["set", "metric", *names, *(f"{name} - {names[0]}" for name in names[1:])]
    cell = lambda f: f and dataclasses.replace(f, chance=None)
    _print_lines(columns, lines, lambda line: map(cell, line.figures), console)
    notes = "Below each figure and difference: 95 % bootstrap interval. * it leaves out zero."
    if any(d and not d.paired and d.low == d.low for line in lines for d in line.differences):
        notes += " ~ not the same queries: unpaired."
    if any(d and d.chance for line in lines for d in line.differences):
        notes += " No star between runs that differ in the seed alone."
    console.print(Text(notes, "dim"))
    if group_lines:
        own = [f"{group.name} ({len(group.members)})" for group in groups]
        columns = ["set", "metric", *own, *(f"{group.name} - {groups[0].name}" for group in groups[1:])]
        console.print(Text("\nover seeds: mean ± standard deviation (number of seeds)", "bold"))
        _print_lines(columns, group_lines, lambda line: line.spreads, console, paired=True)
        console.print(Text("Below each difference: 95 % interval over seeds (Welch's t). * it leaves out zero.", "dim"))


def _print_lines(
    columns: Sequence[str],
    lines: Sequence[Any],
    cells: Callable[[Any], Iterable[object]],
    console: Console,
    paired: bool = False,
) -> None:
    """Prints a table per evaluator; differences of means are neither paired nor marked as unpaired."""
    for evaluator, own in itertools.groupby(lines, key=lambda line: line.path[0]):
        rows, place = [], None
        for line in own:
            apart = [_Apart(line.metric, d._replace(paired=d.paired or paired)) if d else "" for d in line.differences]
            named = " · ".join(map(words, line.path[1:]))
            rows.append([named if named != place else "", words(line.metric), *cells(line), *apart])
            place = named
        print_table(words(evaluator), columns, rows, console, names=2)


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
    if hasattr(value, "deviation"):
        return Text(spread(value.metric, value.mean, value.deviation))
    if isinstance(value, Figure) and value.interval is not None:
        return _cell(str(dataclasses.replace(value, interval=None))) + Text(f"\n{value.between}", "dim")
    head, bracket, tail = str(value).partition(" (")
    return Text.assemble(head, (bracket + tail, "dim"))
