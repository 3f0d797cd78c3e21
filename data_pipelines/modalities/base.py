"""What a modality is: all that the pipeline has to know of one kind of data.

An input is a named part of every sample (`config.data.inputs`), of one modality: a frozen dataclass whose fields are
the keys of its entry. The code around it loops over the inputs and knows none of them by name.
"""

import abc
import dataclasses
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from data_pipelines import rng
from data_pipelines.errors import BadSample, DataError
from data_pipelines.host import Memory, aligned_empty
from data_pipelines.samples import Record, Sample
from data_pipelines.specs import as_entry

if TYPE_CHECKING:
    import jax

SECTION = "data.inputs"
THERE = "there"  # `<input>_there` of a batch, bool [rows], says which rows have an input
HIDDEN: dict[str, Any] = dict(kw_only=True, repr=False, metadata=dict(option=False))
"""Of a field that is no key of an entry: the pipeline sets it."""


class NoPart(BadSample):
    """A sample has nothing for an input: that leaves it out where the input is required, and only there."""


class ArraySpec(NamedTuple):
    """Shape and type of an array of a batch."""

    shape: tuple[int, ...]
    dtype: Any

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


class Part(NamedTuple):
    """What a sample has for an input.

    Attributes:
        content: encoded bytes, a record, class ids: what the modality understands.
        sample: what messages call the sample.
    """

    content: Any
    sample: str = ""


class Random(NamedTuple):
    """The random words of a row: pure functions of the row and the seed.

    Attributes:
        words: of each input, uint64 [words of its modality].
        row: 64 bits that all inputs of the row share; what a user's transforms draw derives from them.
    """

    words: Mapping[str, np.ndarray]
    row: int = 0

    def word(self, name: str) -> int:
        """Returns the first word of an input."""
        return int(self.words[name][0])


class Fact(NamedTuple):
    """What an input says of a field of the embedder that reads it.

    Attributes:
        value: of the field where the config leaves it open.
        option: where the value comes from, for messages.
        at_least: the field may be larger.
    """

    value: int
    option: str
    at_least: bool = False


def shown(default: Any) -> Any:
    """Returns a field that is part of the identity: it decides what a model sees outside the training."""
    return field(default=default, metadata=dict(identity=True))


