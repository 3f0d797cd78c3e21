"""A model at rest: what it is, its weights, and how its pictures and texts are prepared; ours and other folders alike.

Our own folder holds `config.json` (sections `model`, `objectives`, `data.image`, `data.text` and `data.label` as in a
run's config, and `xmodal`: where it comes from), `tokenizer.json` and `model.safetensors`, whose names are our paths.
"""

import contextlib
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import unflatten_dict
from ml_collections import ConfigDict

import xmodal
from data_pipelines.errors import DataError
from data_pipelines.images.device import check_normalisation
from data_pipelines.modalities import Inputs
from data_pipelines.modalities import inputs_of as open_inputs
from data_pipelines.text.tokenizers import Tokenizer
from xmodal.config import ConfigError, from_json, make_spec, to_json, validate, with_new_options
from xmodal.finite import not_finite
from xmodal.interop import OPEN_CLIP, open_clip, preprocessing
from xmodal.interop.huggingface import family_of
from xmodal.interop.lora import merge_lora
from xmodal.interop.settings import bounded, shown
from xmodal.interop.tables import Family, InteropError, fail
from xmodal.interop.tokenizer_files import read_tokenizer, separator
from xmodal.interop.weights import cast, open_weights, refuse_pickles, write_weights
from xmodal.models.embed import PatchSpec, inputs_of
from xmodal.models.model import Functional, ModelSpec
from xmodal.paths import flatten_paths
from xmodal.training.folder import not_local

FORMAT = 1
_SECTIONS = ("image", "text", "label")  # of `data`, that a model brings with it
WEIGHTS, TOKENIZER, CONFIG = "model.safetensors", "tokenizer.json", "config.json"


@dataclasses.dataclass(frozen=True)
class Stored:
    """A model with everything that it needs to be used.

    Attributes:
      config: a complete config; `model`, `objectives`, `data.image` and `data.text` are the model's own.
      params: {tower: ..., "objectives": ...}, nested dicts of arrays.
      tokenizer: of its texts; None for a model of pictures alone.
      origin: where it was read.
      step: of the run that made it, or None.
    """

    config: ConfigDict
    params: dict
    tokenizer: Tokenizer | None
    origin: str
    step: int | None = None

    @property
    def spec(self) -> ModelSpec:
        """Description of the towers."""
        return make_spec(ModelSpec, self.config.model, where=f"{self.origin}: model")

    def fingerprint(self) -> str:
        """Returns what tells this model from all whose embeddings may differ: towers, weights, preparation."""
        config = json.loads(to_json(self.config))
        image = {key: config["data"]["image"][key] for key in SHOWN}
        image["squash"] = config["data"]["image"]["crop"] == "squash"
        if image["background"] == "white":  # as in fingerprints that are older than this option
            del image["background"]
        text = {key: config["data"]["text"][key] for key in ("length", "lower")}
        if (clean := config["data"]["text"]["clean"]) != "none":
            text["clean"] = clean
        model = {key: value for key, value in config["model"].items() if key != "dtype"}
        digest = hashlib.blake2b(json.dumps([model, image, text], sort_keys=True).encode(), digest_size=16)
        digest.update((self.tokenizer.json if self.tokenizer else "").encode())
        towers = {name: tree for name, tree in self.params.items() if name != "objectives"}
        for path, array in sorted(flatten_paths(towers).items()):
            digest.update(f"{path} {array.dtype} {array.shape}".encode())
            digest.update(np.asarray(array).tobytes())
        return digest.hexdigest()


def open_stored(where: str | Path, *, step: int | None = None, ema: bool | None = None) -> Stored:
    """Opens a model wherever it lives.

    Args:
      where: a run folder, a folder that `import` made, "hf:DIR", or "open_clip:DIR"; without the prefix the files of
        the folder tell which it is.
      step: checkpoint of a run; None takes the newest good one.
      ema: averaged or trained weights of a run; None takes those that its evaluations used.

    Raises:
      InteropError: there is no such folder, it is incomplete, damaged or of an unknown kind, or its weights are not
        finite.
    """
    kind, path = parse(where)
    if kind == "run":
        return _open_run(path, step, ema)
    if step is not None or ema is not None:
        raise InteropError(f"{where} is not a run: it has no other steps and no averaged weights")
    stored = {"own": _open_own, "hf": _open_hf, "open_clip": _open_open_clip}[kind](path)
    try:
        check_normalisation(stored.config.data.image)
    except DataError as error:
        raise InteropError(f"{where}: {error}") from None
    fail(f"{where} holds weights that are NaN or infinite", not_finite(stored.params))
    if "image" not in inputs_of(stored.config.model.towers).values():
        stored.config.data.modalities = ("text",)
    return stored


