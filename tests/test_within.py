"""Waiting for a time: what comes of the work, and what of its end."""

from __future__ import annotations

import asyncio
import gc

import pytest
from common import settled_loop

from mosec_asgi.within import within


class Work:
    """Waits for the test to say what comes of it, and then takes a turn of the loop to end where it is cancelled."""

    def __init__(self) -> None:
        self.done: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.ended = False

    async def run(self) -> str:
        try:
            return await self.done
        finally:
            if self.done.cancelled():
                await asyncio.sleep(0)
            self.ended = True


async def test_what_the_work_returns_or_raises_comes_of_it() -> None:
    work = Work()
    work.done.set_result("done")
    assert await within(20, work.run()) == "done"
    assert await within(None, asyncio.sleep(0, "at once")) == "at once"
    work = Work()
    work.done.set_exception(OSError("broken"))
    with pytest.raises(OSError, match="broken"):
        await within(20, work.run())


async def test_what_takes_too_long_is_cancelled_and_has_ended_then() -> None:
    work = Work()
    with pytest.raises(asyncio.TimeoutError):
        await within(0.01, work.run())
    assert work.ended


async def test_a_cancellation_cancels_the_work_and_waits_for_its_end() -> None:
    work = Work()
    waiting = asyncio.ensure_future(within(20, work.run()))
    await settled_loop()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert work.ended


@pytest.mark.parametrize("fails", [False, True])
async def test_a_cancellation_that_comes_with_the_result_is_not_lost(fails: bool) -> None:
    faults: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: faults.append(context))
    work = Work()
    waiting = asyncio.ensure_future(within(20, work.run()))
    await settled_loop()
    if fails:
        work.done.set_exception(OSError("broken"))
    else:
        work.done.set_result("done")
    # The work ends, and who waits for it has not been woken yet.
    while not work.ended:
        await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    del waiting, work
    gc.collect()
    assert not faults
