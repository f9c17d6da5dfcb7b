"""A running stage: its queue, its workers, and what passes between them.

The stage decides nothing about batches and nothing about workers: it tells its `Scheduler` and its `Supervisor` what
has happened, and does what they decide. The stage's `Owner` decides what follows from an answer.

It works in turns. Events in one turn of the loop (tasks that arrive, results that come back, clients that leave) only
mark the stage; at the turn's end it asks its scheduler once what to send. So all that is ready for one worker goes out
as one message. There is one exception: a task that finds the stage idle and came alone, as the task before it did, is
sent at once, which saves a single request a turn of the loop. The answer to such a task is looked for in the next turn
where `BusyPoll` says that it pays.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from mosec_asgi import log
from mosec_asgi.batching.busy_poll import BusyPoll
from mosec_asgi.batching.changes import StageValues
from mosec_asgi.batching.engine import StageStatistics
from mosec_asgi.batching.loads import AnswerError
from mosec_asgi.batching.policy import Pick
from mosec_asgi.batching.scheduler import Scheduler
from mosec_asgi.batching.single_flight import SingleFlight
from mosec_asgi.batching.stage_admission import StageAdmission
from mosec_asgi.batching.stage_plan import StagePlan, values_of
from mosec_asgi.batching.task import QUEUED, SETTLED, Task
from mosec_asgi.errors import INTERNAL_ERROR, STAGE_DOWN, TIMED_OUT, UNSEEN, WORKER_DIED, Failure, describe, too_slow
from mosec_asgi.lazy_timer import LazyTimer
from mosec_asgi.messages import (
    EGRESS,
    EXAMPLE,
    INGRESS,
    OBJECT_IN,
    OBJECT_OUT,
    OK,
    TRACED,
    Cancels,
    Chunks,
    Credits,
    HeldPayload,
    LinkError,
    Payload,
    Results,
    Tasks,
    drop_all,
)
from mosec_asgi.observing.observer import StageEvents, StageObserver
from mosec_asgi.observing.statistics import WorkerReport
from mosec_asgi.pool.lifecycle import State as WorkerState
from mosec_asgi.pool.link import Launcher
from mosec_asgi.pool.rolling import Recycler
from mosec_asgi.pool.supervisor import DRAIN_SECONDS, Place, PoolWorker, Supervisor
from mosec_asgi.pool.watchdog import Watchdog
from mosec_asgi.ration import Ration
from mosec_asgi.request import Request, packed

# Seconds beyond its timeout that a worker gets to come back by itself, before it is taken for stuck.
GRACE_SECONDS = 1.0
# Seconds between two looks for stuck workers, while the stage is at work.
LOOK_SECONDS = 0.25

logger = log.internal_logger(__name__)


class Owner(Protocol):
    """Hears what becomes of the tasks of a stage."""

    @property
    def earliest_deadline(self) -> float:
        """A time before which no task's deadline is."""

    def answered(self, task: Task, code: int, payload: Payload, now: float, among: int = 1) -> None:
        """Take a worker's answer to `task`, one of `among` answers that have come together."""

    def streamed(self, task: Task, chunk: bytes, now: float) -> None:
        """Take a piece of the stream that is the answer to `task`; raise `LinkError` if none may come now."""

    def failed(self, task: Task, failure: Failure) -> None:
        """Answer `task`, which the stage cannot run."""

    def timed_out(self, task: Task, failure: Failure = TIMED_OUT) -> None:
        """Answer `task`, whose time is over, with `failure`."""

    def is_late(self, task: Task, together: int, now: float) -> bool:
        """Whether `task`, one of `together` that could be sent to a worker now, can no longer be finished in time."""

    def too_late(self, task: Task, now: float) -> None:
        """Answer `task`, which can no longer be finished in time and no worker has begun."""


