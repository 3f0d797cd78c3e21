"""Evaluate any model: a run with its own evaluators, or a run, an import or a Hugging Face folder with a suite.

python -m xmodal eval --model runs/demo
python -m xmodal eval --model runs/demo --step 500 --only unseen_vendor --json results_500.json
python -m xmodal eval --model hf:clip --suite configs/suites/emoji.json --json clip.json
python -m xmodal eval --model models/clip_b32 --suite suite.json --json figures --format clip_benchmark
python -m xmodal eval --model runs/tuned --interpolate 0.5 --suite suite.json     # between the start and the run
python -m xmodal eval --model runs/demo --average last:3                          # the mean of three checkpoints

A suite is a JSON file of evaluators with data of their own (docs/evaluation.md). Pictures and texts are prepared as the
model wants it.
"""

import argparse
import functools
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from xmodal.commands.weights import add_weight_arguments, are_mixed, chosen

if TYPE_CHECKING:
    from xmodal.evaluation.base import EvalResult
    from xmodal.stored.base import Stored


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument(
        "--model", "--workdir", dest="model", required=True, metavar="WHERE",
        help="run folder, imported or exported folder, hf:DIR or open_clip:DIR",
    )  # fmt: skip
    parser.add_argument("--suite", type=pathlib.Path, metavar="FILE", help="evaluators to run instead of the run's own")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="evaluators to run; all by default")
    parser.add_argument("--json", type=pathlib.Path, metavar="PATH", help="also write the results there")
    parser.add_argument(
        "--format", choices=("xmodal", "clip_benchmark"), default="xmodal",
        help="of --json: a file as results.json, or a folder with a file for each evaluator as CLIP_benchmark has them",
    )  # fmt: skip
    parser.add_argument(
        "--intervals", choices=("bca", "percentile", "none"), default="bca",
        help="95 %% bootstrap intervals of the figures",
    )  # fmt: skip
    add_weight_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Runs the command; of several processes the first one speaks."""
    from xmodal.distributed.runtime import Runtime
    from xmodal.messages import UsageError

    if args.format == "clip_benchmark" and not args.json:
        raise UsageError("--format clip_benchmark writes a folder of files: name it with --json")
    with Runtime.start("~/.cache/xmodal/jax") as runtime:
        if are_mixed(args) or args.ema is not None:
            stored, weights = chosen(args.model, args)
            model, step = stored, None
        else:
            model, step, weights = args.model, args.step, ""
        options = dict(suite=args.suite, step=step, only=args.only, intervals=args.intervals)
        found = evaluate(model, weights=weights, **options)
        if runtime.process_index:
            return
    from xmodal.reporting.clip_benchmark import write_documents
    from xmodal.reporting.results import write_results
    from xmodal.reporting.summary import print_evaluation

    print_evaluation(found.results)
    if args.json and args.format == "clip_benchmark":
        write_documents(args.json, args.model, found.results)
    elif args.json:
        write_results(args.json.parent, found.results, found.scores, args.json.name)


class Evaluation(NamedTuple):
    """Nested results as in results.json, and what the queries behind them scored."""

    results: dict[str, Any]
    scores: dict[str, Any]


def evaluate(
    model: "str | pathlib.Path | Stored",
    *,
    weights: str = "",
    suite: pathlib.Path | None = None,
    step: int | None = None,
    only: list[str] | None = None,
    intervals: str = "bca",
) -> Evaluation:
    """Evaluates a model from what is stored with it: config, tokenizer and weights.

    Args:
      model: a run folder, an imported or exported folder, "hf:DIR" or "open_clip:DIR"; or an open one.
      weights: what the weights of an open one are, for the results.
      suite: file of evaluators; None takes those of the run.
      step: checkpoint of a run; None takes the newest good one.
      only: names of evaluators; None runs all.
      intervals: method of the intervals, see `xmodal.reporting.bootstrap`.

    Raises:
      ConfigError: there is no such model, suite or evaluator, or the two do not fit.
    """
    import jax

    from xmodal.commands.subject import Subject, open_subject, read_suite
    from xmodal.distributed.mesh import make_mesh
    from xmodal.evaluation.opening import open_evaluators
    from xmodal.live import Live
    from xmodal.reporting.results import results_of
    from xmodal.stored.base import Stored

    mesh = make_mesh(dict(data=-1, fsdp=1, tensor=1))
    with jax.set_mesh(mesh):
        if isinstance(model, Stored):
            subject = Subject(Live.place(model, mesh), {"model": model.origin, "weights": weights})
        else:
            subject = open_subject(model, mesh, step=step)
        config, head = subject.live.config, dict(subject.head)
        if suite:
            config, head = read_suite(suite, config), head | {"suite": str(suite)}
        _choose(config, only, suite or (model.origin if isinstance(model, Stored) else model))
        evaluators = open_evaluators(config, subject.live)
        metrics, scores, details = {}, {}, {}
        for name, (_, evaluator) in evaluators.items():
            found = _told(name, evaluator, subject.live.params)
            metrics, scores, details = metrics | found.metrics, scores | found.scores, details | found.details
    return Evaluation(results_of(head, metrics, scores, details, intervals), scores)


def _told(name: str, evaluator: "Callable[[Any], EvalResult]", params: Any) -> "EvalResult":
    """Runs one evaluator, and says so before and after; of several processes the first one speaks."""
    import jax

    from xmodal.reporting.during import evaluation_lines

    say = functools.partial(print, flush=True) if jax.process_index() == 0 else lambda line: None
    say(f"evaluating {name}")
    found = evaluator(params)
    for line in evaluation_lines(None, found.metrics):
        say(f"  {line}")
    return found


def _choose(config: Any, only: list[str] | None, where: object) -> None:
    """Leaves the evaluators that are wanted in a config."""
    from xmodal.config import ConfigError, did_you_mean

    known = ", ".join(config.evals)
    if not config.evals:
        raise ConfigError(f"{where} has no evaluators; name some with --suite FILE, such as configs/suites/emoji.json")
    for name in [name for name in only or () if name not in config.evals]:
        hint = did_you_mean(name, config.evals)
        raise ConfigError(f"{where} has no evaluator {name!r}.{hint} Evaluators: {known}")
    for name in [name for name in config.evals if only and name not in only]:
        del config.evals[name]
