"""What a batch of the stream holds, and who makes it: the one list of its arrays."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from data_pipelines.modalities import Inputs
from data_pipelines.modalities.base import ArraySpec
from data_pipelines.stream.rows import KEY_ID, batch_specs
from data_pipelines.stream.source_columns import source_columns


class Content(NamedTuple):
    """An array of a batch.

    Attributes:
        name: in the batch.
        spec: shape and type.
        maker: path of the config section that it comes from.
    """

    name: str
    spec: ArraySpec
    maker: str


def contents(data: Any, inputs: Inputs, rows: int, draws: Mapping[str, int] | None = None) -> list[Content]:
    """Returns the arrays of a batch.

    Args:
        data: the `data` section of a config.
        inputs: of its samples.
        rows: of the batch.
        draws: the length of each input, see `Modality.draw`; None takes those outside the training.
    """
    makers = {array: modality.where for modality in inputs.values() for array in modality.specs(1)}
    makers[KEY_ID] = "data.group_key" if data.group_key else "shard and key"
    found = [Content(name, spec, makers[name]) for name, spec in batch_specs(inputs, rows, draws).items()]
    columns = source_columns(data.sources).items()
    return found + [Content(name, ArraySpec((rows,), values.dtype), "data.sources") for name, values in columns]
