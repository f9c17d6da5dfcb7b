"""Stand-ins for what the tests must not run for real: workers whose every word the test says, and a clock it moves.

A `FakeLauncher` starts `FakeWorker`s: links whose worker is the test itself. Both sides speak in messages.
"""

from __future__ import annotations

import asyncio
import itertools
import pickle
import time
from collections.abc import AsyncIterator, Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from common import PATIENCE as PATIENCE
from common import FakeClock as FakeClock
from common import pending_timers as pending_timers
from common import settled_loop as settled_loop
from common import told as told
from common import until as until

from mosec_asgi.batching.coordinator import Coordinator, Limits, RoutePlan
from mosec_asgi.batching.flow import Flow
from mosec_asgi.batching.future import FutureOutcome
from mosec_asgi.batching.stage_plan import StagePlan
from mosec_asgi.batching.task import Task
from mosec_asgi.errors import Failure, StartupError
from mosec_asgi.inside.spec import WorkerSpec
from mosec_asgi.messages import (
    Call,
    Cancels,
    Chunk,
    Chunks,
    Credit,
    Credits,
    Outcome,
    Payload,
    Progress,
    Results,
    Tasks,
)
from mosec_asgi.observing.metrics import ServiceMetrics, StageMetrics
from mosec_asgi.observing.observer import StageObserver
from mosec_asgi.pool.link import WorkerEvents
from mosec_asgi.streaming import ContinuousWorker, SSEWorker
from mosec_asgi.worker import Worker


class Echo(Worker):
    def forward(self, data: Any) -> Any:
        return data


class Events(SSEWorker):
    def forward(self, data: Any) -> Any:
        yield data


class AsyncEvents(SSEWorker):
    async def forward(self, data: Any) -> Any:
        yield data


class Pushes(SSEWorker):
    async def forward(self, data: Any) -> Any:
        self.send_stream_event(data)


class Steps(ContinuousWorker):
    def admit(self, item: Any) -> Hashable:
        return item

    def step(self) -> Iterable[tuple[Hashable, Any]]:
        return []

    def evict(self, slot: Hashable) -> None:
        pass


def spec(
    worker: type[Worker] = Echo,
    *,
    stage: str = "Echo_1",
    worker_id: int = 1,
    max_batch_size: int = 1,
    timeout: float = 5.0,
    isolation_calls: int | None = None,
) -> WorkerSpec:
    return WorkerSpec(worker, stage, worker_id, max_batch_size, timeout, isolation_calls)


class Nobody:
    """A caller of whom nothing is asked."""

    def settled(self, outcome: Outcome) -> None:
        raise AssertionError(outcome)

    def streamed(self, chunk: Chunk) -> None:
        raise AssertionError(chunk)


def new_task(
    number: int,
    now: float,
    *,
    deadline: float = 1e9,
    stages: tuple[int, ...] = (0,),
    payload: bytes = b"",
    request_id: str = "",
    example: bool = False,
    flow: Flow | None = None,
) -> Task:
    """Return a task that has just come; whoever has called is not told what becomes of it."""
    return Task(Call(number, 0, payload, request_id, None, example), Nobody(), stages, now, deadline, flow)


class Held:
    """A payload that some link holds, in whatever way; knows how often it was dropped."""

    def __init__(self, contents: bytes = b"contents") -> None:
        self.contents = contents
        self.drops = 0

    def __len__(self) -> int:
        return 1

    def __reduce__(self) -> tuple[type[bytes], tuple[bytes]]:
        return bytes, (self.read(),)

    def read(self) -> bytes:
        assert not self.drops, "it was read after it was dropped"
        return self.contents

    def lend(self) -> memoryview:
        return memoryview(self.read())

    def load(self) -> Any:
        value = pickle.loads(self.read())
        self.drop()
        return value

    def copy(self) -> bytes:
        return self.read()

    def drop(self) -> None:
        self.drops += 1


class Ticket(NamedTuple):
    """A request that was submitted.

    Attributes:
        id: the number of its call.
        outcome: what becomes of it.
    """

    id: int
    outcome: asyncio.Future[Outcome]

    @property
    def result(self) -> bytes | Failure:
        """The outcome, which must be there: a result, or what went wrong."""
        outcome = self.outcome.result()
        assert outcome.call_id == self.id
        return outcome.payload if outcome.failure is None else outcome.failure


