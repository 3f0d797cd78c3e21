"""What a person sees when something is wrong with what they gave: one clear message instead of a traceback."""

import contextlib
import errno
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn

from data_pipelines.errors import DataError
from xmodal.messages import ConfigError, UsageError
from xmodal.reporting.files import ADVICE

INTERRUPTED = 128 + signal.SIGINT  # exit code of what Ctrl-C has ended, as shells have it
_PLACES = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR)  # something else is there


class TrainingError(RuntimeError):
    """The run cannot go on; the message says why and what to do."""


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turns errors that name their own cause into a message and exit code 1 (usage: 2); bugs keep their traceback."""
    try:
        yield
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except _expected() as error:
        _leave(str(error))
    except OSError as error:
        if error.errno not in (*ADVICE, *_PLACES):
            raise
        _leave(f"{error.strerror}{f': {error.filename}' if error.filename else ''}")


def end_process(main: Callable[[list[str]], int], argv: list[str]) -> NoReturn:
    """Runs a command line as the whole of a process, and ends it.

    A process that failed or was interrupted ends at once: threads that are stuck in a disk or a server would otherwise
    keep it for minutes, and say more after its last line.
    """
    for stream in (sys.stdout, sys.stderr):  # a terminal that cannot show a character must not end a run
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = main(argv)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int | None) else 1
        if code and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
    except KeyboardInterrupt:  # a run that trains hears it itself and saves first
        print("interrupted", file=sys.stderr)
        code = INTERRUPTED
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    if code in (1, INTERRUPTED):
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _expected() -> tuple[type[Exception], ...]:
    # Orbax takes seconds to import, so it is not imported for this: what was not imported cannot have been raised.
    saved_steps = sys.modules.get("xmodal.checkpoints.reading")
    return (ConfigError, DataError, TrainingError, *([saved_steps.CheckpointError] if saved_steps else []))


def _leave(message: str) -> None:
    print(f"error: {message}", file=sys.stderr, flush=True)
    jax = sys.modules.get("jax")
    if jax is not None and jax.distributed.is_initialized() and jax.process_count() > 1:
        sys.stdout.flush()
        os._exit(1)  # JAX's farewell would wait for the other processes, which wait for this one in a collective
    sys.exit(1)
