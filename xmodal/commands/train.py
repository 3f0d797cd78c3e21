"""Train a recipe, or continue the run that a folder holds.

python -m xmodal train --config configs/demo.py --workdir runs/demo --config.optimizer.lr=3e-4

The same command continues a run that was interrupted. `--config FILE.py:VARIANT` chooses a variant of a recipe; every
`--config.KEY=VALUE` changes one option of configs/base.py or of the recipe. `python train.py` does the same.
"""

import argparse
import pathlib


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("--config", required=True, metavar="FILE.py[:VARIANT]", help="the recipe")
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="run folder, made or continued")


def run(args: argparse.Namespace) -> None:
    """Runs the recipe to its last step."""
    from xmodal.config import load_config
    from xmodal.distributed.runtime import Runtime

    config = load_config(args.config, args.overrides)
    with Runtime.start(config.log.compile_cache) as runtime:
        from xmodal.training.loop import train  # after the runtime: JAX must not be touched before it

        train(config, args.workdir, runtime)
