"""What a source gives: one sample, by the parts that its inputs have."""

from collections.abc import Mapping
from typing import Any, NamedTuple

ORIGIN = "source_path"  # field of the json members that `data build` writes


class Record(NamedTuple):
    """What is known of a sample without looking at its files.

    Attributes:
        texts: of the inputs that read a text: as `Modality.text` leaves it.
        fields: of its json member, or the columns of a list, where something needs them.
    """

    texts: Mapping[str, str]
    fields: Mapping[str, Any]

    @property
    def text(self) -> str:
        """The first of the texts; "" where there is none."""
        return next(iter(self.texts.values()), "")


class Sample(NamedTuple):
    """One sample.

    Attributes:
        shard: path of its tar or list.
        key: name in there.
        parts: encoded content of the inputs that files hold, by input; those that it lacks are missing.
        record: its texts and fields, checked.
        fault: why a part could not be fetched, where it comes from far away; "" if all could.
        origin: path or url of its first part as a list names it; "" where shard and key say where it lies.
    """

    shard: str
    key: str
    parts: Mapping[str, bytes | memoryview]
    record: Record
    fault: str = ""
    origin: str = ""

    @property
    def path(self) -> str:
        """Where the sample once came from, as `data build` noted it, or its origin; "" where neither is known."""
        noted = self.record.fields.get(ORIGIN)
        return noted if isinstance(noted, str) else self.origin

    @property
    def title(self) -> str:
        """What messages call it."""
        return f"{self.key} of {self.shard}"

    @property
    def content(self) -> bytes | memoryview:
        """Its first part; b"" where files hold none."""
        return next(iter(self.parts.values()), b"")

    @property
    def bytes(self) -> int:
        """Bytes of all its parts."""
        return sum(map(len, self.parts.values()))
