"""Text of our pages in English and Chinese: one table, `assets/messages.json`, and one way to look it up.

The key of a message is its English text, with `{name}` where a value goes:

    say("step {step:,} of {total:,}", step=30, total=60)    ->  "step 30 of 60" and "第 30 步，共 60 步"
    term("image_to_text")                                   ->  "image → text" and "图 → 文"

Both texts go into a page, in `t-en` and `t-zh` elements (`markup.el` does it), of which the style sheet shows one;
`assets/language.js` chooses by the browser's languages. In scripts the function is `t("... {name}", {name: value})`.
"""

import functools
import importlib.resources
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from xmodal.reporting.formatting import words

_IN_SCRIPTS = re.compile(r'\bt\("((?:[^"\\]|\\.)*)"')


class Message(str):
    """English text that knows its Chinese.

    Attributes:
      zh: the text in Chinese.
    """

    def __new__(cls, english: str, zh: str):
        made = super().__new__(cls, english)
        made.zh = zh
        return made


def say(english: str, /, **values: Any) -> Message:
    """Returns a message of the table with its values, which may be messages; one that is not there stays English."""
    chinese = table()["messages"].get(english, english)
    return Message(english.format(**values), chinese.format(**{name: in_chinese(v) for name, v in values.items()}))


def term(name: str) -> str:
    """Returns a key of config, metrics or data in words, in both languages where the table has it."""
    return _term(words(name))


def dotted(names: Iterable[str]) -> str:
    """Joins keys in words: `unseen vendor · image → text`."""
    parts = [term(name) for name in names]
    return Message(" · ".join(parts), " · ".join(map(in_chinese, parts)))


def reason(text: str) -> str:
    """Returns a reason for which samples are left out, in both languages where the table has it."""
    return _term(text)


def _term(text: str) -> str:
    known = table()["terms"]
    if text in known:
        return Message(text, known[text])
    head, of, rest = text.partition(" of ")  # figures of a part of a set: `image → text of train`
    return Message(text, f"{known[head]} · {rest}") if of and head in known else text


def in_chinese(value: Any) -> Any:
    """Returns the Chinese of a message, and anything else as it is."""
    return value.zh if isinstance(value, Message) else value


def used_by(script: str) -> dict[str, str]:
    """Returns the messages that a script asks for: English -> Chinese."""
    found = [json.loads(f'"{text}"') for text in _IN_SCRIPTS.findall(script)]
    return {english: table()["messages"].get(english, english) for english in found}


@functools.cache
def table() -> Mapping[str, Mapping[str, str]]:
    """Returns `messages` (with places for values) and `terms` (names that data, configs and metrics bring)."""
    path = importlib.resources.files(__package__).joinpath("assets", "messages.json")
    return json.loads(path.read_text(encoding="utf-8"))
