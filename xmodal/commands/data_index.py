"""Scan the headers of shards, so that runs start at once. Small data are indexed in passing, by the first run.

python -m xmodal data index 'shards/*.tar'
python -m xmodal data index --config configs/clip.py --workers 16
python -m xmodal data index 'gs://bucket/web/*.tar' --engine beam --runner DataflowRunner --beam-options --project=...

The index lies in `.index/` beside the shards, or in ~/.cache/xmodal where that folder cannot be written. It holds for
one rule of what is usable: with other templates, another filter or `unique`, index again. Only shards that are new or
have changed are scanned; a scan that was interrupted goes on when the same command is given again.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from typing import Any

from xmodal.commands.data_inputs import (
    add_data_arguments,
    add_engine_arguments,
    beam_options_of,
    check_engine,
    entries,
    load_data,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the action's arguments."""
    add_data_arguments(parser)
    add_engine_arguments(parser.add_argument_group("work"))


def run(args: argparse.Namespace) -> None:
    """Indexes the data and says what was found."""
    from data_pipelines.io.storage import Files

    check_engine(args)
    config = load_data(args)
    began, scan = time.perf_counter(), _Scan(args)
    with Files(**config.data.remote) as files:
        sources = [_index(name, entry, config, files, args, scan) for name, entry in entries(config).items()]
    _report(sources)
    known = sum(source.shards for source in sources) - scan.shards
    new, seconds = f"{scan.shards:,} shard{'s' * (scan.shards != 1)}", time.perf_counter() - began
    print(f"{new} scanned in {seconds:.1f} s, {known:,} were indexed already")


class _Scan:
    """The engine, with an account of what it was given."""

    def __init__(self, args: argparse.Namespace):
        self._options = beam_options_of(args) if args.engine == "beam" else None
        self.shards = 0

    def __call__(self, stats: Sequence, rules: Any, files: Any, measures: Sequence, workers: int) -> Iterator:
        from data_pipelines.sources.index import scan_all

        self.shards += len(stats)
        if self._options is None:
            yield from scan_all(stats, rules, files, measures, workers)
        else:
            from data_pipelines.prepare.beam import index_with_beam

            yield from index_with_beam(stats, rules, files, measures, self._options)


def _index(name: str, entry: Any, config: Any, files: Any, args: argparse.Namespace, scan: _Scan) -> Any:
    """Indexes a source, and opens it as a run would: what was written must be what is read."""
    from data_pipelines.examine.verify import spot_check
    from data_pipelines.sources import index_source, open_source
    from data_pipelines.sources.kinds import kind_of

    found = index_source(name, entry, config.data, files, lengths=True, workers=args.workers, engine=scan)
    source = open_source(name, entry, config.data, files, lengths=True)
    if found is None:
        kind = kind_of(entry, name)
        print(f"{name}: data of the type {kind!r} need no index; they are looked through when they are opened")
        scan.shards += source.shards
    else:
        spot_check(source)
    return source


def _report(sources: Sequence[Any]) -> None:
    from xmodal.reporting.formatting import size
    from xmodal.reporting.summary import print_table

    rows = [[s.name, s.shards, s.samples, size(s.bytes), sum(s.skipped.values())] for s in sources]
    print_table("data", ["source", "shards", "usable samples", "size", "left out"], rows)
    reasons = [[s.name, reason, count] for s in sources for reason, count in sorted(s.skipped.items())]
    if reasons:
        print_table("left out", ["source", "reason", "samples"], reasons)
