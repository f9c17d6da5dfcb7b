"""Runs the endpoints of a protocol (`seam`) as routes of the web (`web.exchange.Route`), by calls of objects."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Protocol

from mosec_asgi import log
from mosec_asgi.batching.engine import Engine
from mosec_asgi.errors import ClientError, Failure, ServerError, describe
from mosec_asgi.labels import UNLABELLED, Labels
from mosec_asgi.lazy_timer import later
from mosec_asgi.messages import Call, Chunk, Credit, Outcome, Payload, drop_all
from mosec_asgi.ration import Ration
from mosec_asgi.reply import Reply
from mosec_asgi.request import Request as ToldRequest
from mosec_asgi.web.exchange import Request, StreamForm
from mosec_asgi.web.protocols.about import told
from mosec_asgi.web.protocols.ordering import NO_ORDERING, Ordering
from mosec_asgi.web.protocols.plain import failed, timeout_of
from mosec_asgi.web.protocols.seam import JSON, NO_CACHE, Ask, Endpoint, EventForm, Problem
from mosec_asgi.web.responses import Header, Response
from mosec_asgi.web.several import CallsInTurn, Turns

# Bytes of the events that are kept for an answer which is sent as a whole.
MOST_GATHERED = 16 * 1024 * 1024
# The least number of calls that all requests of several calls to a route may have in the engine together.
LEAST_AT_ONCE = 8
# What a header's name consists of (RFC 9110, section 5.6.2), and what would end a value.
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")

BAD_FORM = "the endpoint %s cannot give a failure its form: %s"

logger = log.internal_logger(__name__)


class Target(Protocol):
    """A pipeline, as it is called; see `calls.routes.CallRoute`."""

    @property
    def path(self) -> str:
        """Its name."""

    @property
    def place(self) -> int:
        """In the service's list."""

    @property
    def streams(self) -> bool:
        """Its results are streams."""

    @property
    def apart(self) -> bool:
        """Its first stage's workers can read shared memory."""

    @property
    def egress(self) -> str:
        """The name of its last stage."""

    @property
    def at_once(self) -> int:
        """Calls that its workers can run at once."""

    @property
    def timeout(self) -> float:
        """Seconds that a call may take."""

    @property
    def takes_request(self) -> bool:
        """A stage of it wants to know of the request."""

    @property
    def stages(self) -> Sequence[str]:
        """The names of its stages."""

    @property
    def labels(self) -> Labels | None:
        """What its first stage wants to know of an item."""


class Objects(Protocol):
    """Makes payloads of items; see `calls.objects.Objects`."""

    def payload(self, item: Any, *, apart: bool) -> Payload:
        """Return an item as a payload; raises `EncodingError`."""


