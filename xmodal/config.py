"""Settings: a recipe and the command line become one checked ConfigDict, and its entries become frozen specs.

A recipe (xmodal/recipes.py) starts from `configs/base.py`, which holds every option once. Sections that are empty
there (`model`, `objectives`, `evals`, `data.sources`) are open: they hold named entries, which `make_spec` checks when
they are built. All other sections are closed: a key or a type that is not in the base is an error. Recipes may write
sections whole or in part; all is checked once, here, so that each error names the full path of its key.
"""

import ast
import dataclasses
import json
import os
import pathlib
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from ml_collections import ConfigDict

from data_pipelines.errors import DataError
from data_pipelines.modalities import inputs_of
from xmodal import recipes
from xmodal.kinds import Kind
from xmodal.messages import MOVED, ConfigError, did_you_mean, moved, unknown_key
from xmodal.reporting.files import write_text

T = TypeVar("T")
_REGISTERED = " A class of your project is known after its module is imported: `xmodal --import MODULE COMMAND`"
_SCALARS = {bool: "true or false", int: "an integer", float: "a number", str: "a string", type(None): "None"}


# ---------------------------------------------------------------------------------------------- loading


def load_config(spec: str, overrides: Sequence[str] = (), inputs: Mapping[str, Any] | None = None) -> ConfigDict:
    """Runs a recipe, applies command-line overrides and checks the result against configs/base.py.

    Args:
      spec: path of the recipe, with its variant after a colon: "mine.py" or "mine.py:B16"; without a folder, or in
        `configs/`, also the name of one that comes with xmodal: "clip.py:B16".
      overrides: such as "--config.optimizer.lr=3e-4"; the prefix "--config." is optional. A value is a Python
        literal, true or false; anything else is a string, and so is any value of a closed option that is one.
      inputs: `data.inputs` of a recipe that has none.

    Returns:
      The complete config: sections written in part have the base's defaults for the rest, lists are tuples.

    Raises:
      ConfigError: no such recipe or variant, an unknown key, or a value of the wrong type.
    """
    base = _base()
    source = str(recipes.split(spec)[0])
    config = validate(recipes.call(spec, _keys(base)), base, source=source)
    if inputs is not None and not config.data.inputs:
        config.data.inputs = _config(_plain(inputs, "data.inputs"))
    config = with_inputs(config, source)
    for override in overrides:
        _override(config, base, override)
    return with_inputs(validate(config, base, source="command line"), "command line")


def with_inputs(config: ConfigDict, source: str = "config") -> ConfigDict:
    """Returns a config whose entries of `data.inputs` have all options of their modalities.

    Raises:
      ConfigError: there is no such modality, or an option is wrong.
    """
    try:
        config.data.inputs = _config(_plain(inputs_of(config.data).entries(), "data.inputs"))
    except DataError as error:
        raise ConfigError(f"{source}: {error}") from None
    return config


def validate(config: Mapping | ConfigDict, base: Mapping | ConfigDict, source: str = "config") -> ConfigDict:
    """Returns `config` completed by `base`, with values cast to the base's types.

    Args:
      config: settings to check.
      base: every option with its default; an empty section is open and takes any entries.
      source: where the settings come from, for messages.

    Raises:
      ConfigError: a key that the base does not have, or a value of the wrong type.
    """
    base = _plain(base, "")
    try:
        return _config(_complete(_plain(config, ""), base, "", _keys(base)))
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def _complete(given: dict, base: dict, prefix: str, known: list[str]) -> dict:
    unknown = next((key for key in given if key not in base), None)
    if unknown is not None:
        raise ConfigError(moved(prefix + unknown) or unknown_key(prefix + unknown, known))
    complete = {}
    for key, default in base.items():
        path, value = prefix + key, given.get(key, default)
        if not isinstance(default, dict):
            complete[key] = _convert(value, _hint(default), path)
        elif not isinstance(value, dict):
            raise ConfigError(f"{path}: expected a section ({{key: value}}), got {_show(value)}")
        else:
            complete[key] = _complete(value, default, path + ".", known) if default else value
    return complete


def _hint(default: Any) -> Any:
    """The type that a closed option must have: its default's; tuples of numbers also keep their length."""
    if isinstance(default, tuple) and default and all(type(v) in (int, float) for v in default):
        return tuple[tuple(type(v) for v in default)]
    return Any if default is None else type(default)


def _base() -> dict:
    from xmodal.configs import base  # read late: what only checks specs needs no options

    return _plain(base.get_config(), "")


def _override(config: ConfigDict, base: dict, text: str) -> None:
    key, equals, value = text.removeprefix("--").removeprefix("config.").partition("=")
    if not equals or not key:
        raise ConfigError(f"command line: expected --config.KEY=VALUE, got {text!r}")
    *parents, last = key.split(".")
    section, default = config, base
    for parent in parents:
        section = section.get(parent) if isinstance(section, ConfigDict) else None
        default = default.get(parent) if default else None  # None or empty: within an open section
    if not isinstance(section, ConfigDict) or (default and last not in default):
        raise ConfigError(f"command line: {moved(key) or unknown_key(key, _keys(_plain(config, '')))}")
    section[last] = value if default and isinstance(default[last], str) else _literal(value)


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (ValueError, TypeError, SyntaxError):
        return text