class Stage:
    """A running stage; the listener of its pool."""

    def __init__(
        self,
        plan: StagePlan,
        observers: Sequence[StageObserver],
        owner: Owner,
        launcher: Launcher,
        clock: Callable[[], float],
        loop: asyncio.AbstractEventLoop,
        timeout: float = math.inf,
        drain_seconds: float = DRAIN_SECONDS,
        traceparent: Callable[[int], str] | None = None,
    ) -> None:
        """Put the parts together; nothing is started.

        Args:
            plan: what to run.
            observers: hear what happens.
            owner: hears what becomes of the tasks.
            launcher: starts workers.
            clock: seconds, monotonic.
            loop: for turns and timers.
            timeout: of the service, in seconds.
            drain_seconds: seconds that a worker which is replaced may take to answer what it has.
            traceparent: returns that of the span of a traced call, by its number; None where no calls are traced.
        """
        self.plan = plan
        self._ration = Ration(logger, loop.call_later, clock)
        self.events = StageEvents(observers)
        self.scheduler: Scheduler[PoolWorker] = Scheduler(
            plan.batch_size,
            plan.max_wait,
            adaptive=plan.adaptive,
            concurrency=plan.concurrency,
            ordered=plan.ordered,
            rules=plan.rules,
            latency_target=plan.steered_target,
        )
        self.pool = Supervisor(
            plan.specs,
            plan.variables,
            launcher,
            self,
            clock,
            loop,
            plan.start_timeout,
            drain_seconds=drain_seconds,
            recycling=plan.recycling,
        )
        # What it goes by, and the same for the workers that are there.
        self.values = self._fitted = values_of(plan)
        self.recycler = Recycler(self.pool, clock)
        self.pool.on_recycle = self.recycler.recycle
        self._owner = owner
        self._traceparent = traceparent
        self._clock = clock
        self._loop = loop
        self.admission = StageAdmission(
            self.scheduler,
            timeout,
            batch_size=plan.batch_size,
            concurrency=plan.concurrency,
            max_wait=plan.sure_wait,
            streams=plan.streams,
            latency_target=plan.latency_target,
        )
        self.admission.done_in = self.scheduler.done_in
        self.admission.leeway = self.scheduler.leeway
        self._watchdog: Watchdog[PoolWorker] = Watchdog(lambda worker: worker.spec.timeout + GRACE_SECONDS)
        self._flights = SingleFlight(keyed=plan.rules.keyed) if plan.coalesce else None
        self._marked = False
        # That events have been dropped.
        self._told_of_events = False
        # What was sent last was a single task.
        self._calm = True
        self._busy_poll = BusyPoll()
        self._wake_timer = LazyTimer(loop, clock, self._mark)
        self._look_timer: asyncio.TimerHandle | None = None
        # What to tell workers at the end of the turn, beside their next tasks.
        self._cancelled: dict[PoolWorker, list[int]] = {}
        self._credits: dict[PoolWorker, dict[int, int]] = {}

    def __repr__(self) -> str:
        return f"<Stage {self.plan.name} {self.scheduler} {self.pool}>"

    def stop_timers(self) -> None:
        """Let no timer of the stage fire any more."""
        self._wake_timer.clear()
        if self._look_timer is not None:
            self._look_timer.cancel()
            self._look_timer = None
        self._ration.say_all()

    def statistics(self, now: float) -> StageStatistics:
        """Return how things stand."""
        return StageStatistics(
            self.plan.name,
            self.scheduler.queued,
            self.scheduler.in_flight,
            self.scheduler.loads.slots_in_use,
            self.pool.ready,
            self.pool.size,
            self.pool.restarts,
            self.pool.down,
            self.admission.expected_wait(now),
            self.plan.batch_size,
            self.plan.concurrency,
            tuple(self._worker_report(place, now) for place in self.pool.places),
            self.pool.draining,
            self.scheduler.batch_line,
        )

    def _worker_report(self, place: Place, now: float) -> WorkerReport:
        worker = place.worker
        if worker is None:
            return WorkerReport(place.spec.worker_id, WorkerState.DEAD.value, error=place.fault)
        since = worker.launched_at if worker.ready_at is None else worker.ready_at
        load = self.scheduler.loads.get(worker)
        in_flight = 0 if load is None else len(load.sent)
        return WorkerReport(worker.worker_id, worker.state.value, now - since, worker.link.name, in_flight, place.fault)

    # -- its values, which can be changed while it serves ------------------------------------------------------------

    @property
    def variables(self) -> list[dict[str, str]] | None:
        """The environment of each worker, by its number; None for none."""
        return self.plan.variables

    def apply(self, values: StageValues) -> None:
        """Go by other values from here on; workers that are there already keep to those that they were made with."""
        self.values = values
        self._fit()
        self._mark()

    def _fit(self) -> None:
        """Give no worker more at a time than it was made for."""
        sizes = [worker.spec.max_batch_size for worker, _ in self.scheduler.loads]
        values = self.values.for_workers_of(min(sizes, default=self.values.worker_batch_size))
        if values == self._fitted:
            return
        self._fitted = values
        self.plan = plan = replace(
            self.plan,
            specs=[self.values.for_worker(spec) for spec in self.plan.specs],
            batch_size=values.batch_size,
            concurrency=values.concurrency,
            max_wait=values.max_wait,
            adaptive=values.adaptive,
            latency_target=values.latency_target,
        )
        self.scheduler.configure(
            plan.batch_size,
            plan.max_wait,
            adaptive=plan.adaptive,
            concurrency=plan.concurrency,
            latency_target=plan.steered_target,
        )
        self.admission.configure(
            batch_size=plan.batch_size,
            concurrency=plan.concurrency,
            max_wait=plan.sure_wait,
            latency_target=plan.latency_target,
        )

    # -- told by the owner -------------------------------------------------------------------------------------------

    def enqueue(self, task: Task, now: float, among: int = 1) -> None:
        """Take in a task that has arrived at this stage, one of `among` that may have come together."""
        if self._flights is None:
            self.scheduler.enqueue(task, now)
            if (told := self.events.arrived) is not None:
                told(task, now)
        elif self._joins(self._flights, task, now):
            return
        if self.pool.down:
            self._owner.failed(task, STAGE_DOWN)
        elif not self._marked:
            # A task that may be late is judged at the turn's end: no caller hears an outcome before `submit` returns.
            in_time = task.deadline >= now + self.admission.margin
            # Nor is one that others come with: they may have more right to the worker.
            if in_time and among == 1 and self._calm and self.scheduler.starts_at_once:
                self._start_alone(now)
            else:
                self._mark()

    def _joins(self, flights: SingleFlight, task: Task, now: float) -> bool:
        """Take in a task, and return whether it waits for the answer to another."""
        if (told := self.events.arrived) is not None:
            told(task, now)
        unit = task if self.pool.down else flights.join(task, _flags(task), now)
        if unit is not None:
            self.scheduler.enqueue(unit, now)
            return False
        self.admission.joined(first=task.position == 0)
        if (joined := self.events.joined) is not None:
            joined(task, flights.flight(task), now)
        return True

    def drop(self, task: Task) -> None:
        """Expect nothing more of a task that is about to be settled before this stage has answered it."""
        if self._flights is None:
            self._drop(task)
        elif (unit := self._flights.leave(task)) is not None:
            self._drop(unit)
            if unit is not task:
                unit.settle()

    def _drop(self, task: Task) -> None:
        """Expect nothing more of a task of the queue, or of a worker, for which nobody waits any more."""
        if task.state is QUEUED:
            self.scheduler.discard(task)
            if task.alone or not self.scheduler.queued:
                # Other tasks may have waited behind it, or the queue is empty now.
                self._mark()
            return
        worker = self.scheduler.loads.holder(task)
        if worker is not None:
            self._cancelled.setdefault(worker, []).append(task.id)
            self._mark()

    def yields_to(self, priority: int, tenant: str, cost: int, *, whole: bool) -> Sequence[Task]:
        """Return what gives its place to a call that would be refused; empty where nothing does.

        Args:
            priority: of the call.
            tenant: whose it is.
            cost: of its input.
            whole: a unit of work is to give its place, with all that wait for it; else one call is enough.
        """
        unit = self.scheduler.yields_to(priority, tenant, cost)
        if unit is None:
            return ()
        waiting = self._waiting_for(unit)
        return waiting if whole else waiting[-1:]

    def _waiting_for(self, task: Task) -> Sequence[Task]:
        """Return the tasks that end with a task of the queue, or of a worker: itself, or those that share it."""
        return (task,) if self._flights is None else self._flights.callers(task)

    def credit(self, task: Task, size: int) -> None:
        """Let the worker of a stream send `size` more bytes."""
        worker = self.scheduler.loads.holder(task)
        if worker is not None:
            sizes = self._credits.setdefault(worker, {})
            sizes[task.id] = sizes.get(task.id, 0) + size
            self._mark()

    # -- told by the pool --------------------------------------------------------------------------------------------

    def worker_ready(self, worker: PoolWorker) -> None:
        """Take a worker into use."""
        self.scheduler.add_worker(worker)
        self._fit()
        self.admission.worker_ready(self._clock() - worker.launched_at)
        self._mark()

    def worker_draining(self, worker: PoolWorker) -> None:
        """Give a worker no more tasks; it answers those that it has."""
        self.scheduler.drain_worker(worker)
        self._fit()
        self.admission.worker_gone(self._clock())
        self._mark()

    def resized(self, num: int) -> None:
        """Note that there are to be so many workers."""
        if (told := self.events.resized) is not None:
            told(num, self._clock())

    def has_tasks(self, worker: PoolWorker) -> bool:
        """Whether a worker has tasks to answer, those that nobody waits for any more among them."""
        return bool(self.scheduler.loads[worker].sent)

    def worker_results(self, worker: PoolWorker, results: Results) -> None:
        """Take in results."""
        now = self._clock()
        ids, codes, payloads, seconds, _, labels = results
        if not len(ids) == len(codes) == len(payloads) or (labels and len(labels) != len(ids)):
            drop_all(payloads)
            raise LinkError(f"sent {len(ids)} results with {len(codes)} codes and {len(payloads)} payloads")
        batched = self.plan.batch_size > 1
        units = self.scheduler.units if batched else 0
        try:
            tasks = self.scheduler.answered(worker, ids, seconds, now)
        except AnswerError as error:
            drop_all(payloads)
            raise LinkError(str(error)) from error
        sent = tasks
        if self._flights is not None:
            in_vain = sum(task.state is SETTLED for task in tasks)
            tasks, results = self._flights.landed(tasks, results, self._copied)
            ids, codes, payloads, _, _, labels = results
        if labels:
            # Of what goes to the next stage, where that asks.
            for task, label in zip(tasks, labels, strict=True):
                task.cost, task.key = label
        if sent:
            units = units - self.scheduler.units if batched else len(sent)
            # The next stage may begin the tasks at once and then overwrites `began`.
            began = sent[0].began
        if self.plan.times:
            for task in tasks:
                task.note_time(self.plan.name, now)
        if (came := self.events.came) is not None:
            came(worker.worker_id, tasks, results, now)
        wanted, among = 0, len(tasks)
        answered = self._owner.answered
        for task, code, payload in zip(tasks, codes, payloads, strict=True):
            if task.state is not SETTLED:
                wanted += 1
                answered(task, code, payload, now, among)
            elif not isinstance(payload, bytes):
                payload.drop()
        if self._flights is not None:
            wanted = len(sent) - in_vain
        # Measured when the answers are on their way, so that clients do not wait for it.
        if sent:
            if self.scheduler.varies:
                self.admission.batches_of(self.scheduler.usual_size)
            self.admission.answered(len(sent), began, now, units=units, wanted=wanted > 0)
        if (told := self.events.answered) is not None:
            told(worker.worker_id, sent, seconds, wanted, now)
        if self.scheduler.queued:
            self._mark()

    def _copied(self, payload: HeldPayload, tasks: Sequence[Task]) -> tuple[int, bytes]:
        """Return the code and the payload of an answer that a link holds, for those beside the one that has it."""
        try:
            return OK, payload.copy()
        except KeyboardInterrupt:
            raise
        # It may have to be unpickled here, which runs the code of its classes.
        except BaseException as error:
            extra = {"stage": self.plan.name, "request_id": " ".join(task.request_id for task in tasks)}
            text = "answered 500: the result of an equal request could not be copied"
            self._ration.fault(logging.ERROR, text, error=error, extra=extra, requests=len(tasks))
            return INTERNAL_ERROR.code, INTERNAL_ERROR.text.encode()

    def worker_chunks(self, worker: PoolWorker, chunks: Chunks) -> None:
        """Take in pieces of streams."""
        if not (self.plan.streams or self.plan.sends):
            raise LinkError("sent events, and is no worker that streams")
        try:
            tasks = self.scheduler.loads.given(worker, chunks.ids)
        except AnswerError as error:
            raise LinkError(str(error)) from error
        now = self._clock()
        for task, chunk in zip(tasks, chunks.payloads, strict=True):
            if task.alone:
                task.alone = False
                self.scheduler.proven(worker)
                self._mark()
            if task.flow is None and self.plan.sends:
                self._drop_event(worker, task, chunk)
                continue
            is_first = task.flow is not None and task.flow.quiet
            if is_first:
                self.admission.first_event(task.began, now)
            if task.state is not SETTLED:
                self._owner.streamed(task, chunk, now)
            elif is_first and task.flow is not None:
                # Nobody waits for the stream, but its first event has come.
                task.flow.came(len(chunk), now)

    def _drop_event(self, worker: PoolWorker, task: Task, chunk: bytes) -> None:
        """Make room for another piece in the place of one that belongs to no stream: the route answers with none."""
        if not self._told_of_events:
            self._told_of_events = True
            logger.warning(
                "events are dropped, because the last stage of the route does not stream; derive its class from "
                "SSEWorker (told once)",
                extra=self._extra(worker, task),
            )
        self.credit(task, len(chunk))

    def worker_gone(self, worker: PoolWorker) -> None:
        """Take back what a worker had: to be run again, unless a task has been begun by too many dying workers."""
        begun = worker.link.progress().begun
        self._cancelled.pop(worker, None)
        self._credits.pop(worker, None)
        again: list[Task] = []
        tasks = self.scheduler.remove_worker(worker)
        for task in tasks:
            if task.place <= begun:
                task.attempts += 1
        if tasks and (told := self.events.lost) is not None:
            told(worker.worker_id, tasks, self._clock())
        for task in tasks:
            if task.state is SETTLED:
                continue
            begun_stream = task.flow is not None and task.flow.events
            if task.attempts < self.plan.max_attempts and not begun_stream:
                again.append(task)
            else:
                why = "in the middle of this stream" if begun_stream else f"with this task: {task.attempts}"
                for each in self._waiting_for(task):
                    extra = self._extra(worker, each)
                    self._ration.log(logging.ERROR, "answered 500: workers died %s", why, extra=extra)
                    self._owner.failed(each, WORKER_DIED)
        self.scheduler.requeue(again)
        if self._flights is not None:
            self._flights.requeued(again)
        self._fit()
        self.admission.worker_gone(self._clock())
        self._mark()

    def stage_down(self) -> None:
        """Answer all that waits: no worker will come."""
        self.admission.went_down()
        for task in self.scheduler.queue.waiting():
            for each in self._waiting_for(task):
                self._owner.failed(each, STAGE_DOWN)

    # -- a turn ------------------------------------------------------------------------------------------------------

    def _mark(self) -> None:
        """Dispatch at the end of this turn of the loop."""
        if not self._marked:
            self._marked = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._marked = False
        if self._cancelled or self._credits:
            self._tell()
        now = self._clock()
        if self.scheduler.queued and self._owner.earliest_deadline < now + self.admission.margin:
            self._drop_late(now)
        self._dispatch(now)

    def _tell(self) -> None:
        """Tell workers whose clients have left, and what the others have taken."""
        cancelled, self._cancelled = self._cancelled, {}
        for worker, ids in cancelled.items():
            worker.link.cancel(Cancels(ids))
        credits, self._credits = self._credits, {}
        for worker, sizes in credits.items():
            worker.link.credit(Credits(list(sizes), list(sizes.values())))

    def _drop_late(self, now: float) -> None:
        """Answer the tasks that could be sent now and can no longer be finished in time."""
        pressing = self.scheduler.pressing(now + self.admission.margin)
        if pressing:
            together = self.scheduler.together
            for task in pressing:
                for each in self._waiting_for(task):
                    if self._owner.is_late(each, together, now):
                        self._owner.too_late(each, now)

    def _start_alone(self, now: float) -> None:
        """Send a task that is alone, and poll for its answer where that is expected in a moment."""
        for pick in self._dispatch(now):
            worker = pick.worker
            load = self.scheduler.loads.get(worker)
            seconds = self._busy_poll.seconds(None if load is None else load.seconds_per_item)
            if seconds:
                # In the next turn: no caller hears an outcome before `submit` has returned.
                self._loop.call_soon(self._look_for_answer, worker, seconds)

    def _look_for_answer(self, worker: PoolWorker, seconds: float) -> None:
        found = worker.link.busy_poll(seconds)
        if found is not None:
            self._busy_poll.looked(found=found)

    def _dispatch(self, now: float) -> list[Pick[PoolWorker]]:
        picks, wake_at = self.scheduler.assign(now)
        if picks:
            self._calm = len(picks) == 1 == len(picks[0].tasks)
            units = len(picks) if self.plan.batch_size > 1 else sum(len(each.tasks) for each in picks)
            self.admission.sent(units, now)
        for pick in picks:
            self._send(pick, now)
        if wake_at is not None:
            self._wake_timer.set(wake_at)
        elif self._wake_timer.is_set:
            self._wake_timer.clear()
        return picks

    def _send(self, pick: Pick[PoolWorker], now: float) -> None:
        tasks = pick.tasks
        traced = False
        ids: list[int] = []
        flags: list[int] = []
        request_ids: list[str] = []
        payloads: list[Payload] = []
        for task in tasks:
            task.began = now
            ids.append(task.id)
            if task.trace:
                traced = True
                flags.append(_flags(task) | TRACED)
            else:
                flags.append(_flags(task))
            request_ids.append(task.request_id)
            payloads.append(task.payload)
        if self._flights is not None:
            self._flights.sent(tasks, now)
        worker = pick.worker
        try:
            message = Tasks(ids, flags, request_ids, payloads)
            if self.plan.takes_request or traced:
                message = message._replace(requests=[packed(self._told(task)) for task in tasks])
            worker.link.send(message)
        except Exception as error:
            # A fault of ours. It is handled in the next turn, because the caller is in the middle of a change.
            self._loop.call_soon(self._send_failed, worker, tasks, error)
        if (told := self.events.sent) is not None:
            told(worker.worker_id, tasks, now)
        if self._look_timer is None:
            self._look_timer = self._loop.call_later(LOOK_SECONDS, self._look)

    def _told(self, task: Task) -> Request | None:
        """Return what a worker is told of a request: one that does not ask for it, only its trace."""
        request = task.request if self.plan.takes_request else None
        if not task.trace or self._traceparent is None:
            return request
        return replace(request or Request(), traceparent=self._traceparent(task.id))

    def _send_failed(self, worker: PoolWorker, tasks: Sequence[Task], error: Exception) -> None:
        """Answer tasks that could not be sent, and replace the worker, which may have been sent a part of them."""
        names = " ".join(task.request_id for task in tasks)
        extra = {"stage": self.plan.name, "worker": worker.worker_id, "request_id": names}
        text = "answered 500: tasks could not be sent to a worker"
        self._ration.fault(logging.ERROR, text, error=error, extra=extra, requests=len(tasks))
        for task in tasks:
            if task.state is not SETTLED:
                for each in self._waiting_for(task):
                    self._owner.failed(each, INTERNAL_ERROR)
        self.pool.kill(worker, "could not be sent its tasks")

    # -- stuck workers -----------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Replace workers that are stuck, and answer the tasks that they had begun."""
        self._look_timer = None
        now = self._clock()
        loads = self.scheduler.loads
        beats = {worker: worker.link.progress().beats for worker in loads.busy}
        for worker in self._watchdog.stuck(beats, now):
            timeout = worker.spec.timeout
            failure = describe(too_slow(timeout, UNSEEN))
            for task in loads.begun(worker, worker.link.progress().begun):
                if task.state is not SETTLED:
                    for each in self._waiting_for(task):
                        self._owner.timed_out(each, failure)
            self.pool.kill(worker, f"was stuck: it did nothing for {timeout + GRACE_SECONDS:g} s")
        if self.scheduler.in_flight:
            self._look_timer = self._loop.call_later(LOOK_SECONDS, self._look)

    def _extra(self, worker: PoolWorker, task: Task) -> dict[str, object]:
        return {"stage": self.plan.name, "worker": worker.worker_id, "request_id": task.request_id}


def _flags(task: Task) -> int:
    """Return where a task stands in its pipeline, for the worker."""
    if task.objects:
        return (OBJECT_IN if task.position == 0 else 0) | (OBJECT_OUT if task.at_last_stage else 0)
    flags = 0
    if task.position == 0:
        flags = EXAMPLE if task.example else INGRESS
    return flags | EGRESS if task.at_last_stage else flags
