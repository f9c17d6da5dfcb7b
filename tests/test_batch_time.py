from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mosec_asgi.batching.batch_time import GROWTH, KEPT, MOST_CLASSES, MOST_FACTOR, BatchTime

FIXED = st.floats(0.0, 0.1)
PER_UNIT = st.floats(1e-6, 0.01)
AMOUNTS = st.lists(st.integers(1, 500), min_size=1, max_size=20)


def learned(*batches: tuple[int, float]) -> BatchTime:
    times = BatchTime()
    for amount, seconds in batches:
        times.add(amount, seconds)
    return times


def line(fixed: float, per_unit: float, amounts: list[int]) -> list[tuple[int, float]]:
    return [(amount, fixed + per_unit * amount) for amount in amounts]


@given(FIXED, PER_UNIT, AMOUNTS)
def test_a_line_without_scatter_is_found_as_soon_as_two_sizes_are_known(
    fixed: float, per_unit: float, amounts: list[int]
) -> None:
    times = learned(*line(fixed, per_unit, amounts))
    if len({amount.bit_length() for amount in amounts}) > 1:
        assert times.fixed == pytest.approx(fixed, rel=1e-3, abs=1e-3 * per_unit)
        assert times.per_unit == pytest.approx(per_unit, rel=1e-3)
        assert times.factor == pytest.approx(1.0, abs=1e-6)


@given(FIXED, PER_UNIT, st.integers(1, 500), st.integers(1, 30), st.floats(1.0, 4.0))
def test_batches_of_one_size_never_promise_too_much_of_larger_ones(
    fixed: float, per_unit: float, amount: int, count: int, larger: float
) -> None:
    times = learned(*line(fixed, per_unit, [amount] * count))
    assert times.of(amount) == pytest.approx(fixed + per_unit * amount)
    assert times.of(amount * larger) >= (fixed + per_unit * amount * larger) * (1 - 1e-9)


@given(st.lists(st.tuples(st.integers(1, 10**18), st.floats(0.0, 1e6)), min_size=1, max_size=40))
def test_whatever_is_measured_no_part_is_below_zero_and_memory_is_bounded(batches: list[tuple[int, float]]) -> None:
    times = BatchTime()
    for amount, seconds in batches:
        times.add(amount, seconds)
        assert 0.0 <= times.fixed < math.inf
        assert 0.0 <= times.per_unit < math.inf
        assert 1.0 <= times.factor <= MOST_FACTOR
        assert times.of(amount) <= times.of(2 * amount)
        assert times.within(-1.0) == 0.0
    kept = times._classes
    assert len(kept) <= MOST_CLASSES + 1
    assert all(len(each) <= KEPT for each in kept.values())


@given(FIXED, PER_UNIT, st.floats(0.001, 0.5))
def test_what_fits_into_a_time_takes_that_time(fixed: float, per_unit: float, seconds: float) -> None:
    times = learned(*line(fixed, per_unit, [1, 4, 40, 300]))
    amount = times.within(seconds)
    assert amount == 0.0 or times.of(amount) == pytest.approx(seconds)
    assert times.of(amount + 1) > seconds


@settings(max_examples=50)
@given(FIXED, PER_UNIT, st.lists(st.integers(1, 200), min_size=2, max_size=8), st.data())
def test_one_pause_changes_nothing_once_its_size_is_known(
    fixed: float, per_unit: float, amounts: list[int], data: st.DataObject
) -> None:
    batches = line(fixed, per_unit, amounts * 4)
    place = data.draw(st.integers(0, len(batches) - 1))
    without = learned(*batches)
    amount, seconds = batches[place]
    batches[place] = amount, seconds + 3.0
    paused = learned(*batches)
    for size in (1, 100, 400):
        assert paused.of(size) == pytest.approx(without.of(size), rel=0.01)


