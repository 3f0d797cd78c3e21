"""The project's folder of a model, as `import` and `export --to xmodal` write it.

It holds `config.json` (sections `model`, `objectives`, `data.image`, `data.text` and `data.label` as in a run's config,
and `xmodal`: where it comes from), `tokenizer.json` and `model.safetensors`, whose names are parameter paths.
"""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import unflatten_dict
from ml_collections import ConfigDict

import xmodal
from data_pipelines.text.tokenizers import Tokenizer
from xmodal.config import ConfigError, from_json, make_spec, validate, with_new_options
from xmodal.interop.preprocessing import read_json
from xmodal.interop.settings import bounded, shown
from xmodal.interop.tables import InteropError, fail
from xmodal.interop.weights import cast, open_weights, write_weights
from xmodal.models.model import Functional, ModelSpec
from xmodal.paths import flatten_paths
from xmodal.stored.base import CONFIG, TOKENIZER, WEIGHTS, Choice, Kind, Stored, checked, has_text

FORMAT = 1
_SECTIONS = ("image", "text", "label")  # of `data`, that a model brings with it


def write_stored(stored: Stored, out: Path) -> None:
    """Writes a project's folder; it is complete or absent.

    Raises:
      InteropError: `out` exists already.
    """
    with whole_folder(out) as folder:
        write_into(folder, stored)


def write_into(folder: Path, stored: Stored, dtype: str = "f32") -> None:
    """Writes the files of a project's folder; `dtype` of the weights is "f32" or "bf16"."""
    config = json.loads(json.dumps(stored.config.to_dict()))
    config = {
        "xmodal": {"format": FORMAT, "version": xmodal.__version__, "origin": stored.origin},
        "model": config["model"], "objectives": config["objectives"],
        "data": {key: config["data"][key] for key in _SECTIONS},
    }  # fmt: skip
    if stored.tokenizer is not None:
        config["data"]["text"]["tokenizer"] = TOKENIZER
        (folder / TOKENIZER).write_text(stored.tokenizer.json, encoding="utf-8")
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    arrays = {path: np.asarray(a, np.float32) for path, a in flatten_paths(stored.params).items()}
    write_weights(folder / WEIGHTS, cast(arrays, dtype), {"format": f"xmodal {FORMAT}"})


@contextlib.contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Gives a folder to write into, which takes the name `out` when the block ends well and is removed otherwise."""
    out = Path(out)
    part = out.with_name(out.name + ".part")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InteropError(f"--out {out} exists already; name another folder, or remove it")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
    except OSError as error:
        raise InteropError(f"--out {out}: no folder can be made there ({error.strerror})") from None
    try:
        yield part
        if out.exists():
            out.rmdir()
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _holds(path: Path) -> bool:
    return (path / CONFIG).is_file() and "xmodal" in read_json(path / CONFIG)


def _open(path: Path, choice: Choice, open_other: Callable) -> Stored:
    del choice, open_other
    config = _read_config(path / CONFIG)
    weights, shapes = open_weights(path), _shapes(make_spec(ModelSpec, config.model, f"{path}: model"))
    learned = {name for name in weights if name.startswith("objectives/")}
    problems = [f"missing: {name} {shape}" for name, shape in shapes.items() if name not in weights]
    problems += [f"unexpected: {name}" for name in weights if name not in shapes and name not in learned]
    problems += [
        f"shape: {name} is {weights[name].shape}, the model needs {shape}"
        for name, shape in shapes.items()
        if name in weights and weights[name].shape != shape
    ]
    fail(f"{path / WEIGHTS} does not hold the model of {CONFIG}", problems)
    params = unflatten_dict({name: np.asarray(weights[name], np.float32) for name in weights}, sep="/")
    params.setdefault("objectives", {})
    tokenizer = Tokenizer.load(path / TOKENIZER) if (path / TOKENIZER).is_file() else None
    if tokenizer is None and has_text(config):
        raise InteropError(f"{path} has no {TOKENIZER}, which its text tower needs; import the model again")
    return checked(Stored(config, params, tokenizer, str(path)))


def _read_config(path: Path) -> ConfigDict:
    """Reads the config.json of a project's folder, completed by what was added since it was written."""
    given = read_json(path)
    about = given.pop("xmodal")
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        found = about.get("format") if isinstance(about, dict) else about
        raise InteropError(f"{path.parent} has format {shown(found)}; this version of xmodal reads format {FORMAT}")
    data = given.get("data")
    sections = {"model": given.get("model"), "objectives": given.get("objectives"), "data": data}
    sections |= {f"data.{key}": data.get(key) for key in _SECTIONS} if isinstance(data, dict) else {}
    wrong = {key: value for key, value in sections.items() if not isinstance(value, dict)}
    fail(f"{path} is incomplete", [f"{key} is {shown(value)}, needs a section" for key, value in wrong.items()])
    try:
        bounded(given["model"], f"{path}: model")
        bounded({key: data["image"].get(key) for key in ("size", "resize", "naflex")}, f"{path}: data.image")
        bounded(dict(length=data["text"].get("length")), f"{path}: data.text")
        config, base = with_new_options(from_json(json.dumps(given))), with_new_options(ConfigDict())
        for key in _SECTIONS:
            config.data[key] = validate(config.data[key], base.data[key], f"{path}: data.{key}")
    except (KeyError, TypeError, ValueError) as error:
        raise error if isinstance(error, ConfigError) else InteropError(f"{path}: {error}") from error
    return config


def _shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    shapes = jax.eval_shape(Functional.build(spec).init, jax.random.key(0))
    return {path: shape.shape for path, shape in flatten_paths(shapes).items()}


KIND = Kind("project", "an imported model (config.json with xmodal)", _holds, _open)
