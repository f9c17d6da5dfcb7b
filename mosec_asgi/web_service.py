"""A service whose engine is another process: what this one has of it is the web side.

It starts at once, whether the engine is there or not. As long as that is away, or its models load, `/readyz` and calls
are answered 503, and it is looked for again and again.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from multiprocessing.process import BaseProcess
from threading import get_ident
from typing import TYPE_CHECKING, Any

from mosec_asgi import log
from mosec_asgi.batching.engine import Statistics
from mosec_asgi.calls.inference import Inference
from mosec_asgi.calls.objects import Objects
from mosec_asgi.calls.routes import CallRoute, call_routes, route_shapes
from mosec_asgi.config import Settings
from mosec_asgi.definition import plan_service
from mosec_asgi.errors import ENGINE_AWAY, CallError
from mosec_asgi.front import Front, Shown, opened_tracing
from mosec_asgi.host.daemons import watch
from mosec_asgi.ipc.reference import Span
from mosec_asgi.observing.metrics import ServiceMetrics
from mosec_asgi.observing.statistics import ServiceReport
from mosec_asgi.remote.dialing import Dialing
from mosec_asgi.remote.engine import Away, RemoteEngine
from mosec_asgi.remote.handshake import SECONDS as HANDSHAKE_SECONDS
from mosec_asgi.remote.memory import PutPayload
from mosec_asgi.steering import Steering

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from mosec_asgi.web.dashboard import DashboardPage
    from mosec_asgi.web.direct import DirectRoutes

STEERED_ELSEWHERE = (
    "the workers belong to the engine, which is another process: change them by `mosec-asgi ctl`, for which the engine "
    "has the setting admin_socket"
)

logger = log.internal_logger(__name__)


@dataclass(frozen=True)
class Web:
    """A process that is one of several with the same engine, started by `run()`.

    Attributes:
        connection: to the engine.
        settings: of one of them.
        alone: called when the connection has ended.
    """

    connection: socket.socket
    settings: Settings
    alone: Callable[[], object]


class WebService:
    """The web side of a service, on the event loop on which it was made."""

    def __init__(self, shown: Shown, settings: Settings, web: Web | None = None) -> None:
        """Put the parts together; nothing is started.

        Args:
            shown: what it shows, as its program says.
            settings: of the service; `engine` says where that is.
            web: of a process that `run()` has started.
        """
        self.loop = asyncio.get_running_loop()
        self._thread = get_ident()
        self._settings = settings
        self._web = web
        tracing = opened_tracing(settings, time.monotonic)
        stages, pipelines, limits = plan_service(shown.routes, settings, traces=tracing is not None)
        self._call_routes = call_routes(stages, pipelines, limits)
        # Its stages are the engine's to count.
        metrics = ServiceMetrics(settings.namespace, [])
        self._engine = RemoteEngine(self.loop, metrics, stream_buffer=settings.stream_buffer)
        self._front = Front(shown, settings, self._engine, metrics, self._call_routes, tracing)
        self._dialing: asyncio.Task[None] | None = None
        self._daemon_watches: list[asyncio.Task[None]] = []
        # As those of `service.Service`.
        self.app: ASGIApp
        self.direct_routes: DirectRoutes | None = None
        self.calls: Inference

    async def start(self, answering: Callable[[], object] = lambda: None) -> None:
        """Begin to answer, and look for the engine; return when it was found, or is not where it should be.

        Args:
            answering: called once the app answers requests.
        """
        objects = Objects(_EngineBlocks(self._engine))
        self.calls = self._front.call_objects(objects)
        self._front.name_traces()
        self.app = self._front.build(objects, self._dashboard(), whole=_Elsewhere(self._engine), listens=False)
        self.direct_routes = self._front.direct_routes
        self._front.look_at_keys()
        answering()
        given = None if self._web is None else self._web.connection
        shapes = route_shapes(self._call_routes)
        dialing = Dialing(self._engine, shapes, "" if given else self._settings.engine, given, self._look_at_room)
        self._dialing = self.loop.create_task(dialing.run())
        if self._web is not None:
            self._dialing.add_done_callback(self._alone)
        tried = self.loop.create_task(dialing.tried.wait())
        try:
            await asyncio.wait([tried], timeout=HANDSHAKE_SECONDS)
        finally:
            tried.cancel()

    async def stop(self) -> None:
        """Take no more calls, let those that run finish within the service's timeout, and leave the engine."""
        for each in self._daemon_watches:
            each.cancel()
        try:
            await self._engine.finish(self._settings.grace_seconds)
        finally:
            self._let_go()
            await self._front.send_spans()

    def announce_end(self) -> None:
        """Say at `/readyz` that the end is near; requests are still admitted."""
        self._engine.announce_end()

    def close(self) -> None:
        """Admit no more requests."""
        self._engine.close()

    def abandon(self) -> None:
        """Leave the engine at once: the event loop is closed and nothing can be waited for."""
        self._let_go()

    def statistics(self) -> Statistics:
        """Return how things stood a moment ago."""
        return self._engine.statistics()

    def report(self) -> ServiceReport:
        """Return how things stood a moment ago, and what has been counted and measured until then, by all processes."""
        return self._engine.report()

    def is_here(self) -> bool:
        """Whether this is the event loop that the service runs on."""
        return get_ident() == self._thread and self.loop.is_running()

    @property
    def steering(self) -> Steering:
        """Refuse changes, which are the engine's.

        Raises:
            CallError: always.
        """
        raise CallError(STEERED_ELSEWHERE)

    def watch_daemon(
        self, name: str, process: subprocess.Popen[Any] | BaseProcess, on_exit: Callable[[str, int], None]
    ) -> None:
        """Call `on_exit` with the name and the exit code once `process` has ended, where it is this process's own."""
        if self._web is None:
            self._daemon_watches.append(self.loop.create_task(watch(name, process, on_exit)))

    def _dashboard(self) -> DashboardPage | None:
        if not self._settings.shows_dashboard:
            return None
        from mosec_asgi.web.dashboard import DashboardPage

        async def told(run: str, after: str) -> bytes:
            return await self._engine.ask("dashboard", f"{run} {after}")

        return DashboardPage(told)

    def _look_at_room(self) -> None:
        """Note how many calls are worth having in flight, as the engine has said."""
        changed: dict[str, CallRoute] = {}
        for path, (at_once, in_flight) in self._engine.room.items():
            route = self._call_routes[path]
            if (route.at_once, route.in_flight) != (at_once, in_flight):
                changed[path] = replace(route, at_once=at_once, in_flight=in_flight)
        if changed:
            self._front.update_routes(changed)

    def _alone(self, dialing: asyncio.Task[None]) -> None:
        if not dialing.cancelled():
            if (error := dialing.exception()) is not None:
                logger.error("the connection to the engine has failed", exc_info=error)
            assert self._web is not None
            self._web.alone()

    def _let_go(self) -> None:
        if self._dialing is not None and not self.loop.is_closed():
            self._dialing.cancel()
        self._engine.disconnect()
        self._front.close()


