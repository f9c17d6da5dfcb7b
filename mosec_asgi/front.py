"""What callers of a service meet: the app, the ports of its protocols, and calls of objects, on whatever engine.

The engine runs on the same event loop (`service`), or in another process (`web_service`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mosec_asgi import log
from mosec_asgi.batching.engine import Engine
from mosec_asgi.calls.inference import Inference
from mosec_asgi.calls.objects import Objects, value_of
from mosec_asgi.calls.routes import CallRoute
from mosec_asgi.config import Settings, telemetry_variables
from mosec_asgi.errors import StartupError
from mosec_asgi.host.memory import memory_limit
from mosec_asgi.observing.custom import CustomMetrics
from mosec_asgi.observing.metrics import ServiceMetrics
from mosec_asgi.runtime import Runtime
from mosec_asgi.streaming import response_type, streams
from mosec_asgi.version import SERVER
from mosec_asgi.web.key_file import LOOK_SECONDS, key_ring

if TYPE_CHECKING:
    from starlette.middleware import Middleware
    from starlette.types import ASGIApp

    from mosec_asgi.observing.tracing import Tracing
    from mosec_asgi.ration import Ration
    from mosec_asgi.request import Request
    from mosec_asgi.web.dashboard import DashboardPage
    from mosec_asgi.web.direct import DirectRoutes
    from mosec_asgi.web.exchange import Shared
    from mosec_asgi.web.protocols.adapter import Pipelines, ProtocolRoute
    from mosec_asgi.web.protocols.ordering import Ordering
    from mosec_asgi.web.protocols.seam import Endpoint, Listener, Protocol
    from mosec_asgi.web.whole import Whole

# Seconds, beside its grace, in which a process that another follows lets go of its protocols' ports; and between two
# looks at them.
PORT_SECONDS = 10.0
POLL_SECONDS = 0.05

logger = log.internal_logger(__name__)


@dataclass(frozen=True)
class Shown:
    """What a service shows to its callers, as its program says.

    Attributes:
        routes: the stages by route.
        document: makes the OpenAPI document.
        middleware: what each request goes through; the first is the outermost.
        protocols: in which clients speak to the workers beside the plain routes.
        own_http: HTTP is spoken by the protocols of `run()`, unless the settings say otherwise.
        simulated: it runs on virtual time, without ports.
        tenant_of: says on whose behalf a request comes; None where a header does, or nothing.
    """

    routes: Mapping[str, Sequence[Runtime]]
    document: Callable[[], dict[str, Any]]
    middleware: Sequence[Middleware] = ()
    protocols: Sequence[Protocol] = ()
    own_http: bool = False
    simulated: bool = False
    tenant_of: Callable[[Request], str] | None = None


class Front:
    """What callers of a service meet, on the event loop on which it was made.

    Attributes:
        direct_routes: those that `run()` can serve without the app, by path, once it is built.
    """

    direct_routes: DirectRoutes | None = None
    _shared: Shared

    def __init__(
        self,
        shown: Shown,
        settings: Settings,
        engine: Engine,
        metrics: ServiceMetrics,
        call_routes: dict[str, CallRoute],
        tracing: Tracing | None,
    ) -> None:
        """Prepare; `build` makes the app.

        Args:
            shown: what it shows.
            settings: of the service.
            engine: runs the calls.
            metrics: what to count into.
            call_routes: what a caller must know of the routes; kept, and changed with the stages.
            tracing: makes the spans of requests.
        """
        self.loop = asyncio.get_running_loop()
        self._shown = shown
        self._settings = settings
        self._engine = engine
        self._metrics = metrics
        self._call_routes = call_routes
        self._tracing = tracing
        self._keys = key_ring(settings)
        self._key_look: asyncio.TimerHandle | None = None
        # What endpoints of protocols ask, if there are any.
        self._pipelines: Pipelines | None = None
        # Of log lines that clients cause.
        self._rations: list[Ration] = []
        # The ports of protocols beside HTTP's, and what is asked there.
        self._listeners: dict[Listener, Sequence[ProtocolRoute]] = {}

    def call_objects(self, objects: Objects) -> Inference:
        """Return what takes calls of objects."""
        return Inference(self._engine, self._call_routes, objects, self._metrics, self.loop, self._tracing)

    def build(
        self,
        objects: Objects,
        dashboard: DashboardPage | None,
        *,
        custom: CustomMetrics | None = None,
        whole: Whole | None = None,
        listens: bool = True,
    ) -> ASGIApp:
        """Return the app.

        Args:
            objects: makes payloads of items.
            dashboard: the live page, if there is one.
            custom: the users' own metrics, if they are shown.
            whole: what is shown of the service; None for what this process knows.
            listens: the ports of protocols are opened in this process.
        """
        # Imported here, while the workers load: the web framework takes about as long to load as a small worker.
        from mosec_asgi.web.app import App
        from mosec_asgi.web.limits import http_limits
        from mosec_asgi.web.origins import own_middleware
        from mosec_asgi.web.protocols import plain

        results = [
            plain.Described(
                path,
                response_type(pipeline[-1].worker),
                streams=streams(pipeline[-1].worker),
                takes_request=self._call_routes[path].takes_request,
                methods=pipeline[0].methods or plain.POST,
                labels=pipeline[0].labels,
            )
            for path, pipeline in self._shown.routes.items()
        ]
        settings = self._settings
        memory = memory_limit()
        spoken = self._protocol_routes(objects, listens=listens)
        app = App(
            [*plain.routes(results, self._engine.new_id, self._ordering()), *spoken],
            self._engine,
            self._metrics,
            self._shown.document,
            custom=custom,
            max_request_size=settings.max_request_size,
            compressed=settings.compression,
            server=SERVER,
            body_memory=settings.body_memory or memory // 4,
            limits=http_limits(settings, memory),
            access_log=settings.access_log,
            # The protocols of `run()` do it themselves.
            lingers=not self._shown.own_http or settings.http == "plain",
            middleware=[*own_middleware(settings), *self._shown.middleware],
            tracing=self._tracing,
            keys=None if self._keys is None else self._keys.keys,
            forms={route.below: route.unknown for route in spoken if route.below},
            title=settings.title,
            dashboard=dashboard,
            whole=whole,
        )
        self.direct_routes = app.direct_routes
        self._shared = app.shared
        self._rations.append(app.shared.ration)
        return app.outermost

    def _ordering(self) -> Ordering:
        """Return what is read of a request for its place among others."""
        from mosec_asgi.web.protocols.ordering import ordering_of

        return ordering_of(self._settings, self._shown.tenant_of)

    def _protocol_routes(self, objects: Objects, *, listens: bool) -> list[ProtocolRoute]:
        """Return the routes of the protocols."""
        protocols = self._shown.protocols
        if not protocols:
            return []
        from mosec_asgi.web.protocols.adapter import Pipelines, ProtocolRoute

        ordering = self._ordering()
        pipelines = self._pipelines = Pipelines(self._call_routes, objects, value_of, self._engine, ordering)
        self._rations.append(pipelines.ration)
        endpoints = [endpoint for protocol in protocols for endpoint in protocol.endpoints()]
        self._open_health(endpoints)
        # Tests without processes have no ports either.
        for protocol in protocols if listens and not self._shown.simulated else ():
            if (listener := protocol.listener()) is not None:
                self._open_health(listener.endpoints)
                self._listeners[listener] = [ProtocolRoute(endpoint, pipelines) for endpoint in listener.endpoints]
        return [ProtocolRoute(endpoint, pipelines) for endpoint in endpoints]

    def _open_health(self, endpoints: Iterable[Endpoint]) -> None:
        """Let probes of health be answered without an API key."""
        for endpoint in endpoints:
            if endpoint.is_health and self._keys is not None:
                self._keys.keys.open_health(endpoint.path)

    def update_routes(self, call_routes: Mapping[str, CallRoute]) -> None:
        """Note what a caller must know of some routes, after their stages have changed."""
        self._call_routes.update(call_routes)
        if self._pipelines is not None:
            self._pipelines.update(self._call_routes)

    # -- its ports and its keys --------------------------------------------------------------------------------------

    @property
    def has_ports(self) -> bool:
        """Whether its protocols have ports of their own."""
        return bool(self._listeners)

    async def open_ports(self) -> None:
        """Open the protocols' own ports.

        Raises:
            StartupError: one of them cannot be opened.
        """
        for listener, routes in self._listeners.items():
            await listener.start(routes, self._shared)

    async def take_ports(self) -> None:
        """Take the ports of the protocols when they are free, within the time that a service gets for its end."""
        end = self.loop.time() + self._settings.grace_seconds + PORT_SECONDS
        for listener, routes in self._listeners.items():
            while True:
                try:
                    await listener.start(routes, self._shared)
                    break
                except StartupError as error:
                    if self.loop.time() > end:
                        logger.error("%s; this port stays closed until the service is started again", error)
                        break
                    await asyncio.sleep(POLL_SECONDS)

    def stop_ports(self, grace: float) -> list[asyncio.Task[None]]:
        """Have the protocols' own ports closed, once what came there is answered."""
        return [self.loop.create_task(listener.stop(grace)) for listener in self._listeners]

    def look_at_keys(self) -> None:
        """Look whether the file of API keys has changed, from time to time."""
        # On virtual time a timer that is always set would have the clock run on while all others wait.
        if self._keys is not None and self._keys.file and not self._shown.simulated:
            self._keys.look()
            self._key_look = self.loop.call_later(LOOK_SECONDS, self.look_at_keys)

    def close(self) -> None:
        """Stop looking at the file of API keys and naming traces, and log what was left out of the log."""
        if self._key_look is not None:
            self._key_look.cancel()
        for ration in self._rations:
            ration.say_all()
        if self._tracing is not None:
            log.forget_traces(self._tracing.trace_of)

    # -- its traces --------------------------------------------------------------------------------------------------

    def name_traces(self) -> None:
        """Have the log name the trace of a request, until `close`."""
        if self._tracing is not None:
            log.name_traces(self._tracing.trace_of)

    async def send_spans(self) -> None:
        """Send the spans that are left, and end tracing."""
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)


def opened_tracing(settings: Settings, clock: Callable[[], float]) -> Tracing | None:
    """Return what makes spans; None where nobody is told of them."""
    if not settings.tracing:
        return None
    from mosec_asgi.observing import provider

    opened = provider.opened(telemetry_variables(), settings.namespace)
    if opened is None:
        return None
    from mosec_asgi.observing.tracing import Tracing

    return Tracing(opened, clock)
