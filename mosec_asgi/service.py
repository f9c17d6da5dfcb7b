"""A service that runs: what was defined, made into plans, a coordinator, an app and its metrics, on one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from threading import get_ident
from typing import TYPE_CHECKING, Any, Protocol

from mosec_asgi import log
from mosec_asgi.admin import AdminSocket
from mosec_asgi.batching.coordinator import Coordinator
from mosec_asgi.batching.engine import Engine, Statistics
from mosec_asgi.batching.future import FutureOutcome
from mosec_asgi.batching.stage_plan import StagePlan
from mosec_asgi.calls.inference import Inference
from mosec_asgi.calls.objects import Objects
from mosec_asgi.calls.routes import call_routes, route_shapes
from mosec_asgi.config import Settings, prometheus_directory
from mosec_asgi.definition import plan_service
from mosec_asgi.errors import Failure
from mosec_asgi.front import Front, Shown, opened_tracing
from mosec_asgi.host.daemons import watch
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
from mosec_asgi.remote.standing import Standing
from mosec_asgi.request import Request
from mosec_asgi.steering import Steering

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from mosec_asgi.observing.exposition import Exposition
    from mosec_asgi.pool.ray.cluster import RayCluster
    from mosec_asgi.remote.callers import Callers
    from mosec_asgi.web.dashboard import Dashboard
    from mosec_asgi.web.direct import DirectRoutes

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


class WebProcesses(Protocol):
    """Where a service finds its web processes.

    Attributes:
        expected: how many there are at a time, for which there is room in shared memory.
    """

    expected: int

    def start(self, take: Callable[[socket.socket], object]) -> None:
        """Give each of their connections to `take`, from now on.

        Raises:
            StartupError: they cannot come: another engine has its place.
        """

    def close(self) -> None:
        """Give no more."""


class Service:
    """A service on the event loop on which it was made."""

    def __init__(
        self,
        shown: Shown,
        settings: Settings,
        *,
        import_main: bool,
        follows: bool = False,
        platform: Platform | None = None,
        web: WebProcesses | None = None,
    ) -> None:
        """Put the parts together; nothing is started.

        Args:
            shown: what it shows to its callers, and the stages by route.
            settings: of the service.
            import_main: let spawned workers import the program's main module in any case; see `ProcessLauncher`.
            follows: another process serves until this one can; see `host.handover`.
            platform: what to run on; None for processes.
            web: gives web processes, which are its callers beside this one.
        """
        self.loop = asyncio.get_running_loop()
        self._thread = get_ident()
        self._settings = settings
        self._import_main = import_main
        self._web = web
        self._follows = follows
        self._taking_ports: asyncio.Task[None] | None = None
        self._simulated = platform is not None
        self._routes = routes = shown.routes
        self._clock = platform.clock if platform else time.monotonic
        self._tracing = opened_tracing(settings, self._clock)
        placing = None if platform else place
        stages, pipelines, limits = plan_service(routes, settings, traces=self._tracing is not None, place=placing)
        self._stages = stages
        self._workers = sum(len(plan.specs) for plan in stages)
        self._call_routes = call_routes(stages, pipelines, limits)
        self._route_plans, self._limits = pipelines, limits
        self._memory: SharedMemory | None = None
        self._ray: RayCluster | None = None
        self._following: asyncio.Task[None] | None = None
        self._metrics = ServiceMetrics(
            settings.namespace,
            [
                StageMetrics(
                    plan.name,
                    batched=plan.batch_size > 1,
                    streams=plan.streams,
                    costed=bool(plan.rules.max_cost) or plan.rules.by_cost,
                    coalesces=plan.coalesce,
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
        self._front = Front(shown, settings, self._coordinator, self._metrics, self._call_routes, self._tracing)
        # The web processes, once they can be taken.
        self._callers: Callers | None = None
        self._exposition: Exposition | None = None
        self._dashboard: Dashboard | None = None
        self._daemon_watches: list[asyncio.Task[None]] = []
        self._recording: asyncio.Task[None] | None = None
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
        self._front.name_traces()
        if not self._simulated:
            others = FURTHER_WORKERS if self._web is None else FURTHER_WORKERS + self._web.expected
            self._memory = shared_memory(self._settings.shared_memory, self._workers + others)
        objects = Objects()
        if self._memory is not None:
            self._memory.views.tell = functools.partial(self._release_soon, self._memory)
            objects = Objects(self._memory.own_blocks())
        self.calls = self._front.call_objects(objects)
        try:
            # Before any worker loads its model: where another engine has their place, nothing is to be started.
            if self._web is not None:
                self._take_web_processes(self._web)
            if self._admin is not None and not self._follows:
                await self._admin.start()
        except BaseException:
            await self._front.send_spans()
            self._let_go()
            raise
        starting = self.loop.create_task(self._coordinator.start())
        try:
            # Its first step launches the workers.
            await asyncio.sleep(0)
            dashboard = self._opened_dashboard() if self._settings.shows_dashboard else None
            self.app = self._front.build(objects, dashboard, custom=self._custom)
            self.direct_routes = self._front.direct_routes
            # From the first second on, as HTTP's.
            if not self._follows:
                await self._front.open_ports()
            self._front.look_at_keys()
            answering()
            await starting
            if self._follows:
                await self._take_over()
            self._began, self._state = self._clock(), SERVING
            self._follow_cluster()
        except BaseException:
            starting.cancel()
            await asyncio.wait([starting, *self._front.stop_ports(0)])
            await self._front.send_spans()
            self._let_go()
            raise

    async def _take_over(self) -> None:
        """Listen where the process before this one has listened; its protocols' own ports are free once it ends."""
        if self._admin is not None:
            await self._admin.start()
        if self._front.has_ports:
            self._taking_ports = self.loop.create_task(self._front.take_ports())

    def _take_web_processes(self, web: WebProcesses) -> None:
        """Accept web processes: they answer requests from here on, and know that the workers are loading."""
        from mosec_asgi.remote.callers import Callers

        routes = route_shapes(self._call_routes)
        # What lies in shared memory is not compared with other inputs.
        firsts = [self._stages[route.stages[0]] for route in self._route_plans]
        apart = [plan.executor == "process" and not plan.coalesce for plan in firsts]
        self._callers = Callers(
            self._coordinator,
            routes,
            apart,
            self._metrics,
            self._memory,
            self._answer_web_process,
            self._limits.timeout,
        )
        web.start(self._callers.add)

    async def _answer_web_process(self, kind: str, text: str) -> bytes:
        """Answer what a web process asks beside calls."""
        if kind == "standing":
            room = {path: (route.at_once, route.in_flight) for path, route in self._call_routes.items()}
            return Standing(self._coordinator.statistics(), self.report(), room).packed()
        assert self._callers is not None
        if kind == "metrics":
            await self._callers.gather_counts()
            if self._exposition is None:
                from mosec_asgi.observing.exposition import Exposition

                self._exposition = Exposition(
                    self._metrics, self._coordinator.statistics, self._custom, self._callers.standing
                )
            body, content_type = self._exposition.render(text)
            return b"\n".join((content_type.encode(), body))
        if kind == "dashboard":
            run, _, after = text.partition(" ")
            # The web processes may have the setting `dashboard` where the engine has not.
            return await (self._dashboard or self._opened_dashboard()).told(run, after)
        raise LookupError(kind)

    def _follow_cluster(self) -> None:
        """Keep the stages with `num="auto"` at as many workers as fit into the cluster."""
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
        for each in self._daemon_watches:
            each.cancel()
        if self._taking_ports is not None:
            self._taking_ports.cancel()
        if self._admin is not None:
            self._admin.close()
        try:
            grace = self._settings.grace_seconds
            await asyncio.gather(self._coordinator.stop(grace), *self._front.stop_ports(grace))
            if self._callers is not None:
                await self._callers.finish()
            if self._admin is not None:
                await self._admin.finish()
        finally:
            await self._front.send_spans()
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
        self._daemon_watches.append(self.loop.create_task(watch(name, process, on_exit)))

    def is_here(self) -> bool:
        """Whether this is the event loop that the service runs on."""
        # A thread runs one event loop at a time. To ask asyncio for it costs a system call until Python 3.12.
        return get_ident() == self._thread and self.loop.is_running()

    def _opened_dashboard(self) -> Dashboard:
        """Make the dashboard, and begin to record for it."""
        from mosec_asgi.web.dashboard import Dashboard

        dashboard = Dashboard(self.report, title=self._settings.title, stages=len(self._metrics.stages))
        # On virtual time a timer that is always set would have the clock run on while all others wait.
        if not self._simulated:
            self._recording = self.loop.create_task(dashboard.record())
        self._dashboard = dashboard
        return dashboard

    def _stages_changed(self, plans: Sequence[StagePlan]) -> None:
        """Tell callers how many calls are worth having in flight, now that the stages have changed."""
        self._front.update_routes(call_routes(plans, self._route_plans, self._limits))

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
                self._ray = RayCluster(loop, self._settings.ray_port, self._settings.ray_tls)
            return RayLauncher(loop, plan.ray, self._ray, self._custom)
        return ProcessLauncher(
            loop,
            plan.start_method,
            import_main=self._import_main,
            preload=plan.preload,
            memory=self._memory,
            counts=self._custom,
            defaults=plan.defaults,
        )

    def _release_soon(self, memory: SharedMemory) -> None:
        """Give back the memory to which no reference is left. May be called in any thread."""
        # The loop may be closed: then nothing is written to the memory any more.
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(memory.views.release)

    def _tracing_observers(self, stages: Sequence[StagePlan]) -> list[Sequence[StageObserver]]:
        tracing = self._tracing
        if tracing is None:
            return []
        return [[tracing.stage(plan.name, batched=plan.batch_size > 1) for plan in stages]]

    def _let_go(self) -> None:
        """Release what was shared with the workers, which have ended, and stop recording for the dashboard."""
        if self._admin is not None:
            self._admin.close()
        self._front.close()
        if self._web is not None:
            self._web.close()
        if self._callers is not None:
            self._callers.close()
        if self._recording is not None:
            self._recording.cancel()
            self._recording = None
        if self._custom is not None:
            self._custom.close()
        if self._memory is not None:
            self._memory.close()
            self._memory = None


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
