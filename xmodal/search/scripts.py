"""Whether a model can read a question: a tokenizer that never saw a script knows its letters as unknown or as bytes."""

from collections.abc import Iterable

import numpy as np

from data_pipelines.text.tokenizers import Tokenizer
from xmodal.reporting.formatting import percent
from xmodal.reporting.messages import Message, say

_MOST = 0.5  # share of characters above which a text counts as not read
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
    unknown, letters = unread(tokenizer, text)
    if not letters or unknown / letters <= _MOST:
        return None
    usual = np.sum([unread(tokenizer, caption) for caption in captions] or [(0, 0)], axis=0)
    if unknown / letters - usual[0] / max(1, usual[1]) <= _USUAL:
        return None
    return say(
        "The model can hardly read this: its tokenizer does not know {share} of the characters, so it has seen little "
        "or nothing of this script in training. Expect results that mean nothing.",
        share=percent(unknown / letters),
    )
