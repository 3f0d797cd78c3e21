"""Prepare data: `data build` writes shards from folders, lists, tfds or other shards.

python -m xmodal data build photos.csv --out shards --caption title
"""

import argparse
import importlib

ACTIONS = {
    "build": "write webdataset shards from folders, CSV, TSV, JSONL and parquet lists, tfds, or other shards",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, summary in ACTIONS.items():
        module = importlib.import_module(f"xmodal.commands.data_{name}")
        own = actions.add_parser(
            name, help=summary, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        module.add_arguments(own)


def run(args: argparse.Namespace) -> None:
    """Runs the chosen action."""
    importlib.import_module(f"xmodal.commands.data_{args.action}").run(args)
