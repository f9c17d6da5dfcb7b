"""The async shell around the queues: requests in, frames to the pools, answers to futures.

All state of the tasks lives on one event loop. The coordinator decides nothing about batches and nothing about
processes: it tells each stage's `Scheduler` and `Supervisor` what has happened, and carries out what they say.

It works in turns. Whatever happens in one turn of the loop (requests that arrive, results that come back) only marks
the stages that it touches; at the turn's end each marked stage is asked once for its assignments. So all that is
ready for one worker goes out as one frame and one write, however it came. Only a task that finds its stage idle does
not wait for the turn's end, which spares a lonely request a round of the loop. One timer stands for all deadlines, at
the earliest of them, and one for each stage whose batch waits to fill.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus

from mosec_asgi import log
from mosec_asgi.batching.scheduler import Assignment, Scheduler
from mosec_asgi.batching.service import CLIENT_LEFT, StageStatistics, Statistics, Ticket
from mosec_asgi.batching.task import State, Task
from mosec_asgi.errors import Failure
from mosec_asgi.ipc import frames
from mosec_asgi.metrics import ServiceMetrics, StageMetrics
from mosec_asgi.pool.child import WorkerSpec
from mosec_asgi.pool.process import Launcher
from mosec_asgi.pool.supervisor import PoolWorker, Supervisor

# Seconds that workers get to run `Worker.close` before they are killed.
CLOSE_SECONDS = 5.0

TIMED_OUT = Failure(HTTPStatus.REQUEST_TIMEOUT, "inference timeout")
TOO_MANY = Failure(HTTPStatus.TOO_MANY_REQUESTS, "too many requests: the service is at its capacity", retry_after=1)
CLOSING = Failure(HTTPStatus.SERVICE_UNAVAILABLE, "the service is shutting down", retry_after=1)
STAGE_DOWN = Failure(
    HTTPStatus.SERVICE_UNAVAILABLE, "the model is not available: its workers do not start", retry_after=5
)
WORKER_DIED = Failure(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error: the worker died while it ran this request")

logger = log.internal_logger(__name__)


@dataclass(frozen=True, slots=True)
class StagePlan:
    """A stage to be run.

    Attributes:
        specs: what each of its workers is to run.
        variables: the environment of each worker, or None.
        max_wait: seconds that a task may wait for its batch to fill.
        adaptive: `max_wait` is not the user's: wait only where it pays.
        max_attempts: workers that may die with a task before it is answered 500.
    """

    specs: list[WorkerSpec]
    variables: list[dict[str, str]] | None
    max_wait: float
    adaptive: bool
    max_attempts: int

    @property
    def name(self) -> str:
        """The stage's name."""
        return self.specs[0].stage

    @property
    def max_batch_size(self) -> int:
        """The most tasks in a batch."""
        return self.specs[0].max_batch_size


@dataclass(frozen=True, slots=True)
class RoutePlan:
    """A route: its path, and its pipeline as places in the list of stages."""

    path: str
    stages: tuple[int, ...]


class _Stage:
    """A running stage: the pool and the queue that belong together, and the pool's listener."""

    def __init__(self, plan: StagePlan, metrics: StageMetrics, coordinator: Coordinator) -> None:
        self.plan = plan
        self.metrics = metrics
        self.pool: Supervisor
        self.scheduler: Scheduler[PoolWorker] = Scheduler(plan.max_batch_size, plan.max_wait, adaptive=plan.adaptive)
        self.marked = False
        self.wake_at: float | None = None
        self.timer: asyncio.TimerHandle | None = None
        self._coordinator = coordinator
        metrics.gauges = lambda: (self.scheduler.queued, self.pool.ready, self.pool.restarts)

    def worker_ready(self, worker: PoolWorker) -> None:
        self._coordinator._worker_ready(self, worker)

    def worker_results(self, worker: PoolWorker, results: frames.Results) -> None:
        self._coordinator._worker_results(self, worker, results)

    def worker_gone(self, worker: PoolWorker) -> None:
        self._coordinator._worker_gone(self, worker)

    def stage_down(self) -> None:
        self._coordinator._stage_down(self)


