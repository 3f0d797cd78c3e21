"""Classes of samples: names or numbers of a json field, or the integer of a `cls` member, become class ids."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from data_pipelines.errors import BadSample, DataError
from data_pipelines.text.fields import lookup

_NUMBER = re.compile(r"([0-9]{1,18})(?:\.0{1,18})?")
MEMBER = "cls"  # webdataset's extension for the class as an integer


class Labels:
    """Reads the class ids of a sample.

    Attributes:
        field: json field or column that holds the class, one or a list; `cls` is also the tar member of that name.
        count: number of classes.
        most: ids of one row of a batch.
        signature: of the rule of what is usable.

    Args:
        config: `config.data.label`.

    Raises:
        DataError: the section is incomplete.
    """

    def __init__(self, config: Any):
        self.field, self.most = config.field, config.most
        names = tuple(config.classes)
        if bool(names) == bool(config.count) or config.count < 0:
            raise DataError(
                f"data.label.field={self.field!r} needs either data.label.classes, the names of the classes in the "
                "order of their ids, or data.label.count, how many there are where the field holds ids"
            )
        if self.most < 1:
            raise DataError(f"data.label.most is {self.most}; a sample has at least 1 class")
        if len(set(names)) < len(names):
            raise DataError("data.label.classes names a class twice")
        self.count = config.count or len(names)
        self._ids = {str(name): i for i, name in enumerate(names)}
        digest = hashlib.blake2b(json.dumps(names or self.count).encode(), digest_size=8).hexdigest()
        self.signature = dict(label=self.field, classes=digest, most=self.most)

    def ids(self, fields: Mapping[str, Any]) -> np.ndarray:
        """Returns the class ids of a sample, int32 [most]; -1 fills up.

        Raises:
            BadSample: it has none, more than `most`, or one that is not among the classes.
        """
        value = lookup(fields, self.field)
        values = value if isinstance(value, list) else [value]
        # A column of whole numbers in which some are missing holds floats.
        values = [int(v) if isinstance(v, float) and v.is_integer() else v for v in values]
        values = [str(v).strip() for v in values if isinstance(v, str | int) and not isinstance(v, bool)]
        found = list(dict.fromkeys(self._id(v) for v in values if v))
        if not found:
            raise BadSample("no class")
        if len(found) > self.most:
            raise BadSample("too many classes")
        return np.array(found + [-1] * (self.most - len(found)), np.int32)

    def _id(self, value: str) -> int:
        if self._ids:
            number = self._ids.get(value, -1)
        else:
            found = _NUMBER.fullmatch(value)
            number = int(found[1]) if found else -1
        if not 0 <= number < self.count:
            raise BadSample("unknown class")
        return number


def open_labels(config: Any) -> Labels | None:
    """Returns what reads the classes that `config.data.label` describes; None where it names no field."""
    return Labels(config) if config.field else None
