"""One request and its answer, for every transport and every protocol.

    sink ── Request ──► route (of a protocol) ── Calls ──► engine
    sink ◄─ Response ── route ◄──────────────── Outcomes ── engine

A **route** belongs to a protocol (`web.protocols`): it turns a request into calls, and their outcomes into an answer;
it chooses the form of answers, of failures, and of the pieces of a stream. A **sink** (`asgi`, `direct`) reads a
request and sends its answer. The exchange stands between them, and knows neither forms nor sockets. A new protocol is a
new kind of route, and nothing here changes for it.

An exchange is itself the caller of its calls, so that a request costs no future and no bound method.
"""

from __future__ import annotations

import abc
import itertools
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from mosec_asgi import log
from mosec_asgi.batching.engine import Engine
from mosec_asgi.errors import CANCELLED, Failure, describe
from mosec_asgi.lazy_timer import later
from mosec_asgi.messages import Call, Chunk, Outcome
from mosec_asgi.observing.metrics import ServiceMetrics
from mosec_asgi.ration import Ration
from mosec_asgi.web import server_timing, spans
from mosec_asgi.web.budget import SMALL, Budget
from mosec_asgi.web.limits import DEFAULT, Limits
from mosec_asgi.web.responses import Header, Headers, Response
from mosec_asgi.web.several import CallsInTurn, Several
from mosec_asgi.web.spans import About

if TYPE_CHECKING:
    from mosec_asgi.observing.tracing import RequestSpan, Tracing
    from mosec_asgi.web.keys import Keys

MAX_REQUEST_ID = 128
NO_BUDGET = 1 << 62
# Bytes of a body that comes with one read from which it counts.
LARGE_BODY = SMALL

logger = log.internal_logger(__name__)


class Request(Protocol):
    """A request, as its route reads it.

    Attributes:
        path_params: the values in the path, by the names in the route's path.
        query: the part of the path behind the question mark.
        headers: by name, in lower case.
        body: whole, and unpacked; kept until the calls are made.
        request_id: what the logs and the client call it.
        method: of HTTP.
        context: what middleware has put into the scope's `state`; None where there is none.
        state: for the route, to keep what it has read until it answers.
    """

    method: str
    headers: Headers
    body: bytes
    request_id: str
    state: Any

    @property
    def path_params(self) -> Mapping[str, Any]:
        """See above."""

    @property
    def query(self) -> bytes:
        """See above."""

    @property
    def context(self) -> Any:
        """See above."""


class StreamForm(Protocol):
    """The form of an answer that is a stream. May keep what one stream needs; a new one is asked for each request.

    Attributes:
        headers: of the answer, which has the status 200.
        comment: bytes without a meaning, sent when a stream is silent; None where the form has none.
    """

    headers: Sequence[Header]
    comment: bytes | None

    def chunk(self, chunk: Chunk) -> bytes:
        """Return a piece of a call's stream in the form in which it goes out."""

    def end(self) -> bytes:
        """Return the last piece of a stream that has ended well."""

    def failure(self, failure: Failure, *, begun: bool) -> bytes | None:
        """Return the last piece of a stream that has failed, which tells the client so.

        Args:
            failure: what went wrong.
            begun: a part of the answer has been sent or is ready to be.

        Returns:
            None where a stream cannot say so: then the answer is an ordinary one if nothing has begun, and is broken
            off if something has.
        """


class Route(Protocol):
    """A route of a protocol. Holds nothing of a request.

    Attributes:
        path: as the metrics name it, and as requests ask for it.
        streams: an answer may be a stream.
        methods: of HTTP, that it takes, HEAD and OPTIONS not among them.
        takes_request: it reads more of a request than its headers and its body.
        admits: it may answer a head, so that the body is not read.
    """

    path: str
    streams: bool
    methods: Sequence[str]
    takes_request: bool
    admits: bool

    def admit(self, request: Request) -> Response | None:
        """Return the answer to a request whose head has come; None to read on. Asked where `admits` says so."""

    def calls(self, request: Request) -> Sequence[Call] | CallsInTurn | Response | Failure:
        """Return the calls to submit, at least one; or what is wrong with the request, or an answer without any call.

        Of several that are `CallsInTurn`, only some are in the engine at one time; see `several`.
        """

    def respond(self, request: Request, outcomes: Sequence[Outcome]) -> Response:
        """Return the answer, given the outcomes of the calls in their order. None of the calls was cancelled.

        Where one of several has failed, its outcome is the only one.
        """

    def gather(self, request: Request, chunk: Chunk) -> None:
        """Take a piece of a stream that is answered as a whole; raise `TypeError` where there is no such answer."""

    def refuse(self, request: Request, failure: Failure) -> Response:
        """Return the answer to a request that has failed before its calls were made, or before its stream has begun."""

    def stream(self, request: Request) -> StreamForm | None:
        """Return the form of the stream that answers a request with submitted calls; None for a whole answer."""


