"""Trains tokenizers for captions in any script: byte-level BPE, unigram with byte fall-back, and WordPiece.

Texts are divided before anything is learnt: into words with the space in front of them, numbers of three digits at
most, punctuation, and runs of scripts that put no spaces between words (Chinese, Japanese, Thai ...). So no token joins
two words, or a Latin letter to an ideograph, and a space before an ideograph is no token. In BPE and unigram no token
joins a part of one character to another. Equal captions give equal files, in whatever order they come.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from data_pipelines.errors import DataError, did_you_mean
from data_pipelines.text.tokenizers import BERT_TOKENS, Tokenizer, learnable, train_wordpiece

import tokenizers as hf  # isort: skip - after the module that sets how many threads it may start

KINDS = ("bpe", "wordpiece", "unigram")
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}ー\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_MARK = "▁"  # stands for a space in unigram pieces
_ALPHABET_SHARE = 0.75  # of the vocabulary, at most, for single characters; rarer ones are written as bytes
_OFTEN = 2  # times that what becomes a token must occur: what does once is a caption learnt by heart
_LONGEST = 16  # characters of a unigram piece
_SEEDS = 3  # candidates for each unigram piece
_KEPT = 0.75  # of the candidates, in each round of pruning
_FLOOR = 0.5  # occurrences of a character that every text writes by longer pieces


def _byte_symbols() -> Iterator[str]:
    hidden = iter(range(256, 512))
    for byte in range(256):
        shown = 33 <= byte <= 126 or 161 <= byte <= 172 or byte >= 174
        yield chr(byte if shown else next(hidden))


BYTE_SYMBOLS = tuple(_byte_symbols())
"""The character that stands for each byte in a byte-level vocabulary, as GPT-2 has it."""


@dataclass(frozen=True)
class Rules:
    """What a tokenizer is to be.

    Attributes:
        kind: one of `KINDS`.
        size: ids at most, special tokens included.
        lower: the tokenizer lower-cases texts itself.
        begin: texts get a begin token; an end token they always get. WordPiece has both.
        mask: there is a token that stands for a hidden one, for masked modelling. WordPiece always has one.
        special: more special tokens, which no text can write.
    """

    kind: str = "bpe"
    size: int = 8000
    lower: bool = False
    begin: bool = True
    mask: bool = False
    special: tuple[str, ...] = ()

    def __post_init__(self):
        if self.kind not in KINDS:
            raise DataError(f"the kind {self.kind!r} is not one of {', '.join(KINDS)}{did_you_mean(self.kind, KINDS)}")
        if self.kind == "wordpiece" and not self.begin:
            raise DataError("a wordpiece tokenizer has BERT's begin token; take bpe or unigram for one without")
        names = self.names()
        if repeated := sorted(name for name, count in Counter(names).items() if count > 1 or not name.strip()):
            raise DataError(f"the special token {repeated[0]!r} is empty or named twice; there are {', '.join(names)}")

    def names(self) -> tuple[str, ...]:
        """Returns the special tokens in the order of their ids."""
        if self.kind == "wordpiece":
            return (*BERT_TOKENS, *self.special)
        unknown = ("<unk>",) if self.kind == "unigram" else ()
        begin, mask = ("<bos>",) * self.begin, ("<mask>",) * self.mask
        return ("<pad>", *begin, "<eos>", *unknown, *mask, *self.special)


def train(captions: Iterable[str], rules: Rules) -> Tokenizer:
    """Trains a tokenizer.

    Args:
        captions: the texts, in any order.
        rules: what it is to be.

    Raises:
        DataError: there are no captions, or the vocabulary has no room for bytes or single characters.
    """
    texts = sorted(text for text in captions if text.strip())
    if not texts:
        raise DataError("there are no captions to train a tokenizer on")
    if rules.kind == "wordpiece":
        return train_wordpiece(texts, rules.size, lower=rules.lower, special=rules.special)
    return _bpe(texts, rules) if rules.kind == "bpe" else _unigram(texts, rules)


def _bpe(texts: Sequence[str], rules: Rules) -> Tokenizer:
    """Byte-level BPE (Sennrich et al. 2016) whose first merges put the bytes of characters together.

    Merges are learnt between characters. Written over bytes, behind those that make the characters, they never join a
    part of one character to its neighbour, as merges that are learnt over bytes do in Chinese or Japanese.
    """
    text = _divided(texts, rules, " ")
    names, symbols = rules.names(), BYTE_SYMBOLS
    room = _room(rules, len(names) + 256)
    alphabet = _alphabet(text, room, symbols)
    merges = _character_merges(alphabet, symbols)
    learnt = _learn(text, alphabet, room - len(merges))
    spelt = lambda part: "".join(symbols[byte] for byte in part.encode())
    merges += [(spelt(left), spelt(right)) for left, right in learnt]
    tokens = dict.fromkeys([*names, *symbols, *(left + right for left, right in merges)])
    pieces = hf.Tokenizer(hf.models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    pieces.normalizer = _normalizer(rules, hf.normalizers.Prepend(" "))
    inner = hf.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pieces.pre_tokenizer = hf.pre_tokenizers.Sequence([*_splits(" "), inner])
    pieces.decoder = hf.decoders.ByteLevel()
    return _finished(pieces, rules)


def _unigram(texts: Sequence[str], rules: Rules) -> Tokenizer:
    """A unigram model (Kudo 2018); characters that have no piece are written as bytes.

    The candidates are those of a BPE, and not all substrings, and counts are those of the best segmentations: the
    library's trainer adds numbers in the order of its hash tables, and gives another file at every run.
    """
    text = _divided(texts, rules, _MARK)
    names = rules.names()
    given = [*names, *(f"<0x{byte:02X}>" for byte in range(256))]
    room = _room(rules, len(given))
    alphabet = _alphabet(text, room)
    words = _words(text, alphabet, _MARK)
    candidates = [left + right for left, right in _learn(text, alphabet, _SEEDS * room, _MARK, _LONGEST)]
    scores = dict.fromkeys([*alphabet, *candidates], -math.log(len(alphabet) + len(candidates)))
    scores = _reestimate(scores, words)
    while len(scores) > room:
        scores = _pruned(scores, max(room, int(_KEPT * len(scores))))
        scores = _reestimate(scores, words)
    pieces = _model(_reestimate(scores, words), given, names.index("<unk>"))
    replace = hf.normalizers.Replace
    pieces.normalizer = _normalizer(rules, hf.normalizers.Prepend(" "), replace(" ", _MARK))
    pieces.pre_tokenizer = hf.pre_tokenizers.Sequence(_splits(_MARK))
    decoders = hf.decoders
    pieces.decoder = decoders.Sequence([decoders.Replace(_MARK, " "), decoders.ByteFallback(), decoders.Fuse()])
    return _finished(pieces, rules)


def _model(scores: dict[str, float], given: Sequence[str] = ("",), unknown: int = 0) -> hf.Tokenizer:
    """Returns a unigram model: of tokens that no text is divided into, and of scored pieces, the best first."""
    low = min(scores.values()) - 10.0
    ranked = sorted(scores.items(), key=lambda piece: (-piece[1], piece[0]))
    vocab = [*((name, low) for name in given), *ranked]
    return hf.Tokenizer(hf.models.Unigram(vocab, unk_id=unknown, byte_fallback=len(given) > 256))


def _reestimate(scores: dict[str, float], words: Sequence[tuple[str, int]]) -> dict[str, float]:
    """Returns the log frequencies of the pieces in the best segmentations; longer pieces that are in none are gone."""
    counts: Counter = Counter()
    found = _model(scores).encode_batch([word for word, _ in words], add_special_tokens=False)
    for (_, count), encoding in zip(words, found):
        for piece in encoding.tokens:
            counts[piece] += count
    counts = {piece: counts.get(piece, _FLOOR) for piece in scores if len(piece) == 1 or piece in counts}
    whole = math.log(sum(counts.values()))
    return {piece: math.log(count) - whole for piece, count in counts.items()}


def _pruned(scores: dict[str, float], size: int) -> dict[str, float]:
    """Returns the characters and, up to so many pieces in all, those without which texts would be least likely."""
    single = [piece for piece in scores if len(piece) == 1]
    losses = {
        piece: math.exp(score) * (score - _without(piece, scores)) for piece, score in scores.items() if len(piece) > 1
    }
    best = sorted(losses, key=lambda piece: (-losses[piece], piece))[: max(0, size - len(single))]
    return {piece: scores[piece] for piece in [*single, *best]}


def _without(piece: str, scores: dict[str, float]) -> float:
    """Returns the score of the best segmentation of a piece into others; its characters are among them."""
    best = [0.0] + [-math.inf] * len(piece)
    for end in range(1, len(piece) + 1):
        for start in range(end):
            part = piece[start:end]
            if part != piece and part in scores:
                best[end] = max(best[end], best[start] + scores[part])
    return best[-1]


def _splits(space: str) -> list[hf.pre_tokenizers.PreTokenizer]:
    """Returns what divides texts whose spaces are written as `space`; see the head of this file."""
    other = f"(?![{_UNSPACED}])"
    pattern = "|".join(
        (
            f"[{_UNSPACED}]+",
            r"'(?:[sdmt]|ll|ve|re)(?!\p{L})",
            rf"{space}?{other}\p{{L}}(?:{other}[\p{{L}}\p{{M}}])*",
            rf"{space}?\p{{N}}{{1,3}}",
            rf"{space}?[^\s{space}\p{{L}}\p{{N}}]+",
            rf"[\s{space}]+",
        )
    )
    split, regex = hf.pre_tokenizers.Split, hf.Regex
    return [split(regex(f"{space}+(?=[{_UNSPACED}])"), "removed"), split(regex(pattern), "isolated")]


def _normalizer(rules: Rules, *more: hf.normalizers.Normalizer) -> hf.normalizers.Normalizer:
    lower = [hf.normalizers.Lowercase()] * rules.lower
    return hf.normalizers.Sequence([hf.normalizers.NFC(), *lower, *more])


def _divided(texts: Sequence[str], rules: Rules, space: str) -> list[str]:
    """Returns the texts as the pre-tokenizer will get them."""
    normal = _normalizer(rules)
    return [f" {normal.normalize_str(text)}".replace(" ", space) for text in texts]


def _room(rules: Rules, given: int) -> int:
    if rules.size <= given:
        raise DataError(f"a vocabulary of {rules.size} is too small: special tokens and bytes alone take {given}")
    return rules.size - given


def _alphabet(texts: Sequence[str], room: int, symbols: Sequence[str] = ()) -> list[str]:
    """Returns the characters that get a token: the most frequent, as far as there is room for them and their parts."""
    counts = Counter(character for text in texts for character in text)
    ranked = sorted(counts, key=lambda character: (-counts[character], character))
    if not symbols:
        return sorted(ranked[: max(1, int(_ALPHABET_SHARE * room))])
    taken, used = [], set()
    for character in ranked:
        content = character.encode()
        parts = {content[:end] for end in range(2, len(content) + 1)} - used
        if len(used) + len(parts) <= _ALPHABET_SHARE * room:
            used |= parts
            taken.append(character)
    return sorted(taken)


def _character_merges(alphabet: Sequence[str], symbols: Sequence[str]) -> list[tuple[str, str]]:
    """Returns the merges that make characters of their bytes, from the first byte on."""
    merges: dict[tuple[str, str], None] = {}
    for character in alphabet:
        written = [symbols[byte] for byte in character.encode()]
        for end in range(1, len(written)):
            merges["".join(written[:end]), written[end]] = None
    return list(merges)


def _learn(
    texts: Sequence[str], alphabet: Sequence[str], count: int, space: str = " ", longest: int | None = None
) -> list[tuple[str, str]]:
    """Returns at most so many merges of characters, in the order in which they are learnt."""
    if count <= 0:
        return []
    pieces = hf.Tokenizer(hf.models.BPE())
    pieces.pre_tokenizer = hf.pre_tokenizers.Sequence(_splits(space))
    limit = dict(max_token_length=longest) if longest else {}
    size = learnable(texts, len(alphabet) + count, len(alphabet))
    trainer = hf.trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=list(alphabet), limit_alphabet=len(alphabet),
        min_frequency=_OFTEN, show_progress=False, **limit,
    )  # fmt: skip
    pieces.train_from_iterator(_known(texts, alphabet), trainer)
    return [tuple(pair) for pair in json.loads(pieces.to_str())["model"]["merges"]]


def _known(texts: Sequence[str], alphabet: Sequence[str]) -> Iterable[str]:
    """Yields the texts with line ends in place of characters that get no token: nothing is joined across one."""
    rare = {character for text in texts for character in text}.difference(alphabet)
    table = {ord(character): "\n" for character in rare}
    return (text.translate(table) for text in texts)


def _words(texts: Sequence[str], alphabet: Sequence[str], space: str) -> list[tuple[str, int]]:
    """Returns the divided words and how often they occur, sorted; parts in between that get no token left out."""
    split, counts = hf.pre_tokenizers.Sequence(_splits(space)), Counter()
    for text in _known(texts, alphabet):
        counts.update(word for word, _ in split.pre_tokenize_str(text))
    return sorted((word, count) for word, count in counts.items() if "\n" not in word)


def _finished(pieces: hf.Tokenizer, rules: Rules) -> Tokenizer:
    """Returns a tokenizer with its special tokens and the template that puts them around a text."""
    pieces.add_special_tokens([hf.AddedToken(name, special=True, normalized=False) for name in rules.names()])
    marks = [name for name in ("<bos>", "<eos>") if name in rules.names()]
    pieces.post_processor = hf.processors.TemplateProcessing(
        single=" ".join(["<bos>", "$A", "<eos>"][not rules.begin :]),
        special_tokens=[(name, pieces.token_to_id(name)) for name in marks],
    )
    return Tokenizer(pieces.to_str())
