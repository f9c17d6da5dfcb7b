"""When the answer to a lone task is looked for."""

from __future__ import annotations

import pytest

from mosec_asgi.batching.busy_poll import (
    MOST_DOUBLINGS,
    POLL_SECONDS,
    QUICK_SECONDS,
    QUIET_SECONDS,
    STREAK,
    BusyPoll,
)

QUICK = QUICK_SECONDS / 2
GAP = 2 * QUIET_SECONDS


class Stage:
    """A stage to which lone tasks come, one every `GAP`, or sooner."""

    def __init__(self) -> None:
        self.now = 100.0
        self.poll = BusyPoll()

    def task(self, *, gap: float = GAP, pace: float | None = QUICK) -> bool:
        """Let a task come after a pause; whether its answer is looked for."""
        self.now += gap
        seconds = self.poll.alone(self.now, pace)
        assert seconds in (0.0, POLL_SECONDS)
        return seconds > 0

    def tasks(self, count: int, *, found: bool = True, gap: float = GAP) -> int:
        """Let so many come; how many answers are looked for, and are found or not."""
        looks = 0
        for _ in range(count):
            if self.task(gap=gap):
                looks += 1
                self.poll.looked(found=found)
        return looks


@pytest.fixture
def stage() -> Stage:
    return Stage()


def test_it_is_looked_for_after_a_row_of_lone_tasks(stage: Stage) -> None:
    assert [stage.task() for _ in range(STREAK + 2)] == [False] * STREAK + [True] * 2


def test_tasks_that_follow_each_other_closely_end_the_row(stage: Stage) -> None:
    stage.tasks(STREAK)
    assert not stage.task(gap=QUIET_SECONDS / 2)
    assert stage.tasks(STREAK) == 0
    assert stage.task()


def test_answers_just_before_end_the_row(stage: Stage) -> None:
    stage.tasks(STREAK)
    stage.now += GAP
    stage.poll.busy(stage.now)
    assert not stage.task(gap=QUIET_SECONDS / 2)
    assert stage.tasks(STREAK) == 0
    assert stage.task()


def test_answers_long_before_do_not(stage: Stage) -> None:
    for _ in range(STREAK):
        stage.task()
        stage.poll.busy(stage.now + QUIET_SECONDS / 10)
    assert stage.task()


@pytest.mark.parametrize("pace", [None, 2 * QUICK_SECONDS])
def test_workers_that_are_slow_or_not_known_are_not_waited_for(stage: Stage, pace: float | None) -> None:
    stage.tasks(STREAK)
    assert not any(stage.task(pace=pace) for _ in range(10))
    assert stage.task(), "nothing was looked for in vain"


def test_looking_in_vain_is_done_more_and_more_rarely(stage: Stage) -> None:
    stage.tasks(STREAK)
    gaps = []
    for _ in range(5):
        gap = 0
        while not stage.task():
            gap += 1
        gaps.append(gap)
        stage.poll.looked(found=False)
    assert gaps == [0, 1, 3, 7, 15]


def test_it_is_never_given_up_and_found_again_is_found_each_time(stage: Stage) -> None:
    stage.tasks(STREAK)
    stage.tasks(100_000, found=False)
    assert stage.tasks(1 << MOST_DOUBLINGS, found=True) > 0
    assert stage.tasks(10) == 10
