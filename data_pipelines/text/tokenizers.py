"""Text to token ids through any Hugging Face `tokenizer.json`, CLIP's own among them."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.io.paths import find_file

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the stream's threads are the parallelism

import tokenizers as hf

_BOS = ("<bos>", "<|startoftext|>", "[CLS]", "<s>")
_EOS = ("<eos>", "<|endoftext|>", "[SEP]", "</s>")
_PAD = ("<pad>", "[PAD]", "<|pad|>")
_MASK = ("[MASK]", "<mask>")
_BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class Tokenizer:
    """Encodes captions as `bos, tokens, eos, pad...`.

    The marks are those that the file's own template adds; a file without one gets those of its vocabulary.

    Attributes:
        json: text of the `tokenizer.json`, to be kept with a run.
        vocab_size: number of ids, added tokens included.
        bos_id: begins every caption; None where there is no such mark (SigLIP, T5, GPT-2).
        eos_id: ends every caption, cut ones too.
        pad_id: fills the rest.
        mask_id: stands for a token that is to be guessed; None where there is no such mark.
        special_ids: of all marks, those of unknown words among them.
    """

    def __init__(self, text: str, name: str = "tokenizer.json"):
        """Reads the text of a `tokenizer.json`.

        Args:
            text: content of the file.
            name: where it comes from, for messages.

        Raises:
            DataError: it is no tokenizer, or has no end token.
        """
        try:
            stated = json.loads(text)
            self._hf = hf.Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception
            raise DataError(f"{name} is not a Hugging Face tokenizer.json: {error}") from None
        self._hf.no_padding()
        self._hf.no_truncation()
        first, last = self._template()
        self._hf.encode_special_tokens = True  # a caption that says "<eos>" must not end itself
        self.json = text
        self.vocab_size = max(self._hf.get_vocab(with_added_tokens=True).values()) + 1
        self.bos_id = self._find(_BOS) if first is last is None else first
        eos = self._find(_EOS) if last is None else last
        if eos is None:
            raise DataError(f"{name} has no end token: none of {', '.join(_EOS)} is in its vocabulary")
        self.eos_id = eos
        self.pad_id = self._find_pad(stated.get("padding"))
        self.mask_id = self._find(_MASK)
        marks = {token["id"] for token in stated.get("added_tokens") or () if token["special"]}
        self.special_ids = tuple(sorted({*marks, self.eos_id, self.pad_id, self.bos_id, self.mask_id} - {None}))

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Tokenizer":
        """Reads a `tokenizer.json`, relative to the current directory or else to the repository root.

        Raises:
            DataError: there is no such file, or it is no usable tokenizer.
        """
        if not str(path):
            raise DataError("data.text.tokenizer is empty; give the path of a Hugging Face tokenizer.json")
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
            length: tokens per caption, begin and end included; at least 3.

        Returns:
            Ids, int32 [texts, length], and which of them belong to the caption, bool [texts, length].
        """
        bos = [] if self.bos_id is None else [self.bos_id]
        ids = np.full((len(texts), length), self.pad_id, np.int32)
        valid = np.zeros((len(texts), length), bool)
        for row, found in enumerate(self.tokens(texts)):
            tokens = [*bos, *found[: length - self.marks], self.eos_id]
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
        first = 0 if self.bos_id is None else 1
        offsets = self._hf.encode(text, add_special_tokens=False).offsets[: length - self.marks]
        return list(enumerate(offsets, start=first))

    @property
    def marks(self) -> int:
        """Number of begin and end tokens that every caption gets."""
        return 1 if self.bos_id is None else 2

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of one sequence: what lies before its first end token, without special tokens."""
        tokens = [int(i) for i in ids]
        if self.eos_id in tokens:
            tokens = tokens[: tokens.index(self.eos_id)]
        special = (self.bos_id, self.pad_id)
        text = self._hf.decode([i for i in tokens if i not in special], skip_special_tokens=True)
        # CLIP marks the ends of words by a suffix that its file's decoder leaves in place.
        return " ".join(text.replace("</w>", " ").split())

    def _template(self) -> tuple[int | None, int | None]:
        """Returns the ids that the file's template puts before and after a text, None where it puts none."""
        encoding = self._hf.encode("a", add_special_tokens=True)
        inside = [place for place, special in enumerate(encoding.special_tokens_mask) if not special]
        if not inside:  # the vocabulary has no "a"
            return None, None
        before, after = encoding.ids[: inside[0]], encoding.ids[inside[-1] + 1 :]
        return (before[0] if before else None), (after[-1] if after else None)

    def _find(self, names: Sequence[str]) -> int | None:
        ids = (self._hf.token_to_id(name) for name in names)
        return next((i for i in ids if i is not None), None)

    def _find_pad(self, padding: dict | None) -> int:
        if padding and "pad_id" in padding:
            return padding["pad_id"]
        pad = self._find(_PAD)
        if pad is not None:
            return pad
        return self.eos_id if self._hf.token_to_id("<|endoftext|>") == self.eos_id else 0


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
        lower: the tokenizer lower-cases texts; otherwise case is kept (`data.text.lower` lower-cases before).
        special: more special tokens, after BERT's.
        vocab_size: ids at most, of which [PAD]=0, [UNK]=1, [CLS]=2, [SEP]=3, [MASK]=4 and the single characters are
            given.

    Raises:
        DataError: the vocabulary has no room for the characters.
    """
    how = dict(
        lower=lower, strip_accents=False if lower else None
    )  # without accents, Japanese loses its voiced syllables
    captions, pieces = list(captions), wordpiece([*_BERT], **how)
    words = Counter(word for text in captions for word, _ in _words(pieces, text))
    first, inner = ({*letters} for letters in ((w[0] for w in words), (c for w in words for c in w[1:])))
    # In a fixed order: the library numbers characters as they come out of its hash tables, and breaks ties by number.
    given = [*_BERT, *special, *sorted(first | inner), *(f"##{letter}" for letter in sorted(inner))]
    if vocab_size < len(given):
        raise DataError(f"vocab_size={vocab_size} is too small: marks and single characters take {len(given)}")
    trainer = hf.trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=given, show_progress=False)
    pieces.train_from_iterator(captions, trainer)
    vocab = pieces.get_vocab(with_added_tokens=True)
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
    marks = [mark for mark in _BERT if mark in ids]
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
