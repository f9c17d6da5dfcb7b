"""How much of a task's time may go into waiting for others."""

from __future__ import annotations

import math

import pytest

from mosec_asgi.batching.leeway import Leeway


def leeway(seconds: float, *, known: bool) -> Leeway:
    made = Leeway()
    made.learn(seconds, known=known)
    return made


@pytest.mark.parametrize(
    ("seconds", "known", "most"),
    [(0.0, False, 0.5), (0.8, False, 0.2), (0.3, True, 0.7), (0.0, True, 0.9), (1.2, True, 0.0)],
)
def test_what_a_task_needs_is_left_and_a_share_of_its_time_in_any_case(
    seconds: float, known: bool, most: float
) -> None:
    assert leeway(seconds, known=known).most(1.0) == pytest.approx(most)


def test_a_task_without_a_deadline_may_wait_for_ever_and_one_whose_time_is_over_not_at_all() -> None:
    for known in (False, True):
        assert leeway(2.0, known=known).most(math.inf) == math.inf
        assert leeway(0.0, known=known).most(-1.0) == 0.0
