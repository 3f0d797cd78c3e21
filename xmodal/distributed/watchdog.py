"""Ends a run that makes no progress, with the stacks that show where it waits.

JAX notices a process that died, not one that is alive and stuck: a reader on a dead mount, a collective whose
partner took another branch. Such a run would hold its machines for ever.
"""

import contextlib
import faulthandler
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator

EXIT_CODE = 83  # of a run that the watchdog ended, so that a launcher can tell it from a crash


class Watchdog:
    """A thread that expects `beat()` at least every `step_seconds`.

    Args:
      step_seconds: time without a beat that is too long; 0 is no limit.
      slow_seconds: the same inside `slow(...)`.
      who: how this process is called in the message.
      evidence: returns lines that say what is being waited for, such as the reads that have not returned.
      end: called with the exit code in place of ending the process, for tests.
    """

    def __init__(
        self,
        step_seconds: float,
        slow_seconds: float,
        *,
        who: str = "",
        evidence: Callable[[], list[str]] = list,
        end: Callable[[int], None] = os._exit,
    ):
        self._who, self._evidence, self._end = who, evidence, end
        self._step_limit, self._slow_limit = (s if s > 0 else math.inf for s in (step_seconds, slow_seconds))
        self._waiting = (self._step_limit, "a training step", "watchdog.step")
        self._beats = 0  # any change of it is progress
        self._steps = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def beat(self) -> None:
        """Reports a finished step."""
        self._steps += 1
        self._beats += 1

    @contextlib.contextmanager
    def slow(self, what: str) -> Iterator[None]:
        """Applies the longer limit while `what` ("compiling the step") goes on."""
        before = self._waiting
        self._waiting = (self._slow_limit, what, "watchdog.slow")
        self._beats += 1
        try:
            yield
        finally:
            self._waiting = before
            self._beats += 1

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        tick = min(1.0, self._step_limit / 4, self._slow_limit / 4)
        seen, idle, before = self._beats, 0.0, time.monotonic()
        while not self._stop.wait(tick):
            now = time.monotonic()
            # A suspended process (Ctrl-Z, a closed laptop) was not stuck: count only time in which it ran.
            idle = idle + min(now - before, 2 * tick) if seen == self._beats else 0.0
            seen, before = self._beats, now
            limit, what, option = self._waiting
            if idle >= limit:
                self._report(limit, what, option)
                self._end(EXIT_CODE)
                return

    def _report(self, limit: float, what: str, option: str) -> None:
        sys.stdout.flush()
        error = sys.__stderr__
        print(
            f"\nwatchdog{self._who}: no progress for {limit:g} s while waiting for: {what} ({self._steps} "
            f"steps finished). The run ends with exit code {EXIT_CODE}; the same command continues it from "
            f"its last checkpoint. Raise {option} if such a wait is normal here.",
            *(f"  {line}" for line in self._evidence()),
            "Stacks of all threads:",
            sep="\n",
            file=error,
        )
        faulthandler.dump_traceback(file=error, all_threads=True)
        error.flush()
