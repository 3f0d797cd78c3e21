"""Conditions on the json fields of a sample, such as `similarity > 0.28 and lang in ("en", "de")`.

    condition := condition "or" condition | condition "and" condition | "not" condition | "(" condition ")"
               | operand (("<" | "<=" | ">" | ">=" | "==" | "!=") operand)+
               | operand ["not"] "in" "(" value, ... ")"
               | field ["not"] "contains" operand  |  operand ["not"] "in" field
               | field | "true" | "false"
    operand   := field | value
    value     := number | "text" | 'text' | true | false | null

`not` binds tighter than `and`, `and` tighter than `or`. A field is a name, nested ones dotted (`exif.model`); any other
name stands in backquotes. In a text, a backslash stands before a quote or a backslash.

What a condition says of a field that is not what it expects:

* A missing field, null and NaN are one and the same. Every comparison with it is false, `!=` too; only `f == null`,
  `f != null` and null in a list of values see it. `not f > 1` is true for it, as `not` turns what the comparison says.
* A text compared with a number or a boolean is read as one (`"0.31"`, `"True"`), because tables often hold only texts.
  Where that fails, and for lists and objects, `!=` is true and every other comparison false.
* true is 1 and false is 0. Two texts are compared by their characters, upper case and lower case being different.
* `contains` finds an equal entry of a list, or a part of a text; anything else contains nothing.
* A field alone is false where it is missing, false, 0, empty, or a text that says so (`"0"`, `"false"`); or else true.

Nothing is evaluated but this grammar.
"""

import json
import math
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn, Protocol

from data_pipelines.errors import DataError, did_you_mean
from data_pipelines.text.fields import lookup

_MAX_LENGTH, _MAX_NAME, _MAX_DEPTH = 4096, 200, 50
_ORDER = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_COMPARISONS = (*_ORDER, "==", "!=")
_JOINTS = ("and", "or", "not", "in", "contains")
_CONSTANTS = {"true": True, "false": False, "null": None}
_MEANT = {
    "&&": "and", "&": "and", "||": "or", "|": "or", "!": "not", "=": "==", "===": "==", "<>": "!=", "=>": ">=",
    "=<": "<=", "none": "null",
}  # fmt: skip
_NUMBER = r"[+-]?(?:\d+(?:_\d+)*(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"
_NAME = r"[^\W\d]\w*(?:\.\w+)*"
_TOKEN = re.compile(
    rf"""\s*(?:(?P<number>{_NUMBER})(?![\w.])|(?P<name>{_NAME})|(?P<quoted>`[^`]+`)
    |(?P<text>"(?:[^"\\]|\\["'\\])*"|'(?:[^'\\]|\\["'\\])*')|(?P<sign>[<>=!&|]+|[(),\[\]])|(?P<end>\Z))""",
    re.VERBOSE,
)
_NUMERIC_TEXT = re.compile(rf"\s*{_NUMBER}\s*")


@dataclass(frozen=True)
class Expression:
    """A condition. Equal conditions are written alike by `str`, whatever their spaces, quotes and brackets.

    Attributes:
        fields: the fields that it reads, sorted.
    """

    fields: tuple[str, ...]
    _root: "_Node"

    def test(self, fields: Mapping[str, Any]) -> bool:
        """Says whether the fields of a json record meet the condition."""
        return self._root.test(fields)

    def __str__(self) -> str:
        return str(self._root)


def parse(text: str, where: str = "filter") -> Expression:
    """Reads a condition.

    Args:
        text: at most 4096 characters of the grammar above.
        where: what the text is, for messages.

    Raises:
        DataError: it is malformed; the message shows the place and what was expected there.
    """
    if len(text) > _MAX_LENGTH:
        raise DataError(f"{where}: a condition of {len(text)} characters; at most {_MAX_LENGTH} are read")
    if not text.strip():
        raise DataError(f"{where}: an empty condition; expected for example `similarity > 0.28 and width >= 200`")
    parser = _Parser(text, where)
    root = parser.condition(0)
    parser.finish()
    return Expression(tuple(sorted(parser.fields)), root)