def test_a_first_batch_that_is_slow_is_not_believed_once_larger_ones_are_quicker() -> None:
    times = learned((1, 0.8))
    assert times.of(1) == pytest.approx(0.8)
    for amount in (2, 4, 8):
        times.add(amount, 0.005 + 0.001 * amount)
    assert times.of(8) == pytest.approx(0.013, rel=0.15)
    assert times.of(1) < 0.01


def test_a_slow_batch_of_a_new_size_is_not_believed_beyond_what_smaller_ones_allow() -> None:
    times = learned(*line(0.005, 0.001, [1, 2, 3, 4, 5, 6, 7] * 3), (16, 2.0))
    assert times.of(16) <= 1.3 * 16 * 0.006


def test_many_large_batches_do_not_make_it_forget_what_small_ones_take() -> None:
    times = learned(*line(0.005, 0.001, [1, 2, 4]), *line(0.005, 0.001, [40] * 5000))
    assert (times.fixed, times.per_unit) == (pytest.approx(0.005), pytest.approx(0.001))


@pytest.mark.parametrize("factor", [0.4, 3.0])
def test_a_stage_that_becomes_slower_or_faster_is_known_after_three_batches(factor: float) -> None:
    times = learned(*line(0.005, 0.001, [1, 2, 4, 8, 16, 30] * 8))
    for _ in range(3):
        times.add(30, 0.035 * factor)
    assert times.of(30) == pytest.approx(0.035 * factor, rel=0.05)
    # The sizes that were not measured since have changed as much.
    assert times.of(2) == pytest.approx(0.007 * factor, rel=0.1)


def test_where_times_scatter_nine_in_ten_batches_take_no_longer_than_predicted() -> None:
    chance = random.Random(7)
    times = BatchTime()
    late = count = 0
    for number in range(4000):
        amount = chance.randint(1, 60)
        seconds = (0.005 + 0.001 * amount) * chance.lognormvariate(0.0, 0.2)
        if number > 200:
            count += 1
            late += seconds > times.of(amount)
        times.add(amount, seconds)
    assert 0.04 < late / count < 0.15


def test_sizes_grow_step_by_step_where_nothing_is_known_of_larger_ones() -> None:
    times = BatchTime()
    assert not times.known
    assert times.growth == 1.0
    times.add(1, 0.01)
    assert times.known
    assert times.growth == GROWTH
    times.add(2, 0.01)
    times.add(1, 0.01)
    assert times.growth == 2 * GROWTH


def test_a_stage_that_takes_no_time_has_no_bound() -> None:
    times = learned((1, 0.0), (8, 0.0))
    assert times.within(1.0) == math.inf
    assert times.of(1000) == 0.0
    assert "BatchTime" in repr(times)


@pytest.mark.parametrize("seed", range(5))
def test_uneven_times_for_long_do_not_carry_the_line_away(seed: int) -> None:
    # Each change scaled the times of all other classes, again and again, without a bound: to 10^18 times the truth.
    chance, times, slow = random.Random(seed), BatchTime(), 1.0
    for number in range(3000):
        if number % 60 == 0:
            slow = chance.choice((1.0, 1.0, 1.0, 3.0, 8.0))
        amount = min(128, int(chance.paretovariate(0.7)))
        times.add(amount, (0.005 + 0.001 * amount) * slow * chance.lognormvariate(0.0, 0.7))
        for size in (1, 32):
            assert times.fixed + times.per_unit * size < 8 * 25 * (0.005 + 0.001 * size)


def test_a_bad_time_of_large_batches_is_forgotten_though_only_small_ones_are_run() -> None:
    times = learned(*[(64, 4.0), (32, 3.0), (1, 1.0)] * 8)
    for _ in range(40):
        times.add(1, 0.006)
    # No larger than so many times the small one, by which the next size is allowed and measured.
    assert times.of(2) <= 0.013
    assert times.of(64) <= 64 * 0.006 + 1e-9


def test_what_is_measured_of_large_batches_counts_however_much_they_take() -> None:
    times = learned(*[(1, 0.006), (32, 1.0)] * 40)
    assert times.of(32) == pytest.approx(1.0, rel=0.1)
