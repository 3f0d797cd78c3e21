"""What a run folder says about the run that began in it: what may change when it goes on, and what may not."""

import fnmatch
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipelines.stream.stream import Stream
from xmodal.checkpoints.reading import DamagedError
from xmodal.checkpoints.writing import Checkpoints
from xmodal.config import ConfigError, diff, from_json, with_new_options
from xmodal.training.init_from import Kept, completed, kept_out, start_from
from xmodal.training.providers import fingerprints
from xmodal.training.task import Task

# Options that do not change what is learned, but for rounding: how a run is computed, watched, measured and kept, and
# how long it is. All others are part of what a run is, and it goes on with other ones only when it is told to.
FREE = (
    "accumulation",
    "mesh.*",
    "model.*.remat",
    "schedule.total",
    "optimizer.max_nonfinite",
    "evals",
    "evals.*",
    "checkpoint.*",
    "log.*",
    "watchdog.*",
    "data.readers",
    "data.threads",
    "data.prefetch",
    "data.remote.*",
    "data.max_bad_share",
)
# Names of files whose content is compared instead: it may have moved. `_compare_contents` and the stream's fingerprint.
MOVABLE = ("data.inputs.*.tokenizer", "providers.*.model", "data.sources.*.urls")

BEGINNING = {"step": 0, "position": 0}


def check_changes(task: Task, stream: Stream, meta: Mapping[str, Any], workdir: Path, accept: bool) -> None:
    """Refuses to go on from a checkpoint with settings that change what is learned.

    Args:
      task: of this start.
      stream: its data.
      meta: the document of the newest checkpoint, or `BEGINNING`.
      workdir: the run folder.
      accept: go on all the same (`--accept-changes`).

    Raises:
      ConfigError: with the list of the changes.
    """
    if "config" not in meta:
        if (workdir / "results.json").exists() and not accept:
            raise ConfigError(
                f"--workdir {workdir} holds the results of a finished run and none of its checkpoints, so that run "
                "cannot go on, and its results would be overwritten. Name another --workdir, or add --accept-changes"
            )
        return
    changes = [line for line in _differences(task, stream, meta) if not _free(line, stream, meta)]
    if changes and not accept:
        listed = "\n  ".join(changes)
        raise ConfigError(
            f"--workdir {workdir} holds a run ({meta['step']} steps done) that was begun with other settings:\n  "
            f"{listed}\nName another --workdir for a new run, or take these back; --accept-changes goes on from the "
            "checkpoint with the new ones"
        )
    _compare_contents(task, meta)


def changes_since(task: Task, stream: Stream, meta: Mapping[str, Any]) -> list[str]:
    """Returns what is not as it was when the checkpoint was written, one line each."""
    return _differences(task, stream, meta) if "config" in meta else []


def newest_document(workdir: Path) -> dict:
    """Returns the document of the newest checkpoint that can be read, or that of a run that has yet to begin."""
    return Checkpoints.newest(workdir) or BEGINNING


def restore_or_init(task: Task, abstract: dict, checkpoints: Checkpoints) -> tuple[dict, dict, Kept]:
    """Returns the state to continue from, or a fresh one; the checkpoint's document; what checkpoints leave out.

    Raises:
      ConfigError: the checkpoint is of another model or optimizer.
      CheckpointError: all checkpoints are damaged.
    """
    restored = checkpoints.restore(kept_out(task).lean(abstract))
    if restored is not None:
        state, meta = restored
        state, kept = completed(task, abstract, state, meta)
        return state, meta, kept
    state, kept = task.init_sharded(abstract), Kept()
    if task.config.init_from:
        state, kept = start_from(task, state)
    return state, BEGINNING, kept


def _compare_contents(task: Task, meta: Mapping[str, Any]) -> None:
    if not {"tokenizers", "providers"} <= meta.keys():
        raise ConfigError("--workdir holds a run of an older version of xmodal, which cannot go on: name another one")
    before = {name: json.loads(text) for name, text in meta["tokenizers"].items()}
    for name, text in task.inputs.texts.items():
        if json.loads(text.vocabulary.json) != before.get(name):
            raise ConfigError(
                f"{text.where}.tokenizer: {text.tokenizer} is not the tokenizer that this run has trained with, so the "
                "learned tokens would mean others. Restore it (the run's tokenizer.json), or name another --workdir"
            )
    found = fingerprints(task.providers)
    for name, fingerprint in meta["providers"].items():
        if found.get(name) != fingerprint:
            raise ConfigError(
                f"providers.{name} is not what this run has learned from. A run that is still training changes; "
                "restore the model as it was, or name another --workdir"
            )


def _differences(task: Task, stream: Stream, meta: Mapping[str, Any]) -> list[str]:
    try:
        before = with_new_options(from_json(meta["config"]))
    except ConfigError:
        raise
    except ValueError as error:
        raise DamagedError(f"the config of checkpoint {meta['step']} cannot be read: {error}") from error
    changes = diff(before, task.config)
    if meta["data"] != stream.fingerprint:
        changes.append(
            "the training data or their order: from here on, samples may repeat or be left out until the epoch ends"
        )
    return changes


def _free(line: str, stream: Stream, meta: Mapping[str, Any]) -> bool:
    """Whether a line of `_differences` may be without a word."""
    key, same_data = line.partition(": ")[0], meta["data"] == stream.fingerprint
    return any(fnmatch.fnmatchcase(key, p) for p in (*FREE, *(MOVABLE if same_data else MOVABLE[:2])))
