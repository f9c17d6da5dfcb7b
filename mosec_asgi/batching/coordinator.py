"""The async shell around the queues: calls in, tasks through their stages, outcomes out.

All state of the tasks lives on one event loop. The coordinator admits tasks, hands them from `Stage` to `Stage`, and
ends each exactly once: with its result, an error, its deadline, or its client's leaving. One timer stands for all
deadlines, at the earliest of them.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mosec_asgi import errors, log
from mosec_asgi.batching import changes
from mosec_asgi.batching.admission import Admission, Reason, Refusal
from mosec_asgi.batching.changes import StageValues
from mosec_asgi.batching.engine import TAKES_HELD, Caller, Statistics
from mosec_asgi.batching.flow import Flow
from mosec_asgi.batching.scheduler import Scheduler
from mosec_asgi.batching.stage import Stage
from mosec_asgi.batching.stage_plan import StagePlan
from mosec_asgi.batching.task import QUEUED, Task
from mosec_asgi.errors import (
    CLIENT_LEFT,
    CLOSING,
    LOADING,
    STAGE_DOWN,
    STALLED,
    TIMED_OUT,
    TOO_LONG,
    Failure,
    StartupError,
)
from mosec_asgi.lazy_timer import LazyTimer
from mosec_asgi.messages import (
    LOST,
    OK,
    REPLY,
    Call,
    Chunk,
    Credit,
    LinkError,
    Outcome,
    Payload,
    StageTime,
    drop_all,
    tuple_new,
)
from mosec_asgi.observing.observer import StageObserver
from mosec_asgi.pool.link import Launcher
from mosec_asgi.pool.supervisor import CLOSE_SECONDS, DRAIN_SECONDS, STOPPING, PoolWorker
from mosec_asgi.ration import Ration
from mosec_asgi.reply import cut
from mosec_asgi.within import within

# The longest `Retry-After`, in seconds: after that, a client may ask again even if the service is further behind.
MOST_RETRY_SECONDS = 60
# The answer to a refused call, by the reason: always the same, or made with a measured `Retry-After`.
FIXED_ANSWERS = {
    Reason.CLOSING: CLOSING,
    Reason.LOADING: LOADING,
    Reason.STAGE_DOWN: STAGE_DOWN,
    Reason.OWN_TIME: TOO_LONG,
}
ANSWERS_TO_TOO_MANY = {
    Reason.CAPACITY: errors.at_capacity,
    Reason.DEADLINE: errors.too_late,
    Reason.OVERLOAD: errors.overloaded,
    Reason.LATENCY_TARGET: errors.over_target,
    Reason.GAVE_WAY: errors.gave_way,
}

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
        load_shedding: refuse at once, and never begin, what cannot be finished in time at the stages' measured speed.
        drain_timeout: seconds that a worker which is replaced may take to answer what it has.
    """

    capacity: int
    timeout: float
    event_timeout: float
    stall_timeout: float
    stream_buffer: int
    load_shedding: bool = True
    drain_timeout: float = DRAIN_SECONDS


