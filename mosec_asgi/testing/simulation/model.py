"""The simulation's own picture of a service: its requests, its workers' lives, its stages. Facts, no decisions.

It is built from what can be seen from outside alone: what was asked of the service, what it sent to its workers and
what it heard from them. The checkers in `contracts` keep it, and compare with it what the service does.
"""

from __future__ import annotations

import enum
import math
from bisect import insort
from collections import Counter, deque
from dataclasses import dataclass, field

from mosec_asgi.batching.policy.rules import Rules
from mosec_asgi.batching.stage_plan import StagePlan
from mosec_asgi.errors import Failure
from mosec_asgi.inside.spec import WorkerSpec
from mosec_asgi.messages import Outcome
from mosec_asgi.testing.simulation.scenario import BARE_BYTES, LEAKED_BYTES, Arrival, Change, World, fit

# Seconds by which the service's clock may be behind the time that is passing here.
CLOCK_ERROR = 0.001


class Phase(enum.Enum):
    """Where a worker is in its life, as far as the service can know it."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"
    LOST = "lost"


class Case:
    """A request.

    Attributes:
        number: counts from 1; its body says it.
        name: its request id.
        arrival: what its client does.
        stages: of its route.
        streams: its answer is a stream.
        objects: its call is one of objects.
        id: the number of its call.
        submitted: the service has been asked, and has returned.
        admitted: the service has it; False where it is about to be refused.
        refusals: the failures that it may be refused with, each with the most `Retry-After`, where that is measured.
        outcome: its answer, once its client has been told.
        position: which of `stages` it is at.
        payload: what the stage that it is at is to get.
        sequence: its place in the order of arrival at that stage.
        queued_at: when it arrived there.
        deaths: workers of that stage that died and had begun it.
        alone: it must have a worker for itself.
        life: the worker that has it, or had it last.
        flight: the requests that share its work at this stage; None where it is alone with it.
        held: its payload lies in memory that a link shares with its worker.
        expected: its answer, where there is only one left that is right.
        left: its client has left.
        arrived_at: when it was submitted.
        soonest, latest: between these times it is answered 408.
        events: pieces of its stream that have come from its worker.
        chunks: those that must reach its client now.
        read, unread: bytes of its stream that its client has and has not read.
        reported: bytes of its stream that its worker was told of.
    """

    __slots__ = (
        "admitted", "alone", "arrival", "arrived_at", "chunks", "deaths", "events", "expected", "flight", "held", "id",
        "latest", "left", "life", "name", "number", "objects", "outcome", "payload", "position", "queued_at", "read",
        "refusals", "reported", "sequence", "soonest", "stages", "streams", "submitted", "unread",
    )  # fmt: skip

    def __init__(self, number: int, call_id: int, arrival: Arrival, stages: tuple[int, ...], *, streams: bool) -> None:
        self.number = number
        self.name = f"request-{number}"
        self.arrival = arrival
        self.stages = stages
        # In between the others, so that batches hold both kinds.
        self.objects = number % 3 == 0
        self.streams = streams
        self.id = call_id
        self.submitted = self.admitted = False
        self.refusals: list[tuple[Failure, int | None]] = []
        self.outcome: Outcome | None = None
        self.position = 0
        self.payload = b"body %d" % arrival.body if arrival.body else b"%d" % number
        self.flight: Flight | None = None
        self.held = False
        self.sequence = 0
        self.queued_at = 0.0
        self.deaths = 0
        self.alone = False
        self.life: Life | None = None
        self.expected: Outcome | None = None
        self.left = False
        self.soonest = self.latest = self.arrived_at = 0.0
        self.events = 0
        self.chunks: deque[tuple[bytes, bool]] = deque()
        self.read = self.unread = self.reported = 0

    def __repr__(self) -> str:
        return f"{self.name} at stage {self.stage}"

    @property
    def stage(self) -> int:
        """The stage that it is at."""
        return self.stages[self.position]

    @property
    def is_last(self) -> bool:
        """Whether that is its pipeline's last."""
        return self.position + 1 == len(self.stages)

    def overtakes(self, other: Case, rules: Rules) -> bool:
        """Whether it must not start while `other` waits at the same stage, whose rules these are."""
        if self.alone != other.alone:
            return other.alone
        ours, theirs = self.arrival, other.arrival
        # Batches of like costs leave others behind. Keys have lanes of their own, and tenants have turns.
        if not self.alone and (rules.by_cost or (rules.keyed and ours.key != theirs.key)):
            return False
        if not self.alone and ours.tenant != theirs.tenant:
            return False
        if not self.alone and ours.priority != theirs.priority:
            # Whose turn it is in one priority says nothing of another.
            behind = (other.queued_at - self.queued_at) - (theirs.priority - ours.priority) * rules.ageing
            return not ours.tenant and behind < -CLOCK_ERROR
        # Of what comes at one moment, the order of admission is as good as that of arrival.
        later = self.id > other.id or self.queued_at > other.queued_at + CLOCK_ERROR
        return later and self.sequence > other.sequence

    @property
    def done(self) -> bool:
        """Whether it has been answered."""
        return self.outcome is not None

    @property
    def unit(self) -> Case:
        """What stands for it in the queue and on workers."""
        return self if self.flight is None else self.flight

    @property
    def input(self) -> tuple[bytes, str, str, int, str]:
        """What must be the same where work is shared: the payload, how it comes and goes, and whose turn it is."""
        kind = "objects" if self.objects else "bytes"
        comes, goes = kind if self.position == 0 else "", kind if self.is_last else ""
        return self.payload, comes, goes, self.arrival.priority, self.arrival.tenant

    def fails(self, failure: Failure) -> None:
        """Note that only one answer is left that is right: this failure."""
        self.expected = Outcome.of_failure(self.id, failure)

    def belongs_to(self, life: Life | None) -> None:
        """Note which worker has it."""
        self.life = life


