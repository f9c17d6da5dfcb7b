"""The async shell around the queues: requests in, tasks through their stages, answers out.

All state of the tasks lives on one event loop. The coordinator admits tasks, hands them from `Stage` to `Stage`, and
ends each exactly once: with its result, an error, its deadline, or its client's leaving. One timer stands for all
deadlines, at the earliest of them.
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
from mosec_asgi.batching.engine import CLIENT_LEFT, Outcome, StageStatistics, Statistics
from mosec_asgi.batching.flow import Flow
from mosec_asgi.batching.stage import STAGE_DOWN, TIMED_OUT, Stage, StagePlan, delay_until
from mosec_asgi.batching.task import State, Task
from mosec_asgi.errors import Failure
from mosec_asgi.ipc import frames
from mosec_asgi.ipc.ledger import SharedPayload
from mosec_asgi.observing.metrics import ServiceMetrics
from mosec_asgi.pool.process.launcher import Launcher

# Seconds that workers get to run `Worker.close` before they are killed.
CLOSE_SECONDS = 5.0
# The longest `Retry-After`: a service that is further behind may as well be asked again.
MOST_RETRY_SECONDS = 60

TOO_MANY = "too many requests: the service is at its capacity"
TOO_LATE = "too many requests: this one would not be done in time"
CLOSING = Failure(HTTPStatus.SERVICE_UNAVAILABLE, "the service is shutting down", retry_after=1)
STALLED = Failure(HTTPStatus.REQUEST_TIMEOUT, "inference timeout: the client does not read its stream")

logger = log.internal_logger(__name__)


@dataclass(frozen=True, slots=True)
class RoutePlan:
    """A route: its path, and its pipeline as places in the list of stages."""

    path: str
    stages: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a service allows.

    Attributes:
        capacity: the most tasks that are admitted and not yet answered.
        timeout: seconds from a request's arrival to its 408; for a stream, to its first event.
        event_timeout: seconds between two events of a stream.
        stall_timeout: seconds that a stream may wait for its client to read.
        stream_buffer: bytes of a stream that may wait for its client.
        load_shedding: refuse at once what the measured speed of the stages would leave unanswered in time.
    """

    capacity: int
    timeout: float
    event_timeout: float
    stall_timeout: float
    stream_buffer: int
    load_shedding: bool = False


@dataclass(slots=True)
class _Entry:
    """An admitted task, and where its answer goes."""

    task: Task
    on_outcome: Callable[[Outcome], None]
    on_chunk: Callable[[bytes], None] | None


