"""Evaluate a run's checkpoint, with the evaluators of its config: the same code as during training.

python -m xmodal eval --workdir runs/demo
python -m xmodal eval --workdir runs/demo --step 500 --only unseen_vendor --json results_500.json
"""

import argparse
import pathlib


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="run folder")
    parser.add_argument("--step", type=int, help="checkpoint to evaluate; the newest good one by default")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="evaluators of the config to run; all by default")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="also write the nested results to this file")


def run(args: argparse.Namespace) -> None:
    """Runs the command; of several processes the first one speaks."""
    from xmodal.distributed.runtime import Runtime

    with Runtime.start("~/.cache/xmodal/jax") as runtime:
        results = evaluate(args.workdir, step=args.step, only=args.only)
        if runtime.process_index:
            return
    from xmodal.reporting.files import write_json
    from xmodal.reporting.summary import print_evaluation

    print_evaluation(results)
    if args.json:
        write_json(args.json, results)


def evaluate(workdir: pathlib.Path, *, step: int | None = None, only: list[str] | None = None) -> dict:
    """Evaluates a checkpoint from what it holds itself: config, tokenizer and weights.

    Args:
      workdir: the run folder.
      step: checkpoint; None takes the newest good one.
      only: names of evaluators; None runs all.

    Returns:
      Nested results as in results.json.
    """
    import jax

    from xmodal.config import ConfigError, did_you_mean
    from xmodal.distributed.mesh import make_mesh
    from xmodal.reporting.results import nest
    from xmodal.training.task import open_evaluators
    from xmodal.training.trained import load_run

    mesh = make_mesh(dict(data=-1, fsdp=1, tensor=1))
    with jax.set_mesh(mesh):
        run = load_run(workdir, mesh, step=step)
        unknown = [name for name in only or () if name not in run.config.evals]
        if unknown:
            known = ", ".join(run.config.evals)
            hint = did_you_mean(unknown[0], run.config.evals)
            raise ConfigError(f"{workdir} has no evaluator {unknown[0]!r}.{hint} Evaluators: {known}")
        for name in [name for name in run.config.evals if only and name not in only]:
            del run.config.evals[name]
        evaluators = open_evaluators(run.config, run.losses.model, mesh, run.losses.preprocess, run.tokenizer)
        metrics = {}
        for _, evaluator in evaluators.values():
            metrics |= evaluator(run.params).metrics
    return {"step": run.step, "samples": run.samples} | nest(metrics)
