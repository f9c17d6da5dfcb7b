"""The way of a request through ASGI: plain ASGI, no Starlette object, no task and no timer for a request.

It works under any ASGI server; under `run()` it serves the requests that `direct` does not take.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

from starlette.types import Receive, Scope, Send

from mosec_asgi import log
from mosec_asgi.errors import NO_ROOM, TOO_SLOW, Failure
from mosec_asgi.messages import OK, Chunk, Outcome
from mosec_asgi.web import compression
from mosec_asgi.web.body import ClientLeft, SlowSenders, read_body
from mosec_asgi.web.disconnect import DisconnectWatch
from mosec_asgi.web.exchange import Exchange, Route, Shared, StreamForm
from mosec_asgi.web.lingering import lingering_send
from mosec_asgi.web.responses import Header, Response, headers_of
from mosec_asgi.web.stream import KEEP_ALIVE_SECONDS, Stream

logger = log.internal_logger(__name__)


class AsgiRoute:
    """The ASGI app of a route."""

    def __init__(
        self,
        route: Route,
        shared: Shared,
        watch: DisconnectWatch[AsgiExchange],
        slow: SlowSenders,
        *,
        keep_alive: float = KEEP_ALIVE_SECONDS,
        lingers: bool = False,
    ) -> None:
        """Bind a route to the service.

        Args:
            route: of a protocol.
            shared: what it has in common with the other routes.
            watch: notices clients that leave.
            slow: stops reading bodies that do not arrive.
            keep_alive: see `Stream`.
            lingers: see `App`.
        """
        self.route = route
        self._shared = shared
        self._watch = watch
        self._slow = slow
        self._keep_alive = keep_alive
        self._lingers = lingers

    # One coroutine for it all: each more costs a request its making, and a step at each of its turns.
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        began = time.perf_counter()
        exchange = AsgiExchange(self.route, self._shared, scope, send)
        try:
            body: bytes | Failure
            self._slow.begin(exchange)
            try:
                body = await _body(exchange, receive)
            except ClientLeft:
                return
            except asyncio.CancelledError:
                if not self._slow.gave_up(exchange):
                    raise
                body = TOO_SLOW
            finally:
                self._slow.end(exchange)
            if isinstance(body, Failure):
                if self._lingers and exchange.unread:
                    exchange.linger(scope, receive)
                exchange.refuse(body)
            elif self.route.streams and exchange.method == "HEAD":
                # Without a run of the model, whose events nobody would be sent.
                with contextlib.suppress(OSError):
                    await exchange.send_head(self.route.stream(exchange), began)
                return
            else:
                exchange.body = body
                exchange.submit()
                # `submit` never answers before it has returned, so nothing has come yet.
                if self.route.streams and exchange.response is None:
                    form = self.route.stream(exchange)
                    if form is not None:
                        exchange.open(form, self._keep_alive)
            # A server may raise this when the app sends to a client that has left (ASGI 2.4).
            with contextlib.suppress(OSError):
                if exchange.response is None:
                    self._watch.add(exchange, receive)
                    try:
                        await exchange.follow(began)
                    finally:
                        self._watch.discard(exchange)
                        if exchange.response is None or self.route.streams:
                            # If anything has ended this early, the calls are dropped; what has its outcome stays.
                            exchange.leave()
                            exchange.close()
                if exchange.response is not None:
                    await exchange.send_response(exchange.response, began)
        finally:
            if exchange.held:
                exchange.release()


class AsgiExchange(Exchange):
    """A request that came through ASGI, and its answer.

    Attributes:
        response: a whole answer, once there is one.
        unread: the request is refused, and a part of its body may still come.
    """

    unread = False

    def __init__(self, route: Route, shared: Shared, scope: Scope, send: Send) -> None:
        """Begin with a request whose head has come."""
        super().__init__(shared)
        self.route = route
        self.method = scope["method"]
        self._scope = scope
        self.headers = dict(scope["headers"])
        self.request_id = shared.request_ids.of(self.headers)
        self.response: Response | None = None
        self._send = send
        self._has_head = False
        self._stream: Stream | None = None
        self._form: StreamForm | None = None
        self._waiter: asyncio.Future[None] | None = None

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

    def open(self, form: StreamForm, keep_alive: float) -> None:
        """Take a stream for an answer."""
        self._form = form
        self._stream = Stream(form, self._send_piece, self.shared.engine, keep_alive=keep_alive)

    def linger(self, scope: Scope, receive: Receive) -> None:
        """Let the answer arrive though a part of the request is unread."""
        self._send = lingering_send(scope, receive, self._send)

    # -- as the caller of its calls ----------------------------------------------------------------------------------

    def streamed(self, chunk: Chunk) -> None:
        """Take a piece of a stream."""
        if self._stream is None:
            super().streamed(chunk)
        else:
            self._stream.feed(chunk)

    def concluded(self, outcomes: Sequence[Outcome]) -> None:
        """Answer, or end the stream."""
        if self._stream is None:
            super().concluded(outcomes)
        else:
            self._stream.end(outcomes)

    def abandoned(self) -> None:
        """Wake the coroutine that waits in `follow`: there is nobody to answer."""
        self._wake()

    def answer(self, response: Response) -> None:
        """Keep the answer for `follow`."""
        self.response = response
        self._wake()

    def _wake(self) -> None:
        if self._stream is not None:
            self._stream.end(())
        elif self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # -- sending -----------------------------------------------------------------------------------------------------

    # Not a coroutine, as above.
    def follow(self, began: float) -> Awaitable[None]:
        """Return what waits for a whole answer, or sends a stream to its end; at once if the client has left."""
        if self._stream is None:
            self._waiter = asyncio.get_running_loop().create_future()
            return self._waiter
        return self._follow_stream(self._stream, began)

    def close(self) -> None:
        """Drop the stream: it and this object refer to each other, and would keep unsent data in memory."""
        self._stream = None

    # Not a coroutine, as above.
    def send_response(self, response: Response, began: float) -> Awaitable[None]:
        """Return what sends a whole answer."""
        self._count(response.status, began)
        if self.shared.compressed and response.status == OK:
            return self._send_packed(response)
        return self._send_whole(response)

    def _send_whole(self, response: Response) -> Awaitable[None]:
        common: list[Header] = [(b"x-request-id", self.request_id.encode()), self.shared.server]
        return send_response(self._send, response, common, with_body=self.method != "HEAD")

    async def _send_packed(self, response: Response) -> None:
        await self._send_whole(await compression.packed(response, self.headers.get(b"accept-encoding")))

    async def send_head(self, form: StreamForm | None, began: float) -> None:
        """Send the head of a stream's answer, and nothing of a stream."""
        self._count(OK, began)
        self._form = form
        await self._send_piece(b"", False)

    async def _follow_stream(self, stream: Stream, began: float) -> None:
        assert self._form is not None
        try:
            outcomes = await stream.follow()
            if not outcomes:
                return
            failure = next((outcome.failure for outcome in outcomes if outcome.code != OK), None)
            if failure is None:
                self._count(OK, began)
                await stream.write(self._form.end, more_body=False)
                return
            last = self._form.failure(failure, begun=stream.begun)
            if last is not None:
                self._count(int(failure.code), began)
                await stream.write(last, more_body=False)
            elif not stream.begun:
                self.response = self.route.refuse(self, failure)
            else:
                self._count(int(failure.code), began)
                logger.warning(
                    "the response is broken off, because its stream has failed: %s",
                    failure.text,
                    extra={"request_id": self.request_id},
                )
                # Nothing is sent after this: a server breaks off a response whose app returns before its end.
                await stream.write()
        finally:
            stream.close()

    async def _send_piece(self, piece: bytes, more: bool) -> None:
        if not self._has_head:
            self._has_head = True
            assert self._form is not None
            common = [(b"x-request-id", self.request_id.encode()), self.shared.server]
            headers = [*self._form.headers, *common]
            await self._send({"type": "http.response.start", "status": OK, "headers": headers})
        await self._send({"type": "http.response.body", "body": piece, "more_body": more})

    def _count(self, status: int, began: float) -> None:
        metrics = self.shared.metrics
        metrics.answered(self.route.path, status)
        if status == OK:
            metrics.duration.observe(time.perf_counter() - began)


