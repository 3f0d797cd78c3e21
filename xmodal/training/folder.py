"""The run folder as a place: what may be one, and what a killed run has left in it."""

import contextlib
import re
import tempfile
from pathlib import Path

from xmodal.config import ConfigError
from xmodal.folders import not_local

_LEFT = re.compile(r"\..+\.(\d+|[0-9a-f]{32})\.tmp")  # as `reporting.files.write_bytes` and the lock name them


def make_folder(workdir: Path) -> None:
    """Makes the run folder and tries whether it can be written, before anything is spent on the run.

    Raises:
      ConfigError: it cannot.
    """
    if problem := not_local(workdir):
        raise ConfigError(f"--workdir {problem}")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            pass
    except OSError as error:
        raise ConfigError(
            f"--workdir {workdir}: no run folder can be made or written there ({error.strerror}); name another one"
        ) from error


def remove_left(workdir: Path) -> None:
    """Deletes files that a killed run was writing; only the run that holds the folder's lock may."""
    for path in workdir.iterdir():
        if _LEFT.fullmatch(path.name):
            with contextlib.suppress(OSError):
                path.unlink()
