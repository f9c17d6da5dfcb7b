"""How many tasks are brought to a stage in a second."""

from __future__ import annotations

import pytest

from mosec_asgi.batching.offered import LONGEST_SPAN, Offered


def brought(offered: Offered, per_span: list[int], start: float = 0.0) -> None:
    offered.roll(start)
    for place, count in enumerate(per_span, 1):
        offered.count += count
        offered.roll(start + place * offered.span)


def test_it_is_the_latest_two_timeouts_that_count() -> None:
    offered = Offered(1.0)
    brought(offered, [100, 10, 10, 20, 20])
    assert offered.per_second == pytest.approx(30.0)
    assert offered.least == pytest.approx(20.0)


def test_a_span_that_has_not_ended_does_not_count() -> None:
    offered = Offered(1.0)
    brought(offered, [10, 10, 10, 10])
    offered.count += 1000
    offered.roll(4 * offered.span + 0.4)
    assert offered.per_second == pytest.approx(20.0)


def test_at_first_nothing_was_brought() -> None:
    offered = Offered(1.0)
    offered.count += 50
    offered.roll(10.0)
    assert (offered.per_second, offered.count) == (0.0, 0)


def test_what_is_taken_back_before_it_was_counted_is_made_up_for_later() -> None:
    offered = Offered(1.0)
    brought(offered, [10, 10, 10, -4, 14])
    assert offered.per_second == pytest.approx(20.0 * (10 + 10 + 0 + 10) / 40)
    assert offered.doubt > 0


def test_a_burst_leaves_spans_in_which_little_comes() -> None:
    offered = Offered(1.0)
    brought(offered, [18, 0, 18, 0])
    assert offered.least == 0.0


def test_where_nobody_asked_for_long_the_time_between_counts() -> None:
    offered = Offered(1.0)
    offered.roll(0.0)
    offered.count += 100
    offered.roll(100.0)
    assert (offered.per_second, offered.least) == pytest.approx((1.0, 1.0))


def test_long_timeouts_are_not_waited_for() -> None:
    assert Offered(600.0).span == LONGEST_SPAN
    assert Offered(0.001).span > 0.01


def test_what_is_sustained_counts_over_twice_as_many_spans() -> None:
    offered = Offered(1.0)
    brought(offered, [10] * 8 + [30] * 4)
    assert offered.per_second == pytest.approx(60.0)
    assert offered.sustained == pytest.approx(40.0)


def test_the_more_calls_have_come_the_less_their_rate_is_in_doubt() -> None:
    few, many = Offered(1.0), Offered(1.0)
    assert few.doubt == 1.0
    brought(few, [25] * 8)
    brought(many, [2500] * 8)
    assert (few.doubt, many.doubt) == pytest.approx((1 / 200**0.5, 1 / 20_000**0.5))


def test_where_the_timeout_is_long_a_span_holds_what_is_no_chance_and_is_no_longer_than_half_of_it() -> None:
    offered = Offered(600.0)
    spans = []
    for able in (100.0, 0.05, 0.001):
        offered.suit(able)
        spans.append(offered.span)
    assert spans == [LONGEST_SPAN, 200.0, 300.0]
    hurried = Offered(1.0)
    hurried.suit(0.05)
    assert hurried.span == 0.5
