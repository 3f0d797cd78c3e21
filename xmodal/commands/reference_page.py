"""docs/reference.md: all options of configs/base.py and all entries of its open sections, from their own comments.

The options come from the comments of configs/base.py: those above a key and the one behind it. The entries are the
dataclasses in the registries: their docstrings, and the `Attributes:` in these.
"""

import ast
import dataclasses
import inspect
import io
import re
import tokenize
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

_INTRO = """# Reference

Every option of [configs/base.py](../configs/base.py), and every entry of its open sections, with defaults. Written by
`xmodal reference --out docs/reference.md`; change the comments and docstrings that it comes from, not this file.

A duration is a string such as "500steps", "3epochs", "1_000_000examples" or "2%" (of the run), or an integer number of
steps. What a project registers (docs/own_project.md) has fields in the same way.
"""


class Item(NamedTuple):
    """One line of a table: a dotted key or a field, its type ("" for options), its default, and what it means."""

    name: str
    kind: str
    default: str
    meaning: str


class Entry(NamedTuple):
    """What an open section may hold: how it is named in a config, its class, and the class whose fields it shares."""

    name: str
    cls: type
    shared: type | None = None


def reference() -> str:
    """Returns the page, in Markdown."""
    parts = [_INTRO, "## Options\n", _table(options(), ("option", "default", "meaning"))]
    for title, about, entries in _chapters():
        parts.append(f"## {title}\n\n{about}\n")
        for entry in entries:
            parts.append(f"### {entry.name}\n\n{_about(entry.cls)}\n")
            if items := list(fields(entry)):
                parts.append(_table(items, ("key", "type", "default", "meaning")))
    return "\n".join(parts)


def undocumented() -> list[str]:
    """Returns the options and fields that say nothing of themselves."""
    found = [item.name for item in options() if not item.meaning]
    for _, _, entries in _chapters():
        found += [
            f"{entry.cls.__name__}.{item.name}" for entry in entries for item in fields(entry) if not item.meaning
        ]
    return found


# ---------------------------------------------------------------------------------------------- options


def options() -> list[Item]:
    """Returns all options of configs/base.py, in its order; of sections, what is said of them as a whole."""
    from xmodal.configs import base

    source = Path(base.__file__).read_text(encoding="utf-8")
    comments, functions = (
        _comments(source),
        {f.name: f for f in ast.parse(source).body if isinstance(f, ast.FunctionDef)},
    )
    defaults, found = base.get_config(), []

    def add(name: str, node: ast.AST, value: ast.expr) -> None:
        default = defaults
        for key in name.split("."):
            default = default[key]
        meaning = _meaning(comments, node.lineno)
        section = isinstance(default, ConfigDict) and len(default)
        if not section or meaning:
            found.append(Item(name, "", "" if section else _show(default), meaning))
        while isinstance(value, ast.Call) and value.func.id in functions:  # a function that returns the section
            value = functions[value.func.id].body[-1].value
        if section:
            for keyword in value.keywords:
                add(f"{name}.{keyword.arg}", keyword, keyword.value)

    for node in functions["get_config"].body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
            add(node.targets[0].attr, node, node.value)
    return found


