"""How long tasks may wait for their batch to fill without missing their deadlines. Pure.

A task that waits alone beside an idle worker must not wait until its time is over, however long the stage's `max_wait`
is. What its batch is going to take, and the later stages after it, is known from what was measured (`admission`). A
batch may take longer than all before it, and a timer may be late, so a share of the time is kept in any case. While
nothing is known, half of it is.
"""

from __future__ import annotations

# The share of a task's time that is not spent on waiting, once times have been measured, and before.
KEPT = 0.1
KEPT_AT_FIRST = 0.5


class Leeway:
    """What waiting leaves to the tasks of a stage.

    Attributes:
        seconds: that a task needs from when it is sent to a worker, as far as was measured.
        known: that is true of this stage, and of all later ones.
    """

    __slots__ = ("known", "seconds")

    def __init__(self) -> None:
        self.seconds = 0.0
        self.known = False

    def most(self, left: float) -> float:
        """Return for how many seconds a task may wait whose deadline is in `left` seconds; both may be infinite."""
        kept = KEPT if self.known else KEPT_AT_FIRST
        return max(0.0, min(left - self.seconds, left * (1.0 - kept)))
