"""Print the reference of all options, objectives, evaluators, sources and parts of models, with their defaults.

python -m xmodal reference | less
python -m xmodal reference --out docs/reference.md

With `--import MODULE` before the command, what a project registers is in it, too.
"""

import argparse
import pathlib


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("--out", type=pathlib.Path, metavar="FILE", help="write it there; to the terminal by default")


def run(args: argparse.Namespace) -> None:
    """Writes the page."""
    from xmodal.commands.reference_page import reference
    from xmodal.reporting.files import write_text

    if args.out is None:
        print(reference(), end="")
    else:
        print(write_text(args.out, reference()))
