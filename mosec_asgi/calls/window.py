"""How many calls `map` keeps in flight. Pure.

As many as keep all workers at work, and no more than are answered well within their time, which nobody knows before.
So it begins with what the workers can run at once and grows by one and an eighth with each round of answers, as long as
they come within half of their time: faster, and those that show that it has become too large would come too late. It
shrinks by a part with each that takes three quarters of it. A call that is refused says that there is no room beside
those in flight: then there are no more than these.
"""

from __future__ import annotations

# Parts of a call's time.
QUICK = 0.5
LATE = 0.75
# Of each round of answers, beside one.
GROWTH = 1 / 8
# What is left of the window after an answer that came late.
SHRINK = 0.9


class Window:
    """The number of calls in flight.

    Attributes:
        most: the most that it ever is.
    """

    def __init__(self, start: int, most: int, seconds: float) -> None:
        """Begin small.

        Args:
            start: calls that the workers can run at once.
            most: calls that keep them at work.
            seconds: that a call may take.
        """
        self.most = max(1, most)
        self._size = float(min(max(1, start), self.most))
        self._seconds = seconds

    @property
    def size(self) -> int:
        """How many calls may be in flight now."""
        return int(self._size)

    def answered(self, seconds: float) -> None:
        """Note that a call was answered, and how long it took."""
        if seconds <= QUICK * self._seconds:
            self._size = min(self._size + GROWTH + 1.0 / self._size, float(self.most))
        elif seconds > LATE * self._seconds:
            self._size = max(1.0, self._size * SHRINK)

    def refused(self, in_flight: int) -> None:
        """Note that a call was refused beside so many others."""
        self._size = float(max(1, min(in_flight, int(self._size))))
