"""Groups of samples that are near one another, which batches then hold whole: hard negatives.

`python -m xmodal data neighbours` writes them from embeddings; the option `groups` of a source takes the file. The
order deals out groups as it otherwise deals out samples: it stays a pure function of (seed, position), and an epoch
holds every group once (but for at most `lanes - 1`, as of single samples).

Members lie anywhere in the data, and a sample is read with the cell of its shard that it lies in (a 256th of it, up to
4 MiB): made for local disks, and for shards whose samples were written in the order of their groups.
"""

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipelines.errors import DataError, Fault
from data_pipelines.io.storage import Files, printable
from data_pipelines.modalities import Text
from data_pipelines.names import shard_labels
from data_pipelines.order.order import Order, WindowKey, WindowPlan
from data_pipelines.samples import Sample
from data_pipelines.sources.base import Source, faults_of
from data_pipelines.sources.blocks import Blocks
from data_pipelines.sources.measures import Measure
from data_pipelines.sources.sample_lists import NAMED, located, name_hashes

_REASON = "in no whole group"


@dataclass(frozen=True)
class _Groups(Blocks):
    """A block for each group.

    Attributes:
        members: numbers of its samples in the source, int64 [blocks, size].
        cells: the smallest blocks of the source.
    """

    members: np.ndarray
    cells: Blocks


class Grouped(Source):
    """The samples of a source in groups of one size; see `Source`. Members that the source has not break their group.

    Args:
        source: the whole.
        names: hashes of the members' names, uint64 [groups, size].
        where: what names them, for messages.

    Attributes:
        size: samples of a group.
    """

    def __init__(self, source: Source, names: np.ndarray, where: str):
        self._source, self.size = source, names.shape[1]
        self.name, self.spec, self.rules = source.name, source.spec, source.rules
        self.keyed, self.bytes, self.shards = source.keyed, source.bytes, source.shards
        members = located(source, names, where)
        self._members = members[(members >= 0).all(axis=1)]
        self.samples = self._members.size
        self._left_out = source.samples - self.samples
        self.skipped = dict(source.skipped) | ({_REASON: self._left_out} if self._left_out else {})

    def blocks(self, target: int) -> Blocks:
        """See `Source`; a block is a group, whatever the target."""
        cells = self._source.blocks(1)
        each = np.repeat(cells.bytes / np.maximum(cells.count, 1), cells.count)
        shard = np.repeat(cells.shard, cells.count)[self._members[:, 0]]
        number, count = np.arange(len(self._members)), np.full(len(self._members), self.size)
        size = np.maximum(1, each[self._members].sum(axis=1).astype(np.int64))
        return _Groups(shard, number, number + 1, count, size, self._members, cells)

    def read(self, blocks: Blocks, i: int) -> list[Sample]:
        """See `Source`."""
        ends, cells = np.cumsum(blocks.cells.count), {}
        samples = []
        for member in blocks.members[i].tolist():
            cell = int(np.searchsorted(ends, member, side="right"))
            if cell not in cells:
                cells[cell] = self._source.read(blocks.cells, cell)
            sample = cells[cell][member - int(ends[cell] - blocks.cells.count[cell])]
            parts = {name: bytes(content) for name, content in sample.parts.items()}  # views would hold the whole cell
            samples.append(sample._replace(parts=parts))
        return samples

    def column(self, measure: Measure) -> np.ndarray:
        """See `Source`."""
        return self._source.column(measure)[self._members.reshape(-1)]

    def shard_names(self) -> list[str]:
        """See `Source`."""
        return self._source.shard_names()

    def identity(self) -> Any:
        """See `Source`."""
        members = hashlib.blake2b(self._members.astype("<i8").tobytes(), digest_size=8).hexdigest()
        return self._source.identity(), self.size, members

    def faults(self) -> Iterator[Fault]:
        """See `Source`."""
        yield from self._source.faults()
        if self._left_out:
            alone = np.ones(self._source.samples, bool)
            alone[self._members.reshape(-1)] = False
            yield from faults_of(self._source, alone, _REASON)


