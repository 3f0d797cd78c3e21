"""Durations in any unit, turned into optimizer steps."""

import dataclasses
import math
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from ml_collections import ConfigDict

from xmodal.config import ConfigError

_DURATION = re.compile(r"(\d[\d_]*(?:\.\d+)?(?:[eE]\d+)?)\s*(steps?|epochs?|examples?|%)?")
_FORMS = '"500steps", "3epochs", "1_000_000examples", "2%" (of the run) or an integer number of steps'


@dataclasses.dataclass(frozen=True)
class Pace:
    """How many samples the steps of a run take; a run may go on with another batch size and keeps what it has seen.

    Attributes:
      phases: (steps done before it, samples seen before it, batch size) of each stretch with one batch size.
    """

    phases: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, batch_size: int, meta: Mapping[str, Any] | None = None) -> "Pace":
        """The pace of a run from its start, or from where the document of a checkpoint (`meta`) leaves it."""
        if meta is None or not meta["position"]:
            return cls(((0, 0, batch_size),))
        step, samples = meta["step"], meta["position"]
        before = meta.get("batches") or [(0, 0, samples // step)]  # runs that began before it was noted kept theirs
        phases = tuple(tuple(phase) for phase in before)
        return cls(phases if phases[-1][2] == batch_size else (*phases, (step, samples, batch_size)))

    def step_at(self, samples: int | Fraction) -> int:
        """Returns after how many steps that many samples have been seen."""
        for (step, seen, batch_size), after in zip(self.phases, (*self.phases[1:], None)):
            if after is None or samples <= after[1]:
                return step + math.ceil((samples - seen) / batch_size)
        raise AssertionError("a pace has at least one phase")

    def samples_at(self, step: int) -> int:
        """Returns how many samples that many steps take."""
        first, seen, batch_size = [phase for phase in self.phases if phase[0] <= step][-1]
        return seen + (step - first) * batch_size


def to_steps(
    value: str | int,
    *,
    batch_size: int,
    epoch_size: int | None,
    total_steps: int | None = None,
    pace: Pace | None = None,
    where: str = "duration",
) -> int:
    """Returns the number of optimizer steps that last at least as long as `value`.

    Args:
      value: "500steps", "0.5epochs", "1_000_000examples", "2%", "500" or 500 (steps); "" and 0 are no time.
      batch_size: samples of one step.
      epoch_size: samples of one pass over the training data; None when it is not known.
      total_steps: length of the run, which percentages refer to; None while it is not known.
      pace: for durations that are counted from the start of a run, whose batch size may have changed.
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
    return (pace or Pace.of(batch_size)).step_at(amount)


def samples_of(value: str | int, config: ConfigDict, epoch_size: int, pace: Pace | None = None) -> int:
    """Returns the samples of the stream that a duration of a run takes; for curricula of the data.

    Raises:
      ConfigError: as `to_steps`.
    """
    pace = pace or Pace.of(config.batch_size)
    units = dict(batch_size=config.batch_size, epoch_size=epoch_size, pace=pace)
    total = to_steps(config.schedule.total, **units, where="schedule.total")
    return pace.samples_at(to_steps(value, **units, total_steps=total, where="the start of a weight in data.sources"))
