"""What a person sees when something is wrong with what they gave: one clear message instead of a traceback."""

import contextlib
import sys
from collections.abc import Iterator

from data_pipelines.errors import DataError
from xmodal.config import ConfigError
from xmodal.training.checkpoints import CheckpointError
from xmodal.training.loop import TrainingError


EXPECTED = (ConfigError, DataError, CheckpointError, TrainingError)


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turns errors that name their own cause into a message and exit code 1; bugs keep their traceback."""
    try:
        yield
    except EXPECTED as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
