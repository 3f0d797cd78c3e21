"""Reads the steps that runs have saved, without a run: see `writing` for what a step holds."""

import contextlib
import gc
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from xmodal.checkpoints.manifest import checksums, compare, describe, nest, seal, some_of
from xmodal.config import ConfigError
from xmodal.distributed.runtime import agreed
from xmodal.paths import flatten_paths

FORMAT = 1
MARKER = "_CHECKPOINT_METADATA"  # Orbax writes it last
_log = logging.getLogger(__name__)
T = TypeVar("T")


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; the message says where, why and what to do."""


class DamagedError(CheckpointError):
    """A step whose files are incomplete or altered."""


def checkpoint_folder(workdir: str | os.PathLike) -> epath.Path:
    """Returns where a run keeps its checkpoints, as an absolute path or URL."""
    text = os.fspath(workdir)
    return epath.Path(text if "://" in text else os.path.abspath(text)) / "checkpoints"


def list_steps(folder: str | os.PathLike) -> list[int]:
    """Returns the complete steps of a checkpoint folder, oldest first."""
    return sorted(int(path.name) for path in numbered(epath.Path(folder)) if (path / MARKER).exists())


def open_newest(workdir: str | os.PathLike, open_one: Callable[[epath.Path], T]) -> T:
    """Opens the newest step of a run that is whole; one line says which newer ones are damaged.

    Args:
      workdir: the run folder.
      open_one: opens the step in a folder; raises DamagedError for one whose files are incomplete or altered.

    Raises:
      CheckpointError: there is no step, or all are damaged.
    """
    folder, damaged = checkpoint_folder(workdir), []
    for step in reversed(list_steps(folder)):
        try:
            found = open_one(folder / str(step))
        except DamagedError as error:
            damaged.append(f"step {step} ({error})")
            continue
        if damaged:
            _log.warning("checkpoints in %s: damaged: %s; step %d is used", folder, ", ".join(damaged), step)
        return found
    if damaged:
        raise CheckpointError(f"all checkpoints in {folder} are damaged: {', '.join(damaged)}")
    raise CheckpointError(f"no complete checkpoint in {folder}: train first, or name another --workdir")


def read_meta(path: str | os.PathLike) -> dict:
    """Returns the document of one step: everything but the arrays. Needs no model.

    Raises:
      DamagedError: it is missing, incomplete or altered.
    """
    path = epath.Path(path)
    if not (path / MARKER).exists():
        raise DamagedError("it was never finished" if path.exists() else "it does not exist")
    try:
        meta = json.loads((path / "meta" / "data.json").read_text())
        if not isinstance(meta, dict):
            raise ValueError(f"it holds a {type(meta).__name__}, not named entries")
        intact = meta == seal(meta)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise DamagedError(f"meta/data.json cannot be read: {first_line(error)}") from None
    if not intact:
        raise DamagedError("meta/data.json was altered: its checksum does not agree")
    if meta["format"] != FORMAT:
        raise CheckpointError(f"{path} has format {meta['format']} and this version of xmodal reads format {FORMAT}")
    return meta


def restore_params(path: str | os.PathLike, abstract_params: Any, which: str = "params") -> Any:
    """Loads only the trained ("params") or the averaged ("ema") parameters of one step.

    Args:
      path: folder of the step.
      abstract_params: tree of `jax.ShapeDtypeStruct`; without a sharding an array goes to the first device.
      which: entry of the train state.

    Raises:
      ConfigError: the step holds no such entry, or parameters of a different model.
      DamagedError: the step is damaged.
    """
    meta = read_meta(path)
    entries = sorted({name.partition("/")[0] for name in meta["arrays"]})
    if which not in entries:
        raise ConfigError(f"{path} holds no {which!r}; it has {', '.join(entries)}")
    return load(epath.Path(path), {which: abstract_params}, meta, partial=True)[which]


def load(path: epath.Path, abstract: Any, meta: Mapping, *, partial: bool = False) -> Any:
    """Loads the arrays of one step and checks each against its checksum.

    Args:
      path: folder of the step.
      abstract: tree of `jax.ShapeDtypeStruct`.
      meta: the step's document.
      partial: `abstract` holds only some top-level entries of the saved tree.

    Raises:
      ConfigError: shapes, types or names differ from what was saved; nothing was loaded.
      DamagedError: arrays cannot be read, or are not what was saved.
    """
    wanted = {name: _placed(x) for name, x in flatten_paths(abstract).items()}
    saved = meta["arrays"]
    if partial:
        saved = {name: x for name, x in saved.items() if name.partition("/")[0] in abstract}
    if difference := compare(saved, describe(wanted)):
        raise ConfigError(
            f"{path} was saved by a different model or optimizer:\n{difference}\n"
            "Use the config that began this run (its config.json), or another --workdir."
        )
    problem = ""
    try:
        with _quiet(), _loading_context(partial):
            loaded = ocp.load_checkpointables(path, {"state": nest(wanted)})["state"]
    except Exception as error:  # Orbax wraps whatever it meets, so no narrower class says "damaged"
        problem = f"its arrays cannot be read: {first_line(error)}"
    if problem := agreed(problem):
        raise DamagedError(problem)
    loaded = flatten_paths(loaded)
    arrays = {name: loaded[name] for name in wanted}
    sums = checksums(arrays)
    if altered := [name for name, entry in saved.items() if sums[name] != entry["checksum"]]:
        raise DamagedError(f"the data of {some_of(altered)} was altered: the checksum does not agree")
    return jax.tree.unflatten(jax.tree.structure(abstract), list(arrays.values()))


def numbered(folder: epath.Path) -> list[epath.Path]:
    """Returns the steps of a checkpoint folder, unfinished and damaged ones, too."""
    return [path for path in folder.iterdir() if path.name.isdigit()] if folder.exists() else []


def context() -> ocp.Context:
    """Returns what Orbax is to know of a step: arrays, and one JSON document."""
    registry = ocp.handlers.local_registry()
    registry.add(ocp.handlers.JsonHandler, checkpointable_name="meta")
    made = ocp.Context()
    made.checkpointables.registry = registry
    return made


def _loading_context(partial: bool) -> ocp.Context:
    made = context()
    made.pytree.loading.partial_load = partial
    if jax.process_count() > 1:
        # Each process loads by itself and all compare notes afterwards: in Orbax's own barrier those that can read
        # a step would wait minutes for one that cannot.
        me = jax.process_index()
        made.multiprocessing.active_processes = {me}
        made.multiprocessing.primary_host = me
        made.multiprocessing.barrier_sync_key_prefix = f"load_{me}"
    return made


def _placed(x: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(x, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps hundreds of lines of Orbax's tasks off the screen when a file is damaged; the error says it in one."""
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels, hook = [logger.level for logger in loggers], sys.unraisablehook
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        sys.unraisablehook = lambda _: None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # "coroutine was never awaited"
            try:
                yield
            except Exception as error:
                link = error
                while link is not None:  # the frames of the whole chain keep abandoned tasks alive
                    link.__traceback__, link = None, link.__cause__ or link.__context__
                gc.collect()  # they complain when they are collected: let them do it here
                raise
    finally:
        sys.unraisablehook = hook
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


def first_line(error: BaseException) -> str:
    """Returns the first line of what lies at the bottom of an error."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]
