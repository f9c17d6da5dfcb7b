"""Whether to look for a worker's answer rather than to sleep until it comes. Pure.

When a server sends a worker a task and sleeps, the answer has to wake it: an idle processor is left and entered again,
with caches that are cold. Where the worker takes some microseconds, that is most of what the request waits for. Looking
again and again instead (*busy polling*, as network stacks and spin locks do) saves that time. It must delay nothing
else:

- It is done for a task that is alone at its stage, and `Channel.busy_poll` ends it as soon as anything else has come.
- The worker's measured time for a task is at most `QUICK_SECONDS`.
- It is done only while it pays. Each look in vain, of `POLL_SECONDS`, doubles the number of lone tasks until the next
  look, so that a machine whose processors are all busy hardly polls.
"""

from __future__ import annotations

QUICK_SECONDS = 100e-6
POLL_SECONDS = 200e-6
# The longest pause after looks in vain, as a power of two of tasks.
MOST_DOUBLINGS = 12


class BusyPoll:
    """Decides when to look for answers at a stage, by what earlier looks have found."""

    __slots__ = ("_skip", "_vain")

    def __init__(self) -> None:
        # Looks in vain since the last one that found an answer, and lone tasks until the next look.
        self._vain = 0
        self._skip = 0

    def seconds(self, seconds_per_item: float | None) -> float:
        """Return for how long to look for the answer to a task that is alone, in seconds; 0 for not at all.

        Args:
            seconds_per_item: what its worker takes, where that is known.
        """
        if seconds_per_item is None or seconds_per_item > QUICK_SECONDS:
            return 0.0
        if self._skip:
            self._skip -= 1
            return 0.0
        return POLL_SECONDS

    def looked(self, *, found: bool) -> None:
        """Note whether there was an answer; a look that ended because something else had come is not counted."""
        self._vain = 0 if found else min(self._vain + 1, MOST_DOUBLINGS)
        self._skip = (1 << self._vain) - 1
