"""The project's folder of a model, as `import` and `export --to xmodal` write it.

It holds `config.json` (sections `model`, `objectives` and `data.inputs` as in a run's config, and `xmodal`: where it
comes from), `tokenizer.json` (`<input>.tokenizer.json` of several texts) and `model.safetensors`, whose names are
parameter paths.
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
from data_pipelines.modalities import inputs_of as open_inputs
from data_pipelines.modalities.inputs import tokenizer_files
from data_pipelines.text.tokenizers import Tokenizer
from xmodal.config import from_json, make_spec, with_new_options
from xmodal.interop.preprocessing import read_json
from xmodal.interop.settings import bounded, shown
from xmodal.interop.tables import InteropError, fail
from xmodal.interop.weights import cast, open_weights, write_weights
from xmodal.models.embed import inputs_of
from xmodal.models.model import Functional, ModelSpec
from xmodal.paths import flatten_paths
from xmodal.stored.base import CONFIG, WEIGHTS, Choice, Kind, Stored, checked

FORMAT = 2  # 1 had `data.image`, `data.text` and `data.label`


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
        "data": {"inputs": json.loads(json.dumps(stored.inputs.entries()))},
    }  # fmt: skip
    for name, file in tokenizer_files(stored.tokenizers).items():
        config["data"]["inputs"][name]["tokenizer"] = file
        (folder / file).write_text(stored.tokenizers[name].json, encoding="utf-8")
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
    return checked(Stored(config, params, _tokenizers(path, config), str(path)))


def _tokenizers(path: Path, config: ConfigDict) -> dict[str, Tokenizer]:
    """Reads the tokenizers of the texts that towers read."""
    read, texts = set(inputs_of(config.model.towers).values()), open_inputs(config.data).texts
    files = tokenizer_files(name for name in texts if name in read)
    if missing := next((file for file in files.values() if not (path / file).is_file()), ""):
        raise InteropError(f"{path} has no {missing}, which its text tower needs; import the model again")
    return {name: Tokenizer.load(path / file) for name, file in files.items()}


def _read_config(path: Path) -> ConfigDict:
    """Reads the config.json of a project's folder, completed by what was added since it was written."""
    given = read_json(path)
    about = given.pop("xmodal")
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        found = about.get("format") if isinstance(about, dict) else about
        raise InteropError(
            f"{path.parent} has format {shown(found)}; this version of xmodal reads format {FORMAT}: import or export "
            "the model again"
        )
    data = given.get("data")
    sections = {"model": given.get("model"), "objectives": given.get("objectives"), "data": data}
    sections |= {"data.inputs": data.get("inputs")} if isinstance(data, dict) else {}
    wrong = {key: value for key, value in sections.items() if not isinstance(value, dict)}
    fail(f"{path} is incomplete", [f"{key} is {shown(value)}, needs a section" for key, value in wrong.items()])
    try:
        bounded(given["model"], f"{path}: model")
        for name, entry in data["inputs"].items():
            sizes = {key: entry.get(key) for key in ("size", "resize", "naflex", "length") if key in entry}
            bounded(sizes, f"{path}: data.inputs.{name}")
        config = with_new_options(from_json(json.dumps(given)))
    except (KeyError, TypeError, ValueError) as error:
        said = str(error).removeprefix("config: ")
        raise error if isinstance(error, InteropError) else InteropError(f"{path}: {said}") from error
    return config


def _shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    try:
        shapes = jax.eval_shape(Functional.build(spec).init, jax.random.key(0))
    except ValueError as error:
        raise InteropError(f"{CONFIG} describes no model: {error}") from error
    return {path: shape.shape for path, shape in flatten_paths(shapes).items()}


KIND = Kind("project", "an imported model (config.json with xmodal)", _holds, _open)
