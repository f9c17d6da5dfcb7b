"""How tasks arrive at a stage, and whether an idle worker does well to wait for more of them. Pure.

Waiting can save at most the fixed cost of a batch, which is less than a batch's time. So a worker waits for a small
part of a batch's time at most, and only where one of two measurements says that it pays.

*The rate.* Where a whole batch comes within `FILL_SHARE` of a batch's time, there is work for several workers, and full
batches save their time. The rate is measured over the time of some batches, not over the last few gaps: clients that
ask again as soon as they are answered come within a millisecond, and then none comes for as long as a batch takes.
Whoever took the rate of such a burst would wait for clients that do not exist.

*Clients that come back.* If a worker starts with the first of eight such clients, the other seven wait for a whole
batch, and so it goes on: one, seven, one, seven. So a worker **lingers**: while fewer tasks are at the stage than just
before the latest answers, the missing ones are expected back. The stage measures whether they do come back: the share
of the expected tasks that came within `LINGER_SHARE` of a batch's time after the latest answers (or, for bursts, after
the arrival that found the stage empty). An idle worker lingers for that time at most, so a wrong guess costs a small
part of what a right one saves. The number of clients needs no estimate: a client that has gone is missed once, and a
new one is counted when it waits. Where a batch takes so little time that the event loop's timers, which count in
milliseconds, would wait longer than that, there is nothing to save.

`benchmarks/policies` compares these rules with those of other servers.
"""

from __future__ import annotations

import math

from mosec_asgi.batching.average import MovingAverage

# Weight of the newest measurement in the moving averages.
SMOOTHING = 0.2
# The rate is measured over the time of this many batches.
RATE_SPAN = 4.0
# The part of a batch's time within which a full batch must come for an idle worker to wait for it.
FILL_SHARE = 0.5
# The part of a batch's time for which a worker lingers without a new arrival.
LINGER_SHARE = 0.125
# Of the usual gap between arrivals: a gap below this belongs to a burst. Two in five gaps are as short by chance.
QUICK_SHARE = 0.5
# The share of the expected tasks that must have come back in time, and the weight of the newest measurement.
LINGER_CHANCE = 0.6
LINGER_SMOOTHING = 0.1
# The least silence that is worth a timer, in seconds.
LEAST_SILENCE = 0.00025


class Arrivals:
    """What is measured of the arrivals at one stage. All times are in seconds."""

    __slots__ = ("_answered", "_batch", "_idle_since", "_last", "_present", "_recent", "_returning")

    def __init__(self) -> None:
        self._recent = 0.0
        self._batch = MovingAverage(SMOOTHING)
        # Tasks at the stage just before the latest answers.
        self._present = 0
        # The share of those expected that came in time.
        self._returning = 0.0
        # The latest arrival, the latest answers, and the answers since which some worker is free.
        self._last = self._answered = self._idle_since = -math.inf

    def arrived(self, now: float, present: int) -> None:
        """Note an arrival.

        Args:
            now: the time.
            present: tasks at the stage, waiting and on workers, this one among them.
        """
        recent = self._recent_at(now)
        if present <= self._present:
            usual = RATE_SPAN * self.batch_seconds / recent if recent else math.inf
            in_time = now - self._latest <= min(self._silence, QUICK_SHARE * usual)
            self._returning += LINGER_SMOOTHING * (in_time - self._returning)
        self._recent = recent + 1.0
        self._last = now
        if present == 1:
            self._idle_since = now

    def answered(self, now: float, present: int, seconds: float, *, idle: bool = False) -> None:
        """Note that a worker has answered.

        Args:
            now: the time.
            present: tasks at the stage, waiting and on workers, before those that were answered have left it.
            seconds: the time that it was at work on them.
            idle: another worker was free already.
        """
        self._batch.add(seconds)
        # The clients that another worker has just answered are still on their way.
        awaited = now <= self._latest + self._silence
        self._present = max(present, self._present) if awaited else present
        self._answered = now
        if not idle:
            self._idle_since = now

    @property
    def batch_seconds(self) -> float:
        """What a batch has taken of late; 0 while that is not known."""
        return self._batch.value or 0.0

    def will_fill(self, size: int, now: float) -> bool:
        """Whether a whole batch of `size` comes within `FILL_SHARE` of a batch's time, at the measured rate."""
        return self._recent_at(now) / RATE_SPAN * FILL_SHARE >= size

    def linger_until(self, waiting: int, on_workers: int, free: int, most: float) -> float:
        """Return until when an idle worker should wait for those that are likely to come back; 0 if it should not.

        Args:
            waiting: tasks that wait at the stage.
            on_workers: tasks that its workers have.
            free: workers that could run a batch now; each is to have its share.
            most: seconds that it may take at most.
        """
        if self._returning < LINGER_CHANCE or self._silence < LEAST_SILENCE:
            return 0.0
        if waiting * free >= self._present - on_workers:
            return 0.0
        return min(self._latest + self._silence, self._idle_since + min(self.batch_seconds, most))

    def _recent_at(self, now: float) -> float:
        """Return the number of recent arrivals, older ones weighing less: at a steady rate, those in `RATE_SPAN`."""
        span = RATE_SPAN * self.batch_seconds
        return self._recent * math.exp((self._last - now) / span) if span and self._recent else 0.0

    @property
    def _latest(self) -> float:
        """When the latest task arrived or was answered."""
        return max(self._last, self._answered)

    @property
    def _silence(self) -> float:
        return LINGER_SHARE * self.batch_seconds
