"""Histograms: where the figures along the axis stand."""

import re

import pytest

from data_pipelines.examine.distributions import Distribution
from xmodal.reporting.bars import histogram


def figures(values, **options) -> list[str]:
    distribution = Distribution()
    distribution.add(values)
    drawing = str(histogram("sizes", distribution, text=lambda v: f"{v:g}", **options))
    return re.findall(r'class="x"[^>]*>([^<]+)<', drawing)


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        ([20, 25, 30], {}, ["20", "25", "30"]),  # and not 22.5
        ([240, 480, 768], dict(log=True), ["400", "600"]),  # too narrow for 1, 2, 5
        ([1, 30, 4000], dict(log=True), ["1", "10", "100", "1000"]),
        ([0.75, 1.5], dict(log=True, whole=False), ["0.8", "1", "1.2", "1.4"]),
        ([24_000, 240_000], dict(log=True, whole=False, base=1024), ["51200", "102400", "204800"]),  # 50, 100, 200 KiB
    ],
)
def test_figures_are_round_and_enough(values, options, expected):
    assert figures(values, **options) == expected
