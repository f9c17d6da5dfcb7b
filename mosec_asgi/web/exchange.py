"""One request and its answer, whichever way they come and go, and however the client speaks.

    sink ── Request ──► route (of a protocol) ── Calls ──► engine
    sink ◄─ Response ── route ◄──────────────── Outcomes ── engine

A **route** belongs to a protocol (`web.protocols`): it makes calls of a request, and an answer of their outcomes; it
chooses the form of both, of failures, and of what a stream is made of. A **sink** (`asgi`, `direct`) reads a request
and sends its answer. The exchange stands between them, and knows neither a form nor a socket. A further protocol is a
further kind of route, and nothing here changes for it.

An exchange is itself the caller of its calls, so that a request costs no future and no bound method.
"""

from __future__ import annotations

import abc
import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from mosec_asgi import log
from mosec_asgi.batching.engine import Engine
from mosec_asgi.errors import CANCELLED, Failure, describe
from mosec_asgi.messages import Call, Chunk, Outcome
from mosec_asgi.observing.metrics import ServiceMetrics
from mosec_asgi.web.budget import SMALL, Budget
from mosec_asgi.web.responses import Header, Headers, Response

MAX_REQUEST_ID = 128
NO_BUDGET = 1 << 62
# Bytes of a body that comes with one read from which it counts.
LARGE_BODY = SMALL

logger = log.internal_logger(__name__)


class Request(Protocol):
    """A request, as its route reads it.

    Attributes:
        path_params: what stands in the path for the names in the route's own.
        query: what stands behind the path's question mark.
        headers: by name, in lower case.
        body: whole, and unpacked; kept until there are calls, and no longer.
        request_id: what the logs and the client call it.
        state: the route's own, to keep what it has read until it answers.
    """

    path_params: Mapping[str, Any]
    query: bytes
    headers: Headers
    body: bytes
    request_id: str
    state: Any


class StreamForm(Protocol):
    """The form of an answer that is a stream. May keep what one stream needs; a new one is asked for each request.

    Attributes:
        headers: of the answer, which has the status 200.
        comment: bytes that mean nothing, to be sent in a silence; None where there are none.
    """

    headers: Sequence[Header]
    comment: bytes | None

    def chunk(self, chunk: Chunk) -> bytes:
        """Return a piece of a call's stream in the form in which it goes out."""

    def end(self) -> bytes:
        """Return what stands at the end of a stream that has ended well."""

    def failure(self, failure: Failure, *, begun: bool) -> bytes | None:
        """Return what tells the client that its stream has failed, as the last piece of it.

        Args:
            failure: what went wrong.
            begun: a part of the answer has been sent or is ready to be.

        Returns:
            None where a stream has no place for it: the answer is an ordinary one where nothing has begun, and is
            broken off where something has.
        """


class Route(Protocol):
    """A route of a protocol. Holds nothing of a request.

    Attributes:
        path: as the metrics name it, and as requests ask for it.
        streams: an answer may be a stream.
    """

    path: str
    streams: bool

    def calls(self, request: Request) -> Sequence[Call] | Failure:
        """Return what to ask of the engine, at least one call, or what is wrong with the request."""

    def respond(self, request: Request, outcomes: Sequence[Outcome]) -> Response:
        """Return the answer: what has become of the calls, in their order. None of them was cancelled."""

    def refuse(self, request: Request, failure: Failure) -> Response:
        """Return the answer to a request that has failed before there were calls, or before its stream has begun."""

    def stream(self, request: Request) -> StreamForm | None:
        """Return the form of the stream that answers the request, whose calls were asked; None for a whole answer."""


