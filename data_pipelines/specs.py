"""Entries of a config's open sections as frozen dataclasses: keys and types are checked, errors name their path."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from data_pipelines.errors import DataError, did_you_mean

T = TypeVar("T")


def read_spec(cls: type[T], entry: Mapping[str, Any], where: str) -> T:
    """Returns an entry as its dataclass.

    Args:
        cls: a dataclass; fields with `metadata=dict(option=False)` are no keys, those with an `example` are needed.
        entry: keys and values.
        where: path of the entry in the config, for messages.

    Raises:
        DataError: an unknown key, a missing one or a value of the wrong type.
    """
    known, given = options(cls), {}
    hints = typing.get_type_hints(cls)
    for key, value in entry.items():
        if key == "type" and "type" not in known:  # it chose the class
            continue
        if key not in known:
            raise DataError(f"{where} has no key {key!r:.100}{did_you_mean(key, known)} (keys: {', '.join(known)})")
        given[key] = _cast(value, hints[key], f"{where}.{key}")
    for name, field in known.items():
        if "example" in field.metadata and not given.get(name):  # it has no default of use
            raise DataError(f"{where} needs `{name}`, such as {field.metadata['example']!r}")
    return cls(**given)


def options(cls: type) -> dict[str, dataclasses.Field]:
    """Returns the fields of a dataclass that an entry may set, by name."""
    return {f.name: f for f in dataclasses.fields(cls) if f.init and f.metadata.get("option", True)}


def as_entry(spec: Any) -> dict[str, Any]:
    """Returns a spec as an entry that holds all its options; nested ones are entries, too."""
    values = {name: getattr(spec, name) for name in options(type(spec))}
    return {name: as_entry(value) if dataclasses.is_dataclass(value) else value for name, value in values.items()}


def _cast(value: Any, hint: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if isinstance(value, hint):
            return value
        if not hasattr(value, "items"):
            raise DataError(f"{where} is {value!r:.200}; expected a section ({{key: value}})")
        return read_spec(hint, value, where)
    if isinstance(value, list):
        value = tuple(value)
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    plain = tuple(typing.get_origin(kind) or kind for kind in allowed)
    if dict in plain and hasattr(value, "items"):
        return dict(value.items())
    if float in plain and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, plain) or (isinstance(value, bool) and bool not in plain):
        expected = " or ".join("None" if kind is types.NoneType else kind.__name__ for kind in plain)
        raise DataError(f"{where} is {value!r:.200}; expected {expected}")
    return _numbers(value, allowed, where) if isinstance(value, tuple) else value


def _numbers(value: tuple, allowed: tuple, where: str) -> tuple:
    """Returns a tuple whose hint says how many numbers it holds as that many floats; any other as it is."""
    args = next((typing.get_args(kind) for kind in allowed if typing.get_origin(kind) is tuple), ())
    if not args or args[-1] is Ellipsis:
        return value
    good = all(isinstance(x, int | float) and not isinstance(x, bool) for x in value)
    if len(value) != len(args) or not good:
        raise DataError(f"{where} is {value!r:.200}; expected {len(args)} numbers")
    return tuple(map(float, value))
