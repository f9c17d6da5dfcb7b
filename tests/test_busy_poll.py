"""When the answer to a lone task is looked for."""

from __future__ import annotations

import pytest

from mosec_asgi.batching.busy_poll import MOST_DOUBLINGS, POLL_SECONDS, QUICK_SECONDS, BusyPoll

QUICK = QUICK_SECONDS / 2


def looks(poll: BusyPoll, tasks: int, *, found: bool) -> int:
    """Let so many lone tasks come; return how many of their answers are looked for, and are found or not."""
    count = 0
    for _ in range(tasks):
        if poll.seconds(QUICK):
            count += 1
            poll.looked(found=found)
    return count


def test_the_answer_of_a_quick_worker_is_looked_for_each_time() -> None:
    poll = BusyPoll()
    assert poll.seconds(QUICK) == POLL_SECONDS
    assert looks(poll, 100, found=True) == 100


@pytest.mark.parametrize("pace", [None, 1.01 * QUICK_SECONDS])
def test_workers_that_are_slow_or_not_known_are_not_waited_for(pace: float | None) -> None:
    poll = BusyPoll()
    assert not any(poll.seconds(pace) for _ in range(10))
    assert poll.seconds(QUICK), "nothing was looked for in vain"


def test_looking_in_vain_is_done_more_and_more_rarely() -> None:
    poll = BusyPoll()
    gaps = []
    for _ in range(5):
        gap = 0
        while not poll.seconds(QUICK):
            gap += 1
        gaps.append(gap)
        poll.looked(found=False)
    assert gaps == [0, 1, 3, 7, 15]


def test_it_is_never_given_up_and_what_is_found_again_is_looked_for_each_time() -> None:
    poll = BusyPoll()
    assert looks(poll, 100_000, found=False) < 40
    assert looks(poll, 1 << MOST_DOUBLINGS, found=True) > 0
    assert looks(poll, 10, found=True) == 10
