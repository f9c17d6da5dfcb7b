"""The timers of the simulation itself, apart from those of the service."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Agenda:
    """What simulated clients and workers are to do, and when."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._pending: set[asyncio.Handle] = set()

    def after(self, delay: float, callback: Callable[[], None]) -> asyncio.Handle:
        """Call back in `delay` seconds; where that is none, in the next turn of the loop."""

        def due() -> None:
            self._pending.discard(handle)
            callback()

        handle = self._loop.call_later(delay, due) if delay > 0 else self._loop.call_soon(due)
        self._pending.add(handle)
        return handle

    def clear(self) -> None:
        """Forget all that is to be done."""
        for handle in self._pending:
            handle.cancel()
        self._pending.clear()

    def owns(self, timer: asyncio.TimerHandle) -> bool:
        """Whether a timer is the simulation's."""
        return timer in self._pending
