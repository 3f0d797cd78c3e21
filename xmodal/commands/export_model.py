"""Take a model out: a Hugging Face or open_clip folder, or programs that need JAX alone.

python -m xmodal export --workdir runs/clip --to hf --out exported/clip
python -m xmodal export --workdir runs/clip --to open_clip --average last:3 --dtype bf16 --out exported/clip_oc
python -m xmodal export --workdir runs/clip --to jax --no-ema --step 5000 --out exported/clip_jax
python -m xmodal export --workdir runs/tuned --to hf --interpolate 0.5 --out exported/wise

What was written is read back and compared with the live model before the folder gets its name.
"""

import argparse
import pathlib


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("--workdir", required=True, help="run folder, or an imported model")
    parser.add_argument("--to", required=True, choices=("hf", "open_clip", "jax"), help="format")
    parser.add_argument("--out", required=True, type=pathlib.Path, metavar="DIR", help="folder to make")
    parser.add_argument("--dtype", default="f32", choices=("f32", "bf16"), help="of the weights")
    parser.add_argument("--step", type=int, help="checkpoint; the newest good one by default")
    parser.add_argument("--average", metavar="STEP,STEP,...|last:N", help="mean of several checkpoints")
    parser.add_argument(
        "--interpolate", type=float, metavar="SHARE",
        help="weights between those that the run started from (0) and its own (1): WiSE-FT",
    )  # fmt: skip
    parser.add_argument("--start", metavar="DIR", help="where the run started from; by default its init_from")
    parser.add_argument(
        "--ema", action=argparse.BooleanOptionalAction,
        help="averaged or trained weights of the run; by default those that its evaluations used",
    )  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Runs the command."""
    from xmodal.interop.export import export
    from xmodal.interop.model_card import Card
    from xmodal.reporting.summary import print_summary

    stored, weights = _chosen(args)
    done = export(stored, args.out, to=args.to, dtype=args.dtype, card=Card(weights, _figures(args, stored)))
    print_summary(
        f"xmodal export · {done.folder}",
        {
            "format": done.kind,
            "weights": f"{weights or 'as they were'}, {args.dtype}",
            "read back": {kind: f"differs by {value:.1e}" for kind, value in done.differences.items()},
            "note": done.notes,
        },
    )


def _chosen(args: argparse.Namespace):
    """Returns the model to export and what its weights are."""
    from xmodal.interop.export import average
    from xmodal.interop.folder import open_stored

    kind = {True: ", averaged weights", False: ", trained weights", None: ""}[args.ema]
    if args.average is None:
        stored = open_stored(args.workdir, step=args.step, ema=args.ema)
        weights = "" if stored.step is None else f"step {stored.step}{kind}"
    else:
        steps = _steps(args)
        stored = average(open_stored(args.workdir, step=step, ema=args.ema) for step in steps)
        weights = f"mean of steps {', '.join(map(str, steps))}{kind}"
    return (stored, weights) if args.interpolate is None else _interpolated(args, stored, weights)


def _interpolated(args: argparse.Namespace, stored, weights: str):
    from xmodal.config import ConfigError
    from xmodal.interop.export import interpolate
    from xmodal.interop.folder import open_stored

    start = args.start or stored.config.get("init_from", "")
    if not start:
        raise ConfigError(f"--interpolate: {args.workdir} started from random weights; name others with --start DIR")
    return interpolate(open_stored(start), stored, args.interpolate), (
        f"{args.interpolate:g} of the way from {start} to {weights or 'the weights as they were'}"
    )


def _steps(args: argparse.Namespace) -> list[int]:
    from xmodal.config import ConfigError
    from xmodal.messages import UsageError
    from xmodal.training.saved_steps import checkpoint_folder, list_steps

    if args.step is not None:
        raise UsageError("--step and --average exclude each other")
    there = list_steps(checkpoint_folder(args.workdir))
    last, colon, number = args.average.partition("last:")
    try:
        steps = there[-int(number) :] if colon and not last else [int(step) for step in args.average.split(",")]
    except ValueError:
        raise UsageError(f"--average {args.average}: expected steps such as 100,200 or last:3") from None
    missing = [step for step in steps if step not in there]
    if missing or not steps or (colon and len(steps) != int(number)):
        raise ConfigError(
            f"--average {args.average}: {args.workdir} has the checkpoints {', '.join(map(str, there)) or 'none'}"
        )
    return steps


def _figures(args: argparse.Namespace, stored) -> dict:
    """The run's final figures, if these are the weights that they were measured with."""
    from xmodal.reporting.results import read_results

    results = {} if stored.step is None or args.ema is not None else read_results(args.workdir)
    return results if results.get("step") == stored.step else {}
