"""Where a run folder may be: on a disk of this machine. Imports nothing heavy: commands declare arguments with it."""

import argparse
import os
import re
from pathlib import Path

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # a Path has one slash where the URL had two; "C:/" is a drive


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