class RequestIds:
    """Gives requests their ids: the client's, or 16 random hex digits for the process and a count.

    The latter are unique without a random number for each.
    """

    def __init__(self) -> None:
        self._prefix = os.urandom(8).hex()
        self._numbers = itertools.count(1)

    def of(self, headers: Headers) -> str:
        """Return the client's request id; one of 32 hex digits where it is missing, too long or no printable ASCII."""
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
        compressed: read packed bodies, and pack results for clients that accept it.
        logged: log a line for each request.
        budget: bytes of all bodies together, from when they are seen to be large, or slow to arrive, to their answers.
    """

    engine: Engine
    metrics: ServiceMetrics
    request_ids: RequestIds
    server: Header
    limit: int
    compressed: bool = False
    logged: bool = False
    budget: Budget = field(default_factory=lambda: Budget(NO_BUDGET))


class Exchange(abc.ABC):
    """A request, and the caller that hears what becomes of its calls; see `Request` for what a route reads of it.

    A sink is a subclass, which sends what it is given to `answer`. It may use one exchange for one request after the
    other, once the one before is answered.

    Attributes:
        route: says what to ask, and how to answer.
        held: bytes of the service's budget that the body takes.
    """

    route: Route

    def __init__(self, shared: Shared) -> None:
        """Begin with no request."""
        self.shared = shared
        self.path_params: Mapping[str, Any] = {}
        self.query = b""
        self.headers: Headers = {}
        self.body = b""
        self.request_id = ""
        self.state: Any = None
        # The call that runs, where it is the only one; and all of them, where there are several.
        self._call_id: int | None = None
        self.held = 0
        self._several: _Several | None = None

    def submit(self) -> None:
        """Have the request run: its body is complete."""
        try:
            calls = self.route.calls(self)
            if isinstance(calls, Failure):
                self.refuse(calls)
            elif len(calls) == 1:
                call = calls[0]
                self._call_id = call.id
                self.shared.engine.submit(call, self)
            else:
                self._several = _Several(calls)
                for call in calls:
                    self.shared.engine.submit(call, self)
        except Exception as error:
            # Whoever has called, a parser above all, would take it for a fault of the client's.
            self.leave()
            self.refuse(self._fault(error))

    def settled(self, outcome: Outcome) -> None:
        """Take what has become of a call; see `batching.engine.Caller`."""
        several = self._several
        if several is None:
            self._call_id = None
            if outcome.code == CANCELLED:
                self.abandoned()
            else:
                self.concluded((outcome,))
        elif several.take(outcome):
            self._several = None
            outcomes = several.outcomes
            if any(each.code == CANCELLED for each in outcomes):
                self.abandoned()
            else:
                self.concluded(outcomes)

    def streamed(self, chunk: Chunk) -> None:
        """Refuse a stream; a sink that can send one takes it."""
        raise TypeError(f"call {chunk.call_id} is answered by a stream, and its route has none")

    def concluded(self, outcomes: Sequence[Outcome]) -> None:
        """Answer: all calls have their outcomes, and none was cancelled."""
        try:
            response = self.route.respond(self, outcomes)
        except Exception as error:
            response = self.route.refuse(self, self._fault(error))
        self.answer(response)

    def abandoned(self) -> None:
        """End without an answer: nobody waits for one."""
        return

    def refuse(self, failure: Failure) -> None:
        """Answer with a failure that is no outcome of a call."""
        self.answer(self.route.refuse(self, failure))

    @abc.abstractmethod
    def answer(self, response: Response) -> None:
        """Send an answer: the only one, and nothing where nobody waits for it any more."""

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
        several = self._several
        if several is not None:
            for open_id in several.open():
                cancel(open_id)

    def _fault(self, error: Exception) -> Failure:
        """Return what the client is told of an exception, and log one that is a fault of ours."""
        failure = describe(error)
        if failure.code >= 500:
            logger.exception("a request was not answered", extra={"request_id": self.request_id})
        return failure


class _Several:
    """The calls of a request that asks for more than one."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self._settled: dict[int, Outcome | None] = {call.id: None for call in calls}

    def take(self, outcome: Outcome) -> bool:
        """Take an outcome; whether it was the last."""
        self._settled[outcome.call_id] = outcome
        return not self.open()

    def open(self) -> list[int]:
        """Return the numbers of the calls that have no outcome yet."""
        return [call_id for call_id, outcome in self._settled.items() if outcome is None]

    @property
    def outcomes(self) -> list[Outcome]:
        """The outcomes that there are, in the order of the calls."""
        return [outcome for outcome in self._settled.values() if outcome is not None]
