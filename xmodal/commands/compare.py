"""Compare runs or result files: figures with intervals, and how sure the differences to the first one are.

python -m xmodal compare runs/a runs/b
python -m xmodal compare runs/a runs/b runs/c --html compare.html --json compare.json
python -m xmodal compare clip.json siglip.json --names CLIP SigLIP
python -m xmodal compare runs/tuned@0 runs/tuned                 # before and after training: did tuning help?

Where two have the scores of the same queries (results.scores.npz beside the results), the queries are resampled
together: a paired bootstrap.
"""

import argparse
import pathlib


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders, RUN@STEP, or files of `eval --json`")
    parser.add_argument("--names", nargs="+", metavar="NAME", help="what to call them")
    parser.add_argument("--html", type=pathlib.Path, metavar="FILE", help="also write a page, with learning curves")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="also write the comparison as JSON")


def run(args: argparse.Namespace) -> None:
    """Runs the command."""
    from xmodal.config import ConfigError
    from xmodal.folders import not_local
    from xmodal.messages import UsageError
    from xmodal.reporting import comparison
    from xmodal.reporting.comparison_page import render
    from xmodal.reporting.files import write_json, write_text
    from xmodal.reporting.summary import print_comparison

    if problem := next(filter(None, map(not_local, args.runs)), ""):
        raise ConfigError(f"compare: {problem}")
    if len(args.runs) < 2:
        raise UsageError("compare takes two or more runs or result files")
    if args.names and len(args.names) != len(args.runs):
        raise UsageError(f"compare: {len(args.names)} names for {len(args.runs)} runs")
    try:
        runs = comparison.open_compared(args.runs, args.names or ())
    except ValueError as error:
        raise ConfigError(f"compare: {error}") from None
    found = comparison.lines(runs)
    groups = comparison.seed_groups(runs)
    shared = comparison.comparable(found)
    print_comparison([run.name for run in runs], shared, None, groups, comparison.group_lines(groups, shared))
    for note in comparison.notes(runs, found):
        print(note)
    if args.html:
        write_text(args.html, render(runs, found))
        print(args.html)
    if args.json:
        write_json(args.json, comparison.document(runs, found))
        print(args.json)
