"""When the answer to a lone task is looked for."""

from __future__ import annotations

import pytest

from mosec_asgi.batching.busy_poll import FINDS, MOST_DOUBLINGS, POLL_SECONDS, QUICK_SECONDS, BusyPoll

QUICK = QUICK_SECONDS / 2


def looks(poll: BusyPoll, tasks: int, *, found: bool) -> int:
    """Let so many lone tasks come; return how many of their answers are looked for, and are found or not."""
    return sum(look(poll, found=found) for _ in range(tasks))


def look(poll: BusyPoll, *, found: bool) -> bool:
    """Let one lone task come; return whether its answer is looked for."""
    if not poll.seconds(QUICK):
        return False
    poll.looked(found=found)
    return True


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
    looks(poll, 10_000, found=False)
    in_vain = looks(poll, 10_000, found=False)
    assert in_vain == 10_000 // (1 << MOST_DOUBLINGS)
    looks(poll, FINDS << (MOST_DOUBLINGS + 1), found=True)
    assert looks(poll, 10, found=True) == 10


def test_where_one_look_in_five_is_in_vain_polling_all_but_stops() -> None:
    poll = BusyPoll()
    looked = [look(poll, found=number % 5 != 0) for number in range(10_000)]
    assert sum(looked[-5000:]) < 0.02 * 5000


def test_where_one_look_in_a_hundred_is_in_vain_polling_goes_on() -> None:
    poll = BusyPoll()
    looked = [look(poll, found=number % 100 != 0) for number in range(10_000)]
    assert sum(looked) > 0.8 * 10_000
