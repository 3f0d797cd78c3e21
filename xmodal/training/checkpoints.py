"""Checkpoints: saved in the background, checked when they are read, and complete in themselves.

`<workdir>/checkpoints/<step>/` holds the arrays of the train state (`state/`, Orbax) and one JSON document
(`meta/data.json`): position in the data, metrics, what the caller adds (config, tokenizer), and a list of all
arrays with shape, type and checksum. The list lets a different model be refused before any array is read, and it
is needed for safety: Orbax notices a truncated file, but a flipped bit in an array's data goes unnoticed.

This is the only file that knows Orbax. It uses Orbax's functions rather than its `training.Checkpointer`, whose
policies count damaged steps as good ones and lose the step after a failed save.
"""

import contextlib
import gc
import json
import logging
import math
import os
import shutil
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from xmodal.config import ConfigError
from xmodal.distributed.runtime import agreed, from_first
from xmodal.paths import flatten_paths
from xmodal.training.manifest import checksums, compare, describe, nest, seal, some_of

FORMAT = 1
_MARKER = "_CHECKPOINT_METADATA"  # Orbax writes it last
_log = logging.getLogger(__name__)


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; the message says where, why and what to do."""


class DamagedError(CheckpointError):
    """A step whose files are incomplete or altered."""


class Checkpoints:
    """The checkpoints of one run; every process makes the same calls.

    Args:
      workdir: the run folder.
      every: steps between saves; 0 saves only when told to.
      keep_last: how many of the newest to keep, at least 1.
      keep_every: also keep steps that are a multiple of it; 0 keeps none.
      best: name of a metric whose best checkpoint is kept; "" keeps none.
      best_mode: whether the best is the "max" or the "min".
    """

    def __init__(
        self, workdir: str | os.PathLike, *, every: int = 0, keep_last: int = 2, keep_every: int = 0,
        best: str = "", best_mode: str = "max",
    ):  # fmt: skip
        if keep_last < 1:
            raise ConfigError(f"checkpoint.keep_last={keep_last}: at least 1 checkpoint is kept")
        if best_mode not in ("max", "min"):
            raise ConfigError(f"checkpoint.best_mode={best_mode!r}: expected 'max' or 'min'")
        self.directory = checkpoint_folder(workdir)
        self._every, self._keep_last, self._keep_every = every, keep_last, keep_every
        self._best, self._sign = best, 1 if best_mode == "max" else -1
        self._pending: tuple[int, Any] | None = None
        self._scores: dict[int, float | None] = {}  # saved steps -> metric `best`
        if jax.process_index() == 0:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._remove_unfinished()
        for step in list_steps(self.directory):
            with contextlib.suppress(DamagedError):
                self._scores[step] = self._score(read_meta(self.directory / str(step))["metrics"])

    def due(self, step: int) -> bool:
        """Whether `step` is one to save; also reports a background save that has failed meanwhile.

        Raises:
          CheckpointError: the save before could not be written.
        """
        if self._pending is not None:
            with contextlib.suppress(TimeoutError):
                self._finish(timeout=0)
        return bool(self._every) and step % self._every == 0 and step not in self._scores

    def save(
        self, step: int, state: Any, *, position: int, metrics: Mapping[str, float] | None = None,
        extra: Mapping[str, Any] | None = None, wait: bool = False,
    ) -> bool:  # fmt: skip
        """Saves a step in the background; the state may be donated to the next step at once.

        Args:
          step: number of finished steps.
          state: tree of jax arrays.
          position: consumed samples of the global stream.
          metrics: for `best` and for readers; values that are not finite are left out.
          extra: further JSON values that a reader finds in the document: config, tokenizer.
          wait: return only when the checkpoint is complete on disk.

        Returns:
          Whether anything was written: a step that is there already is not written again.

        Raises:
          CheckpointError: this save, or with `wait=False` the one before, could not be written.
        """
        self.wait()
        new = step not in self._scores
        if new:
            if clash := {"format", "step", "position", "metrics", "arrays", "checksum"} & set(extra or {}):
                raise ValueError(f"extra: {', '.join(sorted(clash))} are written by the checkpoint itself")
            arrays = flatten_paths(state)
            metrics = {name: float(x) for name, x in (metrics or {}).items() if math.isfinite(x)}
            meta = seal({
                **(extra or {}), "format": FORMAT, "step": step, "position": position, "metrics": metrics,
                "arrays": describe(arrays, checksums(arrays)),
            })  # fmt: skip
            self._scores[step] = self._score(metrics)
            target = self.directory / str(step)
            try:
                with _context():
                    response = ocp.save_checkpointables_async(target, {"state": nest(arrays), "meta": meta})
            except (OSError, ValueError, RuntimeError) as error:
                raise self._failed(step, error) from error
            self._pending = (step, response)
        if wait:
            self.wait()
        return new

    def wait(self) -> None:
        """Waits until the last save is complete on disk.

        Raises:
          CheckpointError: it could not be written.
        """
        if self._pending is not None:
            self._finish(timeout=None)

    def restore(self, abstract_state: Any) -> tuple[Any, dict] | None:
        """Loads the newest checkpoint that is whole; damaged ones are named in a warning and set aside.

        Args:
          abstract_state: tree of `jax.ShapeDtypeStruct` with shardings, on any mesh.

        Returns:
          The state and the document (`position`, `metrics`, and what was saved as extra), or None when there
          is no checkpoint.

        Raises:
          ConfigError: the checkpoint is of a different model or optimizer; the message lists the differences.
          CheckpointError: there are checkpoints, but all of them are damaged.
        """
        damaged: dict[int, str] = {}
        steps = sorted((int(p.name) for p in _numbered(self.directory)), reverse=True)
        for step in _same_everywhere(steps):
            path = self.directory / str(step)
            try:
                meta = _read_meta_everywhere(path)
                state = load(path, abstract_state, meta)
            except DamagedError as error:
                damaged[step] = str(error)
                continue
            self._set_aside(damaged, step)
            return state, meta
        if any(any((self.directory / str(step)).iterdir()) for step in damaged):
            reasons = "\n".join(f"  {step}: {reason}" for step, reason in damaged.items())
            raise CheckpointError(
                f"all checkpoints in {self.directory} are damaged:\n{reasons}\n"
                "Bring one back from a copy, or move the folder away to begin anew."
            )
        self._set_aside(damaged, None)  # nothing but empty folders
        return None

    def close(self) -> None:
        """Waits for the last save; call it (or use the object as a context) before the process ends."""
        self.wait()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, *_) -> None:
        if kind is None:
            return self.close()
        try:
            self.wait()
        except CheckpointError as error:  # must not hide the exception that is on its way
            _log.warning("%s", error)

    def _finish(self, timeout: float | None) -> None:
        step, response = self._pending
        try:
            response.result(timeout=timeout)
        except TimeoutError as error:
            if timeout is None:
                raise self._failed(step, error) from error
            raise
        except Exception as error:
            raise self._failed(step, error) from error
        self._pending = None
        self._prune()

    def _failed(self, step: int, error: Exception) -> CheckpointError:
        """Forgets a save that failed, frees what it wrote, and says what to do."""
        self._pending = None
        self._scores.pop(step, None)
        free = ""
        with contextlib.suppress(OSError):
            free = f" {shutil.disk_usage(self.directory).free / 2**20:,.1f} MiB were free there."
        if jax.process_index() == 0:
            self._remove_unfinished()
        last = max(self._scores, default=None)
        goes_on = f"goes on from step {last}" if last is not None else "begins anew"
        return CheckpointError(
            f"the checkpoint of step {step} could not be written to {self.directory}: {_first_line(error)}.{free} "
            f"Make room on that disk (old runs, other checkpoints), then run the same command again: it {goes_on}."
        )

    def _score(self, metrics: Mapping[str, float]) -> float | None:
        return self._sign * metrics[self._best] if self._best in metrics else None

    def _prune(self) -> None:
        """Deletes what the settings do not keep."""
        steps = sorted(self._scores)
        keep = set(steps[-self._keep_last :])
        keep |= {step for step in steps if self._keep_every and step % self._keep_every == 0}
        if scored := {step: score for step, score in self._scores.items() if score is not None}:
            keep.add(max(scored, key=lambda step: (scored[step], step)))
        for step in set(steps) - keep:
            del self._scores[step]
        if jax.process_index() == 0:
            for path in _numbered(self.directory):
                if int(path.name) not in self._scores and int(path.name) < steps[-1]:
                    (path / _MARKER).unlink(missing_ok=True)  # from here on it does not count
                    path.rmtree()

    def _remove_unfinished(self) -> None:
        for path in self.directory.iterdir():
            if ".orbax-checkpoint-tmp" in path.name:
                _remove_while_written(path)

    def _set_aside(self, damaged: Mapping[int, str], used: int | None) -> None:
        """Renames damaged steps, so that their numbers are free for the run that goes on."""
        for step, problem in damaged.items():
            self._scores.pop(step, None)
            path, aside = self.directory / str(step), self.directory / f"{step}.damaged"
            if jax.process_index() == 0:
                if aside.exists():
                    aside.rmtree()
                path.rename(aside)
                instead = "there is none before it" if used is None else f"step {used} is used instead"
                _log.warning("checkpoint %s is damaged (%s): %s. It is now %s", path, problem, instead, aside.name)


def _remove_while_written(path: epath.Path) -> None:
    """Deletes a folder into which Orbax's other threads may still write; what is left then, the next start deletes."""
    for _ in range(20):
        with contextlib.suppress(OSError):
            return path.rmtree()
        time.sleep(0.1)
    return None


