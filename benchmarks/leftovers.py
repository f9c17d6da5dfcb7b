"""What lies in shared memory and belongs to nobody who lives: a service must leave nothing there."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")


def leftovers() -> set[str]:
    """Return the names of what lies in shared memory and is left.

    Not semaphores of `multiprocessing`, of which mosec leaves some and we make none, nor what a living process holds a
    lock on, as our servers do on what they use.
    """
    names = os.listdir(SHARED_MEMORY) if SHARED_MEMORY.exists() else []
    return {name for name in names if not name.startswith("sem.mp-") and not _is_locked(SHARED_MEMORY / name)}


def _is_locked(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        # It is gone by now, or somebody else's.
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