# ------------------------------------------------------------------------------------------ what conditions mean


class _Node(Protocol):
    def test(self, fields: Mapping[str, Any]) -> bool: ...


@dataclass(frozen=True)
class _Field:
    name: str

    def value(self, fields: Mapping[str, Any]) -> Any:
        found = lookup(fields, self.name)
        return None if isinstance(found, float) and math.isnan(found) else found

    def __str__(self) -> str:
        plain = re.fullmatch(_NAME, self.name) and not _reserved(self.name)
        return self.name if plain else f"`{self.name}`"


@dataclass(frozen=True)
class _Value:
    constant: str | int | float | bool | None

    def value(self, _: Mapping[str, Any]) -> Any:
        return self.constant

    def __str__(self) -> str:
        if isinstance(self.constant, str):
            return '"' + re.sub(r'(["\\])', r"\\\1", self.constant) + '"'
        return json.dumps(self.constant)


_Operand = _Field | _Value
_NULL = _Value(None)


@dataclass(frozen=True)
class _Compare:
    left: _Operand
    sign: str
    right: _Operand

    def test(self, fields: Mapping[str, Any]) -> bool:
        left, right = self.left.value(fields), self.right.value(fields)
        if self.left == _NULL or self.right == _NULL:
            return (left is right) == (self.sign == "==")
        if left is None or right is None:
            return False
        if self.sign in _ORDER:
            pair = _comparable(left, right)
            return pair is not None and _ORDER[self.sign](*pair)
        return _equal(left, right) == (self.sign == "==")

    def __str__(self) -> str:
        return f"{self.left} {self.sign} {self.right}"


@dataclass(frozen=True)
class _Among:
    operand: _Operand
    values: tuple[_Value, ...]

    def test(self, fields: Mapping[str, Any]) -> bool:
        found = self.operand.value(fields)
        return any(_equal(found, value.constant) for value in self.values)

    def __str__(self) -> str:
        return f"{self.operand} in ({', '.join(map(str, self.values))})"


@dataclass(frozen=True)
class _Contains:
    field: _Field
    part: _Operand

    def test(self, fields: Mapping[str, Any]) -> bool:
        whole, part = self.field.value(fields), self.part.value(fields)
        if isinstance(whole, list | tuple):
            return part is not None and any(_equal(entry, part) for entry in whole)
        return isinstance(whole, str) and isinstance(part, str) and part in whole

    def __str__(self) -> str:
        return f"{self.field} contains {self.part}"


@dataclass(frozen=True)
class _Holds:
    operand: _Operand

    def test(self, fields: Mapping[str, Any]) -> bool:
        found = self.operand.value(fields)
        number = _number(found) if isinstance(found, str) else None
        return bool(found if number is None else number)

    def __str__(self) -> str:
        return str(self.operand)


@dataclass(frozen=True)
class _Not:
    part: _Node

    def test(self, fields: Mapping[str, Any]) -> bool:
        return not self.part.test(fields)

    def __str__(self) -> str:
        return f"not ({self.part})" if isinstance(self.part, _Joined) else f"not {self.part}"


@dataclass(frozen=True)
class _Joined:
    word: str  # and, or
    parts: tuple[_Node, ...]

    def test(self, fields: Mapping[str, Any]) -> bool:
        return (all if self.word == "and" else any)(part.test(fields) for part in self.parts)

    def __str__(self) -> str:
        loose = lambda part: self.word == "and" and isinstance(part, _Joined)
        return f" {self.word} ".join(f"({part})" if loose(part) else str(part) for part in self.parts)


def _equal(a: Any, b: Any) -> bool:
    if a is None or b is None:
        return a is b
    pair = _comparable(a, b)
    return pair is not None and pair[0] == pair[1]


