"""How long a stage takes for its work, from what it has taken of late. Pure.

A unit of work is a task, or a batch. The time of a batch of `n` is taken to be `a + b * n`; the shape of that line
comes from batches of different sizes, and each measured time is scaled by it to that of a full batch. So the times of
batches of all sizes stand in one list, of which a mean and high quantiles are read.

*Changes.* The list is short, and times from before a change are dropped as soon as the change is certain: the latest
times, four at least, all lie beyond the earlier ones, or the mean of the latest eight or sixteen differs from the
earlier mean by more than chance explains. So a stage that becomes slower or faster is noticed after a few units.

*Where times scatter*, the mean of a short list is wrong by chance: of heavy-tailed times by half of it within a minute,
and then a stage that is nearly at its capacity seems to have far too much to do. So the sums of many more times are
remembered, and of the difference between the short list and the memory only that counts which chance does not explain.

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
from operator import itemgetter

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
# The same where the variance has been known for long, and so is not of these times: skewed times reach far by chance.
CERTAIN_FOR_LONG = 8.0
# So many times are remembered by their sums.
MEMORY = 1024.0
# Standard errors by which the latest times may differ from those that are remembered by chance.
CHANCE = 3.0


class Memory:
    """The sums of more times than are kept, older ones weighing less.

    Attributes:
        count: of the times, `MEMORY` at most.
    """

    __slots__ = ("_squares", "_sum", "count")

    def __init__(self) -> None:
        self.count = self._sum = self._squares = 0.0

    def add(self, times: Sequence[float]) -> None:
        """Take in further times."""
        kept = min(1.0, (MEMORY - len(times)) / self.count) if self.count else 0.0
        self.count = self.count * kept + len(times)
        self._sum = self._sum * kept + sum(times)
        self._squares = self._squares * kept + sum(time * time for time in times)

    @property
    def mean(self) -> float:
        """Of all."""
        return self._sum / self.count

    @property
    def variance(self) -> float:
        """Of all."""
        return max(0.0, self._squares / self.count - self.mean**2)

    def scale(self, factor: float) -> None:
        """Go on as if all times had been so many times as long."""
        self._sum *= factor
        self._squares *= factor * factor

    def is_outdated(self, recent: float, count: int) -> bool:
        """Whether the mean of the latest `count` times, which is `recent`, differs by more than chance explains."""
        return abs(recent - self.mean) > max(CERTAIN * math.sqrt(self.variance / count), 0.1 * self.mean)

    def corrected(self, recent: float, count: int) -> float:
        """Return the mean of the latest `count` times, which is `recent`, without what chance explains of it."""
        mean = self.mean
        chance = CHANCE * math.sqrt(self.variance / count)
        return mean + math.copysign(max(0.0, abs(recent - mean) - chance), recent - mean)


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
        "_longer", "_memory", "_ordered", "_samples", "_share", "_size", "doubt", "high", "least", "mean", "noted",
        "scatter", "usual",
    )  # fmt: skip

    def __init__(self, batch_size: int = 1) -> None:
        """Begin without knowledge; `batch_size` is that of a full unit."""
        self._size = batch_size
        # Of each unit: its items, its seconds, and when it was begun.
        self._samples: deque[tuple[int, float, float]] = deque(maxlen=MOST_SAMPLES)
        self._memory = Memory()
        self.noted = 0
        # The part of a full batch's time that does not depend on its size.
        self._share = 1.0
        self.mean = self.least = self.usual = self.high = self.scatter = self.doubt = 0.0
        # The times in order, and of each the sum of it and of all longer ones.
        self._ordered: list[float] = []
        self._longer: list[float] = []

    def add(self, items: int, seconds: float, began: float) -> None:
        """Note that a unit of `items` tasks, begun at the time `began`, has taken so many seconds."""
        self._samples.append((items, seconds, began))
        self.noted += 1

    def read(self) -> bool:
        """Bring the attributes up to date; return whether anything is known."""
        if self.noted and len(self._samples) >= LEAST_SAMPLES:
            self._estimate(self.noted)
            self.noted = 0
        return self.mean > 0.0

    def of(self, items: int, full: float) -> float:
        """Return what a unit of `items` takes where a full one takes `full` seconds."""
        return full * self._scale(items)

    def resize(self, size: int) -> None:
        """Go on with another size of a full unit: all times are those of a unit of that size from here on."""
        factor = self._scale(size)
        self._share, self._size = self._share / factor, size
        self._memory.scale(factor)
        self.mean *= factor
        self.least *= factor
        self.usual *= factor
        self.high *= factor
        self._ordered = [time * factor for time in self._ordered]
        self._longer = [time * factor for time in self._longer]

    def left(self, elapsed: float) -> float:
        """Return what a unit that has taken `elapsed` seconds so far still takes: what those took that took longer."""
        place = bisect_right(self._ordered, elapsed)
        if place == len(self._ordered):
            # It is an exception, of which nothing is known: as long again.
            return elapsed
        return self._longer[place] / (len(self._ordered) - place) - elapsed

    def _scale(self, items: int) -> float:
        return self._share + (1.0 - self._share) * items / self._size

    def _estimate(self, noted: int) -> None:
        if self._size > 1:
            self._fit()
        times = [seconds / self._scale(items) for items, seconds, _ in self._samples]
        latest = times[-noted:]
        since = self._changed_since(times)
        if since is not None:
            kept = [sample for sample in self._samples if sample[2] >= since]
            self._samples = deque(kept, MOST_SAMPLES)
            times = [seconds / self._scale(items) for items, seconds, _ in kept]
        together = self._mean_of(times)
        ordered = sorted(times)
        if len(ordered) >= LEAST_SAMPLES and ordered[-1] > ALONE * ordered[-2]:
            ordered[-1] = ordered[-2]
        count = len(ordered)
        recent = sum(ordered) / count
        most = ordered[-1]
        self._memory.add([time if time < most else most for time in latest])
        if since is not None or self._memory.is_outdated(recent, count):
            self._memory = Memory()
            self._memory.add(ordered)
        # Times of 0 would make a stage infinitely fast.
        self.mean = max(1e-7, min(together, self._memory.corrected(recent, count)))
        self.least = ordered[count // 16]
        self.usual = ordered[min(count - 1, int(count * USUAL))]
        self.high = ordered[-2] if count >= 32 else ordered[-1]
        self.scatter = self._memory.variance / (self.mean * self.mean)
        self.doubt = math.sqrt(self.scatter / self._memory.count)
        self._ordered = ordered
        self._longer = list(accumulate(reversed(ordered)))[::-1]

    def _changed_since(self, times: Sequence[float]) -> float | None:
        """Return since when the times are those of now: from before, they are of a stage that was quicker or slower.

        The times are compared in the order in which their units were begun: of units that are begun together, the quick
        ones are always done first, and say nothing of a change. None for no change.
        """
        begun = sorted(zip((began for _, _, began in self._samples), times, strict=True), key=itemgetter(0))
        variance = self._memory.variance if self._memory.count >= MOST_SAMPLES else None
        place = _change([time for _, time in begun], variance)
        # Units of before and after a change are not begun together.
        return begun[place][0] if begun[0][0] < begun[place][0] else None

    def _mean_of(self, times: Sequence[float]) -> float:
        """Return the mean time of a task that is a unit by itself, where some were answered together; else infinity.

        They are one measurement, as many as they are. A server that is busy takes longer to come to an answer, and then
        has more of them before it: else the few that came alone would make the stage seem many times slower than it is.
        """
        tasks = sum(items for items, _, _ in self._samples)
        if self._size > 1 or tasks == len(times):
            return math.inf
        return sum(items * seconds for (items, _, _), seconds in zip(self._samples, times, strict=True)) / tasks

    def _fit(self) -> None:
        """Learn the shape of the line from batches of different sizes."""
        count = len(self._samples)
        mean_items = sum(items for items, _, _ in self._samples) / count
        mean_seconds = sum(seconds for _, seconds, _ in self._samples) / count
        spread = sum((items - mean_items) ** 2 for items, _, _ in self._samples)
        if spread < count * 0.05 * self._size:
            return
        slope = sum((items - mean_items) * (seconds - mean_seconds) for items, seconds, _ in self._samples) / spread
        fixed = max(0.0, mean_seconds - max(0.0, slope) * mean_items)
        full = fixed + max(0.0, slope) * self._size
        if full > 0.0:
            self._share = fixed / full


def _change(times: Sequence[float], variance: float | None) -> int:
    """Return how many of the earliest times are from before a change.

    Args:
        times: in the order in which their units were begun.
        variance: as it has been for long; None where that is not known.
    """
    count = len(times)
    split = _split(times)
    if split:
        return split
    for recent in (8, 16):
        before = count - recent
        if before >= 2 * recent:
            mean_before, mean_after = sum(times[:before]) / before, sum(times[before:]) / recent
            error, certain = variance, CERTAIN_FOR_LONG
            if error is None:
                error, certain = _variance(times, sum(times) / count), CERTAIN
            error *= 1 / before + 1 / recent
            if (mean_after - mean_before) ** 2 > max(certain**2 * error, (0.1 * mean_before) ** 2):
                return before
    return 0


def _split(times: Sequence[float]) -> int:
    """Return the latest place from which all times lie beyond all earlier ones, with four on either side; else 0."""
    count = len(times)
    longest_from = list(accumulate(reversed(times), max))[::-1]
    shortest_from = list(accumulate(reversed(times), min))[::-1]
    found = 0
    longest = second = 0.0
    shortest = math.inf
    for place in range(count - RUN):
        time = times[place]
        if time < shortest:
            shortest = time
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
