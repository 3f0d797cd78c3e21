"""Write webdataset shards from images that lie in folders, lists, tfds data sets or other shards.

python -m xmodal data build photos/*.csv --out shards --caption title          # paths or urls, which are fetched
python -m xmodal data build imagenet/train --out shards --template "a photo of a {label}"     # class folders
python -m xmodal data build 'train-*.parquet' --out shards                     # as Hugging Face writes them
python -m xmodal data build 'corpus/*.jsonl' --out shards --texts               # texts alone, without images
python -m xmodal data build coco_captions --type tfds --template "{captions.text}" --out shards

Every row's other columns go to its .json member, and where its image came from to the field `source_path` there. A
build that was interrupted goes on when the same command is given again; the shards are the same bytes for any number
of workers. `manifest.json` in the output says which rows of the input went into which shard, and `skipped.jsonl` which
rows were left out, and why. The index of the shards comes with them, for runs that use the captions of the .txt
members.
"""

import argparse
import re
import sys
from collections.abc import Callable

from xmodal.commands.data_inputs import (
    add_engine_arguments,
    add_source_arguments,
    beam_options_of,
    check_engine,
    modalities_of,
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
    from data_pipelines.prepare.building import Limits, build, plan
    from data_pipelines.prepare.writer import ImageRule
    from data_pipelines.samples import has_images
    from data_pipelines.sources import open_source
    from data_pipelines.sources.kinds import guess
    from data_pipelines.text.captions import Captions
    from xmodal.configs.base import get_config

    workers = cores() if args.workers is None else args.workers
    if workers < 1 or args.attempts < 1 or args.timeout <= 0:
        raise UsageError("--workers, --attempts and --timeout must be above 0")
    check_engine(args)
    config = get_config().data
    config.modalities = modalities_of(args)
    config.text.lower = False  # shards keep the captions as they are; a recipe may lower them
    limits, images = Limits(args.shard_bytes, args.shard_samples), ImageRule(args.max_side, args.quality)
    entry = source_entry(args, guess(args.inputs))
    options = dict(entry=entry, limits=vars(limits), images=vars(images) if has_images(config.modalities) else None)
    engine = _beam(args) if args.engine == "beam" else None
    with Files(attempts=args.attempts, timeout=args.timeout) as files:
        source = open_source("input", entry, config, files, every_field=True)
        print(f"{source.samples:,} usable samples in {', '.join(args.inputs)}", flush=True)
        job = plan(source, args.out, limits, images, Captions(config.text, images=has_images(config.modalities)), files)
        try:
            manifest = build(job, options, workers, engine)
        except KeyboardInterrupt:
            print("interrupted; the same command goes on from here", file=sys.stderr)
            sys.exit(130)
    _report(manifest, args.out)
    if not manifest["samples"]:
        print(f"nothing was built: no sample of {', '.join(args.inputs)} could be used", file=sys.stderr)
        sys.exit(1)


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


def _bytes(text: str) -> int:
    """Returns the bytes of a size such as 512Mi or 1G."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]i?|)B?", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 512Mi, 1G or 300000000")
    return int(float(match[1]) * _UNITS[match[2]])
