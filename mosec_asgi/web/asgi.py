"""The way of a request through ASGI: plain ASGI, no Starlette object, no task and no timer for a request.

It works under any ASGI server; under `run()` it serves the requests that `direct` does not take. Here are the routes
whose answers are whole; `asgi_streams` has those whose answers may be streams.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Mapping, Sequence
from time import perf_counter
from typing import Any

from starlette.types import Receive, Scope, Send

from mosec_asgi.errors import NO_ROOM, Failure
from mosec_asgi.messages import OK
from mosec_asgi.web import compression
from mosec_asgi.web.body import BodyReader, ClientLeft
from mosec_asgi.web.disconnect import DisconnectWatch
from mosec_asgi.web.exchange import Exchange, Route, Shared
from mosec_asgi.web.lingering import lingering_send
from mosec_asgi.web.responses import Header, Response, headers_of
from mosec_asgi.web.spans import About


class AsgiExchange(Exchange):
    """A request that came through ASGI, and its answer.

    Attributes:
        response: a whole answer, once there is one.
        unread: the request is refused, and a part of its body may still come.
        waiter: wakes the coroutine that waits for the answer.
        began: when the head of the request had come, by `perf_counter`.
    """

    response: Response | None
    unread = False
    waiter: asyncio.Future[None] | None = None

    # Sets what `Exchange` sets as well: to call that one would cost each request time.
    def __init__(self, route: Route, shared: Shared, scope: Scope, send: Send) -> None:
        """Begin with a request whose head has come."""
        self.began = perf_counter()
        self.shared = shared
        self.route = route
        self.method = scope["method"]
        self.headers = headers = dict(scope["headers"])
        self.request_id = shared.request_ids.of(headers)
        self._scope = scope
        self._send = send
        # Read several times: to find what stands in the class alone takes Python longer than to set it here.
        self.response = self.span = None
        self.held = 0

    # Read from the scope by the routes that ask for them.

    @property
    def path_params(self) -> Mapping[str, Any]:  # type: ignore[override]
        """The values in the path."""
        return self._scope.get("path_params") or {}

    @property
    def query(self) -> bytes:  # type: ignore[override]
        """The part of the path behind the question mark."""
        query: bytes = self._scope.get("query_string", b"")
        return query

    @property
    def context(self) -> Any:
        """What middleware has put into the scope's `state`."""
        return self._scope.get("state")

    @property
    def about(self) -> About:
        """What the request's span says of it."""
        scope = self._scope
        client = scope.get("client")
        return About(
            scope["path"], scope.get("scheme", "http"), client[0] if client else "", perf_counter() - self.began
        )

    def linger(self, receive: Receive) -> None:
        """Let the answer arrive though a part of the request is unread."""
        self._send = lingering_send(self._scope, receive, self._send)

    def abandoned(self) -> None:
        """Wake the coroutine that waits: there is nobody to answer."""
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    def answer(self, response: Response) -> None:
        """Keep the answer for the coroutine that waits."""
        self.response = response
        waiter = self.waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def send_response(self) -> None:
        """Send the answer, where there is one, in whatever form it needs; not to a client that has left."""
        response = self.response
        if response is None:
            return
        self.count(response.status)
        if self.shared.compressed and response.status == OK:
            response = await compression.packed(response, self.headers.get(b"accept-encoding"))
        with contextlib.suppress(OSError):
            await send_response(self._send, response, self._common, with_body=self.method != "HEAD")

    def count(self, status: int) -> None:
        """Count an answer."""
        self.shared.metrics.answered(self.route.path, status, perf_counter() - self.began)
        if self.span is not None:
            self.span.status = status

    @property
    def _common(self) -> list[Header]:
        """The headers that every answer has."""
        return [(b"x-request-id", self.request_id.encode()), self.shared.server]


