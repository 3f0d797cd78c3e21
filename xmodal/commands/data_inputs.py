"""How the data commands are told what to read: a recipe, or the data themselves."""

import argparse
import contextlib
import shlex
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from xmodal.config import ConfigError
from xmodal.messages import UsageError

_OF_SOURCE = (
    "image",
    "caption",
    "root",
    "columns",
    "lines",
    "split",
    "data_dir",
    "filter",
    "unique",
    "keep",
    "drop",
    "seed",
    "scale",
)
DEMO_TOKENIZER = "data_pipelines/emoji/tokenizer.json"  # where tokens have to be made, whichever they are
NAME = "data"  # of the source that positional arguments make


def add_source_arguments(parser: argparse.ArgumentParser, kind: str) -> None:
    """Declares what describes data that have no recipe."""
    source = parser.add_argument_group("input")
    text = dict(metavar="NAME")
    source.add_argument("--type", help=f"tar, files, tfds, or synthetic with a number; {kind}")
    source.add_argument("--image", help="column, feature or member of the image", **text)
    source.add_argument("--texts", action="store_true", help="texts alone: images are neither asked for nor read")
    source.add_argument("--caption", help="column, feature, json field or txt member of the caption", **text)
    source.add_argument("--template", metavar="TEXT", help="caption made of fields, such as 'a photo of a {label}'")
    lines = dict(action="store_true", default=None)
    source.add_argument("--lines", help="each line of a text is a caption of its own", **lines)
    source.add_argument("--columns", metavar="A,B,...", help="columns of CSV and TSV files without a header")
    source.add_argument("--root", metavar="DIR", help="folder that relative image paths start from")
    source.add_argument("--filter", metavar="CONDITION", help="keep only samples such as 'width >= 200'")
    source.add_argument("--unique", metavar="KIND", help="keep only the first with the same key, caption or image")
    source.add_argument("--keep", metavar="FILE", help="list of the samples to keep, as `data filter` writes it")
    source.add_argument("--drop", metavar="FILE", help="list of samples to leave out, as `data duplicates` writes it")
    source.add_argument("--split", help="split of a tfds data set, train by default", **text)
    source.add_argument("--data-dir", metavar="DIR", help="where tfds data sets were prepared")
    source.add_argument("--seed", type=int, metavar="N", help="of synthetic data")
    source.add_argument("--scale", type=float, metavar="X", help="of synthetic images")