class Pipeline:
    """A target, and what all protocols share of it."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.turns = Turns(max(LEAST_AT_ONCE, target.at_once))

    def update(self, target: Target) -> None:
        """Go by a new target from here on: it has more workers, or fewer."""
        self.target = target
        self.turns.resize(max(LEAST_AT_ONCE, target.at_once))


class Pipelines:
    """All that endpoints need to have something run.

    Attributes:
        ration: logs what clients cause.
    """

    def __init__(
        self,
        targets: Mapping[str, Target],
        objects: Objects,
        value_of: Callable[[Payload, str], Any],
        engine: Engine,
        ordering: Ordering = NO_ORDERING,
    ) -> None:
        """Bind to an engine.

        Args:
            targets: the pipelines by their routes.
            objects: makes payloads of items.
            value_of: makes objects of payloads, given the name of the stage that has made them.
            engine: runs the calls.
            ordering: what is read of a request for its place among others.
        """
        self.ordering = ordering
        self.by_route = {path: Pipeline(target) for path, target in targets.items()}
        self.objects = objects
        self.value_of = value_of
        self.engine = engine
        self.ration = Ration(logger, later)

    def update(self, targets: Mapping[str, Target]) -> None:
        """Go by new targets from here on: their stages have changed."""
        for path, target in targets.items():
            self.by_route[path].update(target)

    def ready(self, route: str | None = None) -> bool:
        """Return whether a route, or each of them, can answer; see `seam.Standing`."""
        now = self.engine.statistics()
        stages = None if route is None else self.by_route[route].target.stages
        return not now.closing and all(
            stage.ready > 0 for stage in now.stages if stages is None or stage.name in stages
        )


class _Asked:
    """What has become of a request so far: its route's state.

    Attributes:
        ask: what the endpoint wants.
        pipeline: that is asked.
        places: of the items, by the numbers of their calls.
        form: of the answer, where that is a stream.
        events: of each item, where a stream is gathered.
        gathered: bytes of these.
        fault: what kept one of them from being read.
        priority, tenant: of its calls.
    """

    __slots__ = ("ask", "events", "fault", "form", "gathered", "pipeline", "places", "priority", "tenant")

    def __init__(self, ask: Ask, pipeline: Pipeline) -> None:
        self.ask = ask
        self.pipeline = pipeline
        self.places: dict[int, int] = {}
        self.form: EventForm | None = None
        self.events: list[list[Any]] = []
        self.gathered = 0
        self.fault: ServerError | None = None
        self.priority = 0
        self.tenant = ""


class ProtocolRoute:
    """An endpoint as a route of the web; see `web.exchange.Route`."""

    def __init__(self, endpoint: Endpoint, pipelines: Pipelines) -> None:
        """Bind an endpoint to a service.

        Args:
            endpoint: of a protocol.
            pipelines: that it can ask.
        """
        self.path = endpoint.path
        self.below = endpoint.below
        self.methods: Sequence[str] = tuple(endpoint.methods)
        asked = [pipelines.by_route[path].target for path in endpoint.routes]
        self.streams = any(target.streams for target in asked)
        self.takes_request = pipelines.ordering.tenant_of is not None or any(target.takes_request for target in asked)
        self.is_health = endpoint.is_health
        self.admits = endpoint.admits and type(endpoint).admit is not Endpoint.admit
        endpoint.standing = pipelines
        self._endpoint = endpoint
        self._pipelines = pipelines

    def admit(self, request: Request) -> Response | None:
        """Return the endpoint's answer to a head."""
        request.state = None
        response = self._endpoint.admit(request)
        return None if response is None else self._sendable(response)

    # -- request to calls --------------------------------------------------------------------------------------------

    def calls(self, request: Request) -> Sequence[Call] | CallsInTurn | Response | Failure:
        """Return a call for each item."""
        request.state = None
        ask = self._endpoint.ask(request)
        if isinstance(ask, Response):
            return self._sendable(ask)
        timeout = timeout_of(request.headers)
        if isinstance(timeout, Failure):
            return timeout
        if ask.timeout is not None:
            timeout = ask.timeout if timeout is None else min(timeout, ask.timeout)
        pipeline = self._pipelines.by_route.get(ask.route)
        if pipeline is None or ask.route not in self._endpoint.routes:
            raise ServerError(f"the endpoint {self.path} asks the route {ask.route!r}, which is not among its `routes`")
        request.state = asked = _Asked(ask, pipeline)
        about = told(request, self.path) if pipeline.target.takes_request else None
        if self._pipelines.ordering.reads:
            asked.priority, asked.tenant = self._pipelines.ordering.priority_and_tenant(request, self.path, about)
        if pipeline.target.streams:
            asked.form = self._endpoint.stream(ask)
            if asked.form is None:
                asked.events = [[] for _ in range(len(ask.items))]
        count = len(ask.items)
        if count == 1:
            return (self.call(asked, 0, request.request_id, timeout, about),)
        if not 1 <= count <= self._endpoint.max_calls:
            raise ClientError(f"a request may ask for 1 to {self._endpoint.max_calls} items, not {count}; send several")
        return _Calls(self, asked, request.request_id, timeout, about)

    def call(
        self, asked: _Asked, place: int, request_id: str, timeout: float | None, about: ToldRequest | None
    ) -> Call:
        """Return the call for an item."""
        pipelines, target = self._pipelines, asked.pipeline.target
        item = asked.ask.items[place]
        cost, key = UNLABELLED if target.labels is None else target.labels.of(item)
        payload = pipelines.objects.payload(item, apart=target.apart)
        call_id = pipelines.engine.new_id()
        asked.places[call_id] = place
        return Call(
            call_id,
            target.place,
            payload,
            request_id,
            timeout,
            objects=True,
            priority=asked.priority,
            key=key,
            request=about,
            cost=cost,
            tenant=asked.tenant,
        )

    # -- outcomes to response ----------------------------------------------------------------------------------------

    def respond(self, request: Request, outcomes: Sequence[Outcome]) -> Response:
        """Return the endpoint's answer, or what went wrong in its form."""
        # A sink may use the same exchange for its next request.
        asked: _Asked = request.state
        request.state = None
        for outcome in outcomes:
            if (failure := outcome.failure) is not None:
                drop_all([each.payload for each in outcomes if each is not outcome])
                return self._told(failure, asked, asked.places.get(outcome.call_id))
        if asked.events:
            if asked.gathered > MOST_GATHERED:
                raise ServerError(f"the answer is larger than {MOST_GATHERED} bytes; ask for it as a stream")
            if asked.fault is not None:
                raise asked.fault
            return self._sendable(self._endpoint.answer(asked.ask, asked.events))
        results = self._results(asked, outcomes)
        for place, result in enumerate(results):
            if type(result) is Reply:
                if result.status >= HTTPStatus.BAD_REQUEST:
                    return self._told(Failure(result.status, str(result.value)), asked, place)
                results[place] = result.value
        return self._sendable(self._endpoint.answer(asked.ask, results))

    def _results(self, asked: _Asked, outcomes: Sequence[Outcome]) -> list[Any]:
        value_of, egress = self._pipelines.value_of, asked.pipeline.target.egress
        results: list[Any] = []
        try:
            for outcome in outcomes:
                results.append(value_of(outcome.payload, egress))
        except ServerError:
            drop_all([outcome.payload for outcome in outcomes[len(results) + 1 :]])
            raise
        return results

    def unknown(self, failure: Failure) -> Response:
        """Return the answer to a request for which there is no route, in the endpoint's form."""
        return self._told(failure, None, None)

    def refuse(self, request: Request, failure: Failure) -> Response:
        """Return what is wrong with a request, in the endpoint's form."""
        return self._told(failure, request.state, None)

    def _told(self, failure: Failure, asked: _Asked | None, place: int | None) -> Response:
        try:
            return self._sendable(self._endpoint.error(_problem(failure, asked, place)))
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            # The client would wait without an end.
            self._pipelines.ration.fault(logging.ERROR, BAD_FORM, self.path, failure.text, error=error)
            return failed(failure)

    def _sendable(self, response: Any) -> Response:
        """Return an answer of the endpoint, which the user may have written, if it can be sent."""
        if not isinstance(response, Response):
            raise ServerError(f"the endpoint {self.path} answers with a {type(response).__name__}; give a Response")
        status, headers, body = response
        if not (isinstance(status, int) and 200 <= status < 600):
            raise ServerError(f"the status of an answer of {self.path} is a number from 200 to 599, not {status!r}")
        if not isinstance(body, bytes):
            raise ServerError(f"the body of an answer of {self.path} is bytes, not {type(body).__name__}; encode it")
        for header in headers:
            if header is not JSON and not _is_header(*header):
                raise ServerError(
                    f"an answer of {self.path} has a header that cannot be sent: give pairs of bytes, a name of "
                    "letters, digits and hyphens, and a value without line breaks"
                )
        return response

    # -- streams -----------------------------------------------------------------------------------------------------

    def stream(self, request: Request) -> StreamForm | None:
        """Return the form of the stream that answers a request; None for a whole answer."""
        asked: _Asked | None = request.state
        if asked is None or asked.form is None:
            return None
        return _Form(asked, asked.form, self._pipelines, request.request_id)

    def gather(self, request: Request, chunk: Chunk) -> None:
        """Keep an event for a whole answer."""
        asked: _Asked = request.state
        size = len(chunk.payload)
        asked.gathered += size
        if asked.gathered <= MOST_GATHERED:
            try:
                event = self._pipelines.value_of(chunk.payload, asked.pipeline.target.egress)
            except ServerError as error:
                # The answer would lack it.
                asked.fault = error
            else:
                asked.events[asked.places[chunk.call_id]].append(event)
        # In a later turn: a caller must not call the engine while the engine calls it.
        asyncio.get_running_loop().call_soon(self._pipelines.engine.credit, Credit(chunk.call_id, size))