async def answer(ticket: Ticket) -> bytes | Failure:
    """Return the outcome of a request, which must come."""
    await asyncio.wait_for(asyncio.shield(ticket.outcome), PATIENCE)
    return ticket.result


async def refusal(ticket: Ticket) -> bytes | Failure:
    """Return the outcome of a request that must be refused at once: in the next turn, and not before."""
    assert not ticket.outcome.done(), "nobody is answered before he has done asking"
    await asyncio.sleep(0)
    return ticket.result


class StreamCaller(FutureOutcome):
    """A caller that hands on the pieces of a stream."""

    def __init__(self, on_chunk: Callable[[bytes], None]) -> None:
        super().__init__()
        self._on_chunk = on_chunk
        self._call_id: int | None = None

    def streamed(self, chunk: Chunk) -> None:
        assert not self.future.done(), "nothing comes after the outcome"
        assert self._call_id in (None, chunk.call_id), "a piece of another stream"
        self._call_id = chunk.call_id
        self._on_chunk(chunk.payload)


class FakeTimer:
    """A timer of a `FakeLoop`."""

    def __init__(self, when: float, callback: Callable[[], None]) -> None:
        self.when = when
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class FakeLoop:
    """Stands in for what turns and timers need of an event loop: nothing happens unless the test says so."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self._soon: list[Callable[[], None]] = []
        self._timers: list[FakeTimer] = []

    def call_soon(self, callback: Callable[..., None], *arguments: Any) -> None:
        self._soon.append(lambda: callback(*arguments))

    def call_later(self, delay: float, callback: Callable[..., None], *arguments: Any) -> FakeTimer:
        timer = FakeTimer(self._clock.now + delay, lambda: callback(*arguments))
        self._timers.append(timer)
        return timer

    @property
    def timers(self) -> list[FakeTimer]:
        """The timers that are still to fire, in order."""
        return sorted((timer for timer in self._timers if not timer.cancelled), key=lambda timer: timer.when)

    def turn(self) -> int:
        """Run what was asked for by now; return how much that was."""
        soon, self._soon = self._soon, []
        for callback in soon:
            callback()
        return len(soon)

    def advance(self, seconds: float) -> None:
        """Let time pass, with all timers and turns that are due in it."""
        end = self._clock.now + seconds
        while True:
            while self.turn():
                pass
            due = [timer for timer in self.timers if timer.when <= end]
            if not due:
                break
            self._clock.now = max(self._clock.now, due[0].when)
            due[0].cancelled = True
            due[0].callback()
        self._clock.now = end


class FakeWorker:
    """One life of a worker: a `WorkerLink` to the server, and to the test the worker's mind."""

    def __init__(self, spec: WorkerSpec, variables: Mapping[str, str], pid: int, events: WorkerEvents) -> None:
        self.spec = spec
        self.variables = dict(variables)
        self.pid = pid
        # The tasks that it was sent, message by message.
        self.sent: list[Tasks] = []
        self.asked_to_stop = False
        self.killed = False
        self.reaped = False
        self.exited = False
        # How it takes being killed, and being asked to stop.
        self.dies_when_killed = True
        self.stops_when_asked = True
        # Tasks that it has begun, of all that it was sent; None stands for all of them.
        self.begun: int | None = None
        self.beats = 0
        # How often the server has looked how far it has come.
        self.looks = 0
        # All that it was told, message by message; `sent` are those with tasks.
        self.heard: list[Tasks | Cancels | Credits] = []
        # What it has said and the server has not heard: an event and what it carries each; heard at its end.
        self.unread: list[tuple[Any, ...]] = []
        # What the server sees when it looks for an answer, and for how many seconds that has looked, each time.
        self.seen: bool | None = False
        self.polls: list[float] = []
        # A child of its own holds its pipe open when it ends.
        self.pipe_outlives_it = False
        self._ending = "is still running"
        self._open = True
        self._forgotten = False
        self._events = events
        self._unanswered: list[int] = []

    def __repr__(self) -> str:
        return f"<FakeWorker {self.spec.stage} {self.spec.worker_id} pid={self.pid} has={self._unanswered}>"

    # -- what the server sees ----------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return f"process {self.pid}"

    def send(self, tasks: Tasks) -> None:
        assert len(tasks.ids) == len(tasks.flags) == len(tasks.request_ids) == len(tasks.payloads) > 0
        if self._hears(tasks):
            self.sent.append(tasks)
            self._unanswered += tasks.ids

    def cancel(self, cancels: Cancels) -> None:
        assert cancels.ids
        self._hears(cancels)

    def credit(self, credits: Credits) -> None:
        assert len(credits.ids) == len(credits.sizes) > 0
        self._hears(credits)

    def _hears(self, message: Tasks | Cancels | Credits) -> bool:
        if self._open:
            assert not self.asked_to_stop, "something was sent after the end"
            self.heard.append(message)
        return self._open

    def busy_poll(self, seconds: float) -> bool | None:
        self.polls.append(seconds)
        if self.seen:
            self.reply(seconds=0.0)
        return self.seen

    def drain(self) -> None:
        unread, self.unread = self.unread, []
        for event in unread:
            self.say(*event)
        if self.exited and not self.pipe_outlives_it:
            self.close_pipe()

    def finish(self) -> None:
        if self._open and not self.asked_to_stop:
            self.asked_to_stop = True
            if self.stops_when_asked:
                asyncio.get_running_loop().call_soon(self.exit, "exited with status 0")

    def close(self) -> None:
        self._open = False

    def memory(self) -> int | None:
        """Return None: it is no process."""
        return None

    def progress(self) -> Progress:
        assert not self._forgotten, "what it shares with the server goes with its process"
        self.looks += 1
        return Progress(len(self.given) if self.begun is None else self.begun, self.beats)

    def kill(self) -> None:
        if self.exited:
            return
        self.killed = True
        if self.dies_when_killed:
            asyncio.get_running_loop().call_soon(self.exit, "was killed by signal 9")

    def reap(self, timeout: float) -> None:
        self.reaped = True

    def describe_exit(self) -> str:
        return self._ending

    # -- what the test has it do -------------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        return not self.exited

    @property
    def given(self) -> list[int]:
        """The numbers of the tasks that it was sent, in order."""
        return [task_id for tasks in self.sent for task_id in tasks.ids]

    @property
    def has(self) -> list[int]:
        """The numbers of the tasks that it has not answered, in order."""
        return list(self._unanswered)

    @property
    def names(self) -> list[str]:
        """The request ids that it was sent, in order."""
        return [name for tasks in self.sent for name in tasks.request_ids]

    @property
    def sizes(self) -> list[int]:
        """The number of tasks in each message that it was sent."""
        return [len(tasks.ids) for tasks in self.sent]

    @property
    def cancelled(self) -> list[int]:
        """The numbers of the tasks that nobody waits for, as it was told."""
        return [task_id for message in self.heard if isinstance(message, Cancels) for task_id in message.ids]

    @property
    def taken(self) -> list[tuple[int, int]]:
        """The tasks and the bytes of their streams that clients have taken, as it was told."""
        told = [message for message in self.heard if isinstance(message, Credits)]
        return [pair for message in told for pair in zip(message.ids, message.sizes, strict=True)]

    async def gets_work(self) -> None:
        """Wait until it has tasks to answer."""
        await until(lambda: self._unanswered)

    def payload(self, task_id: int) -> Payload:
        """Return the payload with which it was last sent a task."""
        for tasks in reversed(self.sent):
            if task_id in tasks.ids:
                return tasks.payloads[list(tasks.ids).index(task_id)]
        raise AssertionError(f"{self} was never sent task {task_id}")

    def body(self, task_id: int) -> bytes:
        """Return the payload with which it was last sent a task, which must be bytes."""
        payload = self.payload(task_id)
        assert isinstance(payload, bytes)
        return payload

    def say(self, event: str, *what: Any) -> None:
        """Have the server hear an event, as long as it listens."""
        if event == "closed":
            self.close_pipe(*what)
        elif self._open:
            getattr(self._events, event)(*what)

    def ready(self) -> None:
        self.say("ready")

    def reply(
        self,
        ids: Sequence[int] | None = None,
        *,
        payloads: Sequence[Payload] | None = None,
        code: int = 200,
        seconds: float = 0.01,
    ) -> None:
        """Answer tasks: all that it has where `ids` is None, each with its own payload where none is given."""
        ids = self.has if ids is None else ids
        if payloads is None:
            payloads = [b"re:" + self.body(task_id) for task_id in ids]
        for task_id in ids:
            self._unanswered.remove(task_id)
        self.beats += 1
        self.say("results", Results(ids, [code] * len(ids), payloads, seconds))

    def emit(self, ids: Sequence[int], payloads: Sequence[bytes]) -> None:
        """Send pieces of streams."""
        self.beats += 1
        self.say("chunks", Chunks(ids, payloads))

    def reply_unasked(self, ids: Sequence[int]) -> None:
        """Answer tasks whether or not it has them."""
        self.say("results", Results(ids, [200] * len(ids), [b"unasked"] * len(ids), 0.01))

    def fail_to_start(self, traceback: str) -> None:
        self.say("failed", traceback)
        self.exit("exited with status 1")

    def close_pipe(self, reason: str = "") -> None:
        """End the link, in good order where there is no reason."""
        if self._open:
            self._open = False
            self._events.closed(reason)

    def exit(self, ending: str = "was killed by signal 11") -> None:
        """End the process; once only."""
        if not self.exited:
            self.exited = True
            self._ending = ending
            self._events.exited()
            self._forgotten = True