# ------------------------------------------------------------------------------- reading without a run


def checkpoint_folder(workdir: str | os.PathLike) -> epath.Path:
    """Returns where a run keeps its checkpoints, as an absolute path or URL."""
    text = os.fspath(workdir)
    return epath.Path(text if "://" in text else os.path.abspath(text)) / "checkpoints"


def list_steps(folder: str | os.PathLike) -> list[int]:
    """Returns the complete steps of a checkpoint folder, oldest first."""
    return sorted(int(path.name) for path in _numbered(epath.Path(folder)) if (path / _MARKER).exists())


def latest_valid(workdir: str | os.PathLike) -> epath.Path:
    """Returns the folder of the newest step of a run whose document can be read.

    Raises:
      CheckpointError: there is none.
    """
    folder = checkpoint_folder(workdir)
    for step in reversed(list_steps(folder)):
        try:
            read_meta(folder / str(step))
        except DamagedError as error:
            _log.warning("checkpoint %s is damaged (%s): an older one is used", folder / str(step), error)
        else:
            return folder / str(step)
    raise CheckpointError(f"no complete checkpoint in {folder}: train first, or name another --workdir")


def read_meta(path: str | os.PathLike) -> dict:
    """Returns the document of one step: everything but the arrays. Needs no model.

    Raises:
      DamagedError: it is missing, incomplete or altered.
    """
    path = epath.Path(path)
    if not (path / _MARKER).exists():
        raise DamagedError("it was never finished" if path.exists() else "it does not exist")
    try:
        meta = json.loads((path / "meta" / "data.json").read_text())
        intact = meta == seal(meta)
    except (OSError, ValueError, TypeError) as error:
        raise DamagedError(f"meta/data.json cannot be read: {_first_line(error)}") from None
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
        problem = f"its arrays cannot be read: {_first_line(error)}"
    if problem := agreed(problem):
        raise DamagedError(problem)
    loaded = flatten_paths(loaded)
    arrays = {name: loaded[name] for name in wanted}
    sums = checksums(arrays)
    if altered := [name for name, entry in saved.items() if sums[name] != entry["checksum"]]:
        raise DamagedError(f"the data of {some_of(altered)} was altered: the checksum does not agree")
    return jax.tree.unflatten(jax.tree.structure(abstract), list(arrays.values()))


