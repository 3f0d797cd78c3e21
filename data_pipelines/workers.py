"""Processes for work that threads cannot share out, and that never outlive the process that started them."""

import contextlib
import itertools
import multiprocessing
import os
import queue
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from data_pipelines.errors import DataError

_AHEAD = 4  # items for each worker that are handed out and not yet done: enough that none ever waits for work


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


def in_processes(work: Callable[..., Any], items: Iterable[Any], workers: int, *shared: Any) -> Iterator[Any]:
    """Yields `work(item, *shared)` for all items, in their order; close it (`contextlib.closing`) to end it early.

    However it ends, the processes end at once, in the middle of their work.

    Args:
        work: a function that processes can import.
        items: small; taken as they are needed.
        workers: processes; with one the work is done here.
        *shared: sent to each process once.

    Raises:
        DataError: a process died.
        KeyboardInterrupt: from here alone, so that nothing is left half done.
    """
    if workers == 1:
        yield from (work(item, *shared) for item in items)
        return
    # Not an Event: setting one waits for all that wait for it, those that were killed included.
    ended, end = spawning().Pipe(duplex=False)
    pool = process_pool(workers, _share, ended, shared)
    try:
        calls = ((work, item) for item in items)
        results = results_of(pool, _call, calls, workers, end.close, ordered=True)
        with contextlib.closing(results):
            yield from results
    except BrokenProcessPool:
        raise DataError(
            "a worker process died, perhaps for want of memory; --workers with a smaller number needs less of it"
        ) from None


def results_of(
    pool: Executor,
    work: Callable[..., Any],
    calls: Iterable[tuple],
    workers: int,
    stop: Callable[[], None],
    *,
    ordered: bool = False,
) -> Iterator[Any]:
    """Yields the results of `work(*call)` from a pool, and shuts it down, however it ends.

    Args:
        pool: threads or processes.
        work: what it runs.
        calls: taken as they are needed.
        workers: of the pool.
        stop: ends the work under way; called when results are no longer wanted.
        ordered: in the order of the calls, and not as they get done.
    """
    finished, calls, complete = queue.SimpleQueue(), iter(calls), False
    waiting: deque[Future] = deque()
    with interrupts_to(finished):
        try:
            while True:
                for call in itertools.islice(calls, _AHEAD * workers - len(waiting)):
                    waiting.append(pool.submit(work, *call))
                    waiting[-1].add_done_callback(finished.put)
                if not waiting:
                    break
                yield _next(waiting, finished, ordered).result()
            complete = True
        finally:
            if not complete:
                stop()
            pool.shutdown(cancel_futures=True)


def _next(waiting: deque[Future], finished: queue.SimpleQueue, ordered: bool) -> Future:
    """Takes one that is done out of `waiting`."""

    def take() -> Future:
        done = finished.get()
        if done is None:
            raise KeyboardInterrupt
        return done

    if ordered:
        while not waiting[0].done() or not finished.empty():  # also looks for Ctrl-C when there is nothing to wait for
            take()
        return waiting.popleft()
    done = take()
    waiting.remove(done)
    return done


_shared: tuple = ()  # what `in_processes` sent to this process


def _share(ended: Any, shared: tuple) -> None:
    global _shared
    _shared = shared
    threading.Thread(target=_wait_for_end, args=(ended,), daemon=True).start()


def _wait_for_end(ended: Any) -> None:
    with contextlib.suppress(EOFError):
        ended.recv_bytes()
    os._exit(1)


def _call(work: Callable[..., Any], item: Any) -> Any:
    return work(item, *_shared)


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