def parse(where: str | Path) -> tuple[str, Path]:
    """Returns ("run" | "own" | "hf" | "open_clip", folder or file)."""
    kind, colon, rest = str(where).partition(":")
    if not colon or kind not in ("hf", "open_clip"):
        kind, rest = "", str(where)
    path = Path(rest).expanduser()
    if not path.exists():
        if problem := not_local(rest):
            raise InteropError(problem)
        hint = ""
        if kind == "hf" and rest.count("/") == 1:
            hint = f". Nothing is downloaded here: `hf download {rest} --local-dir DIR`, then name hf:DIR"
        raise InteropError(f"there is no folder {path}{hint}")
    refuse_pickles(path)
    if kind:
        return kind, path
    if (path / "checkpoints").is_dir():
        return "run", path
    if (path / open_clip.CONFIG).is_file():
        return "open_clip", path
    if (path / CONFIG).is_file():
        config = preprocessing.read_json(path / CONFIG)
        for kind, key in (("hf", "model_type"), ("own", "xmodal"), ("run", "model")):
            if key in config:
                return kind, path
    if any(path.glob("*.jaxexport")):
        raise InteropError(
            f"{path} holds programs for JAX alone, not a model: its README.md says how to call them. `python -m xmodal "
            "export --to xmodal` makes a folder of the same model that can be opened here"
        )
    raise InteropError(
        f"{path} is no model that is known here: expected a run (checkpoints/), an imported model, a Hugging Face "
        f"folder (config.json with model_type) or an open_clip folder ({open_clip.CONFIG})"
    )


def write_stored(stored: Stored, out: Path) -> None:
    """Writes our own folder; it is complete or absent.

    Raises:
      InteropError: `out` exists already.
    """
    with whole_folder(out) as folder:
        write_into(folder, stored)


def write_into(folder: Path, stored: Stored, dtype: str = "f32") -> None:
    """Writes the files of our own folder; `dtype` of the weights is "f32" or "bf16"."""
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


# ---------------------------------------------------------------------------------------------- kinds of folders


def _open_run(path: Path, step: int | None, ema: bool | None) -> Stored:
    import jax

    from xmodal.distributed.mesh import make_mesh
    from xmodal.training.trained import load_run

    # Arrays of a run are read onto one device, and copied from there to where they are wanted.
    mesh = make_mesh(dict(data=1, fsdp=1, tensor=1), devices=jax.local_devices()[:1])
    with jax.set_mesh(mesh):
        run = load_run(path, mesh, step=step, ema=ema)
    tokenizer = run.tokenizer if _has_text(run.config) else None
    return Stored(*merge_lora(run.config, run.params), tokenizer, str(path), run.step)


def _open_own(path: Path) -> Stored:
    config = _own_config(path / CONFIG)
    weights, shapes = open_weights(path), _shapes(make_spec(ModelSpec, config.model, f"{path}: model"))
    own = {name for name in weights if name.startswith("objectives/")}
    problems = [f"missing: {name} {shape}" for name, shape in shapes.items() if name not in weights]
    problems += [f"unexpected: {name}" for name in weights if name not in shapes and name not in own]
    problems += [
        f"shape: {name} is {weights[name].shape}, the model needs {shape}"
        for name, shape in shapes.items()
        if name in weights and weights[name].shape != shape
    ]
    fail(f"{path / WEIGHTS} does not hold the model of {CONFIG}", problems)
    params = unflatten_dict({name: np.asarray(weights[name], np.float32) for name in weights}, sep="/")
    params.setdefault("objectives", {})
    tokenizer = Tokenizer.load(path / TOKENIZER) if (path / TOKENIZER).is_file() else None
    if tokenizer is None and _has_text(config):
        raise InteropError(f"{path} has no {TOKENIZER}, which its text tower needs; import the model again")
    return Stored(config, params, tokenizer, str(path))


def _own_config(path: Path) -> ConfigDict:
    """Reads the config.json of our own folder, completed by what was added since it was written."""
    given = preprocessing.read_json(path)
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


def _open_hf(path: Path) -> Stored:
    config = preprocessing.read_json(path / CONFIG)
    try:
        family = family_of(config)
        if family.with_names:
            config = family.with_names(config, open_weights(path, WEIGHTS))
        model = family.model_config(config)
    except InteropError as error:
        raise InteropError(f"{path / CONFIG}: {error}") from None
    data = preprocessing.read_processor(path) if family.image_processor else None
    if family.any_size:
        embed = model.towers.image.embed
        with embed.ignore_type():  # a pair of sides may become one
            embed.image_size = preprocessing.shown_size(data, embed.image_size)
    if family.packed:
        image = lambda embed: preprocessing.from_packing_processor(data, embed.patch_size, str(path))
    else:
        image = lambda embed: preprocessing.from_processor(data, _side(embed, path), str(path))
    stored = _converted(path, path, WEIGHTS, family, model, image if data else None)
    if family.labels and (names := family.labels(config)):
        stored.config.objectives = dict(classification=dict(type="classification", tower="image", weight=1.0))
        stored.config.data.label.classes = names
    if any(tower.head == "masked" for tower in stored.spec.towers.values()):
        stored.config.objectives = dict(masked=dict(type="masked_text", weight=1.0))
    if family.check_marks and stored.tokenizer is not None:
        try:
            family.check_marks(config, stored.tokenizer)
        except InteropError as error:
            raise InteropError(f"{path / CONFIG}: {error}") from None
    return stored


