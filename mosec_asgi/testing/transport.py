"""Carries the requests of an `httpx.AsyncClient` to an ASGI app in this process, streams and clients that leave too.

`httpx.ASGITransport` returns a response when the app is done with it, so that nobody sees an event before the last, and
no app sees its client leave.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from starlette.types import ASGIApp

# Bytes of a response that may wait for the client, beyond which the app waits; as in uvicorn.
HIGH_WATER = 64 * 1024


class AppTransport(httpx.AsyncBaseTransport):
    """Runs an app for each request."""

    def __init__(self, app: ASGIApp) -> None:
        """Bind an app."""
        self._app = app
        self._exchanges: set[_Exchange] = set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; return as soon as the head of the response is there."""
        exchange = _Exchange(self._app, request, await request.aread())
        self._exchanges.add(exchange)
        exchange.task.add_done_callback(lambda _: self._exchanges.discard(exchange))
        try:
            status, headers = await exchange.head()
        except BaseException:
            exchange.leave()
            raise
        return httpx.Response(status, headers=headers, stream=_Body(exchange))

    async def aclose(self) -> None:
        """Leave all that is under way."""
        tasks = [exchange.task for exchange in self._exchanges]
        for exchange in list(self._exchanges):
            exchange.leave()
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)


class _Exchange:
    """A request and its response, and the app's end of it."""

    def __init__(self, app: ASGIApp, request: httpx.Request, body: bytes) -> None:
        self._request_body: bytes | None = body
        self._head: tuple[int, list[tuple[bytes, bytes]]] | None = None
        self._chunks: deque[bytes] = deque()
        self._waiting = 0
        self._ended = False
        self._left = False
        # Set whenever something has changed, anew each time.
        self._news = asyncio.Event()
        self.task = asyncio.ensure_future(self._run(app, _scope(request)))

    def leave(self) -> None:
        """Close the connection."""
        self._left = True
        self._wake()

    async def head(self) -> tuple[int, list[tuple[bytes, bytes]]]:
        """Wait for the head of the response."""
        while self._head is None:
            if self.task.done():
                self.task.result()
                raise RuntimeError("the app has ended without a response")
            await self._wait()
        return self._head

    async def chunk(self) -> bytes | None:
        """Wait for the next part of the body; None at its end."""
        while not self._chunks:
            if self._ended:
                return None
            if self.task.done():
                self.task.result()
                raise httpx.RemoteProtocolError("the app has ended in the middle of its response")
            await self._wait()
        chunk = self._chunks.popleft()
        self._waiting -= len(chunk)
        self._wake()
        return chunk

    # -- the app's end -----------------------------------------------------------------------------------------------

    async def _run(self, app: ASGIApp, scope: dict[str, Any]) -> None:
        try:
            await app(scope, self._receive, self._send)
        finally:
            self._wake()

    async def _receive(self) -> dict[str, Any]:
        body, self._request_body = self._request_body, None
        if body is not None:
            return {"type": "http.request", "body": body, "more_body": False}
        while not self._left and not self._ended:
            await self._wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        if self._left:
            raise OSError("the client has left")
        if message["type"] == "http.response.start":
            self._head = message["status"], list(message.get("headers", ()))
        elif message["type"] == "http.response.body":
            if message.get("body"):
                self._chunks.append(message["body"])
                self._waiting += len(message["body"])
            self._ended = not message.get("more_body", False)
        self._wake()
        while self._waiting > HIGH_WATER and not self._left:
            await self._wait()

    def _wake(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def _wait(self) -> None:
        await self._news.wait()


class _Body(httpx.AsyncByteStream):
    """The body of a response, as it comes; to close it before its end is to leave."""

    def __init__(self, exchange: _Exchange) -> None:
        self._exchange = exchange

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (chunk := await self._exchange.chunk()) is not None:
            yield chunk

    async def aclose(self) -> None:
        self._exchange.leave()


def _scope(request: httpx.Request) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": request.url.scheme,
        "path": request.url.path,
        "raw_path": request.url.raw_path.split(b"?")[0],
        "root_path": "",
        "query_string": request.url.query,
        "headers": [(name.lower(), value) for name, value in request.headers.raw],
        "server": (request.url.host, request.url.port),
        "client": ("127.0.0.1", 1),
    }
