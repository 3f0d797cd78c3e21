"""Checkpoints: saved in the background, checked when they are read, and complete in themselves.

`<workdir>/checkpoints/<step>/` holds the arrays of the train state (`state/`, Orbax) and one JSON document
(`meta/data.json`): position in the data, metrics, what the caller adds (config, tokenizer), and a list of all
arrays with shape, type and checksum. The list lets a different model be refused before any array is read, and it
is needed for safety: Orbax notices a truncated file, but a flipped bit in an array's data goes unnoticed.

What is on disk is read by `reading`; beside it, this is the only file that knows Orbax. They use Orbax's functions
rather than its `training.Checkpointer`, whose policies count damaged steps as good ones and lose the step after
a failed save.
"""

import contextlib
import errno
import logging
import math
import os
import shutil
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from xmodal.checkpoints.manifest import checksums, describe, nest, seal
from xmodal.checkpoints.reading import (
    FORMAT,
    MARKER,
    CheckpointError,
    DamagedError,
    checkpoint_folder,
    context,
    first_line,
    list_steps,
    load,
    numbered,
    read_meta,
)
from xmodal.config import ConfigError
from xmodal.distributed.runtime import agreed, from_first
from xmodal.paths import flatten_paths
from xmodal.reporting.files import advice_for

_log = logging.getLogger(__name__)


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
        _hush_orbax()
        self._scores: dict[int, float | None] = {}  # saved steps -> metric `best`
        if jax.process_index() == 0:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._remove_unfinished()
        for step in list_steps(self.directory):
            with contextlib.suppress(DamagedError):
                self._scores[step] = self._score(read_meta(self.directory / str(step))["metrics"])

    @staticmethod
    def newest(workdir: str | os.PathLike) -> dict | None:
        """Returns the document of the newest step that can be read, or None; all processes must ask.

        Raises:
          CheckpointError: it is of another format.
        """
        folder = checkpoint_folder(workdir)
        for step in _same_everywhere(sorted((int(p.name) for p in numbered(folder)), reverse=True)):
            with contextlib.suppress(DamagedError):
                return _read_meta_everywhere(folder / str(step))
        return None

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
                with context():
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
        steps = sorted((int(p.name) for p in numbered(self.directory)), reverse=True)
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
        if jax.process_count() > 1 and issubclass(kind, jax.errors.JaxRuntimeError):
            return None  # another process is gone: a save of all would wait for it
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
        free, advice = "", advice_for(error)
        if advice == advice_for(OSError(errno.ENOSPC, "")):
            with contextlib.suppress(OSError):
                free = f" {shutil.disk_usage(self.directory).free / 2**20:,.1f} MiB were free there."
        if jax.process_index() == 0:
            with contextlib.suppress(OSError):  # what could not be written can often not be deleted either
                self._remove_unfinished()
        last = max(self._scores, default=None)
        goes_on = f"goes on from step {last}" if last is not None else "begins anew"
        return CheckpointError(
            f"the checkpoint of step {step} could not be written to {self.directory}: {first_line(error)}.{free}"
            f"{advice} Run the same command again when that is mended: it {goes_on}."
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
            for path in numbered(self.directory):
                if int(path.name) not in self._scores and int(path.name) < steps[-1]:
                    (path / MARKER).unlink(missing_ok=True)  # from here on it does not count
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


def _hush_orbax() -> None:
    """Keeps tracebacks of Orbax's threads off the screen: what stops a save comes as one `CheckpointError`."""
    logger = logging.getLogger("absl")
    if any(isinstance(known, _NoOrbaxErrors) for known in logger.filters):
        return
    logger.addFilter(_NoOrbaxErrors())
    # Of tasks that a failed save leaves behind; nothing else in a run uses coroutines.
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    before = threading.excepthook

    def after(args: Any) -> None:
        if not type(args.thread).__module__.startswith("orbax."):
            before(args)

    threading.excepthook = after


class _NoOrbaxErrors(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno < logging.ERROR or f"{os.sep}orbax{os.sep}" not in record.pathname


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
