"""A service that runs: what was defined, made into plans, a coordinator, an app and its metrics, on one event loop."""

from __future__ import annotations

import asyncio
import functools
import itertools
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

from mosec_asgi.batching.coordinator import Coordinator, Limits, RoutePlan
from mosec_asgi.batching.service import Statistics, outcome_future
from mosec_asgi.batching.stage import StagePlan
from mosec_asgi.config import Settings, prometheus_directory
from mosec_asgi.custom_metrics import CustomMetrics
from mosec_asgi.errors import Failure
from mosec_asgi.ipc.shm import SharedMemory, shared_memory
from mosec_asgi.metrics import ServiceMetrics, StageMetrics
from mosec_asgi.pool.metered import MeteredLauncher
from mosec_asgi.pool.process import Launcher, ProcessLauncher
from mosec_asgi.pool.spec import WorkerSpec
from mosec_asgi.runtime import Runtime, stage_names
from mosec_asgi.streaming import ContinuousWorker, is_async, streams
from mosec_asgi.version import SERVER
from mosec_asgi.worker import Worker

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from mosec_asgi.web.direct import DirectRoute

DAEMON_CHECK_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Platform:
    """What a service runs on, where that is not processes and the system's time.

    Attributes:
        launcher: makes what starts the workers of a stage.
        clock: seconds, monotonic.
    """

    launcher: Callable[[StagePlan, asyncio.AbstractEventLoop], Launcher]
    clock: Callable[[], float]


