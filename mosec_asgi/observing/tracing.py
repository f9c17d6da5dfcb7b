"""Spans of requests, of their stages and of `forward`: OpenTelemetry's, all made in the server.

    POST /inference                  the request; child of the client's `traceparent`, or of a span around it
      ├─ Preprocess_1                a stage, from its queue to its answer
      │    └─ forward                as the worker has measured it
      └─ Inference_2
           └─ forward                of a batch: linked to the spans of all its requests at this stage

A worker needs no SDK: it measures, and gets the stage's `traceparent`. A batch has several traces. The `forward` of the
first of its traced requests stands for it, and links to all of them; each of the others has a `forward` with the same
times, and a link to that one.

What is not sampled has no span, an empty `Call.trace`, and no state here. Times are seconds of the service's clock, and
become those of the world by one difference for all spans.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.trace.span import TraceState

from mosec_asgi import log
from mosec_asgi.errors import CANCELLED
from mosec_asgi.messages import OK, REPLY, ForwardTime, Results
from mosec_asgi.observing.observer import ObservedTask, StageObserver
from mosec_asgi.observing.provider import Opened
from mosec_asgi.observing.sampling import Foretold
from mosec_asgi.observing.unheard import install, unheard

logger = log.internal_logger(__name__)

# Requests whose traces log lines can still name, at most.
MOST_REMEMBERED = 4096
# Seconds after which the clocks are compared again: that of the world may be set.
COMPARE_SECONDS = 60.0
# Characters of a failure's text that a span shows.
MOST_TEXT = 256
LEFT = "client_left"
_ERROR = Status(StatusCode.ERROR)


class Tracing:
    """The spans of one service."""

    def __init__(self, opened: Opened, clock: Callable[[], float], wall: Callable[[], int] = time.time_ns) -> None:
        """Begin with no spans.

        Args:
            opened: the tracer.
            clock: of the service, in seconds.
            wall: of the world, in nanoseconds since 1970.
        """
        self._opened = opened
        self._tracer = opened.tracer
        self._told = False
        self.clock = clock
        self._wall = wall
        self._foretold = Foretold(opened.tracer)
        install()
        # Headers from which a parent may be read.
        self._fields = [(name.lower().encode(), name) for name in propagate.get_global_textmap().fields]
        self._difference = 0
        self._compared_at = float("-inf")
        self.visits: dict[int, _Visit] = {}
        self._traces: dict[str, str] = {}

    def close(self) -> None:
        """Send what is left; takes seconds where nobody takes it."""
        self._opened.close()

    def stage(self, name: str, *, batched: bool) -> StageTracing:
        """Return the observer of a stage; see `StageTracing`."""
        return StageTracing(self, name, batched=batched)

    # -- requests ----------------------------------------------------------------------------------------------------

    def parent(self, headers: Mapping[bytes, bytes]) -> Context | None:
        """Return where the span of a request belongs; None where the request will not be traced.

        It is the span that is current here, if there is one: the program's, or an instrumentation's. Else what the
        request's headers say. A request with neither begins a trace, and its span must be begun next.
        """
        try:
            return self._parent(headers)
        except Exception:
            self._fault()
            return None

    def _parent(self, headers: Mapping[bytes, bytes]) -> Context | None:
        current = trace.get_current_span()
        if current is not trace.INVALID_SPAN:
            context = trace.set_span_in_context(current, Context())
        else:
            for key, _ in self._fields:
                if key in headers:
                    break
            else:
                # The usual case, and nearly always that of a request that is not sampled.
                return None if self._foretold.drops_root() else Context()
            said = {name: headers[key].decode("latin-1") for key, name in self._fields if key in headers}
            with unheard():
                context = propagate.extract(said, Context())
        around = trace.get_current_span(context).get_span_context()
        if around.is_valid:
            dropped = self._foretold.follows and not around.trace_flags.sampled
        else:
            dropped = self._foretold.drops_root()
        return None if dropped else context

    def begin(
        self,
        name: str,
        parent: Context,
        attributes: Mapping[str, Any],
        request_id: str,
        *,
        serves: bool,
        seconds: float = 0.0,
    ) -> RequestSpan | None:
        """Begin the span of a request; None where it is not sampled.

        Args:
            name: of the span.
            parent: see `parent`.
            attributes: of the span.
            request_id: what the logs and the client call the request.
            serves: it came from elsewhere, and no span around it says so.
            seconds: that it has been here.
        """
        serves = serves and not _is_local(parent)
        kind = SpanKind.SERVER if serves else SpanKind.INTERNAL
        span = self.start(name, parent, kind, attributes, self.clock() - seconds)
        if not span.is_recording():
            return None
        context = span.get_span_context()
        self._remember(request_id, f"{context.trace_id:032x}")
        return RequestSpan(self, span)

    # What the program has added to OpenTelemetry (samplers, processors, propagators) may raise. No request is to fail
    # of it, nor is the engine, in the middle of whose work spans are made.

    def start(
        self,
        name: str,
        parent: Context,
        kind: SpanKind,
        attributes: Mapping[str, Any],
        at: float,
        links: Sequence[Link] = (),
    ) -> Span:
        """Begin a span at a time of the service's clock; where that fails, return one that records nothing."""
        try:
            return self._tracer.start_span(name, parent, kind, attributes, links, start_time=self.nanoseconds(at))
        except Exception:
            self._fault()
            return trace.INVALID_SPAN

    def end(self, span: Span, at: float) -> None:
        """End a span at a time of the service's clock."""
        try:
            span.end(self.nanoseconds(at))
        except Exception:
            self._fault()

    def _fault(self) -> None:
        if not self._told:
            self._told = True
            logger.exception("a span was lost, and others may be: what OpenTelemetry was given has raised (told once)")

    def traceparent(self, call_id: int) -> str:
        """Return that of a call's stage; empty where it is not traced."""
        visit = self.visits.get(call_id)
        return "" if visit is None else _traceparent(visit.span.get_span_context())

    def trace_of(self, request_id: str) -> str:
        """Return the id of the trace of one of the last requests; of the current span, where no request is named.

        Empty where it is not traced.
        """
        if request_id:
            return self._traces.get(request_id, "")
        context = trace.get_current_span().get_span_context()
        return f"{context.trace_id:032x}" if context.trace_flags.sampled else ""

    def _remember(self, request_id: str, trace_id: str) -> None:
        traces = self._traces
        # The newest stand last.
        traces.pop(request_id, None)
        traces[request_id] = trace_id
        if len(traces) > MOST_REMEMBERED:
            del traces[next(iter(traces))]

    def nanoseconds(self, at: float) -> int:
        """Return a time of the service's clock as one of the world's."""
        if at - self._compared_at > COMPARE_SECONDS:
            self._compared_at = now = self.clock()
            self._difference = self._wall() - int(now * 1e9)
        return int(at * 1e9) + self._difference


