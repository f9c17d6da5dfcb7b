"""How long tasks may wait for their batch to fill without missing their deadlines. Pure.

A task that waits alone beside an idle worker must not wait until its time is over, however long the stage's `max_wait`
is. What its batch is going to take, and the later stages after it, is known from what was measured (`admission`). A
batch may take longer than all before it, and a timer may be late, so a share of the time is kept in any case. While
nothing is known, half of it is.
"""

from __future__ import annotations

# The share of a task's time that may be spent on waiting, once times have been measured, and before.
SHARE = 0.9
SHARE_AT_FIRST = 0.5


class Leeway:
    """What waiting leaves to the tasks of a stage.

    Attributes:
        seconds: that a task needs from when it is sent to a worker, as far as was measured.
        share: of a task's time that may be spent on waiting.
    """

    __slots__ = ("seconds", "share")

    def __init__(self) -> None:
        self.seconds = 0.0
        self.share = SHARE_AT_FIRST

    def learn(self, seconds: float, *, known: bool) -> None:
        """Note what a task needs from when it is sent to a worker; `known` if all stages that are still to come are."""
        self.seconds = seconds
        self.share = SHARE if known else SHARE_AT_FIRST

    def most(self, left: float) -> float:
        """Return for how many seconds a task may wait whose deadline is in `left` seconds; both may be infinite."""
        return max(0.0, min(left - self.seconds, left * self.share))
