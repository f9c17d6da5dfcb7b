"""Request -> task -> stream: the answer of a route whose last worker streams.

The worker has given its chunks their form; here they are bytes that are passed on as they come. The service brings
them, the client takes them as fast as it can, and all that has gathered in between goes out as one message. What the
client has taken is reported to the service, which lets no more than its bound gather.

How a failure is told depends on what the chunks are. Events have one for it, so that the head of the response may go
out before anything has happened. Among raw chunks there is no place for it: the head waits for the first of them, a
failure before is an ordinary answer, and after it only a response that breaks off tells that this was not all.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

from starlette.types import Receive, Scope, Send

from mosec_asgi import log
from mosec_asgi.batching.engine import CLIENT_LEFT, Engine, Outcome
from mosec_asgi.errors import Failure
from mosec_asgi.streaming import is_event_stream
from mosec_asgi.web.body import ClientLeft
from mosec_asgi.web.request import Headers, Shared, timeout_of
from mosec_asgi.web.responses import Header, error_event, send_failure

# mosec's: an empty comment, and often enough for clients with a short read timeout (httpx: 5 s).
KEEP_ALIVE = b":\n\n"
KEEP_ALIVE_SECONDS = 3.0
# The second is for nginx, which collects a response before it passes it on.
UNBUFFERED = [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]

logger = log.internal_logger(__name__)


class StreamEndpoint:
    """The ASGI app of a route whose results are streams."""

    def __init__(
        self, path: str, route: int, content_type: str, shared: Shared, *, keep_alive: float = KEEP_ALIVE_SECONDS
    ) -> None:
        """Bind a route to the service.

        Args:
            path: the route, as the metrics name it.
            route: its place in the service's list.
            content_type: of a stream; that of an event stream says that the chunks are events.
            shared: what it has in common with the other routes.
            keep_alive: seconds without an event until a comment is sent in its place.
        """
        self._path = path
        self._route = route
        self._content_type = (b"content-type", content_type.encode("latin-1"))
        self._has_events = is_event_stream(content_type)
        self._keep_alive = keep_alive if self._has_events else None
        self._service = shared.service
        self._metrics = shared.metrics
        self._bodies = shared.bodies
        self._request_ids = shared.request_ids
        self._watch = shared.watch
        self._server = shared.server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        began = time.perf_counter()
        headers = dict(scope["headers"])
        stream = _Stream(send, self._request_ids.of(headers), self._server, self._content_type, self._service)
        try:
            task_id = await self._submit(headers, receive, stream)
        except ClientLeft:
            return
        if isinstance(task_id, Failure):
            self._metrics.answered(self._path, task_id.code)
            await stream.refuse(task_id)
            return
        self._watch.add(task_id, receive)
        try:
            # A server may raise it on sending to a client that has left (ASGI 2.4).
            with contextlib.suppress(OSError):
                outcome = await stream.follow(task_id, self._keep_alive)
                if isinstance(outcome, Failure):
                    await self._fail(stream, outcome)
                else:
                    self._metrics.answered(self._path, 200)
                    self._metrics.duration.observe(time.perf_counter() - began)
                    await stream.write(more_body=False)
        finally:
            stream.close()
            self._watch.discard(task_id)
            # Whatever has ended this before its time; a task that has its outcome is left alone.
            self._service.cancel(task_id)

    async def _submit(self, headers: Headers, receive: Receive, stream: _Stream) -> int | Failure:
        """Read a request and have it admitted, or return what speaks against it."""
        body = await self._bodies.read(headers, receive)
        if isinstance(body, Failure):
            return body
        timeout = timeout_of(headers)
        if isinstance(timeout, Failure):
            return timeout
        return self._service.submit(self._route, body, stream.request_id, stream.end, timeout, on_chunk=stream.feed)

    async def _fail(self, stream: _Stream, failure: Failure) -> None:
        """Tell the client what went wrong, as well as what it has already got allows."""
        if failure is CLIENT_LEFT:
            return
        self._metrics.answered(self._path, failure.code)
        if self._has_events:
            await stream.write(error_event(failure), more_body=False)
        elif not stream.begun:
            await stream.refuse(failure)
        else:
            logger.warning(
                "the response is broken off, because its stream has failed: %s",
                failure.text,
                extra={"request_id": stream.request_id},
            )
            # Nothing after this: a server breaks off a response whose app returns before its end.
            await stream.write()


class _Stream:
    """One stream between the service, which feeds it, and its client.

    Attributes:
        request_id: what the logs call it.
    """

    def __init__(self, send: Send, request_id: str, server: Header, content_type: Header, service: Engine) -> None:
        self.request_id = request_id
        self._send = send
        self._common = [(b"x-request-id", request_id.encode()), server]
        self._content_type = content_type
        self._service = service
        self._task_id = 0
        self._has_head = False
        self._chunks: list[bytes] = []
        self._outcome: Outcome | None = None
        self._woken = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._written_at = 0.0
        self._is_idle = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def begun(self) -> bool:
        """Whether there has been a chunk."""
        return self._has_head or bool(self._chunks)

    def feed(self, chunk: bytes) -> None:
        """Take the next chunk from the service."""
        self._chunks.append(chunk)
        self._woken.set()

    def end(self, outcome: Outcome) -> None:
        """Take the outcome, after the last chunk, from the service."""
        self._outcome = outcome
        self._woken.set()

    async def refuse(self, failure: Failure) -> None:
        """Send an ordinary answer in place of a stream."""
        await send_failure(self._send, failure, self._common)

    async def follow(self, task_id: int, keep_alive: float | None) -> Outcome:
        """Write the chunks of a task as they come, until its outcome is there.

        Args:
            task_id: its number.
            keep_alive: seconds without a chunk until a comment is written; None for never.

        Returns:
            the outcome; chunks that came together with it are left to the next `write`.
        """
        self._task_id = task_id
        if keep_alive is not None:
            self._written_at = self._loop.time()
            self._look(keep_alive)
        while self._outcome is None:
            if self._chunks:
                await self.write()
            elif self._is_idle:
                await self.write(KEEP_ALIVE)
            else:
                self._woken.clear()
                await self._woken.wait()
        return self._outcome

    async def write(self, more: bytes = b"", *, more_body: bool = True) -> None:
        """Send the chunks that are there as one message, with `more` behind them.

        Args:
            more: what is no chunk.
            more_body: the response is not at its end.
        """
        chunks = b"".join(self._chunks)
        self._chunks.clear()
        if not self._has_head:
            self._has_head = True
            headers = [self._content_type, *UNBUFFERED, *self._common]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._send({"type": "http.response.body", "body": chunks + more, "more_body": more_body})
        self._written_at = self._loop.time()
        self._is_idle = False
        if chunks:
            self._service.taken(self._task_id, len(chunks))

    def close(self) -> None:
        """End the keep-alives."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self, keep_alive: float) -> None:
        """Wake the writer where nothing was written for `keep_alive` seconds, and look again when that can be so next.

        So a chunk costs the timer nothing but a note of the time.
        """
        now = self._loop.time()
        if now - self._written_at >= keep_alive:
            self._is_idle = True
            self._woken.set()
            self._timer = self._loop.call_later(keep_alive, self._look, keep_alive)
        else:
            self._timer = self._loop.call_at(self._written_at + keep_alive, self._look, keep_alive)