def _comparable(a: Any, b: Any) -> tuple[Any, Any] | None:
    """Two values as two texts or two numbers; None where they are neither."""
    if isinstance(a, str) != isinstance(b, str):
        a, b = (_number(v) if isinstance(v, str) else v for v in (a, b))
    same = any(isinstance(a, kind) and isinstance(b, kind) for kind in (str, int | float))
    return (a, b) if same else None


def _number(text: str) -> int | float | None:
    """What a text says as a number or a boolean."""
    if len(text) <= _MAX_NAME and _NUMERIC_TEXT.fullmatch(text):
        return _digits(text)
    return {"true": True, "false": False}.get(text.strip().lower())


def _digits(text: str) -> int | float:
    number = float(text)
    exact = re.fullmatch(r"\s*[+-]?[\d_]+\s*", text)  # a long id must not lose its last digits
    return int(text) if exact else int(number) if number.is_integer() and abs(number) < 2**53 else number


def _reserved(name: str) -> bool:
    return name.lower() in (*_JOINTS, *_CONSTANTS, "none")


# ------------------------------------------------------------------------------------------ how they are written


class _Token(NamedTuple):
    kind: str
    text: str
    start: int


class _Parser:
    """Recursive descent over tokens that are cut off one by one; `_next` is the one to look at."""

    def __init__(self, text: str, where: str):
        self._text, self._where, self._end = text, where, 0
        self.fields: set[str] = set()
        self._next = self._cut()

    def condition(self, depth: int) -> _Node:
        return self._joined("or", lambda: self._joined("and", lambda: self._inverted(depth)))

    def finish(self) -> None:
        if self._next.kind != "end":
            self._unexpected(f"`and`, `or`, a comparison ({' '.join(_COMPARISONS)}), `in`, `contains` or the end")

    def _joined(self, word: str, part: Any) -> _Node:
        parts = []
        while not parts or self._take(word):
            new = part()
            parts.extend(new.parts if isinstance(new, _Joined) and new.word == word else (new,))
        return parts[0] if len(parts) == 1 else _Joined(word, tuple(parts))

    def _inverted(self, depth: int) -> _Node:
        if depth > _MAX_DEPTH:
            self._fail(f"at most {_MAX_DEPTH} brackets and `not`s may stand inside one another", self._next)
        if self._take("not"):
            return _Not(self._inverted(depth + 1))
        if self._take("("):
            inner = self.condition(depth + 1)
            if not self._take(")"):
                self._unexpected("`and`, `or` or `)`")
            return inner
        return self._comparison()

    def _comparison(self) -> _Node:
        first, left = self._next, self._operand("a condition")
        if self._next.text in _COMPARISONS and self._next.kind == "sign":
            return self._chain(left)
        inverted = self._take("not")
        if self._take("contains"):
            if not isinstance(left, _Field):
                self._fail("expected a field before `contains`", first)
            node = _Contains(left, self._part(self._next))
        elif self._take("in"):
            node = self._within(left, first)
        elif inverted:
            self._unexpected("`in` or `contains` after `not`")
        elif isinstance(left, _Value) and not isinstance(left.constant, bool):
            self._unexpected(f"a comparison ({' '.join(_COMPARISONS)}) or `in` after a value")
        else:
            node = _Holds(left)
        return _Not(node) if inverted else node

    def _chain(self, left: _Operand) -> _Node:
        """`a < b < c` is `a < b and b < c`."""
        parts = []
        while self._next.kind == "sign" and self._next.text in _COMPARISONS:
            sign = self._advance()
            right = self._operand("a field or a value")
            if sign.text in _ORDER and (left == _NULL or right == _NULL):
                self._fail("null can only be compared by == and !=", sign)
            parts.append(_Compare(left, sign.text, right))
            left = right
        return parts[0] if len(parts) == 1 else _Joined("and", tuple(parts))

    def _within(self, left: _Operand, first: _Token) -> _Node:
        bracket = self._next.text
        if not (self._take("(") or self._take("[")):
            token, container = self._next, self._operand("values in brackets, such as (1, 2), or a field")
            if not isinstance(container, _Field):
                self._fail("expected values in brackets, such as (1, 2), or a field", token)
            return _Contains(container, self._part(first, left))
        values, close = [self._value()], ")" if bracket == "(" else "]"
        while self._take(","):
            if self._next.text == close:
                break
            values.append(self._value())
        if not self._take(close):
            self._unexpected(f"`,` or `{close}`")
        return _Among(left, tuple(values))

    def _part(self, token: _Token, operand: _Operand | None = None) -> _Operand:
        operand = operand or self._operand("a field or a value")
        if operand == _NULL:
            self._fail("nothing contains null", token)
        return operand

    def _value(self) -> _Value:
        token, operand = self._next, self._operand("a value")
        if isinstance(operand, _Field):
            self._fail("expected a value; texts stand in quotes", token)
        return operand

    def _operand(self, expected: str) -> _Operand:
        token = self._next
        if token.kind == "name" and token.text in _CONSTANTS:
            self._advance()
            return _Value(_CONSTANTS[token.text])
        if (token.kind == "name" and _reserved(token.text)) or token.kind in ("sign", "end"):
            self._unexpected(expected)
        self._advance()
        if token.kind == "text":
            return _Value(re.sub(r"\\(.)", r"\1", token.text[1:-1]))
        if token.kind == "number":
            if not math.isfinite(float(token.text)):
                self._fail("a number too large", token)
            return _Value(_digits(token.text))
        name = token.text.strip("`")
        if len(name) > _MAX_NAME:
            self._fail(f"a name of more than {_MAX_NAME} characters", token)
        self.fields.add(name)
        return _Field(name)

    def _take(self, text: str) -> bool:
        if self._next.text != text or self._next.kind not in ("name", "sign"):
            return False
        self._advance()
        return True

    def _advance(self) -> _Token:
        token, self._next = self._next, self._cut()
        return token

    def _cut(self) -> _Token:
        match = _TOKEN.match(self._text, self._end)
        if match is None:
            self._stray(len(self._text) - len(self._text[self._end :].lstrip()))
        self._end = match.end()
        return _Token(match.lastgroup, match[match.lastgroup], match.start(match.lastgroup))

    def _stray(self, start: int) -> NoReturn:
        """Raises for characters that begin no token."""
        token = _Token("stray", re.match(r"[\w.+]+|.", self._text[start:], re.DOTALL)[0], start)
        if token.text in "\"'`":
            self._fail(f"this {token.text} is not closed (inside a text, only quotes and \\ follow a \\)", token)
        self._fail("a name of other than letters, digits, _ and dots stands in backquotes: `clip-score`", token)

    def _unexpected(self, expected: str) -> NoReturn:
        """Raises for a token that cannot stand where it stands."""
        kind, found, _ = self._next
        hint = "" if kind == "end" else f", got {found!r}"
        if kind in ("name", "sign"):
            meant = _MEANT.get(found.lower()) or (found.lower() if _reserved(found) else "")
            similar = "" if found in _JOINTS else did_you_mean(found, _JOINTS)
            hint += f"; did you mean {meant!r}?" if meant not in ("", found) else similar
        self._fail(f"expected {expected}{hint}", self._next)

    def _fail(self, message: str, token: _Token) -> NoReturn:
        start = self._text.rfind("\n", 0, token.start) + 1
        line = self._text[start:].partition("\n")[0]
        skipped = max(0, token.start - start - 60)  # of a long line, show the surroundings
        shown = re.sub(r"\s", " ", line[skipped : skipped + 120])
        raise DataError(f"{self._where}: {message}\n  {shown}\n  {' ' * (token.start - start - skipped)}^")
