"""When `forward` has a task: measured where the server makes spans of it, and sent with the task's answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from mosec_asgi.inside.timer import NoTimer, Timer
from mosec_asgi.messages import ForwardTime

NEVER = ForwardTime(0.0, 0.0, 0)


class Stopwatch:
    """The times of the traced tasks that a worker has; of others there are none.

    Attributes:
        wanted: the traced tasks that have come and are not answered.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        """Begin with no tasks; `clock` gives seconds."""
        self.wanted: set[int] = set()
        self._clock = clock
        # By task: the beginning of the first call, the end of the last, and their number.
        self._began: dict[int, float] = {}
        self._ended: dict[int, float] = {}
        self._calls: dict[int, int] = {}

    def begin(self, ids: Sequence[int]) -> None:
        """Note that a call of `forward` with these tasks begins."""
        now = self._clock()
        for task_id in self.wanted.intersection(ids):
            self._began.setdefault(task_id, now)
            self._ended.pop(task_id, None)
            self._calls[task_id] = self._calls.get(task_id, 0) + 1

    def end(self, ids: Sequence[int]) -> None:
        """Note that it ends; one that is not told to goes on until its tasks are answered, as a stream does."""
        now = self._clock()
        for task_id in ids:
            if task_id in self._began:
                self._ended[task_id] = now

    def take(self, ids: Sequence[int]) -> Sequence[ForwardTime]:
        """Return the times of tasks that are answered now, and forget them; nothing where none of them is traced."""
        if self.wanted.isdisjoint(ids):
            return ()
        now = self._clock()
        self.wanted.difference_update(ids)
        return [self._taken(task_id, now) for task_id in ids]

    def _taken(self, task_id: int, now: float) -> ForwardTime:
        began = self._began.pop(task_id, None)
        if began is None:
            return NEVER
        return ForwardTime(now - began, self._ended.pop(task_id, now) - began, self._calls.pop(task_id))


class HasStopwatch(Protocol):
    """A port."""

    stopwatch: Stopwatch | None


class Watched:
    """A timer that measures as well: the same around one call of `forward`, and no more than that."""

    def __init__(self, timer: Timer | NoTimer, port: HasStopwatch, inside: Callable[[], Sequence[int]]) -> None:
        """Put both together.

        Args:
            timer: bounds the time of the call.
            port: has the stopwatch.
            inside: returns the tasks of the call.
        """
        assert port.stopwatch is not None
        self._timer = timer
        self._stopwatch = port.stopwatch
        self._inside = inside

    @property
    def wanted(self) -> bool:
        """Whether there are traced tasks."""
        return bool(self._stopwatch.wanted)

    def __enter__(self) -> None:
        self._stopwatch.begin(self._inside())
        self._timer.__enter__()

    def __exit__(self, *_: object) -> None:
        self._timer.__exit__()
        self._stopwatch.end(self._inside())
