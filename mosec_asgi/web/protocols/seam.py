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
NO_CACHE: Sequence[Header] = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))


@dataclass(frozen=True, slots=True)
class Ask:
    """What to have run for a request.

    Attributes:
        route: of the workers, as `append_worker` was given it.
        items: what `forward` is given, one call each; any objects that can be pickled, at least one.
        context: what the endpoint wants to know again when it answers.
        timeout: seconds that the client has given the request; None for as long as the service does. It can only be
            shorter than that, and than the request's `x-request-timeout`.
    """

    route: str
    items: Sequence[Any]
    context: Any = None
    timeout: float | None = None


class Standing(Structural):
    """How the service stands."""

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
        ask: what was asked for; None where nothing was yet.
        place: of the item that has failed; None where it is no single one.
        fields: what a worker has said for the form of its error: the `fields` of what it raised.
    """

    code: int
    text: str
    retry_after: int | None = None
    ask: Ask | None = None
    place: int | None = None
    fields: Mapping[str, Any] | None = None


class EventForm:
    """The form of an answer that is a stream. One is made for each such answer, and may keep what it needs.

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
            place: of the item whose stream it is of.
        """
        raise NotImplementedError

    def end(self) -> bytes:
        """Return the last piece of an answer that has ended well."""
        return b""

    def failure(self, problem: Problem) -> bytes | None:
        """Return the last piece of an answer that fails after it has begun; None breaks the answer off."""
        return None


class Endpoint(abc.ABC):
    """A path of a protocol. Holds nothing of a request.

    Attributes:
        path: as requests name it; it may have parameters, as in `/v1/models/{model}`.
        methods: of HTTP, that it takes.
        routes: of workers, that it may ask.
        below: requests to paths that begin so, and have no route, are refused in this form; one endpoint of a
            protocol says it. Empty for none.
        max_calls: items that one request may have; more are refused with 400.
        is_health: it says no more than whether models can answer: probes ask it without the API key of the service.
        admits: False where `admit` is overridden, and is known to let everybody in: that spares requests the call.
        standing: how the service stands, once it serves; None before that.
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

        For what the head alone decides, such as who may ask. It may be asked more than once for a request.

        Args:
            request: without its body.

        Raises:
            MosecError: as in `ask`.
        """
        return None

    @abc.abstractmethod
    def ask(self, request: Request) -> Ask | Response:
        """Return what to have run, or an answer for which nothing need run.

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
        """Return the answer to a request that has failed, wherever it has."""

    def stream(self, ask: Ask) -> EventForm | None:
        """Return the form of an answer that is sent as it is made; None for a whole one. For routes that stream."""
        return None

    def check(self, workers: Mapping[str, type[Worker]]) -> None:
        """Check that the routes' last workers are such as the endpoint can ask; called once all is defined.

        Args:
            workers: their classes by the routes.

        Raises:
            DefinitionError: one is not; the text says what to change.
        """
        return

    def describe(self) -> dict[str, Any]:
        """Return the path's item for the OpenAPI document: what it does, by method. Empty leaves it out."""
        return {}


class Listener(abc.ABC):
    """A port of a protocol's own, for clients that do not come by HTTP as all others do. It serves one service, once.

    Attributes:
        endpoints: that it serves.
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
        """Take no more requests, let those that run finish within so many seconds, and let go of the port."""


class Protocol(abc.ABC):
    """How clients speak: endpoints that belong together; see `Server.add_protocol`."""

    @abc.abstractmethod
    def endpoints(self) -> Sequence[Endpoint]:
        """Return the endpoints. It is asked several times: to check them, to describe them, and to serve them."""

    def listener(self) -> Listener | None:
        """Return what listens on a port of the protocol's own, for one service; None where there is none."""
        return None

    def learn(self, pipelines: Mapping[str, Sequence[type[Worker]]]) -> None:
        """Hear which workers there are, once all is defined: before endpoints are checked, described and serve.

        Args:
            pipelines: the workers' classes in the order of the stages, by their routes: of all routes.

        Raises:
            DefinitionError: one is not such as the protocol can ask; the text says what to change.
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