def _is_header(name: Any, value: Any) -> bool:
    """Whether this can be sent as a header."""
    are_bytes = isinstance(name, bytes) and isinstance(value, bytes)
    return are_bytes and _NAME.fullmatch(name) is not None and _CONTROL.search(value) is None


class _Calls:
    """The calls of a request of several, made when their turn comes; see `several.CallsInTurn`."""

    def __init__(
        self, route: ProtocolRoute, asked: _Asked, request_id: str, timeout: float | None, about: ToldRequest | None
    ) -> None:
        self.turns = asked.pipeline.turns
        self._route = route
        self._asked = asked
        self._request_id = request_id
        self._about = about
        self._timeout = timeout
        # A stream's timeout is for its own first event; all others together have that of the request.
        self._clock = asyncio.get_running_loop().time
        seconds = asked.pipeline.target.timeout
        self._deadline = self._clock() + (seconds if timeout is None else min(timeout, seconds))

    def __len__(self) -> int:
        return len(self._asked.ask.items)

    def __getitem__(self, place: int) -> Call:
        timeout = self._timeout
        if place and not self._asked.pipeline.target.streams:
            # Where nothing is left, the engine refuses the call in the usual words.
            timeout = max(0.001, self._deadline - self._clock())
        return self._route.call(self._asked, place, self._request_id, timeout, self._about)


