"""Captions: from the `.txt` member, or from templates over the fields of the `.json` member."""

import contextlib
import json
import logging
import string
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from data_pipelines.errors import BadSample, DataError, did_you_mean
from data_pipelines.labels import MEMBER, Labels
from data_pipelines.text import expressions
from data_pipelines.text.fields import lookup
from data_pipelines.text.preparation import LONGEST, Preparation

_MASK = 2**64 - 1
_DRAWS = 4  # for each of several captions, before one comes twice

_log = logging.getLogger(__name__)


class Record(NamedTuple):
    """The text side of a sample: `text` of the .txt member, or `fields` of the .json member when captions need it."""

    text: str
    fields: dict[str, Any]


class Members(NamedTuple):
    """The extensions of the members of a tar that hold image and caption; "" takes the first of an image's."""

    image: str = ""
    caption: str = "txt"


_USUAL = Members()


class Template(NamedTuple):
    """One caption pattern: `parts` alternates literals and field names, starting with a literal."""

    weight: float
    pattern: str
    parts: tuple[tuple[str, str | None], ...]

    @property
    def fields(self) -> list[str]:
        return [name for _, name in self.parts if name is not None]


class Captions:
    """Says which samples have a caption, and which caption a random word chooses.

    Attributes:
        fields: the fields that it uses.
        labels: reads the classes, or None.
        from_text: captions are the texts of the samples, and do not come from templates.
        every_field: records hold all fields, used or not.
        images: samples have an image, too.
        signature: of the rule of what is usable.
        rendering: of the rule of what captions look like.
        members: that hold image and caption, in tars.
        where: path of the source in the config, for messages.

    Args:
        text: `config.data.text`: `templates`, `max_list`, `lower` and `clean`.
        group_key: json field that names equal content; "" where the sample itself is the identity.
        keep: a condition on the json fields, see `expressions`; other samples are left out. "" keeps all.
        always_json: read the json member where there is one that can be read, although no caption needs it.
        labels: reads the classes of a sample; samples without one are left out. None where none are asked for.
        images: samples have an image, too; others are left out.
        members: of tars.
        optional: samples without a caption are usable, too; theirs is "" (`every` then has none, or "").
        where: path of the source in the config, for messages.

    Raises:
        DataError: the condition is malformed, a template is not a `(weight, pattern)` pair or its pattern is malformed.
    """

    def __init__(self, text: Any, group_key: str = "", *, keep: str = "", always_json: bool = False,
                 labels: Labels | None = None, images: bool = True, members: Members = _USUAL,
                 optional: bool = False, where: str = "data.text"):  # fmt: skip
        self._templates = tuple(t for t in map(_template, text.templates) if t.weight > 0)
        if text.templates and not self._templates:
            raise DataError("every template of data.text.templates has weight 0")
        if text.lines and self._templates:
            raise DataError("lines (data.text.lines) takes the lines of a text for captions, and templates use no text")
        if text.max_list < 1:
            raise DataError(f"data.text.max_list is {text.max_list}; a list gives at least 1 entry")
        self._max_list, self._prepare = text.max_list, Preparation.of(text)
        self._group_key, self._always_json = group_key, always_json
        self._keep = expressions.parse(keep) if keep else None
        self.labels, self.images, self.members = labels, images, members
        self.from_text, self.every_field = not self._templates, always_json
        kept_by = self._keep.fields if self._keep else ()
        own = {group_key, labels.field if labels else ""} - {""}
        self.fields = sorted({name for t in self._templates for name in t.fields} | own | {*kept_by})
        self._needs_json = bool(self._templates or group_key or keep or labels)
        self._class_member = labels is not None and labels.field == MEMBER
        self._optional, self.where = optional, where
        self.lines = bool(text.lines) and self.from_text
        self._hinted = self.lines  # once is enough
        self._json_optional = optional or (self._class_member and self.fields == [MEMBER])
        # Everything that decides whether a sample can be used; an index made for another rule is another index.
        cleaned = text.clean != "none" and self.from_text  # which may leave nothing of a text
        rules = [str(self._keep)] * bool(keep) + [dict(clean=text.clean)] * cleaned
        rules += [labels.signature] if labels else []
        rules += [] if images else [dict(images=False)]
        rules += [members._asdict()] if members != _USUAL else []
        rules += ["uncaptioned"] * optional
        patterns = [t.pattern for t in self._templates]
        self.signature = json.dumps([patterns, group_key, *rules])
        clean = dict(none=False, basic=True).get(text.clean, text.clean)  # as indexes of before have it
        self.rendering = json.dumps([patterns, self._max_list, text.lower, clean, *["lines"] * self.lines])

    def read(self, get: Callable[[str], bytes | None]) -> Record:
        """Returns the text side of a sample.

        Args:
            get: returns the content of the member with the given extension, or None.

        Raises:
            BadSample: the member that the captions come from is missing or malformed.
        """
        text, fields = "", {}
        if self._needs_json:
            content = get("json")
            if content is None and not self._json_optional:
                raise BadSample("no caption" if self._templates else "no json")
            fields = _parse_json(b"{}" if content is None else content)
            if self._class_member and (number := get(MEMBER)) is not None:
                fields[MEMBER] = _decode(number, "bad class").strip()
        elif self._always_json:
            # What no caption needs must not decide what is usable: the index was made without looking at it.
            with contextlib.suppress(BadSample):
                fields = _parse_json(get("json") or b"{}")
        if not self._templates:
            content = get(self.members.caption)
            if content is None and not self._optional:
                raise BadSample("no caption")
            text = self._text(_decode(content or b"", "bad text"))
        return Record(text, fields)

    def from_fields(self, fields: dict[str, Any], text: str | None) -> Record:
        """Returns the text side of a row of a table.

        Args:
            fields: its columns.
            text: its caption, None where it has none; templates take the place of it.

        Raises:
            BadSample: there are no templates and no text.
        """
        if text is None and not self._templates and not self._optional:
            raise BadSample("no caption")
        text = "" if self._templates else self._text(text or "")
        return Record(text, fields if self._needs_json or self._always_json else {})

    def check(self, record: Record) -> None:
        """Raises BadSample if the record can give no caption, has no group key or is not to be kept."""
        if not self._optional and not (self._usable(record) if self._templates else record.text):
            raise BadSample("empty caption")
        if self._group_key and not _entries(lookup(record.fields, self._group_key)):
            raise BadSample("no group key")
        if self._keep and not self._keep.test(record.fields):
            raise BadSample("filtered")
        if self.labels:
            self.labels.ids(record.fields)

    def choose(self, record: Record, word: int) -> str:
        """Returns the caption that a random 64-bit `word` chooses among those of a checked record."""
        if not self._templates:
            lines = self._lines(record)
            return lines[word % len(lines)] if len(lines) > 1 else record.text
        templates = self._usable(record)
        share = (word >> 11) * 2.0**-53 * sum(t.weight for t in templates)
        for template in templates:
            share -= template.weight
            if share < 0:
                break

        def pick(entries: list[str], place: int) -> list[str]:
            return _some(entries, self._max_list, _mix(word + place)) if len(entries) > 1 else entries

        return self._render(template, record, pick)

    def several(self, record: Record, word: int, count: int) -> list[str]:
        """Returns as many captions, of which the first is that of `choose`; they differ as long as others are drawn."""
        found = {}
        for _ in range(_DRAWS * count):
            found[self.choose(record, word)] = None
            if len(found) == count:
                break
            word = _mix(word)
        different = list(found)
        return [different[i % len(different)] for i in range(count)]

    def every(self, record: Record) -> list[str]:
        """Returns the captions of a checked record without chance.

        Of a text the whole, or with `data.text.lines` each of its lines; else one a template, with lists cut to
        `max_list` entries. Where `max_list` is 1 each entry is a caption of its own: so a list field holds the several
        captions of an image.
        """
        if not self._templates:
            return self._lines(record)
        captions = []
        for template in self._usable(record):
            lists = (_entries(lookup(record.fields, name)) for name in template.fields)
            turns = max(map(len, lists), default=1) if self._max_list == 1 else 1
            for turn in range(turns):
                pick = lambda entries, _, turn=turn: _rotate(entries, turn)[: self._max_list]
                captions.append(self._render(template, record, pick))
        return list(dict.fromkeys(captions))

    def longest(self, record: Record) -> list[str]:
        """Returns captions of a checked record of which the longest is as long as any that `choose` gives."""
        if not self._templates:
            return self._lines(record)
        pick = lambda entries, _: sorted(entries, key=len, reverse=True)[: self._max_list]
        return [self._render(template, record, pick) for template in self._usable(record)]

    def identity(self, record: Record) -> str | None:
        """Returns the content of the group key of a checked record; None where none is configured."""
        return ", ".join(_entries(lookup(record.fields, self._group_key))) if self._group_key else None

    def filled(self, record: Record) -> list[str]:
        """Returns those of the configured fields that have a content in this record."""
        return [name for name in self.fields if _entries(lookup(record.fields, name))]

    def check_fields(self, filled: Mapping[str, int], available: Iterable[str], where: str) -> None:
        """Raises DataError if a configured field is empty in every record.

        Args:
            filled: field -> number of records in which it has a content.
            available: the fields that records do have.
            where: what was read, for the message.
        """
        for name in self.fields:
            if not filled.get(name):
                users = [t.pattern for t in self._templates if name in t.fields]
                use = "data.group_key" if name == self._group_key else "the filter"
                use = "data.label.field" if self.labels and name == self.labels.field else use
                use = f"the template {users[0]!r}" if users else use
                raise DataError(
                    f"{use} uses the field {name!r}, which is missing or empty in every record of {where}"
                    f"{did_you_mean(name, available)} (fields there: {', '.join(sorted(available)) or 'none'})"
                )

    def _text(self, text: str) -> str:
        """Returns the cleaned text of a sample; with `lines`, its lines that are not empty are still lines."""
        lines = text[:LONGEST].splitlines() if self.lines or not self._hinted else []
        if self.lines:
            return "\n".join(filter(None, map(self._prepare, lines)))
        if sum(map(bool, map(str.strip, lines))) > 1:
            self._hinted = True
            _log.warning(
                f"{self.where}: a text has several lines, which become one caption; `lines` (data.text.lines) takes "
                "each line for a caption of its own, as in CLIP_benchmark's retrieval sets"
            )
        return self._prepare(text)

    def _lines(self, record: Record) -> list[str]:
        """Returns the captions of a text."""
        return record.text.split("\n") if self.lines else [record.text]

    def _usable(self, record: Record) -> list[Template]:
        return [t for t in self._templates if all(_entries(lookup(record.fields, name)) for name in t.fields)]

    def _render(self, template: Template, record: Record, pick: Callable[[list[str], int], list[str]]) -> str:
        text = ""
        for place, (literal, name) in enumerate(template.parts):
            text += literal
            if name is not None:
                text += ", ".join(pick(_entries(lookup(record.fields, name)), place))
        return self._prepare(text)


