"""Rebuild report.html of a run from the files in its folder.

python -m xmodal report --workdir runs/demo
"""

import argparse

from xmodal.folders import run_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("--workdir", required=True, type=run_folder, help="run folder")


def run(args: argparse.Namespace) -> None:
    """Runs the command."""
    from xmodal.config import ConfigError
    from xmodal.reporting.report import build_report

    if not (args.workdir / "config.json").is_file():
        raise ConfigError(f"{args.workdir} is not a run folder: it has no config.json")
    try:
        print(build_report(args.workdir))
    except ValueError as error:
        raise ConfigError(str(error)) from error
