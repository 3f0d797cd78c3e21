"""`python -m xmodal COMMAND`: everything around training. `python -m xmodal COMMAND --help` explains each."""

import argparse
import os
import sys

from xmodal.commands import (
    bench,
    compare,
    data,
    embed,
    evaluate,
    export_model,
    import_model,
    report,
    search,
    serve,
    word_map,
)
from xmodal.errors import user_errors

COMMANDS = {
    "eval": evaluate,
    "report": report,
    "compare": compare,
    "bench": bench,
    "data": data,
    "embed": embed,
    "search": search,
    "serve": serve,
    "import": import_model,
    "export": export_model,
    "map": word_map,
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
    overrides = [text for text in argv if text.startswith("--config.")]  # argparse takes one with a space for a name
    args, stray = parser.parse_known_args([text for text in argv if not text.startswith("--config.")])
    if not hasattr(args, "config"):
        stray += overrides
    if stray:
        parser.error(f"unknown arguments: {' '.join(stray)}")
    args.overrides = overrides
    try:
        with user_errors():
            COMMANDS[args.command].run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough; what is still in the buffer goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