class _Form:
    """The form of one stream, made of that of an endpoint; see `web.exchange.StreamForm`."""

    def __init__(self, asked: _Asked, form: EventForm, pipelines: Pipelines, request_id: str) -> None:
        self.headers: Sequence[Header] = ((b"content-type", form.content_type.encode("latin-1")), *NO_CACHE)
        self.comment = form.comment
        self._asked = asked
        self._form = form
        self._pipelines = pipelines
        self._request_id = request_id
        self._failed = False

    def chunk(self, chunk: Chunk) -> bytes:
        """Return an event in the endpoint's form; one that it cannot give a form to is the answer's last."""
        if self._failed:
            return b""
        try:
            event = self._pipelines.value_of(chunk.payload, self._asked.pipeline.target.egress)
            return self._form.piece(event, self._asked.places[chunk.call_id])
        except BaseException as error:
            return self._broken(error)

    def end(self) -> bytes:
        """Return the endpoint's end."""
        if self._failed:
            return b""
        try:
            return self._form.end()
        except BaseException as error:
            return self._broken(error)

    def failure(self, failure: Failure, *, begun: bool) -> bytes | None:
        """Return the endpoint's form of a failure; one before the beginning is an ordinary answer."""
        if not begun:
            return None
        return b"" if self._failed else self._last(failure)

    def _broken(self, error: BaseException) -> bytes:
        if isinstance(error, KeyboardInterrupt):
            raise error
        self._failed = True
        failure = describe(error)
        self._log("a stream was ended: %s", failure.text, error=error)
        return self._last(failure) or b""

    def _last(self, failure: Failure) -> bytes | None:
        """Return the endpoint's form of a failure, which is the last piece; None where it has none."""
        try:
            return self._form.failure(_problem(failure, self._asked, None))
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self._log("a client cannot be told why its stream was ended", error=error)
            return None

    def _log(self, text: str, *args: object, error: BaseException) -> None:
        extra = {"request_id": self._request_id}
        self._pipelines.ration.fault(logging.ERROR, text, *args, error=error, extra=extra)


def _problem(failure: Failure, asked: _Asked | None, place: int | None) -> Problem:
    ask = None if asked is None else asked.ask
    return Problem(failure.code, failure.text, failure.retry_after, ask, place, failure.fields)
