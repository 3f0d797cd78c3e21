"""Metric rows to Weights & Biases (`log.wandb`), for which the package `wandb` must be installed."""

import importlib
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from xmodal.messages import ConfigError
from xmodal.reporting.files import read_json, write_json

ID = "wandb.json"  # in the run folder: the identity under which the run is continued


def library(project: str) -> types.ModuleType:
    """Returns the module `wandb`.

    Raises:
      ConfigError: it is not installed.
    """
    try:
        return importlib.import_module("wandb")
    except ImportError as error:
        raise ConfigError(
            f"log.wandb={project!r}, and wandb cannot be imported ({error}): `pip install 'xmodal[wandb]'`, or leave "
            "log.wandb empty"
        ) from error


class WandbRun:
    """One run of a project, named as the run folder; a resumed run goes on with it.

    Training never waits for the server and never ends for it: without a network or a login the rows are kept in the run
    folder, and `wandb sync` uploads them later; once a row cannot be handed over, the rest is left out.

    Rows that were logged before, after a resume from an older checkpoint, wandb leaves out: they would be the same.

    Args:
      project: of W&B.
      workdir: the run folder, with `config.json`.
    """

    def __init__(self, project: str, workdir: Path):
        wandb = library(project)
        identity = read_json(workdir / ID, default={}).get("id") or uuid4().hex
        write_json(workdir / ID, {"project": project, "id": identity})
        how = dict(
            project=project, name=workdir.resolve().name, id=identity, resume="allow", dir=str(workdir),
            config=read_json(workdir / "config.json", default={}),
        )  # fmt: skip
        try:
            self._run = wandb.init(**how)
        except Exception as error:  # no login, no network, a refused project
            print(f"wandb: kept in {workdir / 'wandb'} ({_first_line(error)}); upload it with `wandb sync`", flush=True)
            self._run = wandb.init(**how, mode="offline")

    def write(self, step: int, samples: int, scalars: Mapping[str, float], alarms: Sequence[str]) -> None:
        """Hands a row over; alarms become alerts."""
        if self._run is None:
            return
        try:
            self._run.log({"samples": samples, **scalars}, step=step)
            for message in alarms:
                self._run.alert(title=f"step {step}", text=message)
        except Exception as error:
            self._give_up(error)

    def close(self) -> None:
        """Uploads what is left."""
        run, self._run = self._run, None
        if run is not None:
            try:
                run.finish()
            except Exception as error:
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._run: Any = None
        print(f"wandb: no more rows are logged ({_first_line(error)}); metrics.jsonl has all of them", flush=True)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
