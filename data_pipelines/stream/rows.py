"""Fills the rows of a batch from samples. What the decoding threads run."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from data_pipelines import rng
from data_pipelines.errors import BadSample, DataError, Fault, Replaced
from data_pipelines.host import Memory, aligned_empty
from data_pipelines.modalities import Inputs, Random
from data_pipelines.modalities.base import ArraySpec
from data_pipelines.modalities.text import hash64
from data_pipelines.names import sample_name
from data_pipelines.samples import Sample
from data_pipelines.stream.windows import Window

_SUBSTITUTES = 100  # tried for one row before the window is given up
_SHARED = "caption"  # the stream of the words that all inputs of a row share
KEY_ID = "key_id"


class Row(NamedTuple):
    """What a row shows: a place of a window, and its random numbers."""

    window: Window
    place: int
    random: Random


def batch_specs(inputs: Inputs, rows: int, draws: Mapping[str, int] | None = None) -> dict[str, ArraySpec]:
    """Returns what a batch of the stream holds beside what its sources say (`source_columns`): {name: shape and type}.

    Args:
        inputs: of the samples.
        rows: of the batch.
        draws: the length of each input, see `Modality.draw`; None takes those outside the training.

    Returns:
        The arrays of the inputs, and `key_id` uint32 [rows, 2]: equal content of samples gives equal ones.
    """
    return inputs.specs(rows, draws) | {KEY_ID: ArraySpec((rows, 2), np.uint32)}


def empty_batch(
    inputs: Inputs, rows: int, draws: Mapping[str, int] | None = None, memory: Memory | None = None
) -> dict[str, np.ndarray]:
    """Returns a batch to be filled, whose arrays nothing else uses; `memory` gives the large ones."""
    keys = batch_specs(inputs, rows, draws)[KEY_ID]
    return inputs.empty(rows, draws, memory) | {KEY_ID: aligned_empty(keys.shape, keys.dtype)}


def random_of(inputs: Inputs, first: int, rows: int, seed: int) -> list[Random]:
    """Returns the random words of consecutive rows of the global stream: pure functions of row and seed."""
    words = {name: modality.stream(first, rows, seed) for name, modality in inputs.items() if modality.words}
    shared = rng.row_words(first, rows, 4, seed, _SHARED)[:, 0].tolist()
    return [Random({name: values[row] for name, values in words.items()}, shared[row]) for row in range(rows)]


class RowFiller:
    """Turns samples into the rows of a batch.

    Attributes:
        labels: of all shards of the stream, see `names.shard_labels`.
    """

    def __init__(self):
        self.labels: dict[str, str] = {}

    def fill(self, batch: dict[str, np.ndarray], first: int, rows: list[Row]) -> list[Replaced]:
        """Writes rows [first, first + len(rows)) of a batch.

        A sample that cannot be read is replaced by a fixed other one of its window, so that the order never shifts.

        Returns:
            The rows that were replaced.

        Raises:
            DataError: a window has no readable sample, or a user's transform failed.
        """
        identities, replaced = [], []
        for place, row in enumerate(rows, first):
            sample, faults = self._sample(row, batch, place)
            if faults:
                replaced.append(Replaced(row.window.source.name, faults))
            identity = row.window.source.rules.identity(sample.record)
            identities.append(sample_name(sample.shard, sample.key, self.labels) if identity is None else identity)
        batch[KEY_ID][first : first + len(rows)] = hash64(identities)
        return replaced

    def _sample(self, row: Row, batch: dict[str, np.ndarray], place: int) -> tuple[Sample, list[Fault]]:
        """Returns the sample of a row, whose inputs are written into the batch."""
        window, faults = row.window, []
        inputs = window.source.rules.inputs
        for turn in _turns(row.place, len(window)):
            sample = window[turn]
            try:
                if sample.fault:
                    raise BadSample(sample.fault)
                for modality in inputs.values():
                    modality.fill(sample, row.random, batch, place)
                return sample, faults
            except BadSample as bad:
                faults.append(Fault(sample.shard, sample.key, bad.reason))
        raise DataError(
            f"none of {len(faults)} samples of one shuffle window can be read; the first is {faults[0].key} of "
            f"{faults[0].shard} ({faults[0].reason})"
        )


def _turns(place: int, size: int) -> Iterator[int]:
    """Yields a place, and then those that stand in for it, one after another, where its sample cannot be read."""
    yield place
    # Half a window away: a neighbour is likely to be in the same batch, where it would be a duplicate.
    others = ((place + size // 2 + i) % size for i in range(min(size, _SUBSTITUTES)))
    yield from (other for other in others if other != place)
