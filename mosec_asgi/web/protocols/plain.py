"""mosec's own protocol: a body is the input, a result is the body of the answer, a failure is a line of text.

On a route that streams, the worker has already given the chunks their form: events, or raw bytes. The form decides how
a failure is reported. In a stream of events, it is an event, so that the head of the answer may be sent before anything
has happened. In a stream of raw chunks it cannot be: a failure before the first chunk is an ordinary answer, and after
it the answer is broken off, which tells the client that it is not complete.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from mosec_asgi.errors import BAD_TIMEOUT, NO_DATA, Failure
from mosec_asgi.labels import Labels
from mosec_asgi.messages import FIELDS, OK, Call, Chunk, Outcome, tuple_new
from mosec_asgi.reply import unpacked_head
from mosec_asgi.runtime import BODYLESS
from mosec_asgi.streaming import Event, encode_event, is_event_stream
from mosec_asgi.web.exchange import Request
from mosec_asgi.web.protocols.about import told
from mosec_asgi.web.protocols.ordering import NO_ORDERING, Ordering, ordered
from mosec_asgi.web.protocols.seam import NO_CACHE
from mosec_asgi.web.responses import Header, Headers, Response, reason

TIMEOUT = b"x-request-timeout"
TEXT = (b"content-type", b"text/plain; charset=utf-8")
# An empty comment of an event stream, as in mosec.
COMMENT = b":\n\n"
# Statuses whose answers have no body (RFC 9110, section 15).
BODYLESS_STATUSES = frozenset((204, 205, 304))
POST = ("POST",)


class Described(NamedTuple):
    """What a route is made from.

    Attributes:
        path: of the route.
        content_type: of its results.
        streams: a result is a stream.
        takes_request: a stage wants to know of the requests.
        methods: of HTTP, that it takes.
        labels: what the first stage asks of an input; None for nothing.
    """

    path: str
    content_type: str
    streams: bool
    takes_request: bool = False
    methods: tuple[str, ...] = POST
    labels: Labels | None = None


class PlainRoute:
    """A route as mosec has them; see `web.exchange.Route`.

    Attributes:
        passes_body: nothing reads a body here: it becomes the payload of a call as it is.
        passes_result: the same of a result, which becomes the body of an answer.
    """

    takes_request = False
    admits = False
    passes_body = True
    passes_result = True

    def __init__(
        self,
        path: str,
        place: int,
        content_type: str,
        *,
        streams: bool,
        new_id: Callable[[], int],
        methods: tuple[str, ...] = POST,
    ) -> None:
        """Bind a route to its pipeline.

        Args:
            path: the route.
            place: of the route in the service's list.
            content_type: of a result; a stream whose type is that of an event stream has events as its chunks.
            streams: a result is a stream.
            new_id: returns a number for a call.
            methods: of HTTP, that it takes.
        """
        self.path = path
        self.streams = streams
        self.methods: Sequence[str] = methods
        self._place = place
        self._new_id = new_id
        # One object for all answers, see `Response.headers`.
        self._headers: Sequence[Header] = ((b"content-type", content_type.encode("latin-1")),)
        kind = PlainEvents if is_event_stream(content_type) else PlainChunks
        self._form = kind((*self._headers, *NO_CACHE)) if streams else None

    def admit(self, request: Request) -> None:
        """Never called: all bodies are read."""

    def calls(self, request: Request) -> tuple[Call] | Failure:
        """Return the one call of a request."""
        body, headers = request.body, request.headers
        if not body:
            return NO_DATA
        timeout: float | Failure | None = None
        if TIMEOUT in headers:
            timeout = timeout_of(headers)
            if isinstance(timeout, Failure):
                return timeout
        name = request.request_id
        fields = (self._new_id(), self._place, body, name, timeout, False, False, 0, "", None, "", 1, "")
        return (tuple_new(Call, fields),)

    def respond(self, request: Request, outcomes: Sequence[Outcome]) -> Response:
        """Return a result, or what went wrong."""
        outcome = outcomes[0]
        if outcome.code == OK:
            if outcome.head:
                return self._replied(outcome)
            return tuple_new(Response, (OK, self._headers, outcome.payload))
        return _failed(outcome.code, outcome.payload, outcome.retry_after)  # type: ignore[arg-type]  # see `Outcome`

    def _replied(self, outcome: Outcome) -> Response:
        """Return a result that is a `Reply`."""
        head = unpacked_head(outcome.head)
        body: bytes = outcome.payload  # type: ignore[assignment]  # see `Outcome`
        if head.status in BODYLESS_STATUSES:
            return Response(head.status, head.headers, b"")
        named = any(name == b"content-type" for name, _ in head.headers)
        return Response(head.status, (*(() if named else self._headers), *head.headers), body)

    def refuse(self, request: Request, failure: Failure) -> Response:
        """Return what is wrong with a request."""
        return failed(failure)

    def stream(self, request: Request) -> PlainChunks | None:
        """Return the form of the route's streams, which is the same for each."""
        return self._form

    def gather(self, request: Request, chunk: Chunk) -> None:
        """Refuse a stream on a route that has none."""
        raise TypeError(f"call {chunk.call_id} is answered by a stream, and its route has none")