class RunningService:
    """A service on the event loop on which it was made."""

    def __init__(
        self,
        routes: Mapping[str, Sequence[Runtime]],
        settings: Settings,
        *,
        import_main: bool,
        platform: Platform | None = None,
        document: Callable[[], dict[str, Any]] | None = None,
    ) -> None:
        """Put the parts together; nothing is started.

        Args:
            routes: the stages by route.
            settings: of the service.
            import_main: let spawned workers import the program's main module in any case; see `ProcessLauncher`.
            platform: what to run on; None for processes.
            document: makes the OpenAPI document; None for that of the routes.
        """
        self.loop = asyncio.get_running_loop()
        self._settings = settings
        self._import_main = import_main
        self._simulated = platform is not None
        self._routes = routes
        self._document = document or functools.partial(openapi_document, routes, settings)
        self._streams = [streams(pipeline[-1].worker) for pipeline in routes.values()]
        stages, pipelines, limits = plan_service(routes, settings)
        self._workers = sum(len(plan.specs) for plan in stages)
        self._memory: SharedMemory | None = None
        self._metrics = ServiceMetrics(
            settings.namespace,
            [StageMetrics(plan.name, batched=plan.batch_size > 1, streams=plan.streams) for plan in stages],
        )
        # Workers in this process count where everything else does.
        self._custom = None if platform else CustomMetrics(prometheus_directory())
        self._metrics.custom = self._custom
        self._metrics.shared_memory = lambda: self._memory.in_use if self._memory is not None else 0
        self._coordinator = Coordinator(
            stages,
            pipelines,
            platform.launcher if platform else self._launcher,
            self._metrics,
            limits,
            clock=platform.clock if platform else time.monotonic,
        )
        self._launchers: list[ProcessLauncher] = []
        self._daemon_watches: list[asyncio.Task[None]] = []
        # Answers requests, once the service has started; and the routes that need not be asked through it, by path.
        self.app: ASGIApp
        self.direct_routes: Mapping[bytes, DirectRoute] = {}

    async def start(self) -> None:
        """Start all workers and wait until the service can serve; raise `StartupError` where it never will."""
        if self._custom is not None:
            self._custom.open()
        if not self._simulated:
            self._memory = shared_memory(self._settings.shared_memory, self._workers)
        starting = self.loop.create_task(self._coordinator.start())
        try:
            # Its first step launches the workers.
            await asyncio.sleep(0)
            self.app = self._build_app()
            await starting
        except BaseException:
            starting.cancel()
            await asyncio.wait([starting])
            self._let_go()
            raise

    async def stop(self) -> None:
        """Finish what was admitted, within the service's timeout, and end all workers."""
        for watch in self._daemon_watches:
            watch.cancel()
        try:
            await self._coordinator.stop(self._settings.timeout_seconds)
        finally:
            self._let_go()

    def close(self) -> None:
        """Admit no more requests."""
        self._coordinator.close()

    def statistics(self) -> Statistics:
        """Return how things stand."""
        return self._coordinator.statistics()

    def abandon(self) -> None:
        """End all workers at once: the event loop is closed and nothing can be waited for."""
        self._coordinator.abandon()
        self._let_go()

    async def run_example(self, route: int, request_id: str) -> int | Failure:
        """Run the example of a route's first worker; return the bytes of its result, or of its events."""
        size = 0

        def take(chunk: bytes) -> None:
            nonlocal size
            size += len(chunk)
            if isinstance(task, int):
                self._coordinator.taken(task, len(chunk))

        future, resolve = outcome_future()
        task = self._coordinator.submit(
            route, b"", request_id, resolve, example=True, on_chunk=take if self._streams[route] else None
        )
        outcome = await future if isinstance(task, int) else task
        return outcome if isinstance(outcome, Failure) else size + len(outcome)

    def watch_daemon(
        self, name: str, process: subprocess.Popen[Any] | BaseProcess, on_exit: Callable[[str, int], None]
    ) -> None:
        """Call `on_exit` with the name and the exit code once `process` has ended."""
        self._daemon_watches.append(self.loop.create_task(_watch_daemon(name, process, on_exit)))

    def is_here(self) -> bool:
        """Whether this is the event loop that the service runs on."""
        return self.loop is asyncio.get_running_loop()

    def _build_app(self) -> ASGIApp:
        # Only here: this loads the web framework, which takes about as long as a small worker takes to load, and then
        # happens at the same time.
        from mosec_asgi.web.access import AccessLog
        from mosec_asgi.web.app import App, Egress

        app = App(
            {
                path: Egress(pipeline[-1].worker.resp_mime_type, streams(pipeline[-1].worker))
                for path, pipeline in self._routes.items()
            },
            self._coordinator,
            self._metrics,
            self._document,
            max_request_size=self._settings.max_request_size,
            compressed=self._settings.compression,
            server=SERVER,
        )
        if self._settings.access_log:
            return AccessLog(app)
        self.direct_routes = app.direct_routes
        return app

    def _launcher(self, plan: StagePlan, loop: asyncio.AbstractEventLoop) -> Launcher:
        launcher = ProcessLauncher(
            loop, plan.start_method, import_main=self._import_main, preload=plan.preload, memory=self._memory
        )
        self._launchers.append(launcher)
        return launcher if self._custom is None else MeteredLauncher(launcher, self._custom)

    def _let_go(self) -> None:
        """Let go of what workers were forked from and of what was shared with them, once they have ended."""
        for launcher in self._launchers:
            launcher.close()
        if self._custom is not None:
            self._custom.close()
        if self._memory is not None:
            self._memory.close()
            self._memory = None


def plan_service(
    routes: Mapping[str, Sequence[Runtime]], settings: Settings
) -> tuple[list[StagePlan], list[RoutePlan], Limits]:
    """Return a service as it is to be run: its stages, its routes, and what it allows."""
    names = stage_names([runtime for pipeline in routes.values() for runtime in pipeline])
    # In the order of their names' numbers, each once, however many routes share it.
    runtimes = list(names)
    stages = []
    for runtime in runtimes:
        followers = _followers(runtime, routes.values())
        after = tuple(dict.fromkeys(names[follower] for follower in followers))
        stages.append(plan_stage(runtime, names[runtime], settings, [each.worker for each in followers], after))
    pipelines = [RoutePlan(path, tuple(map(runtimes.index, pipeline))) for path, pipeline in routes.items()]
    return stages, pipelines, _limits(settings)


