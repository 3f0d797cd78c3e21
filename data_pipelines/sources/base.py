"""What a source of samples is: blocks that can be read in any order, and the accounts of what it left out."""

import abc
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from data_pipelines.errors import Fault
from data_pipelines.host import cores
from data_pipelines.io.storage import Files
from data_pipelines.progress import progress
from data_pipelines.rules import Rules
from data_pipelines.samples import Sample
from data_pipelines.sources.blocks import Blocks
from data_pipelines.sources.measures import Measure

_MEASURED_BYTES = 8 * 2**20  # read at a time to measure or name samples
_NAMED, _NAMED_BLOCKS = 10_000, 1000  # samples left out that are named, and blocks looked into for it
_NAMED_AT_ONCE = 16


@dataclass(frozen=True)
class SourceSpec:
    """What every entry of `data.sources` may hold.

    Attributes:
        type: how the data lie: see `data_pipelines.sources.SOURCES`; "" takes what the names tell (`kinds.kind_of`).
        weight: its share of the stream, in any unit; 0 leaves it out. A curriculum is ((start, weight), ...): from
            that many samples of the stream on (in a recipe any duration, such as "20%"), the first from 0.
        templates: as `templates` of the first text input, for this source; None takes those.
        lines: as `lines` of the first text input, for this source; None takes that.
        inputs: options of inputs that this source has otherwise, such as dict(question=dict(member="question.txt")).
        group_key: as `data.group_key`, for this source; None takes that.
        filter: keeps only samples whose json satisfies it, such as "similarity > 0.28 and width >= 200".
        unique: of the samples of this source with the same "key" (tars), "caption" or "image" (a perceptual hash) only
            the first is kept; "" keeps all.
        keep: lists of samples, see `data_pipelines.sources.sample_lists`: patterns of files, one or several. Only
            samples that one of them names are kept; "" keeps all.
        drop: lists of samples that are left out.
        groups: file of groups of near samples, made by `python -m xmodal data neighbours`; batches then hold whole
            groups, and samples in none are left out. "" takes samples as they come.
        loss_weight: factor of the losses of its samples in every objective; 0 makes them negatives alone.
        temperature: of its samples in contrastive objectives, as a factor of the learned one: above 1 for noisy pairs,
            which are told apart less sharply.
    """

    type: str = ""
    weight: float | tuple = 1.0
    templates: tuple | None = None
    lines: bool | None = None
    inputs: dict = field(default_factory=dict)
    group_key: str | None = None
    filter: str = ""
    unique: str = ""
    keep: str | tuple = ""
    drop: str | tuple = ""
    groups: str = ""
    loss_weight: float = 1.0
    temperature: float = 1.0


class Source(abc.ABC):
    """Samples that are read in blocks.

    Opening one finds all its usable samples; what is left out is counted then. Everything about it is fixed from
    then on: data that turn out to have changed are an error. Implementations are registered in
    `data_pipelines.sources.SOURCES` and constructed as `cls(name, spec, rules, files)`.

    Attributes:
        Spec: the options of its entries in `data.sources`.
        keyed: its samples have keys of their own; those of other sources are places, such as "row 7".
        name: key in `data.sources`.
        spec: its entry.
        rules: decide which of its samples are usable and what their inputs find in them.
        samples: number of usable samples.
        bytes: size of all its shards.
        shards: number of shards.
        skipped: reason -> samples left out.
        lengths: tokens of the longest caption of each sample, in the order of the blocks, uint16 [samples]; None where
            nothing asks for it.
    """

    Spec: ClassVar[type[SourceSpec]] = SourceSpec
    keyed: bool = False
    name: str
    spec: Any
    rules: Rules
    samples: int
    bytes: int
    shards: int
    skipped: dict[str, int]
    lengths: np.ndarray | None = None

    @classmethod
    def open(cls, name: str, spec: Any, rules: Rules, files: Files, measures: Sequence[Measure]) -> "Source":
        """Constructs a source of which `column` will be asked for these measures."""
        return cls(name, spec, rules, files)

    def column(self, measure: Measure) -> np.ndarray:
        """Returns the number of every usable sample, in the order of the blocks; `measure.dtype` [samples]."""
        blocks = self.blocks(_MEASURED_BYTES)

        def numbers(i: int) -> list[int]:
            samples = self.read(blocks, i)
            # Samples whose parts could not be fetched are not alike because of that.
            content = lambda sample: sample.parts.get(measure.needs) or sample.key.encode()
            return [measure.of(sample.key, sample.record, content(sample)) for sample in samples]

        with ThreadPoolExecutor(cores()) as pool, progress(len(blocks), f"measuring {self.name}") as advance:
            found: list[int] = []
            for part in pool.map(numbers, range(len(blocks))):
                found += part
                advance(1)
        return np.array(found, measure.dtype)

    @abc.abstractmethod
    def blocks(self, target: int) -> Blocks:
        """Returns blocks of about `target` bytes that together hold every usable sample once."""

    @abc.abstractmethod
    def read(self, blocks: Blocks, i: int) -> list[Sample]:
        """Returns the `blocks.count[i]` usable samples of a block; called by several threads.

        Raises:
            DataError: the data cannot be read, or have changed.
        """

    def names(self, blocks: Blocks, i: int) -> list[tuple[str, str]]:
        """Returns (shard, key) of the samples of a block, as `read` gives them, without their files where it can."""
        return [(sample.shard, sample.key) for sample in self.read(blocks, i)]

    @abc.abstractmethod
    def shard_names(self) -> list[str]:
        """Returns the `shard` of its samples, in the order of `Blocks.shard`."""

    @abc.abstractmethod
    def identity(self) -> Any:
        """Returns what tells this data set from others whatever its folder, such as names and sizes; has a `repr`."""

    def faults(self) -> Iterator[Fault]:
        """Yields the samples left out; of very many the first, and a line that says how many more."""
        yield from ()


def faults_of(source: Source, left_out: np.ndarray, reason: str) -> Iterator[Fault]:
    """Yields a fault for each sample that is left out of a source; of very many the first, and how many more there are.

    Args:
        source: the whole.
        left_out: bool [samples of the source].
        reason: why.
    """
    blocks = source.blocks(_MEASURED_BYTES)
    ends = np.cumsum(blocks.count)
    starts = ends - blocks.count
    named, wanted = 0, [i for i in range(len(blocks)) if left_out[starts[i] : ends[i]].any()]
    with ThreadPoolExecutor(_NAMED_AT_ONCE) as pool:  # requests, where the source is far away
        for i, names in zip(wanted, pool.map(lambda i: source.names(blocks, i), wanted[:_NAMED_BLOCKS])):
            gone = [name for name, out in zip(names, left_out[starts[i] : ends[i]]) if out][: _NAMED - named]
            yield from (Fault(shard, key, reason) for shard, key in gone)
            named += len(gone)
            if named == _NAMED:
                break
    if more := int(left_out.sum()) - named:
        yield Fault(source.name, f"and {more} more", reason)
