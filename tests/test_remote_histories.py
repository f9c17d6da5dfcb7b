"""Random histories of several web processes and one engine, whose workers run in this process."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from typing import Any

import pytest
from harness import until

from mosec_asgi import Server, SSEWorker, Worker, testing
from mosec_asgi.calls.routes import route_shapes
from mosec_asgi.errors import CANCELLED
from mosec_asgi.ipc.arena import LARGE
from mosec_asgi.ipc.shm import SharedMemory
from mosec_asgi.messages import OK, Call, Chunk, Credit, Outcome, Pieces
from mosec_asgi.observing.metrics import ServiceMetrics
from mosec_asgi.observing.statistics import ServiceReport
from mosec_asgi.remote.callers import Callers
from mosec_asgi.remote.dialing import Dialing
from mosec_asgi.remote.engine import RemoteEngine
from mosec_asgi.remote.standing import Standing

STEPS = 400


class Echo(Worker):
    def deserialize(self, data: bytes) -> bytes:
        return data

    def serialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: Any) -> Any:
        return data


class Count(SSEWorker):
    def deserialize(self, data: bytes) -> int:
        return int(data)

    def forward(self, data: Any) -> Any:
        for number in range(data):
            self.send_stream_event(str(number))


class Asked:
    """A call, and what has become of it."""

    def __init__(self, call: Call, body: bytes) -> None:
        self.call = call
        self.body = body
        self.outcomes: list[Outcome] = []
        self.chunks: list[Chunk] = []

    def settled(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)

    def streamed(self, chunk: Chunk) -> None:
        assert not self.outcomes
        self.chunks.append(chunk)

    def check(self) -> None:
        [outcome] = self.outcomes
        assert outcome.call_id == self.call.id
        assert outcome.code in (OK, CANCELLED, 503), outcome
        if outcome.code == OK and self.call.route == 0:
            assert outcome.payload == self.body
        events = b"".join(chunk.payload for chunk in self.chunks)
        expected = b"".join(b"data: %d\n\n" % number for number in range(99))
        assert expected.startswith(events)
        if outcome.code == OK and self.call.route == 1:
            assert events.count(b"data") == int(self.body)


@pytest.mark.parametrize("seed", range(6))
async def test_each_call_has_one_right_outcome_and_nothing_is_left(seed: int) -> None:
    chance = random.Random(seed)
    server = Server(timeout=60_000)
    server.append_worker(Echo, num=2)
    server.append_worker(Count, route="/count")
    loop = asyncio.get_running_loop()
    memory = SharedMemory(1 << 20, 4)
    async with testing.serving(server):
        running: Any = server._running
        coordinator = running.engine
        routes = route_shapes(running._call_routes)

        async def answer(kind: str, text: str) -> bytes:
            return Standing(coordinator.statistics(), ServiceReport(), {}).packed()

        callers = Callers(coordinator, routes, [True, False], ServiceMetrics("x", []), memory, answer)
        webs: list[tuple[RemoteEngine, asyncio.Task[None]]] = []
        asked: list[Asked] = []

        async def connect() -> None:
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            callers.add(theirs)
            remote = RemoteEngine(loop, ServiceMetrics("x", []))
            dialing = Dialing(remote, routes, "", ours)
            webs.append((remote, loop.create_task(dialing.run())))
            await dialing.tried.wait()

        def submit(remote: RemoteEngine) -> None:
            route = chance.randrange(2)
            body = b"%d" % chance.randrange(1, 9) if route else os.urandom(chance.choice((1, 999, LARGE, 3 * LARGE)))
            cut = chance.randrange(len(body) + 1)
            pieces = Pieces((memoryview(body)[:cut], body[cut:]), len(body))
            payload = pieces if chance.random() < 0.5 else body
            each = Asked(Call(remote.new_id(), route, payload, "request"), body)
            asked.append(each)
            remote.submit(each.call, each)

        for _ in range(2):
            await connect()
        for _ in range(STEPS):
            remote, task = chance.choice(webs)
            step = chance.random()
            if step < 0.6:
                submit(remote)
            elif step < 0.75 and asked:
                each = chance.choice(asked[-20:])
                if any(each is one for one in remote._open.values()):
                    remote.cancel(each.call.id)
            elif step < 0.85 and asked:
                each = chance.choice(asked[-20:])
                for chunk in each.chunks[-1:]:
                    remote.credit(Credit(each.call.id, len(chunk.payload)))
            elif step < 0.88:
                channel = remote._channel
                if channel is not None:
                    # As the kernel does for a process that was killed.
                    channel._sock.shutdown(socket.SHUT_RDWR)
                await asyncio.wait([task])
                webs.remove((remote, task))
                await connect()
            else:
                await asyncio.sleep(chance.choice((0, 0, 0.001)))
        await until(lambda: all(each.outcomes for each in asked), "each call has an outcome")
        for remote, task in webs:
            task.cancel()
            remote.disconnect()
        await until(lambda: not len(callers), "all are gone")
        await until(lambda: not coordinator.statistics().admitted, "nothing is on its way")
    for each in asked:
        each.check()
    assert sum(each.outcomes[0].code == OK for each in asked) > STEPS / 8
    assert not memory.in_use
    memory.close()
