"""The short way of a request: from the parser to the engine, and from its outcome to the socket, past ASGI.

Between a server and an app, ASGI costs a request a task of the event loop, a scope, an event, and three coroutines that
wait for each other. `make profile SCENARIO=asgi-echo` and `make profile SCENARIO=echo` print the server's processor
time for a request with and without ASGI. Where `run()` serves, both sides are ours, and a request of the usual kind (a
POST to a model's route, its length declared, its connection kept) needs none of these: it is submitted when its body is
complete, and its outcome is written as soon as it is there. All other requests go through uvicorn and the ASGI app,
which answer with the same headers: `uvicorn.http1` decides, from the head of the request alone.
"""

from __future__ import annotations

from collections.abc import Coroutine, Iterable, Sequence
from time import perf_counter
from typing import Any, Protocol

from mosec_asgi.batching.engine import TAKES_PIECES
from mosec_asgi.errors import CANCELLED, NO_ROOM, Failure
from mosec_asgi.ipc.arena import LARGE
from mosec_asgi.messages import OK, HeldPayload, LinkError, Outcome, Pieces
from mosec_asgi.web import access, compression, server_timing
from mosec_asgi.web.body_pieces import BodyPieces
from mosec_asgi.web.exchange import LARGE_BODY, Exchange, Route, Shared
from mosec_asgi.web.known_heads import KnownHeads
from mosec_asgi.web.responses import Header, Headers, Response, head_of, headers_of
from mosec_asgi.web.spans import About

CLOSE = (b"connection", b"close")


class DirectRoute:
    """A route whose requests may take the short way.

    Attributes:
        route: of a protocol, without streams.
        shared: what it has in common with other routes.
        takes_pieces: a large body is passed on in the pieces in which it came.
        takes_held: a large result is sent from where a worker has written it.
    """

    def __init__(self, route: Route, shared: Shared) -> None:
        """Bind to a route."""
        self.route = route
        self.shared = shared
        self.takes_pieces = getattr(route, "passes_body", False) and getattr(shared.engine, TAKES_PIECES, False)
        self.takes_held = getattr(route, "passes_result", False) and not shared.compressed
        self._limit = shared.limit
        self._budget = shared.budget
        # The head of a result's answer, with places for its length and its request id, and the headers from which it
        # was made: uvicorn makes new ones each second, for the date.
        self._head = b""
        self._own: Sequence[Header] | None = None
        self._headers: Sequence[Header] | None = None

    def takes(self, headers: Headers) -> bool:
        """Whether a body with these headers can be read here: its length is known, and it is not compressed."""
        length = headers.get(b"content-length")
        # A length with more digits than any limit is not converted.
        if length is None or len(length) >= 20 or b"content-encoding" in headers or b"expect" in headers:
            return False
        size = int(length)
        return size <= self._limit and self._budget.has_room(size)

    def head(self, response: Response, request_id: str, own: Sequence[Header]) -> bytes:
        """Return the head of an answer.

        Args:
            response: the answer.
            request_id: of the request.
            own: the connection's headers; a result's head is made again only when they have changed.
        """
        status, headers, body = response
        if status != OK:
            common = [(b"x-request-id", request_id.encode()), self.shared.server]
            return head_of(status, [*own, *headers_of(response, common)])
        if own is not self._own or headers is not self._headers:
            self._own, self._headers = own, headers
            self._head = self._template(own, headers)
        return self._head % (len(body), request_id.encode())

    def _template(self, own: Sequence[Header], headers: Sequence[Header]) -> bytes:
        fixed = [(name, value.replace(b"%", b"%%")) for name, value in (*own, *headers)]
        name, value = self.shared.server
        places = [(b"content-length", b"%d"), (b"x-request-id", b"%b"), (name, value.replace(b"%", b"%%"))]
        return head_of(OK, [*fixed, *places])


class DirectRoutes(dict[bytes, DirectRoute]):
    """The routes that may take the short way, by path as it stands in a request.

    Attributes:
        known: the heads of their requests that have come before.
    """

    def __init__(self, routes: Iterable[tuple[bytes, DirectRoute]] = ()) -> None:
        """Begin with no known head."""
        super().__init__(routes)
        self.known: KnownHeads[DirectRoute] = KnownHeads()