# ---------------------------------------------------------------------------------------------- messages


def _show(value: Any) -> str:
    value = value.to_dict() if isinstance(value, ConfigDict) else value
    return "None" if value is None else f"{value!r:.200} ({type(value).__name__})"


# ---------------------------------------------------------------------------------------------- specs


def make_spec(cls: type[T], values: Mapping | ConfigDict, where: str) -> T:
    """Builds a frozen dataclass from config values, checking every key and type.

    Understands nested dataclasses, `tuple[X, ...]`, `tuple[X, Y]`, `dict[str, X]`, `Literal`, `Any` and unions,
    also of dataclasses that a field `type: Literal[...]` tells apart. An integer is accepted for a float and for
    a string (a duration in steps), a list for a tuple.

    Args:
      cls: the dataclass.
      values: its fields by name; fields with a default may be left out.
      where: path of `values` in the config, for messages.

    Raises:
      ConfigError: an unknown or missing key, or a value of the wrong type.
    """
    if not isinstance(values, Mapping | ConfigDict):
        raise ConfigError(f"{where}: expected the keys of {cls.__name__}, got {_show(values)}")
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    for key in values:
        if key not in fields:
            hint = f"{did_you_mean(str(key), fields)} Keys of {cls.__name__}: {', '.join(fields)}"
            raise ConfigError(f"{where}: unknown key {key!r}.{hint}")
    unset = dataclasses.MISSING
    missing = [n for n, f in fields.items() if n not in values and f.default is f.default_factory is unset]
    if missing:
        raise ConfigError(f"{where}: {cls.__name__} needs {', '.join(map(repr, missing))}")
    hints = typing.get_type_hints(cls)
    converted = {key: _convert(value, hints[key], f"{where}.{key}") for key, value in values.items()}
    try:
        return cls(**converted)
    except ValueError as error:  # from the class's own checks
        raise ConfigError(f"{where}: {error}") from error


def build_entry(registry: Mapping[str, type[T]], entry: Mapping | ConfigDict, where: str) -> T:
    """Builds a named entry of an open section: its `type` chooses the class, the other keys are its fields.

    Args:
      registry: classes by the name that `type` gives them.
      entry: of the config.
      where: its path in the config, for messages.

    Raises:
      ConfigError: an unknown type or key, or a value of the wrong type.
    """
    values = dict(entry)
    kind = values.pop("type", None)
    if kind not in registry:
        hint = did_you_mean(str(kind), registry) or _REGISTERED
        raise ConfigError(f"{where}.type: expected {', '.join(registry)}, got {kind!r:.100}.{hint}")
    return make_spec(registry[kind], values, where=where)


