"""Durations in any unit, turned into optimizer steps."""

import math
import re
from fractions import Fraction

from ml_collections import ConfigDict

from xmodal.config import ConfigError

_DURATION = re.compile(r"(\d[\d_]*(?:\.\d+)?(?:[eE]\d+)?)\s*(steps?|epochs?|examples?|%)?")
_FORMS = '"500steps", "3epochs", "1_000_000examples", "2%" (of the run) or an integer number of steps'


def to_steps(
    value: str | int,
    *,
    batch_size: int,
    epoch_size: int | None,
    total_steps: int | None = None,
    where: str = "duration",
) -> int:
    """Returns the number of optimizer steps that last at least as long as `value`.

    Args:
      value: "500steps", "0.5epochs", "1_000_000examples", "2%", "500" or 500 (steps); "" and 0 are no time.
      batch_size: samples of one step.
      epoch_size: samples of one pass over the training data; None when it is not known.
      total_steps: length of the run, which percentages refer to; None while it is not known.
      where: name of the option, for messages.

    Raises:
      ConfigError: not a duration, or a unit that cannot be converted here.
    """
    if value == "":
        return 0
    match = _DURATION.fullmatch(str(value).strip()) if type(value) in (str, int) else None
    if match is None:
        raise ConfigError(f"{where}: {value!r} is not a duration; write {_FORMS}")
    amount, unit = Fraction(match[1]), (match[2] or "step").rstrip("s")  # exact: 0.1 epochs of 10 are 1
    if unit == "step":
        if amount.denominator != 1:
            raise ConfigError(f"{where}: {value!r} is not a whole number of steps")
        return int(amount)
    if unit == "%":
        if total_steps is None:
            raise ConfigError(f"{where}: {value!r} needs the length of the run; use steps, epochs or examples")
        return math.ceil(amount * total_steps / 100)
    if unit == "epoch":
        if not epoch_size:
            raise ConfigError(f"{where}: {value!r} needs the size of the data, which is unknown; use steps or examples")
        amount *= epoch_size
    return math.ceil(amount / batch_size)


def samples_of(value: str | int, config: ConfigDict, epoch_size: int) -> int:
    """Returns the samples of the stream that a duration of a run takes; for curricula of the data.

    Raises:
      ConfigError: as `to_steps`.
    """
    units = dict(batch_size=config.batch_size, epoch_size=epoch_size)
    total = to_steps(config.schedule.total, **units, where="schedule.total")
    return (
        to_steps(value, **units, total_steps=total, where="the start of a weight in data.sources") * config.batch_size
    )
