"""Which workers have stopped making progress. Pure: time comes in as `now`.

A worker counts its steps (`ipc.progress`). A worker that has tasks, and whose count does not change for longer than a
step may take, is stuck: in a call that never returns to Python, or stopped from outside. A look that comes late shows
nothing: what delayed the server may have delayed the workers as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from typing import Generic, TypeVar

WorkerKey = TypeVar("WorkerKey", bound=Hashable)


# Seconds between two looks above which the later one is late.
LATE_SECONDS = 1.0


class Watchdog(Generic[WorkerKey]):
    """Looks at the progress of a stage's workers, each time that its stage asks."""

    def __init__(self, limit: Callable[[WorkerKey], float]) -> None:
        """Begin with nothing seen.

        Args:
            limit: returns the seconds that one step of a worker may take.
        """
        self._limit = limit
        self._looked = -math.inf
        # The count of each worker that had tasks at the last look, and since when it has not changed.
        self._seen: dict[WorkerKey, tuple[int, float]] = {}

    def stuck(self, beats: Mapping[WorkerKey, int], now: float) -> list[WorkerKey]:
        """Look at the counts of all workers that are at work now; return those that are stuck."""
        late = now - self._looked > LATE_SECONDS
        self._looked = now
        seen: dict[WorkerKey, tuple[int, float]] = {}
        for worker, count in beats.items():
            before = self._seen.get(worker)
            stands = before is not None and before[0] == count and not late
            seen[worker] = before if before is not None and stands else (count, now)
        self._seen = seen
        return [worker for worker, (_, since) in seen.items() if now - since >= self._limit(worker)]
