"""Trains a recipe: `python train.py --config configs/demo.py --workdir runs/demo`, which is `xmodal train`."""

import sys

from xmodal.__main__ import main as command
from xmodal.errors import end_process


def main(argv: list[str]) -> int:
    """Runs the command line; returns the exit code."""
    return command(["train", *argv])


if __name__ == "__main__":
    end_process(main, sys.argv[1:])
