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
    it is better to be woken later. The workers that run keep the usual policy. One that is started meanwhile, in the
    place of one that has died, inherits this one, as each process does: it is woken later, too, which it rarely feels.

    A thread that has a policy already, other than the usual one, keeps it. Elsewhere than on Linux nothing changes.
    """
    changed: list[int] = []
    if sys.platform == "linux":
        for thread in map(int, os.listdir("/proc/self/task")):
            # A thread may have ended, and a container may allow no change.
            with contextlib.suppress(OSError):
                if os.sched_getscheduler(thread) == os.SCHED_OTHER:
                    os.sched_setscheduler(thread, os.SCHED_BATCH, os.sched_param(0))
                    changed.append(thread)
    try:
        yield
    finally:
        for thread in changed:
            with contextlib.suppress(OSError):
                os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))
