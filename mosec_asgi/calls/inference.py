"""`infer` and `stream`: calls of objects to an engine, from coroutines on its event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Mapping
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

from mosec_asgi import call_order
from mosec_asgi.batching.engine import Engine
from mosec_asgi.batching.future import FutureOutcome
from mosec_asgi.calls.objects import Objects, value_of
from mosec_asgi.calls.routes import CallRoute, found
from mosec_asgi.calls.streams import EventStream, StreamCaller, end_span
from mosec_asgi.errors import CANCELLED, CallError, raised
from mosec_asgi.messages import OK, Call, Outcome, drop_all, tuple_new
from mosec_asgi.observing.metrics import ServiceMetrics
from mosec_asgi.request import Request
from mosec_asgi.web.exchange import RequestIds

if TYPE_CHECKING:
    from mosec_asgi.observing.tracing import RequestSpan, Tracing

# As good as no limit.
_MOST_MILLISECONDS = 1e15
NO_HEADERS: Mapping[bytes, bytes] = {}


class Inference:
    """Makes calls of objects.

    Attributes:
        engine: runs them.
        routes: that can be called, by path.
    """

    def __init__(
        self,
        engine: Engine,
        routes: Mapping[str, CallRoute],
        objects: Objects,
        metrics: ServiceMetrics,
        loop: asyncio.AbstractEventLoop,
        tracing: Tracing | None = None,
    ) -> None:
        """Bind to an engine.

        Args:
            engine: runs the calls.
            routes: that can be called, by path.
            objects: pickles items.
            metrics: what to count into.
            loop: on which it is called.
            tracing: makes the spans of calls by `infer` and `stream`.
        """
        self.engine = engine
        self.routes = routes
        self._objects = objects
        self._metrics = metrics
        self._ids = RequestIds()
        self._new_id = engine.new_id
        self._loop = loop
        self._tracing = tracing

    async def infer(
        self,
        item: Any,
        route: str,
        timeout: float | None = None,
        priority: int = 0,
        key: str = "",
        tenant: str = "",
        request_id: str | None = None,
    ) -> Any:
        """Return what a route's last worker makes of an item; see `Server.infer`."""
        where = self.routes.get(route)
        if where is None or where.streams:
            where = found(self.routes, route, streams=False)
        began = perf_counter()
        call = self.call(item, where, timeout, priority, key, tenant, request_id)
        span = None
        if self._tracing is not None and (span := self._span("infer", call, where)) is not None:
            call = call._replace(trace=span.trace)
        caller = _ResultCaller(self._loop)
        self.engine.submit(call, caller)
        try:
            outcome = await caller.future
        except asyncio.CancelledError:
            self._leave(call, caller, span)
            raise
        except GeneratorExit:
            # No task waits for it: it is closed by hand, or has been dropped.
            self.drop_soon(partial(self._leave, call, caller, span))
            raise
        if span is not None:
            end_span(span, outcome.code)
        return self.result(outcome, where, began)

    def _leave(self, call: Call, caller: _ResultCaller, span: RequestSpan | None) -> None:
        self.engine.cancel(call.id)
        caller.drop()
        end_span(span, CANCELLED)

    def _span(self, name: str, call: Call, where: CallRoute) -> RequestSpan | None:
        """Begin the span of a call, where it is traced: a child of the one that is current here."""
        assert self._tracing is not None
        parent = self._tracing.parent(NO_HEADERS)
        if parent is None:
            return None
        attributes = {"mosec.route": where.path, "mosec.request_id": call.request_id}
        return self._tracing.begin(f"{name} {where.path}", parent, attributes, call.request_id, serves=False)

    def stream(
        self,
        item: Any,
        route: str,
        timeout: float | None = None,
        priority: int = 0,
        key: str = "",
        tenant: str = "",
        request_id: str | None = None,
    ) -> AsyncGenerator[Any, None]:
        """Return the events that a route's last worker makes of an item; see `Server.stream`."""
        where = found(self.routes, route, streams=True)
        _seconds(timeout)
        make = partial(self.call, item, where, timeout, priority, key, tenant, request_id)
        return EventStream(self, where, make)

    def submit_stream(self, call: Call, where: CallRoute, caller: StreamCaller) -> RequestSpan | None:
        """Have a call run that is answered by a stream; return its span, where it is traced."""
        span = None
        if self._tracing is not None and (span := self._span("stream", call, where)) is not None:
            call = call._replace(trace=span.trace)
        self.engine.submit(call, caller)
        return span

    def drop_soon(self, drop: Callable[[], object]) -> None:
        """Have something dropped in a moment: the garbage collector may ask for it, in any thread and at any time."""
        # Where the loop is closed, its calls are gone.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(drop)

    def call(
        self,
        item: Any,
        where: CallRoute,
        timeout: float | None = None,
        priority: int = 0,
        key: str = "",
        tenant: str = "",
        request_id: str | None = None,
    ) -> Call:
        """Return the call for an item, which is to be submitted: its payload may be held.

        Raises:
            CallError: `timeout` is no time, `priority` no priority, or a text is none.
            EncodingError: the item cannot be pickled.
            MosecError: the first worker's class refuses it by its cost or key.
        """
        seconds = None if timeout is None else _seconds(timeout)
        if priority or key or tenant:
            priority, key, tenant = call_order.checked(priority, key, tenant)
        cost = 1
        if where.labels is not None:
            cost, own = where.labels.of(item)
            key = key or own
        name = self._ids.of(NO_HEADERS if request_id is None else {b"x-request-id": _id_bytes(request_id)})
        payload = self._objects.payload(item, apart=where.apart)
        request = Request(name, where.path) if where.takes_request else None
        fields = (
            self._new_id(), where.place, payload, name, seconds, False, True, priority, key, request, "", cost, tenant,
        )  # fmt: skip
        return tuple_new(Call, fields)

    @staticmethod
    def check_timeout(timeout: float | None) -> None:
        """Refuse what is no time in milliseconds.

        Raises:
            CallError: `timeout` is no time.
        """
        _seconds(timeout)

    @staticmethod
    def seconds(where: CallRoute, timeout: float | None) -> float:
        """Return how many seconds a call to a route may take; `timeout` is in milliseconds.

        Raises:
            CallError: `timeout` is no time.
        """
        seconds = _seconds(timeout)
        return where.timeout if seconds is None else min(seconds, where.timeout)

    def result(self, outcome: Outcome, where: CallRoute, began: float) -> Any:
        """Return the result that an outcome holds.

        Args:
            outcome: of a call to `where`.
            where: the route.
            began: when it was made, in seconds of `time.perf_counter`.

        Raises:
            MosecError: it is a failure.
        """
        self.count(outcome.code, where, began)
        if outcome.code == OK:
            return value_of(outcome.payload, where.egress)
        failure = outcome.failure
        assert failure is not None
        raise raised(failure)

    def count(self, code: int, where: CallRoute, began: float) -> None:
        """Count an answer, as the web counts its own."""
        if code != CANCELLED:
            self._metrics.answered(where.path, code, perf_counter() - began)


class _ResultCaller(FutureOutcome):
    """Waits for a result, which may be held in memory that must be given back."""

    __slots__ = ()

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.future = loop.create_future()

    def settled(self, outcome: Outcome) -> None:
        """Give the outcome to whoever waits; drop it where nobody does."""
        future = self.future
        if future.done():
            drop_all((outcome.payload,))
        else:
            future.set_result(outcome)

    def drop(self) -> None:
        """Drop an outcome that has come and will not be read."""
        if self.future.done() and not self.future.cancelled():
            drop_all((self.future.result().payload,))


def _seconds(timeout: float | None) -> float | None:
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout >= 1:
        raise CallError(f"timeout is a number of milliseconds, at least 1, not {timeout!r}; 3 seconds are 3000")
    # An integer may be larger than any float. A float of numpy's would not be read as one by an engine elsewhere.
    return float(min(timeout, _MOST_MILLISECONDS) / 1000)


def _id_bytes(request_id: str) -> bytes:
    """Return a request's id as a client would send it; one that is no printable ASCII is not taken, as there."""
    if not isinstance(request_id, str):
        raise CallError(f"request_id is a text, not {request_id!r}; use str() for a number")
    return request_id.encode(errors="surrogatepass")
