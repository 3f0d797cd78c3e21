"""What a batch says of the source of each sample: which it is, the weight of its loss, its temperature."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from data_pipelines.errors import DataError

# Options of a source that become arrays of the batch: the value that changes nothing, and whether 0 has a meaning.
_FACTORS = dict(loss_weight=(1.0, True), temperature=(1.0, False))


def used(sources: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the entries of `data.sources` that have a share of the stream."""
    return {name: entry for name, entry in sources.items() if entry.get("weight", 1.0) != 0}


def source_names(sources: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the names that `source` of a batch counts, from 0."""
    return tuple(sorted(used(sources)))


def source_columns(sources: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns what stands in a batch about the source of each row, where it tells sources apart.

    Args:
        sources: `config.data.sources`.

    Returns:
        {array of the batch: its value for each of `used(sources)`, in their order}: `source`, int32, where there are
        several; `loss_weight` and `temperature`, float32, where one of them is not 1.

    Raises:
        DataError: a factor is out of range.
    """
    entries, names = used(sources), source_names(sources)
    found = {}
    if len(names) > 1:
        found["source"] = np.array([names.index(name) for name in entries], np.int32)
    for option, (usual, zero) in _FACTORS.items():
        values = [_checked(name, option, entry.get(option, usual), zero) for name, entry in entries.items()]
        if any(value != usual for value in values):
            found[option] = np.array(values, np.float32)
    return found


def _checked(name: str, option: str, value: float, zero: bool) -> float:
    if not 0 <= value < math.inf or not (value or zero):
        expected = "a number from 0" if zero else "a number above 0"
        raise DataError(f"data.sources.{name}.{option} is {value!r}; expected {expected}")
    return float(value)