class GroupedOrder:
    """The order of sources of groups: an `Order` whose samples are whole groups, told in samples as that one is.

    Args:
        size: samples of a group; every block of every source is one group.
        together: as for `Order`.
    """

    def __init__(
        self,
        counts: Sequence[np.ndarray],
        names: Sequence[str],
        weights: Sequence[Sequence[tuple[int, float]]],
        *,
        lanes: int,
        together: int,
        size: int,
        **options: Any,
    ):
        self.lanes, self._size = lanes, size
        for name, count in zip(names, counts):
            if len(count) < lanes:
                raise DataError(
                    f"data.sources.{name} has {len(count)} whole groups of {size} samples, fewer than "
                    f"data.lanes={lanes}; lower data.lanes"
                )
        in_groups = [tuple((-(-start // size), weight) for start, weight in curriculum) for curriculum in weights]
        ones = [count // size for count in counts]
        self._order = Order(ones, names, in_groups, lanes=lanes, together=together // size, **options)
        self.shares, self.following = self._order.shares, self._order.following

    def epochs(self, position: int) -> np.ndarray:
        """See `Order`."""
        return self._order.epochs(position // self._size)

    def locate(self, lane: int, first: int, count: int) -> Iterator[tuple[WindowKey, np.ndarray, np.ndarray]]:
        """See `Order`; `first` and `count` are multiples of the size of a group."""
        for key, places, groups in self._order.locate(lane, first // self._size, count // self._size):
            yield key, self._members(places), self._members(groups)

    def plan(self, key: WindowKey) -> WindowPlan:
        """See `Order`; the members of a group follow one another."""
        plan = self._order.plan(key)
        sample = self._members(plan.sample.astype(np.int64))
        return WindowPlan(plan.blocks, np.repeat(plan.block, self._size), sample.astype(np.int32))

    def _members(self, groups: np.ndarray) -> np.ndarray:
        """Numbers of the members of groups with these numbers."""
        return (groups[:, None] * self._size + np.arange(self._size)).reshape(-1)


def grouped(source: Source, files: Files) -> Source:
    """Returns the source in the groups that its option `groups` names, or as it is where there is none.

    Raises:
        DataError: the file is missing or malformed, or the source has none of its groups.
    """
    if not source.spec.groups:
        return source
    where = f"data.sources.{source.name}.groups={printable(source.spec.groups)}"
    found = Grouped(source, _read(source.spec.groups, where, files), where)
    if not found.samples:
        raise DataError(f"{where}: the source has no whole group of it; it was made for other data")
    return found


def group_size(sources: Sequence[Source], config: Any, bucketed: Text | None, batch_size: int, position: int) -> int:
    """Returns how many samples the groups of all sources have; 1 where there are none.

    Raises:
        DataError: sources have groups of several sizes, or batches cannot hold them whole.
    """
    sizes = {source.name: getattr(source, "size", 1) for source in sources}
    if max(sizes.values()) == 1:
        return 1
    if len(set(sizes.values())) > 1:
        raise DataError(f"data.sources: all must have `groups` of one size, or none; they are {sizes} samples large")
    (size,) = set(sizes.values())
    if bucketed is not None:
        raise DataError(
            f"{bucketed.where}.buckets cuts sources by length, and `groups` of a source must stay whole: set one"
        )
    for name, number in (("batch_size", batch_size), ("position", position)):
        if number % (size * config.lanes):
            raise DataError(
                f"{name}={number} is not a multiple of {size * config.lanes}: data.lanes={config.lanes} take whole "
                f"groups of {size} samples each; lower data.lanes"
            )
    return size


def write_groups(
    path: str, groups: Sequence[Sequence[tuple[str, str]]], files: Files, shards: Iterable[str] = ()
) -> None:
    """Writes groups of (shard, key), all of one size, as hashes of names: uint64 [groups, size] in a .npy file.

    The arguments are those of `sample_lists.write_names`.
    """
    labels = shard_labels({*shards, *(shard for group in groups for shard, _ in group)}, NAMED)
    names = [(labels[shard], key) for group in groups for shard, key in group]
    buffer = io.BytesIO()
    np.save(buffer, name_hashes(names).reshape(len(groups), -1), allow_pickle=False)
    files.write_atomic(path, buffer.getvalue())


def _read(path: str, where: str, files: Files) -> np.ndarray:
    try:
        names = np.load(io.BytesIO(files.read_all(path)), allow_pickle=False)
    except ValueError as error:
        raise DataError(f"{where} is no file of groups: {error}") from None
    if names.dtype != np.uint64 or names.ndim != 2 or names.shape[1] < 2:
        raise DataError(
            f"{where} holds {names.dtype} {names.shape}; expected hashes of names, uint64 [groups, size], as "
            "`python -m xmodal data neighbours` writes them"
        )
    if len(np.unique(names)) < names.size:
        raise DataError(f"{where}: a sample is in several groups, and an epoch holds each once")
    return names