class RequestIds:
    """Gives requests their ids: the client's, or 16 random hex digits for the process and a count.

    The service's ids are unique without a random number for each.
    """

    def __init__(self) -> None:
        self._prefix = os.urandom(8).hex()
        self._numbers = itertools.count(1)

    def of(self, headers: Headers) -> str:
        """Return the client's request id, or 32 hex digits if that is missing, too long or not printable ASCII."""
        header = headers.get(b"x-request-id")
        if header is not None:
            text = header.decode("latin-1").strip()
            if 0 < len(text) <= MAX_REQUEST_ID and text.isascii() and text.isprintable():
                return text
        return f"{self._prefix}{next(self._numbers):016x}"


@dataclass(frozen=True, slots=True)
class Shared:
    """What all exchanges of a service have in common.

    Attributes:
        engine: runs the calls.
        metrics: what to count into.
        request_ids: gives requests their ids.
        server: the header that names the server.
        limit: bytes of a body, unpacked.
        compressed: read compressed bodies, and compress results for clients that accept it.
        logged: log a line for each request.
        budget: bytes of all bodies that are large or slow to arrive, together, until their answers.
        tracing: makes the spans of requests; None where none are traced.
        keys: API keys, of which a request must bring one; None where everybody may ask.
        limits: what a client may hold, in bytes and seconds.
        ration: logs what clients cause.
    """

    engine: Engine
    metrics: ServiceMetrics
    request_ids: RequestIds
    server: Header
    limit: int
    compressed: bool = False
    logged: bool = False
    budget: Budget = field(default_factory=lambda: Budget(NO_BUDGET))
    tracing: Tracing | None = None
    keys: Keys | None = None
    limits: Limits = DEFAULT
    ration: Ration = field(default_factory=lambda: Ration(logger, later))


