"""Recipes: files with a function `get_config`, of the user or of this package, and their variants.

A recipe starts from `xmodal.configs.base.get_config()`. One with variants has `get_config(variant="B32")` and names
them all: `VARIANTS = ("B32", "B16")`; an entry such as "full@DIR" takes more behind an "@".
"""

import importlib.util
import inspect
import re
import traceback
import types
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from xmodal import configs
from xmodal.messages import ConfigError, did_you_mean, moved, unknown_key

HOME = Path(next(iter(configs.__path__)))  # of the recipes and suites that come with xmodal
_NO_RECIPES = ("base", "__init__")


def split(spec: str) -> tuple[Path, str]:
    """Splits "configs/clip.py:B16" into the path and the variant, "" for none."""
    name, colon, variant = spec.partition(".py:")
    return Path(name + ".py" if colon else name), variant


def find(path: Path, kind: str = "*.py") -> Path:
    """Returns the file of a recipe or a suite: `path`, or else one that comes with xmodal.

    Args:
      path: a file, or the name of one of xmodal's: "clip.py", and "configs/clip.py" as it is called in a checkout.
      kind: pattern of such names below xmodal's `configs`: "*.py", "suites/*.json".

    Raises:
      ConfigError: there is no such file; the message lists those there are.
    """
    if path.is_file():
        return path
    ours = {str(file.relative_to(HOME)): file for file in sorted(HOME.glob(kind)) if file.stem not in _NO_RECIPES}
    ours |= {file.name: file for file in ours.values()}
    name = str(path).removeprefix("configs/")
    if name in ours:
        return ours[name]
    folder = "configs/" if str(path).startswith("configs/") else ""
    names = list(dict.fromkeys(folder + file.name for file in ours.values()))
    theirs = [str(file) for file in _beside(path, kind)]
    what, several = ("recipe", "Recipes") if kind.endswith(".py") else ("suite", "Suites")
    here = f" {several} here: {', '.join(theirs)}." if theirs else ""
    close = did_you_mean(str(path), theirs) or did_you_mean(folder + path.name, names)
    raise ConfigError(f"there is no {what} {path}.{close}{here} {several} of xmodal: {', '.join(names)}")


def _beside(path: Path, kind: str) -> list[Path]:
    """Recipes in the folder of `path`, and in `configs/` of the current one, but for xmodal's."""
    folders = [folder for folder in dict.fromkeys((path.parent, Path("configs"))) if folder.is_dir()]
    files = [file for folder in folders for file in sorted(folder.glob(Path(kind).name))]
    files = [
        file for file in files if file.stem not in _NO_RECIPES and not file.resolve().is_relative_to(HOME.resolve())
    ]
    return [file for file in files if file.suffix != ".py" or "get_config" in file.read_text(errors="replace")]


def call(spec: str, known: Sequence[str]) -> ConfigDict:
    """Runs a recipe.

    Args:
      spec: as for `split`.
      known: dotted paths of all options, for messages.

    Raises:
      ConfigError: there is no such recipe or variant, or it writes below a section that does not exist.
    """
    path, variant = split(spec)
    recipe = _import(find(path), path)
    _check_variant(recipe, path, variant)
    try:
        return recipe.get_config(variant) if variant else recipe.get_config()
    except (AttributeError, KeyError) as error:
        key = str(error.args[0]) if error.args else ""
        if isinstance(error, KeyError) and key and key in variant:  # the variant, or a part of it, is looked up
            raise ConfigError(
                f"{path} has no variant {variant!r}; a recipe that names its VARIANTS lists them"
            ) from error
        frames = traceback.extract_tb(error.__traceback__)
        *_, caller = (f for f in frames if "ml_collections" not in f.filename)
        if caller is frames[-1] or caller.filename != recipe.__file__:
            raise  # not a key that the recipe reads from its config: a bug, and its traceback says where
        cause = error.args[0].args[0] if isinstance(error.args[0], KeyError) else error.args[0]
        key = cause.splitlines()[0].strip("'")
        gone = next(filter(None, map(moved, re.findall(r"\bdata\.\w+", caller.line))), "")
        hint = gone or unknown_key(key, known)
        raise ConfigError(f"{path}, line {caller.lineno}, `{caller.line}`: {hint}") from error


def _import(file: Path, path: Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(f"recipe_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "configs":
            raise ConfigError(
                f"{path}: {error}; xmodal's are imported by `from xmodal.configs import base`, those of a project of "
                "your own where xmodal starts in the folder that holds `configs`"
            ) from error
        if not isinstance(error, ModuleNotFoundError):
            raise
        raise ConfigError(
            f"{path}: there is no module {error.name!r}; start xmodal in the folder that holds it, put that into "
            "PYTHONPATH, or install its package"
        ) from error
    except SyntaxError as error:
        raise ConfigError(f"{error.filename}, line {error.lineno}: {error.msg}") from error
    if not callable(getattr(module, "get_config", None)):
        raise ConfigError(
            f"{path}: a recipe holds a function `get_config()`, which changes what `base.get_config()` returns "
            "(`from xmodal.configs import base`)"
        )
    return module


def _check_variant(recipe: types.ModuleType, path: Path, variant: str) -> None:
    """Raises ConfigError for a variant that the recipe does not have, as far as it says which it has."""
    if not variant:
        return
    if not inspect.signature(recipe.get_config).parameters:
        raise ConfigError(f"{path} has no variants, got {variant!r}: leave out ':{variant}'")
    variants = getattr(recipe, "VARIANTS", None)
    if variants is None:
        return
    name, at, _ = variant.partition("@")
    kinds = {entry.partition("@")[0]: "@" in entry for entry in variants}
    if name not in kinds or (at and not kinds[name]):
        raise ConfigError(
            f"{path} has no variant {variant!r}.{did_you_mean(name, kinds)} Variants: {', '.join(variants)}"
        )
