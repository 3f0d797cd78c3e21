"""Train, evaluate, import, export, search: one command for each. `xmodal COMMAND --help` explains a command."""

import argparse
import importlib
import os
import sys
import types
from typing import NoReturn

from xmodal import __version__
from xmodal.errors import end_process, user_errors
from xmodal.messages import UsageError, did_you_mean

COMMANDS = {  # name: module of xmodal.commands
    "train": "train",
    "eval": "evaluate",
    "report": "report",
    "compare": "compare",
    "params": "params",
    "bench": "bench",
    "data": "data",
    "embed": "embed",
    "search": "search",
    "serve": "serve",
    "import": "import_model",
    "export": "export_model",
    "map": "word_map",
    "reference": "reference",
}
_OVERRIDE = "--config."  # begins an argument that sets an option of a recipe


def main(argv: list[str]) -> int:
    """Runs the command line; returns the exit code.

    Raises:
      SystemExit: with 2 for arguments that make no sense, with 1 for what else a person can mend.
    """
    parser = _parser()
    top = parser.parse_args(argv)
    if top.help or top.command is None:
        parser.epilog = _listing()
        parser.print_help(sys.stdout if top.help else sys.stderr)
        return 0 if top.help else 2
    if top.command not in COMMANDS:
        hint = did_you_mean(top.command, COMMANDS)
        parser.error(f"there is no command {top.command!r}.{hint} Commands: {', '.join(COMMANDS)}")
    args = _arguments(parser.prog, top.command, top.rest)
    try:
        with user_errors():
            for module in top.imports:
                _import(module)
            code = _module(top.command).run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough; what is still in the buffer goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code or 0


def console() -> NoReturn:
    """The command `xmodal`; as with `python -m`, the folder in which it starts is searched for modules."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    end_process(main, sys.argv[1:])


def _parser() -> argparse.ArgumentParser:
    """What stands before the command and its arguments."""
    prog = "xmodal" if os.path.basename(sys.argv[0]) == "xmodal" else "python -m xmodal"
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, add_help=False,
        usage=f"{prog} [--import MODULE] COMMAND ...",
    )  # fmt: skip
    parser.add_argument("-h", "--help", action="store_true", help="show this list; after a command, its arguments")
    parser.add_argument("--version", action="version", version=f"xmodal {__version__}", help="show the version")
    parser.add_argument(
        "--import", dest="imports", action="append", default=[], metavar="MODULE",
        help="import a module first, such as one that registers a project's objectives (docs/own_project.md)",
    )  # fmt: skip
    parser.add_argument("command", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def _listing() -> str:
    return "commands:\n" + "\n".join(f"  {name:10} {_module(name).__doc__.splitlines()[0]}" for name in COMMANDS)


def _arguments(prog: str, command: str, given: list[str]) -> argparse.Namespace:
    """Reads the arguments of a command, with `overrides`, those that set options of a recipe."""
    module = _module(command)
    parser = argparse.ArgumentParser(
        prog=f"{prog} {command}", description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    module.add_arguments(parser)
    overrides = [text for text in given if text.startswith(_OVERRIDE)]  # argparse takes one with a space for a name
    args, stray = parser.parse_known_args([text for text in given if not text.startswith(_OVERRIDE)])
    takes_options = hasattr(args, "config")
    if stray := stray + ([] if takes_options else overrides):
        hint = "; options are set with --config.KEY=VALUE" if takes_options else ""
        parser.error(f"unknown arguments: {' '.join(stray)}{hint}")
    args.overrides = overrides
    return args


def _module(command: str) -> types.ModuleType:
    return importlib.import_module(f"xmodal.commands.{COMMANDS[command]}")


def _import(module: str) -> None:
    """Imports a module of the user."""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"--import {module}: there is no module {error.name!r}; start xmodal in the folder that holds it, put that "
            "folder into PYTHONPATH, or install its package"
        ) from error


if __name__ == "__main__":
    end_process(main, sys.argv[1:])