def _convert(value: Any, hint: Any, where: str) -> Any:
    """Returns `value` as the type `hint` or raises a ConfigError."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return _plain(value, where)
    if origin is typing.Literal:
        if value in args:
            return value
        close = did_you_mean(str(value), [str(a) for a in args])
        raise ConfigError(f"{where}: expected one of {', '.join(map(repr, args))}, got {value!r:.100}.{close}")
    if origin in (typing.Union, types.UnionType):
        return _convert_union(value, args, where)
    if hint is tuple or origin is tuple:
        return _convert_tuple(value, args, where)
    if hint is dict or origin in (dict, Mapping):
        if not isinstance(value, Mapping | ConfigDict):
            raise ConfigError(f"{where}: expected named entries ({{name: value}}), got {_show(value)}")
        return {k: _convert(v, args[1] if args else Any, f"{where}.{k}") for k, v in value.items()}
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else make_spec(_kind(hint, value, where), value, where)
    if type(value) is hint:
        return value
    if hint in (float, str) and type(value) is int:
        return hint(value)
    raise ConfigError(f"{where}: expected {_SCALARS.get(hint, hint)}, got {_show(value)}")


def _kind(hint: type, value: Any, where: str) -> type:
    """The class that the `type` of an entry chooses among the kinds of `hint`, where it has some."""
    if not issubclass(hint, Kind) or not isinstance(value, Mapping | ConfigDict):
        return hint
    kind = value.get("type", hint.DEFAULT)
    if kind not in hint.KINDS:
        known = ", ".join(map(repr, hint.KINDS))
        close = did_you_mean(str(kind), hint.KINDS)
        raise ConfigError(f"{where}.type: expected one of {known}, got {kind!r:.100}.{close}")
    return hint.KINDS[kind]


def _convert_union(value: Any, options: tuple, where: str) -> Any:
    if type(value) in options:
        return value
    if isinstance(value, Mapping | ConfigDict) and "type" in value:
        tags = {tag: o for o in options if dataclasses.is_dataclass(o) for tag in _tags(o)}
        if tags:  # dataclasses told apart by a `type: Literal[...]`
            kind = _convert(value["type"], typing.Literal[tuple(tags)], f"{where}.type")
            return make_spec(tags[kind], value, where)
    specs = [option for option in options if dataclasses.is_dataclass(option)]
    if isinstance(value, Mapping | ConfigDict) and len(specs) == 1:  # what is wrong with its keys says more
        return _convert(value, specs[0], where)
    errors = []
    for option in options:
        if option is not type(None):
            try:
                return _convert(value, option, where)
            except ConfigError as error:
                errors.append(error)
    if len(errors) == 1:  # `X | None`: what is wrong with the X says more
        raise errors[0]
    wanted = " or ".join(_SCALARS.get(o, getattr(o, "__name__", str(o))) for o in options)
    raise ConfigError(f"{where}: expected {wanted}, got {_show(value)}")


def _tags(cls: type) -> tuple:
    hint = typing.get_type_hints(cls).get("type")
    return typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()


def _convert_tuple(value: Any, args: tuple, where: str) -> tuple:
    if not isinstance(value, tuple | list):
        raise ConfigError(f"{where}: expected a tuple, got {_show(value)}")
    if not args:
        return _plain(value, where)
    if args[-1] is Ellipsis:
        args = (args[0],) * len(value)
    if len(args) != len(value):
        raise ConfigError(f"{where}: expected a tuple of {len(args)}, got {len(value)} in {value!r}")
    return tuple(_convert(v, a, f"{where}[{i}]") for i, (v, a) in enumerate(zip(value, args)))


# ---------------------------------------------------------------------------------------------- saving


def to_json(config: ConfigDict) -> str:
    """Returns the config as indented JSON; `load_saved` reads it back equal."""
    return json.dumps(_plain(config, ""), indent=2, ensure_ascii=False) + "\n"


def save_config(config: ConfigDict, path: str | os.PathLike) -> None:
    """Writes `to_json(config)`; the file is complete or absent, also when the process dies."""
    write_text(path, to_json(config))


def load_saved(path: str | os.PathLike) -> ConfigDict:
    """Reads what `save_config` wrote. Raises ConfigError when the file is missing or damaged."""
    try:
        return from_json(pathlib.Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no saved config at {path}") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or nested without end
        raise ConfigError(f"{path} is not a saved config: {error}") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


def from_json(text: str) -> ConfigDict:
    """Reads what `to_json` returned. Raises ValueError when it is something else."""
    values = json.loads(text)
    if not isinstance(values, dict):
        raise ConfigError(f"it holds a {type(values).__name__}, not sections")
    return _config(_plain(values, ""))


def refuse_old(saved: ConfigDict, where: str) -> ConfigDict:
    """Returns a saved config; raises a ConfigError for one of an xmodal whose samples had no `data.inputs`."""
    if old := next((f"data.{key}" for key in MOVED if key in (saved.get("data") or {})), ""):
        raise ConfigError(f"{where} is of an older xmodal, whose settings this one does not read: {moved(old)}")
    return saved


def with_new_options(saved: ConfigDict) -> ConfigDict:
    """Returns a saved config completed by the options that were added since, which by default change nothing."""
    refuse_old(saved, "config")
    return with_inputs(_config(_added(_plain(saved, ""), _base())))


def _added(given: dict, base: dict) -> dict:
    both = {key: _added(given[key], base[key]) for key in given if isinstance(base.get(key), dict) and base[key]}
    return {**base, **given, **both}


def diff(a: ConfigDict, b: ConfigDict) -> list[str]:
    """Returns one line for each option that differs, such as "optimizer.lr: 0.001 -> 0.0003"."""
    left, right = (_flatten(_plain(c, "")) for c in (a, b))
    show = lambda values, key: repr(values[key]) if key in values else "(not set)"
    changed = [k for k in {**left, **right} if k not in left or k not in right or left[k] != right[k]]
    return [f"{key}: {show(left, key)} -> {show(right, key)}" for key in changed]


# ---------------------------------------------------------------------------------------------- plain data


def _plain(value: Any, where: str) -> Any:
    """Returns dicts, tuples and scalars only: what a config may hold, whatever it was written as."""
    if isinstance(value, Mapping | ConfigDict):
        items = value.items()
        bad = next((k for k, _ in items if not isinstance(k, str)), None)
        if bad is not None:
            raise ConfigError(f"{where or 'config'}: keys are strings, got {_show(bad)}")
        return {k: _plain(v, f"{where}.{k}".lstrip(".")) for k, v in items}
    if isinstance(value, tuple | list):
        return tuple(_plain(v, f"{where}[{i}]") for i, v in enumerate(value))
    if type(value) in _SCALARS:
        return value
    allowed = "numbers, strings, booleans, None, tuples and sections"
    raise ConfigError(f"{where}: a config holds {allowed}; got {_show(value)}")


def _config(plain: dict) -> ConfigDict:
    """ConfigDict's own type check is off: it knows neither the key's path nor durations given as integers."""
    return ConfigDict(plain, type_safe=False)


def _flatten(plain: dict, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in plain.items():
        flat.update(_flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat


def _keys(plain: dict, prefix: str = "") -> list[str]:
    """Dotted names of all sections and options."""
    keys = []
    for key, value in plain.items():
        keys += [prefix + key, *(_keys(value, f"{prefix}{key}.") if isinstance(value, dict) else ())]
    return keys
