"""A service on virtual time: the real coordinator, stages, queues and pools, with workers that only take time."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from mosec_asgi import Worker, log
from mosec_asgi.batching.coordinator import Coordinator, Limits, RoutePlan
from mosec_asgi.batching.policy.rules import Rules
from mosec_asgi.batching.stage_plan import StagePlan
from mosec_asgi.inside.spec import WorkerSpec
from mosec_asgi.messages import OK, Call, Cancels, Chunk, Chunks, Credit, Credits, Outcome, Progress, Results, Tasks
from mosec_asgi.observing.metrics import ServiceMetrics, StageMetrics
from mosec_asgi.pool.link import WorkerEvents
from mosec_asgi.testing.loop import VirtualTimeLoop

# From the number of tasks in a unit of work, or its cost where the stage counts that, and the time, to its seconds.
Seconds = Callable[[Random, int, float], float]


class Modelled(Worker):
    """Stands for the worker class of a stage; nobody runs it."""

    def forward(self, data: object) -> object:
        """Return the data."""
        return data


@dataclass(frozen=True, slots=True)
class SimulatedStage:
    """A stage and how long its work takes.

    Attributes:
        seconds: of a unit of work.
        num, batch, concurrency, max_wait, latency_target: as `append_worker` has them, in seconds.
        first_event: of a stage that streams: seconds to the first event; `seconds` is to its end.
        rules: which task is next, and which share a batch.
        start: seconds that a worker takes to be ready, or what tells those of the next.
    """

    seconds: Seconds
    num: int = 1
    batch: int = 1
    concurrency: int = 1
    max_wait: float = 0.0
    first_event: float = 0.0
    start: float | Callable[[], float] = 0.0
    latency_target: float = 0.0
    rules: Rules = field(default_factory=Rules)

    def plan(self, name: str) -> StagePlan:
        """Return it as the coordinator wants it."""
        return StagePlan(
            specs=[WorkerSpec(Modelled, name, number, self.batch, 60.0) for number in range(1, self.num + 1)],
            variables=None,
            batch_size=self.batch,
            max_wait=self.max_wait or 0.01,
            adaptive=not self.max_wait,
            max_attempts=2,
            start_timeout=1000.0,
            concurrency=self.concurrency,
            ordered=self.concurrency == 1 and not self.first_event,
            streams=bool(self.first_event),
            latency_target=self.latency_target,
            rules=self.rules,
        )


@dataclass(frozen=True, slots=True)
class Arrival:
    """A call that comes.

    Attributes:
        at: when, in seconds.
        route: for which route.
        timeout: its own, in seconds, or None.
        priority, tenant, cost: its own.
    """

    at: float
    route: int = 0
    timeout: float | None = None
    priority: int = 0
    tenant: str = ""
    cost: int = 0


@dataclass(slots=True)
class Answer:
    """What became of a call.

    Attributes:
        call: which.
        code: the status.
        latency: seconds until its answer; of a stream, until its first event.
        text: of a failure.
        retry_after: of a refusal.
    """

    call: Arrival
    code: int = 0
    latency: float = 0.0
    text: str = ""
    retry_after: int | None = None


@dataclass(slots=True)
class History:
    """What happened.

    Attributes:
        answers: of all calls, in order of their coming.
        begun: items that workers have begun, by the call's number.
        busy: spans of work: when it was begun, its seconds, its stage, and the numbers of the calls.
        metrics: what the service has counted.
    """

    answers: list[Answer] = field(default_factory=list)
    begun: Counter[int] = field(default_factory=Counter)
    busy: list[tuple[float, float, SimulatedStage, Sequence[int]]] = field(default_factory=list)
    metrics: ServiceMetrics | None = None

    def work_of(self, stage: SimulatedStage, start: float, end: float) -> float:
        """Return the share of a stage's slots that were at work in a span of time."""
        spans = (min(end, at + seconds) - max(start, at) for at, seconds, of, _ in self.busy if of is stage)
        return sum(max(0.0, span) for span in spans) / ((end - start) * stage.num * stage.concurrency)

    def useful_work_of(self, stage: SimulatedStage, start: float, end: float) -> float:
        """Return the share of a stage's slots that were at work in a span of time for calls that were answered well."""
        useful = 0.0
        for at, seconds, of, calls in self.busy:
            if of is stage:
                well = sum(self.answers[number].code == 200 for number in calls) / len(calls)
                useful += well * max(0.0, min(end, at + seconds) - max(start, at))
        return useful / ((end - start) * stage.num * stage.concurrency)

    def within(self, start: float, end: float) -> list[Answer]:
        """Return the answers to the calls of a span of time."""
        return [answer for answer in self.answers if start <= answer.call.at < end]

    def good_in(self, start: float, end: float) -> int:
        """Return how many calls were answered well in a span of time."""
        return sum(answer.code == 200 and start <= answer.call.at + answer.latency < end for answer in self.answers)

    @property
    def wasted(self) -> float:
        """The share of the begun items whose calls were answered 408."""
        wasted = sum(items for number, items in self.begun.items() if self.answers[number].code == 408)
        return wasted / max(1, self.begun.total())


