"""What tests of all rooms ask for: to wait until something has happened, and what a log record says."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable

PATIENCE = 10.0  # seconds; far above what is needed, so that only a hang reaches it


async def until(condition: Callable[[], object]) -> None:
    """Let the loop turn until `condition` holds."""
    limit = time.monotonic() + PATIENCE
    for turn in itertools.count():
        if condition():
            return
        assert time.monotonic() < limit, "what was waited for has not happened"
        await asyncio.sleep(0 if turn < 20 else 0.002)


def told(record: logging.LogRecord, *names: str) -> tuple[object, ...]:
    """Return what a log record says beside its message, by name."""
    return tuple(record.__dict__[name] for name in names)
