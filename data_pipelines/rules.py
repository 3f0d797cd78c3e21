"""Which samples of a source can be used, and what its inputs find in them."""

import contextlib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from data_pipelines.errors import BadSample, DataError, did_you_mean
from data_pipelines.io.tar import Group, Member
from data_pipelines.modalities.base import Modality, NoPart
from data_pipelines.modalities.inputs import Inputs
from data_pipelines.modalities.text import decoded
from data_pipelines.samples import Record
from data_pipelines.text import expressions
from data_pipelines.text.captions import entries
from data_pipelines.text.fields import lookup

_MAX_TEXT_BYTES = 4 * 2**20  # of a text or json member; more is an attack or a mistake


class Rules:
    """What of a source's samples can be used.

    Attributes:
        inputs: of its samples.
        fields: of records that something uses.
        every_field: records hold all fields, used or not.
        where: path of the source in the config, for messages.
        signature: of the rule of what is usable.

    Args:
        inputs: of the samples.
        group_key: json field that names equal content; "" where the sample itself is the identity.
        keep: a condition on the json fields, see `expressions`; other samples are left out. "" keeps all.
        every_field: read the json member where there is one that can be read, although no input needs it.

    Raises:
        DataError: the condition or an option of an input cannot be used.
    """

    def __init__(
        self, inputs: Inputs, group_key: str = "", *, keep: str = "", every_field: bool = False, where: str = ""
    ):
        self.inputs, self.every_field, self.where, self._group_key = inputs, every_field, where, group_key
        self._keep = expressions.parse(keep) if keep else None
        self.texts = {name: m for name, m in inputs.items() if m.text_member()}
        kept_by = set(self._keep.fields) if self._keep else set()
        used = {name for modality in inputs.values() for name in modality.fields()}
        self.fields = sorted(used | kept_by | ({group_key} - {""}))
        self._members = dict.fromkeys(name for m in inputs.values() for name in m.field_members())
        strict = lambda m: m.required and set(m.fields()) - self._members.keys()
        # The json member may be missing where nothing that a sample needs is in it.
        self._needed_by = list(filter(strict, inputs.values()))
        self._needs_json = bool(self.fields)
        self._may_lack_json = not self._needed_by and not group_key and not keep
        # Everything that decides whether a sample can be used; an index made for another rule is another index.
        of_inputs = {name: rule for name, modality in inputs.items() if (rule := modality.signature())}
        self.signature = json.dumps([of_inputs, group_key, *[str(self._keep)] * bool(keep)])
        self._check_members()

    def read(self, get: Callable[[str], bytes | None]) -> Record:
        """Returns texts and fields of a sample.

        Args:
            get: returns the content of the member with the given extension, or None.

        Raises:
            BadSample: a member that an input needs is missing or malformed.
        """
        fields: dict[str, Any] = {}
        if self._needs_json:
            content = get("json")
            if content is None and not self._may_lack_json:
                noun = next((m.noun for m in self._needed_by if m.tokenized), "json")
                raise NoPart(f"no {noun}")
            fields = parse_json(b"{}" if content is None else content)
            for name in self._members:
                if (number := get(name)) is not None:
                    fields[name] = decoded(number, "bad class").strip()
        elif self.every_field:
            # What no input needs must not decide what is usable: the index was made without looking at it.
            with contextlib.suppress(BadSample):
                fields = parse_json(get("json") or b"{}")
        texts = {}
        for name, modality in self.texts.items():
            content = get(modality.text_member())
            if content is None and modality.required:
                raise NoPart(f"no {modality.noun}")
            texts[name] = modality.text(decoded(content or b"", "bad text"))
        return Record(texts, fields)

    def from_fields(self, fields: Mapping[str, Any], texts: Mapping[str, str | None]) -> Record:
        """Returns texts and fields of a row of a table.

        Args:
            fields: its columns.
            texts: of the inputs that read a text, None where the row has none.

        Raises:
            BadSample: one that is required has no text.
        """
        found = {}
        for name, modality in self.texts.items():
            text = texts.get(name)
            if text is None and modality.required:
                raise NoPart(f"no {modality.noun}")
            found[name] = modality.text(text or "")
        return Record(found, fields if self._needs_json or self.every_field else {})

    def check(self, record: Record) -> None:
        """Raises BadSample if an input finds nothing in a record, it has no group key or is not to be kept."""
        texts = self.inputs.texts
        for modality in texts.values():
            modality.check_record(record)
        if self._group_key and not entries(lookup(record.fields, self._group_key)):
            raise BadSample("no group key")
        if self._keep and not self._keep.test(record.fields):
            raise BadSample("filtered")
        for name, modality in self.inputs.items():
            if name not in texts:
                modality.check_record(record)

    def members(self, group: Group) -> dict[str, Member]:
        """Returns where in a tar the inputs lie that files hold; those that a sample may lack are missing.

        Raises:
            BadSample: one is missing, empty, a link or a sparse member, or an extension occurs twice.
        """
        if group.repeated:
            raise BadSample("repeated member")
        stored = self.inputs.stored
        if not any(m.member for m in stored.values()) and group.members and all("." in name for name in group.members):
            raise BadSample("dot in the name")  # which ends its key: of 22.05.jpg the key is 22
        found = {}
        for name, modality in stored.items():
            try:
                found[name] = _member(group, modality)
            except NoPart:
                if modality.required:
                    raise
        return found

    def read_group(self, group: Group, fetch: Callable[[Member], bytes]) -> Record:
        """Returns texts and fields of a sample of a tar, unchecked. Raises BadSample as `read`."""

        def get(extension: str) -> bytes | None:
            member = group.members.get(extension)
            if member is None:
                if extension in group.without:
                    raise BadSample(group.without[extension])
                return None
            if member.size > _MAX_TEXT_BYTES:
                raise BadSample(f"{extension} too large")
            return fetch(member)

        return self.read(get)

    def captions(self, record: Record) -> list[str]:
        """Returns the captions of a checked record without chance: those of the first text; [] where there is none."""
        text = self.inputs.caption
        return text.captions.every(record) if text is not None else []

    def identity(self, record: Record) -> str | None:
        """Returns the content of the group key of a checked record; None where none is configured."""
        return ", ".join(entries(lookup(record.fields, self._group_key))) if self._group_key else None

    def filled(self, fields: Mapping[str, Any]) -> list[str]:
        """Returns those of the configured fields that have a content."""
        return [name for name in self.fields if entries(lookup(fields, name))]

    def check_fields(self, filled: Mapping[str, int], available: Iterable[str], where: str) -> None:
        """Raises DataError if a configured field is empty in every record.

        Args:
            filled: field -> number of records in which it has a content.
            available: the fields that records do have.
            where: what was read, for the message.
        """
        for name in self.fields:
            if not filled.get(name):
                raise DataError(
                    f"{self._use(name)} uses the field {name!r}, which is missing or empty in every record of {where}"
                    f"{did_you_mean(name, available)} (fields there: {', '.join(sorted(available)) or 'none'})"
                )

    def _use(self, field: str) -> str:
        users = [modality for modality in self.inputs.values() if field in modality.fields()]
        texts = [modality for modality in users if modality.tokenized]
        if users:
            return (texts or users)[0].field_use(field)
        return "data.group_key" if field == self._group_key else "the filter"

    def _check_members(self) -> None:
        """Raises DataError where two inputs would find the same part."""
        open_ = [modality for modality in self.inputs.stored.values() if not modality.member]
        for i, one in enumerate(open_):
            for other in open_[:i]:
                if set(one.extensions) & set(other.extensions):
                    raise DataError(
                        f"{other.where} and {one.where} would both take the first {one.noun} of a sample: say with "
                        "`member` which member, column or feature each of them is"
                    )
        if len(self.texts) > 1:
            members = [modality.text_member() for modality in self.texts.values()]
            if repeated := next((name for name in members if members.count(name) > 1), ""):
                both = " and ".join(m.where for m in self.texts.values() if m.text_member() == repeated)
                raise DataError(f"{both} would read the same text ({repeated}): give `member` or `templates` of each")


def _member(group: Group, modality: Modality) -> Member:
    wanted = (modality.member.lower(),) if modality.member else modality.extensions
    for name, member in group.members.items():
        if name in wanted:
            if not member.size:
                raise BadSample(f"empty {modality.noun}")
            return member
    if without := next((group.without[name] for name in wanted if name in group.without), ""):
        raise BadSample(without)
    raise NoPart(f"no {modality.noun}")


def parse_json(content: bytes) -> dict[str, Any]:
    """Returns the fields of a json member. Raises BadSample."""
    try:
        fields = json.loads(decoded(content, "bad json"))
    except (ValueError, RecursionError):
        raise BadSample("bad json") from None
    if not isinstance(fields, dict):
        raise BadSample("bad json")
    return fields
