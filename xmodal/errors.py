"""What a person sees when something is wrong with what they gave: one clear message instead of a traceback."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator

from data_pipelines.errors import DataError
from xmodal.messages import ConfigError, UsageError
from xmodal.reporting.files import FULL

_PLACES = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)  # not ours to write to


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
        if error.errno not in (*FULL, *_PLACES):
            raise
        _leave(f"{error.strerror}{f': {error.filename}' if error.filename else ''}")


def _expected() -> tuple[type[Exception], ...]:
    # Orbax takes seconds to import, so it is not imported for this: what was not imported cannot have been raised.
    saved_steps = sys.modules.get("xmodal.training.saved_steps")
    return (ConfigError, DataError, TrainingError, *([saved_steps.CheckpointError] if saved_steps else []))


def _leave(message: str) -> None:
    print(f"error: {message}", file=sys.stderr, flush=True)
    jax = sys.modules.get("jax")
    if jax is not None and jax.distributed.is_initialized() and jax.process_count() > 1:
        sys.stdout.flush()
        os._exit(1)  # JAX's farewell would wait for the other processes, which wait for this one in a collective
    sys.exit(1)
