"""`python -m xmodal COMMAND`: everything around training. `python -m xmodal COMMAND --help` explains each."""

import argparse
import sys

from xmodal.commands import bench, data, embed, evaluate, export_model, import_model, report, search, serve
from xmodal.errors import user_errors

COMMANDS = {
    "eval": evaluate,
    "report": report,
    "bench": bench,
    "data": data,
    "embed": embed,
    "search": search,
    "serve": serve,
    "import": import_model,
    "export": export_model,
}


def main(argv: list[str]) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m xmodal", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        summary = module.__doc__.splitlines()[0]
        module.add_arguments(
            commands.add_parser(
                name,
                help=summary,
                description=module.__doc__,
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
        )
    args, overrides = parser.parse_known_args(argv)
    stray = [text for text in overrides if not (text.startswith("--config.") and hasattr(args, "config"))]
    if stray:
        parser.error(f"unknown arguments: {' '.join(stray)}")
    args.overrides = overrides
    with user_errors():
        COMMANDS[args.command].run(args)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
