"""Damaged tokenizer.json files: one line that says so, or a tokenizer that works; never a traceback, never a hang."""

import json
import resource

import pytest
import tokenizers as hf

from data_pipelines.errors import DataError
from data_pipelines.text.tokenizers import Tokenizer, train_bpe, train_wordpiece
from tests import fuzzing

TEXTS = ["a red heart", "Ein Äpfel 😀", "", "x " * 40]


def unigram() -> str:
    pieces = [("<unk>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("▁red", -1.0), ("▁", -2.0), ("h", -3.0), ("eart", -3.5)]
    words = hf.Tokenizer(hf.models.Unigram(pieces, unk_id=0, byte_fallback=False))
    words.pre_tokenizer = hf.pre_tokenizers.Metaspace()
    words.post_processor = hf.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    words.add_special_tokens(["<unk>", "<pad>", "</s>"])
    return words.to_str()


FILES = dict(
    bpe=lambda: train_bpe(["a red heart"], 262).json,
    wordpiece=lambda: train_wordpiece(["a red heart", "Ein Äpfel"], 40).json,
    unigram=unigram,
)


def read(content: bytes) -> None:
    try:
        text = content.decode()
    except UnicodeDecodeError as error:  # as `load` does
        raise DataError(str(error)) from None
    tokenizer = Tokenizer(text)
    ids, valid = tokenizer.encode(TEXTS, 16)
    assert ids.shape == valid.shape == (4, 16) and ids.min() >= 0 and ids.max() < tokenizer.vocab_size < 10**6
    for row in ids:
        tokenizer.decode(row)
    tokenizer.spans(TEXTS[1], 16)


@pytest.mark.parametrize("kind", FILES)
def test_damaged_files(kind, fuzz_cases, capfd):
    text = FILES[kind]()
    document = json.loads(text)
    read(text.encode())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in range(fuzz_cases):
        changed = fuzzing.damaged_json(document, seed)
        fuzzing.survives(lambda: read(json.dumps(changed).encode()), (DataError,), (kind, "json", seed))  # noqa: B023
        content = fuzzing.damaged(text.encode(), seed)
        fuzzing.survives(lambda: read(content), (DataError,), (kind, "bytes", seed))  # noqa: B023
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20, "KiB"