class RequestRoute(PlainRoute):
    """A route with a stage whose workers take the request."""

    takes_request = True

    def calls(self, request: Request) -> tuple[Call] | Failure:
        """Return the one call of a request; of one by GET or DELETE, it may have no body."""
        if not request.body and request.method not in BODYLESS:
            return NO_DATA
        timeout = timeout_of(request.headers)
        if isinstance(timeout, Failure):
            return timeout
        call = Call(
            self._new_id(), self._place, request.body, request.request_id, timeout, request=told(request, self.path)
        )
        return (call,)


class OrderedRoute(PlainRoute):
    """A route whose requests say something of the order in which they are run."""

    # Labels may be read from it.
    passes_body = False
    # Set after it is made.
    ordering: Ordering
    labels: Labels | None

    def calls(self, request: Request) -> tuple[Call] | Failure:
        """Return the one call of a request."""
        calls = super().calls(request)
        if isinstance(calls, Failure):
            return calls
        call = ordered(calls[0], request, self.path, self.ordering, self.labels)
        return call if isinstance(call, Failure) else (call,)


class OrderedRequestRoute(OrderedRoute, RequestRoute):
    """The same, with a stage whose workers take the request."""


class PlainChunks:
    """The form of a stream of raw bytes; see `web.exchange.StreamForm`."""

    comment: bytes | None = None

    def __init__(self, headers: Sequence[Header]) -> None:
        """Set the headers of each answer."""
        self.headers = headers

    def chunk(self, chunk: Chunk) -> bytes:
        """Return a chunk as it is."""
        return chunk.payload

    def end(self) -> bytes:
        """Return nothing: the end of the answer is the end of the stream."""
        return b""

    def failure(self, failure: Failure, *, begun: bool) -> bytes | None:
        """Return None: a stream of raw bytes cannot say so."""
        return None


class PlainEvents(PlainChunks):
    """The form of a stream of events."""

    comment: bytes | None = COMMENT

    def failure(self, failure: Failure, *, begun: bool) -> bytes | None:
        """Return what went wrong as an event, in mosec's form; None for a refusal, which is an ordinary answer."""
        refused = failure.retry_after is not None and not begun
        return None if refused else error_event(failure)


def routes(
    results: Iterable[Described | tuple[str, str, bool]], new_id: Callable[[], int], ordering: Ordering = NO_ORDERING
) -> list[PlainRoute]:
    """Return the routes of a service.

    Args:
        results: for each route, in the order of the service's list: what it is made from.
        new_id: returns a number for a call.
        ordering: what is read of a request for its place among others.
    """
    made: list[PlainRoute] = []
    for place, described in enumerate(results):
        path, content_type, streams, takes_request, methods, labels = Described(*described)
        if ordering.reads or labels is not None:
            kind = OrderedRequestRoute if takes_request else OrderedRoute
            route = kind(path, place, content_type, streams=streams, new_id=new_id, methods=methods)
            route.ordering, route.labels = ordering, labels
            route.takes_request = takes_request or ordering.tenant_of is not None
            made.append(route)
        else:
            plain = RequestRoute if takes_request else PlainRoute
            made.append(plain(path, place, content_type, streams=streams, new_id=new_id, methods=methods))
    return made


def timeout_of(headers: Headers) -> float | Failure | None:
    """Return how many seconds the client waits for an answer, or what is wrong with its header.

    Returns:
        seconds, more than 0; None where the client does not say.
    """
    header = headers.get(TIMEOUT)
    if header is None:
        return None
    # A float has a value for any number of digits; a value that is too large is far above the service's own timeout.
    return (float(header) / 1000 if header.isdigit() else 0.0) or BAD_TIMEOUT


def failed(failure: Failure) -> Response:
    """Return the answer that says what went wrong: a status, and a text for people."""
    return _failed(int(failure.code), failure.text.encode(errors="backslashreplace"), failure.retry_after)


def _failed(code: int, payload: bytes, retry_after: int | None) -> Response:
    text = payload.partition(FIELDS)[0]
    if retry_after is None:
        return Response(code, (TEXT,), text)
    return Response(code, (TEXT, (b"retry-after", b"%d" % retry_after)), text)


def error_event(failure: Failure) -> bytes:
    """Return what went wrong as an event of a stream, in mosec's form."""
    text = f"SSE inference error: {int(failure.code)}: {reason(failure.code)}: {failure.text}"
    return encode_event(Event(text, event="error"))