class Exchange(abc.ABC):
    """A request, and the caller of its calls; see `Request` for what a route reads of it.

    A sink is a subclass, which sends what it is given to `answer`. It may use one exchange for one request after the
    other, once the one before is answered.

    Attributes:
        route: makes the calls and the answer.
        held: bytes of the service's budget that the body takes.
        span: of the request, where it is traced.
    """

    route: Route
    # For requests that come another way than through ASGI, and for an exchange without a request: they are
    # not set in each, which would cost each request time.
    method = "POST"
    context: Any = None
    path_params: Mapping[str, Any] = MappingProxyType({})
    query = b""
    headers: Headers = MappingProxyType({})
    body = b""
    request_id = ""
    state: Any = None
    held = 0
    span: RequestSpan | None = None
    # The call that runs, if there is only one; all calls, if there are several.
    _call_id: int | None = None
    _several: Several | None = None

    def __init__(self, shared: Shared) -> None:
        """Begin with no request."""
        self.shared = shared

    def admit(self) -> Response | None:
        """Return the answer to a request of which only the head has come; None to read its body."""
        try:
            return self.route.admit(self)
        except BaseException as error:
            return self.route.refuse(self, self.fault(error))

    def submit(self) -> None:
        """Have the request run: its body is complete."""
        shared = self.shared
        try:
            if shared.tracing is not None:
                self._begin_span(shared.tracing)
            calls = self.route.calls(self)
            if isinstance(calls, Failure):
                self.refuse(calls)
            elif len(calls) == 1:
                call: Call = calls[0]  # type: ignore[assignment]  # a `Response` has more than one part
                self._call_id = call.id
                if self.span is not None:
                    call = call._replace(trace=self.span.trace)
                shared.engine.submit(call, self)
            elif isinstance(calls, Response):
                self.answer(calls)
            else:
                self._several = several = Several(
                    calls, shared.engine, self, "" if self.span is None else self.span.trace
                )
                several.begin()
        except BaseException as error:
            # The caller of this method, such as the parser, would take the exception for a fault of the client.
            self.leave()
            self.refuse(self.fault(error))

    def settled(self, outcome: Outcome) -> None:
        """Take what has become of a call; see `batching.engine.Caller`."""
        self._call_id = None
        if outcome.code == CANCELLED:
            self.abandoned()
        else:
            self.concluded((outcome,))

    def answered(self, outcomes: Sequence[Outcome]) -> None:
        """Take what has become of several calls; see `several.Asker`."""
        self._several = None
        self.concluded(outcomes)

    def streamed(self, chunk: Chunk) -> None:
        """Have the route take a piece of a stream; a sink that can send one overrides this."""
        self.route.gather(self, chunk)

    def concluded(self, outcomes: Sequence[Outcome]) -> None:
        """Answer: all calls have their outcomes, and none was cancelled."""
        try:
            response = self.route.respond(self, outcomes)
        except BaseException as error:
            response = self.route.refuse(self, self.fault(error))
        if outcomes[0].times:
            response = self.timed(response, outcomes)
        self.answer(response)

    def timed(self, response: Response, outcomes: Sequence[Outcome]) -> Response:
        """Return an answer that says what its time went into; a sink with a shorter way to say so overrides this."""
        return server_timing.added(response, outcomes, self.traceparent)

    def abandoned(self) -> None:
        """End without an answer: nobody waits for one."""
        return

    def refuse(self, failure: Failure) -> None:
        """Answer with a failure that is not the outcome of a call."""
        if self.shared.tracing is not None and self.span is None:
            self._begin_span(self.shared.tracing)
        self.answer(self.route.refuse(self, failure))

    @abc.abstractmethod
    def answer(self, response: Response) -> None:
        """Send the only answer to the request, or nothing if the client has left."""

    @property
    @abc.abstractmethod
    def about(self) -> About:
        """What the request's span says of it, and how long it has been here."""

    @property
    def traceparent(self) -> str:
        """Of the request's span; empty where it is not traced."""
        return "" if self.span is None else self.span.traceparent

    def _begin_span(self, tracing: Tracing) -> None:
        parent = tracing.parent(self.headers)
        if parent is not None:
            about = self.about
            name, attributes = f"{self.method} {self.route.path}", spans.attributes(self, self.route.path, about)
            self.span = tracing.begin(name, parent, attributes, self.request_id, serves=True, seconds=about.seconds)

    def end_span(self, status: int) -> None:
        """End the request's span, if there is one: the answer has gone out, or nobody waits for one."""
        span, self.span = self.span, None
        if span is not None:
            span.status = status
            span.end()

    def hold(self, size: int) -> bool:
        """Take room for all `size` bytes of the body that have come; whether there was any."""
        if not self.shared.budget.take(size - self.held, self.held):
            return False
        self.held = size
        return True

    def release(self) -> None:
        """Give back the room that the body has taken."""
        held, self.held = self.held, 0
        self.shared.budget.give(held)

    def leave(self) -> None:
        """Drop the calls that run: nobody waits for an answer any more."""
        cancel = self.shared.engine.cancel
        call_id, self._call_id = self._call_id, None
        if call_id is not None:
            cancel(call_id)
        several, self._several = self._several, None
        if several is not None:
            several.leave()

    def fault(self, error: BaseException) -> Failure:
        """Return what the client is told of an exception, and log it if it is a fault of the service.

        Whatever a route raises is the fault of its request: an endpoint of the user's, or a library, may raise what is
        no `Exception`, which would end the event loop, or leave the client and others without an answer.

        Raises:
            KeyboardInterrupt: it is one, which is no request's.
        """
        if isinstance(error, KeyboardInterrupt):
            raise error
        failure = describe(error)
        if failure.code >= 500:
            extra = {"request_id": self.request_id}
            self.shared.ration.fault(logging.ERROR, "a request was not answered", error=error, extra=extra)
        return failure
