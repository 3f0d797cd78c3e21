"""Webdataset tars, on disk or in a bucket."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from data_pipelines.errors import BadSample, DataError, Fault
from data_pipelines.host import Memory
from data_pipelines.io.storage import Files, basename, printable
from data_pipelines.io.tar import Group, Member, Read, TarDamage, groups
from data_pipelines.rules import Rules
from data_pipelines.samples import Record, Sample
from data_pipelines.sources import index
from data_pipelines.sources.base import Source, SourceSpec
from data_pipelines.sources.blocks import Blocks
from data_pipelines.sources.measures import Measure


@dataclass(frozen=True)
class TarSpec(SourceSpec):
    """Tar shards.

    Attributes:
        urls: patterns of the shards: paths or urls with `{0000..0009}`, `{a,b}`, `*`, one or several.
        image: extension of the first input that files hold, all that follows the first dot, such as "image.jpg"; ""
            takes the first member with one of the extensions of its modality.
        caption: extension of the first text; "" is txt.
    """

    urls: str | tuple = field(default="", metadata=dict(example="shards-{0000..0009}.tar"))
    image: str = ""
    caption: str = ""


class TarSource(Source):
    """Tar shards with an index beside them; see `Source`."""

    Spec, keyed = TarSpec, True

    def __init__(self, name: str, spec: TarSpec, rules: Rules, files: Files, measures: Sequence[Measure] = ()):
        self.name, self.spec, self.rules, self._files = name, spec, rules, files
        self._index = index.load(spec.urls, rules, files, measures)
        self.samples, self.bytes = self._index.samples, self._index.bytes
        self._memory = Memory()
        self.shards, self.skipped = len(self._index.shards), self._index.skipped

    @classmethod
    def open(cls, name: str, spec: TarSpec, rules: Rules, files: Files, measures: Sequence[Measure]) -> Source:
        """See `Source`."""
        return cls(name, spec, rules, files, measures)

    def column(self, measure: Measure) -> np.ndarray:
        """See `Source`."""
        return self._index.column(measure)

    def blocks(self, target: int) -> Blocks:
        """See `Source`."""
        return self._index.blocks(target)

    def read(self, blocks: Blocks, i: int) -> list[Sample]:
        """See `Source`."""
        shard, start, end = self._index.shards[blocks.shard[i]], int(blocks.start[i]), int(blocks.end[i])
        path = shard.path
        content = self._files.read(path, start, end, shard.version, self._memory)
        samples = parse_block(path, content, start, self.rules)
        self._check(blocks, i, len(samples))
        return samples

    def names(self, blocks: Blocks, i: int) -> list[tuple[str, str]]:
        """See `Source`."""
        shard, start, end = self._index.shards[blocks.shard[i]], int(blocks.start[i]), int(blocks.end[i])
        with self._files.buffered(shard.path, shard.bytes) as read:
            keys = [group.key for group, _, _ in _usable(shard.path, read, start, end, self.rules)]
        self._check(blocks, i, len(keys))
        return [(printable(shard.path), key) for key in keys]

    def shard_names(self) -> list[str]:
        """See `Source`."""
        return [printable(shard.path) for shard in self._index.shards]

    def identity(self) -> list[tuple[str, int]]:
        """See `Source`."""
        return [(basename(shard.path), shard.bytes) for shard in self._index.shards]

    def faults(self) -> Iterator[Fault]:
        """See `Source`."""
        for shard in self._index.shards:
            for reason, keys in shard.skipped_keys.items():
                yield from (Fault(printable(shard.path), key, reason) for key in keys)
                unlisted = shard.skipped[reason] - len(keys)
                if unlisted:
                    yield Fault(printable(shard.path), f"and {unlisted} more", reason)

    def _check(self, blocks: Blocks, i: int, samples: int) -> None:
        """Raises DataError where a block holds another number of usable samples than its index says."""
        if samples != blocks.count[i]:
            path = printable(self._index.shards[blocks.shard[i]].path)
            raise DataError(
                f"stale index: bytes {blocks.start[i]:,} to {blocks.end[i]:,} of {path} hold {samples} usable samples "
                f"and not the {blocks.count[i]} of its index; the shard changed during the run. Start the run again"
            )


def parse_block(path: str, content: bytes | memoryview, start: int, rules: Rules) -> list[Sample]:
    """Returns the usable samples of a block that starts at byte `start` of its shard; parts are views, not copies."""
    view = memoryview(content)
    read = lambda offset, size: bytes(view[offset - start : offset - start + size])
    samples = []
    cut = lambda member: view[member.offset - start : member.offset - start + member.size]
    for group, members, record in _usable(path, read, start, start + len(content), rules):
        parts = {name: cut(member) for name, member in members.items()}
        samples.append(Sample(printable(path), group.key, parts, record))
    return samples


def _usable(
    path: str, read: Read, start: int, end: int, rules: Rules
) -> Iterator[tuple[Group, dict[str, Member], Record]]:
    """Yields the usable samples of the bytes [start, end) of a shard, with their members and their record."""
    try:
        for group in groups(read, start, end):
            try:
                members = rules.members(group)
                record = rules.read_group(group, lambda member: read(member.offset, member.size))
                rules.check(record)
            except BadSample:  # counted when the shard was indexed
                continue
            yield group, members, record
    except TarDamage as damage:
        where = printable(path)
        raise DataError(f"stale index: {where} was readable when it was indexed and is not now: {damage}") from None