class World:
    """Runs calls through a service."""

    def __init__(
        self,
        stages: Sequence[SimulatedStage],
        routes: Sequence[Sequence[int]] | None = None,
        *,
        timeout: float = 1.0,
        capacity: int = 1024,
        load_shedding: bool = True,
        seed: int = 0,
    ) -> None:
        """Define the service.

        Args:
            stages: what runs.
            routes: the stages of each route; None for one with all of them.
            timeout: of the service, in seconds.
            capacity: of the service.
            load_shedding: of the service.
            seed: of all that is random.
        """
        self.loop = VirtualTimeLoop(1000.0)
        self._seed = seed
        self.history = History()
        self.workers: list[SimulatedWorker] = []
        self._stages = stages
        plans = [stage.plan(f"Stage_{place}") for place, stage in enumerate(stages, 1)]
        metrics = ServiceMetrics(
            "world", [StageMetrics(plan.name, batched=plan.batch_size > 1, streams=plan.streams) for plan in plans]
        )
        self.history.metrics = metrics
        self.coordinator = Coordinator(
            plans,
            [RoutePlan(f"/{n}", tuple(route)) for n, route in enumerate(routes or [range(len(stages))])],
            lambda plan, loop: _Launcher(self, stages[plans.index(plan)]),
            Limits(capacity, timeout, timeout, 30.0, 1 << 18, load_shedding),
            observers=[metrics.stages],
            clock=self.loop.time,
        )

    @property
    def now(self) -> float:
        """Seconds since the start."""
        return self.loop.time() - 1000.0

    def run(self, calls: Sequence[Arrival], events: Mapping[float, Callable[[World], None]] | None = None) -> History:
        """Let calls come, until all are answered.

        Args:
            calls: in order of time.
            events: what else happens, by its time.
        """
        logger = log.internal_logger(log.ROOT)
        level = logger.level
        logger.setLevel(logging.CRITICAL + 1)
        try:
            self.loop.run_until_complete(self._run(calls, events or {}))
        finally:
            logger.setLevel(level)
            self.loop.close()
        return self.history

    async def _run(self, calls: Sequence[Arrival], events: Mapping[float, Callable[[World], None]]) -> None:
        await self.coordinator.start()
        for at, event in events.items():
            self.loop.call_at(1000.0 + at, event, self)
        for call in calls:
            if call.at > self.now:
                await asyncio.sleep(call.at - self.now)
            self._submit(call)
        # Each is answered by its deadline at the latest.
        await self.coordinator.stop(1000.0)

    def _submit(self, call: Arrival) -> None:
        # Calls are numbered as they come, from 0.
        number = len(self.history.answers)
        answer = Answer(call)
        self.history.answers.append(answer)
        caller = _Caller(self, answer)
        payload = b"%d" % number
        made = Call(
            number, call.route, payload, "", call.timeout, priority=call.priority, tenant=call.tenant, cost=call.cost
        )
        self.coordinator.submit(made, caller)

    def begin(self, ids: Sequence[int]) -> Random:
        """Note that a worker begins tasks; return the chance that decides how long it takes."""
        self.history.begun.update(ids)
        return chance_of(self._seed, ids[0])


def chance_of(seed: int, call: int) -> Random:
    """Return a call's own chance: it takes as long whatever became of those before it."""
    return Random(seed * 1_000_003 + call)


class _Caller:
    """Notes what becomes of a call, and reads its stream at once."""

    def __init__(self, world: World, answer: Answer) -> None:
        self._world = world
        self._answer = answer
        self._began = world.now

    def settled(self, outcome: Outcome) -> None:
        """Note the outcome."""
        answer = self._answer
        self._note_time()
        answer.code = outcome.code
        failure = outcome.failure
        if failure is not None:
            answer.text, answer.retry_after = failure.text, failure.retry_after

    def streamed(self, chunk: Chunk) -> None:
        """Take an event; the first one is what is waited for."""
        self._note_time()
        # Later: a caller must not call the engine from here.
        self._world.loop.call_soon(self._world.coordinator.credit, Credit(chunk.call_id, len(chunk.payload)))

    def _note_time(self) -> None:
        answer = self._answer
        answer.latency = answer.latency or self._world.now - self._began


