"""The event loop on virtual time."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator

import pytest

from mosec_asgi.testing import DeadlockError, VirtualTimeLoop, run


def now() -> float:
    return asyncio.get_running_loop().time()


def test_sleeping_takes_no_time_and_advances_the_clock() -> None:
    async def sleep() -> float:
        began = now()
        await asyncio.sleep(1_000_000)
        return now() - began

    began = time.monotonic()
    assert run(sleep()) == 1_000_000
    assert time.monotonic() - began < 60


def test_timers_fire_in_order_and_at_their_times() -> None:
    fired: list[tuple[str, float]] = []

    async def nap(name: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        fired.append((name, now()))

    async def main() -> None:
        await asyncio.gather(nap("late", 0.3), nap("early", 0.1), nap("at once", 0.0), nap("middle", 0.2))

    run(main())
    assert fired == [("at once", 0.0), ("early", 0.1), ("middle", 0.2), ("late", 0.3)]


def test_a_timeout_is_tested_in_no_time() -> None:
    async def main() -> float:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 3.0)
        return now()

    assert run(main()) == 3.0


def test_what_is_ready_runs_before_time_passes() -> None:
    async def main() -> list[float]:
        times: list[float] = []

        async def spin() -> None:
            for _ in range(1000):
                await asyncio.sleep(0)
                times.append(now())

        await asyncio.gather(spin(), asyncio.sleep(1.0))
        return times

    assert set(run(main())) == {0.0}


def test_the_result_and_the_exception_are_those_of_the_coroutine() -> None:
    async def fail() -> None:
        raise LookupError("this one")

    async def give() -> int:
        return 7

    assert run(give()) == 7
    with pytest.raises(LookupError, match="this one"):
        run(fail())


def test_tasks_that_wait_for_ever_are_named() -> None:
    async def wait_for_nothing() -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        other = asyncio.create_task(wait_for_nothing(), name="the other")
        await asyncio.wait({other})

    with pytest.raises(DeadlockError) as raised:
        run(main())
    assert "no timer is set" in str(raised.value)
    assert "the other: wait_for_nothing (" in str(raised.value)
    assert __file__ in str(raised.value)


def test_going_round_in_circles_is_an_error() -> None:
    async def main() -> None:
        reached = asyncio.Event()
        asyncio.get_running_loop().call_later(1.0, reached.set)
        while not reached.is_set():
            await asyncio.sleep(0)

    with pytest.raises(DeadlockError, match="turned 100,000 times and no time has passed"):
        run(main())


def test_a_thread_is_waited_for_while_the_clock_stands() -> None:
    let_go = threading.Event()

    def work() -> str:
        assert let_go.wait(60)
        return "done"

    async def main() -> tuple[str, float]:
        timer = asyncio.get_running_loop().call_later(1.0, lambda: None)
        working = asyncio.ensure_future(asyncio.to_thread(work))
        await asyncio.sleep(0)
        let_go.set()
        result = await working
        timer.cancel()
        return result, now()

    assert run(main()) == ("done", 0.0)


def test_a_socket_both_ends_of_which_are_here_is_read_before_time_passes() -> None:
    async def main() -> tuple[bytes, float]:
        here, there = socket.socketpair()
        with here, there:
            for end in (here, there):
                end.setblocking(False)
            loop = asyncio.get_running_loop()
            timer = loop.call_later(1.0, lambda: None)
            reading = asyncio.ensure_future(loop.sock_recv(there, 10))
            await loop.sock_sendall(here, b"hello")
            data = await reading
            timer.cancel()
            return data, now()

    assert run(main()) == (b"hello", 0.0)


def test_what_is_left_running_is_cancelled_and_closed() -> None:
    ended: list[str] = []

    async def linger() -> None:
        try:
            await asyncio.sleep(100)
        finally:
            ended.append("task")

    async def generate() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            ended.append("generator")

    async def main() -> None:
        main.task = asyncio.create_task(linger())  # type: ignore[attr-defined]
        await asyncio.sleep(0)
        generator = generate()
        await anext(generator)
        main.generator = generator  # type: ignore[attr-defined]

    run(main())
    assert sorted(ended) == ["generator", "task"]


def test_a_loop_in_a_loop_is_refused() -> None:
    async def inner() -> None:
        raise AssertionError("must not run")

    async def outer() -> None:
        with pytest.raises(RuntimeError, match="starts an event loop of its own"):
            run(inner())

    run(outer())


def test_the_hook_runs_whenever_time_is_about_to_pass_and_may_make_work() -> None:
    loop = VirtualTimeLoop(start=10.0)
    seen: list[float] = []
    more = [True]

    def before_jump() -> None:
        seen.append(loop.time())
        if more.pop() if more else False:
            loop.call_soon(seen.append, -1.0)

    loop.before_jump = before_jump
    try:
        loop.run_until_complete(asyncio.sleep(2.0))
    finally:
        loop.close()
    assert seen == [10.0, -1.0, 10.0]
    assert loop.time() == 12.0


def test_timers_that_are_still_to_fire_can_be_seen() -> None:
    async def main() -> tuple[int, int]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        timer = loop.call_later(1.0, lambda: None)
        before = len(loop.timers)
        timer.cancel()
        return before, len(loop.timers)

    assert run(main()) == (1, 0)