class Connection(Protocol):
    """What an exchange needs of its connection."""

    @property
    def scheme(self) -> str | None:
        """Of the requests: http or https."""

    @property
    def client(self) -> tuple[str, int] | None:
        """The address and the port of the other end, where they are known."""

    def own_headers(self) -> list[Header]:
        """Return the headers that each answer of the connection has."""

    def respond(self, head: bytes, body: bytes | memoryview, *, close: bool) -> None:
        """Send an answer, and go on with the next request, or close; of a `memoryview` nothing is kept."""

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something that takes several turns of the event loop, and drop it when the connection ends."""


class DirectExchange(Exchange):
    """One request on the short way and its answer: of a connection, one after the other.

    To uvicorn it is the connection's newest `RequestResponseCycle`, and has what is asked of one.

    Attributes:
        response_complete: no request waits for its answer.
        keep_alive: the connection stays for the next request.
    """

    def __init__(self, connection: Connection, shared: Shared) -> None:
        """Begin with no request."""
        super().__init__(shared)
        self.response_complete = True
        self.keep_alive = True
        self._connection = connection
        self._direct: DirectRoute
        self._more = BodyPieces()
        self._size = 0
        self._began = 0.0
        # The header Server-Timing of the answer, and the end of the head.
        self._timing = b""

    @property
    def about(self) -> About:
        """What the request's span says of it."""
        connection = self._connection
        client = connection.client
        seconds = perf_counter() - self._began
        return About(self.route.path, connection.scheme or "http", client[0] if client else "", seconds)

    def begin(self, direct: DirectRoute, headers: Headers) -> None:
        """Begin with a request whose head has come."""
        self._began = perf_counter()
        self._direct = direct
        self.route = direct.route
        self.headers = headers
        self.request_id = self.shared.request_ids.of(headers)
        self.response_complete = False

    @property
    def takes_held(self) -> bool:
        """Whether a result is read where it lies; see `engine.TAKES_HELD`."""
        return self._direct.takes_held

    def feed(self, body: bytes | memoryview) -> None:
        """Take a piece of the body: nearly always all of it. A `memoryview` only where the route takes pieces."""
        if self.response_complete:
            return
        if self.body:
            self._more.add(body)
            self._size += len(body)
        else:
            self.body = body  # type: ignore[assignment]  # until `end`
            self._size = len(body)

    @property
    def body_left(self) -> int:
        """Bytes of the body that are still to come."""
        came = self._size if self.body else 0
        return int(self.headers[b"content-length"]) - came

    def drop(self, failure: Failure) -> None:
        """Refuse a request of which a part has come, and end the connection after the answer."""
        self.keep_alive = False
        self.refuse(failure)
        self.body, self._more = b"", BodyPieces()

    def hold_body(self) -> bool:
        """Take room for the part of the body that has come; return whether there was enough."""
        return self.response_complete or self.hold(self._size)

    def end(self) -> None:
        """Have the request run: its body is complete."""
        if self.response_complete:
            return
        body: Any = self.body
        if self._more or type(body) is memoryview:
            self._gather()
        if len(self.body) > LARGE_BODY and not self.hold(len(self.body)):
            self.refuse(NO_ROOM)
        else:
            self.submit()
        self.body = b""

    def _gather(self) -> None:
        """Make one body of the pieces in which it came, if only for whoever reads it."""
        pieces = (self.body, *self._more)
        self._more = BodyPieces()
        if self._direct.takes_pieces and self._size >= LARGE:
            self.body = Pieces(pieces, self._size)  # type: ignore[assignment]  # the route only passes it on
        else:
            self.body = b"".join(pieces)

    def close(self) -> None:
        """End with the connection: nobody waits for an answer any more."""
        # The connection and this object refer to each other: they must not wait for the garbage collector.
        del self._connection
        waiting, self.response_complete = not self.response_complete, True
        self.body, self._more = b"", BodyPieces()
        self.leave()
        self.release()
        if self.span is not None:
            self.end_span(CANCELLED)
        if waiting and self.shared.logged:
            self._log(CANCELLED)

    def answer(self, response: Response) -> None:
        """Send an answer."""
        if self.response_complete:
            return
        if self.shared.compressed and response.status == OK:
            accept = self.headers.get(b"accept-encoding")
            if compression.takes_turns(response, accept):
                self._connection.spawn(self._answer_packed(response, accept))
                return
            response = compression.packed_at_once(response, accept)
        self._send(response)

    def settled(self, outcome: Outcome) -> None:
        """Do the same as `Exchange.settled`; for the usual request without a function call for each step."""
        if outcome.code == CANCELLED:
            super().settled(outcome)
            return
        payload: Any = outcome.payload
        if type(payload) is not bytes and type(payload) is not memoryview and self.takes_held:
            self._settled_held(outcome, payload)
            return
        self._call_id = None
        try:
            response = self.route.respond(self, (outcome,))
        except BaseException as error:
            response = self.route.refuse(self, self.fault(error))
        if outcome.times:
            response = self.timed(response, (outcome,))
        if self.shared.compressed:
            self.answer(response)
        elif not self.response_complete:
            self._send(response)

    def _settled_held(self, outcome: Outcome, held: HeldPayload) -> None:
        """Answer with a result that lies in shared memory, without a copy of it."""
        try:
            with held.lend() as lent:
                self.settled(outcome._replace(payload=lent))  # type: ignore[arg-type]  # it is only sent
        except LinkError as error:
            self._call_id = None
            self.refuse(self.fault(error))
        finally:
            held.drop()

    def timed(self, response: Response, outcomes: Sequence[Outcome]) -> Response:
        """Keep the header for `_send`: a response with headers of its own needs a head of its own, 8 µs more."""
        times = [outcome.times for outcome in outcomes if outcome.times]
        name, value = server_timing.header(times, self.traceparent)
        self._timing = b"%b: %b\r\n\r\n" % (name, value)
        return response

    async def _answer_packed(self, response: Response, accept: bytes | None) -> None:
        response = await compression.packed(response, accept)
        if not self.response_complete:
            self._send(response)

    def _send(self, response: Response) -> None:
        self.response_complete = True
        if self.held:
            self.release()
        connection, direct = self._connection, self._direct
        own = connection.own_headers()
        head = direct.head(response, self.request_id, own if self.keep_alive else [*own, CLOSE])
        if self._timing:
            # In the place of the empty line at the head's end.
            head = head[:-2] + self._timing
            self._timing = b""
        connection.respond(head, response.body, close=not self.keep_alive)
        # Counted after it was sent, so that the client does not wait for it.
        self.shared.metrics.answered(self.route.path, response.status, perf_counter() - self._began)
        if self.span is not None:
            self.end_span(response.status)
        if self.shared.logged:
            self._log(response.status)

    def _log(self, status: int) -> None:
        seconds = perf_counter() - self._began
        access.log_end("POST", self.route.path, status, self.request_id, seconds)
