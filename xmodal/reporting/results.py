"""Evaluation results: flat names while they travel, nested in `results.json`, tables for people.

    {"step": 612, "samples": 78336,
     "retrieval": {"unseen_vendor": {
       "images": 1811.0, "captions": 1811.0,
       "image_to_text": {"R@1": 0.197, ..., "chance": {"R@1": 0.00055, ...}, "ci95": {"R@1": [0.179, 0.216], ...}}}}}

Shares are 0..1. `chance` is what guessing reaches and `ci95` the 95 % bootstrap interval, by the same names. Lists
(such as `per_class`) are tables, a row an object. docs/evaluation.md has all names.
"""

import dataclasses
import os
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from xmodal.reporting.bootstrap import intervals
from xmodal.reporting.files import read_json, write_json
from xmodal.reporting.formatting import between, figure, words
from xmodal.reporting.scores import Scores, write_scores

FILE = "results.json"
CHANCE, INTERVAL = "chance", "ci95"


@dataclasses.dataclass(frozen=True)
class Figure:
    """One evaluation figure as stored (shares are 0..1), with what guessing reaches and its 95 % interval."""

    metric: str
    value: float
    chance: float | None = None
    interval: tuple[float, float] | None = None

    @property
    def between(self) -> str:
        """The interval as text, "" where there is none."""
        return "" if self.interval is None else between(self.metric, *self.interval)

    def __str__(self) -> str:
        """The figure as text, with its interval, and the chance level in brackets, where they are known."""
        chance = "" if self.chance is None else f"({figure(self.metric, self.chance)})"
        return " ".join(filter(None, (figure(self.metric, self.value), self.between, chance)))


class Table(NamedTuple):
    """Title, column names and rows of cells; `print_table(*table)` shows it."""

    title: str
    columns: list[str]
    rows: list[list[Any]]


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """`{"a/b": 1}` -> `{"a": {"b": 1}}`.

    Raises:
      ValueError: one name is both a value and the beginning of another name.
    """
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, leaf = name.split("/")
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise ValueError(f"result {name!r}: {part!r} is already a value; rename one of the two")
        if leaf in node:
            raise ValueError(f"result {name!r}: {leaf!r} already holds {node[leaf]!r}; rename one of the two")
        node[leaf] = value
    return tree


def results_of(
    head: Mapping[str, Any],
    flat: Mapping[str, float],
    scores: Mapping[str, Scores] | None = None,
    details: Mapping[str, Sequence[Mapping]] | None = None,
    method: str = "bca",
) -> dict[str, Any]:
    """Returns nested results.

    Args:
      head: what they are of, such as `step` and `samples`.
      flat: `retrieval/unseen_vendor/image_to_text/R@10` -> value; chance levels sit at
        `.../image_to_text/chance/R@10`. Shares are 0..1.
      scores: `retrieval/unseen_vendor/image_to_text` -> what its queries scored, from which the intervals come.
      details: `zero_shot/groups/per_class` -> rows of a table.
      method: of the intervals, see `bootstrap.intervals`.
    """
    found = {
        f"{group}/{INTERVAL}/{name}": list(ends)
        for group, own in (scores or {}).items()
        for name, ends in intervals(own, method).items()
    }
    return {**head, **nest({**flat, **found, **(details or {})})}


def write_results(
    workdir: str | os.PathLike,
    results: Mapping[str, Any],
    scores: Mapping[str, Scores] | None = None,
    name: str = FILE,
) -> None:
    """Writes nested results into a folder, by default as its `results.json`, and their scores beside them."""
    path = Path(workdir) / name
    write_json(path, results)
    write_scores(path, scores or {})


def read_results(workdir: str | os.PathLike) -> dict[str, Any]:
    """The stored evaluation of a run, empty if there is none."""
    return read_json(Path(workdir) / FILE, default={})


def evaluation_tables(results: Mapping[str, Any]) -> list[Table]:
    """One table per evaluator: a row per set and direction, a column per metric, cells of `Figure`.

    Figures of a set as a whole, such as its number of images, are repeated in each of its rows.
    """
    tables = []
    for evaluator, tree in results.items():
        if not isinstance(tree, Mapping):
            continue  # step, samples and the like
        groups = list(figure_groups(tree))
        metrics = list(dict.fromkeys(metric for _, figures, _ in groups for metric in figures))
        shared = list(dict.fromkeys(name for _, _, common in groups for name in common))
        rows = [
            [
                " · ".join(words(part) for part in path) or words(evaluator),
                *(figures.get(metric, "") for metric in metrics),
                *(Figure(name, common[name]) if name in common else "" for name in shared),
            ]
            for path, figures, common in groups
        ]
        if rows:
            tables.append(Table(words(evaluator), ["set", *map(words, metrics), *map(words, shared)], rows))
    return tables


def figure_groups(
    tree: Mapping[str, Any], path: tuple[str, ...] = (), common: Mapping[str, float] = types.MappingProxyType({})
) -> Iterator[tuple[tuple[str, ...], dict[str, Figure], dict[str, float]]]:
    """Walks to every group of figures: (path, metric -> figure, figures shared by the set).

    Values beside subgroups describe the set (its number of images); with a chance level they are figures.
    """
    chance, ends = tree.get(CHANCE, {}), tree.get(INTERVAL, {})
    values = {name: value for name, value in tree.items() if isinstance(value, int | float)}
    inner = {name: node for name, node in tree.items() if isinstance(node, Mapping) and name not in (CHANCE, INTERVAL)}
    if values and (chance or ends or not inner):
        interval = lambda name: tuple(ends[name]) if name in ends else None
        yield (
            path,
            {name: Figure(name, value, chance.get(name), interval(name)) for name, value in values.items()},
            dict(common),
        )
        values = {}
    for name, node in inner.items():
        yield from figure_groups(node, (*path, name), {**common, **values})