class Coordinator:
    """Brings calls to workers and answers back; see `batching.engine.Engine`."""

    def __init__(
        self,
        stages: Sequence[StagePlan],
        routes: Sequence[RoutePlan],
        launcher: Callable[[StagePlan, asyncio.AbstractEventLoop], Launcher],
        limits: Limits,
        *,
        observers: Sequence[Sequence[StageObserver]] = (),
        clock: Callable[[], float] = time.monotonic,
        shared_memory: Callable[[], int] = lambda: 0,
        traceparent: Callable[[int], str] | None = None,
    ) -> None:
        """Describe the service; nothing is started.

        Args:
            stages: all stages; each is run once, however many routes name it.
            routes: the pipelines.
            launcher: makes what starts the workers of a stage.
            limits: what to allow.
            observers: each an observer for every stage, in the order of `stages`.
            clock: seconds, monotonic.
            shared_memory: returns the bytes of shared memory that payloads take.
            traceparent: returns that of the span of a traced call at its stage, for the stage's workers; None where no
                calls are traced.
        """
        self._plans = stages
        self._routes = routes
        # Those whose tasks may have to begin again, as what passes between their stages may be lost.
        self._keeps = [any(_may_lose(stages[place]) for place in route.stages) for route in routes]
        # Those whose answers are streams.
        self._streams = [stages[route.stages[-1]].streams for route in routes]
        self._make_launcher = launcher
        self._observers = observers
        self._limits = limits
        self._clock = clock
        self._shared_memory = shared_memory
        self._traceparent = traceparent
        self._stages: list[Stage] = []
        self._launchers: list[Launcher] = []
        self._admission: Admission
        self._admitted: dict[int, Task] = {}
        self._closing = False
        self._end_announced = False
        self._loading = True
        # What a client can cause by itself: it may ask for a time of a millisecond.
        self._ration = Ration(logger, lambda seconds, say: self._loop.call_later(seconds, say), clock)
        self._all_answered = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop
        self._sweep_timer: LazyTimer
        # Returns a number for a call that no other caller chooses; see `Engine.new_id`.
        self.new_id: Callable[[], int] = itertools.count(1).__next__

    def __repr__(self) -> str:
        return f"<Coordinator admitted={len(self._admitted)} {self._stages}>"

    # -- its own life ------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start all workers and wait until each stage can serve; calls are refused meanwhile.

        Raises:
            StartupError: no worker of some stage could be started; nothing is left running.
        """
        self._loop = asyncio.get_running_loop()
        self._sweep_timer = LazyTimer(self._loop, self._clock, self._sweep)
        for place, plan in enumerate(self._plans):
            launcher = self._make_launcher(plan, self._loop)
            self._launchers.append(launcher)
            observers = [stages[place] for stages in self._observers]
            self._stages.append(
                Stage(
                    plan,
                    observers,
                    self,
                    launcher,
                    self._clock,
                    self._loop,
                    self._limits.timeout,
                    self._limits.drain_timeout,
                    self._traceparent,
                )
            )
        self._admission = Admission(
            [stage.admission for stage in self._stages],
            [route.stages for route in self._routes],
            timeout=self._limits.timeout,
            capacity=self._limits.capacity,
            active=self._limits.load_shedding,
        )
        self._admission.close()
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
        self._loading = False
        if not self._closing:
            self._admission.open()

    def worker_processes(self, route: int) -> list[int | None]:
        """Return the process of the first worker of each stage of a route; None where that is no process of its own."""
        pools = [self._stages[place].pool for place in self._routes[route].stages]
        return [next((worker.link.pid for worker in pool.workers), None) for pool in pools]

    async def stop(self, grace: float) -> None:
        """Admit no more, let what was admitted finish, and end all workers.

        Where this is cancelled, nobody waits for it any more, and the end comes at once.

        Args:
            grace: seconds that admitted tasks get; what is left then is answered 503.
        """
        try:
            await self._stop(grace)
        except asyncio.CancelledError:
            await self._stop(0.0)
            raise

    async def _stop(self, grace: float) -> None:
        self.close()
        if self._admitted and grace > 0:
            try:
                await within(grace, self._all_answered.wait())
            except asyncio.TimeoutError:
                logger.warning("%d requests were not finished within %.1f s", len(self._admitted), grace)
        for task in list(self._admitted.values()):
            self.failed(task, CLOSING)
        pools = [stage.pool for stage in self._stages]
        for pool in pools:
            pool.ask_to_stop()
        for stage in self._stages:
            await stage.recycler.stop()
        stopped = asyncio.gather(*(pool.wait_stopped() for pool in pools))
        # The wait does not cancel it.
        await asyncio.wait([stopped], timeout=CLOSE_SECONDS if grace > 0 else 0.5)
        if not stopped.done():
            for pool in pools:
                pool.kill_all("did not stop when asked")
        await stopped
        self._ration.say_all()
        for stage in self._stages:
            stage.stop_timers()
        self._sweep_timer.clear()
        self._close_launchers()

    def abandon(self) -> None:
        """End all workers at once, without the loop that they were started on, which has been closed."""
        for stage in self._stages:
            stage.pool.abandon()
        self._close_launchers()

    def _close_launchers(self) -> None:
        for launcher in self._launchers:
            launcher.close()

    def announce_end(self) -> None:
        """Show in the statistics, and so at `/readyz`, that the end is near; requests are still admitted."""
        self._end_announced = True

    def close(self) -> None:
        """Admit no more requests: the answer is 503 from here on."""
        self._closing = True
        if self._stages:
            self._admission.close()
        if not self._admitted:
            self._all_answered.set()

    # -- changes while it serves; several of one stage take turns ----------------------------------------------------

    async def scale(self, stage: int, num: int) -> None:
        """Have `num` workers of a stage; see `batching.changes`."""
        await changes.scale(self._changeable(stage), num)

    async def configure(self, stage: int, change: Callable[[StageValues], StageValues]) -> None:
        """Have a stage go by other values; see `batching.changes`."""
        await changes.configure(self._changeable(stage), change)

    async def restart(self, stage: int) -> None:
        """Replace the workers of a stage, one after the other; see `batching.changes`."""
        await changes.restart(self._changeable(stage))

    def _changeable(self, stage: int) -> Stage:
        if self._loading:
            raise StartupError("the workers are loading; a stage can be changed once the service is ready")
        if self._closing:
            raise StartupError(STOPPING)
        return self._stages[stage]

    def values(self, stage: int) -> StageValues:
        """Return what a stage goes by."""
        return self._stages[stage].values

    # -- asked by callers --------------------------------------------------------------------------------------------

    def submit(self, call: Call, caller: Caller) -> None:
        """Admit a call, or refuse it; see `Engine.submit`."""
        # Each once: a field of a NamedTuple is looked up in its class whenever it is read.
        call_id, route, timeout = call.id, call.route, call.timeout
        if call_id in self._admitted:
            raise ValueError(f"a call with the number {call_id} runs already; take numbers from new_id()")
        stages = self._routes[route].stages
        most = self._limits.timeout
        if timeout is None or timeout > most:
            timeout = most
        now = self._clock()
        others: Sequence[Task] = ()
        if not self._admission.is_calm(route, len(self._admitted), timeout, now):
            refusal = self._refusal(stages, timeout, now)
            if refusal is not None:
                others = self._yields_to(call, refusal)
                if not others:
                    self._refuse(call, caller, refusal, now)
                    return
        deadline = now + timeout
        flow = Flow(self._limits.stream_buffer) if self._streams[route] else None
        task = self._admitted[call_id] = Task(call, caller, stages, now, deadline, flow)
        if deadline < self._sweep_timer.when:
            self._sweep_timer.set(deadline)
        if self._admission.follows[route]:
            self._admission.admitted(stages)
        self._stages[stages[0]].enqueue(task, now)
        for other in others:
            self._give_way(other, now)

    def credit(self, credit: Credit) -> None:
        """Note what the client has taken of a stream; see `Engine.credit`."""
        task = self._admitted.get(credit.call_id)
        if task is None or task.flow is None:
            return
        was_full = task.flow.full
        report = task.flow.taken(credit.size)
        if report:
            self._stages[task.stage].credit(task, report)
        if was_full:
            self._allow(task, self._clock())

    def cancel(self, call_id: int) -> None:
        """Drop a call whose client has left; see `Engine.cancel`."""
        task = self._admitted.get(call_id)
        if task is not None:
            if (told := self._stages[task.stage].events.cancelled) is not None:
                told(task, self._clock())
            self.failed(task, CLIENT_LEFT)

    def scheduler(self, stage: int) -> Scheduler[PoolWorker]:
        """Return the scheduler of a stage, for whoever looks on."""
        return self._stages[stage].scheduler

    def statistics(self) -> Statistics:
        """Return how things stand."""
        now = self._clock()
        stages = tuple(stage.statistics(now) for stage in self._stages)
        return Statistics(
            len(self._admitted), self._closing or self._end_announced, stages, self._shared_memory(), self._loading
        )

    def _refusal(self, stages: tuple[int, ...], timeout: float, now: float) -> Refusal | None:
        if self._closing:
            return Refusal(Reason.CLOSING, stages[0])
        if self._loading:
            return Refusal(Reason.LOADING, stages[0])
        # First: another task gives its place only to a call that can be answered.
        for stage in stages:
            if self._stages[stage].pool.down:
                return Refusal(Reason.STAGE_DOWN, stage)
        if len(self._admitted) >= self._limits.capacity:
            self._admission.turned_away(stages)
            return Refusal(Reason.CAPACITY, stages[0])
        return self._admission.judge(stages, timeout, now)

    def _yields_to(self, call: Call, refusal: Refusal) -> Sequence[Task]:
        """Return the tasks that give their place to a call that would be refused; empty where none does."""
        if refusal.reason not in ANSWERS_TO_TOO_MANY:
            return ()
        # Of several that share the work for one, each takes a place in the service, and all of them one in the queue.
        whole = refusal.reason is not Reason.CAPACITY
        return self._stages[refusal.stage].yields_to(call.priority, call.tenant, call.cost, whole=whole)

    def _give_way(self, task: Task, now: float) -> None:
        """Answer a task that waits and that has given its place to another, if it still waits."""
        if task.state is QUEUED:
            stage = self._stages[task.stage]
            failure = self._answer_to(Reason.GAVE_WAY, task.stages, now)
            if (told := stage.events.refused) is not None:
                told(failure.code, Reason.GAVE_WAY.value, now)
            self.failed(task, failure)

    def _refuse(self, call: Call, caller: Caller, refusal: Refusal, now: float) -> None:
        failure = self._answer_to(refusal.reason, self._routes[call.route].stages, now)
        if (told := self._stages[refusal.stage].events.refused) is not None:
            told(failure.code, refusal.reason.value, now)
        drop_all((call.payload,))
        # Later: nobody is answered before he has done asking.
        self._loop.call_soon(_tell, caller, Outcome.of_failure(call.id, failure), call.request_id, self._ration)

    def _answer_to(self, reason: Reason, stages: tuple[int, ...], now: float) -> Failure:
        """Return the answer to a call that is refused for `reason`."""
        if reason in FIXED_ANSWERS:
            return FIXED_ANSWERS[reason]
        return ANSWERS_TO_TOO_MANY[reason](self._retry_after(stages, now))

    def _retry_after(self, stages: tuple[int, ...], now: float) -> int:
        """Return the whole seconds that the slowest of the stages needs for its present tasks."""
        return min(MOST_RETRY_SECONDS, max(1, math.ceil(self._admission.retry_after(stages, now))))

    # -- heard from the stages ---------------------------------------------------------------------------------------

    @property
    def earliest_deadline(self) -> float:
        """A time before which no task's deadline is."""
        return self._sweep_timer.when

    def answered(self, task: Task, code: int, payload: Payload, now: float, among: int = 1) -> None:
        """Take a worker's answer to `task`, one of `among`: on to the next stage, or to its client."""
        head = b""
        if code == OK:
            if not task.at_last_stage:
                if self._keeps[task.route] and task.position == 0 and isinstance(task.payload, bytes):
                    task.body = task.payload
                task.advance(payload, now)
                self._admission.arrived(task.stage)
                self._stages[task.stages[task.position]].enqueue(task, now, among)
                return
        elif code == REPLY:
            code, payload, head = self._reply(task, payload)
        elif code == LOST:
            self._lost(task, now)
            return
        elif code == errors.CANCELLED:
            # Its client waits: a task that nobody waits for has been settled before.
            code, payload = self._not_left(task, payload)
        # The result of a call of objects is read by its caller, where it lies.
        if not (isinstance(payload, bytes) or (task.flow is None and (task.objects or _takes_held(task.caller, code)))):
            code, payload = self._read(task, code, payload)
        self._settle(task, tuple_new(Outcome, (task.id, code, payload, None, head, task.times)))

    def _lost(self, task: Task, now: float) -> None:
        """Begin a task again at its first stage, where what a later one was to be given is lost."""
        first = self._stages[task.stages[0]]
        sent_events = task.flow is not None and task.flow.events
        if task.body is None or sent_events or task.starts >= first.plan.max_attempts:
            self.failed(task, errors.WORKER_DIED)
            return
        task.begin_again(now)
        self._admission.arrived(task.stage)
        first.enqueue(task, now)

    def _reply(self, task: Task, payload: Payload) -> tuple[int, bytes, bytes]:
        """Return the code, the result and what it sets of an answer that is a `Reply`."""
        try:
            if not isinstance(payload, bytes) or not task.at_last_stage:
                raise ValueError("a reply comes as bytes, from the last stage of a route")
            head, value = cut(payload)
        except ValueError as error:
            drop_all((payload,))
            extra = {"request_id": task.request_id}
            self._ration.log(logging.ERROR, "answered 500: a worker sent no reply: %s", error, extra=extra)
            return errors.INTERNAL_ERROR.code, errors.INTERNAL_ERROR.text.encode(), b""
        return OK, value, head

    def _not_left(self, task: Task, payload: Payload) -> tuple[int, bytes]:
        """Return the answer to a client that waits, in the place of its worker's word that it has left."""
        drop_all((payload,))
        extra = {"stage": self._stages[task.stage].plan.name, "request_id": task.request_id}
        text = "answered 500: its worker said that the client had left, which it has not"
        self._ration.log(logging.ERROR, text, extra=extra)
        return errors.INTERNAL_ERROR.code, errors.INTERNAL_ERROR.text.encode()

    def _read(self, task: Task, code: int, payload: Payload) -> tuple[int, bytes]:
        """Return an answer that a link holds as bytes."""
        if isinstance(payload, bytes):
            return code, payload
        try:
            return code, payload.read()
        except LinkError as error:
            extra = {"request_id": task.request_id}
            self._ration.log(logging.ERROR, "answered 500: %s", error, extra=extra)
            return errors.INTERNAL_ERROR.code, errors.INTERNAL_ERROR.text.encode()
        finally:
            payload.drop()

    def streamed(self, task: Task, chunk: bytes, now: float) -> None:
        """Pass a piece of a stream on to its caller."""
        flow = task.flow
        if flow is None:
            raise LinkError(f"streamed the answer to task {task.id}, whose route does not stream")
        since = flow.last if flow.events else None
        if not flow.came(len(chunk), now):
            raise LinkError(f"sent more of the stream of task {task.id} than there was room for")
        # What is measured of a stream is measured at the last stage, though an earlier one may send pieces, too.
        if (told := self._stages[task.stages[-1]].events.chunk) is not None:
            told(task, since, now)
        self._allow(task, now)
        try:
            task.caller.streamed(tuple_new(Chunk, (task.id, chunk, self._times(task, now) if since is None else ())))
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            extra = {"request_id": task.request_id}
            self._ration.fault(logging.ERROR, "a piece of a stream was not passed on", error=error, extra=extra)

    def failed(self, task: Task, failure: Failure) -> None:
        """Answer a task in place of its stage, of which nothing more is expected."""
        outcome = Outcome.of_failure(task.id, failure)
        if self._plans[task.stage].times:
            outcome = outcome._replace(times=self._times(task, self._clock()))
        self._stages[task.stage].drop(task)
        self._settle(task, outcome)

    def _times(self, task: Task, now: float) -> Sequence[StageTime]:
        """Return what the time of a task that is at a stage has gone into, where that is noted."""
        plan = self._plans[task.stage]
        return task.times_until(plan.name, now) if plan.times else ()

    def timed_out(self, task: Task, failure: Failure = TIMED_OUT) -> None:
        """Answer a task whose time is over: its own, or another that `failure` names."""
        stage = self._stages[task.stage]
        if (told := stage.events.timed_out) is not None:
            told(task, self._clock())
        stalled = task.flow is not None and task.flow.full
        where = "waiting in the queue" if task.state is QUEUED else "on a worker"
        self._ration.log(
            logging.WARNING,
            "answered 408: not done within its time, %s",
            "its client does not read the stream" if stalled else where,
            extra={"stage": stage.plan.name, "request_id": task.request_id},
        )
        self.failed(task, STALLED if stalled else failure)

    def is_late(self, task: Task, together: int, now: float) -> bool:
        """Whether a task that could be sent to a worker now can no longer be finished in time."""
        admission = self._admission
        if not admission.active or task.example:
            return False
        limit = task.deadline - task.arrived
        return admission.is_late(task.stages, task.position, together, task.deadline, limit, now)

    def too_late(self, task: Task, now: float) -> None:
        """Answer a task that no worker of this stage has begun and that could not be finished in time."""
        stage = self._stages[task.stage]
        if (told := stage.events.timed_out) is not None:
            told(task, now)
        limit = task.deadline - task.arrived
        needs = self._admission.needs(task.stages, task.position, 1, limit, now)
        left = max(0.0, task.deadline - now)
        self._ration.log(
            logging.WARNING,
            "answered 408: not begun, it needs %.3f s and has %.3f s left",
            needs,
            left,
            extra={"stage": stage.plan.name, "request_id": task.request_id},
        )
        setting = "the header `x-request-timeout`" if limit < self._limits.timeout else "`timeout`"
        self.failed(task, errors.not_begun(stage.plan.name, needs, left, setting))

    def _settle(self, task: Task, outcome: Outcome) -> None:
        """End a task's life, here and nowhere else."""
        del self._admitted[task.id]
        if not task.at_last_stage:
            self._admission.left(task.stages, task.position)
        task.settle()
        events = self._stages[task.stages[task.position]].events
        if task.flow is not None and task.flow.events:
            # As its pieces.
            told = self._stages[task.stages[-1]].events.stream_ended
            if told is not None:
                told(task, self._clock())
        if (settled := events.settled) is not None:
            settled(task, outcome.code, self._clock())
        if self._closing and not self._admitted:
            self._all_answered.set()
        _tell(task.caller, outcome, task.request_id, self._ration)

    # -- deadlines ---------------------------------------------------------------------------------------------------

    def _allow(self, task: Task, now: float) -> None:
        """Set a stream's deadline: for its next event, or for its client to read."""
        stalled = task.flow is not None and task.flow.full
        task.deadline = now + (self._limits.stall_timeout if stalled else self._limits.event_timeout)
        if task.deadline < self._sweep_timer.when:
            self._sweep_timer.set(task.deadline)

    def _sweep(self) -> None:
        """Answer 408 to all tasks whose deadline has passed, and sleep until the next one's."""
        now = self._clock()
        for task in list(self._admitted.values()):
            if task.deadline <= now:
                self.timed_out(task)
        if self._admitted:
            self._sweep_timer.set(min(task.deadline for task in self._admitted.values()))


def _may_lose(plan: StagePlan) -> bool:
    """Whether what a stage passes on lies where it may be lost: in actors of Ray."""
    return plan.executor == "ray" and plan.specs[0].buffers_apart and bool(plan.specs[0].next_stages)


def _takes_held(caller: Caller, code: int) -> bool:
    """Whether a caller reads a large result where it lies, though it is bytes for a client: see `engine.TAKES_HELD`."""
    return code == OK and getattr(caller, TAKES_HELD, False)


def _tell(caller: Caller, outcome: Outcome, request_id: str, ration: Ration) -> None:
    """Tell a caller what has become of a call."""
    try:
        caller.settled(outcome)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        # A fault of this caller, of whatever kind, must not stop the work for the others.
        extra = {"request_id": request_id}
        ration.fault(logging.ERROR, "the outcome of a request was not passed on", error=error, extra=extra)