class RequestSpan:
    """The span of a request that is traced.

    Attributes:
        trace: for its calls; see `Call`.
        traceparent: of the span.
        status: of its answer, once there is one.
        events: of a stream that is its answer, so far.
    """

    __slots__ = ("_span", "_tracing", "events", "status", "trace", "traceparent")

    def __init__(self, tracing: Tracing, span: Span) -> None:
        self._tracing = tracing
        self._span = span
        context = span.get_span_context()
        self.traceparent = _traceparent(context)
        state = context.trace_state.to_header()
        self.trace = f"{self.traceparent} {state}" if state else self.traceparent
        self.status = 0
        self.events = 0

    def end(self, *, least_error: int = 500, attribute: str = "http.response.status_code") -> None:
        """End it.

        Args:
            least_error: the least status that is an error of whoever the span is about: of a server those from 500 on,
                by OpenTelemetry's conventions; the others are their clients'.
            attribute: that names the status.
        """
        span, status = self._span, self.status
        said: dict[str, str | int] = {}
        if self.events:
            said["mosec.stream.events"] = self.events
        if not status or status == CANCELLED:
            said["error.type"] = LEFT
            span.set_status(Status(StatusCode.ERROR, "the client left before it was answered"))
        else:
            said[attribute] = status
            if status >= least_error:
                said["error.type"] = str(status)
                span.set_status(_ERROR)
        span.set_attributes(said)
        self._tracing.end(span, self._tracing.clock())


class _Batch:
    """Tasks that a worker was sent together.

    Attributes:
        size: of the batch that they are, traced or not; 1 where there are no batches.
        spans: of the traced ones at this stage.
        forward: the span that stands for the batch, once it is there.
    """

    __slots__ = ("forward", "size", "spans")

    def __init__(self, size: int) -> None:
        self.size = size
        self.spans: list[SpanContext] = []
        self.forward: SpanContext | None = None


class _Visit:
    """A traced task at a stage.

    Attributes:
        span: of the stage.
        worker_id: that it was sent to last.
        batch: in which; None before.
        attempts: workers that it was sent to, one after the other.
        events: of its stream, so far.
    """

    __slots__ = ("attempts", "batch", "events", "span", "worker_id")

    def __init__(self, span: Span) -> None:
        self.span = span
        self.worker_id = 0
        self.batch: _Batch | None = None
        self.attempts = 0
        self.events = 0


