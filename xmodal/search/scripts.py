"""Whether a model can read a question: a tokenizer that never saw a script knows its letters as unknown or as bytes."""

import re
from collections.abc import Iterable, Sequence

import numpy as np

from data_pipelines.text.tokenizers import Tokenizer
from xmodal.reporting.formatting import percent
from xmodal.reporting.messages import Message, say

_MOST = 0.5  # share of characters above which a text counts as not read
_SPELLED = 0.75  # share of a text's letters that are tokens of their own, above which its words count as not known
_FOREIGN = 0.1  # share of letters in captions of another script: "T恤" and "iPhone" are in many
_WORDS = re.compile("x{3,}")
_USUAL = 0.25  # as much above that of the captions; a tokenizer of bytes alone reads everything as bytes


def unread(tokenizer: Tokenizer, text: str) -> tuple[int, int]:
    """Counts the characters of a text, white space left out, that a tokenizer does not know.

    Args:
      tokenizer: of the model.
      text: as the model gets it.

    Returns:
      (characters that are unknown, left out, or split into several tokens, all characters).
    """
    tokens = tokenizer.tokens([text])[0]
    spans = [span for _, span in tokenizer.spans(text, len(tokens) + 8)]
    times = np.zeros(len(text), np.int64)
    for token, (start, end) in zip(tokens, spans):
        times[start:end] += 2 if token in tokenizer.special_ids else 1
    letters = [i for i, letter in enumerate(text) if not letter.isspace()]
    return int(np.sum(times[letters] != 1)) if letters else 0, len(letters)


def warning_of(tokenizer: Tokenizer, text: str, captions: Iterable[str]) -> Message | None:
    """Returns what to tell who asks in a script that the model cannot read; None where it can.

    Args:
      tokenizer: of the model.
      text: the question, as the model gets it.
      captions: some of the data, likewise: what is usual there is no cause for a warning.
    """
    captions = list(captions)
    unknown, letters = unread(tokenizer, text)
    if not letters or unknown / letters <= _MOST:
        return _spelling_of(tokenizer, text, captions)
    usual = np.sum([unread(tokenizer, caption) for caption in captions] or [(0, 0)], axis=0)
    if unknown / letters - usual[0] / max(1, usual[1]) <= _USUAL:
        return None
    return say(
        "The model can hardly read this: its tokenizer does not know {share} of the characters, so it has seen little "
        "or nothing of this script in training. Expect results that mean nothing.",
        share=percent(unknown / letters),
    )


def spelled(tokenizer: Tokenizer, text: str) -> tuple[int, int]:
    """Counts the letters of a text's words that are tokens of their own.

    A vocabulary learnt from an alphabet has words and parts of words; one that has only met its letters spells them.
    Chinese and other scripts without upper and lower case are left out: their characters are words.

    Args:
      tokenizer: of the model.
      text: as the model gets it.

    Returns:
      (letters of words of at least three that are single tokens, all letters that have an upper and a lower case).
    """
    cased = np.array([letter.lower() != letter.upper() for letter in text], bool)
    in_words = np.zeros(len(text), bool)
    for word in _WORDS.finditer("".join("x" if letter else " " for letter in cased)):
        in_words[word.start() : word.end()] = True
    spans = [slice(*span) for _, span in tokenizer.spans(text, len(text) * 4 + tokenizer.marks)]
    alone = sum(int(in_words[span].sum()) for span in spans if cased[span].sum() == 1)
    return alone, int(cased.sum())


def _spelling_of(tokenizer: Tokenizer, text: str, captions: Sequence[str]) -> Message | None:
    alone, cased = spelled(tokenizer, text)
    if alone <= _SPELLED * max(1, cased) or cased <= _MOST * sum(not letter.isspace() for letter in text):
        return None
    written = "".join(captions)
    if not written or sum(letter.lower() != letter.upper() for letter in written) > _FOREIGN * len(written):
        return None
    return say(
        "The model can hardly read this: its tokenizer spells these words letter by letter, and the captions here are "
        "in another script, so it has seen few such words in training. Expect results that mean little."
    )
