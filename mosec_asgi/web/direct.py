"""The short way of a request: from the parser to the service, and from its outcome to the socket, past ASGI.

Between a server and an app, ASGI costs a request a task of the event loop, a scope, an event, and three coroutines that
wait for each other: `benchmarks/profile.py` shows 43 µs of the server's processor time for an `asgi-echo`, and 20 for
an `echo`. Where `run()` serves, both sides are ours, and a request of the usual kind (a POST to a model's route, its
length declared, its connection kept) takes none of them: when its body is complete it is submitted, and its outcome is
written as soon as it is there. Whatever else comes goes through uvicorn and the ASGI app, which answer with the same
headers: `http1` decides, from the head of the request alone.
"""

from __future__ import annotations

import time
from typing import Protocol

from mosec_asgi import log
from mosec_asgi.batching.engine import Outcome
from mosec_asgi.errors import Failure, describe
from mosec_asgi.web.body import EMPTY
from mosec_asgi.web.inference import InferenceEndpoint
from mosec_asgi.web.request import Headers
from mosec_asgi.web.responses import Header, failure_headers, reason, success_headers

CLOSE = (b"connection", b"close")

logger = log.internal_logger(__name__)


class DirectRoute:
    """A route whose requests may take the short way.

    Attributes:
        endpoint: what answers there over ASGI; the two differ in nothing else.
    """

    def __init__(self, endpoint: InferenceEndpoint, limit: int) -> None:
        """Lead to an endpoint.

        Args:
            endpoint: of a service that packs no results.
            limit: bytes of a body.
        """
        self.endpoint = endpoint
        self._limit = limit
        # The head of a result's response with places for its length and its request id, and the headers that it was
        # made with: uvicorn has new ones each second, for the date.
        self._head = b""
        self._made_with: list[Header] | None = None

    def takes(self, headers: Headers) -> bool:
        """Whether a request with these headers has a body that can be read here: its length known, and not packed."""
        length = headers.get(b"content-length")
        # More digits than any limit has are not worth a number.
        return (
            length is not None
            and len(length) < 20
            and int(length) <= self._limit
            and b"content-encoding" not in headers
        )

    def head(self, outcome: Outcome, request_id: str, own: list[Header]) -> bytes:
        """Return the head of a response.

        Args:
            outcome: what is answered.
            request_id: of the request.
            own: the connection's; a result's head is made anew only where they are others than before.
        """
        if isinstance(outcome, Failure):
            common = [(b"x-request-id", request_id.encode()), self.endpoint.server]
            return _head(outcome.code, [*own, *failure_headers(outcome, common)])
        if own is not self._made_with:
            self._made_with = own
            self._head = self._template(own)
        return self._head % (len(outcome), request_id.encode())

    def _template(self, own: list[Header]) -> bytes:
        # In this order they come.
        places = {b"content-length": b"%d", b"x-request-id": b"%b"}
        headers = success_headers(0, self.endpoint.content_type, [(b"x-request-id", b""), self.endpoint.server])
        return _head(200, [(name, places.get(name, value.replace(b"%", b"%%"))) for name, value in [*own, *headers]])


class Connection(Protocol):
    """What an exchange needs of its connection."""

    def own_headers(self) -> list[Header]:
        """Return the headers that each response has, whatever answers."""

    def respond(self, head: bytes, body: bytes, *, close: bool) -> None:
        """Send a response, and go on with the next request, or close."""


class Exchange:
    """One request on the short way and its response: of a connection, one after the other.

    To uvicorn it is the connection's newest `RequestResponseCycle`, and has what is asked of one.

    Attributes:
        response_complete: there is none that waits for its answer.
        keep_alive: the connection stays for the next request.
    """

    def __init__(self, connection: Connection) -> None:
        self.response_complete = True
        self.keep_alive = True
        self._connection = connection
        self._route: DirectRoute
        self._headers: Headers = {}
        self._request_id = ""
        self._body: bytes = b""
        self._more: list[bytes] = []
        self._task_id: int | None = None
        self._began = 0.0

    def begin(self, route: DirectRoute, headers: Headers) -> None:
        """Begin with a request of which the head has come."""
        self._began = time.perf_counter()
        self._route = route
        self._headers = headers
        self._request_id = route.endpoint.request_ids.of(headers)
        self.response_complete = False

    def feed(self, body: bytes) -> None:
        """Take a piece of the body: nearly always all of it."""
        if self._body:
            self._more.append(body)
        else:
            self._body = body

    def submit(self) -> None:
        """Have the request run: its body is complete."""
        body, more, self._body = self._body, self._more, b""
        if more:
            body, self._more = b"".join((body, *more)), []
        submit = self._route.endpoint.submit
        try:
            task_id = submit(body, self._headers, self._request_id, self._answer) if body else EMPTY
        except Exception as error:
            # The parser, which has called, would take it for a fault of the client's.
            logger.exception("a request was not submitted", extra={"request_id": self._request_id})
            task_id = describe(error)
        if isinstance(task_id, Failure):
            self._answer(task_id)
        elif not self.response_complete:
            self._task_id = task_id

    def close(self) -> None:
        """End with the connection: nobody waits for an answer any more."""
        # The two would keep each other in memory until the garbage collector comes.
        del self._connection
        self.response_complete = True
        self._body, self._more = b"", []
        if self._task_id is not None:
            self._route.endpoint.cancel(self._task_id)

    def _answer(self, outcome: Outcome) -> None:
        self._task_id = None
        if self.response_complete:
            return
        self.response_complete = True
        connection, route = self._connection, self._route
        own = connection.own_headers()
        head = route.head(outcome, self._request_id, own if self.keep_alive else [*own, CLOSE])
        body = outcome.text.encode() if isinstance(outcome, Failure) else outcome
        # Counted when it has been sent, so that nobody waits for it.
        connection.respond(head, body, close=not self.keep_alive)
        route.endpoint.count(outcome, self._began)


def _head(code: int, headers: list[Header]) -> bytes:
    lines = [b"HTTP/1.1 %d %b" % (code, reason(code).encode()), *(b"%b: %b" % header for header in headers)]
    return b"\r\n".join([*lines, b"", b""])
