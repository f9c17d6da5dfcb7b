"""How far a worker has come, in memory that it shares with the server: the worker writes, the server reads.

A worker that is stuck, or dead, cannot say which of its tasks it had begun, nor when it last did anything. So it writes
two numbers as it goes, which costs about 0.1 µs each, into a page that outlives it.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from multiprocessing import reduction
from typing import Any

from mosec_asgi.messages import Progress

_SIZE = 16


class ProgressPage:
    """The page: made by the server, sent with the arguments of the worker's process, mapped by both."""

    def __init__(self, descriptor: int | None = None) -> None:
        """Map a new page, or the one behind `descriptor`.

        Raises:
            OSError: there is no memory or no descriptor left for it.
        """
        self._descriptor = _new_file() if descriptor is None else descriptor
        try:
            self._map = mmap.mmap(self._descriptor, _SIZE)
        except OSError:
            os.close(self._descriptor)
            raise
        self._numbers = memoryview(self._map).cast("Q")

    def __reduce__(self) -> tuple[Callable[[Any], ProgressPage], tuple[Any]]:
        """Cross into a process that is being spawned; a forked one has the page as it is."""
        return _attach, (reduction.DupFd(self._descriptor),)

    def read(self) -> Progress:
        """Return how far the worker has come."""
        return Progress(self._numbers[0], self._numbers[1])

    def begin(self, tasks: int = 1) -> None:
        """Note that the worker begins the next `tasks` of those that it was sent."""
        self._numbers[0] += tasks
        self._numbers[1] += 1

    def beat(self) -> None:
        """Note that the worker does a step."""
        self._numbers[1] += 1

    def close(self) -> None:
        """Unmap the page. Idempotent."""
        self._numbers.release()
        self._map.close()
        self.forget()

    def forget(self) -> None:
        """Keep the page, and close the descriptor by which another process could map it. Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _attach(duplicate: Any) -> ProgressPage:
    return ProgressPage(duplicate.detach())


def _new_file() -> int:
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("mosec_asgi progress")
    else:
        # Imported here: it loads compressors and random numbers, which no worker needs.
        import tempfile

        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, _SIZE)
    return descriptor
