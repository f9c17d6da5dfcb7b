"""The watch for clients that leave, in manual time."""

from __future__ import annotations

import asyncio

import pytest
from common import pending_timers, settled_loop
from fake_engine import ManualLoop, in_manual_time
from starlette.types import Message

from mosec_asgi.web.disconnect import WATCH_AFTER_SECONDS, DisconnectWatch

EMPTY = "<DisconnectWatch young=[] watched=[]>"


class Connection:
    """What a server says of a connection."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()

    async def receive(self) -> Message:
        await self.gone.wait()
        return {"type": "http.disconnect"}


async def nothing_is_left(loop: ManualLoop, watch: DisconnectWatch) -> bool:
    await loop.advance(10 * WATCH_AFTER_SECONDS)
    return repr(watch) == EMPTY and not pending_timers(loop) and asyncio.all_tasks() == {asyncio.current_task()}


def test_a_client_that_leaves_is_noticed_once() -> None:
    async def main(loop: ManualLoop) -> None:
        left: list[int] = []
        watch, connections = DisconnectWatch(left.append), [Connection() for _ in range(5)]
        for key, connection in enumerate(connections):
            watch.add(key, connection.receive)
        await loop.advance(2 * WATCH_AFTER_SECONDS)
        assert left == []
        connections[3].gone.set()
        await settled_loop()
        assert left == [3]
        for key in range(5):
            watch.discard(key)
        assert left == [3]
        assert await nothing_is_left(loop, watch)

    in_manual_time(main)


@pytest.mark.parametrize("leaves", ["before it is watched", "while it is watched"])
def test_a_client_may_leave_at_any_time(leaves: str) -> None:
    async def main(loop: ManualLoop) -> None:
        left: list[int] = []
        watch, connection = DisconnectWatch(left.append), Connection()
        watch.add(1, connection.receive)
        if leaves == "before it is watched":
            connection.gone.set()
        await loop.advance(2 * WATCH_AFTER_SECONDS)
        connection.gone.set()
        await settled_loop()
        assert left == [1]
        assert await nothing_is_left(loop, watch)

    in_manual_time(main)


def test_requests_that_are_answered_soon_cost_no_task() -> None:
    async def main(loop: ManualLoop) -> None:
        watch, connection = DisconnectWatch(lambda key: None), Connection()
        for key in range(100):
            watch.add(key, connection.receive)
            await loop.advance(WATCH_AFTER_SECONDS * 0.3)
            assert asyncio.all_tasks() == {asyncio.current_task()}
            assert len(pending_timers(loop)) == 1
            watch.discard(key)
        assert await nothing_is_left(loop, watch)

    in_manual_time(main)


def test_a_receive_that_gives_out_the_body_again_and_again_keeps_nobody_waiting() -> None:
    async def main(loop: ManualLoop) -> None:
        calls: list[None] = []

        async def receive() -> Message:
            calls.append(None)
            assert len(calls) < 1000
            return {"type": "http.request", "body": b"1", "more_body": False}

        watch = DisconnectWatch(lambda key: None)
        watch.add(1, receive)
        await loop.advance(10 * WATCH_AFTER_SECONDS)
        assert 1 < len(calls) < 20
        watch.discard(1)
        assert await nothing_is_left(loop, watch)

    in_manual_time(main)
