"""The part of the report about classes: which are found, and which are taken for which."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from xmodal.reporting.bars import share_bar
from xmodal.reporting.formatting import percent
from xmodal.reporting.markup import Markup, el, join
from xmodal.reporting.messages import dotted, say
from xmodal.reporting.page import table

_SHOWN = 10  # confusions that are not folded away


def render_classes(results: Mapping[str, Any]) -> Markup | None:
    """Renders the tables `per_class` and `confusions` of nested results; None where there are none."""
    blocks = [_block(path, node) for path, node in _nodes(results, ())]
    return join([el("div", block, class_="block") for block in blocks]) or None


def _nodes(tree: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    if isinstance(tree.get("per_class"), list):
        yield path, tree
    for name, node in tree.items():
        if isinstance(node, Mapping):
            yield from _nodes(node, (*path, name))


def _block(path: tuple[str, ...], node: Mapping[str, Any]) -> Markup:
    confusions, classes = node.get("confusions", []), sorted(node["per_class"], key=lambda row: row["recall"])
    rows = [[row["class"], row["taken_for"], f"{row['images']:,}", percent(row["share"])] for row in confusions]
    columns = [say("class"), say("taken for"), say("images"), say("of the class")]
    return join(
        el("h3", say("{place} · confusions", place=dotted(path))),
        table(columns, rows[:_SHOWN], "names") if rows else el("p", say("none"), class_="soft"),
        _folded(say("{count} more", count=len(rows) - _SHOWN), table(columns, rows[_SHOWN:], "names"))
        if len(rows) > _SHOWN
        else None,
        _folded(
            say("All {count:,} classes, those found least first", count=len(classes)),
            table(*_per_class(classes), "names"),
        ),
    )


def _per_class(classes: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[object]]]:
    found = lambda row: join(share_bar(row["recall"]), " ", percent(row["recall"]))
    mistaken = lambda row: f"{row['taken_for']} ({percent(row['share'])})" if "taken_for" in row else ""
    rows = [[row["class"], mistaken(row), f"{row['images']:,}", found(row)] for row in classes]
    return [say("class"), say("most often taken for"), say("images"), say("found")], rows


def _folded(title: str, content: Markup) -> Markup:
    return el("details", el("summary", title), el("div", content))