def _followers(runtime: Runtime, pipelines: Iterable[Sequence[Runtime]]) -> list[Runtime]:
    """Return the stages that read what a stage passes on, on any route."""
    return [after for pipeline in pipelines for stage, after in itertools.pairwise(pipeline) if stage is runtime]


def plan_stage(
    runtime: Runtime,
    name: str,
    settings: Settings,
    followers: Sequence[type[Worker]] = (),
    next_stages: tuple[str, ...] = (),
) -> StagePlan:
    """Return a stage as it is to be run: the user's values, and the settings where there are none.

    Args:
        runtime: what the user has written.
        name: of the stage.
        settings: of the service.
        followers: the workers that read what it passes on.
        next_stages: the names of their stages.
    """
    # Before the last stage its results are passed on whole.
    streaming = streams(runtime.worker) and not next_stages
    specs = [
        WorkerSpec(
            worker=runtime.worker,
            stage=name,
            worker_id=worker_id,
            max_batch_size=runtime.max_batch_size,
            timeout=runtime.timeout or settings.timeout_seconds,
            isolation_calls=runtime.isolation_calls,
            concurrency=runtime.concurrency,
            args=runtime.args,
            kwargs=runtime.kwargs,
            next_stages=next_stages,
            strict_json=settings.strict_json,
            stream_buffer=settings.stream_buffer,
            buffers_apart=all(after.deserialize_ipc is Worker.deserialize_ipc for after in followers),
            log_level=settings.effective_log_level,
            log_text=settings.debug,
        )
        for worker_id in range(1, runtime.num + 1)
    ]
    # A running batch is formed by its worker: each request has a slot as soon as one is free.
    continuous = issubclass(runtime.worker, ContinuousWorker)
    return StagePlan(
        specs,
        runtime.env,
        batch_size=1 if continuous else runtime.max_batch_size,
        concurrency=runtime.max_batch_size if continuous else runtime.concurrency,
        ordered=not (is_async(runtime.worker) or streaming),
        streams=streaming,
        max_wait=(runtime.max_wait_time or settings.wait) / 1000,
        adaptive=not runtime.max_wait_time,
        max_attempts=runtime.max_attempts,
        start_timeout=settings.start_timeout / 1000,
        start_method=runtime.start_method,
        preload=runtime.preload,
    )


def _limits(settings: Settings) -> Limits:
    return Limits(
        capacity=settings.capacity,
        timeout=settings.timeout_seconds,
        event_timeout=settings.event_timeout_seconds,
        stall_timeout=settings.stall_timeout / 1000,
        stream_buffer=settings.stream_buffer,
        load_shedding=settings.load_shedding,
    )


def openapi_document(routes: Mapping[str, Sequence[Runtime]], settings: Settings) -> dict[str, Any]:
    """Return the OpenAPI document of a service, which need not run."""
    from mosec_asgi.web import compression
    from mosec_asgi.web.openapi import build_document

    encodings = compression.supported() if settings.compression else ()
    return build_document(
        routes,
        max_request_size=settings.max_request_size,
        encodings=encodings,
        title=settings.title,
        version=settings.version,
    )


async def _watch_daemon(
    name: str, process: subprocess.Popen[Any] | BaseProcess, on_exit: Callable[[str, int], None]
) -> None:
    # Asked now and then: a process that somebody else has started, and may reap, can be watched in no other way.
    while (code := _exit_code(process)) is None:  # noqa: ASYNC110 - nothing sets an event
        await asyncio.sleep(DAEMON_CHECK_SECONDS)
    on_exit(name, code)


def _exit_code(process: subprocess.Popen[Any] | BaseProcess) -> int | None:
    return process.exitcode if isinstance(process, BaseProcess) else process.poll()