def inputs_of(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Returns what the arguments say samples have, as `data.inputs`: an image and its caption, or a text alone."""
    image = {} if getattr(args, "texts", False) else dict(image=dict(type="image"))
    return image | dict(text=dict(type="text"))


def source_entry(args: argparse.Namespace, kind: str) -> dict[str, Any]:
    """Returns what the arguments describe as an entry of `data.sources`.

    Args:
        args: of `add_source_arguments`, with the positional `inputs`.
        kind: type of the source where `--type` does not say.
    """
    kind = args.type or kind
    entry = {name: getattr(args, name) for name in _OF_SOURCE if getattr(args, name) is not None}
    if args.columns:
        entry["columns"] = tuple(args.columns.split(","))
    member = kind == "tar" and str(args.caption).endswith("txt")
    if kind in ("tar", "synthetic") and args.caption and not member:
        entry["templates"] = ((1.0, f"{{{entry.pop('caption')}}}"),)
    if args.template:
        entry["templates"] = ((1.0, args.template),)
    if kind not in ("tfds", "synthetic"):
        return dict(type=kind, urls=tuple(args.inputs)) | entry
    if len(args.inputs) > 1:
        raise UsageError(f"--type {kind} takes one input and not {len(args.inputs)}: {' '.join(args.inputs)}")
    (only,) = args.inputs
    if kind == "tfds":
        return dict(type="tfds", dataset=only) | entry
    if not only.isdigit():
        raise UsageError(f"--type synthetic takes the number of samples to make, not {only!r}")
    return dict(type="synthetic", samples=int(only)) | entry


def add_data_arguments(parser: argparse.ArgumentParser, workers: bool = True, tokenizer: bool = True) -> None:
    """Declares the two ways to name data, and options that not all need: of processes, and of what makes tokens."""
    parser.add_argument("inputs", nargs="*", metavar="DATA", help="shards such as 'shards/*.tar', folders or lists")
    parser.add_argument("--config", metavar="FILE.py[:VARIANT]", help="or a recipe: its data.sources")
    if tokenizer:
        parser.add_argument("--tokenizer", metavar="FILE", help="tokenizer.json, where no recipe names one")
    if workers:
        parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes; all cores by default")
    add_source_arguments(parser, "told by the names by default")
    parser.epilog = "--config.KEY=VALUE sets any option of configs/base.py, with or without a recipe."


def add_engine_arguments(group: argparse._ArgumentGroup) -> None:
    """Declares what chooses between this machine and Apache Beam."""
    group.add_argument("--engine", choices=("local", "beam"), default="local", help="beam: Apache Beam")
    group.add_argument("--runner", default="", metavar="NAME", help="of Beam: DirectRunner, DataflowRunner, ...")
    group.add_argument(
        "--beam-options", default=(), nargs=argparse.REMAINDER, metavar="OPTION",
        help="of Beam, such as --project=... --region=...; all that follows is taken for one",
    )  # fmt: skip


def check_engine(args: argparse.Namespace) -> None:
    """Raises ConfigError for options of Beam without Beam."""
    if args.engine != "beam" and (args.runner or args.beam_options):
        raise UsageError("--runner and --beam-options are for --engine beam")


def beam_arguments(args: argparse.Namespace) -> list[str]:
    """Returns what is meant for Beam."""
    runner = [f"--runner={args.runner}"] if args.runner else []
    return [*runner, *shlex.split(" ".join(args.beam_options))]  # quoted together or not


def beam_options_of(args: argparse.Namespace) -> Any:
    """Returns the options of Beam. Raises DataError where it is not installed."""
    from data_pipelines.prepare.beam import beam_options

    return beam_options(beam_arguments(args))


def load_data(args: argparse.Namespace) -> ConfigDict:
    """Returns the whole config whose data section the arguments name.

    Raises:
        ConfigError: nothing is named, or a recipe and data are, or an option is wrong.
    """
    from xmodal.config import load_config
    from xmodal.configs import base

    if bool(args.inputs) == bool(args.config):
        both = "a recipe and data are named; give one of them" if args.config else "no data are named; give"
        raise UsageError(f"{both}: shards such as 'shards/*.tar', or --config configs/RECIPE.py")
    if getattr(args, "workers", 0) < 0:
        raise UsageError(f"--workers is {args.workers}; expected a number from 1, or 0 for all cores")
    if args.config:
        _refuse_source_arguments(args)
        config = load_config(args.config, args.overrides)
    else:
        from data_pipelines.sources.kinds import guess

        config = load_config(base.__file__, args.overrides, inputs_of(args))
        config.data.sources = {NAME: source_entry(args, guess(args.inputs))}
    if getattr(args, "tokenizer", None):
        name_tokenizers(config, args.tokenizer, again=True)
    if not entries(config):
        raise ConfigError(f"data.sources of {args.config} names no data with a weight above 0")
    return config


def name_tokenizers(config: ConfigDict, file: str, again: bool = False) -> None:
    """Gives the texts of a config a tokenizer: those without one, or with `again` all."""
    for entry in config.data.inputs.values():
        if "tokenizer" in entry and (again or not entry["tokenizer"]):
            entry["tokenizer"] = file


def entries(config: ConfigDict) -> dict[str, Any]:
    """Returns the entries of `data.sources` that are used."""
    return {name: entry for name, entry in config.data.sources.items() if entry.get("weight", 1.0) != 0}


def weights(config: ConfigDict, epoch_size: int) -> dict[str, float]:
    """Returns the share of the stream that each source has at the start of a run.

    Args:
        config: the whole config.
        epoch_size: samples, for curricula that count in epochs.
    """
    from data_pipelines.order.mixture import Mixture, curriculum
    from xmodal.training.durations import samples_of

    start = lambda value: samples_of(value, config, epoch_size)
    curricula = [curriculum(entry.get("weight", 1.0), name, start) for name, entry in entries(config).items()]
    names = list(entries(config))
    return dict(zip(names, Mixture(curricula, names).shares.tolist()))


@contextlib.contextmanager
def open_sources(config: ConfigDict, **how: Any) -> Iterator[list]:
    """Opens all sources of a config, as `open_source` is told to, and closes their files."""
    from data_pipelines.io.storage import Files

    with Files(**config.data.remote) as files:
        yield sources_of(config, files, **how)


def sources_of(config: ConfigDict, files: Any, **how: Any) -> list:
    """Opens all sources of a config with files that the caller closes."""
    from data_pipelines.sources import open_source

    return [open_source(name, entry, config.data, files, **how) for name, entry in entries(config).items()]


def title_of(args: argparse.Namespace) -> str:
    """Returns what the data are called in headlines."""
    if args.type in ("tfds", "synthetic"):
        return f"{args.type} {args.inputs[0]}"
    return args.config or " ".join(args.inputs)


def processes(args: argparse.Namespace) -> int:
    """Returns the number of processes to use."""
    from data_pipelines.host import cores

    return args.workers or cores()


def _refuse_source_arguments(args: argparse.Namespace) -> None:
    if args.texts:
        raise UsageError("--texts describes data that have no recipe; with one, leave others out of data.inputs")
    given = [name for name in ("type", "template", *_OF_SOURCE) if getattr(args, name) is not None]
    if given:
        flag = given[0].replace("_", "-")
        raise UsageError(
            f"--{flag} describes data that have no recipe; with one, use --config.data.sources.NAME.{given[0]}=..."
        )
