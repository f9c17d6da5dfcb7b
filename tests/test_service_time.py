"""How long a stage takes: means, high quantiles, batches, changes, and the one slow unit that says nothing."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from random import Random

import pytest

from mosec_asgi.batching.service_time import ServiceTimes


class InOrder(ServiceTimes):
    """Units that are begun one after the other."""

    numbers = itertools.count()

    def add(self, items: int, seconds: float, began: float | None = None) -> None:
        super().add(items, seconds, float(next(self.numbers)) if began is None else began)


def measured(seconds: Iterable[float]) -> InOrder:
    times = InOrder()
    for one in seconds:
        times.add(1, one)
    assert times.read()
    return times


def heavy_tailed(count: int, factor: float = 1.0, seed: int = 1) -> list[float]:
    random = Random(seed)
    return [factor * (0.02 if random.random() < 0.9 else 0.32) for _ in range(count)]


def test_nothing_is_known_of_two_units() -> None:
    times = InOrder()
    times.add(1, 0.1)
    times.add(1, 0.1)
    assert not times.read()
    assert times.mean == 0.0
    times.add(1, 0.1)
    assert times.read()


def test_constant_times_are_what_they_are() -> None:
    times = measured([0.05] * 20)
    assert (times.mean, times.usual, times.high) == pytest.approx((0.05, 0.05, 0.05))
    assert times.scatter == pytest.approx(0.0)


def test_what_is_added_counts_once_it_is_read() -> None:
    times = measured([0.05] * 3)
    times.add(1, 0.05)
    for _ in range(9):
        times.add(1, 0.25)
    assert times.mean == pytest.approx(0.05)
    times.read()
    assert times.mean == pytest.approx(0.25)


def test_of_heavy_tailed_times_the_usual_one_is_short_and_the_high_one_long() -> None:
    times = measured(heavy_tailed(128))
    assert times.usual == 0.02
    assert times.high == 0.32
    assert 0.03 < times.mean < 0.07
    assert times.scatter > 1.5


@pytest.mark.parametrize("place", [0, 5, 19])
def test_one_slow_unit_says_nothing_of_the_next(place: int) -> None:
    times = measured([0.05] * place + [2.0] + [0.05] * (19 - place))
    assert (times.mean, times.high) == pytest.approx((0.05, 0.05))


def test_a_slow_unit_among_the_first_says_nothing_either() -> None:
    assert measured([2.0, 0.05, 0.05]).mean == pytest.approx(0.05)


@pytest.mark.parametrize("factor", [4.0, 0.25])
def test_a_change_is_believed_after_four_units(factor: float) -> None:
    times = measured([0.05] * 100 + [0.05 * factor] * 4)
    assert (times.mean, times.high) == pytest.approx((0.05 * factor, 0.05 * factor))


@pytest.mark.parametrize("later", [5, 20, 60])
def test_a_change_is_found_however_much_has_come_since(later: int) -> None:
    times = measured([0.05] * 60 + [0.2] * later)
    assert times.mean == pytest.approx(0.2)


def test_a_change_of_times_that_scatter_is_believed_after_sixteen() -> None:
    times = measured(heavy_tailed(100) + heavy_tailed(16, factor=8.0, seed=2))
    assert times.mean > 0.2


def test_times_that_scatter_are_no_change() -> None:
    for seed in range(20):
        times = InOrder()
        for one in heavy_tailed(400, seed=seed):
            times.add(1, one)
            times.read()
        assert 0.02 < times.mean < 0.12, seed


def test_the_time_of_a_batch_is_a_line_over_its_size() -> None:
    times = InOrder(8)
    for items in (1, 3, 8, 2, 5, 8):
        times.add(items, 0.02 + 0.005 * items)
    times.read()
    assert times.mean == pytest.approx(0.06)
    assert times.of(1, times.mean) == pytest.approx(0.025)
    assert times.high == pytest.approx(0.06), "small batches take no less than their part"


def test_batches_of_one_size_keep_the_shape_that_was_learned() -> None:
    times = InOrder(8)
    for items in (1, 3, 8, 2, 5, 8):
        times.add(items, 0.02 + 0.005 * items)
    times.read()
    for _ in range(200):
        times.add(8, 0.06)
    times.read()
    assert times.of(1, times.mean) == pytest.approx(0.025)


def test_units_that_take_no_time_are_not_infinitely_fast() -> None:
    assert measured([0.0] * 5).mean > 0.0


def test_what_a_unit_still_takes_follows_from_how_long_it_has_taken() -> None:
    times = InOrder()
    for seconds in (0.02, 0.32) * 5 + (0.02,) * 10:
        times.add(1, seconds)
    times.read()
    assert times.left(0.0) == pytest.approx(times.mean)
    assert times.left(0.1) == pytest.approx(0.22), "it is one of the long ones"
    assert times.left(0.5) == pytest.approx(0.5), "it is an exception: as long again"


def test_the_more_is_measured_the_less_it_is_in_doubt() -> None:
    times = InOrder()
    doubts = []
    for _ in range(2):
        for seconds in (0.02, 0.08) * 8:
            times.add(1, seconds)
        times.read()
        doubts.append(times.doubt)
    assert 0.0 < doubts[1] < doubts[0]


def test_chance_in_times_with_a_long_tail_is_hardly_ever_a_change() -> None:
    random, times = Random(1), InOrder()
    changes = before = 0
    for _ in range(7_000):
        for _ in range(3):
            times.add(1, 0.02 if random.random() < 0.9 else 0.32)
        times.read()
        changes += len(times._samples) < before
        before = len(times._samples)
    assert changes == 0


def test_of_times_with_a_long_tail_the_mean_does_not_follow_the_chance_of_the_latest() -> None:
    times = InOrder()
    means = []
    for seconds in heavy_tailed(20_000, seed=2):
        times.add(1, seconds)
        times.read()
        means.append(times.mean)
    assert min(means[1000:]) > 0.04
    assert max(means[1000:]) < 0.06
    assert times.doubt < 0.08


def test_times_that_grow_slowly_are_followed() -> None:
    times = InOrder()
    for number in range(1000):
        seconds = 0.05 + 0.00005 * number
        times.add(1, seconds)
        if times.read():
            assert 0.9 * seconds <= times.mean <= seconds


def test_a_tail_that_becomes_heavier_is_believed_once_chance_does_not_explain_it() -> None:
    random, times = Random(2), InOrder()
    for number in range(1200):
        times.add(1, 0.02 if random.random() < (0.9 if number < 1000 else 0.6) else 0.32)
        times.read()
    assert times.mean > 0.11


def test_of_units_that_are_begun_together_the_quick_ones_are_done_first_and_are_no_change() -> None:
    times = InOrder()
    for began in range(4):
        for seconds in [0.02] * 10 + [1.0] * 10:
            times.add(1, seconds, float(began))
        assert times.read()
        assert times.least == 0.02
        assert times.high == 1.0


def test_a_change_among_units_that_are_begun_in_groups_is_noticed() -> None:
    times = InOrder()
    for began in range(8):
        for _ in range(10):
            times.add(1, 0.02 if began < 6 else 0.2, float(began))
    assert times.read()
    assert times.least == 0.2


def test_tasks_that_were_answered_together_count_as_many_as_they_are() -> None:
    # A busy server comes to one answer after 50 ms, and has then 99 more before it: a thousand a second and more.
    times = InOrder()
    for _ in range(20):
        times.add(1, 0.05)
        times.add(99, 0.0001)
    times.read()
    assert times.mean == pytest.approx((0.05 + 99 * 0.0001) / 100)


def test_another_size_of_a_full_unit_changes_what_is_said_of_it_and_nothing_of_others() -> None:
    times = ServiceTimes(100)
    for number in range(40):
        items = 10 + 2 * (number % 10)
        times.add(items, 0.005 + 0.001 * items, float(number))
    assert times.read()
    assert times.mean == pytest.approx(0.105, rel=0.01)
    of_ten = times.of(10, times.mean)
    times.resize(20)
    assert times.mean == pytest.approx(0.025, rel=0.01)
    assert times.of(10, times.mean) == pytest.approx(of_ten)
    times.add(10, 0.015, 50.0)
    assert times.read()
    assert times.mean == pytest.approx(0.025, rel=0.01)