async def send_response(send: Send, response: Response, common: Sequence[Header], *, with_body: bool = True) -> None:
    """Send a whole answer; `common` are the headers that every answer has. That to HEAD goes without its body."""
    await send({"type": "http.response.start", "status": response.status, "headers": headers_of(response, common)})
    await send({"type": "http.response.body", "body": response.body if with_body else b""})


# Not a coroutine of its own, see `App`.
def _body(exchange: AsgiExchange, receive: Receive) -> Awaitable[bytes | Failure]:
    """Return a request's body, unpacked, or what is wrong with it.

    Raises:
        ClientLeft: the client has left.
    """
    encoding = exchange.headers.get(b"content-encoding")
    return _plain_body(exchange, receive) if encoding is None else _encoded_body(exchange, receive, encoding)


def _plain_body(exchange: AsgiExchange, receive: Receive) -> Awaitable[bytes | Failure]:
    shared = exchange.shared
    free = shared.budget.limit - shared.budget.used
    return read_body(receive, exchange.headers.get(b"content-length"), shared.limit, exchange, free)


async def _encoded_body(exchange: AsgiExchange, receive: Receive, encoding: bytes) -> bytes | Failure:
    shared = exchange.shared
    name = encoding.decode("latin-1").strip().lower()
    if name in ("", "identity"):
        return await _plain_body(exchange, receive)
    if not (shared.compressed and name in compression.supported()):
        exchange.unread = True
        return compression.unknown(name, enabled=shared.compressed)
    body = await _plain_body(exchange, receive)
    if isinstance(body, Failure) or not body:
        # An empty body is not compressed, whatever its encoding says.
        return body
    unpacked = await compression.decompress(body, name, shared.limit)
    if isinstance(unpacked, Failure):
        return unpacked
    return unpacked if exchange.hold(len(unpacked)) else NO_ROOM
