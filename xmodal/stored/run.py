"""Run folders: what a run has learned, from a checkpoint alone, on any mesh."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
from etils import epath
from ml_collections import ConfigDict

from data_pipelines.text.tokenizers import Tokenizer
from xmodal.building import build_model, build_objectives, parameter_shapes
from xmodal.checkpoints.reading import (
    CheckpointError,
    checkpoint_folder,
    list_steps,
    open_newest,
    read_meta,
    restore_params,
)
from xmodal.config import from_json, with_new_options
from xmodal.distributed.mesh import make_mesh
from xmodal.distributed.sharding import place, shardings
from xmodal.finite import check_params
from xmodal.interop.lora import merge_lora
from xmodal.interop.preprocessing import read_json
from xmodal.models.embed import inputs_of
from xmodal.paths import flatten_paths
from xmodal.stored.base import CONFIG, Choice, Kind, Stored
from xmodal.stored.starting import UNSTORED, Starting, Target, merged, read_unstored, without


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """A checkpoint, ready to use.

    Attributes:
      stored: the model as it was trained, its parameters on a mesh.
      samples: seen until then.
    """

    stored: Stored
    samples: int


def load_run(
    workdir: Path,
    mesh: jax.sharding.Mesh,
    open_other: Callable[[str], Stored],
    *,
    step: int | None = None,
    ema: bool | None = None,
) -> TrainedRun:
    """Loads a checkpoint of a run.

    Args:
      workdir: the run folder.
      mesh: where the parameters go; need not be the mesh that they were trained on.
      open_other: opens the places whose weights the checkpoint leaves out (`stored=False` of `init_from`).
      step: of the checkpoint; None takes the newest good one.
      ema: the averaged weights or the trained ones; None takes the averaged ones where the run kept them.

    Raises:
      CheckpointError: there is none, or it is damaged; without a `step` an older one is used then, and a line says so.
      NotFinite: its weights are.
      ConfigError: the run kept no averaged weights, or weights that it does not store are not where they were.
    """
    load = lambda path: _load(workdir, path, mesh, ema, open_other)
    if step is None:
        return open_newest(workdir, load)
    path = checkpoint_folder(workdir) / str(step)
    try:
        return load(path)
    except CheckpointError as error:
        there = ", ".join(map(str, list_steps(path.parent))) or "none"
        raise CheckpointError(f"checkpoint {path} cannot be used: {error}. Complete steps there: {there}") from None


def _load(
    workdir: Path, path: epath.Path, mesh: jax.sharding.Mesh, ema: bool | None, open_other: Callable[[str], Stored]
) -> TrainedRun:
    meta = read_meta(path)
    config = with_new_options(from_json(meta["config"]))
    averaged = bool(config.optimizer.ema) if ema is None else ema
    tokenizers = {name: Tokenizer(text, str(path)) for name, text in meta["tokenizers"].items()}
    abstract = _abstract(config, mesh)
    target = Target(config, tokenizers, flatten_paths(abstract))
    left_out = Starting.of(config).unstored(target.shapes)
    params = restore_params(path, without(abstract, left_out), "ema" if averaged else "params")
    if left_out:
        arrays = read_unstored(target, open_other, meta.get(UNSTORED, ""))
        placed = {p: place(a.astype(target.shapes[p].dtype), target.shapes[p].sharding) for p, a in arrays.items()}
        params = merged(params, abstract, placed)
    check_params(params, f"{path} (other steps are named with --step)")
    return TrainedRun(Stored(config, params, tokenizers, str(workdir), meta["step"]), meta["position"])


def _abstract(config: ConfigDict, mesh: jax.sharding.Mesh) -> dict:
    """Shapes, types and shardings of all parameters of a run."""
    model = build_model(config)
    shapes = parameter_shapes(model, build_objectives(config, model.spec))
    placed = shardings(shapes, mesh, config.mesh.rules)
    return jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, placed)


def _open(path: Path, choice: Choice, open_other: Callable[[str], Stored]) -> Stored:
    """The model without adapters: low-rank updates are part of its kernels."""
    # Arrays of a run are read onto one device, and copied from there to where they are wanted.
    mesh = make_mesh(dict(data=1, fsdp=1, tensor=1), devices=jax.local_devices()[:1])
    with jax.set_mesh(mesh):
        found = load_run(path, mesh, open_other, step=choice.step, ema=choice.ema).stored
    read = inputs_of(found.config.model.towers).values()
    tokenizers = {name: tokenizer for name, tokenizer in found.tokenizers.items() if name in read}
    return Stored(*merge_lora(found.config, found.params), tokenizers, found.origin, found.step)


def _holds(path: Path) -> bool:
    if (path / "checkpoints").is_dir():
        return True
    keys = read_json(path / CONFIG) if (path / CONFIG).is_file() else {}
    return "model" in keys and not keys.keys() & {"xmodal", "model_type"}


KIND = Kind("run", "a run (checkpoints/)", _holds, _open, chooses=True)
