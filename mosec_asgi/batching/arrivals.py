"""How tasks arrive at a stage, and whether an idle worker does well to wait for more of them. Pure.

Two signs say that waiting pays.

*The rate.* An average of the gaps between arrivals says when a batch would be full. It is of use where many clients
ask independently of each other.

*Those who come back.* Clients that ask again as soon as they are answered do not arrive at a rate: after a batch of
eight, eight tasks come within a millisecond, then none for as long as a batch takes. Whoever starts with the first of
them lets seven wait for a whole batch, and so it goes on: one, seven, one, seven. So a worker **lingers**. Until as
many tasks are at the stage as there were just before the latest answers, the rest are taken to be on their way.
Whether that is so is measured: of those that were missing, the share that came within `LINGER_SHARE` of a batch's time
after the arrival or the answers before them. Lingering ends with a silence of that length, so what it can cost where
the guess is wrong is a small part of what it wins where it is right. The number of clients needs no estimate of its
own: one that goes is missed once, and one that is new is counted when it waits. Where a batch takes so little that the
event loop's timers, which know whole milliseconds, would wait for longer than it does, there is nothing to win.
"""

from __future__ import annotations

# Weight of the newest measurement in the moving averages.
SMOOTHING = 0.2
# Of a batch's time: how long a worker lingers in silence.
LINGER_SHARE = 0.125
# The least silence that is worth a timer, in seconds.
LEAST_SILENCE = 0.00025
# How many of those that were missing must have come in time lately.
LINGER_CHANCE = 0.5


class Arrivals:
    """What is measured of the arrivals at one stage. All times are in seconds."""

    __slots__ = ("_batch_seconds", "_gap", "_last", "_missing_since", "_present", "_returning")

    def __init__(self) -> None:
        self._gap: float | None = None
        self._last: float | None = None
        self._batch_seconds: float | None = None
        # Tasks at the stage just before the latest answers.
        self._present = 0
        # The share of missing tasks that came back quickly.
        self._returning = 0.0
        # The latest arrival or answer, where a task was missing after it.
        self._missing_since: float | None = None

    def arrived(self, now: float, present: int) -> None:
        """Note an arrival.

        Args:
            now: the time.
            present: tasks at the stage, waiting and on workers, this one among them.
        """
        if self._last is not None:
            self._gap = _average(self._gap, now - self._last)
        self._last = now
        if self._missing_since is not None:
            in_time = now - self._missing_since <= self._silence
            self._returning = _average(self._returning, float(in_time))
        self._missing_since = now if present < self._present else None

    def answered(self, now: float, present: int, seconds: float) -> None:
        """Note that a worker has answered.

        Args:
            now: the time.
            present: tasks at the stage, waiting and on workers, before those that were answered have left it.
            seconds: the time that it was at work on them.
        """
        self._batch_seconds = _average(self._batch_seconds, seconds)
        awaited = self._missing_since is not None and now <= self._missing_since + self._silence
        # Those whom another worker has just answered are still on their way.
        self._present = max(present, self._present) if awaited else present
        self._missing_since = now

    def will_fill(self, missing: int, now: float, until: float) -> bool:
        """Whether `missing` more tasks come before the time `until`, at the measured rate."""
        return self._gap is not None and now + missing * self._gap <= until

    def linger_until(self, waiting: int, on_workers: int, free: int) -> float:
        """Return until when an idle worker should wait for those that are likely to come back; 0 if it should not.

        Args:
            waiting: tasks that wait at the stage.
            on_workers: tasks that its workers have.
            free: workers that could run a batch now; each is to have its share.
        """
        likely = self._returning >= LINGER_CHANCE and self._silence >= LEAST_SILENCE
        if self._missing_since is None or not likely:
            return 0.0
        enough = waiting * free >= self._present - on_workers
        return 0.0 if enough else self._missing_since + self._silence

    @property
    def _silence(self) -> float:
        return LINGER_SHARE * (self._batch_seconds or 0.0)


def _average(before: float | None, value: float) -> float:
    return value if before is None else before + SMOOTHING * (value - before)
