"""An endpoint that streams, between a scripted service and its clients: bare, or under uvicorn."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from common import pending_timers, settled_loop, until
from fake_engine import FakeClient, FakeEngine, FakeTask
from uvicorn.importer import import_from_string

from mosec_asgi.observing.metrics import ServiceMetrics
from mosec_asgi.streaming import EVENT_STREAM
from mosec_asgi.web.asgi import AsgiExchange
from mosec_asgi.web.asgi_streams import StreamRoute
from mosec_asgi.web.body import BodyReader
from mosec_asgi.web.disconnect import DisconnectWatch
from mosec_asgi.web.exchange import RequestIds, Shared
from mosec_asgi.web.limits import Limits
from mosec_asgi.web.protocols.plain import PlainRoute
from mosec_asgi.web.uvicorn.gathering import gathering

# Bytes of a request's body.
LIMIT = 1000
RAW = "audio/wav"
# Its timers end soon, and the tests with them.
QUICK = Limits(read_timeout=0.2)
MUCH = b"~" * 100_000
# More than all buffers between a server and a client can hold.
ENOUGH = 200 * len(MUCH)


class Side:
    """An endpoint with all that it works with."""

    server: uvicorn.Server

    def __init__(self, content_type: str, *, compressed: bool) -> None:
        self.service = FakeEngine()
        self.metrics = ServiceMetrics("test", [])
        self.watch = DisconnectWatch(AsgiExchange.leave)
        shared = Shared(self.service, self.metrics, RequestIds(), (b"server", b"test"), LIMIT, compressed=compressed)
        route = PlainRoute("/path", 7, content_type, streams=True, new_id=self.service.new_id)
        self.endpoint = StreamRoute(route, shared, self.watch, BodyReader(LIMIT, QUICK, shared.budget))

    def ask(self, body: bytes = b"1", headers: dict[str, str] | None = None) -> FakeClient:
        """Send a request."""
        pairs = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
        return FakeClient(self.endpoint, body, pairs)

    async def begin(self) -> tuple[FakeClient, FakeTask]:
        """Send a request that is admitted."""
        client = self.ask()
        return client, await self.admitted(len(self.service.tasks) + 1)

    async def admitted(self, number: int) -> FakeTask:
        """Wait until so many requests are admitted, and return the last."""
        await until(lambda: len(self.service.tasks) == number)
        await settled_loop()
        return self.service.tasks[-1]

    @property
    def answers(self) -> dict[int, int]:
        """How many answers were counted, by status."""
        assert all(path == "/path" for path, _ in self.metrics.throughput)
        return {code: count for (_, code), count in self.metrics.throughput.items()}

    @property
    def idle(self) -> bool:
        """Whether nobody is watched."""
        return repr(self.watch) == "<DisconnectWatch young=[] watched=[]>"


@asynccontextmanager
async def serving(content_type: str = EVENT_STREAM, *, compressed: bool = False) -> AsyncIterator[Side]:
    """Serve for the time of a block; at its end nothing may be left of it."""
    loop = asyncio.get_running_loop()
    before = asyncio.all_tasks()
    side = Side(content_type, compressed=compressed)
    yield side
    assert all(task.done for task in side.service.tasks)
    await until(lambda: asyncio.all_tasks() == before)
    assert side.idle
    await until(lambda: not pending_timers(loop))


@asynccontextmanager
async def uvicorn_serving(
    protocol: str, content_type: str = EVENT_STREAM, limits: Limits | None = None
) -> AsyncIterator[tuple[Side, int]]:
    """Serve as `server.run()` does, on a port; at the end of the block nothing may be left of it."""
    async with serving(content_type) as side:
        sock = socket.create_server(("127.0.0.1", 0))
        http = gathering(import_from_string(protocol), limits)
        config = uvicorn.Config(
            side.endpoint, http=http, interface="asgi3", lifespan="off", ws="none", log_config=None, access_log=False
        )
        server = side.server = uvicorn.Server(config)
        running = asyncio.create_task(server.serve(sockets=[sock]))
        try:
            await until(lambda: server.started)
            yield side, sock.getsockname()[1]
        finally:
            server.should_exit = server.force_exit = True
            await running


async def stream_enough(task: FakeTask) -> None:
    """Stream so much that it cannot all be on its way to a client that does not read."""
    for _ in range(ENOUGH // len(MUCH)):
        task.chunk(MUCH)
        await settled_loop()
