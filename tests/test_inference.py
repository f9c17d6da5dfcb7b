"""The short way of a request, between a scripted service and a scripted client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from common import pending_timers, until
from fake_engine import FakeClient, FakeEngine

from mosec_asgi.errors import BAD_TIMEOUT, Failure
from mosec_asgi.observing.metrics import ServiceMetrics
from mosec_asgi.web.app import App
from mosec_asgi.web.limits import Limits
from mosec_asgi.web.protocols import plain


class Side:
    """An app with two routes and all that it works with."""

    def __init__(self) -> None:
        self.service = FakeEngine()
        self.metrics = ServiceMetrics("test", [])
        self.app = App(
            plain.routes(
                [("/json", "application/json", False), ("/stream", "text/event-stream", True)], self.service.new_id
            ),
            self.service,
            self.metrics,
            dict,
            max_request_size=1000,
            compressed=False,
            server="test",
            # Its timers end soon, and the tests with them.
            limits=Limits(read_timeout=0.2),
        )

    def ask(self, path: str = "/json", headers: dict[str, str] | None = None) -> FakeClient:
        pairs = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
        return FakeClient(self.app.outermost, b"1", pairs, path)


@asynccontextmanager
async def serving() -> AsyncIterator[Side]:
    """Serve for the time of a block; at its end nothing may be left of it."""
    before = asyncio.all_tasks()
    side = Side()
    yield side
    assert side.service.statistics().admitted == 0
    await until(lambda: asyncio.all_tasks() == before)
    await until(lambda: not pending_timers(asyncio.get_running_loop()))


async def test_each_route_is_answered_as_its_egress_says() -> None:
    async with serving() as side:
        whole, stream = side.ask("/json"), side.ask("/stream")
        await until(lambda: len(side.service.tasks) == 2)
        first, second = side.service.tasks
        assert (first.call.route, second.call.route) == (0, 1)
        first.answer(b"{}")
        second.chunk(b"data: a\n\n")
        second.answer()
        await asyncio.gather(whole.call, stream.call)
        assert (whole.headers["content-type"], whole.body) == ("application/json", b"{}")
        assert (stream.headers["content-type"], stream.body) == ("text/event-stream", b"data: a\n\n")
        assert side.metrics.throughput == {("/json", 200): 1, ("/stream", 200): 1}


@pytest.mark.parametrize("path", ["/json", "/stream"])
@pytest.mark.parametrize(("headers", "timeout"), [({}, None), ({"x-request-timeout": "250"}, 0.25)])
async def test_the_timeout_of_a_request_goes_to_the_service(
    path: str, headers: dict[str, str], timeout: float | None
) -> None:
    async with serving() as side:
        client = side.ask(path, headers)
        await until(lambda: side.service.tasks)
        assert side.service.task.call.timeout == timeout
        side.service.task.answer(b"")
        await client.call


@pytest.mark.parametrize("path", ["/json", "/stream"])
async def test_a_bad_timeout_is_answered_400_and_nothing_is_run(path: str) -> None:
    async with serving() as side:
        client = side.ask(path, {"x-request-timeout": "soon"})
        await client.call
        assert (client.status, client.body.decode()) == (400, BAD_TIMEOUT.text)
        assert side.service.tasks == []
        assert side.metrics.throughput == {(path, 400): 1}


async def test_a_failure_is_answered_with_its_status_and_text() -> None:
    async with serving() as side:
        client = side.ask(headers={"x-request-id": "order 66"})
        await until(lambda: side.service.tasks)
        side.service.task.fail(429, "not now", retry_after=7)
        await client.call
        assert (client.status, client.body) == (429, b"not now")
        assert (client.headers["retry-after"], client.headers["x-request-id"]) == ("7", "order 66")


async def test_what_the_service_refuses_is_answered_at_once() -> None:
    async with serving() as side:
        side.service.refusal = Failure(503, "closed")
        client = side.ask()
        await client.call
        assert (client.status, client.body) == (503, b"closed")


async def test_a_client_that_leaves_is_not_answered_and_not_counted() -> None:
    async with serving() as side:
        client = side.ask()
        await until(lambda: side.service.tasks)
        client.leave()
        await asyncio.wait_for(client.call, 10)
        assert client.offered == 0
        assert side.service.cancelled == [1]
        assert side.metrics.throughput == {}


@pytest.mark.parametrize("watched", [False, True])
async def test_a_request_whose_task_is_cancelled_frees_its_place(watched: bool) -> None:
    async with serving() as side:
        client = side.ask()
        await until(lambda: side.service.tasks)
        if watched:
            # The watch for its client has a task by now.
            await until(lambda: len(asyncio.all_tasks()) == 3)
        client.call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await client.call
        assert side.service.cancelled == [1]
