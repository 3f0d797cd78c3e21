"""Learning rate schedules: exact values where phases meet, and refusal of what cannot be."""

import jax
import numpy as np
import pytest

from xmodal.config import ConfigError
from xmodal.configs import base
from xmodal.training.schedules import learning_rate

PEAK, TOTAL = 0.5, 100


def schedule(steps=TOTAL, **options):
    section = base.get_config().schedule
    section.update(options)
    return learning_rate(section, PEAK, steps, batch_size=4, epoch_size=40)


@pytest.mark.parametrize(
    ("options", "points"),
    [
        (
            {"decay": "cosine", "warmup": "10%", "final": 0.2},
            {0: 0, 5: PEAK / 2, 10: PEAK, 55: 0.6 * PEAK, 100: 0.2 * PEAK, 120: 0.2 * PEAK},
        ),
        ({"decay": "cosine", "warmup": "", "final": 0.0}, {0: PEAK, 50: PEAK / 2, 100: 0}),
        (
            {"decay": "linear", "warmup": "2epochs", "final": 0.1},
            {0: 0, 10: PEAK / 2, 20: PEAK, 60: 0.55 * PEAK, 100: 0.1 * PEAK},
        ),
        ({"decay": "constant", "warmup": "0%"}, {0: PEAK, 50: PEAK, 100: PEAK, 1000: PEAK}),
        (
            {"decay": "constant", "warmup": "40examples", "cooldown": "20%", "final": 0.1},
            {0: 0, 10: PEAK, 80: PEAK, 90: 0.55 * PEAK, 100: 0.1 * PEAK},
        ),
        (
            {"decay": "rsqrt", "warmup": "4steps", "cooldown": "36steps"},
            {0: 0, 4: PEAK, 16: PEAK / 2, 64: PEAK / 4, 82: PEAK / 8, 100: 0},
        ),
        ({"decay": "rsqrt", "warmup": "4steps"}, {4: PEAK, 100: PEAK / 5, 400: PEAK / 10}),
        ({"decay": "cosine", "warmup": "100%"}, {0: 0, 50: PEAK / 2, 100: PEAK}),
        ({"decay": "constant", "warmup": "30%", "cooldown": "70%"}, {30: PEAK, 65: PEAK / 2, 100: 0}),
        (  # epochs are of 10 steps, from the start of the run
            {"decay": "steps", "warmup": "10%", "drops": ("3epochs", "60%")},
            {0: 0, 5: PEAK / 2, 29: PEAK, 30: PEAK / 10, 59: PEAK / 10, 60: PEAK / 100, 100: PEAK / 100},
        ),
        ({"decay": "steps", "warmup": "", "drops": (20,), "cooldown": "50%"}, {20: PEAK / 10, 75: PEAK / 20, 100: 0}),
    ],
)
def test_values(options, points):
    rate = schedule(**options)
    steps, values = np.array(list(points)), np.array(list(points.values()))
    np.testing.assert_allclose(jax.jit(jax.vmap(rate))(steps), values, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose([rate(int(s)) for s in steps], values, rtol=1e-6, atol=1e-8)  # as a plain function


def test_ends_are_exact():
    for decay in ("cosine", "linear"):
        rate = schedule(decay=decay, warmup="3steps", final=0.0)
        assert (float(rate(0)), float(rate(3)), float(rate(TOTAL))) == (0.0, PEAK, 0.0)
    for decay in ("rsqrt", "constant"):
        rate = schedule(decay=decay, warmup="3steps", cooldown="7steps", final=0.25)
        assert (float(rate(0)), float(rate(3)), float(rate(TOTAL))) == (0.0, PEAK, 0.25 * PEAK)


def test_rates_never_jump():
    for options in ({"decay": "cosine"}, {"decay": "linear"}, {"decay": "constant", "cooldown": "30%"},
                    {"decay": "rsqrt", "cooldown": "30%"}):  # fmt: skip
        rates = jax.vmap(schedule(warmup="10%", **options))(np.arange(TOTAL + 1))
        assert np.abs(np.diff(rates)).max() <= PEAK / 10 * (1 + 1e-5)  # the slope of the warm-up is the steepest


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (
            {"decay": "cosin"},
            "schedule.decay: expected cosine, linear, rsqrt, steps, constant, got 'cosin'. Did you mean",
        ),
        ({"warmup": "101steps"}, "'101steps' and cooldown '0%' take 101 + 0 steps, but the run has 100"),
        ({"decay": "constant", "warmup": "60%", "cooldown": "50%"}, "take 60 + 50 steps"),
        ({"cooldown": "10%"}, "schedule.cooldown: only rsqrt, steps and constant decays have one"),
        (
            {"decay": "rsqrt", "final": 0.1},
            "schedule.final: a rsqrt decay reaches 0.1 of the peak in a cooldown",
        ),
        ({"decay": "steps"}, "schedule.drops=() and schedule.decay='steps': a decay by steps has drops"),
        ({"drops": ("30%",)}, "schedule.drops=('30%',) and schedule.decay='cosine'"),
        ({"decay": "steps", "drops": ("50%", "30%")}, "are steps [50, 30]: expected rising ones after the warmup (2)"),
        ({"decay": "steps", "drops": ("120steps",)}, "before the cooldown or the end (100)"),
        ({"decay": "steps", "drops": ("late",)}, "schedule.drops[0]: 'late' is not a duration"),
        ({"warmup": "soon"}, "schedule.warmup: 'soon' is not a duration"),
        ({"steps": 0}, "schedule.total: a run has at least one step"),
    ],
)
def test_mistakes(options, wanted):
    with pytest.raises(ConfigError) as error:
        schedule(**options)
    assert wanted in str(error.value)
