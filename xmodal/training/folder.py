"""The run folder as a place: what may be one, and what a killed run has left in it."""

import argparse
import contextlib
import os
import re
import tempfile
from pathlib import Path

from xmodal.config import ConfigError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # a Path has one slash where the URL had two; "C:/" is a drive
_LEFT = re.compile(r"\..+\.(\d+|[0-9a-f]{32})\.tmp")  # as `reporting.files.write_bytes` and the lock name them


def run_folder(text: str) -> Path:
    """The type of an argument that names a run folder.

    Raises:
      argparse.ArgumentTypeError: it is a URL.
    """
    if problem := not_local(text):
        raise argparse.ArgumentTypeError(problem)
    return Path(text)


def not_local(where: str | os.PathLike) -> str:
    """Why a run folder cannot be there, or "": a bucket would otherwise become a local folder called "gs:"."""
    if not _URL.match(os.fspath(where)):
        return ""
    return (
        f"{where}: a run folder is on a disk of this machine or a mounted one, not at a URL; name a local folder, "
        "and copy it (or mount the bucket)"
    )


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
