"""A line through measurements, outliers and all."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosec_asgi.tuning.fit import Point, fitted

SIZES = (1, 2, 4, 8, 16, 32, 64)
fixed_parts = st.floats(0.0001, 0.5)
slopes = st.floats(0.00001, 0.05)


@given(fixed=fixed_parts, slope=slopes, seed=st.integers(0, 1000))
def test_a_line_is_found_though_a_fifth_of_the_measurements_are_outliers(fixed: float, slope: float, seed: int) -> None:
    rng = random.Random(seed)
    points = [Point(size, (fixed + slope * size) * rng.uniform(0.99, 1.01)) for size in SIZES for _ in range(5)]
    for place, size in enumerate(SIZES):
        # One of the five at each size: a page fault, a collection of garbage, another program.
        points[5 * place] = Point(size, points[5 * place].seconds * rng.uniform(1.5, 10.0))
    line = fitted(points)
    for size in SIZES:
        assert line.at(size) == pytest.approx(fixed + slope * size, rel=0.03)


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e3)), min_size=1, max_size=30))
def test_no_measurements_give_a_negative_time(measured: list[tuple[float, float]]) -> None:
    line = fitted([Point(*each) for each in measured])
    assert line.fixed >= 0.0
    assert line.slope >= 0.0
    assert line.at(1e6) < float("inf")


def test_one_size_alone_is_a_fixed_time() -> None:
    assert fitted([Point(1, 0.002), Point(1, 0.004), Point(1, 0.003)]).at(50) == 0.003


def test_times_that_do_not_grow_have_no_slope() -> None:
    line = fitted([Point(size, 0.01 - 0.00001 * size) for size in SIZES])
    assert (line.slope, line.fixed) == (0.0, pytest.approx(0.01, rel=0.05))


def test_what_is_no_line_is_said_to_be_a_poor_one() -> None:
    steps = fitted([Point(size, 0.01 if size < 32 else 0.05) for size in SIZES for _ in range(3)])
    assert steps.is_poor
    assert not fitted([Point(size, 0.01 + 0.001 * size) for size in SIZES]).is_poor


def test_nothing_cannot_be_fitted() -> None:
    with pytest.raises(ValueError, match="no measurement"):
        fitted([])


def test_times_that_scatter_are_said_to() -> None:
    rng = random.Random(1)
    points = [Point(size, 0.001 * 100 ** rng.random()) for size in SIZES for _ in range(5)]
    assert fitted(points).scatters
    assert not fitted([Point(size, (0.01 + 0.001 * size) * rng.uniform(0.9, 1.1)) for size in SIZES]).scatters
