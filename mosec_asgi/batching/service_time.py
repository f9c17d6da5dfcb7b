"""How long a stage takes for its work, from what it has taken of late. Pure.

A unit of work is a task, or a batch. The time of a batch of `n` is taken to be `a + b * n`; the shape of that line
comes from batches of different sizes, and each measured time is scaled by it to that of a full batch. So the times of
batches of all sizes stand in one list, of which a mean and high quantiles are read.

*Changes.* The list is short, and times from before a change are dropped as soon as the change is certain: the latest
times, four at least, all lie beyond the earlier ones, or the mean of the latest eight or sixteen differs from the
earlier mean by more than chance explains. So a stage that becomes slower or faster is noticed after a few units.

*One slow unit* (code that is compiled at its first use, memory that is read from disk) says nothing about the next one:
a single time far above all others counts like the second longest.

Noting a time costs an append; all else happens in `read`.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from itertools import accumulate

# The latest so many units count.
MOST_SAMPLES = 128
# With fewer than these nothing is known.
LEAST_SAMPLES = 3
# A time that is longer than the next longest by this factor stands alone.
ALONE = 2.0
# The stage has changed where this many times lie beyond all earlier ones, at least as many, by this factor.
RUN = 4
BEYOND = 1.25
# The share of all units that take no longer than the usual time.
USUAL = 0.75
# Standard errors by which the latest eight or sixteen differ from the others where that is no chance.
CERTAIN = 5.0


class ServiceTimes:
    """The times of a stage's units of work, in seconds.

    Attributes:
        mean: of a full unit; 0 while nothing is known.
        least: what nearly all take at least.
        usual: what three in four take at most.
        high: what nearly all take at most.
        scatter: the squared coefficient of variation: 0 for constant times, 1 for exponential ones.
        noted: units since the last `read`.
        doubt: the standard error of `mean`, as a share of it.
    """

    __slots__ = (
        "_longer", "_ordered", "_samples", "_share", "_size", "doubt", "high", "least", "mean", "noted", "scatter",
        "usual",
    )  # fmt: skip

    def __init__(self, batch_size: int = 1) -> None:
        """Begin without knowledge; `batch_size` is that of a full unit."""
        self._size = batch_size
        self._samples: deque[tuple[int, float]] = deque(maxlen=MOST_SAMPLES)
        self.noted = 0
        # The part of a full batch's time that does not depend on its size.
        self._share = 1.0
        self.mean = self.least = self.usual = self.high = self.scatter = self.doubt = 0.0
        # The times in order, and of each the sum of it and of all longer ones.
        self._ordered: list[float] = []
        self._longer: list[float] = []

    def add(self, items: int, seconds: float) -> None:
        """Note that a unit of `items` tasks has taken so long."""
        self._samples.append((items, seconds))
        self.noted += 1

    def read(self) -> bool:
        """Bring the attributes up to date; return whether anything is known."""
        if self.noted:
            self.noted = 0
            if len(self._samples) >= LEAST_SAMPLES:
                self._estimate()
        return self.mean > 0.0

    def of(self, items: int, full: float) -> float:
        """Return what a unit of `items` takes where a full one takes `full` seconds."""
        return full * self._scale(items)

    def left(self, elapsed: float) -> float:
        """Return what a unit that has taken `elapsed` seconds so far still takes: what those took that took longer."""
        place = bisect_right(self._ordered, elapsed)
        if place == len(self._ordered):
            # It is an exception, of which nothing is known: as long again.
            return elapsed
        return self._longer[place] / (len(self._ordered) - place) - elapsed

    def _scale(self, items: int) -> float:
        return self._share + (1.0 - self._share) * items / self._size

    def _estimate(self) -> None:
        if self._size > 1:
            self._fit()
        times = [seconds / self._scale(items) for items, seconds in self._samples]
        since = _change(times)
        if since:
            for _ in range(since):
                self._samples.popleft()
            times = times[since:]
        mean = self._mean_of(times)
        ordered = sorted(times)
        if len(ordered) >= LEAST_SAMPLES and ordered[-1] > ALONE * ordered[-2]:
            ordered[-1] = ordered[-2]
        count = len(ordered)
        # Times of 0 would make a stage infinitely fast.
        self.mean = max(1e-7, min(mean, sum(ordered) / count))
        self.least = ordered[count // 16]
        self.usual = ordered[min(count - 1, int(count * USUAL))]
        self.high = ordered[-2] if count >= 32 else ordered[-1]
        self.scatter = _variance(ordered, self.mean) / (self.mean * self.mean)
        self.doubt = math.sqrt(self.scatter / count)
        self._ordered = ordered
        self._longer = list(accumulate(reversed(ordered)))[::-1]

    def _mean_of(self, times: Sequence[float]) -> float:
        """Return the mean time of a task that is a unit by itself, where some were answered together; else infinity.

        They are one measurement, as many as they are. A server that is busy takes longer to come to an answer, and then
        has more of them before it: else the few that came alone would make the stage seem many times slower than it is.
        """
        if self._size > 1:
            return math.inf
        tasks = sum(items for items, _ in self._samples)
        return sum(items * seconds for (items, _), seconds in zip(self._samples, times, strict=True)) / tasks

    def _fit(self) -> None:
        """Learn the shape of the line from batches of different sizes."""
        count = len(self._samples)
        mean_items = sum(items for items, _ in self._samples) / count
        mean_seconds = sum(seconds for _, seconds in self._samples) / count
        spread = sum((items - mean_items) ** 2 for items, _ in self._samples)
        if spread < count * 0.05 * self._size:
            return
        slope = sum((items - mean_items) * (seconds - mean_seconds) for items, seconds in self._samples) / spread
        fixed = max(0.0, mean_seconds - max(0.0, slope) * mean_items)
        full = fixed + max(0.0, slope) * self._size
        if full > 0.0:
            self._share = fixed / full


def _change(times: Sequence[float]) -> int:
    """Return how many of the earliest times are from before a change."""
    count = len(times)
    split = _split(times)
    if split:
        return split
    for recent in (8, 16):
        before = count - recent
        if before >= 2 * recent:
            mean_before, mean_after = sum(times[:before]) / before, sum(times[before:]) / recent
            error = _variance(times, sum(times) / count) * (1 / before + 1 / recent)
            if (mean_after - mean_before) ** 2 > max(CERTAIN**2 * error, (0.1 * mean_before) ** 2):
                return before
    return 0


def _split(times: Sequence[float]) -> int:
    """Return the latest place from which all times lie beyond all earlier ones, with four on either side; else 0."""
    count = len(times)
    longest_from, shortest_from = list(times), list(times)
    for place in range(count - 2, -1, -1):
        longest_from[place] = max(times[place], longest_from[place + 1])
        shortest_from[place] = min(times[place], shortest_from[place + 1])
    found = 0
    longest = second = 0.0
    shortest = math.inf
    for place in range(count - RUN):
        time = times[place]
        shortest = min(shortest, time)
        if time > longest:
            longest, second = time, longest
        elif time > second:
            second = time
        after = place + 1
        if after >= RUN:
            usual = second if longest > ALONE * second else longest
            if shortest_from[after] > BEYOND * usual or longest_from[after] * BEYOND < shortest:
                found = after
    return found


def _variance(times: Sequence[float], mean: float) -> float:
    return sum((time - mean) ** 2 for time in times) / len(times)
