"""Stand-ins for what the tests must not run for real: workers whose every word the test says, and a clock it moves.

A `FakeLauncher` starts `FakeWorker`s. What the server sends one is decoded from its bytes into `frames`; what the test
has it say goes through the same decoder as the bytes of a real pipe.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from common import PATIENCE as PATIENCE
from common import told as told
from common import until as until

from mosec_asgi.batching.coordinator import Coordinator, Limits, RoutePlan
from mosec_asgi.batching.engine import Outcome, outcome_future
from mosec_asgi.batching.stage import StagePlan
from mosec_asgi.errors import Failure, StartupError
from mosec_asgi.inside.spec import WorkerSpec
from mosec_asgi.ipc import frames
from mosec_asgi.ipc.channel import Seen
from mosec_asgi.ipc.shm import WorkerMemory
from mosec_asgi.messages import Cancels, Chunks, Credits, Progress, Results, Tasks
from mosec_asgi.observing.metrics import ServiceMetrics, StageMetrics
from mosec_asgi.worker import Worker


class Echo(Worker):
    def forward(self, data: Any) -> Any:
        return data


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


async def settled_loop() -> None:
    """Let the loop run all that is ready, and what that makes ready."""
    for _ in range(10):
        await asyncio.sleep(0)


class Ticket(NamedTuple):
    """An admitted request.

    Attributes:
        id: the number of its task.
        outcome: what becomes of it.
    """

    id: int
    outcome: asyncio.Future[Outcome]


async def answer(ticket: Ticket | Failure) -> bytes | Failure:
    """Return the outcome of an admitted request, which must come."""
    assert isinstance(ticket, Ticket), ticket
    return await asyncio.wait_for(asyncio.shield(ticket.outcome), PATIENCE)


class FakeClock:
    """A clock that stands still until the test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


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
    """One life of a worker: a `Handle` and a `Pipe` to the server, and to the test the worker's mind."""

    def __init__(
        self,
        spec: WorkerSpec,
        variables: Mapping[str, str],
        pid: int,
        on_frame: Callable[[frames.Frame], None],
        on_closed: Callable[[str], None],
        on_exit: Callable[[], None],
    ) -> None:
        self.spec = spec
        self.variables = dict(variables)
        self.pid: int | None = pid
        self.memory: WorkerMemory | None = None
        self.frames: list[Tasks] = []
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
        # All that it was told, frame by frame; `frames` are those with tasks.
        self.heard: list[frames.Frame] = []
        # Bytes that it has written and the server has not read; taken in at its end.
        self.unread = b""
        # What the server sees when it looks for an answer, and for how many seconds that has looked, each time.
        self.seen = Seen.NOTHING
        self.polls: list[float] = []
        # A child of its own holds its pipe open when it ends.
        self.pipe_outlives_it = False
        self._ending = "is still running"
        self._open = True
        self._forgotten = False
        self._from_server = frames.Decoder()
        self._to_server = frames.Decoder()
        self._on_frame = on_frame
        self._on_closed = on_closed
        self._on_exit = on_exit
        self._unanswered: list[int] = []

    def __repr__(self) -> str:
        return f"<FakeWorker {self.spec.stage} {self.spec.worker_id} pid={self.pid} has={self._unanswered}>"

    # -- what the server sees ----------------------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        if not self._open:
            return
        self._from_server.receive_data(data)
        frame = self._from_server.next_frame()
        if isinstance(frame, frames.Freed):
            # It goes along with tasks.
            self.heard.append(frame)
            frame = self._from_server.next_frame()
        assert not self._from_server.pending, "one send is one frame"
        assert not self.asked_to_stop, "something was sent after the end"
        assert isinstance(frame, (Tasks, Cancels, Credits))
        self.heard.append(frame)
        if isinstance(frame, Tasks):
            self.frames.append(frame)
            self._unanswered += frame.ids

    def busy_poll(self, seconds: float) -> Seen:
        self.polls.append(seconds)
        if self.seen is Seen.SOMETHING:
            self.reply(seconds=0.0)
        return self.seen

    def drain(self) -> None:
        unread, self.unread = self.unread, b""
        self.write(unread)
        if self.exited and not self.pipe_outlives_it:
            self.close_pipe()

    def finish(self) -> None:
        if self._open and not self.asked_to_stop:
            self.asked_to_stop = True
            if self.stops_when_asked:
                asyncio.get_running_loop().call_soon(self.exit, "exited with status 0")

    def close(self) -> None:
        self._open = False

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
        return [task_id for frame in self.frames for task_id in frame.ids]

    @property
    def has(self) -> list[int]:
        """The numbers of the tasks that it has not answered, in order."""
        return list(self._unanswered)

    @property
    def names(self) -> list[str]:
        """The request ids that it was sent, in order."""
        return [name for frame in self.frames for name in frame.request_ids]

    @property
    def sizes(self) -> list[int]:
        """The number of tasks in each frame that it was sent."""
        return [len(frame.ids) for frame in self.frames]

    @property
    def cancelled(self) -> list[int]:
        """The numbers of the tasks that nobody waits for, as it was told."""
        return [task_id for frame in self.heard if isinstance(frame, Cancels) for task_id in frame.ids]

    @property
    def taken(self) -> list[tuple[int, int]]:
        """The tasks and the bytes of their streams that clients have taken, as it was told."""
        told = [frame for frame in self.heard if isinstance(frame, Credits)]
        return [pair for frame in told for pair in zip(frame.ids, frame.sizes, strict=True)]

    async def gets_work(self) -> None:
        """Wait until it has tasks to answer."""
        await until(lambda: self._unanswered)

    def payload(self, task_id: int) -> bytes:
        """Return the payload with which it was last sent a task."""
        for frame in reversed(self.frames):
            if task_id in frame.ids:
                return frame.payloads[list(frame.ids).index(task_id)]
        raise AssertionError(f"{self} was never sent task {task_id}")

    def write(self, data: bytes) -> None:
        """Put bytes into the pipe, as `ipc.channel.Channel` reads them."""
        if not self._open:
            return
        self._to_server.receive_data(data)
        try:
            while self._open and (frame := self._to_server.next_frame()) is not None:
                self._on_frame(frame)
        except frames.FrameError as error:
            self.close_pipe(f"garbage came from it: {error}")

    def ready(self) -> None:
        self.write(frames.encode_ready())

    def reply(
        self,
        ids: Sequence[int] | None = None,
        *,
        payloads: Sequence[bytes] | None = None,
        code: int = 200,
        seconds: float = 0.01,
    ) -> None:
        """Answer tasks: all that it has where `ids` is None, each with its own payload where none is given."""
        ids = self.has if ids is None else ids
        if payloads is None:
            payloads = [b"re:" + self.payload(task_id) for task_id in ids]
        for task_id in ids:
            self._unanswered.remove(task_id)
        self.beats += 1
        self.write(frames.encode_results(Results(ids, [code] * len(ids), payloads, seconds)))

    def emit(self, ids: Sequence[int], payloads: Sequence[bytes]) -> None:
        """Send pieces of streams."""
        self.beats += 1
        self.write(frames.encode_chunks(Chunks(ids, payloads)))

    def reply_unasked(self, ids: Sequence[int]) -> None:
        """Answer tasks whether or not it has them."""
        self.write(frames.encode_results(Results(ids, [200] * len(ids), [b"unasked"] * len(ids), 0.01)))

    def fail_to_start(self, traceback: str) -> None:
        self.write(frames.encode_failed(traceback))
        self.exit("exited with status 1")

    def close_pipe(self, reason: str = "it was closed") -> None:
        if self._open:
            self._open = False
            self._on_closed(reason)

    def exit(self, ending: str = "was killed by signal 11") -> None:
        """End the process; once only."""
        if not self.exited:
            self.exited = True
            self._ending = ending
            self._on_exit()
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

    def launch(
        self,
        spec: WorkerSpec,
        variables: Mapping[str, str],
        on_frame: Callable[[frames.Frame], None],
        on_closed: Callable[[str], None],
        on_exit: Callable[[], None],
    ) -> tuple[FakeWorker, FakeWorker]:
        if self.refusal is not None:
            raise self.refusal
        worker = FakeWorker(spec, variables, 100 + len(self.launched), on_frame, on_closed, on_exit)
        self.launched.append(worker)
        if self.on_launch is not None:
            asyncio.get_running_loop().call_soon(self.on_launch, worker)
        return worker, worker

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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.launcher = FakeLauncher(FakeWorker.ready)
        self.metrics = ServiceMetrics(
            "test", [StageMetrics(plan.name, batched=plan.batch_size > 1, streams=plan.streams) for plan in stages]
        )
        pipelines = [range(len(stages))] if routes is None else routes
        self.coordinator = Coordinator(
            stages,
            [RoutePlan(f"/{place}", tuple(pipeline)) for place, pipeline in enumerate(pipelines)],
            lambda plan, loop: self.launcher,
            self.metrics,
            Limits(capacity, timeout, event_timeout, stall_timeout, stream_buffer, load_shedding),
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
        ticket: Ticket | Failure | None = None

        def pass_on(chunk: bytes) -> None:
            assert isinstance(ticket, Ticket)
            assert not ticket.outcome.done(), "nothing comes after the outcome"
            assert on_chunk is not None
            on_chunk(chunk)

        ticket = self.try_to_submit(
            route, body, name or f"request-{number}", timeout, on_chunk=None if on_chunk is None else pass_on
        )
        assert isinstance(ticket, Ticket), ticket
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
    ) -> Ticket | Failure:
        """Submit a request, which may be refused."""
        future, resolve = outcome_future()
        task = self.coordinator.submit(route, body, name, resolve, timeout, example=example, on_chunk=on_chunk)
        return Ticket(task, future) if isinstance(task, int) else task

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
    assert service.coordinator.statistics().admitted == 0
    assert asyncio.all_tasks() == tasks_before
    assert pending_timers(loop) == []


def pending_timers(loop: asyncio.AbstractEventLoop) -> list[asyncio.TimerHandle]:
    """Return the timers that are still to fire; empty on a loop that does not tell."""
    return [timer for timer in getattr(loop, "_scheduled", []) if not timer.cancelled()]
