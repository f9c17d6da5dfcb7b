"""A service that runs: what was defined, made into plans, a coordinator, an app and its metrics, on one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from threading import get_ident
from typing import TYPE_CHECKING, Any

from mosec_asgi import log
from mosec_asgi.admin import AdminSocket
from mosec_asgi.batching.coordinator import Coordinator
from mosec_asgi.batching.engine import Engine, Statistics
from mosec_asgi.batching.future import FutureOutcome
from mosec_asgi.batching.stage import StagePlan
from mosec_asgi.calls.inference import Inference
from mosec_asgi.calls.objects import Objects, value_of
from mosec_asgi.calls.routes import call_routes
from mosec_asgi.config import Settings, prometheus_directory, telemetry_variables
from mosec_asgi.definition import openapi_document, plan_service
from mosec_asgi.errors import Failure, StartupError
from mosec_asgi.host.memory import memory_limit
from mosec_asgi.host.placement import place
from mosec_asgi.ipc.shm import SharedMemory, shared_memory
from mosec_asgi.messages import Call, Chunk, Credit
from mosec_asgi.observing.custom import CustomMetrics
from mosec_asgi.observing.metrics import ServiceMetrics, StageMetrics
from mosec_asgi.observing.observer import StageObserver
from mosec_asgi.observing.statistics import LOADING, SERVING, ServiceReport, report
from mosec_asgi.pool.link import Launcher
from mosec_asgi.pool.process.launcher import ProcessLauncher
from mosec_asgi.pool.thread import ThreadLauncher
from mosec_asgi.request import Request
from mosec_asgi.runtime import Runtime
from mosec_asgi.steering import Steering
from mosec_asgi.streaming import response_type, streams
from mosec_asgi.version import SERVER
from mosec_asgi.web.key_file import LOOK_SECONDS, key_ring

if TYPE_CHECKING:
    from starlette.middleware import Middleware
    from starlette.types import ASGIApp

    from mosec_asgi.observing.tracing import Tracing
    from mosec_asgi.pool.ray.cluster import RayCluster
    from mosec_asgi.web.dashboard import Dashboard
    from mosec_asgi.web.direct import DirectRoutes
    from mosec_asgi.web.exchange import Shared
    from mosec_asgi.web.protocols.adapter import Pipelines, ProtocolRoute
    from mosec_asgi.web.protocols.ordering import Ordering
    from mosec_asgi.web.protocols.seam import Endpoint, Listener, Protocol

DAEMON_CHECK_SECONDS = 0.2
# Seconds, beside its grace, in which a process that another follows lets go of its protocols' ports; and between two
# looks at them.
PORT_SECONDS = 10.0
POLL_SECONDS = 0.05

logger = log.internal_logger(__name__)
# Workers, beside those that were defined, for which there is room in shared memory: replacements, and what is scaled up
# to. The payloads of still others pass through their pipes.
FURTHER_WORKERS = 8


@dataclass(frozen=True, slots=True)
class Platform:
    """What a service runs on instead of worker processes and the system's clock.

    Attributes:
        launcher: makes what starts the workers of a stage.
        clock: seconds, monotonic.
    """

    launcher: Callable[[StagePlan, asyncio.AbstractEventLoop], Launcher]
    clock: Callable[[], float]


class Service:
    """A service on the event loop on which it was made."""

    def __init__(
        self,
        routes: Mapping[str, Sequence[Runtime]],
        settings: Settings,
        *,
        import_main: bool,
        own_http: bool = False,
        follows: bool = False,
        platform: Platform | None = None,
        document: Callable[[], dict[str, Any]] | None = None,
        middleware: Sequence[Middleware] = (),
        protocols: Sequence[Protocol] = (),
    ) -> None:
        """Put the parts together; nothing is started.

        Args:
            routes: the stages by route.
            settings: of the service.
            import_main: let spawned workers import the program's main module in any case; see `ProcessLauncher`.
            own_http: HTTP is spoken by the protocols of `run()`, unless the settings say otherwise.
            follows: another process serves until this one can; see `host.handover`.
            platform: what to run on; None for processes.
            document: makes the OpenAPI document; None for that of the routes.
            middleware: what each request goes through; the first is the outermost.
            protocols: in which clients speak to the workers beside the plain routes.
        """
        self.loop = asyncio.get_running_loop()
        self._thread = get_ident()
        self._settings = settings
        self._import_main = import_main
        self._own_http = own_http
        self._follows = follows
        self._taking_ports: asyncio.Task[None] | None = None
        self._simulated = platform is not None
        self._routes = routes
        self._document = document or functools.partial(openapi_document, routes, settings, protocols)
        self._middleware = middleware
        self._protocols = protocols
        self._clock = platform.clock if platform else time.monotonic
        self._tracing = _tracing(settings, self._clock) if settings.tracing else None
        placing = None if platform else place
        stages, pipelines, limits = plan_service(routes, settings, traces=self._tracing is not None, place=placing)
        self._workers = sum(len(plan.specs) for plan in stages)
        self._call_routes = call_routes(stages, pipelines, limits)
        self._route_plans, self._limits = pipelines, limits
        # What endpoints of protocols ask, if there are any.
        self._pipelines: Pipelines | None = None
        self._memory: SharedMemory | None = None
        self._ray: RayCluster | None = None
        self._following: asyncio.Task[None] | None = None
        self._stages = stages
        self._metrics = ServiceMetrics(
            settings.namespace,
            [
                StageMetrics(
                    plan.name,
                    batched=plan.batch_size > 1,
                    streams=plan.streams,
                    costed=bool(plan.rules.max_cost) or plan.rules.by_cost,
                )
                for plan in stages
            ],
        )
        # Workers in this process use the process's own prometheus_client registry.
        self._custom = None if platform else CustomMetrics(prometheus_directory())
        self._began = self._clock()
        self._state = LOADING
        self._stage_names = {plan.path: [stages[place].name for place in plan.stages] for plan in pipelines}
        self._coordinator = Coordinator(
            stages,
            pipelines,
            platform.launcher if platform else self._launcher,
            limits,
            observers=[self._metrics.stages, *self._tracing_observers(stages)],
            clock=self._clock,
            traceparent=self._tracing.traceparent if self._tracing is not None else None,
            shared_memory=lambda: self._memory.in_use if self._memory is not None else 0,
        )
        self.steering = Steering(routes, settings, stages, self._coordinator, self._stages_changed)
        self._admin: AdminSocket | None = None
        if settings.admin_socket:
            self._admin = AdminSocket(settings.admin_socket, self.steering, self.report, takes_over=follows)
        self._keys = key_ring(settings)
        self._key_look: asyncio.TimerHandle | None = None
        self._daemon_watches: list[asyncio.Task[None]] = []
        self._recording: asyncio.Task[None] | None = None
        # The ports of protocols beside HTTP's, and what is asked there.
        self._listeners: dict[Listener, Sequence[ProtocolRoute]] = {}
        self._shared: Shared
        # The app, once the service has started; and the routes that `run()` can serve without the app, by path.
        self.app: ASGIApp
        self.direct_routes: DirectRoutes | None = None
        # Takes calls of objects, from then on.
        self.calls: Inference

    async def start(self, answering: Callable[[], object] = lambda: None) -> None:
        """Start all workers and wait until the service can serve; raise `StartupError` where it never will.

        Args:
            answering: called once the app answers requests, those to models by 503, while the workers load.
        """
        if self._custom is not None:
            self._custom.open()
        if self._tracing is not None:
            log.name_traces(self._tracing.trace_of)
        if not self._simulated:
            self._memory = shared_memory(self._settings.shared_memory, self._workers + FURTHER_WORKERS)
        objects = Objects()
        if self._memory is not None:
            self._memory.views.tell = functools.partial(self._release_soon, self._memory)
            objects = Objects(self._memory.own_blocks())
        self.calls = Inference(self._coordinator, self._call_routes, objects, self._metrics, self.loop, self._tracing)
        try:
            if self._admin is not None and not self._follows:
                await self._admin.start()
        except BaseException:
            await self._close_tracing()
            self._let_go()
            raise
        starting = self.loop.create_task(self._coordinator.start())
        try:
            # Its first step launches the workers.
            await asyncio.sleep(0)
            self.app = self._build_app(objects)
            # From the first second on, as HTTP's.
            if not self._follows:
                for listener, routes in self._listeners.items():
                    await listener.start(routes, self._shared)
            self._look_at_keys()
            answering()
            await starting
            if self._follows:
                await self._take_over()
            self._began, self._state = self._clock(), SERVING
            self._follow_cluster()
        except BaseException:
            starting.cancel()
            await asyncio.wait([starting, *self._stop_listeners(0)])
            await self._close_tracing()
            self._let_go()
            raise

    async def _take_over(self) -> None:
        """Listen where the process before this one has listened; its protocols' own ports are free once it ends."""
        if self._admin is not None:
            await self._admin.start()
        if self._listeners:
            self._taking_ports = self.loop.create_task(self._take_ports())

    async def _take_ports(self) -> None:
        """Take the ports of the protocols when they are free, within the time that a service gets for its end."""
        end = self.loop.time() + self._settings.grace_seconds + PORT_SECONDS
        for listener, routes in self._listeners.items():
            while True:
                try:
                    await listener.start(routes, self._shared)
                    break
                except StartupError as error:
                    if self.loop.time() > end:
                        logger.error("%s; until the next start there is none", error)
                        return
                    await asyncio.sleep(POLL_SECONDS)

    def _follow_cluster(self) -> None:
        """Keep as many workers as fit into the cluster, of those stages that want that."""
        following = {plan.name: plan.ray for plan in self._stages if plan.ray is not None and plan.ray.follows}
        if not following or self._ray is None:
            return
        from mosec_asgi.following import Following

        followed = Following(
            self._ray,
            following,
            lambda stage: self._coordinator.statistics().stages[self.steering.place_of(stage)].workers,
            self.steering.scale,
            self._settings.max_workers,
        )
        self._following = self.loop.create_task(followed.run())

    async def stop(self) -> None:
        """Finish what was admitted, within the service's timeout, and end all workers."""
        if self._following is not None:
            self._following.cancel()
        for watch in self._daemon_watches:
            watch.cancel()
        if self._taking_ports is not None:
            self._taking_ports.cancel()
        if self._admin is not None:
            self._admin.close()
        try:
            grace = self._settings.grace_seconds
            await asyncio.gather(self._coordinator.stop(grace), *self._stop_listeners(grace))
            if self._admin is not None:
                await self._admin.finish()
        finally:
            await self._close_tracing()
            self._let_go()

    def announce_end(self) -> None:
        """Say at `/readyz` that the end is near; requests are still admitted."""
        self._coordinator.announce_end()

    def close(self) -> None:
        """Admit no more requests."""
        self._coordinator.close()

    def statistics(self) -> Statistics:
        """Return how things stand."""
        return self._coordinator.statistics()

    def report(self) -> ServiceReport:
        """Return how things stand, and what has been counted and measured so far."""
        return report(
            self._metrics,
            self._coordinator.statistics(),
            self._stage_names,
            state=self._state,
            uptime=self._clock() - self._began,
            capacity=self._settings.capacity,
        )

    def abandon(self) -> None:
        """End all workers at once: the event loop is closed and nothing can be waited for."""
        self._coordinator.abandon()
        self._let_go()

    @property
    def engine(self) -> Engine:
        """What runs calls."""
        return self._coordinator

    async def run_example(self, route: int, request_id: str) -> int | Failure:
        """Run the example of a route's first worker; return the bytes of its result, or of its events."""
        caller = _SizeCaller(self._coordinator)
        path = list(self._routes)[route]
        request = Request(request_id, path) if self._call_routes[path].takes_request else None
        call = Call(self._coordinator.new_id(), route, b"", request_id, example=True, request=request)
        self._coordinator.submit(call, caller)
        outcome = await caller.future
        return outcome.failure or caller.size + len(outcome.payload)

    def worker_processes(self, route: int) -> list[int | None]:
        """Return the process of the first worker of each stage of a route; None where that is no process of its own."""
        return self._coordinator.worker_processes(route)

    def watch_daemon(
        self, name: str, process: subprocess.Popen[Any] | BaseProcess, on_exit: Callable[[str, int], None]
    ) -> None:
        """Call `on_exit` with the name and the exit code once `process` has ended."""
        self._daemon_watches.append(self.loop.create_task(_watch_daemon(name, process, on_exit)))

    def is_here(self) -> bool:
        """Whether this is the event loop that the service runs on."""
        # A thread runs one event loop at a time. To ask asyncio for it costs a system call until Python 3.12.
        return get_ident() == self._thread and self.loop.is_running()

    def _build_app(self, objects: Objects) -> ASGIApp:
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
            for path, pipeline in self._routes.items()
        ]
        memory = memory_limit()
        spoken = self._protocol_routes(objects)
        app = App(
            [*plain.routes(results, self._coordinator.new_id, self._ordering()), *spoken],
            self._coordinator,
            self._metrics,
            self._document,
            custom=self._custom,
            max_request_size=self._settings.max_request_size,
            compressed=self._settings.compression,
            server=SERVER,
            body_memory=self._settings.body_memory or memory // 4,
            limits=http_limits(self._settings, memory),
            access_log=self._settings.access_log,
            # The protocols of `run()` do it themselves.
            lingers=not self._own_http or self._settings.http == "plain",
            middleware=[*own_middleware(self._settings), *self._middleware],
            tracing=self._tracing,
            keys=None if self._keys is None else self._keys.keys,
            forms={route.below: route.unknown for route in spoken if route.below},
            title=self._settings.title,
            dashboard=self._open_dashboard() if self._settings.shows_dashboard else None,
        )
        self.direct_routes = app.direct_routes
        self._shared = app.shared
        return app.outermost

    def _open_dashboard(self) -> Dashboard:
        """Return the dashboard, whose record begins now."""
        from mosec_asgi.web.dashboard import Dashboard

        dashboard = Dashboard(self.report, title=self._settings.title, stages=len(self._metrics.stages))
        # On virtual time a timer that is always set would have the clock run on while all others wait.
        if not self._simulated:
            self._recording = self.loop.create_task(dashboard.record())
        return dashboard

    def _ordering(self) -> Ordering:
        """Return what is read of a request for its place among others."""
        from mosec_asgi.web.protocols.ordering import ordering_of

        return ordering_of(self._settings)

    def _protocol_routes(self, objects: Objects) -> list[ProtocolRoute]:
        """Return the routes of the protocols."""
        if not self._protocols:
            return []
        from mosec_asgi.web.protocols.adapter import Pipelines, ProtocolRoute

        ordering = self._ordering()
        pipelines = self._pipelines = Pipelines(self._call_routes, objects, value_of, self._coordinator, ordering)
        endpoints = [endpoint for protocol in self._protocols for endpoint in protocol.endpoints()]
        self._open_health(endpoints)
        # Tests without processes have no ports either.
        for protocol in () if self._simulated else self._protocols:
            if (listener := protocol.listener()) is not None:
                self._open_health(listener.endpoints)
                self._listeners[listener] = [ProtocolRoute(endpoint, pipelines) for endpoint in listener.endpoints]
        return [ProtocolRoute(endpoint, pipelines) for endpoint in endpoints]

    def _open_health(self, endpoints: Iterable[Endpoint]) -> None:
        """Have probes answered without a key."""
        for endpoint in endpoints:
            if endpoint.is_health and self._keys is not None:
                self._keys.keys.open_health(endpoint.path)

    def _stages_changed(self, plans: Sequence[StagePlan]) -> None:
        """Let callers know how many calls are worth having in flight."""
        self._call_routes.update(call_routes(plans, self._route_plans, self._limits))
        if self._pipelines is not None:
            self._pipelines.now(self._call_routes)

    def _stop_listeners(self, grace: float) -> list[asyncio.Task[None]]:
        """Have the protocols' own ports closed, once what came there is answered."""
        return [self.loop.create_task(listener.stop(grace)) for listener in self._listeners]

    def _launcher(self, plan: StagePlan, loop: asyncio.AbstractEventLoop) -> Launcher:
        if callable(plan.executor):
            return plan.executor(plan, loop)
        if plan.executor == "thread":
            return ThreadLauncher(loop)
        if plan.executor == "ray":
            # Imported here: no other service needs it.
            from mosec_asgi.pool.ray.cluster import RayCluster
            from mosec_asgi.pool.ray.launcher import RayLauncher

            if self._ray is None:
                self._ray = RayCluster(loop, self._settings.ray_port)
            return RayLauncher(loop, plan.ray, self._ray)
        return ProcessLauncher(
            loop,
            plan.start_method,
            import_main=self._import_main,
            preload=plan.preload,
            memory=self._memory,
            counts=self._custom,
            defaults=plan.defaults,
        )

    def _look_at_keys(self) -> None:
        """Look whether the file of API keys has changed, from time to time."""
        # On virtual time a timer that is always set would have the clock run on while all others wait.
        if self._keys is not None and self._keys.file and not self._simulated:
            self._keys.look()
            self._key_look = self.loop.call_later(LOOK_SECONDS, self._look_at_keys)

    def _release_soon(self, memory: SharedMemory) -> None:
        """Have memory given back whose last references have gone, in whichever thread that is."""
        # A closed loop has nobody left who would write there.
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(memory.views.release)

    def _tracing_observers(self, stages: Sequence[StagePlan]) -> list[Sequence[StageObserver]]:
        tracing = self._tracing
        if tracing is None:
            return []
        return [[tracing.stage(plan.name, batched=plan.batch_size > 1) for plan in stages]]

    async def _close_tracing(self) -> None:
        """Send the spans that are left."""
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)

    def _let_go(self) -> None:
        """Let go of what was shared with the workers, once they have ended, and end the record."""
        if self._admin is not None:
            self._admin.close()
        if self._key_look is not None:
            self._key_look.cancel()
        if self._tracing is not None:
            log.forget_traces(self._tracing.trace_of)
        if self._recording is not None:
            self._recording.cancel()
            self._recording = None
        if self._custom is not None:
            self._custom.close()
        if self._memory is not None:
            self._memory.close()
            self._memory = None