class AsgiRoute:
    """The ASGI app of a route whose answers are whole."""

    def __init__(
        self,
        route: Route,
        shared: Shared,
        watch: DisconnectWatch[AsgiExchange],
        bodies: BodyReader,
        *,
        lingers: bool = False,
    ) -> None:
        """Bind a route to the service.

        Args:
            route: of a protocol.
            shared: what it has in common with the other routes.
            watch: notices clients that leave.
            bodies: reads the bodies of requests.
            lingers: see `App`.
        """
        self.route = route
        self._shared = shared
        self._watch = watch
        self._bodies = bodies
        self._lingers = lingers
        # The service's; see `BodyReader`.
        self._loop: asyncio.AbstractEventLoop | None = None

    # One coroutine for all but the body: each more costs a request its making, and a step at each of its turns.
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        shared = self._shared
        exchange = AsgiExchange(self.route, shared, scope, send)
        try:
            try:
                body = await self._body(exchange, receive)
            except ClientLeft:
                return
            if isinstance(body, Failure):
                self._refuse(exchange, body, receive)
            else:
                exchange.body = body
                exchange.submit()
                # `submit` never answers before it has returned: there is an answer only if nothing was submitted.
                if exchange.response is None:
                    loop = self._loop
                    if loop is None:
                        loop = self._loop = asyncio.get_running_loop()
                    waiter = exchange.waiter = loop.create_future()
                    self._watch.add(exchange, receive)
                    try:
                        await waiter
                    finally:
                        self._watch.discard(exchange)
                        if exchange.response is None:
                            # Something has ended this early.
                            exchange.leave()
            response = exchange.response
            if response is None or response.status != OK or shared.compressed or exchange.method == "HEAD":
                await exchange.send_response()
                return
            _, headers, body = response
            # The usual answer, without a coroutine of its own, nor a call of `count`.
            shared.metrics.answered(self.route.path, OK, perf_counter() - exchange.began)
            if exchange.span is not None:
                exchange.span.status = OK
            length = (b"content-length", b"%d" % len(body))
            headers = [*headers, length, (b"x-request-id", exchange.request_id.encode()), shared.server]
            try:
                await send({"type": "http.response.start", "status": OK, "headers": headers})
                await send({"type": "http.response.body", "body": body})
            except OSError:
                # A server may raise this when the app sends to a client that has left (ASGI 2.4).
                return
        finally:
            if exchange.held:
                exchange.release()
            if exchange.span is not None:
                exchange.end_span(exchange.span.status)

    # Not a coroutine, but a function that returns one.
    def _body(self, exchange: AsgiExchange, receive: Receive) -> Coroutine[Any, Any, bytes | Failure]:
        """Return what reads a request's body, unpacked; it raises `ClientLeft` if the client has left."""
        if b"content-encoding" in exchange.headers:
            return self._encoded_body(exchange, receive)
        return self._bodies.read(exchange, receive)

    def _refuse(self, exchange: AsgiExchange, failure: Failure, receive: Receive) -> None:
        """Answer a request whose body was not read to its end, or is not what it should be."""
        if self._lingers and exchange.unread:
            exchange.linger(receive)
        exchange.refuse(failure)

    async def _encoded_body(self, exchange: AsgiExchange, receive: Receive) -> bytes | Failure:
        """Return the body of a request with a Content-Encoding, unpacked, or what is wrong with it."""
        shared = exchange.shared
        name = exchange.headers[b"content-encoding"].decode("latin-1").strip().lower()
        if name in ("", "identity"):
            return await self._bodies.read(exchange, receive)
        if not (shared.compressed and name in compression.supported()):
            exchange.unread = True
            return compression.unknown(name, enabled=shared.compressed)
        body = await self._bodies.read(exchange, receive)
        if isinstance(body, Failure) or not body:
            # An empty body is not compressed, whatever its encoding says.
            return body
        unpacked = await compression.decompress(body, name, shared.limit)
        if isinstance(unpacked, Failure):
            return unpacked
        return unpacked if exchange.hold(len(unpacked)) else NO_ROOM


async def send_response(send: Send, response: Response, common: Sequence[Header], *, with_body: bool = True) -> None:
    """Send a whole answer; `common` are the headers that every answer has. That to HEAD goes without its body."""
    await send({"type": "http.response.start", "status": response.status, "headers": headers_of(response, common)})
    await send({"type": "http.response.body", "body": response.body if with_body else b""})