class Coordinator:
    """Brings requests to workers and answers back; see `batching.service.Service`."""

    def __init__(
        self,
        stages: Sequence[StagePlan],
        routes: Sequence[RoutePlan],
        launcher: Callable[[StagePlan, asyncio.AbstractEventLoop], Launcher],
        metrics: ServiceMetrics,
        *,
        capacity: int,
        timeout: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Describe the service; nothing is started.

        Args:
            stages: all stages; each is run once, however many routes name it.
            routes: the pipelines.
            launcher: makes what starts the workers of a stage.
            metrics: what to count into; its stages are those of `stages`, in the same order.
            capacity: the most tasks that are admitted and not yet answered.
            timeout: seconds from a request's arrival to its 408.
            clock: seconds, monotonic.
        """
        self._plans = stages
        self._routes = routes
        self._make_launcher = launcher
        self._metrics = metrics
        self._capacity = capacity
        self._timeout = timeout
        self._clock = clock
        self._stages: list[_Stage] = []
        self._admitted: dict[int, tuple[Task, asyncio.Future[bytes | Failure]]] = {}
        self._numbers = itertools.count(1)
        self._marked: list[_Stage] = []
        self._closing = False
        self._all_answered = asyncio.Event()
        self._sweep_at = math.inf
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop
        metrics.remaining = lambda: len(self._admitted)

    def __repr__(self) -> str:
        return f"<Coordinator admitted={len(self._admitted)} {[stage.scheduler for stage in self._stages]}>"

    # -- its own life ------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start all workers and wait until each stage can serve.

        Raises:
            StartupError: no worker of some stage could be started; nothing is left running.
        """
        self._loop = asyncio.get_running_loop()
        for plan, metrics in zip(self._plans, self._metrics.stages, strict=True):
            stage = _Stage(plan, metrics, self)
            launcher = self._make_launcher(plan, self._loop)
            stage.pool = Supervisor(plan.specs, plan.variables, launcher, stage, self._clock, self._loop)
            self._stages.append(stage)
        starts = [asyncio.ensure_future(stage.pool.wait_started()) for stage in self._stages]
        try:
            for stage in self._stages:
                stage.pool.start()
            await asyncio.gather(*starts)
        except BaseException:
            for start in starts:
                start.cancel()
            await self.stop(0.0)
            raise

    async def stop(self, grace: float) -> None:
        """Admit no more, let what was admitted finish, and end all workers.

        Args:
            grace: seconds that admitted tasks get; what is left then is answered 503.
        """
        self.close()
        if self._admitted and grace > 0:
            try:
                await asyncio.wait_for(self._all_answered.wait(), grace)
            except asyncio.TimeoutError:
                logger.warning("%d requests were not finished within %.1f s", len(self._admitted), grace)
        for task, _ in list(self._admitted.values()):
            self._settle(task, CLOSING)
        pools = [stage.pool for stage in self._stages]
        for pool in pools:
            pool.ask_to_stop()
        stopped = asyncio.gather(*(pool.wait_stopped() for pool in pools))
        try:
            await asyncio.wait_for(asyncio.shield(stopped), CLOSE_SECONDS if grace > 0 else 0.5)
        except asyncio.TimeoutError:
            for pool in pools:
                pool.kill_all("did not stop when asked")
            await stopped
        for stage in self._stages:
            self._set_wake(stage, None)
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()

    def abandon(self) -> None:
        """End all workers at once, without the loop that they were started on, which has been closed."""
        for stage in self._stages:
            stage.pool.abandon()

    def close(self) -> None:
        """Admit no more requests: the answer is 503 from here on."""
        self._closing = True
        if not self._admitted:
            self._all_answered.set()

    # -- asked by web ------------------------------------------------------------------------------------------------

    def submit(
        self, route: int, body: bytes, request_id: str, timeout: float | None = None, *, example: bool = False
    ) -> Ticket | Failure:
        """Admit a request, or say why not; see `Service.submit`."""
        stages = self._routes[route].stages
        refusal = self._refusal(stages)
        if refusal is not None:
            self._stages[stages[0]].metrics.rejected += 1
            return refusal
        now = self._clock()
        deadline = now + (self._timeout if timeout is None else timeout)
        task = Task(next(self._numbers), request_id, route, stages, body, now, deadline, example=example)
        future: asyncio.Future[bytes | Failure] = self._loop.create_future()
        self._admitted[task.id] = (task, future)
        if deadline < self._sweep_at:
            self._set_sweep(deadline, now)
        self._enqueue(task, now)
        return Ticket(task.id, future)

    def cancel(self, task_id: int) -> None:
        """Drop a task whose client has left; see `Service.cancel`."""
        if task_id in self._admitted:
            task, _ = self._admitted[task_id]
            self._stages[task.stage].metrics.cancelled += 1
            self._settle(task, CLIENT_LEFT)

    def statistics(self) -> Statistics:
        """Return how things stand."""
        stages = tuple(
            StageStatistics(
                stage.plan.name,
                stage.scheduler.queued,
                stage.scheduler.in_flight,
                stage.pool.ready,
                stage.pool.size,
                stage.pool.down,
            )
            for stage in self._stages
        )
        return Statistics(len(self._admitted), self._closing, stages)

    def _refusal(self, stages: tuple[int, ...]) -> Failure | None:
        if self._closing:
            return CLOSING
        if len(self._admitted) >= self._capacity:
            return TOO_MANY
        for stage in stages:
            if self._stages[stage].pool.down:
                return STAGE_DOWN
        return None

    # -- heard from the pools ----------------------------------------------------------------------------------------

    def _worker_ready(self, stage: _Stage, worker: PoolWorker) -> None:
        stage.scheduler.add_worker(worker)
        self._mark(stage)

    def _worker_results(self, stage: _Stage, worker: PoolWorker, results: frames.Results) -> None:
        try:
            tasks = stage.scheduler.answered(worker, results.ids, results.seconds)
        except KeyError as error:
            raise frames.FrameError(f"answered task {error}, which it did not have") from error
        now = self._clock()
        measured = stage.metrics.worker(worker.worker_id).process_duration
        if stage.metrics.batched:
            measured.observe(results.seconds)
        elif tasks:
            measured.observe(results.seconds / len(tasks), len(tasks))
        for task, code, payload in zip(tasks, results.codes, results.payloads, strict=True):
            if task.state is State.SETTLED:
                continue
            if code != 200:
                self._settle(task, Failure(code, payload.decode(errors="replace")))
            elif task.at_last_stage:
                self._settle(task, payload)
            else:
                task.advance(payload, now)
                self._enqueue(task, now)
        if stage.scheduler.queued:
            self._mark(stage)

    def _worker_gone(self, stage: _Stage, worker: PoolWorker) -> None:
        """Take back what a worker had: once more for each, alone, unless it has been on too many dying workers."""
        begun, ahead = stage.scheduler.remove_worker(worker)
        for task in begun:
            task.attempts += 1
        again: list[Task] = []
        for task in begun + ahead:
            if task.state is State.SETTLED:
                continue
            if task.attempts < stage.plan.max_attempts:
                again.append(task)
                continue
            logger.error(
                "answered 500: %d workers died with this task",
                task.attempts,
                extra={"stage": stage.plan.name, "worker": worker.worker_id, "request_id": task.request_id},
            )
            self._settle(task, WORKER_DIED)
        stage.scheduler.requeue(again)
        self._mark(stage)

    def _stage_down(self, stage: _Stage) -> None:
        for task in stage.scheduler.waiting():
            self._settle(task, STAGE_DOWN)

    # -- a turn ------------------------------------------------------------------------------------------------------

    def _enqueue(self, task: Task, now: float) -> None:
        stage = self._stages[task.stages[task.position]]
        stage.scheduler.enqueue(task, now)
        if stage.pool.down:
            self._settle(task, STAGE_DOWN)
        elif not stage.marked:
            if stage.scheduler.starts_at_once:
                self._dispatch(stage, now)
            else:
                self._mark(stage)

    def _mark(self, stage: _Stage) -> None:
        """Have `stage` asked for its assignments at the end of this turn of the loop."""
        if stage.marked:
            return
        stage.marked = True
        if not self._marked:
            self._loop.call_soon(self._turn)
        self._marked.append(stage)

    def _turn(self) -> None:
        marked, self._marked = self._marked, []
        now = self._clock()
        for stage in marked:
            stage.marked = False
            self._dispatch(stage, now)

    def _dispatch(self, stage: _Stage, now: float) -> None:
        assignments, wake_at = stage.scheduler.assign(now)
        for assignment in assignments:
            self._send(stage, assignment, now)
        if wake_at != stage.wake_at:
            self._set_wake(stage, wake_at, now)

    def _send(self, stage: _Stage, assignment: Assignment[PoolWorker], now: float) -> None:
        tasks = assignment.tasks
        observe = stage.metrics.queue_wait.observe
        flags: list[int] = []
        for task in tasks:
            observe(now - task.queued)
            flags.append(_flags(task))
        if stage.metrics.batched:
            measured = stage.metrics.worker(assignment.worker.worker_id)
            measured.batch_size.observe(len(tasks))
            measured.batch_duration.observe(now - tasks[0].queued)
        assignment.worker.send(
            frames.encode_tasks(
                frames.Tasks(
                    [task.id for task in tasks],
                    flags,
                    [task.request_id for task in tasks],
                    [task.payload for task in tasks],
                )
            )
        )

    def _settle(self, task: Task, outcome: bytes | Failure) -> None:
        """Answer a task: the one place where a task's life ends."""
        _, future = self._admitted.pop(task.id)
        if task.state is State.QUEUED:
            self._stages[task.stage].scheduler.discard(task)
        task.settle()
        if not future.done():
            future.set_result(outcome)
        if self._closing and not self._admitted:
            self._all_answered.set()

    # -- timers ------------------------------------------------------------------------------------------------------

    def _set_wake(self, stage: _Stage, wake_at: float | None, now: float = 0.0) -> None:
        if stage.timer is not None:
            stage.timer.cancel()
        stage.wake_at = wake_at
        stage.timer = None if wake_at is None else self._call_at(wake_at, now, self._wake, stage)

    def _wake(self, stage: _Stage) -> None:
        stage.wake_at = stage.timer = None
        self._mark(stage)

    def _set_sweep(self, deadline: float, now: float) -> None:
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        self._sweep_at = deadline
        self._sweep_timer = self._call_at(deadline, now, self._sweep)

    def _sweep(self) -> None:
        """Answer 408 to all tasks whose deadline has passed, and sleep until the next one's."""
        now = self._clock()
        self._sweep_at, self._sweep_timer = math.inf, None
        for task, _ in list(self._admitted.values()):
            if task.deadline <= now:
                self._time_out(task)
        if self._admitted:
            self._set_sweep(min(task.deadline for task, _ in self._admitted.values()), now)

    def _time_out(self, task: Task) -> None:
        stage = self._stages[task.stage]
        stage.metrics.timed_out += 1
        logger.warning(
            "answered 408: not done within its time, %s",
            "waiting in the queue" if task.state is State.QUEUED else "on a worker",
            extra={"stage": stage.plan.name, "request_id": task.request_id},
        )
        self._settle(task, TIMED_OUT)

    def _call_at(self, when: float, now: float, callback: Callable[..., None], *args: object) -> asyncio.TimerHandle:
        # Rounded up to whole milliseconds: uvloop's timers know no finer, and would otherwise fire too early and spin.
        return self._loop.call_later(math.ceil(max(0.0, when - now) * 1000) / 1000, callback, *args)


def _flags(task: Task) -> int:
    """Return where a task stands in its pipeline, for the worker."""
    flags = 0
    if task.position == 0:
        flags = frames.EXAMPLE if task.example else frames.INGRESS
    return flags | frames.EGRESS if task.at_last_stage else flags