class FakeLauncher:
    """Starts `FakeWorker`s, for one stage or for several."""

    def __init__(self, on_launch: Callable[[FakeWorker], None] | None = None) -> None:
        """Prepare.

        Args:
            on_launch: called with each new worker one turn of the loop after its launch; None leaves them starting.
        """
        self.launched: list[FakeWorker] = []
        self.on_launch = on_launch
        # Raised by the next launches, where there is one.
        self.refusal: StartupError | None = None
        self.closed = False

    def launch(self, spec: WorkerSpec, variables: Mapping[str, str], events: WorkerEvents) -> FakeWorker:
        if self.refusal is not None:
            raise self.refusal
        worker = FakeWorker(spec, variables, 100 + len(self.launched), events)
        self.launched.append(worker)
        if self.on_launch is not None:
            asyncio.get_running_loop().call_soon(self.on_launch, worker)
        return worker

    def close(self) -> None:
        assert all(worker.exited or worker.reaped for worker in self.launched), "workers outlive what they came from"
        self.closed = True

    def of(self, stage: str) -> list[FakeWorker]:
        """Return all workers that were launched for a stage, in order."""
        return [worker for worker in self.launched if worker.spec.stage == stage]

    def alive(self, stage: str | None = None) -> list[FakeWorker]:
        """Return the workers that live, of one stage or of all."""
        return [worker for worker in self.launched if worker.alive and stage in (None, worker.spec.stage)]


