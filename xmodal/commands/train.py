"""Train a recipe, or continue the run that a folder holds.

python -m xmodal train --config configs/demo.py --workdir runs/demo --config.optimizer.lr=3e-4

The same command continues a run that was interrupted. `--config FILE.py:VARIANT` chooses a variant of a recipe; every
`--config.KEY=VALUE` changes one option of configs/base.py or of the recipe. `python train.py` does the same.
"""

import argparse
import sys

from xmodal.folders import run_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("--config", required=True, metavar="FILE.py[:VARIANT]", help="the recipe")
    parser.add_argument("--workdir", required=True, type=run_folder, help="run folder, made or continued")
    parser.add_argument(
        "--accept-changes", action="store_true",
        help="continue a run with settings that change what it learns (data, model, optimizer, ...)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Runs the recipe to its last step; returns the exit code."""
    from xmodal.training.command import run_training

    try:
        return run_training(args.config, args.overrides, args.workdir, args.accept_changes)
    except BrokenPipeError:
        print(
            "error: standard output was closed by its reader (such as `| head`), so the run ended; the same command "
            "goes on from the last checkpoint",
            file=sys.stderr,
        )
        raise
