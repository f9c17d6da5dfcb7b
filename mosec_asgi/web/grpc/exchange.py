"""One request by gRPC and its answer: the third sink, beside `web.asgi` and `web.direct`.

A message is a body, the metadata are the headers, the deadline is the request's timeout. So endpoints, calls, metrics
and limits are those of every other request. A call that is cancelled, by its client or by its deadline, cancels the
coroutine which serves it, and that drops its calls.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from time import perf_counter
from typing import Any, NoReturn, Protocol

import grpc

from mosec_asgi.errors import CANCELLED, CLIENT_LEFT, NO_ROOM, Failure
from mosec_asgi.messages import OK, Chunk, Credit, Outcome
from mosec_asgi.web import access
from mosec_asgi.web.exchange import LARGE_BODY, Exchange, Route, Shared, StreamForm
from mosec_asgi.web.responses import Headers, Response
from mosec_asgi.web.spans import About

TIMEOUT = b"x-request-timeout"
# Seconds of a deadline; beyond it there is none.
_LONGEST = 1e9
_CODES = {
    HTTPStatus.BAD_REQUEST: grpc.StatusCode.INVALID_ARGUMENT,
    HTTPStatus.UNAUTHORIZED: grpc.StatusCode.UNAUTHENTICATED,
    HTTPStatus.FORBIDDEN: grpc.StatusCode.PERMISSION_DENIED,
    HTTPStatus.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    HTTPStatus.METHOD_NOT_ALLOWED: grpc.StatusCode.UNIMPLEMENTED,
    HTTPStatus.REQUEST_TIMEOUT: grpc.StatusCode.DEADLINE_EXCEEDED,
    HTTPStatus.CONFLICT: grpc.StatusCode.ABORTED,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: grpc.StatusCode.RESOURCE_EXHAUSTED,
    HTTPStatus.UNPROCESSABLE_ENTITY: grpc.StatusCode.INVALID_ARGUMENT,
    HTTPStatus.TOO_MANY_REQUESTS: grpc.StatusCode.RESOURCE_EXHAUSTED,
    CANCELLED: grpc.StatusCode.CANCELLED,
    HTTPStatus.INTERNAL_SERVER_ERROR: grpc.StatusCode.INTERNAL,
    HTTPStatus.NOT_IMPLEMENTED: grpc.StatusCode.UNIMPLEMENTED,
    HTTPStatus.SERVICE_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT: grpc.StatusCode.DEADLINE_EXCEEDED,
}


class Context(Protocol):
    """A call, as `grpc.aio` has it; see `grpc.aio.ServicerContext`."""

    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]] | None:
        """Return what came with the call."""

    def set_trailing_metadata(self, metadata: Sequence[tuple[str, str]]) -> None:
        """Set what goes out with the call's status."""

    def time_remaining(self) -> float | None:
        """Return the seconds until the deadline; None where there is none."""

    def peer(self) -> str:
        """Return the client's end of the connection."""

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Have a function called when the call has ended, its answer taken."""

    async def read(self) -> Any:
        """Return the next message, or `grpc.aio.EOF`."""

    async def write(self, message: bytes) -> None:
        """Send a message; return once there is room for the next."""

    async def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        """End the call with a status, by an exception."""


def code_of(status: int) -> grpc.StatusCode:
    """Return gRPC's code for a status of HTTP."""
    rest = grpc.StatusCode.FAILED_PRECONDITION if status < HTTPStatus.INTERNAL_SERVER_ERROR else grpc.StatusCode.UNKNOWN
    return _CODES.get(status, rest)


def headers_in(metadata: Sequence[tuple[str, str | bytes]] | None) -> dict[bytes, bytes]:
    """Return metadata as headers; gRPC has read what is UTF-8 as such."""
    return {name.encode(): value.encode() if isinstance(value, str) else value for name, value in metadata or ()}


def headers_of(context: Context) -> Headers:
    """Return the metadata of a call as headers; its deadline as that by which a request gives its timeout."""
    headers = headers_in(context.invocation_metadata())
    left = context.time_remaining()
    if left is not None and left < _LONGEST:
        milliseconds = max(1, int(left * 1000))
        own = headers.get(TIMEOUT)
        # One that is no number is told of in the usual words.
        if own is None or (own.isdigit() and len(own) < 19 and int(own) > milliseconds):
            headers[TIMEOUT] = b"%d" % milliseconds
    return headers


