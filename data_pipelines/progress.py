"""Says how far a long work on data is: a bar on a terminal, a line now and then elsewhere."""

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator

_SHORT = 1.0  # seconds of work for which there is no bar
_EVERY = 30.0  # seconds between two lines of a log

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def progress(total: int, text: str, unit: str = "shards") -> Iterator[Callable[[int], None]]:
    """Gives a function that notes so many more units as done. Short work shows nothing.

    Args:
        total: units in all.
        text: what is done, such as "indexing".
        unit: what is counted.
    """
    began = time.monotonic()
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn(text), BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn())
        bar = Progress(*columns, console=Console(stderr=True), transient=True)
        task = bar.add_task(text, total=total)

        def show(count: int) -> None:
            bar.advance(task, count)
            if time.monotonic() - began > _SHORT:
                bar.start()  # once

        try:
            yield show
        finally:
            bar.stop()
        return
    done, said = 0, began

    def advance(count: int) -> None:
        nonlocal done, said
        done += count
        if time.monotonic() - said > _EVERY:
            said = time.monotonic()
            _log.info("%s: %s of %s %s", text, f"{done:,}", f"{total:,}", unit)

    yield advance
