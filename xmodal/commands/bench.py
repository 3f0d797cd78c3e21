"""Measure: speed, memory and quality of the parts, each benchmark beside what it competes with.

python -m xmodal bench data
python -m xmodal bench step --config configs/demo.py --json step.json
"""

import argparse
import importlib
import pathlib
import sys

BENCHES = {
    "data": "the input pipeline beside the raw decoder, the webdataset library and open_clip's loader",
    "loss": "memory per device of the losses over all pairs, plain and as rings",
    "plan": "memory and time that a data set of a billion samples takes before its first batch",
    "remote": "throughput of ranged reads from disk, a web server with latency, and S3",
    "search": "time of a query to a large index of embeddings, beside FAISS",
    "shuffle": "how well batches are mixed for the memory it takes, beside shuffle buffers",
    "step": "speed of a recipe's training step, with its data",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    benches = parser.add_subparsers(dest="bench", metavar="BENCH")
    parser.set_defaults(parser=parser)
    for name, summary in BENCHES.items():
        own = benches.add_parser(name, help=summary, description=summary)
        own.add_argument("--json", type=pathlib.Path, metavar="FILE", help="also write the table to this file")
        importlib.import_module(f"xmodal.bench.{name}").add_arguments(own)


def run(args: argparse.Namespace) -> None:
    """Runs the chosen benchmark, prints its table and writes it where --json says; without one it lists them."""
    parser = vars(args).pop("parser")  # benchmarks hand their arguments to other processes
    if args.bench is None:
        parser.print_help(sys.stderr)
        sys.exit(2)
    title, columns, rows = importlib.import_module(f"xmodal.bench.{args.bench}").measure(args)
    from xmodal.reporting.environment import collect_environment
    from xmodal.reporting.files import write_json
    from xmodal.reporting.summary import print_table

    print_table(title, columns, rows)
    if args.json:
        table = [dict(zip(columns, row)) for row in rows]
        write_json(args.json, {"title": title, "table": table, "environment": collect_environment()})
