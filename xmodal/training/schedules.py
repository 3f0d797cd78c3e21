"""The learning rate as a function of the step."""

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from xmodal.config import ConfigError, did_you_mean
from xmodal.training.durations import Pace, to_steps

DECAYS = ("cosine", "linear", "rsqrt", "steps", "constant")
DROP = 0.1  # factor of each of the `steps`


def learning_rate(
    options: ConfigDict,
    peak: float,
    total_steps: int,
    *,
    batch_size: int,
    epoch_size: int | None,
    pace: Pace | None = None,
) -> optax.Schedule:
    """Builds the schedule: a linear warm-up from 0, the decay, and a linear cool-down.

    Cosine and linear decays reach `final * peak` at `total_steps` by themselves. `rsqrt`, which is
    peak * sqrt(warmup / step) (Vaswani et al. 2017), `steps`, which falls to a tenth at each of `drops` (He et al.
    2015), and `constant` know no end, so that a run can be prolonged; a cool-down takes them to `final * peak` (Zhai et
    al. 2022).

    Args:
      options: the config's `schedule` section.
      peak: learning rate at the end of the warm-up.
      total_steps: length of the run.
      batch_size: samples of one step.
      epoch_size: samples of one pass over the training data; None when it is not known.
      pace: of a run whose batch size has changed, for the phases that are counted from its start.

    Returns:
      The learning rate at each step, 0 to `total_steps`.

    Raises:
      ConfigError: an unknown decay, phases longer than the run, or options that would have no effect.
    """
    units = {"batch_size": batch_size, "epoch_size": epoch_size, "total_steps": total_steps}
    warmup = to_steps(options.warmup, **units, pace=pace, where="schedule.warmup")
    cooldown = to_steps(options.cooldown, **units, where="schedule.cooldown")
    drops = [to_steps(d, **units, pace=pace, where=f"schedule.drops[{i}]") for i, d in enumerate(options.drops)]
    _check(options, warmup, cooldown, total_steps, drops)
    phases, ends = [_decay(options, peak, warmup, total_steps - warmup - cooldown, drops)], []
    if warmup:
        phases, ends = [optax.linear_schedule(0.0, peak, warmup), *phases], [warmup]
    if cooldown:
        start = float(phases[-1](total_steps - warmup - cooldown))
        phases.append(optax.linear_schedule(start, options.final * peak, cooldown))
        ends.append(total_steps - cooldown)
    return optax.join_schedules(phases, ends)


def _decay(options: ConfigDict, peak: float, warmup: int, steps: int, drops: list[int]) -> optax.Schedule:
    if options.decay == "cosine" and steps:
        return optax.cosine_decay_schedule(peak, steps, alpha=options.final)
    if options.decay == "linear" and steps:
        return optax.linear_schedule(peak, options.final * peak, steps)
    if options.decay == "rsqrt":
        return lambda step: peak * jax.lax.rsqrt(1.0 + jnp.maximum(step, 0) / max(warmup, 1))
    if options.decay == "steps":
        return optax.piecewise_constant_schedule(peak, {drop - warmup: DROP for drop in drops})
    return optax.constant_schedule(peak)  # also a cosine or linear run that is nothing but warm-up


def _check(options: ConfigDict, warmup: int, cooldown: int, total_steps: int, drops: list[int]) -> None:
    """Refuses phases that do not fit and options that would be ignored."""
    if total_steps < 1:
        raise ConfigError(f"schedule.total: a run has at least one step, got {options.total!r}")
    if options.decay not in DECAYS:
        hint = did_you_mean(options.decay, DECAYS)
        raise ConfigError(f"schedule.decay: expected {', '.join(DECAYS)}, got {options.decay!r}.{hint}")
    if warmup + cooldown > total_steps:
        raise ConfigError(
            f"schedule: warmup {options.warmup!r} and cooldown {options.cooldown!r} take {warmup} + "
            f"{cooldown} steps, but the run has {total_steps}"
        )
    if (options.decay == "steps") != bool(drops):
        raise ConfigError(
            f"schedule.drops={options.drops!r} and schedule.decay={options.decay!r}: a decay by steps has drops, and "
            "no other one has"
        )
    if drops != sorted(set(drops)) or (drops and not warmup < drops[0] <= drops[-1] < total_steps - cooldown):
        raise ConfigError(
            f"schedule.drops={options.drops!r} are steps {drops}: expected rising ones after the warmup ({warmup}) and "
            f"before the cooldown or the end ({total_steps - cooldown})"
        )
    ends_itself = options.decay in ("cosine", "linear")
    if cooldown and ends_itself:
        raise ConfigError(
            f"schedule.cooldown: only rsqrt, steps and constant decays have one, a {options.decay} decay ends at "
            "schedule.final by itself; set it to 0"
        )
    if options.final and not cooldown and not ends_itself:
        raise ConfigError(
            f"schedule.final: a {options.decay} decay reaches {options.final} of the peak in a cooldown; "
            "set schedule.cooldown, or schedule.final to 0"
        )
