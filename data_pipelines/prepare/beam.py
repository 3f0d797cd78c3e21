"""Builds and indexes shards on Apache Beam, where one machine is not enough. Needs `pip install -e '.[beam]'`.

The plan, the work on a shard and the notes are those of `building` and `index`; Beam only spreads the shards over its
workers. The folders that are written must be ones that all of them can write.
"""

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from data_pipelines.errors import DataError
from data_pipelines.io.storage import Files, Stat, parent, printable
from data_pipelines.prepare.building import Job, build_shard
from data_pipelines.rules import Rules
from data_pipelines.sources.index import ShardIndex, scan, signature
from data_pipelines.sources.measures import Measure
from data_pipelines.sources.sidecar import Sidecars


def beam_options(arguments: Sequence[str] = ()) -> Any:
    """Returns the options of Beam and of its runner, such as "--runner=DataflowRunner", "--project=...".

    Raises:
        DataError: Beam is not installed.
    """
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise DataError(f"this needs Apache Beam ({error}); install it with: pip install -e '.[beam]'") from None
    return PipelineOptions(list(arguments))


def run_beam(job: Job, shards: Sequence[int], options: Any) -> None:
    """Makes the shards in a Beam pipeline and waits for its end.

    Args:
        job: from `building.plan`.
        shards: those to make.
        options: from `beam_options`.
    """
    import apache_beam as beam

    if not shards:
        return
    with beam.Pipeline(options=options) as pipeline:
        (
            pipeline
            | "shards" >> beam.Create([int(shard) for shard in shards])
            | "spread" >> beam.Reshuffle()  # or one worker would make them all, in one step with their listing
            | "build" >> beam.Map(lambda shard: build_shard(job, shard))
        )


def index_with_beam(
    stats: Sequence[Stat], rules: Rules, files: Files, measures: Sequence[Measure], options: Any
) -> Iterator[ShardIndex]:
    """Scans shards in a Beam pipeline, and yields their entries when it has ended; see `index.scan_all`.

    The entries of a folder come together on one worker, which adds them to the index beside the shards.

    Args:
        stats: the shards.
        rules: as for `index.scan`.
        files: of the workers too.
        measures: as for `index.scan`.
        options: from `beam_options`.

    Raises:
        DataError: the workers could not keep the index where this machine finds it.
    """
    import apache_beam as beam

    rule = signature(rules, measures)

    def scanned(stat: Stat) -> tuple[str, ShardIndex]:
        with copy.copy(files) as own:
            return parent(stat.path), scan(stat, rules, own, measures)

    with beam.Pipeline(options=options) as pipeline:
        (
            pipeline
            | "shards" >> beam.Create(list(stats))
            | "spread" >> beam.Reshuffle()
            | "scan" >> beam.Map(scanned)
            | "folders" >> beam.GroupByKey()
            | "keep" >> beam.Map(lambda folder: _keep(folder[1], rule, files))
        )
    kept = Sidecars([stat.path for stat in stats], rule, files)
    for stat in stats:
        entry = kept.get(stat.path)
        if entry is None or (entry.bytes, entry.version) != (stat.size, stat.version):
            raise DataError(
                f"the index of {printable(stat.path)} was not kept: the workers must be able to write to "
                f"{printable(parent(stat.path))}/.index"
            )
        yield entry


def _keep(entries: Iterable[ShardIndex], rule: str, files: Files) -> None:
    entries = list(entries)
    with copy.copy(files) as own:
        sidecars = Sidecars([entry.path for entry in entries], rule, own)
        for entry in entries:
            sidecars.put(entry)
        sidecars.save()
