"""Captions: from a text of a sample, or from templates over the fields of its record."""

import json
import logging
import string
from collections.abc import Callable
from typing import Any, NamedTuple

from data_pipelines.errors import DataError
from data_pipelines.samples import Record
from data_pipelines.text.fields import lookup
from data_pipelines.text.preparation import LONGEST, Preparation

_MASK = 2**64 - 1
_DRAWS = 4  # for each of several captions, before one comes twice

_log = logging.getLogger(__name__)


class Template(NamedTuple):
    """One caption pattern: `parts` alternates literals and field names, starting with a literal."""

    weight: float
    pattern: str
    parts: tuple[tuple[str, str | None], ...]

    @property
    def fields(self) -> list[str]:
        return [name for _, name in self.parts if name is not None]


class Captions:
    """Says which captions a record has, and which of them a random word chooses.

    Attributes:
        fields: the fields that it uses.
        from_text: captions are the texts of the samples, and do not come from templates.
        lines: each line of a text is a caption.
        usable_if: of the rule of what is usable, as json has it.
        rendering: of the rule of what captions look like.

    Args:
        text: the options of a text input: `templates`, `lines`, `max_list`, `lower` and `clean`.
        name: of the input: which text of a record it reads.
        where: path of the input in the config, for messages.
        source: path of what is read, for messages; "" is `where`.

    Raises:
        DataError: a template is not a `(weight, pattern)` pair or its pattern is malformed.
    """

    def __init__(self, text: Any, name: str, where: str, source: str = ""):
        self._templates = tuple(t for t in (_template(entry, where) for entry in text.templates) if t.weight > 0)
        if text.templates and not self._templates:
            raise DataError(f"every template of {where}.templates has weight 0")
        if text.lines and self._templates:
            raise DataError(f"lines ({where}.lines) takes the lines of a text for captions, and templates use no text")
        if text.max_list < 1:
            raise DataError(f"{where}.max_list is {text.max_list}; a list gives at least 1 entry")
        self._name, self._where, self._source = name, where, source or where
        self._max_list, self._prepare = text.max_list, Preparation.of(text)
        self.from_text = not self._templates
        self.fields = sorted({field for t in self._templates for field in t.fields})
        self.lines = bool(text.lines) and self.from_text
        self._hinted = self.lines  # once is enough
        patterns = [t.pattern for t in self._templates]
        cleaned = text.clean != "none" and self.from_text  # which may leave nothing of a text
        self.usable_if = dict(templates=patterns) | (dict(clean=text.clean) if cleaned else {})
        lines = ["lines"] * self.lines
        self.rendering = json.dumps([patterns, self._max_list, text.lower, text.clean, *lines])

    def usable(self, record: Record) -> bool:
        """Whether a record gives a caption."""
        return bool(self._usable(record)) if self._templates else bool(self._text(record))

    def pattern_of(self, field: str) -> str:
        """Returns the first template that uses a field; "" where none does."""
        return next((t.pattern for t in self._templates if field in t.fields), "")

    def choose(self, record: Record, word: int) -> str:
        """Returns the caption that a random 64-bit `word` chooses among those of a checked record."""
        if not self._templates:
            lines = self._lines(record)
            return lines[word % len(lines)]
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

        Of a text the whole, or with `lines` each of its lines; else one a template, with lists cut to
        `max_list` entries. Where `max_list` is 1 each entry is a caption of its own: so a list field holds the several
        captions of an image.
        """
        if not self._templates:
            return self._lines(record)
        captions = []
        for template in self._usable(record):
            lists = (entries(lookup(record.fields, name)) for name in template.fields)
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

    def cleaned(self, text: str) -> str:
        """Returns a text of a sample as its record keeps it; with `lines`, its lines that are not empty are lines."""
        lines = text[:LONGEST].splitlines() if self.lines or not self._hinted else []
        if self.lines:
            return "\n".join(filter(None, map(self._prepare, lines)))
        if sum(map(bool, map(str.strip, lines))) > 1:
            self._hinted = True
            _log.warning(
                f"{self._source}: a text has several lines, which become one caption; `lines` ({self._where}.lines) "
                "takes each line for a caption of its own, as in CLIP_benchmark's retrieval sets"
            )
        return self._prepare(text)

    def _text(self, record: Record) -> str:
        return record.texts.get(self._name, "")

    def _lines(self, record: Record) -> list[str]:
        """Returns the captions of a text."""
        return self._text(record).split("\n") if self.lines else [self._text(record)]

    def _usable(self, record: Record) -> list[Template]:
        return [t for t in self._templates if all(entries(lookup(record.fields, name)) for name in t.fields)]

    def _render(self, template: Template, record: Record, pick: Callable[[list[str], int], list[str]]) -> str:
        text = ""
        for place, (literal, name) in enumerate(template.parts):
            text += literal
            if name is not None:
                text += ", ".join(pick(entries(lookup(record.fields, name)), place))
        return self._prepare(text)


def _template(entry: Any, where: str) -> Template:
    try:
        weight, pattern = entry
        parsed = list(string.Formatter().parse(pattern))
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}.templates: {entry!r} is not (weight, 'text with {{field}}'): {error}") from None
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
        raise DataError(f"{where}.templates: the weight of {pattern!r} is {weight!r}, not a number from 0")
    for _, name, spec, conversion in parsed:
        if name is not None and (not name or spec or conversion):
            raise DataError(f"{where}.templates: {pattern!r} may only hold plain fields such as {{label}}")
    if not pattern.strip():
        raise DataError(f"{where}.templates: an empty template gives no caption")
    return Template(float(weight), pattern, tuple((literal, name) for literal, name, _, _ in parsed))


def entries(value: Any) -> list[str]:
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
