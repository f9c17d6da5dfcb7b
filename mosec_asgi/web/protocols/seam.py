"""What a protocol is made of: endpoints, each of which turns a request into an `Ask`, and results into an answer.

    request ── Endpoint.ask ──► Ask(route, items) ── a call for each item ──► the route's workers
    response ◄─ Endpoint.answer ◄─ results in the order of the items ──────── what they return
             ◄─ Endpoint.error ◄─ Problem

`forward` is given each item as it is, and what it returns comes back as it is: a vector stays a vector until the
endpoint encodes it, and the same worker serves any number of protocols in common batches. `adapter` runs endpoints.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple
from typing import Protocol as Structural

import orjson

from mosec_asgi.web.responses import Header, Response

if TYPE_CHECKING:
    from mosec_asgi.web.exchange import Request, Route, Shared
    from mosec_asgi.worker import Worker

# Calls that one request may make.
MAX_CALLS = 2048
# Headers of a stream; the second is for nginx, which otherwise buffers a response before it passes it on.
NO_CACHE: Sequence[Header] = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))


@dataclass(frozen=True, slots=True)
class Ask:
    """What a request asks of the workers.

    Attributes:
        route: the route of the workers, as in `append_worker`.
        items: the inputs of `forward`, one call each; any objects that can be pickled, at least one.
        context: anything that the endpoint needs again to make the answer.
        timeout: seconds that the request may take; None for the service's `timeout`. It can only shorten that, and the
            request's `x-request-timeout`.
    """

    route: str
    items: Sequence[Any]
    context: Any = None
    timeout: float | None = None


class Standing(Structural):
    """The state of the service, for endpoints that report it."""

    def ready(self, route: str | None = None) -> bool:
        """Return whether a route, or each of them, has a worker for every stage, and the service is not shutting down.

        Args:
            route: of the workers; None for all.
        """


class Problem(NamedTuple):
    """What went wrong with a request.

    Attributes:
        code: the HTTP status that mosec's own protocol would answer.
        text: for a person to read.
        retry_after: seconds after which the client may try again, or None where trying again is no remedy.
        ask: what the request asked for; None if it failed before that was known.
        place: the index of the item that has failed, from 0; None if it is not a single item.
        fields: the `fields` of the `MosecError` that a worker raised, for the protocol's form of the error.
    """

    code: int
    text: str
    retry_after: int | None = None
    ask: Ask | None = None
    place: int | None = None
    fields: Mapping[str, Any] | None = None


class EventForm:
    """The form of an answer that is a stream. An object serves one answer, and may keep state.

    Attributes:
        content_type: of the answer.
        comment: bytes without a meaning, sent when a stream is silent; None where the form has none.
    """

    content_type: ClassVar[str] = "text/event-stream"
    comment: bytes | None = b":\n\n"

    def piece(self, event: Any, place: int) -> bytes:
        """Return what goes out for an event that a worker has yielded; may be empty.

        Args:
            event: as it was yielded.
            place: the index of the item whose stream it belongs to, from 0.
        """
        raise NotImplementedError

    def end(self) -> bytes:
        """Return the last piece of an answer that has ended well."""
        return b""

    def failure(self, problem: Problem) -> bytes | None:
        """Return the last piece of an answer that fails after it has begun; None breaks the answer off."""
        return None


class Endpoint(abc.ABC):
    """A path of a protocol. One object serves all requests, and keeps no state of a request.

    Attributes:
        path: its path; it may have parameters, as in `/v1/models/{model}`.
        methods: the HTTP methods that it takes.
        routes: the routes of the workers that it may ask.
        below: a prefix, such as `/v1/`: a request to an unknown path below it is refused in the form of this endpoint.
            Set it in one endpoint of a protocol; empty for none.
        max_calls: items that one request may have; more are refused with 400.
        is_health: it only tells whether models can answer, so that probes may ask it without an API key.
        admits: whether `admit` must be called; False saves the call if it would let all requests in.
        standing: the state of the service, once it serves; None before that.
    """

    path: str
    methods: Sequence[str] = ("POST",)
    routes: Sequence[str] = ()
    below: str = ""
    max_calls: int = MAX_CALLS
    admits: bool = True
    is_health: bool = False
    standing: Standing | None = None

    def admit(self, request: Request) -> Response | None:
        """Return an answer to a request of which only the head has come, so that its body is not read; None to read it.

        For decisions that need the head alone, such as an API key. It may be called more than once for a request.

        Args:
            request: without its body.

        Raises:
            MosecError: as in `ask`.
        """
        return None

    @abc.abstractmethod
    def ask(self, request: Request) -> Ask | Response:
        """Return what a request asks of the workers, or an answer that needs none of them.

        Args:
            request: has `body`, `headers` (bytes by name in lower case), `method`, `path_params`, `query` and
                `request_id`.

        Raises:
            MosecError: to refuse the request; `error` gives that its form.
        """

    @abc.abstractmethod
    def answer(self, ask: Ask, results: Sequence[Any]) -> Response:
        """Return the answer to a request whose calls have all gone well.

        Args:
            ask: what `ask` has returned.
            results: what the workers have returned, in the order of the items; for a route that streams, a list of the
                events of each.

        Raises:
            MosecError: as in `ask`.
        """

    @abc.abstractmethod
    def error(self, problem: Problem) -> Response:
        """Return the answer to a request that has failed, at whatever step."""

    def stream(self, ask: Ask) -> EventForm | None:
        """Return the form of an answer that is a stream; None to gather the events. Called for routes that stream."""
        return None

    def check(self, workers: Mapping[str, type[Worker]]) -> None:
        """Check that the endpoint can use the last workers of its routes; called once all routes are defined.

        Args:
            workers: their classes by the routes.

        Raises:
            DefinitionError: it cannot use one of them; the text says what to change.
        """
        return

    def describe(self) -> dict[str, Any]:
        """Return the path item for the OpenAPI document: an operation for each method. Empty leaves the path out."""
        return {}


class Listener(abc.ABC):
    """A port of a protocol beside that of HTTP, such as one for gRPC. An object serves one service, once.

    Attributes:
        endpoints: those that it serves.
    """

    endpoints: Sequence[Endpoint]

    @abc.abstractmethod
    async def start(self, routes: Sequence[Route], shared: Shared) -> None:
        """Listen; while models load, calls are refused.

        Args:
            routes: those of the endpoints.
            shared: what all exchanges of the service have in common.

        Raises:
            StartupError: it cannot listen.
        """

    @abc.abstractmethod
    async def stop(self, grace: float) -> None:
        """Take no more requests, let those that run finish within `grace` seconds, and close the port."""


class Protocol(abc.ABC):
    """A protocol that clients use: endpoints that belong together; see `Server.add_protocol`."""

    @abc.abstractmethod
    def endpoints(self) -> Sequence[Endpoint]:
        """Return the endpoints. Called several times: to check them, to describe them, and to serve them."""

    def listener(self) -> Listener | None:
        """Return a new listener for a service on a port of the protocol's own; None if it has no port."""
        return None

    def learn(self, pipelines: Mapping[str, Sequence[type[Worker]]]) -> None:
        """Learn which workers there are. Called once all routes are defined, before endpoints are checked or described.

        Args:
            pipelines: for each route, the classes of its workers in the order of the stages.

        Raises:
            DefinitionError: the protocol cannot use one of them; the text says what to change.
        """
        return

    def schemas(self) -> Mapping[str, Any]:
        """Return the named schemas that the endpoints' descriptions refer to, for the OpenAPI document."""
        return {}


def json_response(value: Any, status: int = 200, headers: Sequence[Header] = ()) -> Response:
    """Return an answer in JSON; `value` may hold arrays of numpy."""
    body = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)
    return Response(status, (JSON, *headers), body)


JSON: Header = (b"content-type", b"application/json")
