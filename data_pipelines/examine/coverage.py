"""How a tokenizer writes captions, by script: tokens per caption, characters per token, what it does not know."""

import functools
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from data_pipelines.text.tokenizers import Tokenizer
from data_pipelines.text.vocabularies import BYTE_SYMBOLS

OTHER = "no letters"
_AT_ONCE = 10_000  # captions encoded together
_SHARE = 99  # percent of the captions that the suggested length holds whole
_STEP = 8  # lengths are multiples of it, as accelerators like them
_SCRIPTS = {"CJK": "Chinese", "HIRAGANA": "Japanese", "KATAKANA": "Japanese", "HANGUL": "Korean"}
_KANA = "Japanese"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # as SentencePiece has it


class Written(NamedTuple):
    """How the captions of a script are written.

    Attributes:
        script: that of most letters of a caption; of captions with kana Japanese, whatever ideographs they hold.
        captions: number of them.
        mean: tokens of a caption, begin and end included.
        percentiles: the 50th, 95th and 99th of these, and the most.
        characters: of a token, on average.
        unknown: share of the tokens that stand for what the vocabulary lacks.
        partial: share of the tokens that are a part of a character.
    """

    script: str
    captions: int
    mean: float
    percentiles: tuple[int, int, int, int]
    characters: float
    unknown: float
    partial: float


class Coverage:
    """Counts over captions; `rows` has what they come to.

    Args:
        tokenizer: writes the captions.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._unknown, self._partial = _outside(tokenizer)
        self._lengths: dict[str, list[int]] = {}
        self._counts: dict[str, Counter] = {}

    def add(self, captions: Iterable[str]) -> None:
        """Counts captions."""
        captions = list(captions)
        for start in range(0, len(captions), _AT_ONCE):
            part = captions[start : start + _AT_ONCE]
            for text, tokens in zip(part, self._tokenizer.tokens(part)):
                script = script_of(text)
                self._lengths.setdefault(script, []).append(len(tokens) + self._tokenizer.marks)
                count = self._counts.setdefault(script, Counter())
                count["characters"] += len(text)
                count["tokens"] += len(tokens)
                count["unknown"] += tokens.count(self._unknown)
                count["partial"] += sum(token in self._partial for token in tokens)

    def rows(self) -> list[Written]:
        """Returns the scripts, the most frequent first, and where there are several all of them together."""
        scripts = sorted(self._lengths, key=lambda script: (-len(self._lengths[script]), script))
        rows = [_written(script, self._lengths[script], self._counts[script]) for script in scripts]
        if len(rows) > 1:
            rows.append(_written("all", self._all(), sum(self._counts.values(), Counter())))
        return rows

    def suggested(self) -> tuple[int, float]:
        """Returns a length that holds at least 99 % of the captions whole, and the share that it cuts."""
        lengths = np.array(self._all())
        length = _STEP * -(-int(np.percentile(lengths, _SHARE, method="higher")) // _STEP)
        return length, float(np.mean(lengths > length))

    def _all(self) -> list[int]:
        return [length for lengths in self._lengths.values() for length in lengths]


def script_of(text: str) -> str:
    """Returns the script of a caption, such as "Latin" or "Chinese"."""
    scripts = Counter(filter(None, map(_script, text)))
    if not scripts:
        return OTHER
    return _KANA if _KANA in scripts else min(scripts, key=lambda script: (-scripts[script], script))


@functools.lru_cache(maxsize=2**16)
def _script(character: str) -> str:
    if not character.isalpha():
        return ""
    name = unicodedata.name(character, "").partition(" ")[0].partition("-")[0]
    return _SCRIPTS.get(name, name.capitalize())


def _outside(tokenizer: Tokenizer) -> tuple[int | None, frozenset[int]]:
    """Returns the id of what the vocabulary lacks, and the ids of parts of characters."""
    model = json.loads(tokenizer.json)["model"]
    vocab = model.get("vocab") or {}
    ids = vocab if isinstance(vocab, dict) else {piece: i for i, (piece, _) in enumerate(vocab)}
    unknown = ids.get(model.get("unk_token"), model.get("unk_id"))
    if BYTE_SYMBOLS[0] not in ids:  # no byte-level vocabulary
        return unknown, frozenset(i for piece, i in ids.items() if _BYTE.fullmatch(piece))
    numbers = {symbol: byte for byte, symbol in enumerate(BYTE_SYMBOLS)}
    return unknown, frozenset(i for piece, i in ids.items() if not _whole(piece.removesuffix("</w>"), numbers))


def _whole(piece: str, numbers: Mapping[str, int]) -> bool:
    try:
        bytes(numbers[symbol] for symbol in piece).decode()
    except KeyError:  # a special token
        return True
    except UnicodeDecodeError:
        return False
    return True


def _written(script: str, lengths: list[int], counts: Counter) -> Written:
    found, tokens = np.array(lengths), max(1, counts["tokens"])
    shares = np.percentile(found, (50, 95, 99, 100), method="higher").astype(int).tolist()
    parts = counts["characters"] / tokens, counts["unknown"] / tokens, counts["partial"] / tokens
    return Written(script, len(lengths), float(found.mean()), tuple(shares), *parts)