def stage(
    name: str = "Echo_1",
    *,
    num: int = 1,
    max_batch_size: int = 1,
    max_wait: float = 0.0,
    adaptive: bool = False,
    max_attempts: int = 2,
    start_timeout: float = 3600.0,
    timeout: float = 5.0,
    concurrency: int = 1,
    ordered: bool = True,
    streams: bool = False,
) -> StagePlan:
    specs = [spec(stage=name, worker_id=n, max_batch_size=max_batch_size, timeout=timeout) for n in range(1, num + 1)]
    return StagePlan(
        specs,
        None,
        batch_size=max_batch_size,
        max_wait=max_wait,
        adaptive=adaptive,
        max_attempts=max_attempts,
        start_timeout=start_timeout,
        concurrency=concurrency,
        ordered=ordered,
        streams=streams,
    )


class Stream(NamedTuple):
    """A stream as its client sees it.

    Attributes:
        ticket: its task.
        chunks: what has come.
    """

    ticket: Ticket
    chunks: list[bytes]

    @property
    def id(self) -> int:
        return self.ticket.id


class Service:
    """A coordinator over scripted workers."""

    # What is put together; `tests/pickled.py` has another.
    engine: type[Coordinator] = Coordinator

    def __init__(
        self,
        stages: Sequence[StagePlan],
        routes: Sequence[Sequence[int]] | None = None,
        *,
        capacity: int = 1000,
        timeout: float = PATIENCE,
        event_timeout: float = PATIENCE,
        stall_timeout: float = PATIENCE,
        stream_buffer: int = 1024,
        load_shedding: bool = False,
        observers: Sequence[Sequence[StageObserver]] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.launcher = FakeLauncher(FakeWorker.ready)
        self.metrics = ServiceMetrics(
            "test", [StageMetrics(plan.name, batched=plan.batch_size > 1, streams=plan.streams) for plan in stages]
        )
        pipelines = [range(len(stages))] if routes is None else routes
        self.coordinator = self.engine(
            stages,
            [RoutePlan(f"/{place}", tuple(pipeline)) for place, pipeline in enumerate(pipelines)],
            lambda plan, loop: self.launcher,
            Limits(capacity, timeout, event_timeout, stall_timeout, stream_buffer, load_shedding),
            observers=[self.metrics.stages, *observers],
            clock=clock,
        )
        self._names = itertools.count(1)

    @property
    def workers(self) -> list[FakeWorker]:
        """The workers that live, in order of launch."""
        return self.launcher.alive()

    @property
    def worker(self) -> FakeWorker:
        """The only worker that lives."""
        (worker,) = self.workers
        return worker

    def submit(
        self,
        body: bytes | None = None,
        *,
        route: int = 0,
        name: str | None = None,
        timeout: float | None = None,
        on_chunk: Callable[[bytes], None] | None = None,
    ) -> Ticket:
        """Submit a request that must be admitted; bodies and request ids are numbered where none are given."""
        number = next(self._names)
        body = b"%d" % number if body is None else body
        admitted = self.coordinator.statistics().admitted
        ticket = self.try_to_submit(route, body, name or f"request-{number}", timeout, on_chunk=on_chunk)
        assert self.coordinator.statistics().admitted == admitted + 1, "it was refused"
        return ticket

    def try_to_submit(
        self,
        route: int,
        body: bytes,
        name: str,
        timeout: float | None = None,
        *,
        example: bool = False,
        on_chunk: Callable[[bytes], None] | None = None,
    ) -> Ticket:
        """Submit a request, which may be refused."""
        caller = FutureOutcome() if on_chunk is None else StreamCaller(on_chunk)
        call = Call(self.coordinator.new_id(), route, body, name, timeout, example)
        self.coordinator.submit(call, caller)
        assert not caller.future.done(), "nothing is told before `submit` has returned"
        return Ticket(call.id, caller.future)

    def credit(self, call_id: int, size: int) -> None:
        """Have a client take so many bytes of its stream."""
        self.coordinator.credit(Credit(call_id, size))

    def stream(
        self, body: bytes | None = None, *, route: int = 0, name: str | None = None, timeout: float | None = None
    ) -> Stream:
        """Submit a request for a stream, as `submit` does."""
        chunks: list[bytes] = []
        ticket = self.submit(body, route=route, name=name, timeout=timeout, on_chunk=chunks.append)
        return Stream(ticket, chunks)

    async def next_life(self, before: FakeWorker) -> FakeWorker:
        """Wait for the worker that takes the place of one that has died, and return it once it is ready."""

        def replacements() -> list[FakeWorker]:
            later = self.launcher.launched[self.launcher.launched.index(before) + 1 :]
            return [
                worker
                for worker in later
                if (worker.spec.stage, worker.spec.worker_id) == (before.spec.stage, before.spec.worker_id)
            ]

        await until(replacements)
        await settled_loop()
        return replacements()[0]

    async def make_quick(self, worker: FakeWorker, route: int = 0) -> None:
        """Let the only worker of a stage without batching answer so quickly that it gets a wide window."""
        ticket = self.submit(b"quick", route=route)
        await worker.gets_work()
        worker.reply(seconds=0.00001)
        await answer(ticket)


@asynccontextmanager
async def running(*stages: StagePlan, **options: Any) -> AsyncIterator[Service]:
    """Start a `Service`, and stop it at the end; nothing of it may be left then."""
    loop = asyncio.get_running_loop()
    tasks_before = asyncio.all_tasks()
    service = Service(stages, **options)
    await service.coordinator.start()
    try:
        yield service
    finally:
        await service.coordinator.stop(0.0)
    await settled_loop()
    assert service.launcher.alive() == []
    assert service.launcher.closed
    assert service.coordinator.statistics().admitted == 0
    assert asyncio.all_tasks() == tasks_before
    assert pending_timers(loop) == []