def _tracing(settings: Settings, clock: Callable[[], float]) -> Tracing | None:
    """Return what makes spans; None where nobody is told of them."""
    from mosec_asgi.observing import provider

    opened = provider.opened(telemetry_variables(), settings.namespace)
    if opened is None:
        return None
    from mosec_asgi.observing.tracing import Tracing

    return Tracing(opened, clock)


class _SizeCaller(FutureOutcome):
    """Waits for an outcome, and adds up the bytes of the stream before it.

    Attributes:
        size: bytes of the stream.
    """

    __slots__ = ("_engine", "size")

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.size = 0
        self._engine = engine

    def streamed(self, chunk: Chunk) -> None:
        """Count a piece, and make room for the next."""
        self.size += len(chunk.payload)
        # In a later turn: a caller must not call the engine while the engine calls it.
        credit = Credit(chunk.call_id, len(chunk.payload))
        asyncio.get_running_loop().call_soon(self._engine.credit, credit)


async def _watch_daemon(
    name: str, process: subprocess.Popen[Any] | BaseProcess, on_exit: Callable[[str, int], None]
) -> None:
    # Polled: the user's code has started the process and may reap it, so there is no other way to watch it.
    while (code := _exit_code(process)) is None:  # noqa: ASYNC110 - nothing sets an event
        await asyncio.sleep(DAEMON_CHECK_SECONDS)
    on_exit(name, code)


def _exit_code(process: subprocess.Popen[Any] | BaseProcess) -> int | None:
    return process.exitcode if isinstance(process, BaseProcess) else process.poll()