class StageTracing(StageObserver):
    """Makes the spans of one stage."""

    def __init__(self, tracing: Tracing, stage: str, *, batched: bool) -> None:
        """Begin with no task.

        Args:
            tracing: of the service.
            stage: its name.
            batched: what a worker is sent together is a batch.
        """
        self._tracing = tracing
        self._batched = batched
        self._stage = stage
        # Of all stages: a task is at one of them.
        self._visits = tracing.visits

    def arrived(self, task: ObservedTask, now: float) -> None:
        """Begin the span of a traced task."""
        if task.trace:
            attributes = {"mosec.stage": self._stage, "mosec.request_id": task.request_id}
            span = self._tracing.start(self._stage, _context_of(task.trace), SpanKind.INTERNAL, attributes, now)
            self._visits[task.id] = _Visit(span)

    def joined(self, task: ObservedTask, flight: ObservedTask, now: float) -> None:
        """Note for whose answer a task waits: its own span has no `forward`."""
        visit = self._visits.get(task.id)
        if visit is not None:
            visit.span.set_attribute("mosec.coalesced_with", flight.request_id)

    def sent(self, worker_id: int, tasks: Sequence[ObservedTask], now: float) -> None:
        """Note who runs with whom."""
        visits = self._visits
        if not visits:
            return
        batch = None
        for task in tasks:
            visit = visits.get(task.id)
            if visit is not None:
                if batch is None:
                    batch = _Batch(len(tasks) if self._batched else 1)
                visit.worker_id, visit.batch = worker_id, batch
                visit.attempts += 1
                batch.spans.append(visit.span.get_span_context())

    def came(self, worker_id: int, tasks: Sequence[ObservedTask], results: Results, now: float) -> None:
        """End the spans of tasks that a worker has answered."""
        visits = self._visits
        if not visits:
            return
        for place, task in enumerate(tasks):
            visit = visits.pop(task.id, None)
            if visit is not None:
                if results.forwards:
                    self._forward(visit, task, results.forwards[place], now)
                payload = results.payloads[place]
                self._end(visit, task, results.codes[place], payload if isinstance(payload, bytes) else b"", now)

    def lost(self, worker_id: int, tasks: Sequence[ObservedTask], now: float) -> None:
        """Note that a worker has ended with tasks."""
        for task in tasks:
            visit = self._visits.get(task.id)
            if visit is not None:
                visit.span.add_event("worker ended", {"mosec.worker": worker_id}, self._tracing.nanoseconds(now))

    def chunk(self, task: ObservedTask, since: float | None, now: float) -> None:
        """Count an event of a stream."""
        visit = self._visits.get(task.id)
        if visit is not None:
            visit.events += 1
            if since is None:
                visit.span.add_event("first event", timestamp=self._tracing.nanoseconds(now))

    def settled(self, task: ObservedTask, code: int, now: float) -> None:
        """End the span of a task that its worker has not answered."""
        visit = self._visits.pop(task.id, None)
        if visit is not None:
            self._end(visit, task, code, b"", now)

    def _end(self, visit: _Visit, task: ObservedTask, code: int, text: bytes, now: float) -> None:
        span = visit.span
        began = task.began if visit.batch is not None else now
        said: dict[str, str | int | float] = {
            "mosec.queue_seconds": began - task.queued,
            "mosec.attempts": visit.attempts,
        }
        if visit.batch is not None:
            said |= {"mosec.batch.size": visit.batch.size, "mosec.worker": visit.worker_id}
        if visit.events:
            said["mosec.stream.events"] = visit.events
        if code == CANCELLED:
            said["error.type"] = LEFT
            span.set_status(Status(StatusCode.ERROR, "nobody waits for it any more"))
        elif code not in (OK, REPLY):
            said["error.type"] = str(code)
            span.set_status(Status(StatusCode.ERROR, text[:MOST_TEXT].decode(errors="replace") or None))
        # At once: the SDK takes a lock for each.
        span.set_attributes(said)
        self._tracing.end(span, now)

    def _forward(self, visit: _Visit, task: ObservedTask, measured: ForwardTime, now: float) -> None:
        """Make the span of `forward`, which is over."""
        batch = visit.batch
        if not measured.calls or batch is None:
            return
        # By the worker's clock it may seem to be before the task was sent, or after its answer came.
        began = min(now, max(task.began, now - measured.ago))
        ended = min(now, began + measured.seconds)
        attributes: dict[str, str | int] = {
            "mosec.stage": self._stage,
            "mosec.worker": visit.worker_id,
            "mosec.batch.size": batch.size,
        }
        if measured.calls > 1:
            attributes["mosec.forward.calls"] = measured.calls
        links: list[Link] = []
        if batch.size > 1:
            links = [Link(each) for each in (batch.spans if batch.forward is None else [batch.forward])]
        parent = trace.set_span_in_context(visit.span, Context())
        span = self._tracing.start("forward", parent, SpanKind.INTERNAL, attributes, began, links)
        if batch.forward is None:
            batch.forward = span.get_span_context()
        self._tracing.end(span, ended)


def _is_local(context: Context) -> bool:
    """Whether a context is that of a span of this process."""
    around = trace.get_current_span(context).get_span_context()
    return around.is_valid and not around.is_remote


def _traceparent(context: SpanContext) -> str:
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags & 0xFF:02x}"


def _context_of(written: str) -> Context:
    """Return the context of `Call.trace`."""
    traceparent, _, state = written.partition(" ")
    _, trace_id, span_id, flags = traceparent.split("-")
    context = SpanContext(
        int(trace_id, 16),
        int(span_id, 16),
        is_remote=False,
        trace_flags=TraceFlags(int(flags, 16)),
        trace_state=TraceState.from_header([state]) if state else TraceState(),
    )
    return trace.set_span_in_context(NonRecordingSpan(context), Context())
