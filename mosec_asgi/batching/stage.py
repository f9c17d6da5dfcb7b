"""A running stage: its queue, its workers, and what passes between them.

The stage decides nothing about batches and nothing about processes: it tells its `Scheduler` and its `Supervisor` what
has happened, and carries out what they say. What becomes of a task is its `Owner`'s business.

It works in turns. Whatever happens in one turn of the loop (tasks that arrive, results that come back, clients that
leave) only marks the stage; at the turn's end it is asked once what to send. So all that is ready for one worker goes
out as one frame and one write, however it came. Only a task that finds the stage idle and came alone, as the one before
it did, does not wait for the turn's end, which spares a lonely request a round of the loop; and the answer to such a
task is looked for at once where `BusyPoll` says that it pays.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Protocol

from mosec_asgi import log
from mosec_asgi.batching.busy_poll import BusyPoll
from mosec_asgi.batching.rate import Rate
from mosec_asgi.batching.scheduler import AnswerError, Assignment, Scheduler
from mosec_asgi.batching.task import State, Task
from mosec_asgi.errors import NOT_IN_TIME, Failure
from mosec_asgi.ipc import frames
from mosec_asgi.ipc.arena import LARGE
from mosec_asgi.ipc.channel import Seen
from mosec_asgi.ipc.ledger import Parcel
from mosec_asgi.metrics import Gauges, StageMetrics
from mosec_asgi.pool.process import Launcher
from mosec_asgi.pool.spec import WorkerSpec
from mosec_asgi.pool.supervisor import PoolWorker, Supervisor
from mosec_asgi.pool.watchdog import Watchdog

# Seconds beyond its timeout that a worker gets to come back by itself, before it is taken for stuck.
GRACE_SECONDS = 1.0
# Seconds between two looks for stuck workers, while the stage is at work.
LOOK_SECONDS = 0.25

TIMED_OUT = NOT_IN_TIME
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
        batch_size: the most tasks in a batch that the scheduler forms; 1 where workers take tasks one by one.
        concurrency: batches, or tasks where none are formed, that a worker runs at a time.
        ordered: workers answer in the order in which they are sent tasks.
        streams: results are streams.
        max_wait: seconds that a task may wait for its batch to fill.
        adaptive: `max_wait` is not the user's: wait only where it pays.
        max_attempts: workers that may die with a task before it is answered 500.
        start_timeout: seconds that a worker may take to load and warm up.
        start_method: of its processes, where they are processes: "spawn" or "fork".
        preload: fork them from one that has loaded the worker.
    """

    specs: list[WorkerSpec]
    variables: list[dict[str, str]] | None
    batch_size: int
    max_wait: float
    adaptive: bool
    max_attempts: int
    start_timeout: float
    concurrency: int = 1
    ordered: bool = True
    streams: bool = False
    start_method: str = "spawn"
    preload: bool = False

    @property
    def name(self) -> str:
        """The stage's name."""
        return self.specs[0].stage

    @property
    def timeout(self) -> float:
        """Seconds that a worker may take for one step of its work."""
        return self.specs[0].timeout


class Owner(Protocol):
    """Hears what becomes of the tasks of a stage."""

    def answered(self, task: Task, code: int, payload: bytes | Parcel, now: float) -> None:
        """Take a worker's answer to `task`; a result for a client, and an error, is bytes."""

    def streamed(self, task: Task, chunk: bytes, now: float) -> None:
        """Take a piece of the stream that is the answer to `task`; raise `frames.FrameError` if none may come now."""

    def failed(self, task: Task, failure: Failure) -> None:
        """Answer `task`, which the stage cannot run."""

    def timed_out(self, task: Task) -> None:
        """Answer `task`, whose time is over."""


