"""How many tasks are brought to a stage in a second, whether they are admitted or not, and how many it has done. Pure.

Tasks are counted in spans of half a timeout, and judged over the latest `SPANS` whole ones, or `MANY_SPANS`. Where the
timeout is long, less will do, but never a time in which a stage does only a few tasks: of these, twice as many come by
chance. Counting is adding one; the spans end when somebody asks.
"""

from __future__ import annotations

import math

SPANS = 4
MANY_SPANS = 8
# Longer timeouts than twice this need not be waited for, where the stage does so many tasks in it.
LONGEST_SPAN = 5.0
LEAST_TASKS = 10
SHORTEST_SPAN = 0.05


class Offered:
    """Arrivals at a stage, or answers of its workers.

    Attributes:
        count: arrivals in the span that has not ended; whoever sees one adds to it, and takes back what was none.
    """

    __slots__ = ("_began", "_half", "_rates", "count", "span")

    def __init__(self, timeout: float) -> None:
        """Begin; `timeout` is that of the service, in seconds."""
        self._half = max(timeout / 2, SHORTEST_SPAN)
        self.span = min(self._half, LONGEST_SPAN)
        self.count = 0
        self._began: float | None = None
        # Arrivals per second in the latest spans.
        self._rates = [0.0] * MANY_SPANS

    def suit(self, able: float) -> None:
        """Make the spans long enough for a stage that is able to do so many tasks per second."""
        if self._half > LONGEST_SPAN:
            self.span = max(LONGEST_SPAN, min(self._half, LEAST_TASKS / able))

    def roll(self, now: float) -> None:
        """End the span if it is over."""
        if self._began is None:
            self._began, self.count = now, min(0, self.count)
            return
        elapsed = now - self._began
        if elapsed < self.span:
            return
        # Nobody has asked for longer than a span where nobody had to wait: all of that time counts as the spans it was.
        spans = min(MANY_SPANS, int(elapsed / self.span))
        self._rates = [*self._rates[spans:], *[max(0, self.count) / elapsed] * spans]
        # Less than none where those that were taken back again were not counted yet.
        self._began, self.count = now, min(0, self.count)

    @property
    def per_second(self) -> float:
        """Arrivals per second over the latest spans."""
        return sum(self._rates[-SPANS:]) / SPANS

    @property
    def sustained(self) -> float:
        """Arrivals per second over twice as many spans: less of it is chance."""
        return sum(self._rates) / MANY_SPANS

    @property
    def doubt(self) -> float:
        """The standard error of `sustained`, as a share of it, where calls come by chance."""
        counted = sum(self._rates) * self.span
        return 1.0 / math.sqrt(counted) if counted else 1.0

    @property
    def least(self) -> float:
        """Arrivals per second in that of the latest spans that had the fewest."""
        return min(self._rates[-SPANS:])
