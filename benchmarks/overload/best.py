"""The most that could be had by a door that does not know how long a task will take: a yardstick where times scatter.

Two stages in a row, the second slower, with one worker each. The policies that are tried here know more than a service
can: the true mean, and when the running task will be done. Of what waits they know the number only. They admit a call
while the work ahead of it is below a bound, and the second stage drops a task that has too little time left.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import product

from overload.world import Arrival

# Seconds of work ahead up to which a call is admitted.
BOUNDS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def best(
    calls: Sequence[Arrival], first: float, times: Sequence[float], leasts: Sequence[float], limit: float
) -> float:
    """Return how many calls a second are answered in time by that policy which turns out best.

    Args:
        calls: in order of time.
        first: seconds that the first stage takes.
        times: seconds that the second takes for each call.
        leasts: seconds that a task must have left when the second stage turns to it; one of these.
        limit: the timeout.
    """
    return max(_answered(calls, first, times, bound, least, limit) for bound, least in product(BOUNDS, leasts))


def _answered(
    calls: Sequence[Arrival], first: float, times: Sequence[float], bound: float, least: float, limit: float
) -> float:
    mean = sum(times) / len(times)
    first_free = second_free = running_until = 0.0
    # Of those that the second stage has not turned to: when it will, and until when it is at work on them.
    waiting: deque[tuple[float, float]] = deque()
    answered = 0
    for call, seconds in zip(calls, times, strict=True):
        while waiting and waiting[0][0] <= call.at:
            running_until = waiting.popleft()[1]
        if len(waiting) * mean + max(0.0, running_until - call.at) > bound:
            continue
        first_free = max(call.at, first_free) + first
        turn = max(first_free, second_free)
        if call.at + limit - turn >= least:
            second_free = turn + seconds
            answered += second_free <= call.at + limit
        waiting.append((turn, second_free))
    return answered / calls[-1].at