class _Elsewhere:
    """A service whose engine runs in another process, as a whole; see `web.whole.Whole`."""

    def __init__(self, engine: RemoteEngine) -> None:
        self._engine = engine

    async def statistics(self) -> Statistics:
        """Return how things stand."""
        # Of one that does not answer the connection asks, from time to time.
        if not self._engine.is_silent:
            try:
                await self._engine.refresh()
            except Away:
                # So do its statistics say.
                pass
        return self._engine.statistics()

    async def metrics(self, accept: str) -> tuple[bytes, str]:
        """Return the metrics of all processes, as text."""
        try:
            content_type, _, body = (await self._engine.ask("metrics", accept)).partition(b"\n")
        except Away:
            return ENGINE_AWAY.text.encode(), ""
        return body, content_type.decode()


class _EngineBlocks:
    """Where large buffers of items are put: the memory of whichever engine there is; see `calls.objects.Blocks`."""

    def __init__(self, engine: RemoteEngine) -> None:
        self._engine = engine

    def put(self, data: bytes | memoryview) -> Span | None:
        """Write a block; None where there is no room, or no engine."""
        memory = self._engine.memory
        return None if memory is None else memory.put(data)

    def take_back(self, spans: Sequence[Span]) -> None:
        """Have blocks written over, which nobody has been told of."""
        if (memory := self._engine.memory) is not None:
            memory.take_back(spans)

    def hold(self, description: bytes) -> PutPayload:
        """Return the payload that lies in blocks that were put, by their description."""
        memory = self._engine.memory
        if memory is None:
            raise CallError(ENGINE_AWAY.text, HTTPStatus.SERVICE_UNAVAILABLE)
        return memory.hold(description)
