"""The fields of a json record by name, nested ones dotted."""

from collections.abc import Mapping
from typing import Any


def lookup(fields: Mapping[str, Any], name: str) -> Any:
    """Returns a field; `a.b` is the key "a.b" or else b of the object a. None if there is no such field."""
    if name in fields:
        return fields[name]
    head, dot, rest = name.partition(".")
    inner = fields.get(head) if dot else None
    return lookup(inner, rest) if isinstance(inner, Mapping) else None


def field_names(fields: Mapping[str, Any], levels: int = 8) -> list[str]:
    """Returns the names that a template may use for these fields, nested ones dotted; so many levels of them."""
    names = []
    for name, value in fields.items():
        if isinstance(value, Mapping) and levels > 1:
            names.extend(f"{name}.{inner}" for inner in field_names(value, levels - 1))
        else:
            names.append(name)
    return names
