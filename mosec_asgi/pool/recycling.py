"""When a worker that is well is replaced all the same: after so many calls, or with so much memory. Pure.

For code that leaks. A worker that is beyond a limit serves on until another is ready in its place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# Seconds between two looks at the memory of a stage's workers.
LOOK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Recycling:
    """The limits of a worker's life.

    Attributes:
        max_calls: tasks that it answers; 0 for no limit.
        max_memory: bytes of resident memory that it takes; 0 for no limit.
    """

    max_calls: int = 0
    max_memory: int = 0

    @property
    def most_calls(self) -> float:
        """The tasks after which it is replaced; infinite where there is no limit."""
        return self.max_calls or math.inf

    def too_large(self, at_first: int, now: int) -> bool:
        """Whether a worker has grown beyond its limit.

        Args:
            at_first: the bytes that it took when it was ready. If that is above the limit, another would be, too, and
                nothing is gained by one.
            now: the bytes that it takes.
        """
        return bool(self.max_memory) and at_first < self.max_memory <= now


NEVER = Recycling()