class Flight(Case):
    """Requests with equal inputs at a stage that computes those once: what its queue and its workers see of them.

    Attributes:
        callers: the requests, in order of arrival; some may have been answered.
    """

    __slots__ = ("callers",)

    def __init__(self, first: Case) -> None:
        for name in Case.__slots__:
            setattr(self, name, getattr(first, name))
        self.callers: list[Case] = []
        self.join(first)

    def join(self, case: Case) -> None:
        """Let a request share the work."""
        self.callers.append(case)
        case.flight = self
        case.life = self.life

    @property
    def live(self) -> list[Case]:
        """Those that wait for the answer."""
        return [case for case in self.callers if not case.done]

    @property
    def done(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return not self.live

    def fails(self, failure: Failure) -> None:
        """Note that all get this failure."""
        for case in self.live:
            case.fails(failure)

    def belongs_to(self, life: Life | None) -> None:
        """Note which worker has it."""
        self.life = life
        for case in self.callers:
            case.life = life


class Life:
    """One life of a worker.

    Attributes:
        stage: whose worker it is.
        spec: what it was told to run.
        worker_id: its number there.
        number: counts the lives of all workers.
        phase: where it is in its life.
        unheard: what it was sent and has not answered, as far as the service has heard; in the order of sending.
        units: for what is unheard, the batch that it came with.
        begun: the tasks that it has begun.
        still_since: when it last made a step, or got work after it had none.
        launched_at: when it was started.
        ready_at: when the service heard that it is ready.
        heard_at: when the service last heard of it, that it is ready or answers.
        finished_at: when it was asked to stop.
        fault: why the service may end it.
        killed: the service has ended it.
        lost_at: when the service gave it up.
        failed_at: when the service heard that it cannot start.
        cancelled: tasks that it was told to be left.
        quickest: the least seconds for a task that it has reported; None while it has answered none.
        calls: tasks that it has answered, as far as the service has heard.
        full_since_failure: how many starts at its stage had failed when it had answered all that it may.
        left_at: when it was given no more tasks, because another came in its place or there were to be fewer.
    """

    __slots__ = (
        "begun", "calls", "cancelled", "failed_at", "fault", "finished_at", "full_since_failure", "heard_at", "killed",
        "launched_at", "left_at", "lost_at", "number", "phase", "quickest", "ready_at", "spec", "stage", "still_since",
        "unheard", "units", "worker_id",
    )  # fmt: skip

    def __init__(self, stage: StageModel, spec: WorkerSpec, number: int, now: float) -> None:
        self.stage = stage
        self.spec = spec
        self.worker_id = spec.worker_id
        self.calls = 0
        self.full_since_failure = 0
        self.left_at = math.inf
        self.number = number
        self.phase = Phase.STARTING
        self.unheard: dict[int, Case] = {}
        self.units: dict[int, int] = {}
        self.begun: set[int] = set()
        self.still_since = self.launched_at = self.heard_at = now
        self.ready_at: float | None = None
        self.finished_at: float | None = None
        self.lost_at: float | None = None
        self.failed_at: float | None = None
        self.fault = ""
        self.killed = False
        self.cancelled: set[int] = set()
        self.quickest: float | None = None

    def __repr__(self) -> str:
        return f"worker {self.stage.index}.{self.worker_id} (life {self.number})"

    @property
    def runs_alone(self) -> bool:
        """Whether it has a task that must have it for itself."""
        return any(case.alone for case in self.unheard.values())

    @property
    def at_work(self) -> bool:
        """Whether it may have tasks."""
        return self.phase in (Phase.READY, Phase.DRAINING)

    @property
    def is_full(self) -> bool:
        """Whether it has lived as long as it may."""
        recycling = self.stage.plan.recycling
        large = recycling.max_memory and BARE_BYTES + LEAKED_BYTES * len(self.begun) >= recycling.max_memory
        return bool(large) or self.calls >= recycling.most_calls

    @property
    def batches(self) -> int:
        """The batches of which it has not answered all."""
        return len(set(self.units.values()))

    @property
    def running(self) -> int:
        """The batches that it has not answered, or the tasks where its stage does not batch."""
        return self.batches if self.stage.plan.batch_size > 1 else len(self.unheard)

    @property
    def given_up_at(self) -> float | None:
        """When the service gave it up, or heard that it cannot start: the later of the two; None before."""
        return max((at for at in (self.lost_at, self.failed_at) if at is not None), default=None)


@dataclass(slots=True, eq=False)
class Place:
    """One of the places of a stage, and who is in it.

    Attributes:
        life: the worker in it, until it has ended.
        successor: the worker that is to take its place.
        tried: the first start here has ended, one way or the other.
        failing: the last start here that has ended failed.
        early: ends in a row that came before a healthy spell.
        again: between these times another worker must be started here.
    """

    life: Life | None = None
    successor: Life | None = None
    tried: bool = False
    failing: bool = False
    early: int = 0
    again: tuple[float, float] | None = None


@dataclass(slots=True, eq=False)
class StageModel:
    """A stage.

    Attributes:
        index: its place in the service's list.
        plan: what was asked for.
        plans: that, and what it may go by at this moment because it is being changed.
        places: of its workers, by number from 1.
        candidates: workers that are to have places of their own, by number.
        leaving: workers that have no place any more, until they have ended.
        changes: that were asked for and have not ended.
        changed_at: when one has ended last.
        failed_starts: how many there were.
        waiting: what waits for a worker, in order; some may have been answered meanwhile.
        flights: requests that share their work, until it is done, by their input.
        overtaken: what was waiting when others were sent that came after it.
        restarts: workers that were to be started in place of others.
        arrivals: how many have come.
        down: all its places are failing.
        down_at: when they began to be.
        worked: seconds in which it had something to do, until `working_since`.
        working_since: since when it has; None where it has not.
        longest_start: the most seconds that a worker has taken to be ready.
        lost_at: when a worker that was ready was last given up.
    """

    index: int
    plan: StagePlan
    places: dict[int, Place]
    plans: list[StagePlan] = field(default_factory=list)
    candidates: dict[int, Life] = field(default_factory=dict)
    leaving: list[Life] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    changed_at: float = -1.0
    failed_starts: int = 0
    waiting: list[Case] = field(default_factory=list)
    flights: dict[tuple[bytes, str, str, int, str], Flight] = field(default_factory=dict)
    overtaken: set[Case] = field(default_factory=set)
    arrivals: int = 0
    restarts: int = 0
    down: bool = False
    down_at: float = -1.0
    worked: float = 0.0
    working_since: float | None = None
    longest_start: float = 0.0
    lost_at: float = 0.0

    @property
    def lives(self) -> list[Life]:
        """The workers of which the service does not know that they have ended."""
        placed = [life for place in self.places.values() for life in (place.life, place.successor) if life is not None]
        return [*placed, *self.candidates.values(), *self.leaving]

    @property
    def views(self) -> list[StagePlan]:
        """What it may go by: workers that were made for fewer tasks at a time may hold it to that."""
        sizes = {life.spec.max_batch_size for life in self.ready}
        fitted = [fit(plan, size) for plan in self.plans for size in sizes if size < plan.specs[0].max_batch_size]
        return [*self.plans, *fitted]

    def leave(self, life: Life, now: float) -> None:
        """Let a worker leave: it has no place any more."""
        self.note_work(now)
        self.leaving.append(life)
        life.left_at = now
        if life.phase is Phase.READY:
            life.phase = Phase.DRAINING
        self.note_work(now)

    @property
    def draining(self) -> list[Life]:
        """The workers that answer what they have, and are sent nothing more."""
        return [life for life in self.leaving if life.phase is Phase.DRAINING]

    @property
    def at_work(self) -> list[Life]:
        """The workers that may have tasks."""
        return [life for life in self.lives if life.at_work]

    @property
    def is_changing(self) -> bool:
        """Whether workers of it are being replaced, or may be next."""
        # A successor may be in its place already, because the worker there has died.
        starting = any(life.ready_at is None for life in self.lives)
        return bool(self.changes or self.leaving or starting)

    @property
    def ready(self) -> list[Life]:
        """The workers that can be sent tasks."""
        return [life for life in self.lives if life.phase is Phase.READY]

    def most_until_ready(self, now: float) -> float:
        """Return the most seconds in which the service may expect a worker to be ready: 0 where one is."""
        return 0.0 if self.ready else max(self.longest_start, now - self.lost_at) + CLOCK_ERROR

    @property
    def is_taken(self) -> bool:
        """Whether a request that comes now must wait, for a slot or for a worker."""
        ready, batched = self.ready, self.plan.batch_size > 1
        units = sum(life.batches if batched else len(life.unheard) for life in ready)
        waiting = len(self.live())
        # Each that waits may fill a batch, where a target or the sum of costs bounds batches.
        return any(
            units + waiting // (1 if plan.steered_target or plan.rules.max_cost else plan.batch_size)
            >= len(ready) * plan.concurrency
            for plan in self.views
        )

    def holds_a_batch(self, plan: StagePlan) -> bool:
        """Whether what waits, and need not be alone, fills a batch of a plan."""
        rules = plan.rules
        count: Counter[str] = Counter()
        cost: Counter[str] = Counter()
        for case in self.live():
            if not case.alone:
                lane = case.arrival.key if rules.keyed else ""
                count[lane] += 1
                cost[lane] += case.arrival.cost
        most_cost = rules.max_cost or math.inf
        return any(count[lane] >= plan.batch_size or cost[lane] >= most_cost for lane in count)

    def arrive(self, case: Case, now: float) -> None:
        """Let a request that has come to this stage wait."""
        self.arrivals += 1
        case.sequence = self.arrivals
        case.queued_at = now
        case.flight = None
        if not self.plan.coalesce or self.down or case.held:
            self.waiting.append(case)
        else:
            self._share(case)
        self.note_work(now)

    def _share(self, case: Case) -> None:
        flight = self.flights.get(case.input)
        if flight is None or flight.done:
            flight = self.flights[case.input] = Flight(case)
            self.waiting.append(flight)
        else:
            flight.join(case)

    def withdraw(self, case: Case) -> None:
        """Let a request go that was not admitted."""
        flight = case.flight
        if flight is None:
            self.waiting.remove(case)
            return
        case.flight = None
        flight.callers.remove(case)
        if not flight.callers:
            self.waiting.remove(flight)
            del self.flights[flight.input]

    def land(self, unit: Case) -> list[Case]:
        """Let a worker have answered; return the requests that are to get the answer."""
        if not isinstance(unit, Flight):
            return [] if unit.done else [unit]
        if self.flights.get(unit.input) is unit:
            del self.flights[unit.input]
        return unit.live

    def unit_of(self, task_id: int) -> Case | None:
        """Return what waits here under a number."""
        return next((unit for unit in self.live() if unit.id == task_id), None)

    def come_back(self, case: Case) -> None:
        """Let a request wait in its old place: its worker has died."""
        insort(self.waiting, case, key=lambda waiting: waiting.sequence)

    def live(self) -> list[Case]:
        """Return what waits and has not been answered."""
        if any(case.done for case in self.waiting):
            self.waiting = [case for case in self.waiting if not case.done]
        return self.waiting

    def note_work(self, now: float) -> None:
        """Measure the time in which there is something to do."""
        if self.working_since is not None:
            self.worked += now - self.working_since
        busy = any(life.unheard for life in self.at_work) or any(not case.done for case in self.waiting)
        self.working_since = now if busy else None


class ServiceModel:
    """A service.

    Attributes:
        world: its stages, routes and limits.
        stages: its stages.
        open: the requests that have no answer yet, by name.
        by_id: all that there ever were, by the numbers of their calls.
        started: it has started.
        stopping: when it was told to stop, and with how much grace, in seconds; None before.
        stopped: its workers have been asked to stop.
        closed_launchers: the stages whose launchers have been closed.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.stages = [
            StageModel(index, plan, {spec.worker_id: Place() for spec in plan.specs}, [plan])
            for index, plan in enumerate(world.stages)
        ]
        self.open: dict[str, Case] = {}
        self.by_id: dict[int, Case] = {}
        self.started = False
        self.stopping: tuple[float, float] | None = None
        self.stopped = False
        self.closed_launchers: set[int] = set()

    def lives(self, *phases: Phase) -> list[Life]:
        """Return the workers in phases of their lives, without those that have said that they cannot start."""
        lives = (life for stage in self.stages for life in stage.lives)
        return [life for life in lives if life.phase in phases and life.given_up_at is None]