class Stage:
    """A running stage; the listener of its pool."""

    def __init__(
        self,
        plan: StagePlan,
        metrics: StageMetrics,
        owner: Owner,
        launcher: Launcher,
        clock: Callable[[], float],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """Put the parts together; nothing is started.

        Args:
            plan: what to run.
            metrics: what to count into.
            owner: hears what becomes of the tasks.
            launcher: starts workers.
            clock: seconds, monotonic.
            loop: for turns and timers.
        """
        self.plan = plan
        self.metrics = metrics
        self.scheduler: Scheduler[PoolWorker] = Scheduler(
            plan.batch_size,
            plan.max_wait,
            adaptive=plan.adaptive,
            concurrency=plan.concurrency,
            ordered=plan.ordered,
        )
        self.pool = Supervisor(plan.specs, plan.variables, launcher, self, clock, loop, plan.start_timeout)
        self._owner = owner
        self._clock = clock
        self._loop = loop
        self._rate = Rate()
        self._watchdog: Watchdog[PoolWorker] = Watchdog(plan.timeout + GRACE_SECONDS)
        self._marked = False
        # What was sent last was a single task.
        self._calm = True
        self._busy_poll = BusyPoll()
        self._wake_at: float | None = None
        self._wake_timer: asyncio.TimerHandle | None = None
        self._look_timer: asyncio.TimerHandle | None = None
        # What workers are to be told at the end of the turn, beside their next tasks.
        self._cancelled: dict[PoolWorker, list[int]] = {}
        self._taken: dict[PoolWorker, dict[int, int]] = {}
        metrics.gauges = lambda: Gauges(
            self.scheduler.queued, self.scheduler.slots_in_use, self.pool.ready, self.pool.restarts
        )

    def __repr__(self) -> str:
        return f"<Stage {self.plan.name} {self.scheduler} {self.pool}>"

    @property
    def backlog_seconds(self) -> float:
        """How long the tasks that wait here take at the stage's measured speed; 0 while that is not known."""
        return self._rate.seconds_for(self.scheduler.queued)

    def stop_timers(self) -> None:
        """Let no timer of the stage fire any more."""
        for timer in (self._wake_timer, self._look_timer):
            if timer is not None:
                timer.cancel()
        self._wake_timer = self._look_timer = self._wake_at = None

    # -- told by the owner -------------------------------------------------------------------------------------------

    def enqueue(self, task: Task, now: float) -> None:
        """Take in a task that has arrived at this stage."""
        self.scheduler.enqueue(task, now)
        if self.pool.down:
            self._owner.failed(task, STAGE_DOWN)
        elif not self._marked:
            if self._calm and self.scheduler.starts_at_once:
                self._start_alone(now)
            else:
                self._mark()

    def drop(self, task: Task) -> None:
        """Expect nothing more of a task that is about to be settled before this stage has answered it."""
        if task.state is State.QUEUED:
            self.scheduler.discard(task)
            if task.alone or not self.scheduler.queued:
                # Others may have waited behind it; or none waits any more.
                self._mark()
            return
        worker = self.scheduler.holder(task)
        if worker is not None:
            self._cancelled.setdefault(worker, []).append(task.id)
            self._mark()

    def taken(self, task: Task, size: int) -> None:
        """Let the worker of a stream send `size` more bytes."""
        worker = self.scheduler.holder(task)
        if worker is not None:
            sizes = self._taken.setdefault(worker, {})
            sizes[task.id] = sizes.get(task.id, 0) + size
            self._mark()

    # -- told by the pool --------------------------------------------------------------------------------------------

    def worker_ready(self, worker: PoolWorker) -> None:
        """Take a worker into use."""
        self.scheduler.add_worker(worker)
        self._mark()

    def worker_results(self, worker: PoolWorker, results: frames.Results) -> None:
        """Take in results."""
        now = self._clock()
        codes: Sequence[int] = results.codes
        payloads: Sequence[bytes | Parcel] = results.payloads
        try:
            if frames.IN_MEMORY in codes:
                codes, payloads = self._received(worker, results)
            tasks = self.scheduler.answered(worker, results.ids, results.seconds, now)
        except AnswerError as error:
            _drop(payloads)
            raise frames.FrameError(str(error)) from error
        memory = worker.handle.memory
        if memory is not None and memory.reads:
            memory.answered(results.ids)
        answered = self._owner.answered
        for task, code, payload in zip(tasks, codes, payloads, strict=True):
            if task.state is not State.SETTLED:
                answered(task, code, payload, now)
        # Measured when the answers are on their way, as below when the tasks are: clients do not wait for it.
        self._rate.answered(len(tasks), now)
        measured = self.metrics.worker(worker.worker_id).process_duration
        if self.metrics.batched:
            measured.observe(results.seconds)
        elif tasks:
            measured.observe(results.seconds / len(tasks), len(tasks))
        if self.scheduler.queued:
            self._mark()
        else:
            self._rate.wait(now, waiting=False)

    def _received(self, worker: PoolWorker, results: frames.Results) -> tuple[Sequence[int], Sequence[bytes | Parcel]]:
        """Return the codes and payloads of results of which some lie in shared memory, the last stage's as bytes."""
        memory = worker.handle.memory
        if memory is None:
            raise frames.FrameError("answered by shared memory, and has none")
        payloads: list[bytes | Parcel] = []
        try:
            tasks = self.scheduler.given(worker, results.ids)
            for task, code, sent in zip(tasks, results.codes, results.payloads, strict=True):
                payload = memory.receive(sent, whole=task.at_last_stage) if code == frames.IN_MEMORY else sent
                if task.state is State.SETTLED:
                    _drop([payload])
                    payload = b""
                payloads.append(payload)
        except frames.FrameError:
            _drop(payloads)
            raise
        return [200 if code == frames.IN_MEMORY else code for code in results.codes], payloads

    def worker_memory(self, worker: PoolWorker, frame: frames.Kept | frames.Released) -> None:
        """Take in what a worker says of the shared memory that it reads."""
        if worker.handle.memory is None:
            raise frames.FrameError("spoke of shared memory, and has none")
        worker.handle.memory.hear(frame)

    def worker_events(self, worker: PoolWorker, events: frames.Events) -> None:
        """Take in pieces of streams."""
        if not self.plan.streams:
            raise frames.FrameError("sent events, and is no worker that streams")
        try:
            tasks = self.scheduler.given(worker, events.ids)
        except AnswerError as error:
            raise frames.FrameError(str(error)) from error
        now = self._clock()
        for task, chunk in zip(tasks, events.payloads, strict=True):
            if task.alone:
                task.alone = False
                self.scheduler.proven(worker)
                self._mark()
            if task.state is not State.SETTLED:
                self._owner.streamed(task, chunk, now)

    def worker_gone(self, worker: PoolWorker) -> None:
        """Take back what a worker had: to be run again, unless a task has been begun by too many dying workers."""
        begun = worker.handle.progress().begun
        self._cancelled.pop(worker, None)
        self._taken.pop(worker, None)
        again: list[Task] = []
        for task in self.scheduler.remove_worker(worker):
            if task.place <= begun:
                task.attempts += 1
            if task.state is State.SETTLED:
                continue
            begun_stream = task.flow is not None and task.flow.events
            if task.attempts < self.plan.max_attempts and not begun_stream:
                again.append(task)
            else:
                why = "in the middle of this stream" if begun_stream else f"with this task: {task.attempts}"
                logger.error("answered 500: workers died %s", why, extra=self._extra(worker, task))
                self._owner.failed(task, WORKER_DIED)
        self.scheduler.requeue(again)
        self._mark()

    def stage_down(self) -> None:
        """Answer all that waits: no worker will come."""
        for task in self.scheduler.waiting():
            self._owner.failed(task, STAGE_DOWN)

    # -- a turn ------------------------------------------------------------------------------------------------------

    def _mark(self) -> None:
        """Have the stage asked at the end of this turn of the loop what to send."""
        if not self._marked:
            self._marked = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._marked = False
        if self._cancelled or self._taken:
            self._tell()
        self._dispatch(self._clock())

    def _tell(self) -> None:
        """Tell workers whose clients have left, and what the others have taken."""
        cancelled, self._cancelled = self._cancelled, {}
        for worker, ids in cancelled.items():
            worker.send(frames.encode_cancel(frames.Cancel(ids)))
        taken, self._taken = self._taken, {}
        for worker, sizes in taken.items():
            worker.send(frames.encode_taken(frames.Taken(list(sizes), list(sizes.values()))))

    def _start_alone(self, now: float) -> None:
        """Send a task that is alone, and look for its answer where it will be there in a moment."""
        for assignment in self._dispatch(now):
            worker = assignment.worker
            seconds = self._busy_poll.seconds(self.scheduler.seconds_per_item(worker))
            if not seconds:
                continue
            seen = worker.pipe.busy_poll(seconds)
            if seen is not Seen.OTHER_WORK:
                self._busy_poll.looked(found=seen is Seen.SOMETHING)

    def _dispatch(self, now: float) -> list[Assignment[PoolWorker]]:
        assignments, wake_at = self.scheduler.assign(now)
        if assignments:
            self._calm = len(assignments) == 1 == len(assignments[0].tasks)
        for assignment in assignments:
            self._send(assignment, now)
        self._rate.wait(now, waiting=wake_at is None and self.scheduler.queued > 0)
        if wake_at != self._wake_at:
            self._set_wake(wake_at, now)
        return assignments

    def _send(self, assignment: Assignment[PoolWorker], now: float) -> None:
        tasks = assignment.tasks
        ids: list[int] = []
        flags: list[int] = []
        request_ids: list[str] = []
        payloads: list[Any] = []
        for task in tasks:
            ids.append(task.id)
            flags.append(_flags(task))
            request_ids.append(task.request_id)
            payloads.append(task.payload)
        memory = assignment.worker.handle.memory
        freed = b""
        if memory is not None:
            freed = memory.freed()
            if max(map(len, payloads)) >= LARGE:
                memory.send(ids, flags, payloads)
        encoded = frames.encode_tasks(frames.Tasks(ids, flags, request_ids, payloads))
        assignment.worker.send(freed + encoded if freed else encoded)
        observe = self.metrics.queue_wait.observe
        for task in tasks:
            observe(now - task.queued)
        if self.metrics.batched:
            measured = self.metrics.worker(assignment.worker.worker_id)
            measured.batch_size.observe(len(tasks))
            measured.batch_duration.observe(now - tasks[0].queued)
        if self._look_timer is None:
            self._look_timer = self._loop.call_later(LOOK_SECONDS, self._look)

    # -- timers ------------------------------------------------------------------------------------------------------

    def _set_wake(self, wake_at: float | None, now: float) -> None:
        if self._wake_timer is not None:
            self._wake_timer.cancel()
        self._wake_at = wake_at
        self._wake_timer = None if wake_at is None else self._loop.call_later(delay_until(wake_at, now), self._wake)

    def _wake(self) -> None:
        self._wake_at = self._wake_timer = None
        self._mark()

    def _look(self) -> None:
        """Replace workers that are stuck: no one waits longer for what they had begun."""
        self._look_timer = None
        now = self._clock()
        beats = {worker: worker.handle.progress().beats for worker in self.scheduler.busy}
        for worker in self._watchdog.stuck(beats, now):
            for task in self.scheduler.begun(worker, worker.handle.progress().begun):
                if task.state is not State.SETTLED:
                    self._owner.timed_out(task)
            self.pool.kill(worker, f"was stuck: it did nothing for {self.plan.timeout + GRACE_SECONDS:g} s")
        if self.scheduler.in_flight:
            self._look_timer = self._loop.call_later(LOOK_SECONDS, self._look)

    def _extra(self, worker: PoolWorker, task: Task) -> dict[str, object]:
        return {"stage": self.plan.name, "worker": worker.worker_id, "request_id": task.request_id}


def _drop(payloads: Iterable[bytes | Parcel]) -> None:
    """Let go of what lies in shared memory."""
    for payload in payloads:
        if isinstance(payload, Parcel):
            payload.drop()


def delay_until(when: float, now: float) -> float:
    """Return the seconds from `now` until `when`, for a timer."""
    # Rounded up to whole milliseconds: uvloop's timers know no finer, and would otherwise fire too early and spin.
    return math.ceil(max(0.0, when - now) * 1000) / 1000


def _flags(task: Task) -> int:
    """Return where a task stands in its pipeline, for the worker."""
    flags = 0
    if task.position == 0:
        flags = frames.EXAMPLE if task.example else frames.INGRESS
    return flags | frames.EGRESS if task.at_last_stage else flags
