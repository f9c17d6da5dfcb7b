"""What a light tenant could have at best, whatever the order: it always comes first, and nothing is interrupted.

A call that comes while all slots are at work waits until one of them is done, whoever it belongs to. So with absolute
priority for the light tenant, and batches of whatever size, its calls take as little as they can under any scheduler
that does not interrupt what runs and does not hold workers back for calls that may come. Batches that are kept small,
or hold no others beside its calls, are over sooner and do less: of these only those count that do as much in all, and
that do not make the others wait for it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heapreplace
from typing import NamedTuple

# Of the calls that another scheduler has answered, how much is as many; and how much longer others may take.
AS_MUCH, NOT_WORSE = 0.98, 1.1


class Offered(NamedTuple):
    """A call that comes.

    Attributes:
        at: when, in seconds.
        light: it is of the light tenant.
    """

    at: float
    light: bool


@dataclass(frozen=True, slots=True)
class Played:
    """What became of calls.

    Attributes:
        latencies: of the light tenant's calls, in order of arrival.
        others: of the other calls.
        done: calls that were answered until the last one came.
        size: the bound of batches.
        mixed: batches that begin with calls of the light tenant were filled with others.
    """

    latencies: Sequence[float]
    others: Sequence[float]
    done: int
    size: int
    mixed: bool


def play(
    calls: Sequence[Offered], slots: int, size: int, seconds: Callable[[Offered, int], float], *, mixed: bool = True
) -> Played:
    """Serve calls, those of the light tenant before all others.

    Args:
        calls: in order of time.
        slots: batches that run at a time.
        size: the most calls in a batch.
        seconds: tells from the first call of a batch and its size what it takes.
        mixed: fill batches that begin with calls of the light tenant.
    """
    free = [0.0] * slots
    light, heavy = deque[Offered](), deque[Offered]()
    latencies: dict[float, float] = {}
    place = done = 0
    now, last = 0.0, calls[-1].at
    while True:
        now = max(now, free[0])
        if not light and not heavy:
            if place == len(calls):
                break
            now = max(now, calls[place].at)
        while place < len(calls) and calls[place].at <= now:
            (light if calls[place].light else heavy).append(calls[place])
            place += 1
        batch = [light.popleft() for _ in range(min(size, len(light)))]
        if mixed or not batch:
            batch += [heavy.popleft() for _ in range(min(size - len(batch), len(heavy)))]
        end = now + seconds(batch[0], len(batch))
        heapreplace(free, end)
        latencies.update({call.at: end - call.at for call in batch})
        done += len(batch) * (end <= last)
    ours, others = ([latencies[call.at] for call in calls if call.light is light] for light in (True, False))
    return Played(ours, others, done, size, mixed)


def best(
    calls: Sequence[Offered],
    slots: int,
    size: int,
    seconds: Callable[[Offered, int], float],
    least: float,
    figure: Callable[[Sequence[float]], float],
) -> Played:
    """Return the way that is best for the light tenant, of those that do as much.

    Args:
        calls: in order of time.
        slots: batches that run at a time.
        size: the most calls in a batch.
        seconds: see `play`.
        least: calls that are to be answered until the last one comes, and nearly so many are enough.
        figure: of the light tenant's latencies: the less the better.
    """
    found = play(calls, slots, size, seconds)
    value, bound_of_others = figure(found.latencies), NOT_WORSE * figure(found.others)
    for most in sorted({math.ceil(size * part / 8) for part in range(1, 9)}):
        for mixed in (True, False) if size > 1 else ():
            played = play(calls, slots, most, seconds, mixed=mixed)
            fair = played.done >= AS_MUCH * least and figure(played.others) <= bound_of_others
            if fair and figure(played.latencies) < value:
                found, value = played, figure(played.latencies)
    return found
