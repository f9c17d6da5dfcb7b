"""The stream of a call: its events, as coroutines take them.

It is no async generator. Before Python 3.13 one does not hear that a coroutine which waits for its next event is closed
by hand, or dropped; it cannot even be closed then.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from mosec_asgi.batching.engine import Engine
from mosec_asgi.calls.objects import value_of
from mosec_asgi.calls.routes import CallRoute
from mosec_asgi.errors import CANCELLED, raised
from mosec_asgi.messages import OK, Call, Chunk, Credit, Outcome

if TYPE_CHECKING:
    from mosec_asgi.observing.tracing import RequestSpan


class Calls(Protocol):
    """What makes the calls; see `inference.Inference`."""

    engine: Engine

    def submit_stream(self, call: Call, where: CallRoute, caller: StreamCaller) -> RequestSpan | None:
        """Have a call run; return its span, where it is traced."""

    def count(self, code: int, where: CallRoute, began: float) -> None:
        """Count an answer."""

    def drop_soon(self, drop: Callable[[], object]) -> None:
        """Have something dropped on the event loop; may be called in any thread."""


class EventStream(AsyncGenerator[Any, None]):
    """Makes a call when its first event is asked for, and drops it when it is closed, or dropped, before its end."""

    def __init__(self, calls: Calls, where: CallRoute, make: Callable[[], Call]) -> None:
        """Prepare.

        Args:
            calls: submits the call.
            where: the route.
            make: returns the call.
        """
        self._calls = calls
        self._where = where
        self._make = make
        self._running: _Running | None = None
        self._awaited = self._ended = False

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> Any:
        """Return the next event."""
        if self._awaited:
            raise RuntimeError("the next event of this stream is awaited already")
        if self._ended:
            raise StopAsyncIteration
        self._awaited = True
        try:
            running = self._running
            if running is None:
                running = self._running = _Running(self._calls, self._where, self._make())
            return await running.next_event()
        except GeneratorExit:
            # No task waits for it: see the module's text.
            self._end(soon=True)
            raise
        except BaseException:
            self._end()
            raise
        finally:
            self._awaited = False

    async def asend(self, value: None) -> Any:
        """Return the next event; there is nothing to send."""
        return await self.__anext__()

    async def athrow(self, kind: Any, value: Any = None, where: TracebackType | None = None, /) -> Any:
        """End the stream, and raise."""
        self._expect_not_awaited()
        self._end()
        raise (kind if value is None else value)

    async def aclose(self) -> None:
        """End the stream, in the worker as well."""
        self._expect_not_awaited()
        self._end()

    def __del__(self) -> None:
        self._end(soon=True)

    def _expect_not_awaited(self) -> None:
        if self._awaited:
            raise RuntimeError("the next event of this stream is awaited; cancel the task that waits for it")

    def _end(self, *, soon: bool = False) -> None:
        """Drop the call, if it runs; `soon` where the garbage collector may have a hand in it."""
        running, self._running = self._running, None
        self._ended = True
        if running is None:
            return
        if soon:
            self._calls.drop_soon(running.end)
        else:
            running.end()


class _Running:
    """The call of a stream that is submitted."""

    def __init__(self, calls: Calls, where: CallRoute, call: Call) -> None:
        self._began = perf_counter()
        self._calls = calls
        self._where = where
        self._call_id = call.id
        self._caller = StreamCaller()
        self._span = calls.submit_stream(call, where, self._caller)

    async def next_event(self) -> Any:
        """Return the next event, or raise how the stream has ended."""
        caller = self._caller
        while True:
            if caller.chunks:
                payload = caller.chunks.popleft()
                if self._span is not None:
                    self._span.events += 1
                self._calls.engine.credit(Credit(self._call_id, len(payload)))
                return value_of(payload, self._where.egress)
            if caller.outcome is not None:
                self._calls.count(caller.outcome.code, self._where, self._began)
                if (failure := caller.outcome.failure) is not None:
                    raise raised(failure)
                raise StopAsyncIteration
            await caller.news()

    def end(self) -> None:
        """Drop the call, unless it has ended."""
        code = CANCELLED if self._caller.outcome is None else self._caller.outcome.code
        if self._caller.outcome is None:
            self._calls.engine.cancel(self._call_id)
        end_span(self._span, code)


class StreamCaller:
    """Waits for the pieces of a stream.

    Attributes:
        chunks: those that have come, and have not been taken.
        outcome: how the stream has ended.
    """

    def __init__(self) -> None:
        self.chunks: deque[bytes] = deque()
        self.outcome: Outcome | None = None
        self._news: asyncio.Future[None] | None = None

    def settled(self, outcome: Outcome) -> None:
        """Note the end."""
        self.outcome = outcome
        self._wake()

    def streamed(self, chunk: Chunk) -> None:
        """Take a piece."""
        self.chunks.append(chunk.payload)
        self._wake()

    async def news(self) -> None:
        """Wait until something has come."""
        self._news = asyncio.get_running_loop().create_future()
        try:
            await self._news
        finally:
            self._news = None

    def _wake(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)


def end_span(span: RequestSpan | None, code: int) -> None:
    """End the span of a call, which has failed with whatever is no result: its caller is in this program."""
    if span is not None:
        span.status = code
        span.end(least_error=OK + 1, attribute="mosec.code")
