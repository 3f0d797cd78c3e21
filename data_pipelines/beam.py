"""Builds shards on Apache Beam: for data that one machine does not get through. Needs `pip install -e '.[beam]'`.

The plan, the work on a shard and the notes are those of `building`; Beam only spreads the shards over its workers. The
output folder must be one that all of them can write.
"""

from collections.abc import Sequence
from typing import Any

from data_pipelines.building import Job, build_shard
from data_pipelines.errors import DataError


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