@dataclass(frozen=True)
class Modality(abc.ABC):
    """What every input may say.

    Attributes:
        required: samples need it. With False they may lack it; the batch then has `<input>_there`, bool [batch], and
            rows without it are zeros. What is there and damaged makes a bad sample all the same.
        member: extension of the tar member, column of the list or feature of the data set that holds it; "" takes the
            usual ones.
    """

    required: bool = True
    member: str = ""
    name: str = field(default="", **HIDDEN)

    type: ClassVar[str]
    noun: ClassVar[str] = "part"  # in the reasons of samples that are left out
    extensions: ClassVar[tuple[str, ...]] = ()  # of files that hold it; () where records do
    columns: ClassVar[tuple[str, ...]] = ()  # of lists and features that hold it, where `member` names none
    words: ClassVar[int] = 0  # random words of a row, a multiple of 4
    use: ClassVar[str] = "input"  # names the stream of these words
    on_record: ClassVar[bool] = False  # held-out sets keep it with their records (captions, fields), not in batches
    tokenized: ClassVar[bool] = False  # it is a `Text`: has captions and a vocabulary
    meaning: ClassVar[tuple[str, ...]] = ()  # options with other values of which weights mean something else
    labels: ClassVar[bool] = False  # it says what a sample is: a target, and nothing that a tower reads
    num_items: ClassVar[int] = 1  # parts of a sample in a batch; with more, arrays are [rows, items, ...]

    # ------------------------------------------------------------------------------------------ the contract

    def find(self, sample: Sample) -> Part:
        """Returns the part of a sample.

        Raises:
            NoPart: it has none.
            BadSample: it has one that cannot be used.
        """
        if (content := sample.parts.get(self.name)) is None:
            raise NoPart(f"no {self.noun}")
        return Part(content, sample.title)

    @abc.abstractmethod
    def arrays(self, rows: int, draw: int = 0) -> dict[str, ArraySpec]:
        """Returns all that a batch holds of the input: {name: shape and type}; the one such list.

        Args:
            rows: of the batch.
            draw: the length that was drawn for this batch, one of `lengths`; 0 is that outside the training.
        """

    def read(self, rows: int) -> dict[str, ArraySpec]:
        """Returns those of the arrays that towers read, outside the training: what a stored model takes."""
        return self.arrays(rows)

    @abc.abstractmethod
    def train(self, part: Part, random: Random, batch: Mapping[str, np.ndarray], row: int) -> None:
        """Writes the training's view of a part into a row. Raises BadSample where it cannot be decoded."""

    @abc.abstractmethod
    def evaluate(self, raw: Any, batch: Mapping[str, np.ndarray], row: int) -> None:
        """Writes the evaluation's view into a row: no chance; raises BadSample.

        Args:
            raw: the content of a part, or what a user has: encoded bytes, a path, an array, a text.
            batch: arrays as `arrays` describes them.
            row: of the batch.
        """

    def on_device(self, batch: "Mapping[str, jax.Array]", keys: "jax.Array | None") -> "dict[str, jax.Array]":
        """Returns the batch as towers take it: normalised, and with keys augmented. Runs inside `jax.jit`.

        Args:
            batch: all its arrays.
            keys: typed random keys [rows]; None outside the training.
        """
        return dict(batch)

    def identity(self) -> dict[str, Any]:
        """Returns all that decides what a model sees of the input, as json has it: tells models from one another."""
        return {"type": self.type} | {name: getattr(self, name) for name in self.identity_options()}

    @abc.abstractmethod
    def show(self, batch: Mapping[str, np.ndarray], row: int) -> str:
        """Returns HTML that shows a row of a host batch."""

    def summary(self) -> str:
        """Returns a few words on how a model reads it."""
        values = (f"{name} {getattr(self, name)}" for name in self.identity_options())
        return ", ".join(values)

    def describe(self, batch: Mapping[str, np.ndarray], row: int) -> str:
        """Returns one line that says what a row of a host batch holds."""
        return ", ".join(f"{name} {array[row].shape} {array.dtype}" for name, array in self.of(batch).items())

    # ------------------------------------------------------------------------------------------ what it asks and says

    def check(self, device: bool = False) -> None:  # noqa: B027 - most have nothing to check
        """Raises DataError where options cannot be used; `device`: also those of `on_device`."""

    def verify(self, content: Any, whole: bool = False) -> None:  # noqa: B027 - the same
        """Raises BadSample where a content cannot be decoded; `whole` decodes all of it, else as little as needed."""

    def signature(self) -> dict[str, Any]:
        """Returns the rule of which samples can be used, as json has it: an index made for another is another one."""
        rule = dict(member=self.member) if self.member else {}
        return {"type": self.type} | rule | ({} if self.required else {"required": False})

    def fields(self) -> tuple[str, ...]:
        """Returns the fields of a sample's record that it uses."""
        return ()

    def field_use(self, name: str) -> str:
        """Returns what uses a field of records, for messages."""
        return f"{self.where}"

    def field_members(self) -> tuple[str, ...]:
        """Returns the tar members whose text is a field of that name."""
        return ()

    def text_member(self) -> str:
        """Returns the extension of the tar member whose text it reads; "" where it reads none."""
        return ""

    def text_columns(self) -> tuple[str, ...]:
        """Returns the usual columns of the text that it reads."""
        return ()

    def text(self, text: str) -> str:
        """Returns a text of a sample as its record keeps it."""
        return text

    def facts(self) -> dict[str, Fact]:
        """Returns what it says of embedders that read it: {field: fact}; `vocab_size` also of linear heads."""
        return {}

    def lengths(self) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Returns the lengths that batches of the training may have, and how often each is drawn."""
        return (0,), (1.0,)

    def draw(self, first: int, seed: int) -> int:
        """Returns the length of the batch whose first row is the global row `first`; 0 where there is but one."""
        return 0

    def thumbnail(self, content: Any, size: int) -> bytes:
        """Returns a PNG that fits into a square of `size` pixels; b"" where there is nothing to see."""
        return b""

    # ------------------------------------------------------------------------------------------ what follows from it

    @property
    def where(self) -> str:
        """Path of its entry in the config."""
        return f"{SECTION}.{self.name or self.type}"

    @property
    def there(self) -> str:
        """Name of the array that says which rows have it."""
        return f"{self.name}_{THERE}"

    @property
    def stored(self) -> bool:
        """Whether files hold it, and not records."""
        return bool(self.extensions)

    @classmethod
    def identity_options(cls) -> list[str]:
        """Returns the options that are part of the identity."""
        return [f.name for f in dataclasses.fields(cls) if f.metadata.get("identity")]

    @classmethod
    def continued(cls, saved: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the options that a recipe takes from a model which it goes on from: all that decides what that sees.

        Args:
            saved: the entry of the model; options that were added since it was written have their defaults.
            given: that of the recipe.
        """
        return {name: saved.get(name, getattr(cls, name)) for name in cls.identity_options()}

    def entry(self) -> dict[str, Any]:
        """Returns all options as an entry of `config.data.inputs`."""
        return dict(type=self.type) | as_entry(self)

    def linked(self, inputs: "Mapping[str, Modality]") -> "Modality":
        """Returns the input as one of these, some of whose options may name others."""
        return self

    def changed(self, **changes: Any) -> "Modality":
        """Returns the input with other options."""
        return dataclasses.replace(self, **changes)

    def stream(self, first: int, rows: int, seed: int) -> np.ndarray:
        """Returns the random words of consecutive rows, uint64 [rows, words]; another input has others."""
        return rng.row_words(first, rows, self.words, seed, *self.purpose(self.use))

    def purpose(self, use: str) -> tuple[str, ...]:
        """Returns what a stream of random numbers is for: the use, and the input where its name is not the usual."""
        return (use,) if self.name == self.type else (use, self.name)

    def specs(self, rows: int, draw: int = 0) -> dict[str, ArraySpec]:
        """Returns `arrays`, and which rows have the input where they need not."""
        absent = {} if self.required else {self.there: ArraySpec((rows,), np.bool_)}
        return self.arrays(rows, draw) | absent

    def nbytes(self) -> int:
        """Returns the bytes of a row of the training, at most."""
        return max(sum(spec.nbytes for spec in self.specs(1, length).values()) for length in self.lengths()[0])

    def empty(self, rows: int, draw: int = 0, memory: Memory | None = None) -> dict[str, np.ndarray]:
        """Returns uninitialised arrays of a batch; `memory` gives the large ones."""
        return {name: _empty(spec, memory) for name, spec in self.specs(rows, draw).items()}

    def of(self, batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Returns the arrays of a batch that belong to it."""
        return {name: batch[name] for name in self.specs(1) if name in batch}

    def blank(self, batch: Mapping[str, np.ndarray], rows: Any) -> None:
        """Makes rows show nothing."""
        for array in self.of(batch).values():
            array[rows] = 0

    def fill(self, sample: Sample, random: Random, batch: Mapping[str, np.ndarray], row: int) -> None:
        """Writes the training's view of a sample into a row; nothing where it lacks an input that it need not have.

        Raises:
            BadSample: as `find` and `train`.
        """
        try:
            part = self.find(sample)
        except NoPart:
            if self.required:
                raise
            self.blank(batch, row)
            return
        self.train(part, random, batch, row)
        if not self.required:
            batch[self.there][row] = True

    def check_record(self, record: Record) -> None:
        """Raises BadSample where a record lacks what the input needs; what files hold is looked for elsewhere."""
        if self.stored:
            return
        try:
            self.find(Sample("", "", {}, record))
        except NoPart:
            if self.required:
                raise

    def __post_init__(self):
        if self.required is not True and self.required is not False:
            raise DataError(f"{self.where}.required is {self.required!r}; expected true or false")


def _empty(spec: ArraySpec, memory: Memory | None) -> np.ndarray:
    if memory is not None and spec.dtype == np.uint8 and len(spec.shape) > 2:
        return memory.empty(math.prod(spec.shape)).reshape(spec.shape)
    return aligned_empty(spec.shape, spec.dtype)


def keys_of(modality: Modality, keys: "jax.Array | None") -> "jax.Array | None":
    """Returns the keys of an input: those of the batch for the usual name, and others for each other name."""
    if keys is None or modality.name == modality.type:
        return keys
    return folded(keys, modality.name)


def folded(keys: "jax.Array", use: str) -> "jax.Array":
    """Derives typed per-row keys [rows] for a named use."""
    import jax  # a second to import: processes that only read data do without

    return jax.vmap(lambda key: jax.random.fold_in(key, zlib.crc32(use.encode())))(keys)
