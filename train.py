"""Trains a recipe: `python train.py --config configs/demo.py --workdir runs/demo --config.optimizer.lr=3e-4`.

The same command continues a run that was interrupted. `--config FILE.py:VARIANT` chooses a variant of a recipe;
every `--config.KEY=VALUE` changes one option of configs/base.py or of the recipe.
"""

import argparse
import pathlib
import sys

from xmodal.config import load_config
from xmodal.distributed.runtime import Runtime
from xmodal.errors import user_errors


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Splits the command line into our arguments and the overrides of options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, metavar="FILE.py[:VARIANT]", help="the recipe")
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="run folder, made or continued")
    args, overrides = parser.parse_known_args(argv)
    stray = [text for text in overrides if not text.startswith("--config.")]
    if stray:
        parser.error(f"unknown arguments: {' '.join(stray)}; options are set with --config.KEY=VALUE")
    return args, overrides


def main(argv: list[str]) -> int:
    """Runs the command line; returns the exit code."""
    args, overrides = parse(argv)
    with user_errors():
        config = load_config(args.config, overrides)
        with Runtime.start(config.log.compile_cache) as runtime:
            from xmodal.training.loop import train  # after the runtime: JAX must not be touched before it

            train(config, args.workdir, runtime)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
