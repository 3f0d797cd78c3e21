"""Processes for work that threads cannot share out, and that never outlive the process that started them."""

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any


def spawning() -> multiprocessing.context.SpawnContext:
    """Returns the way in which processes are started here: fresh ones, not forks, as the parent may have threads."""
    return multiprocessing.get_context("spawn")


def process_pool(workers: int, start: Callable[..., None] | None = None, *args: Any) -> ProcessPoolExecutor:
    """Returns a pool of fresh processes; use it as a context manager.

    When the parent dies, however it does, they end too.

    Args:
        workers: how many.
        start: what each runs first, with `args`.
        *args: sent to each once.
    """
    return _Pool(workers, mp_context=spawning(), initializer=_start, initargs=(start, args))


@contextlib.contextmanager
def interrupts_to(results: queue.SimpleQueue) -> Iterator[None]:
    """Turns Ctrl-C into a None in a queue of results, for the reader to raise KeyboardInterrupt where it is safe.

    Raised anywhere, it may hit `concurrent.futures` while it holds the locks of all futures, which no one would ever
    release: the pool could not be closed. Outside of the main thread there is no Ctrl-C, and this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, lambda *_: results.put(None))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class _Pool(ProcessPoolExecutor):
    def submit(self, *args: Any, **options: Any) -> Future:
        # This may start a process. Ctrl-C reaches the whole group, and it is for the parent to say what follows: new
        # processes have it blocked from their first moment, before they could ignore it themselves.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            return super().submit(*args, **options)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(start: Callable[..., None] | None, args: tuple) -> None:
    threading.Thread(target=_wait_for_parent, daemon=True).start()
    if start is not None:
        start(*args)


def _wait_for_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
