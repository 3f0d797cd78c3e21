"""Trains a recipe: `python train.py --config configs/demo.py --workdir runs/demo --config.optimizer.lr=3e-4`.

The same command continues a run that was interrupted. `--config FILE.py:VARIANT` chooses a variant of a recipe;
every `--config.KEY=VALUE` changes one option of configs/base.py or of the recipe.
"""

import argparse
import sys

from xmodal.errors import end_process, user_errors
from xmodal.training.command import run_training
from xmodal.training.folder import run_folder


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Splits the command line into our arguments and the overrides of options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, metavar="FILE.py[:VARIANT]", help="the recipe")
    parser.add_argument("--workdir", required=True, type=run_folder, help="run folder, made or continued")
    parser.add_argument(
        "--accept-changes", action="store_true",
        help="continue a run with settings that change what it learns (data, model, optimizer, ...)",
    )  # fmt: skip
    args, overrides = parser.parse_known_args(argv)
    stray = [text for text in overrides if not text.startswith("--config.")]
    if stray:
        parser.error(f"unknown arguments: {' '.join(stray)}; options are set with --config.KEY=VALUE")
    return args, overrides


def main(argv: list[str]) -> int:
    """Runs the command line; returns the exit code: 0 finished, 75 interrupted and saved, 1 error, 2 usage."""
    args, overrides = parse(argv)
    with user_errors():
        return run_training(args.config, overrides, args.workdir, args.accept_changes)


if __name__ == "__main__":
    end_process(main, sys.argv[1:])
