"""A moving average."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosec_asgi.batching.average import MovingAverage

VALUES = st.floats(0.0, 1e6)


def test_nothing_is_known_before_the_first_measurement() -> None:
    assert MovingAverage(0.5).value is None


def test_the_first_measurement_is_the_average() -> None:
    average = MovingAverage(0.1)
    assert average.add(7.0) == 7.0 == average.value


def test_the_newest_measurement_has_its_weight() -> None:
    average = MovingAverage(0.25)
    average.add(4.0)
    assert average.add(8.0) == 5.0
    assert average.add(5.0) == 5.0


def test_a_measurement_of_nothing_is_a_measurement() -> None:
    average = MovingAverage(0.5)
    average.add(0.0)
    assert average.add(1.0) == 0.5


@given(st.floats(0.0, 1.0), st.lists(VALUES, min_size=1))
def test_the_average_lies_among_what_was_measured(weight: float, measured: list[float]) -> None:
    average = MovingAverage(weight)
    for value in measured:
        assert average.add(value) == average.value
    assert average.value is not None
    assert min(measured) - 1e-6 <= average.value <= max(measured) + 1e-6


@given(VALUES, VALUES)
def test_it_comes_to_what_is_measured_from_then_on(before: float, after: float) -> None:
    average = MovingAverage(0.2)
    average.add(before)
    for _ in range(200):
        average.add(after)
    assert average.value == pytest.approx(after, abs=1e-6)
