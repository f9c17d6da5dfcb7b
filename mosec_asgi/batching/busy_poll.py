"""Whether to look for a worker's answer rather than to sleep until it comes. Pure.

When a server sends a worker a task and sleeps, the answer has to wake it: an idle processor is left and entered again,
with caches that are cold. Where the worker takes some microseconds, that is most of what the request waits for. Looking
again and again instead (*busy polling*, as network stacks and spin locks do) saves that time. It must delay nothing
else:

- It is done for a task that is alone at its stage, and `Channel.busy_poll` ends it as soon as anything else has come.
- The worker's measured time for a task is at most `QUICK_SECONDS`.
- It is done only while it pays. A look in vain costs `POLL_SECONDS` of a processor, many times what one that finds an
  answer saves. So each look in vain doubles the number of lone tasks until the next look, and `FINDS` answers found in
  a row halve it again: a machine whose processors are all busy, where many looks are in vain, hardly polls.
"""

from __future__ import annotations

QUICK_SECONDS = 100e-6
POLL_SECONDS = 200e-6
# The longest pause after looks in vain, as a power of two of tasks: it costs less than a microsecond a task then.
MOST_DOUBLINGS = 8
FINDS = 16


class BusyPoll:
    """Decides when to look for answers at a stage, by what earlier looks have found."""

    __slots__ = ("_doublings", "_found", "_skip")

    def __init__(self) -> None:
        # Of the pause; answers found since it was last changed; lone tasks until the next look.
        self._doublings = 0
        self._found = 0
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
        if not found:
            self._doublings = min(self._doublings + 1, MOST_DOUBLINGS)
            self._found = 0
        elif self._doublings:
            self._found += 1
            if self._found == FINDS:
                self._doublings -= 1
                self._found = 0
        self._skip = (1 << self._doublings) - 1
