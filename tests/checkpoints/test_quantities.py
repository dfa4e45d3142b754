"""How numbers are written: one way for each, and no interval that reaches where nothing can lie."""

import math

import pytest

from mull.checkpoints.quantities import BITS, PERCENT, shares, with_interval


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [
        (0.979, 0.97, 0.988, "97.9 ±0.9"),
        (0.979, 0.969, 0.988, "97.9 ±1.0"),  # 0.9 and 1.0: equal but for the last digit, and the larger is said
        (1.0, 0.932, 1.0, "100.0 +0.0 -6.8"),  # not ±6.8: 106.8 % are not to be had
        (0.0, 0.0, 0.0074, "0.0 +0.7 -0.0"),
        (0.747, 0.71, 0.769, "74.7 +2.2 -3.7"),
        (0.5, None, None, "50.0"),
        (None, None, None, ""),
        (math.nan, math.nan, math.nan, "nan"),  # a width of 0 would say that it is known
        (0.5, math.nan, 0.6, "50.0"),
    ],
)
def test_intervals_in_percent(value: float | None, low: float | None, high: float | None, text: str) -> None:
    assert with_interval(value, low, high, PERCENT) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(-0.0531, "-0.053 ±0.004"), (0.0531, "+0.053 ±0.004"), (0.00004, "0.000 ±0.004"), (-0.0001, "0.000 ±0.004")],
)
def test_differences_have_a_sign_unless_they_are_nothing(value: float, text: str) -> None:
    assert with_interval(value, value - 0.004, value + 0.004, BITS, signed=True) == text
    assert with_interval(math.nan, math.nan, math.nan, BITS, signed=True) == "nan"


def test_shares_of_the_passes() -> None:
    assert shares((0.9, 0.9, 0.1)) == "90.0/90.0/10.0" and shares((0.7, 0.7), 0) == "70" and shares(None) == ""
