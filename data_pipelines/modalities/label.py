"""Classes: names or numbers of a json field, or the integer of a `cls` member, become class ids."""

import hashlib
import html
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from data_pipelines.errors import BadSample, DataError
from data_pipelines.modalities.base import ArraySpec, Modality, NoPart, Part, Random, shown
from data_pipelines.samples import Sample
from data_pipelines.text.fields import lookup

MEMBER = "cls"  # webdataset's extension for the class as an integer
_NUMBER = re.compile(r"([0-9]{1,18})(?:\.0{1,18})?")
_NONE = -1  # fills up the classes of a sample


@dataclass(frozen=True)
class Label(Modality):
    """The class of a sample, or several. The batch has `<input>` int32 [rows, most]; -1 fills up.

    Attributes:
        field: json field or column with the class of a sample, or a list of them; `cls` is also the tar member with an
            integer.
        classes: names of the classes in the order of their ids.
        count: number of classes where the field holds ids and not names.
        most: classes of one sample; more than 1 for multi-label data.
    """

    field: str = ""
    classes: tuple = shown(())
    count: int = shown(0)
    most: int = 1

    type: ClassVar[str] = "label"
    noun: ClassVar[str] = "class"
    on_record: ClassVar[bool] = True
    labels: ClassVar[bool] = True

    def find(self, sample: Sample) -> Part:
        """See `Modality`; the content is the ids, int32 [most]."""
        return Part(self.ids(sample.record.fields), sample.title)

    def arrays(self, rows: int, draw: int = 0) -> dict[str, ArraySpec]:
        """See `Modality`."""
        return {self.name: ArraySpec((rows, self.most), np.int32)}

    def train(self, part: Part, random: Random, batch: Mapping[str, np.ndarray], row: int) -> None:
        """See `Modality`."""
        batch[self.name][row] = part.content

    def evaluate(self, raw: Any, batch: Mapping[str, np.ndarray], row: int) -> None:
        """See `Modality`; `raw` is ids, or the name or number of a class, or a list of them."""
        batch[self.name][row] = raw if isinstance(raw, np.ndarray) else self._numbers(raw)

    def blank(self, batch: Mapping[str, np.ndarray], rows: Any) -> None:
        """See `Modality`: no class."""
        super().blank(batch, rows)
        batch[self.name][rows] = _NONE

    def show(self, batch: Mapping[str, np.ndarray], row: int) -> str:
        """See `Modality`."""
        return f"<p>{html.escape(self.describe(batch, row))}</p>"

    def describe(self, batch: Mapping[str, np.ndarray], row: int) -> str:
        """See `Modality`."""
        names = self.classes or range(self.number)
        return ", ".join(str(names[i]) for i in batch[self.name][row].tolist() if i != _NONE) or "no class"

    @classmethod
    def continued(cls, saved: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
        """See `Modality`: everything."""
        return dict(saved)

    def check(self, device: bool = False) -> None:
        """See `Modality`."""
        if not self.field:
            raise DataError(f"{self.where}.field is empty; give the json field or column with the class of a sample")
        if bool(self.classes) == bool(self.count) or self.count < 0:
            raise DataError(
                f"{self.where}.field={self.field!r} needs either {self.where}.classes, the names of the classes in the "
                f"order of their ids, or {self.where}.count, how many there are where the field holds ids"
            )
        if self.most < 1:
            raise DataError(f"{self.where}.most is {self.most}; a sample has at least 1 class")
        if len(set(self.classes)) < len(self.classes):
            raise DataError(f"{self.where}.classes names a class twice")

    def signature(self) -> dict[str, Any]:
        """See `Modality`."""
        names = list(self.classes) or self.count
        digest = hashlib.blake2b(json.dumps(names).encode(), digest_size=8).hexdigest()
        return super().signature() | dict(field=self.field, classes=digest, most=self.most)

    def fields(self) -> tuple[str, ...]:
        """See `Modality`."""
        return (self.field,)

    def field_use(self, name: str) -> str:
        """See `Modality`."""
        return f"{self.where}.field"

    def field_members(self) -> tuple[str, ...]:
        """See `Modality`."""
        return (MEMBER,) if self.field == MEMBER else ()

    @property
    def number(self) -> int:
        """Number of classes."""
        return len(self.classes) or self.count

    def ids(self, fields: Mapping[str, Any]) -> np.ndarray:
        """Returns the class ids of a sample, int32 [most]; -1 fills up.

        Raises:
            NoPart: it has none.
            BadSample: it has more than `most`, or one that is not among the classes.
        """
        return self._numbers(lookup(fields, self.field))

    def _numbers(self, value: Any) -> np.ndarray:
        values = value if isinstance(value, list) else [value]
        # A column of whole numbers in which some are missing holds floats.
        values = [int(v) if isinstance(v, float) and v.is_integer() else v for v in values]
        values = [str(v).strip() for v in values if isinstance(v, str | int) and not isinstance(v, bool)]
        found = list(dict.fromkeys(self._id(v) for v in values if v))
        if not found:
            raise NoPart("no class")
        if len(found) > self.most:
            raise BadSample("too many classes")
        return np.array(found + [_NONE] * (self.most - len(found)), np.int32)

    def _id(self, value: str) -> int:
        if self._ids:
            number = self._ids.get(value, -1)
        else:
            found = _NUMBER.fullmatch(value)
            number = int(found[1]) if found else -1
        if not 0 <= number < self.number:
            raise BadSample("unknown class")
        return number

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {str(name): i for i, name in enumerate(self.classes)}
