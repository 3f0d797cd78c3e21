"""Options that choose the weights of a model: a checkpoint, a mean of several, or what lies between two models."""

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xmodal.stored.base import Stored


def add_weight_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options; `chosen` reads them."""
    weights = parser.add_argument_group("weights")
    weights.add_argument("--step", type=int, help="checkpoint of a run; the newest good one by default")
    weights.add_argument("--average", metavar="STEP,STEP,...|last:N", help="mean of several checkpoints of a run")
    weights.add_argument(
        "--interpolate", type=float, metavar="SHARE",
        help="weights between those that the run started from (0) and its own (1): WiSE-FT",
    )  # fmt: skip
    weights.add_argument("--start", metavar="DIR", help="where the run started from; by default its init_from")
    weights.add_argument(
        "--ema", action=argparse.BooleanOptionalAction,
        help="averaged or trained weights of the run; by default those that its evaluations used",
    )  # fmt: skip


def are_mixed(args: argparse.Namespace) -> bool:
    """Whether the weights are made of several models; raises a UsageError for a start that nothing starts from."""
    from xmodal.messages import UsageError

    if args.start and args.interpolate is None:
        raise UsageError("--start says where --interpolate SHARE begins: give both")
    return args.average is not None or args.interpolate is not None


def chosen(where: str, args: argparse.Namespace) -> "tuple[Stored, str]":
    """Returns the model with these weights, and what they are, such as "step 500, averaged weights".

    Args:
      where: a run folder, or a model folder.
      args: with the options of `add_weight_arguments`.

    Raises:
      ConfigError: there is no such model or checkpoint, or the models do not have the same weights.
    """
    from xmodal.interop.averaging import average
    from xmodal.stored.opening import open_stored

    are_mixed(args)
    kind = {True: ", averaged weights", False: ", trained weights", None: ""}[args.ema]
    if args.average is None:
        stored = open_stored(where, step=args.step, ema=args.ema)
        weights = "" if stored.step is None else f"step {stored.step}{kind}"
    else:
        steps = _steps(where, args)
        stored = average(open_stored(where, step=step, ema=args.ema) for step in steps)
        weights = f"mean of steps {', '.join(map(str, steps))}{kind}"
    return (stored, weights) if args.interpolate is None else _interpolated(where, args, stored, weights)


def _interpolated(where: str, args: argparse.Namespace, stored: Any, weights: str) -> "tuple[Stored, str]":
    from xmodal.config import ConfigError
    from xmodal.interop.averaging import interpolate
    from xmodal.stored.opening import open_stored
    from xmodal.stored.starting import Starting

    start = args.start or stored.config.init_from
    if not start:
        raise ConfigError(f"--interpolate: {where} started from random weights; name others with --start DIR")
    if not isinstance(start, str):
        places = Starting.of(stored.config)
        raise ConfigError(f"--interpolate: {where} started from {places}; name one folder of such a model with --start")
    return interpolate(open_stored(start), stored, args.interpolate), (
        f"{args.interpolate:g} of the way from {start} to {weights or 'the weights as they were'}"
    )


def _steps(where: str, args: argparse.Namespace) -> list[int]:
    from xmodal.checkpoints.reading import checkpoint_folder, list_steps
    from xmodal.config import ConfigError
    from xmodal.messages import UsageError

    if args.step is not None:
        raise UsageError("--step and --average exclude each other")
    there = list_steps(checkpoint_folder(where))
    last, colon, number = args.average.partition("last:")
    try:
        steps = there[-int(number) :] if colon and not last else [int(step) for step in args.average.split(",")]
    except ValueError:
        raise UsageError(f"--average {args.average}: expected steps such as 100,200 or last:3") from None
    missing = [step for step in steps if step not in there]
    if missing or not steps or (colon and len(steps) != int(number)):
        few = "; a run keeps the newest checkpoint.keep_last=N of them: raise that to average more" if colon else ""
        raise ConfigError(
            f"--average {args.average}: {where} has the checkpoints {', '.join(map(str, there)) or 'none'}{few}"
        )
    return steps
