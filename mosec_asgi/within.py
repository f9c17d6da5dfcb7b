"""Waiting for a time, without losing a cancellation.

Before Python 3.12, `asyncio.wait_for` does not hear a cancellation that comes in the same turn of the event loop as the
result. A task that goes on to something endless then never ends, and whoever waits for its end waits for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def within(seconds: float | None, work: Awaitable[T]) -> T:
    """Return what `work` returns; where that takes too long, or this is cancelled, cancel it and wait for its end.

    A result that comes together with a cancellation is dropped, so what must be closed is the affair of `work`.

    Args:
        seconds: that it may take; None for no limit.
        work: a future, or a coroutine, which is run in a task of its own.

    Raises:
        asyncio.TimeoutError: it has taken too long.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait([task], timeout=seconds)
        if not task.done():
            raise asyncio.TimeoutError
        return task.result()
    finally:
        if task.cancel():
            # It has sockets in hand, which are closed next.
            await asyncio.wait([task])
        if task.done() and not task.cancelled():
            # Where it is dropped, nobody else retrieves it.
            task.exception()
