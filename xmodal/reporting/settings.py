"""Settings of a run as people read them: flat, in words rather than JSON, and the changed ones apart."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def flat_settings(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the leaves of nested settings as (dotted key, value)."""
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flat_settings(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def readable(value: Any) -> str:
    """Returns a value as text: lists of lists and of sections a line each, sections as `key=value`."""
    if value is None or (isinstance(value, Mapping | Sequence) and not value):
        return "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={_inline(item)}" for name, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        if any(isinstance(item, Mapping | list | tuple) for item in value):
            return "\n".join(_rule(item) for item in value)
        return ", ".join(map(readable, value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _inline(value: Any) -> str:
    text = readable(value)
    return f"({text})" if isinstance(value, Mapping | list | tuple) else text


def _rule(item: Any) -> str:
    """A pattern and what it sets, such as an optimizer rule: `.*/bias → weight_decay=0`."""
    if isinstance(item, list | tuple) and len(item) == 2:
        return f"{_inline(item[0])} → {readable(item[1])}"
    return readable(item)


def changed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a config that differ from the defaults: {dotted key: value}.

    Sections that are empty by default (model, objectives, evaluations) hold choices of the recipe alone; of those the
    objectives count, and of the rest what a reader looks for stands elsewhere in the report.
    """
    known = dict(flat_settings(_defaults()))
    opened = tuple(f"{name}." for name, value in known.items() if value == {} and name not in _SHOWN)
    return {
        name: value
        for name, value in flat_settings(config)
        if not name.startswith(opened) and name not in ("model", "evals") and _plain(known.get(name)) != _plain(value)
    }


_SHOWN = ("objectives", "data.sources")


def _defaults() -> dict[str, Any]:
    """Every option with its default."""
    from xmodal.configs import base  # recipes import models, which reports do not need otherwise

    return base.get_config().to_dict()


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))  # a tuple and the list that JSON makes of it are the same