def _comments(source: str) -> dict[int, tuple[str, bool]]:
    """Returns {line: (comment, it has the line for itself)}."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {
        token.start[0]: (token.string.lstrip("# "), not token.line[: token.start[1]].strip())
        for token in tokens
        if token.type == tokenize.COMMENT
    }


def _meaning(comments: Mapping[int, tuple[str, bool]], line: int) -> str:
    """Returns what stands above a line, and behind it."""
    above, at = [], line - 1
    while at in comments and comments[at][1]:
        above.insert(0, comments[at][0])
        at -= 1
    behind = [comments[line][0]] if line in comments else []
    return ". ".join(filter(None, (" ".join(above).rstrip("."), " ".join(behind))))


# ---------------------------------------------------------------------------------------------- entries


def _chapters() -> list[tuple[str, str, list[Entry]]]:
    """Returns (title, what it is about, entries) of the open sections."""
    from data_pipelines.modalities import MODALITIES, Modality
    from data_pipelines.modalities.image import NaflexOptions
    from data_pipelines.sources import SOURCES
    from data_pipelines.sources.base import SourceSpec
    from xmodal.evaluation import EVALUATORS, Evaluator
    from xmodal.models.connectors import CONNECTORS, ConnectorSpec
    from xmodal.models.embed import EMBEDDERS
    from xmodal.models.heads import HEADS
    from xmodal.models.model import ModelSpec
    from xmodal.models.spec import Lora, Relative, Sublayer
    from xmodal.models.tower import TowerSpec
    from xmodal.models.trunk import TRUNKS
    from xmodal.objectives import OBJECTIVES, Objective
    from xmodal.objectives.base import Ramp
    from xmodal.objectives.providers import PROVIDERS, ProviderSpec
    from xmodal.stored.starting import StartOptions
    from xmodal.training.optimizer import Further, Rule

    typed = lambda registry, shared: [Entry(f'type="{name}"', cls, shared) for name, cls in registry.items()]
    return [
        (
            "Inputs",
            "`data.inputs.NAME`, what samples have and batches hold, chosen by its `type`; more in [data.md](data.md).",
            [Entry("every input", Modality), *typed(MODALITIES, Modality),
             Entry("`naflex` of an image", NaflexOptions)],
        ),
        (
            "Models",
            "`model`; `xmodal.models.presets` makes it, and an override reaches any field of it, such as "
            "`--config.model.towers.image.trunk.depth=6`. `model.towers.NAME` is a tower, `.trunk` its trunk, "
            "`.trunk.pattern` its sublayers, `.embed` its embedder, `.heads.NAME` its heads, `.reads.NAME`, "
            "`.attends.NAME` and `.condition.NAME` its edges.",
            [Entry("model", ModelSpec), Entry("a tower", TowerSpec),
             *(Entry("a trunk" if name == "transformer" else f'a trunk, type="{name}"', spec)
               for name, spec in TRUNKS.items()),
             Entry("a sublayer", Sublayer), Entry("`lora` of a sublayer", Lora),
             Entry("`relative` of a sublayer", Relative)],
        ),
        (
            "Edges",
            "`model.towers.NAME.reads.OTHER`, and so for `attends` and `condition`, chosen by its `type`; without "
            'one it is "none".',
            [Entry("every edge", ConnectorSpec), *typed(CONNECTORS, ConnectorSpec)],
        ),
        (
            "Heads",
            "`model.towers.NAME.heads.OUTPUT`, chosen by its `type`.",
            typed(HEADS, None),
        ),
        (
            "Embedders",
            "`model.towers.NAME.embed`, chosen by its `type`.",
            [Entry(f'type="{name}"', spec) for name, spec in EMBEDDERS.items()],
        ),
        (
            "Objectives",
            "`objectives.NAME`, chosen by its `type`.",
            [Entry("every objective", Objective), Entry("a weight that changes", Ramp), *typed(OBJECTIVES, Objective)],
        ),
        (
            "Providers",
            "`providers.NAME`, chosen by its `type`: what is added to each batch without a gradient, such as a frozen "
            "teacher's embeddings. More in [teaching.md](teaching.md).",
            typed(PROVIDERS, ProviderSpec),
        ),
        (
            "Evaluators",
            "`evals.NAME`, chosen by its `type`; figures and how to read them: [evaluation.md](evaluation.md).",
            [Entry("every evaluator", Evaluator), *typed(EVALUATORS, Evaluator)],
        ),
        (
            "Sources",
            "`data.sources.NAME`, and `source` of an evaluator, chosen by its `type`; more in [data.md](data.md).",
            [Entry("every source", SourceSpec), *typed({n: cls.Spec for n, cls in SOURCES.items()}, SourceSpec)],
        ),
        (
            "Rules",
            "The second part of an entry of `optimizer.rules`, behind the pattern of the paths.",
            [Entry("a rule", Rule), Entry("an entry of `optimizer.others`", Further)],
        ),
        (
            "Weights to start from",
            "The third part of an entry of `init_from`, behind the pattern of the paths and the place.",
            [Entry("options of a place", StartOptions)],
        ),
    ]  # fmt: skip


def fields(entry: Entry) -> Iterator[Item]:
    """Yields the fields that a config may set, without those shared with all entries of the section."""
    hints, shared = typing.get_type_hints(entry.cls), dataclasses.fields(entry.shared) if entry.shared else ()
    for field in dataclasses.fields(entry.cls):
        tag = field.name == "type" and len(typing.get_args(hints["type"])) == 1
        hidden = field.metadata.get("option") is False or not field.init
        if not hidden and not tag and field.name not in {other.name for other in shared}:
            yield Item(field.name, _kind(hints[field.name]), _default(field), _documented(entry.cls, field.name))


def _documented(cls: type, name: str) -> str:
    """Returns what the nearest class says of a field."""
    return next((said[name] for c in cls.__mro__ if name in (said := _attributes(c.__dict__.get("__doc__") or ""))), "")


def _attributes(doc: str) -> dict[str, str]:
    """Reads the `Attributes:` of a Google docstring."""
    _, found, text = inspect.cleandoc(doc).partition("\nAttributes:\n")
    if not found:
        return {}
    lines = text.split("\n\n")[0].splitlines()
    indent, said, name = len(lines[0]) - len(lines[0].lstrip()), {}, ""
    for line in lines:
        if match := re.fullmatch(rf" {{{indent}}}(\w+): (.*)", line):
            name = match[1]
            said[name] = match[2]
        elif name:
            said[name] += f" {line.strip()}"
    return said


def _about(cls: type) -> str:
    return inspect.cleandoc(cls.__doc__ or "").partition("\nAttributes:\n")[0].strip()


def _default(field: dataclasses.Field) -> str:
    if field.default is not dataclasses.MISSING:
        return _show(field.default)
    return "(needed)" if field.default_factory is dataclasses.MISSING else _show(field.default_factory())


def _kind(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return ", ".join(map(_show, args))
    if args and origin not in (tuple, dict):
        return " or ".join(map(_kind, args))
    if args:
        inside = ", ".join("..." if arg is Ellipsis else _kind(arg) for arg in args)
        return f"{origin.__name__}[{inside}]"
    return "None" if hint is type(None) else getattr(hint, "__name__", str(hint))


# ---------------------------------------------------------------------------------------------- text


def _show(value: Any) -> str:
    value = value.to_dict() if isinstance(value, ConfigDict) else value
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _table(items: list[Item], columns: tuple[str, ...]) -> str:
    typed = "type" in columns
    escape = lambda text: text.replace("|", "\\|").replace("\n", " ")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for item in items:
        kind = [escape(item.kind)] if typed else []
        default = f"`{escape(item.default)}`" if item.default and item.default != "(needed)" else item.default
        lines.append(f"| {' | '.join([f'`{item.name}`', *kind, default, escape(item.meaning)])} |")
    return "\n".join(lines) + "\n"
