"""How many tasks a full batch holds where it is their cost that bounds it. Pure.

The admission counts the work ahead of a call in batches. With `max_batch_cost` a batch is full long before it has
`max_batch_size` tasks, and how many it has by then depends on what comes. So the batches that were full are averaged.
Of others nothing is learned: a batch that is small because little waited is no sign that batches are small.
"""

from __future__ import annotations

from mosec_asgi.batching.average import MovingAverage

SMOOTHING = 0.1
# What follows from the size takes some 0.1 ms to evaluate, so it stays as it is until it is wrong by this share, and by
# so many tasks.
SHARE = 0.1
TASKS = 0.75


class FullBatches:
    """The size of full batches.

    Attributes:
        size: of them, of late; until one was full, the most that there may be.
    """

    __slots__ = ("_average", "size")

    def __init__(self, most: int) -> None:
        """Begin without knowledge; a batch has `most` tasks at most."""
        self.size = most
        self._average = MovingAverage(SMOOTHING)

    def note(self, count: int) -> None:
        """Note how many tasks a batch has that was full."""
        average = self._average.add(count)
        if abs(average - self.size) > max(TASKS, SHARE * self.size):
            self.size = max(1, round(average))
