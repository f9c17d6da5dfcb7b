"""The way through ASGI of a request whose answer may be a stream; see `asgi`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence

from starlette.types import Receive, Scope, Send

from mosec_asgi import log
from mosec_asgi.errors import Failure
from mosec_asgi.messages import OK, Chunk, Outcome, StageTime
from mosec_asgi.web import server_timing
from mosec_asgi.web.asgi import AsgiExchange, AsgiRoute
from mosec_asgi.web.body import ClientLeft
from mosec_asgi.web.exchange import StreamForm
from mosec_asgi.web.stream import Stream

logger = log.internal_logger(__name__)


class StreamExchange(AsgiExchange):
    """A request whose answer may be a stream."""

    _stream: Stream | None = None
    _form: StreamForm | None = None
    _has_head = False
    # Of the first piece.
    _times: Sequence[StageTime] = ()

    def open(self, form: StreamForm) -> None:
        """Take a stream for an answer."""
        self._form = form
        self._stream = Stream(form, self._send_piece, self.shared.engine)

    def close(self) -> None:
        """Drop the stream: it and this object refer to each other, and would keep unsent data in memory."""
        self._stream = None

    # -- as the caller of its calls ----------------------------------------------------------------------------------

    def streamed(self, chunk: Chunk) -> None:
        """Take a piece of a stream."""
        if self._stream is None:
            super().streamed(chunk)
        else:
            if chunk.times and not self._times:
                self._times = chunk.times
            if self.span is not None:
                self.span.events += 1
            self._stream.feed(chunk)

    def concluded(self, outcomes: Sequence[Outcome]) -> None:
        """Answer, or end the stream."""
        if self._stream is None:
            super().concluded(outcomes)
        else:
            self._stream.end(outcomes)

    def abandoned(self) -> None:
        """End the stream, or wake the coroutine that waits: there is nobody to answer."""
        if self._stream is None:
            super().abandoned()
        else:
            self._stream.end(())

    # -- sending -----------------------------------------------------------------------------------------------------

    async def send_head(self, form: StreamForm | None) -> None:
        """Send the head of a stream's answer, and nothing of a stream."""
        self.count(OK)
        self._form = form
        await self._send_piece(b"", False)

    async def follow(self) -> None:
        """Send a stream to its end, or wait for a whole answer; return at once if the client has left."""
        stream = self._stream
        if stream is None:
            self.waiter = asyncio.get_running_loop().create_future()
            await self.waiter
            return
        assert self._form is not None
        try:
            outcomes = await stream.follow()
            if not outcomes:
                return
            failure = next((outcome.failure for outcome in outcomes if outcome.code != OK), None)
            if failure is None:
                self.count(OK)
                await stream.write(self._form.end, more_body=False)
                return
            last = self._form.failure(failure, begun=stream.begun)
            if last is not None:
                self.count(int(failure.code))
                await stream.write(last, more_body=False)
            elif not stream.begun:
                self.response = server_timing.added(self.route.refuse(self, failure), outcomes, self.traceparent)
            else:
                self.count(int(failure.code))
                self.shared.ration.log(
                    logging.WARNING,
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
            headers = [*self._form.headers, *self._common]
            if self._times:
                headers.append(server_timing.header([self._times], self.traceparent))
            await self._send({"type": "http.response.start", "status": OK, "headers": headers})
        await self._send({"type": "http.response.body", "body": piece, "more_body": more})


class StreamRoute(AsgiRoute):
    """The ASGI app of a route whose answers may be streams."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        exchange = StreamExchange(self.route, self._shared, scope, send)
        try:
            try:
                body = await self._body(exchange, receive)
            except ClientLeft:
                return
            if isinstance(body, Failure):
                self._refuse(exchange, body, receive)
            elif exchange.method == "HEAD":
                # Without a run of the model, whose events nobody would be sent.
                with contextlib.suppress(OSError):
                    await exchange.send_head(self.route.stream(exchange))
                return
            else:
                exchange.body = body
                exchange.submit()
                # `submit` never answers before it has returned: there is an answer only if nothing was submitted.
                if exchange.response is None:
                    await self._follow(exchange, receive)
            await exchange.send_response()
        finally:
            if exchange.held:
                exchange.release()
            if exchange.span is not None:
                exchange.end_span(exchange.span.status)

    async def _follow(self, exchange: StreamExchange, receive: Receive) -> None:
        """Send a stream, or wait for a whole answer."""
        try:
            form = self.route.stream(exchange)
            if form is not None:
                exchange.open(form)
            self._watch.add(exchange, receive)
            # A server may raise an `OSError` when the app sends to a client that has left (ASGI 2.4).
            with contextlib.suppress(OSError):
                await exchange.follow()
        finally:
            self._watch.discard(exchange)
            # If anything has ended this early, the calls are dropped; what has its outcome stays.
            exchange.leave()
            exchange.close()
