"""Evaluation results: flat names while they travel, nested in `results.json`, tables for people."""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from xmodal.reporting.files import read_json, write_json
from xmodal.reporting.formatting import figure, words

FILE = "results.json"
CHANCE = "chance"


@dataclasses.dataclass(frozen=True)
class Figure:
    """One evaluation figure with the value that guessing reaches; both as stored (shares are 0..1)."""

    metric: str
    value: float
    chance: float | None = None

    def __str__(self) -> str:
        """The figure as text, with the chance level in brackets where it is known."""
        text = figure(self.metric, self.value)
        return text if self.chance is None else f"{text} ({figure(self.metric, self.chance)})"


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


def write_results(workdir: str | os.PathLike, step: int, samples: int, flat: Mapping[str, float]) -> dict[str, Any]:
    """Writes the final evaluation as nested `results.json` and returns it.

    Args:
      workdir: the run folder.
      step: optimizer steps of the evaluated weights.
      samples: samples they have seen.
      flat: `retrieval/unseen_vendor/image_to_text/R@10` -> value; chance levels sit at
        `.../image_to_text/chance/R@10`. Shares are 0..1.
    """
    results = {"step": int(step), "samples": int(samples)} | nest(flat)
    write_json(Path(workdir) / FILE, results)
    return results


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
            continue  # step and samples
        groups = [group for group in _groups(tree, (), {}) if group[1]]
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


def _groups(
    tree: Mapping[str, Any], path: tuple[str, ...], common: Mapping[str, float]
) -> Iterator[tuple[tuple[str, ...], dict[str, Figure], dict[str, float]]]:
    """Walks to every group of figures: (path, metric -> figure, figures shared by the set).

    Values beside subgroups describe the set (its number of images); with a chance level they are figures.
    """
    chance = tree.get(CHANCE, {})
    values = {name: value for name, value in tree.items() if isinstance(value, int | float)}
    inner = {name: node for name, node in tree.items() if isinstance(node, Mapping) and name != CHANCE}
    if chance or not inner:
        yield (
            path,
            {name: Figure(name, value, chance.get(name)) for name, value in values.items()},
            dict(common),
        )
        values = {}
    for name, node in inner.items():
        yield from _groups(node, (*path, name), {**common, **values})