def _numbered(folder: epath.Path) -> list[epath.Path]:
    return [path for path in folder.iterdir() if path.name.isdigit()] if folder.exists() else []


def _context() -> ocp.Context:
    registry = ocp.handlers.local_registry()
    registry.add(ocp.handlers.JsonHandler, checkpointable_name="meta")
    context = ocp.Context()
    context.checkpointables.registry = registry
    return context


def _loading_context(partial: bool) -> ocp.Context:
    context = _context()
    context.pytree.loading.partial_load = partial
    if jax.process_count() > 1:
        # Each process loads by itself and all compare notes afterwards: in Orbax's own barrier those that can read
        # a step would wait minutes for one that cannot.
        me = jax.process_index()
        context.multiprocessing.active_processes = {me}
        context.multiprocessing.primary_host = me
        context.multiprocessing.barrier_sync_key_prefix = f"load_{me}"
    return context


def _placed(x: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(x, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _same_everywhere(steps: Iterable[int]) -> Iterator[int]:
    """Yields the steps that process 0 sees: a shared disk may show another process an older listing."""
    steps = iter(steps)
    while (step := from_first(next(steps, -1))) >= 0:
        yield step


def _read_meta_everywhere(path: epath.Path) -> dict:
    meta, problem = {}, ""
    try:
        meta = read_meta(path)
    except DamagedError as error:
        problem = str(error)
    if problem := agreed(problem):
        raise DamagedError(problem)
    return meta


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


def _first_line(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]