class _Launcher:
    """Starts simulated workers."""

    def __init__(self, world: World, stage: SimulatedStage) -> None:
        self._world = world
        self._stage = stage

    def launch(self, spec: WorkerSpec, variables: Mapping[str, str], events: WorkerEvents) -> SimulatedWorker:
        """Start a worker; see `pool.link.Launcher.launch`."""
        worker = SimulatedWorker(self._world, self._stage, events)
        self._world.workers.append(worker)
        return worker

    def close(self) -> None:
        """Nothing is left."""


class SimulatedWorker:
    """A worker that only takes time, and the link to it; see `pool.link.WorkerLink`. Messages take none."""

    name = "simulated worker"
    pid = None

    def __init__(self, world: World, stage: SimulatedStage, events: WorkerEvents) -> None:
        self._world = world
        self._stage = stage
        self._events = events
        self._alive = True
        self._is_open = True
        self._finishing = False
        self._waiting: deque[Sequence[int]] = deque()
        self._running = 0
        self._begun = self._beats = 0
        self._cancelled: set[int] = set()
        start = stage.start() if callable(stage.start) else stage.start
        world.loop.call_later(start, self._say, events.ready)

    # -- the link ----------------------------------------------------------------------------------------------------

    def send(self, tasks: Tasks) -> None:
        """Take tasks."""
        self._waiting.extend([tasks.ids] if self._stage.batch > 1 else [[task] for task in tasks.ids])
        self._world.loop.call_soon(self._begin)

    def cancel(self, cancels: Cancels) -> None:
        """Skip tasks that have not been begun."""
        self._cancelled.update(cancels.ids)

    def credit(self, credits: Credits) -> None:
        """Events are few: it never waits for a client."""

    def memory(self) -> int | None:
        """Return None: it is no process."""
        return None

    def progress(self) -> Progress:
        """Return how far it has come."""
        return Progress(self._begun, self._beats)

    def busy_poll(self, seconds: float) -> bool | None:
        """Nothing comes while no time passes."""
        return False

    def drain(self) -> None:
        """What it has said was heard at once."""

    def finish(self) -> None:
        """Stop once all is answered."""
        self._finishing = True
        self._world.loop.call_soon(self._begin)

    def close(self) -> None:
        """Say nothing more but that it has ended."""
        self._is_open = False

    def kill(self) -> None:
        """End it."""
        if self._alive:
            self._alive = False
            self._world.loop.call_soon(self._events.exited)

    def reap(self, timeout: float) -> None:
        """Nothing is left of it."""

    def describe_exit(self) -> str:
        """Say how it ended."""
        return "was killed by signal 9"

    # -- its work ----------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        while self._waiting and self._running < self._stage.concurrency and self._alive:
            ids = self._waiting.popleft()
            self._begun += len(ids)
            left = [task for task in ids if task not in self._cancelled]
            seconds = 0.0
            self._running += 1
            if left:
                chance = self._world.begin(left)
                seconds = self._stage.seconds(chance, self._amount(left), self._world.now)
                self._world.history.busy.append((self._world.now, seconds, self._stage, left))
                if self._stage.first_event:
                    self._world.loop.call_later(self._stage.first_event, self._emit, left)
            self._world.loop.call_later(seconds, self._end, ids, seconds)
        if self._finishing and not self._running:
            self.kill()

    def _amount(self, ids: Sequence[int]) -> int:
        """Return what there is in a unit of work."""
        rules = self._stage.rules
        if not (rules.max_cost or rules.by_cost):
            return len(ids)
        costs = [self._world.history.answers[task].call.cost for task in ids]
        return len(costs) * max(costs) if rules.by_cost else sum(costs)

    def _emit(self, ids: Sequence[int]) -> None:
        self._say(lambda: self._events.chunks(Chunks(list(ids), [b"event"] * len(ids))))

    def _end(self, ids: Sequence[int], seconds: float) -> None:
        if not self._alive:
            return
        self._running -= 1
        self._beats += 1
        self._cancelled.difference_update(ids)
        payload = b"" if self._stage.first_event else b"1"
        results = Results(list(ids), [OK] * len(ids), [payload] * len(ids), seconds)
        self._say(lambda: self._events.results(results))
        self._begin()

    def _say(self, report: Callable[[], None]) -> None:
        if self._alive and self._is_open:
            report()