class GrpcExchange(Exchange):
    """A request, and its answer: a whole one, or a stream of messages."""

    def __init__(self, route: Route, shared: Shared, headers: Headers, body: bytes) -> None:
        """Begin with a request that has come."""
        super().__init__(shared)
        self.route = route
        self.headers = headers
        self.body = body
        self.request_id = shared.request_ids.of(headers)
        self._began = perf_counter()
        self._response: Response | None = None
        self._woken = asyncio.Event()
        self._form: StreamForm | None = None
        self._chunks: deque[Chunk] = deque()
        self._failure: Failure | None = None

    async def respond(self, write: Callable[[bytes], Awaitable[None]] | None = None) -> Response | None:
        """Have the request run; return its whole answer, or None after a stream.

        Args:
            write: sends a message of a stream; returns once there is room for the next. None where the answer is whole.
        """
        status = CANCELLED
        try:
            self._submit()
            if write is not None and self._response is None:
                self._form = self.route.stream(self)
            if self._form is not None and write is not None:
                status = await self._follow(self._form, write)
                return None
            response = await self._whole()
            status = response.status
            return response
        finally:
            # If anything has ended this early, such as the client's leaving, the calls are dropped.
            self.leave()
            if self.held:
                self.release()
            self._count(status)

    def _submit(self) -> None:
        refusal = self.admit() if self.route.admits else None
        if refusal is not None:
            self.answer(refusal)
        elif len(self.body) > LARGE_BODY and not self.hold(len(self.body)):
            self.refuse(NO_ROOM)
        else:
            self.submit()
        self.body = b""

    async def _whole(self) -> Response:
        while self._response is None:
            await self._woken.wait()
        return self._response

    async def _follow(self, form: StreamForm, write: Callable[[bytes], Awaitable[None]]) -> int:
        """Send the events of a stream as they come; return the status with which it has ended."""
        while True:
            self._woken.clear()
            while self._chunks:
                chunk = self._chunks.popleft()
                if message := form.chunk(chunk):
                    await write(message)
                self.shared.engine.credit(Credit(chunk.call_id, len(chunk.payload)))
            if self._response is not None and not self._chunks:
                break
            await self._woken.wait()
        failure = self._failure
        last = form.end() if failure is None else form.failure(failure, begun=True)
        if last:
            await write(last)
        return OK if failure is None else failure.code

    @property
    def about(self) -> About:
        """What the request's span says of it."""
        return About(self.route.path, "http", "", perf_counter() - self._began)

    def _count(self, status: int) -> None:
        seconds = perf_counter() - self._began
        if status != CANCELLED:
            # As on the other ways: what nobody was answered is no answer.
            self.shared.metrics.answered(self.route.path, status, seconds)
        if self.span is not None:
            self.end_span(status)
        if self.shared.logged:
            access.log_end("POST", self.route.path, status, self.request_id, seconds)

    # -- as the caller of its calls ----------------------------------------------------------------------------------

    def streamed(self, chunk: Chunk) -> None:
        """Take a piece of a stream."""
        if self._form is None:
            super().streamed(chunk)
        else:
            self._chunks.append(chunk)
            self._woken.set()
            if self.span is not None:
                self.span.events += 1

    def concluded(self, outcomes: Sequence[Outcome]) -> None:
        """Answer, or end the stream."""
        if self._form is None:
            super().concluded(outcomes)
            return
        self._failure = next((outcome.failure for outcome in outcomes if outcome.code != OK), None)
        self.answer(Response(OK, (), b""))

    def abandoned(self) -> None:
        """Wake the coroutine that waits: a call was cancelled."""
        self._failure = CLIENT_LEFT
        self.answer(Response(CANCELLED, (), CLIENT_LEFT.text.encode()))

    def answer(self, response: Response) -> None:
        """Keep the answer for the coroutine that waits."""
        self._response = response
        self._woken.set()
