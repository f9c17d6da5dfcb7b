from __future__ import annotations

import random

import pytest

from mosec_asgi.observing.distribution import EMPTY, Distribution
from mosec_asgi.observing.metrics import LATENCY_BUCKETS, Histogram


def of(values: list[float], bounds: tuple[float, ...] = (1.0, 2.0, 4.0)) -> Distribution:
    histogram = Histogram(bounds)
    for value in values:
        histogram.observe(value)
    return Distribution(bounds, tuple(histogram.counts), histogram.total)


def test_a_quantile_lies_where_its_share_of_the_values_ends() -> None:
    values = of([0.5, 0.5, 1.5, 3.0])
    assert values.quantile(0.5) == 1.0
    assert values.quantile(0.75) == 2.0
    assert values.quantile(0.875) == 3.0
    assert values.quantile(1) == 4.0
    assert values.quantile(0) == 0.0
    assert (values.count, values.mean) == (4, 1.375)


def test_values_above_all_bounds_are_taken_for_the_last() -> None:
    assert of([9.0, 9.0]).quantile(0.5) == 4.0


def test_nothing_has_no_quantile_and_no_mean() -> None:
    assert EMPTY.quantile(0.5) is EMPTY.mean is of([]).quantile(0.99) is None


def test_a_quantile_of_request_times_is_less_than_a_fifth_off() -> None:
    chance = random.Random(1)
    times = sorted(chance.lognormvariate(-5, 1) for _ in range(5000))
    told = of(times, LATENCY_BUCKETS)
    for share in (0.5, 0.9, 0.99):
        assert told.quantile(share) == pytest.approx(times[int(share * len(times))], rel=0.2)


def test_the_difference_of_two_moments_is_what_came_between() -> None:
    earlier, later = of([0.5, 3.0]), of([0.5, 3.0, 1.5, 9.0])
    assert later.since(earlier) == of([1.5, 9.0])
    assert later.since(later).count == 0


@pytest.mark.parametrize("earlier", [of([0.5] * 9), of([0.5], bounds=(1.0,)), EMPTY])
def test_what_was_begun_anew_counts_from_its_beginning(earlier: Distribution) -> None:
    assert of([0.5, 3.0]).since(earlier) == of([0.5, 3.0])


def test_distributions_add_up() -> None:
    assert of([0.5]) + of([3.0]) == of([0.5, 3.0])
    assert EMPTY + of([0.5]) == of([0.5]) + EMPTY == of([0.5])
    with pytest.raises(ValueError, match="different bounds"):
        of([0.5]) + of([0.5], bounds=(1.0,))
