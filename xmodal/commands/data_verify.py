"""Read every sample completely, decode every image at full size, and name every fault.

python -m xmodal data verify 'shards/*.tar'
python -m xmodal data verify --config configs/clip.py --sample 10000 --json faults.json

What the index knows of (samples without a caption, truncated shards) is left out of every run anyway. Anything else
that is wrong would show during a run, where it is replaced and counted: it is listed here, and the exit status is 1.
"""

import argparse
import pathlib
import sys
from typing import Any

from xmodal.commands.data_inputs import add_data_arguments, load_data, open_sources, processes

_KEPT = 100_000  # faults in the file; the counts are exact


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the action's arguments."""
    add_data_arguments(parser)
    parser.add_argument("--sample", type=int, default=0, metavar="N", help="check so many samples, all over the data")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="also write what was found to this file")


def run(args: argparse.Namespace) -> None:
    """Checks the data; ends with status 1 if they hold faults that the index did not know."""
    from data_pipelines.examine.verify import verify
    from xmodal.messages import UsageError

    if args.sample < 0:
        raise UsageError(f"--sample is {args.sample}; expected a number of samples, or 0 for all")
    config, listed = load_data(args), []

    def found(source: str, fault: Any) -> None:
        print(f"{fault.shard}\t{fault.key}\t{fault.reason}", flush=True)
        if len(listed) < _KEPT:
            listed.append(dict(source=source, **fault._asdict()))

    with open_sources(config) as sources:
        findings = verify(sources, found, wanted=args.sample, seed=config.seed, workers=processes(args))
        _report(sources, findings, args, listed)
    if findings.faults:
        sys.exit(1)


def _report(sources: list, findings: Any, args: argparse.Namespace, listed: list[dict]) -> None:
    from xmodal.reporting.files import write_json
    from xmodal.reporting.formatting import size
    from xmodal.reporting.summary import print_table

    for source in sources:
        for fault in source.faults():
            print(f"{fault.shard}\t{fault.key}\t{fault.reason} (known)")
    rows = [[s.name, reason, n, "left out by the index"] for s in sources for reason, n in sorted(s.skipped.items())]
    rows += [
        [name, reason, count, "found now"] for name, own in findings.sources.items() for reason, count in own.items()
    ]
    if rows:
        print_table("faults", ["source", "reason", "samples", ""], rows)
    total = sum(source.samples for source in sources)
    share = f" of {total:,}" if findings.samples < total else ""
    faults = sum(findings.faults.values())
    verdict = f"{faults:,} cannot be used" if faults else "all can be used"
    what = f"read and decoded ({size(findings.bytes)} of files)" if findings.bytes else "read"
    print(f"{findings.samples:,}{share} samples {what}: {verdict}")
    if args.json:
        known = {source.name: source.skipped for source in sources}
        report = dict(samples=findings.samples, of=total, bytes=findings.bytes, found=findings.sources, known=known)
        write_json(args.json, report | dict(faults=listed, faults_not_listed=max(0, faults - len(listed))))
