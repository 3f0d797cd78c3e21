"""Text to token ids through any Hugging Face `tokenizer.json`, CLIP's own among them."""

import contextlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.io.paths import find_file

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the stream's threads are the parallelism

import tokenizers as hf

_BOS = ("<bos>", "<|startoftext|>", "[CLS]", "<s>")
_EOS = ("<eos>", "<|endoftext|>", "[SEP]", "</s>")
_PAD = ("<pad>", "[PAD]", "<|pad|>")
_MASK = ("[MASK]", "<mask>")
_PROBES = ("a", "A cat, 2 dogs.", "é 苹果 😀", "<a> [b]\x00", "\u200d", "")  # what a vocabulary may not know
_MESSAGE = 400  # characters of what the library says
BERT_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # special tokens of a WordPiece, in the order of their ids


class Tokenizer:
    """Encodes captions as `prefix, tokens, suffix, pad...`.

    The special tokens around a text are those that the file's own template adds, all of them; a file without a template
    gets a begin and an end token of its vocabulary.

    Attributes:
        json: text of the `tokenizer.json`, to be kept with a run.
        vocab_size: number of ids, added tokens included.
        prefix: ids in front of every caption; () where there are none (SigLIP, T5, GPT-2).
        suffix: ids that end every caption, cut ones too; at least one.
        bos_id: begins every caption: the first of the prefix, or None.
        eos_id: ends every caption: the last of the suffix.
        pad_id: fills the rest.
        mask_id: stands for a token that is to be guessed; None where there is no such token.
        special_ids: of all special tokens, those of unknown words among them.
    """

    def __init__(self, text: str, name: str = "tokenizer.json"):
        """Reads the text of a `tokenizer.json`.

        Args:
            text: content of the file.
            name: where it comes from, for messages.

        Raises:
            DataError: it is no tokenizer, its ids have gaps, or it has no end token.
        """
        with reading(name):
            stated = json.loads(text)
            ids = token_ids(stated)
            self._hf = hf.Tokenizer.from_str(text)
            self._hf.no_padding()
            self._hf.no_truncation()
            given = self._hf.get_vocab(with_added_tokens=True)
            if wrong := next((token for token in ids if given.get(token) != ids[token]), None):
                raise ValueError(f"the token {wrong!r} has the id {ids[wrong]} in it, and {given.get(wrong)} when read")
            before, after = self._template()
            self._hf.encode_special_tokens = True  # a caption that says "<eos>" must not end itself
            self.tokens(_PROBES)
        self.json, self.vocab_size = text, 1 + max(ids.values(), default=-1)
        eos = None if after else self._find(_EOS)
        if not after and eos is None:
            raise DataError(f"{name} has no end token: none of {', '.join(_EOS)} is in its vocabulary")
        bos = None if before or after else self._find(_BOS)
        self.prefix: tuple[int, ...] = before or (() if bos is None else (bos,))
        self.suffix: tuple[int, ...] = after or (eos,)
        self.bos_id, self.eos_id = (self.prefix[0] if self.prefix else None), self.suffix[-1]
        self.pad_id = self._find_pad(stated.get("padding"))
        self.mask_id = self._find(_MASK)
        special = {token["id"] for token in stated.get("added_tokens") or () if token["special"]}
        around = {*self.prefix, *self.suffix, self.pad_id}
        if strange := [i for i in around if not isinstance(i, int) or not 0 <= i < self.vocab_size]:
            raise DataError(
                f"{name} puts the id {strange[0]!r} around texts; its ids go from 0 to {self.vocab_size - 1}"
            )
        self.special_ids = tuple(sorted({*special, *around, self.mask_id} - {None}))

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Tokenizer":
        """Reads a `tokenizer.json`, relative to the current directory or else to the repository root.

        Raises:
            DataError: there is no such file, or it is no usable tokenizer.
        """
        if not str(path):
            raise DataError("the tokenizer is not named; give the path of a Hugging Face tokenizer.json")
        file = find_file(path)
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{file} is not a Hugging Face tokenizer.json: {error}") from None
        return cls(text, str(file))

    def encode(self, texts: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
        """Encodes texts to a fixed length; a longer one is cut in front of its end token.

        Args:
            texts: captions.
            length: tokens per caption, begin and end included.

        Returns:
            Ids, int32 [texts, length], and which of them belong to the caption, bool [texts, length].

        Raises:
            DataError: the special tokens alone fill the length.
        """
        room = length - self.marks
        if room < 1:
            raise DataError(
                f"a text of {length} tokens has no room beside {self.marks} special tokens; give it more (`length`)"
            )
        ids = np.full((len(texts), length), self.pad_id, np.int32)
        valid = np.zeros((len(texts), length), bool)
        for row, found in enumerate(self.tokens(texts)):
            tokens = [*self.prefix, *found[:room], *self.suffix]
            ids[row, : len(tokens)] = tokens
            valid[row, : len(tokens)] = True
        return ids, valid

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of texts at their full length, without begin and end."""
        return [encoding.ids for encoding in self._hf.encode_batch_fast(list(texts), add_special_tokens=False)]

    def spans(self, text: str, length: int) -> list[tuple[int, tuple[int, int]]]:
        """Returns which characters of a text each token of its encoding stands for, without the marks.

        Args:
            text: as given to `encode`.
            length: as given to `encode`.

        Returns:
            (place in the encoding, (first character, one past the last)) of each token that is not cut off.
        """
        offsets = self._hf.encode(text, add_special_tokens=False).offsets[: length - self.marks]
        return list(enumerate(offsets, start=len(self.prefix)))

    @property
    def marks(self) -> int:
        """Number of begin and end tokens that every caption gets."""
        return len(self.prefix) + len(self.suffix)

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of one sequence: what lies before its first end token, without special tokens."""
        tokens = [int(i) for i in ids]
        if self.suffix[0] in tokens:
            tokens = tokens[: tokens.index(self.suffix[0])]
        special = (*self.prefix, self.pad_id)
        text = self._hf.decode([i for i in tokens if i not in special], skip_special_tokens=True)
        # CLIP marks the ends of words by a suffix that its file's decoder leaves in place.
        return " ".join(text.replace("</w>", " ").split())

    def _template(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Returns the ids that the file's template puts before and after a text.

        Raises:
            ValueError: the template does something else to a text.
        """
        if not self._hf.num_special_tokens_to_add(False):
            return (), ()
        for probe in ("a", *itertools.islice(self._hf.get_vocab(with_added_tokens=False), 100)):
            text = self._hf.encode(probe, add_special_tokens=False).ids
            whole = self._hf.encode(probe, add_special_tokens=True)
            inside = [place for place, special in enumerate(whole.special_tokens_mask) if not special]
            if text and inside:
                first, last = inside[0], inside[-1] + 1
                if whole.ids[first:last] != text:
                    raise ValueError(f"its template makes {whole.ids} of a text of the ids {text}")
                return tuple(whole.ids[:first]), tuple(whole.ids[last:])
        raise ValueError("its template could not be tried out: it makes no tokens of its own vocabulary")

    def id_of(self, token: str | None) -> int | None:
        """Returns the id of a token by its name; None where there is no such token."""
        return None if token is None else self._hf.token_to_id(token)

    def _find(self, names: Sequence[str]) -> int | None:
        ids = (self._hf.token_to_id(name) for name in names)
        return next((i for i in ids if i is not None), None)

    def _find_pad(self, padding: dict | None) -> int:
        if padding:
            return padding["pad_id"]
        pad = self._find(_PAD)
        if pad is not None:
            return pad
        return self.eos_id if self._hf.token_to_id("<|endoftext|>") == self.eos_id else 0


def token_ids(stated: Any) -> dict[str, int]:
    """Returns the id of every token of a tokenizer.json.

    Args:
        stated: the document.

    Raises:
        ValueError: it is no such document, or its ids are not all the numbers from 0.
    """
    if not isinstance(stated, dict) or not isinstance(stated.get("model"), dict):
        raise ValueError("it has no model")
    vocab, added = stated["model"].get("vocab"), stated.get("added_tokens") or []
    if isinstance(vocab, list):  # Unigram: an id is a place in the list
        ids = {entry[0]: i for i, entry in enumerate(vocab)}
        taken = set(range(len(vocab)))
    elif isinstance(vocab, dict):
        ids, taken = dict(vocab), set(vocab.values())
    else:
        raise ValueError("it has no vocabulary")
    ids |= {token["content"]: token["id"] for token in added}
    taken |= {token["id"] for token in added}
    if bad := next((i for i in taken if isinstance(i, bool) or not isinstance(i, int)), None):
        raise ValueError(f"{bad!r} is no id")
    if taken and (min(taken) < 0 or max(taken) >= len(taken)):
        missing = next(i for i in range(len(taken)) if i not in taken)
        raise ValueError(
            f"its {len(taken):,} ids go from {min(taken)} to {max(taken)} and have gaps: the first is {missing}; a "
            "model would get a row for each"
        )
    return ids


@contextlib.contextmanager
def reading(name: str, passes: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turns what happens while a damaged tokenizer.json is read into a DataError, panics of the library among it.

    Args:
        name: of the file.
        passes: exceptions that say enough as they are.
    """
    try:
        yield
    except passes:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        why = (
            f"{type(error).__name__}: {error}"
            if isinstance(error, LookupError | TypeError | AttributeError)
            else str(error)
        )
        why = why if len(why) < _MESSAGE else why[:_MESSAGE] + " ..."
        raise DataError(f"{name} is not a Hugging Face tokenizer.json that can be used: {why}") from None


def learnable(texts: Sequence[str], size: int, given: int) -> int:
    """Returns `size`, or else as many ids as texts can give: the library's trainers take memory for all in advance.

    Args:
        texts: what is learnt from.
        size: ids at most.
        given: ids that are not learnt.
    """
    symbols = 4 * sum(len(text) + 1 for text in texts)  # a character has 4 bytes at most; a merge leaves one less
    return min(size, given + symbols)


def train_bpe(captions: Iterable[str], vocab_size: int) -> Tokenizer:
    """Trains a byte-level BPE (Sennrich et al. 2016; bytes as in GPT-2): any text can be encoded and decoded.

    Args:
        captions: the texts.
        vocab_size: ids at most, of which <pad>=0, <bos>=1, <eos>=2 and the 256 bytes are given.

    Raises:
        DataError: the vocabulary has no room for the bytes.
    """
    specials = ["<pad>", "<bos>", "<eos>"]
    alphabet = hf.pre_tokenizers.ByteLevel.alphabet()
    if vocab_size < len(specials) + len(alphabet):
        raise DataError(f"vocab_size={vocab_size} is too small: marks and bytes take {len(specials) + len(alphabet)}")
    captions = list(captions)
    vocab_size = learnable(captions, vocab_size, len(specials) + len(alphabet))
    bpe = hf.Tokenizer(hf.models.BPE())
    bpe.normalizer = hf.normalizers.NFC()
    bpe.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = hf.decoders.ByteLevel()
    trainer = hf.trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(captions, trainer)
    bpe.post_processor = hf.processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    return Tokenizer(bpe.to_str())


def train_wordpiece(
    captions: Iterable[str], vocab_size: int, *, lower: bool = False, special: Sequence[str] = ()
) -> Tokenizer:
    """Trains a WordPiece (Schuster and Nakajima 2012) with BERT's marks: its [MASK] is what masked modelling needs.

    Accents are kept; every ideograph is a word.

    Args:
        captions: the texts.
        vocab_size: ids at most, of which [PAD]=0, [UNK]=1, [CLS]=2, [SEP]=3, [MASK]=4 and the single characters are
            given.
        lower: the tokenizer lower-cases texts; otherwise case is kept (`lower` of the input lower-cases before).
        special: more special tokens, after BERT's.

    Raises:
        DataError: the vocabulary has no room for the characters.
    """
    how = dict(lower=lower, strip_accents=False if lower else None)  # without accents Japanese loses voiced syllables
    captions, pieces = list(captions), wordpiece([*BERT_TOKENS], **how)
    words = Counter(word for text in captions for word, _ in _words(pieces, text))
    first, inner = ({*letters} for letters in ((w[0] for w in words), (c for w in words for c in w[1:])))
    # In a fixed order: the library numbers characters as they come out of its hash tables, and breaks ties by number.
    given = [*BERT_TOKENS, *special, *sorted(first | inner), *(f"##{letter}" for letter in sorted(inner))]
    if vocab_size < len(given):
        raise DataError(f"vocab_size={vocab_size} is too small: marks and single characters take {len(given)}")
    vocab_size = learnable(captions, vocab_size, len(given))
    trainer = hf.trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=given, show_progress=False)
    # Not with `pieces`: to the trainer a mark that a text writes would be a word, whose letters are not among `given`.
    learner = hf.Tokenizer(hf.models.WordPiece(unk_token="[UNK]"))
    learner.normalizer, learner.pre_tokenizer = pieces.normalizer, pieces.pre_tokenizer
    learner.train_from_iterator(captions, trainer)
    vocab = learner.get_vocab(with_added_tokens=True)
    pieces = wordpiece(sorted(vocab, key=vocab.get), **how)
    pieces.add_special_tokens([hf.AddedToken(name, special=True, normalized=False) for name in special])
    return Tokenizer(pieces.to_str())


def wordpiece(
    vocab: Sequence[str], *, lower: bool = True, strip_accents: bool | None = None, ideographs: bool = True
) -> hf.Tokenizer:
    """Returns BERT's tokenizer over a vocabulary, such as the lines of a `vocab.txt`.

    Args:
        vocab: tokens in the order of their ids, BERT's marks among them; "##" begins what continues a word.
        lower: lower-case texts.
        strip_accents: None does so when `lower` does, as BERT.
        ideographs: every ideograph is a word of its own.

    Raises:
        DataError: a mark is not in the vocabulary.
    """
    ids = {token: i for i, token in enumerate(vocab)}
    marks = [mark for mark in BERT_TOKENS if mark in ids]
    if missing := [mark for mark in ("[UNK]", "[CLS]", "[SEP]") if mark not in ids]:
        raise DataError(f"a vocabulary of {len(ids):,} tokens is not BERT's: it has no {missing[0]}")
    pieces = hf.Tokenizer(hf.models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    pieces.add_special_tokens(marks)
    pieces.normalizer = hf.normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=ideographs, strip_accents=strip_accents, lowercase=lower
    )
    pieces.pre_tokenizer = hf.pre_tokenizers.BertPreTokenizer()
    pieces.decoder = hf.decoders.WordPiece()
    pieces.post_processor = hf.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(mark, ids[mark]) for mark in ("[CLS]", "[SEP]")],
    )  # fmt: skip
    return pieces


def _words(tokenizer: hf.Tokenizer, text: str) -> list[tuple[str, tuple[int, int]]]:
    """Words of a text and where they are."""
    return tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text))