class Coordinator:
    """Brings requests to workers and answers back; see `batching.engine.Engine`."""

    def __init__(
        self,
        stages: Sequence[StagePlan],
        routes: Sequence[RoutePlan],
        launcher: Callable[[StagePlan, asyncio.AbstractEventLoop], Launcher],
        metrics: ServiceMetrics,
        limits: Limits,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Describe the service; nothing is started.

        Args:
            stages: all stages; each is run once, however many routes name it.
            routes: the pipelines.
            launcher: makes what starts the workers of a stage.
            metrics: what to count into; its stages are those of `stages`, in the same order.
            limits: what to allow.
            clock: seconds, monotonic.
        """
        self._plans = stages
        self._routes = routes
        self._make_launcher = launcher
        self._metrics = metrics
        self._limits = limits
        self._clock = clock
        self._stages: list[Stage] = []
        self._admitted: dict[int, _Entry] = {}
        self._numbers = itertools.count(1)
        self._closing = False
        self._all_answered = asyncio.Event()
        self._sweep_at = math.inf
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop
        metrics.remaining = lambda: len(self._admitted)

    def __repr__(self) -> str:
        return f"<Coordinator admitted={len(self._admitted)} {self._stages}>"

    # -- its own life ------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start all workers and wait until each stage can serve.

        Raises:
            StartupError: no worker of some stage could be started; nothing is left running.
        """
        self._loop = asyncio.get_running_loop()
        for plan, metrics in zip(self._plans, self._metrics.stages, strict=True):
            launcher = self._make_launcher(plan, self._loop)
            self._stages.append(Stage(plan, metrics, self, launcher, self._clock, self._loop))
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
        for entry in list(self._admitted.values()):
            self.failed(entry.task, CLOSING)
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
            stage.stop_timers()
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
        self,
        route: int,
        body: bytes,
        request_id: str,
        on_outcome: Callable[[Outcome], None],
        timeout: float | None = None,
        *,
        example: bool = False,
        on_chunk: Callable[[bytes], None] | None = None,
    ) -> int | Failure:
        """Admit a request, or say why not; see `Engine.submit`."""
        stages = self._routes[route].stages
        most = self._limits.timeout
        timeout = most if timeout is None else min(timeout, most)
        refusal = self._refusal(stages, timeout)
        if refusal is not None:
            self._stages[stages[0]].metrics.rejected += 1
            return refusal
        now = self._clock()
        deadline = now + timeout
        flow = None if on_chunk is None else Flow(self._limits.stream_buffer)
        task = Task(next(self._numbers), request_id, route, stages, body, now, deadline, example=example, flow=flow)
        self._admitted[task.id] = _Entry(task, on_outcome, on_chunk)
        if deadline < self._sweep_at:
            self._set_sweep(deadline, now)
        self._stages[stages[0]].enqueue(task, now)
        return task.id

    def taken(self, task_id: int, size: int) -> None:
        """Note what the client has taken of a stream; see `Engine.taken`."""
        entry = self._admitted.get(task_id)
        if entry is None or entry.task.flow is None:
            return
        task, flow = entry.task, entry.task.flow
        was_full = flow.full
        report = flow.taken(size)
        if report:
            self._stages[task.stage].taken(task, report)
        if was_full:
            self._allow(task, self._clock())

    def cancel(self, task_id: int) -> None:
        """Drop a task whose client has left; see `Engine.cancel`."""
        entry = self._admitted.get(task_id)
        if entry is not None:
            self._stages[entry.task.stage].metrics.cancelled += 1
            self.failed(entry.task, CLIENT_LEFT)

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
        return Statistics(len(self._admitted), self._closing, stages, self._metrics.shared_memory())

    def _refusal(self, stages: tuple[int, ...], timeout: float) -> Failure | None:
        if self._closing:
            return CLOSING
        if len(self._admitted) >= self._limits.capacity:
            return Failure(HTTPStatus.TOO_MANY_REQUESTS, TOO_MANY, self._retry_after(stages))
        for stage in stages:
            if self._stages[stage].pool.down:
                return STAGE_DOWN
        if self._limits.load_shedding and self._backlog_seconds(stages) > timeout:
            return Failure(HTTPStatus.TOO_MANY_REQUESTS, TOO_LATE, self._retry_after(stages))
        return None

    def _backlog_seconds(self, stages: tuple[int, ...]) -> float:
        return max(self._stages[stage].backlog_seconds for stage in stages)

    def _retry_after(self, stages: tuple[int, ...]) -> int:
        """Return whole seconds in which the slowest of the stages has worked off what is there now."""
        return min(MOST_RETRY_SECONDS, max(1, math.ceil(self._backlog_seconds(stages))))

    # -- heard from the stages ---------------------------------------------------------------------------------------

    def answered(self, task: Task, code: int, payload: bytes | SharedPayload, now: float) -> None:
        """Take a worker's answer to `task`: on to the next stage, or to its client."""
        if code == 200 and not task.at_last_stage:
            task.advance(payload, now)
            self._stages[task.stages[task.position]].enqueue(task, now)
        elif isinstance(payload, SharedPayload):
            raise TypeError("a client is answered with bytes")
        elif code == 200:
            self._settle(task, payload)
        else:
            self._settle(task, Failure(code, payload.decode(errors="replace")))

    def streamed(self, task: Task, chunk: bytes, now: float) -> None:
        """Pass a piece of a stream on to its client."""
        entry = self._admitted[task.id]
        flow = task.flow
        if flow is None or entry.on_chunk is None:
            raise frames.FrameError(f"streamed the answer to task {task.id}, whose route does not stream")
        metrics = self._stages[task.stage].metrics
        if flow.events:
            metrics.event_gap.observe(now - flow.last)
        else:
            metrics.first_event.observe(now - task.arrived)
            metrics.streams_open += 1
        if not flow.came(len(chunk), now):
            raise frames.FrameError(f"sent more of the stream of task {task.id} than there was room for")
        metrics.events += 1
        self._allow(task, now)
        entry.on_chunk(chunk)

    def failed(self, task: Task, failure: Failure) -> None:
        """Answer a task before its stage has: nothing more is expected of that one."""
        self._stages[task.stage].drop(task)
        self._settle(task, failure)

    def timed_out(self, task: Task) -> None:
        """Answer a task whose time is over."""
        stage = self._stages[task.stage]
        stage.metrics.timed_out += 1
        stalled = task.flow is not None and task.flow.full
        where = "waiting in the queue" if task.state is State.QUEUED else "on a worker"
        logger.warning(
            "answered 408: not done within its time, %s",
            "its client does not read the stream" if stalled else where,
            extra={"stage": stage.plan.name, "request_id": task.request_id},
        )
        self.failed(task, STALLED if stalled else TIMED_OUT)

    def _settle(self, task: Task, outcome: Outcome) -> None:
        """End a task's life, here and nowhere else."""
        on_outcome = self._admitted.pop(task.id).on_outcome
        task.settle()
        if task.flow is not None and task.flow.events:
            self._stages[task.stage].metrics.streams_open -= 1
        if self._closing and not self._admitted:
            self._all_answered.set()
        try:
            on_outcome(outcome)
        except Exception:
            # Others wait for what this call stands in the middle of.
            logger.exception("the outcome of a request was not passed on", extra={"request_id": task.request_id})

    # -- deadlines ---------------------------------------------------------------------------------------------------

    def _allow(self, task: Task, now: float) -> None:
        """Give a stream time for its next event, or its client time to read."""
        stalled = task.flow is not None and task.flow.full
        task.deadline = now + (self._limits.stall_timeout if stalled else self._limits.event_timeout)
        if task.deadline < self._sweep_at:
            self._set_sweep(task.deadline, now)

    def _set_sweep(self, deadline: float, now: float) -> None:
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        self._sweep_at = deadline
        self._sweep_timer = self._loop.call_later(delay_until(deadline, now), self._sweep)

    def _sweep(self) -> None:
        """Answer 408 to all tasks whose deadline has passed, and sleep until the next one's."""
        now = self._clock()
        self._sweep_at, self._sweep_timer = math.inf, None
        for entry in list(self._admitted.values()):
            if entry.task.deadline <= now:
                self.timed_out(entry.task)
        if self._admitted:
            self._set_sweep(min(entry.task.deadline for entry in self._admitted.values()), now)
