"""Write webdataset shards from images that lie in folders, lists, tfds data sets or other shards.

python -m xmodal data build photos/*.csv --out shards --caption title          # paths or urls, which are fetched
python -m xmodal data build imagenet/train --out shards --template "a photo of a {label}"     # class folders
python -m xmodal data build 'train-*.parquet' --out shards                     # as Hugging Face writes them
python -m xmodal data build 'corpus/*.jsonl' --out shards --texts               # texts alone, without images
python -m xmodal data build coco_captions --type tfds --template "{captions.text}" --out shards
python -m xmodal data build photos.csv --out shards --hold-out 10%             # shards/train and shards/held_out

Every row's other columns go to its .json member, and where its image came from to the field `source_path` there. A
build that was interrupted goes on when the same command is given again; the shards are the same bytes for any number
of workers. `manifest.json` in the output says which rows of the input went into which shard, and `skipped.jsonl` which
rows were left out, and why. The index of the shards comes with them, for runs that use the captions of the .txt
members.

`--hold-out` divides the samples by a hash of what the image shows (of texts alone: of the text), so that copies of an
image, of any size, quality and format, are on one side. All images are read once more for it, on this machine.
"""

import argparse
import re
import shlex
import sys
from collections.abc import Callable, Sequence

from xmodal.commands.data_inputs import (
    add_engine_arguments,
    add_source_arguments,
    beam_options_of,
    check_engine,
    inputs_of,
    source_entry,
)
from xmodal.messages import UsageError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="folders, lists, shards; a data set; or a number")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder or url of the shards")
    add_source_arguments(parser, "told by the names by default")
    output = parser.add_argument_group("output")
    output.add_argument("--shard-bytes", type=_bytes, default="512Mi", metavar="SIZE", help="at most, such as 1G")
    output.add_argument("--shard-samples", type=int, default=10_000, metavar="N", help="at most")
    output.add_argument("--max-side", type=int, default=0, metavar="PIXELS", help="make larger images smaller")
    output.add_argument(
        "--hold-out", type=_share, metavar="SHARE",
        help="hold out so many of the samples, such as 10%% or 0.1: DIR/train and DIR/held_out",
    )  # fmt: skip
    output.add_argument("--quality", type=int, default=0, metavar="1-100", help="of JPEGs that are made; alone: of all")
    work = parser.add_argument_group("work")
    work.add_argument("--workers", type=int, metavar="N", help="processes; all cores by default")
    work.add_argument("--attempts", type=int, default=3, metavar="N", help="to fetch an image")
    work.add_argument("--timeout", type=float, default=30.0, metavar="SECONDS", help="of one attempt")
    add_engine_arguments(work)


def run(args: argparse.Namespace) -> None:
    """Builds the shards and says what was left out."""
    from data_pipelines.host import cores
    from data_pipelines.io.storage import Files
    from data_pipelines.modalities import MODALITIES
    from data_pipelines.modalities.inputs import open_inputs
    from data_pipelines.prepare.building import Limits, build, plan
    from data_pipelines.prepare.hold_out import Part, build_parts, held_out
    from data_pipelines.prepare.writer import ImageRule
    from data_pipelines.rules import Rules
    from data_pipelines.sources import open_source
    from data_pipelines.sources.kinds import guess
    from xmodal.configs.base import get_config

    workers = cores() if args.workers is None else args.workers
    if workers < 1 or args.attempts < 1 or args.timeout <= 0:
        raise UsageError("--workers, --attempts and --timeout must be above 0")
    check_engine(args)
    config = get_config().data
    inputs = open_inputs(inputs_of(args), MODALITIES)
    kept = inputs.changed(inputs.caption.name, lower=False)  # shards keep captions as they are; a recipe may lower them
    limits, images = Limits(args.shard_bytes, args.shard_samples), ImageRule(args.max_side, args.quality)
    entry = source_entry(args, args.type or guess(args.inputs))
    options = dict(entry=entry, limits=vars(limits), images=vars(images) if inputs.stored else None)
    engine = _beam(args) if args.engine == "beam" else None
    with Files(attempts=args.attempts, timeout=args.timeout) as files:
        source = open_source("input", entry, config, files, inputs=kept, every_field=True)
        print(f"{source.samples:,} usable samples in {', '.join(args.inputs)}", flush=True)
        planned = lambda part, out: plan(part, out, limits, images, Rules(inputs), files)
        how = dict(workers=workers, run=engine)
        try:
            if args.hold_out is None:
                parts = [Part(args.out, build(planned(source, args.out), options, **how))]
            else:
                held = held_out(source, args.hold_out)
                parts = build_parts(source, args.out, held, planned, options | dict(hold_out=args.hold_out), **how)
        except KeyboardInterrupt:
            print("interrupted; the same command goes on from here", file=sys.stderr)
            sys.exit(130)
    for out, manifest in parts:
        _report(manifest, out)
    if not any(manifest["samples"] for _, manifest in parts):
        print(f"nothing was built: no sample of {', '.join(args.inputs)} could be used", file=sys.stderr)
        sys.exit(1)
    if args.hold_out is not None:
        _print_options([out for out, _ in parts])


def _print_options(folders: Sequence[str]) -> None:
    """Prints how a recipe reads the two parts, to be pasted."""
    train, held = (shlex.quote(f"{folder.rstrip('/')}/*.tar") for folder in folders)
    print(
        f"for configs/finetune.py:\n    --config.data.sources.train.urls={train} \\\n"
        f"    --config.evals.held_out.source.urls={held}"
    )


def _beam(args: argparse.Namespace) -> Callable:
    from data_pipelines.prepare.beam import run_beam

    options = beam_options_of(args)
    return lambda job, shards: run_beam(job, shards, options)


def _report(manifest: dict, out: str) -> None:
    from xmodal.reporting.formatting import counted, size

    samples, shards = counted(manifest["samples"], "sample"), counted(len(manifest["shards"]), "shard")
    print(f"{samples} in {shards} ({size(manifest['bytes'])}) in {out}")
    if manifest["skipped"]:
        reasons = ", ".join(f"{reason}: {count:,}" for reason, count in manifest["skipped"].items())
        print(f"left out: {reasons}; see {out.rstrip('/')}/skipped.jsonl", file=sys.stderr)


def _share(text: str) -> float:
    """Returns a share such as 10% or 0.1."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share such as 10% or 0.1, above 0 and below all")
    return share


def _bytes(text: str) -> int:
    """Returns the bytes of a size such as 512Mi or 1G."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]i?|)B?", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 512Mi, 1G or 300000000")
    return int(float(match[1]) * _UNITS[match[2]])
