"""What `train.py` does once its arguments are read: exit codes, and the order in which JAX may be touched."""

from collections.abc import Sequence
from pathlib import Path

FINISHED = 0
INTERRUPTED = 75  # EX_TEMPFAIL: told to stop, saved; the same command goes on. 1: an error, 2: wrong arguments
# 83, `watchdog.EXIT_CODE`: the watchdog has ended a run that made no progress.


def run_training(recipe: str, overrides: Sequence[str], workdir: Path, accept_changes: bool = False) -> int:
    """Trains a recipe; returns the exit code.

    Args:
      recipe: "FILE.py" or "FILE.py:VARIANT".
      overrides: "--config.KEY=VALUE".
      workdir: the run folder, made or continued.
      accept_changes: continue a run with settings that change what it learns.

    Raises:
      ConfigError, DataError, TrainingError, CheckpointError: the run cannot begin or go on.
    """
    from xmodal.config import load_config
    from xmodal.distributed.runtime import Runtime, several_announced
    from xmodal.training.lock import refuse_second

    config = load_config(recipe, overrides)
    if not several_announced():  # another process of the same run may hold the lock
        refuse_second(workdir)
    with Runtime.start(config.log.compile_cache) as runtime:
        from xmodal.training.loop import train  # after the runtime: JAX must not be touched before it

        results = train(config, workdir, runtime, accept_changes=accept_changes)
    return FINISHED if "samples" in results else INTERRUPTED
