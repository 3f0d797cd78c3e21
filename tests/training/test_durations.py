"""Durations: every accepted form, exact rounding, and errors that say what is accepted."""

import pytest

from xmodal.config import ConfigError
from xmodal.training.durations import to_steps


@pytest.mark.parametrize(
    ("value", "steps"),
    [
        ("500steps", 500),
        ("1step", 1),
        ("500", 500),
        (500, 500),
        ("1e3 steps", 1000),
        ("", 0),
        (0, 0),
        ("0%", 0),
        ("3epochs", 30),  # 3 * 320 / 32
        ("1epoch", 10),
        ("0.5epochs", 5),
        ("0.501epochs", 6),  # 160.32 samples: the sixth step completes them
        ("1_000_000examples", 31250),
        ("33examples", 2),
        ("1example", 1),
        ("2%", 20),
        ("2.55%", 26),
        ("100%", 1000),
    ],
)
def test_to_steps(value, steps):
    assert to_steps(value, batch_size=32, epoch_size=320, total_steps=1000) == steps


def test_conversion_is_exact_where_floats_are_not():
    assert 0.07 * 100 > 7  # 7.000000000000001 would be rounded up to 8
    assert to_steps("0.07epochs", batch_size=1, epoch_size=100) == 7
    assert to_steps("7%", batch_size=1, epoch_size=None, total_steps=100) == 7


@pytest.mark.parametrize("value", ["abc", "5 minutes", "-3steps", -3, "1.2.3epochs", "%", 2.0, True, None, "_5"])
def test_garbage(value):
    with pytest.raises(ConfigError, match=r"schedule\.warmup: .* is not a duration; write \"500steps\""):
        to_steps(value, batch_size=32, epoch_size=320, total_steps=100, where="schedule.warmup")


def test_units_that_cannot_be_converted():
    with pytest.raises(ConfigError, match="'2%' needs the length of the run"):
        to_steps("2%", batch_size=32, epoch_size=320)
    with pytest.raises(ConfigError, match="'1epoch' needs the size of the data"):
        to_steps("1epoch", batch_size=32, epoch_size=None)
    with pytest.raises(ConfigError, match=r"'1\.5steps' is not a whole number"):
        to_steps("1.5steps", batch_size=32, epoch_size=320)