def _open_open_clip(path: Path) -> Stored:
    folder, name = (path, open_clip.WEIGHTS) if path.is_dir() else (path.parent, path.name)
    where = folder / open_clip.CONFIG
    if not where.is_file():
        raise InteropError(
            f"{folder} has no {open_clip.CONFIG}, which describes the model. open_clip's `push_to_hf_hub` writes it; "
            "published open_clip folders have it"
        )
    config = preprocessing.read_json(where)
    for key in ("model_cfg", "preprocess_cfg"):
        if not isinstance(config.get(key) or {}, dict):
            raise InteropError(f"{where}: {key} is {shown(config[key])}, needs an object")
    bounded(config.get("model_cfg"), f"{where}: model_cfg")
    kind = open_clip.kind_of(config.get("model_cfg") or {})
    if kind not in OPEN_CLIP:
        raise InteropError(f"{where}: a model with {kind} towers cannot be converted: known are {', '.join(OPEN_CLIP)}")
    try:
        model = OPEN_CLIP[kind].model_config(config["model_cfg"])
    except KeyError as error:
        raise InteropError(f"{where}: model_cfg has no {error}") from None
    except InteropError as error:
        raise InteropError(f"{where}: {error}") from None
    preprocess = config.get("preprocess_cfg") or {}
    image = lambda embed: preprocessing.from_open_clip(preprocess, _side(embed, folder), str(where))

    def texts(tokenizer: Tokenizer) -> tuple[Tokenizer, dict]:
        try:
            return open_clip.read_texts(config["model_cfg"], tokenizer, separator(folder))
        except InteropError as error:
            raise InteropError(f"{where}: {error}") from None

    return _converted(path, folder, name, OPEN_CLIP[kind], model, image, texts)


def _side(embed: PatchSpec, folder: Path) -> int:
    if not isinstance(embed.image_size, int):
        raise InteropError(
            f"{folder}: pictures of {embed.image_size} pixels are not square, which is all that is prepared here"
        )
    return embed.image_size


def _converted(
    origin: Path, folder: Path, name: str, family: Family, model: ConfigDict, image: Any,
    texts: Callable[[Tokenizer], tuple[Tokenizer, dict]] | None = None,
) -> Stored:  # fmt: skip
    """A model of a reference in our terms.

    `image` gives the keys of `data.image` for an embedder; `texts` the tokenizer as the reference uses it, and keys of
    `data.text`, where not all that the reference does to a text is in the tokenizer's file.
    """
    spec = make_spec(ModelSpec, model, where=f"{folder}: model")
    try:
        Functional.build(spec)
        params = family.to_params(open_weights(folder, name), spec)
    except ValueError as error:
        raise InteropError(f"{folder}: {error}") from None
    params.setdefault("objectives", {})
    objective = dict(family.objective)
    config = with_new_options(ConfigDict(dict(model=model, data={}, objectives={})))
    if objective:
        config.objectives = dict(contrastive=objective | dict(between=("image", "text"), weight=1.0))
    if image is not None:
        config.data.image.update(image(spec.towers["image"].embed))
    tokenizer = None
    if _has_text(config):
        tokenizer, length = read_tokenizer(folder, cased=family.cased)
        embed = next(t.embed for t in spec.towers.values() if getattr(t.embed, "type", "") == "token")
        if tokenizer.vocab_size > embed.vocab_size:
            raise InteropError(
                f"{folder}: tokenizer.json has ids up to {tokenizer.vocab_size - 1}, and the model has "
                f"{embed.vocab_size} tokens: it is another model's tokenizer"
            )
        text = dict(tokenizer=TOKENIZER, length=min(length or embed.length, embed.length), lower=False, clean="none")
        if texts is not None:
            tokenizer, more = texts(tokenizer)
            text |= more
        config.data.text.update(text)
    return Stored(config, params, tokenizer, str(origin))


def _has_text(config: ConfigDict) -> bool:
    return any(getattr(tower.get("embed"), "type", "") == "token" for tower in config.model.towers.values())


def _shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    import jax

    shapes = jax.eval_shape(Functional.build(spec).init, jax.random.key(0))
    return {path: shape.shape for path, shape in flatten_paths(shapes).items()}
