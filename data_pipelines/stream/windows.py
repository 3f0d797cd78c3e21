"""The bytes of the shuffle windows in use: read ahead by a few threads, dropped when the order has passed them."""

import threading
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass

from data_pipelines.order.order import Order, WindowKey, WindowPlan
from data_pipelines.samples import Sample
from data_pipelines.sources.base import Source
from data_pipelines.sources.blocks import Blocks


@dataclass(frozen=True)
class Window:
    """A shuffle window of a source, whose blocks are being read."""

    source: Source
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
        sources: give the samples.
        tables: block table of each source.
        readers: blocks read at a time.
    """

    def __init__(self, order: Order, sources: Sequence[Source], tables: Sequence[Blocks], readers: int):
        self._order, self._sources, self._tables = order, sources, tables
        # (source, lane) -> (epoch, window) -> the window; used by the consumer's thread alone
        self._open: dict[tuple[int, int], dict[tuple[int, int], Window]] = defaultdict(dict)
        self._closed = threading.Event()
        self._readers = ThreadPoolExecutor(readers, thread_name_prefix="data-read")

    def get(self, key: WindowKey) -> Window:
        """Returns a window; starts to read it where that has not begun."""
        windows, when = self._open[key.source, key.lane], (key.epoch, key.window)
        if when not in windows:
            plan = self._order.plan(key)
            blocks = tuple(self._readers.submit(self._read, key.source, int(block)) for block in plan.blocks)
            windows[when] = Window(self._sources[key.source], plan, blocks)
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
        return self._sources[source].read(self._tables[source], block)
