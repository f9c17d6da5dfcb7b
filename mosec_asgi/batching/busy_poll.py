"""Whether to look for a worker's answer rather than to sleep until it comes. Pure: time comes in as `now`.

When a server sends a worker a task and sleeps, the answer has to wake it: an idle processor is left and entered again,
with caches that are cold. Where the worker takes some microseconds, that is most of what the request waits for. Looking
again and again instead (*busy polling*, as network stacks and spin locks do) spares it, and costs the time of the event
loop, in which nothing else is served. So it is done only where nothing else is likely to come meanwhile:

- The task is alone at its stage, as were the `STREAK` before it, and between them nothing happened for `QUIET_SECONDS`.
  Clients that ask together, or a saturated loop, leave no such gaps: there, many tasks at a time are the quicker way.
- The worker's measured time for a task is at most `QUICK_SECONDS`.
- It pays. Each look in vain, up to `POLL_SECONDS` long, doubles the number of lone tasks until the next one, so that it
  is hardly done on a machine whose processors are all at work.
"""

from __future__ import annotations

QUIET_SECONDS = 50e-6
QUICK_SECONDS = 100e-6
POLL_SECONDS = 200e-6
STREAK = 3
# The longest pause after looks in vain, as a power of two of tasks.
MOST_DOUBLINGS = 12


class BusyPoll:
    """What a stage knows of its lone tasks."""

    __slots__ = ("_last", "_skip", "_streak", "_vain")

    def __init__(self) -> None:
        self._last = 0.0
        self._streak = 0
        # Looks in vain since the last one that was not, and lone tasks until the next.
        self._vain = 0
        self._skip = 0

    def busy(self, now: float) -> None:
        """Note that answers came, or that tasks came together."""
        self._last = now

    def alone(self, now: float, seconds_per_item: float | None) -> float:
        """Note a task that came alone; return for how many seconds to look for its answer, 0 for not at all.

        Args:
            now: the time.
            seconds_per_item: its worker's, where that is known.
        """
        quiet = now - self._last > QUIET_SECONDS
        self._last = now
        if not quiet:
            self._streak = 0
            return 0.0
        self._streak += 1
        if self._streak <= STREAK or seconds_per_item is None or seconds_per_item > QUICK_SECONDS:
            return 0.0
        if self._skip:
            self._skip -= 1
            return 0.0
        return POLL_SECONDS

    def looked(self, *, found: bool) -> None:
        """Note what a look has come to."""
        self._vain = 0 if found else min(self._vain + 1, MOST_DOUBLINGS)
        self._skip = (1 << self._vain) - 1
