"""Opens what a run has learned: config, tokenizer and weights, from a checkpoint alone, on any mesh."""

import dataclasses
from pathlib import Path

import jax
from etils import epath
from ml_collections import ConfigDict

from data_pipelines.modalities import Inputs, inputs_of
from data_pipelines.text.tokenizers import Tokenizer
from xmodal.config import from_json, with_new_options
from xmodal.distributed.sharding import shardings
from xmodal.finite import check_params
from xmodal.training.checkpoints.reading import (
    CheckpointError,
    checkpoint_folder,
    list_steps,
    open_newest,
    read_meta,
    restore_params,
)
from xmodal.training.losses import Losses
from xmodal.training.step import init_params
from xmodal.training.task import build_losses


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """A checkpoint, ready to use.

    Attributes:
      config: resolved config of the run.
      inputs: of its samples, each text with the tokenizer that it trained with.
      losses: its model and objectives.
      params: averaged weights where the run kept them (or as asked for), else the trained ones.
      step: of the checkpoint.
      samples: seen until then.
    """

    config: ConfigDict
    inputs: Inputs
    losses: Losses
    params: dict
    step: int
    samples: int


def load_run(workdir: Path, mesh: jax.sharding.Mesh, *, step: int | None = None, ema: bool | None = None) -> TrainedRun:
    """Loads a checkpoint of a run.

    Args:
      workdir: the run folder.
      mesh: where the parameters go; need not be the mesh that they were trained on.
      step: of the checkpoint; None takes the newest good one.
      ema: the averaged weights or the trained ones; None takes the averaged ones where the run kept them.

    Raises:
      CheckpointError: there is none, or it is damaged; without a `step` an older one is used then, and a line says so.
      NotFinite: its weights are.
      ConfigError: the run kept no averaged weights.
    """
    if step is None:
        return open_newest(workdir, lambda path: _load(path, mesh, ema))
    path = checkpoint_folder(workdir) / str(step)
    try:
        return _load(path, mesh, ema)
    except CheckpointError as error:
        there = ", ".join(map(str, list_steps(path.parent))) or "none"
        raise CheckpointError(f"checkpoint {path} cannot be used: {error}. Complete steps there: {there}") from None


def _load(path: epath.Path, mesh: jax.sharding.Mesh, ema: bool | None) -> TrainedRun:
    meta = read_meta(path)
    config = with_new_options(from_json(meta["config"]))
    tokenizers = {name: Tokenizer(text, str(path)) for name, text in meta["tokenizers"].items()}
    inputs = inputs_of(config.data).with_tokenizers(tokenizers)
    losses = build_losses(config, mesh, inputs)
    shapes = jax.eval_shape(lambda key: init_params(losses, key), jax.random.key(0))
    placed = shardings(shapes, mesh, config.mesh.rules)
    abstract = jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, placed)
    averaged = bool(config.optimizer.ema) if ema is None else ema
    params = restore_params(path, abstract, "ema" if averaged else "params")
    check_params(params, f"{path} (other steps are named with --step)")
    return TrainedRun(config, inputs, losses, params, meta["step"], meta["position"])
