"""Texts: a caption of a sample, made of a text member or of its fields, as token ids."""

import hashlib
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from data_pipelines.errors import BadSample, DataError
from data_pipelines.io.listing import CAPTION_COLUMNS
from data_pipelines.modalities.base import HIDDEN, ArraySpec, Fact, Modality, NoPart, Part, Random, shown
from data_pipelines.samples import Record, Sample
from data_pipelines.stream.hooks import text_hook
from data_pipelines.text.captions import Captions
from data_pipelines.text.preparation import Preparation
from data_pipelines.text.tokenizers import Tokenizer

MEMBER = "txt"  # webdataset's extension of a text
CAPTION_ID = "caption_id"
_LEAST = 3  # tokens of a text


@dataclass(frozen=True)
class Text(Modality):
    """A text: the .txt member, a column, or a template over the fields. The batch has `<input>` int32 [rows, length].

    Beside the ids it has `<input>_valid` bool [rows, length]. With several items all are [rows, items, length].
    The first text of the inputs also gives `caption_id` uint32 [rows(, items), 2], a hash: equal captions are equal.

    Attributes:
        tokenizer: path of a Hugging Face tokenizer.json.
        length: tokens of a text, special tokens included.
        buckets: shorter lengths, such as (16, 32): a batch then holds texts of one bucket, and is no longer than that.
        templates: ((weight, "{label}, {tags}"), ...) over the json fields; () uses the .txt member or the caption
            column.
        lines: the lines of a text are a caption each (CLIP_benchmark's retrieval sets), or else one.
        num_items: texts of a sample, drawn anew at each visit, for objectives that take several (sigmoid, flair).
        max_list: a list field (such as tags) gives 1 to this many of its entries, shuffled.
        lower: lower-case texts. Prompts and queries are prepared in the same way; white space becomes single spaces
            always.
        clean: none | basic (HTML entities to characters, Unicode NFC) | open_clip's whitespace (basic, and ftfy mends
            wrong encodings, quotes, full width), lower (in lower case) and canonicalize (without punctuation, too).
        transform: a function of your own for training captions, "my_package.module:function".
        after: the text input whose tokens come before its own in one sequence (question and answer). The batch then has
            `<input>_loss` bool [rows, length], true of its own tokens, and `<input>_group` int32 [rows, length], the
            mask groups: those before see one another, its own see what precedes them.
    """

    tokenizer: str = ""
    length: int = shown(77)
    buckets: tuple = ()
    templates: tuple = ()
    lines: bool = False
    num_items: int = 1
    max_list: int = 4
    lower: bool = shown(True)
    clean: str = shown("none")
    transform: str = ""
    after: str = ""
    identifies: bool = field(default=False, **HIDDEN)  # it gives `caption_id`
    before: "Text | None" = field(default=None, **HIDDEN)  # the input that `after` names
    source: str = field(default="", **HIDDEN)  # path of the source that it reads, for messages

    type: ClassVar[str] = "text"
    noun: ClassVar[str] = "caption"
    words: ClassVar[int] = 4
    use: ClassVar[str] = "caption"
    on_record: ClassVar[bool] = True
    tokenized: ClassVar[bool] = True

    def find(self, sample: Sample) -> Part:
        """See `Modality`; the content is the record."""
        if not self.captions.usable(sample.record):
            raise NoPart("empty caption")
        return Part(sample.record, sample.title)

    def arrays(self, rows: int, draw: int = 0) -> dict[str, ArraySpec]:
        """See `Modality`."""
        shape = (rows,) if self.num_items == 1 else (rows, self.num_items)
        tokens = (*shape, draw or self.length)
        found = {self.name: ArraySpec(tokens, np.int32), self.valid: ArraySpec(tokens, np.bool_)}
        if self.before is not None:
            found |= {self.loss: ArraySpec(tokens, np.bool_), self.group: ArraySpec(tokens, np.int32)}
        if self.identifies:
            found[CAPTION_ID] = ArraySpec((*shape, 2), np.uint32)
        return found

    def read(self, rows: int) -> dict[str, ArraySpec]:
        """See `Modality`."""
        return {name: spec for name, spec in self.arrays(rows).items() if name != CAPTION_ID}

    def train(self, part: Part, random: Random, batch: Mapping[str, np.ndarray], row: int) -> None:
        """See `Modality`: draws captions, transforms and encodes them."""
        texts = self.drawn(part, random)
        if self.before is None:
            self._encode(texts, batch, row)
        else:
            self._join(self.before.drawn(part, random)[0], texts[0], batch, row)
        if self.identifies:
            batch[CAPTION_ID][row] = hash64(texts).reshape(batch[CAPTION_ID].shape[1:])

    def evaluate(self, raw: Any, batch: Mapping[str, np.ndarray], row: int) -> None:
        """See `Modality`; `raw` is a text, or several for several items."""
        texts = [raw] if isinstance(raw, str) else list(raw)
        texts = [self.prepare(text) for text in texts]
        if self.before is None:
            self._encode(texts * (self.num_items if len(texts) == 1 else 1), batch, row)
        else:
            self._join("", texts[0], batch, row)
        if self.identifies and CAPTION_ID in batch:
            batch[CAPTION_ID][row] = hash64(texts)[0]

    def encode(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Returns a batch of prepared texts, one a row; see `arrays`."""
        ids, valid = self.vocabulary.encode(texts, self.length)
        return {self.name: ids, self.valid: valid}

    def drawn(self, part: Part, random: Random) -> list[str]:
        """Returns the captions that a row shows, as many as `num_items`; `part` as `find` gives it."""
        word = random.word(self.name)
        texts = self.captions.several(part.content, word, self.num_items)
        return [self._hook(text, word ^ i, part.sample) for i, text in enumerate(texts)]

    def identity(self) -> dict[str, Any]:
        """See `Modality`."""
        digest = hashlib.blake2b(self.vocabulary.json.encode(), digest_size=16).hexdigest()
        return super().identity() | dict(tokenizer=digest)

    def summary(self) -> str:
        """See `Modality`."""
        return f"{self.length} tokens, vocabulary {self.vocabulary.vocab_size:,}"

    def show(self, batch: Mapping[str, np.ndarray], row: int) -> str:
        """See `Modality`."""
        return "".join(f'<p dir="auto">{html.escape(text)}</p>' for text in self._texts(batch, row))

    def describe(self, batch: Mapping[str, np.ndarray], row: int) -> str:
        """See `Modality`."""
        counts = batch[self.valid][row].reshape(-1, batch[self.valid].shape[-1]).sum(axis=1).tolist()
        return "; ".join(f"{text!r} ({n} tokens)" for text, n in zip(self._texts(batch, row), counts))

    def check(self, device: bool = False) -> None:
        """See `Modality`."""
        if self.length < _LEAST:
            raise DataError(f"{self.where}.length is {self.length}; it must be at least {_LEAST}")
        if self.num_items < 1:
            raise DataError(f"{self.where}.num_items is {self.num_items}; a sample has at least 1 in a batch")
        if self.after and self.before is None:
            raise DataError(f"{self.where}.after is {self.after!r}, and there is no such text among the inputs")
        if self.before is not None and (self.num_items, self.before.num_items) != (1, 1):
            raise DataError(f"{self.where}.after joins one text to one text: `num_items` of both must be 1")
        if self.before is not None and self.buckets:
            raise DataError(f"{self.where}.buckets counts the tokens of one text, and `after` puts another before it")
        whole = all(isinstance(n, int) and not isinstance(n, bool) for n in self.buckets)
        rising = whole and list(self.buckets) == sorted(set(self.buckets))
        if not rising or not all(_LEAST <= n < self.length for n in self.buckets):
            raise DataError(
                f"{self.where}.buckets is {tuple(self.buckets)}; expected rising lengths from {_LEAST} tokens to below "
                f"{self.where}.length={self.length}, which is the last bucket"
            )
        _ = self.captions, self._hook

    def signature(self) -> dict[str, Any]:
        """See `Modality`."""
        return super().signature() | self.captions.usable_if

    def fields(self) -> tuple[str, ...]:
        """See `Modality`."""
        return tuple(self.captions.fields)

    def field_use(self, name: str) -> str:
        """See `Modality`."""
        return f"the template {self.captions.pattern_of(name)!r}"

    def text_member(self) -> str:
        """See `Modality`."""
        return (self.member.lower() or MEMBER) if self.captions.from_text else ""

    def text_columns(self) -> tuple[str, ...]:
        """See `Modality`."""
        return CAPTION_COLUMNS

    def text(self, text: str) -> str:
        """See `Modality`."""
        return self.captions.cleaned(text)

    def facts(self) -> dict[str, Fact]:
        """See `Modality`."""
        return dict(
            vocab_size=Fact(self.vocabulary.vocab_size, f"the vocabulary of {self.where}.tokenizer", at_least=True),
            length=Fact(self.length, f"{self.where}.length", at_least=True),
        )

    def changed(self, **changes: Any) -> "Text":
        """See `Modality`; a tokenizer that has been read is not read again."""
        made = super().changed(**changes)
        if "vocabulary" in vars(self) and "tokenizer" not in changes:
            vars(made)["vocabulary"] = self.vocabulary
        return made

    def linked(self, inputs: Mapping[str, Modality]) -> "Text":
        """See `Modality`: finds the text that `after` names, and whether it is the first of all."""
        texts = {name: other for name, other in inputs.items() if other.tokenized}
        first = next(iter(texts), self.name)
        before = texts.get(self.after) if self.after != self.name else None
        return self.changed(identifies=self.name == first, before=before)

    def with_tokenizer(self, tokenizer: Tokenizer) -> "Text":
        """Returns the input with a tokenizer that has been read."""
        made = self.changed()
        vars(made)["vocabulary"] = tokenizer
        return made

    @cached_property
    def vocabulary(self) -> Tokenizer:
        """The tokenizer. Raises DataError where it cannot be read."""
        if not self.tokenizer:
            raise DataError(f"{self.where}.tokenizer is empty; give the path of a Hugging Face tokenizer.json")
        return Tokenizer.load(self.tokenizer)

    @cached_property
    def captions(self) -> Captions:
        """Which captions a record has."""
        return Captions(self, self.name, self.where, self.source)

    @cached_property
    def prepare(self) -> Preparation:
        """Prepares a text as captions are: for texts that do not come as captions of samples."""
        return Preparation.of(self)

    @cached_property
    def _hook(self) -> Any:
        return text_hook(f"{self.where}.transform", self.transform, self.name)

    @property
    def valid(self) -> str:
        """Name of the array that says which ids belong to the text."""
        return f"{self.name}_valid"

    @property
    def loss(self) -> str:
        """Name of the array that says which ids are to be learned."""
        return f"{self.name}_loss"

    @property
    def group(self) -> str:
        """Name of the array of the mask groups."""
        return f"{self.name}_group"

    def _encode(self, texts: list[str], batch: Mapping[str, np.ndarray], row: int) -> None:
        out = batch[self.name][row]
        ids, valid = self.vocabulary.encode(texts, out.shape[-1])
        batch[self.name][row], batch[self.valid][row] = ids.reshape(out.shape), valid.reshape(out.shape)

    def _join(self, first: str, text: str, batch: Mapping[str, np.ndarray], row: int) -> None:
        """Writes `special tokens, first, text, end` into a row; of too long ones the end of `first` is cut first."""
        words, length = self.vocabulary, batch[self.name].shape[-1]
        before, own = words.tokens([first, text]) if first else ([], words.tokens([text])[0])
        room = length - words.marks
        if room < 1:
            raise DataError(f"{self.where}.length={length} has no room beside {words.marks} special tokens")
        own = [*own[:room], *words.suffix]
        before = [*words.prefix, *before[: max(0, room - len(own) + len(words.suffix))]]
        count = len(before) + len(own)
        place = np.arange(length)
        batch[self.name][row] = words.pad_id
        batch[self.name][row, :count] = [*before, *own]
        batch[self.valid][row] = place < count
        batch[self.loss][row] = (place >= len(before)) & (place < count)
        batch[self.group][row] = place >= len(before)

    def _texts(self, batch: Mapping[str, np.ndarray], row: int) -> list[str]:
        ids = batch[self.name][row]
        return [self.vocabulary.decode(some.tolist()) for some in ids.reshape(-1, ids.shape[-1])]

    def __getstate__(self) -> dict[str, Any]:
        """Without what another process makes for itself."""
        return {name: value for name, value in vars(self).items() if name != "_hook"}


@dataclass(frozen=True)
class OtherText:
    """The captions of a text input once more, as another model reads them.

    Attributes:
        tokenizer: of that model.
        length: tokens of a caption.
        preparation: what that model wants beside what the captions already are; see `Preparation.after`.
        of: the text input; "" is the first.
    """

    tokenizer: Tokenizer
    length: int
    preparation: Preparation = field(default_factory=Preparation)
    of: str = ""


@dataclass(frozen=True)
class Reread(Modality):
    """An input that shows the captions which another one has drawn, to another model; see `OtherText`."""

    how: OtherText | None = field(default=None, **HIDDEN)
    drawn_by: Text | None = field(default=None, **HIDDEN)

    type: ClassVar[str] = "reread"
    noun: ClassVar[str] = "caption"
    on_record: ClassVar[bool] = True

    def find(self, sample: Sample) -> Part:
        """See `Modality`."""
        return self.drawn_by.find(sample)

    def arrays(self, rows: int, draw: int = 0) -> dict[str, ArraySpec]:
        """See `Modality`."""
        items = (self.drawn_by.num_items,) if self.drawn_by.num_items > 1 else ()
        shape = (rows, *items, self.how.length)
        return {self.name: ArraySpec(shape, np.int32), f"{self.name}_valid": ArraySpec(shape, np.bool_)}

    def train(self, part: Part, random: Random, batch: Mapping[str, np.ndarray], row: int) -> None:
        """See `Modality`."""
        self.evaluate(self.drawn_by.drawn(part, random), batch, row)

    def evaluate(self, raw: Any, batch: Mapping[str, np.ndarray], row: int) -> None:
        """See `Modality`; `raw` is a text that the other input has prepared, or several."""
        texts = [self.how.preparation(text) for text in ([raw] if isinstance(raw, str) else raw)]
        out = batch[self.name][row]
        ids, valid = self.how.tokenizer.encode(texts, out.shape[-1])
        batch[self.name][row], batch[f"{self.name}_valid"][row] = ids.reshape(out.shape), valid.reshape(out.shape)

    def linked(self, inputs: Mapping[str, Modality]) -> "Reread":
        """See `Modality`."""
        first = next(name for name, other in inputs.items() if other.tokenized)
        return self.changed(drawn_by=inputs[self.how.of or first])

    def signature(self) -> dict[str, Any]:
        """See `Modality`: it decides nothing."""
        return {}

    def check_record(self, record: Record) -> None:
        """See `Modality`."""

    def show(self, batch: Mapping[str, np.ndarray], row: int) -> str:
        """See `Modality`."""
        ids = batch[self.name][row].reshape(-1, self.how.length)
        return "".join(f"<p>{html.escape(self.how.tokenizer.decode(some))}</p>" for some in ids)


def hash64(texts: Sequence[str]) -> np.ndarray:
    """Returns stable 64-bit hashes of texts as uint32 [texts, 2]."""
    encoded = (text.encode("utf-8", "surrogatepass") for text in texts)
    digests = b"".join(hashlib.blake2b(content, digest_size=8).digest() for content in encoded)
    return np.frombuffer(digests, "<u4").reshape(-1, 2)


def decoded(content: bytes, reason: str) -> str:
    """Returns the text of a member. Raises BadSample with the reason where it is none."""
    try:
        text = bytes(content).decode().removeprefix("\ufeff")  # as "utf-8-sig", which is a codec in Python
    except UnicodeDecodeError:
        raise BadSample(reason) from None
    if "\0" in text:  # no text holds it: the tail of a file that was never written
        raise BadSample(reason)
    return text
