"""Middleware: what it covers, and when requests go past ASGI."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from harness import serving
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from workers import Echo

from mosec_asgi import Server, SSEWorker
from mosec_asgi.errors import DefinitionError


class Stamp:
    """Adds a header to each answer, and notes each path that was asked for."""

    seen: list[str] = []

    def __init__(self, app: ASGIApp, value: str) -> None:
        self._app = app
        self._value = value

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.seen.append(scope["path"])

        async def stamped(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (b"x-stamp", self._value.encode())]}
            await send(message)

        await self._app(scope, receive, stamped)


async def test_middleware_sees_every_request_the_first_the_outermost() -> None:
    server = Server(middleware=[Middleware(Stamp, value="outer"), Middleware(Stamp, value="inner")])
    server.append_worker(Echo)
    transport = httpx.ASGITransport(server)
    async with server.lifespan(), httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        paths = ("/", "/livez", "/readyz", "/metrics", "/openapi/metadata.json", "/openapi/swagger/", "/unknown")
        for path in paths:
            response = await client.get(path)
            assert response.headers.get_list("x-stamp") == ["inner", "outer"], path
        response = await client.post("/inference", json=1)
        assert (response.status_code, response.headers.get_list("x-stamp")) == (200, ["inner", "outer"])


class Counting(Server):
    """A server that sees each request."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await super().__call__(scope, receive, send)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [("middleware=[Middleware(Counting)]", "the server has middleware"), ("", None)],
    ids=["middleware", "none"],
)
def test_the_log_says_once_why_the_direct_way_is_off(arguments: str, reason: str | None, tmp_path: Path) -> None:
    stages = f"""
        from starlette.middleware import Middleware
        class Counting:
            def __init__(self, app):
                self.app = app
            async def __call__(self, scope, receive, send):
                await self.app(scope, receive, send)
        server = Server({arguments})
        server.append_worker(Echo)
    """
    with serving(tmp_path, stages) as program:
        for _ in range(3):
            assert program.client.post("/inference", json=1).status_code == 200
        told = [message for message in program.messages() if "the direct way" in message]
        assert len(told) == (reason is not None)
        assert all(reason in message for message in told if reason)


class Events(SSEWorker):
    def forward(self, data: Any) -> None:
        self.send_stream_event("a")


def routes_of(server: Server) -> set[bytes]:
    return set(server.direct_routes() or ())


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (Server, {b"/inference", b"/b"}),
        (Counting, set()),
        (lambda: Server(middleware=[Middleware(Stamp, value="x")]), set()),
        (lambda: Server(compression=True), {b"/inference", b"/b"}),
        (lambda: Server(access_log=True), {b"/inference", b"/b"}),
    ],
    ids=["plain", "something in between", "middleware", "compression", "access log"],
)
async def test_the_short_way_is_there_for_results_that_nobody_else_must_see(
    make: Callable[[], Server], expected: set[bytes]
) -> None:
    server = make()
    server.append_worker(Echo, route=["/inference", "/b", "/ü", "/a%b", "/a b"])
    server.append_worker(Events, route="/stream")
    assert routes_of(server) == set()
    async with server.lifespan():
        assert routes_of(server) == expected
    assert routes_of(server) == set()


@pytest.mark.parametrize("given", [[Stamp], [1], Stamp, Middleware(Stamp, value="x"), "Stamp", None])
def test_middleware_that_is_none_is_refused_with_what_to_pass(given: Any) -> None:
    with pytest.raises(DefinitionError, match=r"middleware=\[Middleware\(CORSMiddleware, allow_origins"):
        Server(middleware=given)
