"""How the threads of this process share the CPUs with its workers while a file is mapped (Linux)."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def batch_work() -> Iterator[None]:
    """Have the threads that this process has now run as batch work (`SCHED_BATCH`), for the time of the block.

    A worker that sends its results wakes this process. A thread with the usual policy may then take the CPU from the
    worker at once, before it has begun the batch that lies ready for it. Nobody waits for a single line of a file, so
    it is better to be woken later. The workers keep the usual policy, whenever they are started.

    A thread that has a policy already, other than the usual one, keeps it. Elsewhere than on Linux nothing changes.
    """
    changed: list[int] = []
    if sys.platform == "linux":
        # Threads and processes that are started from now on have the usual policy again.
        batch = os.SCHED_BATCH | os.SCHED_RESET_ON_FORK
        for thread in map(int, os.listdir("/proc/self/task")):
            # A thread may have ended, and a container may allow no change.
            with contextlib.suppress(OSError):
                if os.sched_getscheduler(thread) & ~os.SCHED_RESET_ON_FORK == os.SCHED_OTHER:
                    os.sched_setscheduler(thread, batch, os.sched_param(0))
                    changed.append(thread)
    try:
        yield
    finally:
        # RESET_ON_FORK can only be taken back with privileges, and does no harm.
        for thread in changed:
            with contextlib.suppress(OSError):
                os.sched_setscheduler(thread, os.SCHED_OTHER | os.SCHED_RESET_ON_FORK, os.sched_param(0))
