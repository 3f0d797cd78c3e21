"""Trains a recipe: `python train.py --config configs/demo.py --workdir runs/demo`, which is `xmodal train`."""

import sys

from xmodal.__main__ import main as command


def main(argv: list[str]) -> int:
    """Runs the command line; returns the exit code."""
    return command(["train", *argv])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