def _template(entry: Any) -> Template:
    try:
        weight, pattern = entry
        parsed = list(string.Formatter().parse(pattern))
    except (TypeError, ValueError) as error:
        raise DataError(f"data.text.templates: {entry!r} is not (weight, 'text with {{field}}'): {error}") from None
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
        raise DataError(f"data.text.templates: the weight of {pattern!r} is {weight!r}, not a number from 0")
    for _, name, spec, conversion in parsed:
        if name is not None and (not name or spec or conversion):
            raise DataError(f"data.text.templates: {pattern!r} may only hold plain fields such as {{label}}")
    if not pattern.strip():
        raise DataError("data.text.templates: an empty template gives no caption")
    return Template(float(weight), pattern, tuple((literal, name) for literal, name, _, _ in parsed))


def _decode(content: bytes, reason: str) -> str:
    try:
        text = bytes(content).decode().removeprefix("\ufeff")  # as "utf-8-sig", which is a codec in Python
    except UnicodeDecodeError:
        raise BadSample(reason) from None
    if "\0" in text:  # no text holds it: the tail of a file that was never written
        raise BadSample(reason)
    return text


def _parse_json(content: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(_decode(content, "bad json"))
    except (ValueError, RecursionError):
        raise BadSample("bad json") from None
    if not isinstance(fields, dict):
        raise BadSample("bad json")
    return fields


def _entries(value: Any) -> list[str]:
    """The texts of a field: of a list each entry, of a text or number itself; objects, nulls and NaN have none."""
    values = value if isinstance(value, list) else [value]
    texts = (str(v).strip() for v in values if isinstance(v, str | int | float) and v == v)  # NaN is no equal
    return [text for text in texts if text]


def _rotate(entries: list[str], turn: int) -> list[str]:
    turn %= len(entries)
    return entries[turn:] + entries[:turn]


def _some(entries: list[str], most: int, word: int) -> list[str]:
    """1 to `most` of the entries in random order: the first steps of a Fisher-Yates shuffle."""
    entries = list(entries)
    count = 1 + word % min(most, len(entries))
    for i in range(count):
        word = _mix(word)
        j = i + word % (len(entries) - i)
        entries[i], entries[j] = entries[j], entries[i]
    return entries[:count]


def _mix(word: int) -> int:
    """The next word of splitmix64 (Steele et al. 2014): cheap, and enough to pick words from a short list."""
    word = (word + 0x9E3779B97F4A7C15) & _MASK
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _MASK
    return word ^ (word >> 31)
