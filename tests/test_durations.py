"""Lengths of time, as the command line and Ollama's clients write them."""

from __future__ import annotations

import math

import pytest

from edge_embed.durations import seconds_of
from edge_embed.errors import InvalidOptionError


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("300", 300.0), ("5m", 300.0), ("1h30m", 5400.0), ("1.5h", 5400.0), (" 2D ", 172_800.0), ("250ms", 0.25),
        ("+5s", 5.0), ("0", 0.0), ("0s", 0.0), (300, 300.0), (0.5, 0.5), (0, 0.0),
    ],
)  # fmt: skip
def test_a_length_of_time_becomes_seconds(written: str | float, seconds: float) -> None:
    assert seconds_of(written) == pytest.approx(seconds)


@pytest.mark.parametrize(("unit", "seconds"), [("ns", 1e-9), ("us", 1e-6), ("µs", 1e-6), ("μs", 1e-6)])
def test_the_short_units_of_go_are_known(unit: str, seconds: float) -> None:
    assert seconds_of(f"7{unit}") == pytest.approx(7 * seconds)


@pytest.mark.parametrize("written", ["-1", "-1m", "-0.5s", -1, -0.1, math.inf, 10**400])
def test_below_zero_and_beyond_all_numbers_is_for_ever(written: str | float) -> None:
    assert seconds_of(written) == math.inf


@pytest.mark.parametrize(
    "written",
    ["", " ", "-", "m", "5x", "5 m", "1h30", "1h-30m", "--1", "nan", "inf", "1e3", "٣", "9" * 200, "1m" * 99, math.nan],
)
def test_what_is_no_length_of_time_is_refused_in_a_short_message(written: str | float) -> None:
    with pytest.raises(InvalidOptionError, match="is not a time") as caught:
        seconds_of(written)
    assert len(caught.value.message) < 100
