"""The bytes of the shuffle windows in use: read ahead by a few threads, dropped when the order has passed them."""

import os
import threading
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass

from data_pipelines.captions import Captions
from data_pipelines.errors import BadSample, DataError
from data_pipelines.index import Blocks
from data_pipelines.order import Order, WindowKey, WindowPlan
from data_pipelines.samples import Sample, image_member, read_record
from data_pipelines.tar import TarDamage, groups

_READERS = 2  # more only compete for the interpreter while they parse


@dataclass(frozen=True)
class Window:
    """A shuffle window whose blocks are being read."""

    plan: WindowPlan
    blocks: tuple[Future, ...]

    def __len__(self) -> int:
        return len(self.plan.block)

    def __getitem__(self, place: int) -> Sample:
        """Returns the sample at `place` of the shuffled window; waits for its block."""
        return self.blocks[self.plan.block[place]].result()[self.plan.sample[place]]


class Windows:
    """Gives the windows of an order, for the lanes of one process.

    Args:
        order: says which blocks a window holds.
        tables: block table of each source.
        captions: decides which samples are usable, as it did for the index.
    """

    def __init__(self, order: Order, tables: Sequence[Blocks], captions: Captions):
        self._order, self._tables, self._captions = order, tables, captions
        # (source, lane) -> (epoch, window) -> the window; used by the consumer's thread alone
        self._open: dict[tuple[int, int], dict[tuple[int, int], Window]] = defaultdict(dict)
        self._closed = threading.Event()
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="data-read")

    def get(self, key: WindowKey) -> Window:
        """Returns a window; starts to read it where that has not begun."""
        windows, when = self._open[key.source, key.lane], (key.epoch, key.window)
        if when not in windows:
            plan = self._order.plan(key)
            blocks = tuple(self._readers.submit(self._read, key.source, int(block)) for block in plan.blocks)
            windows[when] = Window(plan, blocks)
        return windows[when]

    def advance(self, key: WindowKey, place: int) -> None:
        """Notes that a lane has come to `place` of a window: drops what precedes it, reads ahead what follows."""
        windows, when = self._open[key.source, key.lane], (key.epoch, key.window)
        for passed in [other for other in windows if other < when]:
            del windows[passed]
        if place >= len(windows[when]) // 4:
            self.get(self._order.following(key))

    def close(self) -> None:
        """Stops reading; returns when no reader is left."""
        self._closed.set()
        self._readers.shutdown(wait=True, cancel_futures=True)

    def _read(self, source: int, block: int) -> list[Sample]:
        if self._closed.is_set():
            raise CancelledError
        table = self._tables[source]
        path, start, end = table.paths[table.shard[block]], int(table.start[block]), int(table.end[block])
        samples = parse_block(path, read_range(path, start, end), start, self._captions)
        if len(samples) != table.count[block]:
            raise DataError(
                f"stale index: bytes {start:,} to {end:,} of {path} hold {len(samples)} usable samples and not the "
                f"{table.count[block]} of its index; the shard changed during the run. Start the run again"
            )
        return samples


def read_range(path: str, start: int, end: int) -> bytes:
    """Returns bytes [start, end) of a shard.

    Raises:
        DataError: the shard is gone or shorter than it was.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            content = os.pread(file.fileno(), end - start, start)
            while len(content) < end - start:  # one call returns at most 2 GiB
                more = os.pread(file.fileno(), end - start - len(content), start + len(content))
                if not more:
                    raise DataError(f"stale index: {path} ends at {start + len(content):,}, expected {end:,} bytes")
                content += more
    except OSError as error:
        raise DataError(f"cannot read shard {path}: {error.strerror}") from error
    return content


def parse_block(path: str, content: bytes, start: int, captions: Captions) -> list[Sample]:
    """Returns the usable samples of a block that starts at byte `start` of its shard; images are views, not copies."""
    view = memoryview(content)
    read = lambda offset, size: bytes(view[offset - start : offset - start + size])
    samples = []
    try:
        for group in groups(read, start, start + len(content)):
            try:
                image = image_member(group)
                record = read_record(group, lambda member: read(member.offset, member.size), captions)
                captions.check(record)
            except BadSample:  # counted when the shard was indexed
                continue
            image = view[image.offset - start : image.offset - start + image.size]
            samples.append(Sample(path, group.key, image, record))
    except TarDamage as damage:
        raise DataError(f"stale index: {path} was readable when it was indexed and is not now: {damage}") from None
    return samples
