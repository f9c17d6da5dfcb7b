"""What all tests share: waiting until something has happened, a clock moved by hand, what a log record says."""

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


async def settled_loop() -> None:
    """Let the loop run all that is ready, and what that makes ready."""
    for _ in range(10):
        await asyncio.sleep(0)


def told(record: logging.LogRecord, *names: str) -> tuple[object, ...]:
    """Return what a log record says beside its message, by name."""
    return tuple(record.__dict__[name] for name in names)


def pending_timers(loop: asyncio.AbstractEventLoop) -> list[asyncio.TimerHandle]:
    """Return the timers that are still to fire; empty on a loop that does not tell."""
    return [timer for timer in getattr(loop, "_scheduled", []) if not timer.cancelled()]


class FakeClock:
    """A clock that stands still until the test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds
