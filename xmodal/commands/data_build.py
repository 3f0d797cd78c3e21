"""Write webdataset shards from images that lie in folders, lists, tfds data sets or other shards.

python -m xmodal data build photos/*.csv --out shards --caption title          # paths or urls, which are fetched
python -m xmodal data build imagenet/train --out shards --template "a photo of a {label}"     # class folders
python -m xmodal data build 'train-*.parquet' --out shards                     # as Hugging Face writes them
python -m xmodal data build coco_captions --type tfds --template "{captions.text}" --out shards

Every row's other columns go to its .json member. A build that was interrupted goes on when the same command is given
again; the shards are the same bytes for any number of workers. `manifest.json` in the output says which rows of the
input went into which shard, and `skipped.jsonl` which rows were left out, and why.
"""

import argparse
import os
import re
import shlex
import sys
from collections.abc import Callable

from xmodal.config import ConfigError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
_OF_SOURCE = ("image", "caption", "root", "columns", "split", "data_dir", "filter", "seed", "scale")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    text = dict(metavar="NAME")
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="folders, lists, shards; a data set; or a number")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder or url of the shards")
    parser.add_argument("--type", default="files", help="files (default), tfds, tar, or synthetic with a number")
    source = parser.add_argument_group("input")
    source.add_argument("--image", help="column or feature of the image", **text)
    source.add_argument("--caption", help="column or feature of the caption", **text)
    source.add_argument("--template", metavar="TEXT", help="caption made of fields, such as 'a photo of a {label}'")
    source.add_argument("--columns", metavar="A,B,...", help="columns of CSV and TSV files without a header")
    source.add_argument("--root", metavar="DIR", help="folder that relative image paths start from")
    source.add_argument("--filter", metavar="CONDITION", help="keep only rows such as 'width >= 200'")
    source.add_argument("--split", help="split of a tfds data set, train by default", **text)
    source.add_argument("--data-dir", metavar="DIR", help="where tfds data sets were prepared")
    source.add_argument("--seed", type=int, metavar="N", help="of synthetic data")
    source.add_argument("--scale", type=float, metavar="X", help="of synthetic images")
    output = parser.add_argument_group("output")
    output.add_argument("--shard-bytes", type=_bytes, default="512Mi", metavar="SIZE", help="at most, such as 1G")
    output.add_argument("--shard-samples", type=int, default=10_000, metavar="N", help="at most")
    output.add_argument("--max-side", type=int, default=0, metavar="PIXELS", help="make larger images smaller")
    output.add_argument("--quality", type=int, default=0, metavar="1-100", help="of JPEGs that are made; alone: of all")
    work = parser.add_argument_group("work")
    work.add_argument(
        "--workers", type=int, default=os.cpu_count(), metavar="N", help="processes; all cores by default"
    )
    work.add_argument("--attempts", type=int, default=3, metavar="N", help="to fetch an image")
    work.add_argument("--timeout", type=float, default=30.0, metavar="SECONDS", help="of one attempt")
    work.add_argument("--engine", choices=("local", "beam"), default="local", help="beam: Apache Beam")
    work.add_argument("--runner", default="", metavar="NAME", help="of Beam: DirectRunner, DataflowRunner, ...")
    work.add_argument("--beam-options", default="", metavar="TEXT", help="of Beam: '--project=... --region=...'")


def run(args: argparse.Namespace) -> None:
    """Builds the shards and says what was left out."""
    from configs.base import get_config
    from data_pipelines.building import Limits, build, plan
    from data_pipelines.sources import open_source
    from data_pipelines.storage import Files
    from data_pipelines.writer import ImageRule

    if args.workers < 1 or args.attempts < 1 or args.timeout <= 0:
        raise ConfigError("--workers, --attempts and --timeout must be above 0")
    if args.engine != "beam" and (args.runner or args.beam_options):
        raise ConfigError("--runner and --beam-options are for --engine beam")
    config = get_config().data
    config.text.lower = False  # shards keep the captions as they are; a recipe may lower them
    limits, images = Limits(args.shard_bytes, args.shard_samples), ImageRule(args.max_side, args.quality)
    entry = _entry(args)
    options = dict(entry=entry, limits=vars(limits), images=vars(images))
    engine = _beam(args) if args.engine == "beam" else None
    with Files(attempts=args.attempts, timeout=args.timeout) as files:
        source = open_source("input", entry, config, files, every_field=True)
        print(f"{source.samples:,} usable samples in {', '.join(args.inputs)}", flush=True)
        job = plan(source, args.out, limits, images, files)
        try:
            manifest = build(job, options, args.workers, engine)
        except KeyboardInterrupt:
            print("interrupted; the same command goes on from here", file=sys.stderr)
            sys.exit(130)
    _report(manifest, args.out)


def _entry(args: argparse.Namespace) -> dict:
    """Returns the input as an entry of `data.sources`."""
    entry = {name: getattr(args, name) for name in _OF_SOURCE if getattr(args, name) is not None}
    if args.columns:
        entry["columns"] = tuple(args.columns.split(","))
    if args.template:
        entry["templates"] = ((1.0, args.template),)
    if args.type not in ("tfds", "synthetic"):
        return dict(type=args.type, urls=tuple(args.inputs)) | entry
    if len(args.inputs) > 1:
        raise ConfigError(f"--type {args.type} takes one input and not {len(args.inputs)}: {' '.join(args.inputs)}")
    (only,) = args.inputs
    if args.type == "tfds":
        return dict(type="tfds", dataset=only) | entry
    if not only.isdigit():
        raise ConfigError(f"--type synthetic takes the number of samples to make, not {only!r}")
    return dict(type="synthetic", samples=int(only)) | entry


def _beam(args: argparse.Namespace) -> Callable:
    from data_pipelines.beam import beam_options, run_beam

    arguments = [f"--runner={args.runner}"] if args.runner else []
    options = beam_options([*arguments, *shlex.split(args.beam_options)])
    return lambda job, shards: run_beam(job, shards, options)


def _report(manifest: dict, out: str) -> None:
    from xmodal.reporting.formatting import size

    print(f"{manifest['samples']:,} samples in {len(manifest['shards'])} shards ({size(manifest['bytes'])}) in {out}")
    if manifest["skipped"]:
        reasons = ", ".join(f"{reason}: {count:,}" for reason, count in manifest["skipped"].items())
        print(f"left out: {reasons}; see {out.rstrip('/')}/skipped.jsonl", file=sys.stderr)


def _bytes(text: str) -> int:
    """Returns the bytes of a size such as 512Mi or 1G."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]i?|)B?", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 512Mi, 1G or 300000000")
    return int(float(match[1]) * _UNITS[match[2]])
