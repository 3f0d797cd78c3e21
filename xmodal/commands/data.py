"""Prepare, examine and choose data.

python -m xmodal data build photos.csv --out shards --caption title
python -m xmodal data stats 'shards/*.tar'
python -m xmodal data preview --config configs/demo.py --config.data.inputs.image.jitter=0.4
"""

import argparse
import importlib
import sys

ACTIONS = {
    "build": "write webdataset shards from folders, CSV, TSV, JSONL and parquet lists, tfds, or other shards",
    "index": "scan the headers of shards, so that runs start at once",
    "verify": "read every sample, decode every image, and name every fault",
    "stats": "lengths, sizes, shapes, duplicates and fields, with plots",
    "inspect": "what a batch holds: names, shapes, types, who makes them, and an example",
    "preview": "a page of samples as the model sees them",
    "tokenizer": "train a tokenizer on the captions, in any script",
    "filter": "keep the pairs whose picture and caption fit together, by an index of embeddings",
    "duplicates": "pictures that are nearly the same, by an index of embeddings",
    "overlap": "test pictures among the training pictures, by two indexes of embeddings",
    "neighbours": "groups of near samples for batches of hard negatives, by an index of embeddings",
    "bench": "how fast the data arrive, what limits that, and how many accelerators it feeds",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    parser.set_defaults(parser=parser)
    for name, summary in ACTIONS.items():
        module = importlib.import_module(f"xmodal.commands.data_{name}")
        own = actions.add_parser(
            name, help=summary, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        module.add_arguments(own)


def run(args: argparse.Namespace) -> None:
    """Runs the chosen action; without one it lists them."""
    if args.action is None:
        args.parser.print_help(sys.stderr)
        sys.exit(2)
    importlib.import_module(f"xmodal.commands.data_{args.action}").run(args)
