"""What a history consists of, drawn from its seed: a service, its clients, and what goes wrong.

Which faults there are, and how often, differs from history to history. Where all of them are on all the time they hide
behind each other: a worker that never lives for long is never stuck. This is swarm testing (Groce et al., ISSTA 2012).
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from mosec_asgi.batching.changes import StageValues
from mosec_asgi.batching.coordinator import Limits, RoutePlan
from mosec_asgi.batching.policy.rules import Rules
from mosec_asgi.batching.stage_plan import StagePlan
from mosec_asgi.inside.spec import WorkerSpec
from mosec_asgi.pool.recycling import NEVER, Recycling
from mosec_asgi.worker import Worker

# Memory of a simulated worker that has just started, and what it keeps of each task.
BARE_BYTES = 1_000_000
LEAKED_BYTES = 100_000
LEAKING = Recycling(max_memory=BARE_BYTES + 3 * LEAKED_BYTES)
# What can go wrong with a worker while it starts, while it has nothing to do, and while it is at work.
START_FAULTS = (
    "launch is refused", "says why it cannot start", "exits at start", "hangs at start", "garbage at start",
    "answers before it is ready", "starts slowly",
)  # fmt: skip
IDLE_FAULTS = (
    "crash when idle", "freeze when idle", "closes its link", "garbage when idle", "says twice that it is ready",
    "says late that it cannot start", "exits in silence", "answers nothing",
)  # fmt: skip
WORK_FAULTS = (
    "crash before it begins", "crash at work", "crash after its answer", "freeze before it begins", "freeze at work",
    "garbage", "answers twice", "answers what it was not given", "answers in the wrong order", "answers half",
    "too many events", "events for another", "streams what is no stream", "says that its client left",
)  # fmt: skip
FAULTS = (*START_FAULTS, *IDLE_FAULTS, *WORK_FAULTS)


@dataclass(frozen=True, slots=True)
class World:
    """A service: its stages, its routes, and what it allows."""

    stages: Sequence[StagePlan]
    routes: Sequence[RoutePlan]
    limits: Limits


@dataclass(frozen=True, slots=True)
class Pace:
    """How quick the workers of a stage are.

    Attributes:
        least, most: seconds for a unit of work.
        events: the most events of a stream.
    """

    least: float
    most: float
    events: int


@dataclass(frozen=True, slots=True)
class Arrival:
    """A client and what it does.

    Attributes:
        at: when its request arrives, in seconds from the start.
        route: the route that it asks for.
        timeout: its own, in seconds, or None.
        leaves_after: seconds after which it leaves, or None.
        raises: what hears its outcome and its events has a fault of its own.
        reads_after: seconds that it takes to read an event.
        stalls_at: the event from which on it reads nothing for `stalls_for` seconds, or None.
        stalls_for: see there.
        poison: the stage whose workers die of it, or None.
        fails_at: the stage that answers it with an error, or None.
        priority, tenant, key, cost: of the call; its inputs of later stages have the same.
        body: what it asks for: those of the same number ask for the same; 0 where no other does.
    """

    at: float
    route: int
    timeout: float | None = None
    leaves_after: float | None = None
    raises: bool = False
    reads_after: float = 0.0
    stalls_at: int | None = None
    stalls_for: float = 0.0
    poison: int | None = None
    fails_at: int | None = None
    priority: int = 0
    tenant: str = ""
    key: str = ""
    cost: int = 1
    body: int = 0


class Kind(enum.Enum):
    """What can be changed of a stage that serves."""

    SCALE = "scale"
    CONFIGURE = "configure"
    RESTART = "restart"


@dataclass(frozen=True, slots=True)
class Change:
    """Somebody changes a stage while it serves.

    Attributes:
        at: when, in seconds from the start.
        stage: which.
        kind: what is changed.
        num: of workers that there are to be.
        batch_size: of the workers; 0 to leave it.
        timeout: seconds for a step; 0 to leave it.
        max_wait: seconds that a task may wait for its batch.
        adaptive: wait only where it pays.
        latency_target: seconds that a task should be there.
        gives_up_after: seconds after which nobody waits for the change any more, or None.
    """

    at: float
    stage: int
    kind: Kind
    num: int = 1
    batch_size: int = 0
    timeout: float = 0.0
    max_wait: float = 0.0
    adaptive: bool = False
    latency_target: float = 0.0
    gives_up_after: float | None = None

    @property
    def configures(self) -> bool:
        """Whether it gives the stage other values."""
        return self.kind is Kind.CONFIGURE

    def applied_to(self, plan: StagePlan) -> StagePlan:
        """Return a stage as it is after this change of its values."""
        size = self.batch_size or plan.specs[0].max_batch_size
        continuous = is_continuous(plan)
        return replace(
            plan,
            specs=[replace(spec, max_batch_size=size, timeout=self.timeout or spec.timeout) for spec in plan.specs],
            batch_size=plan.batch_size if continuous else size,
            concurrency=size if continuous else plan.concurrency,
            max_wait=self.max_wait,
            adaptive=self.adaptive,
            latency_target=self.latency_target,
        )

    def of_values(self, values: StageValues) -> StageValues:
        """Return the same, as the service is asked for it."""
        size = self.batch_size or values.worker_batch_size
        continuous = values.batch_size == 1 < values.worker_batch_size
        return StageValues(
            worker_batch_size=size,
            timeout=self.timeout or values.timeout,
            batch_size=values.batch_size if continuous else size,
            concurrency=size if continuous else values.concurrency,
            max_wait=self.max_wait,
            adaptive=self.adaptive,
            latency_target=self.latency_target,
        )


def is_continuous(plan: StagePlan) -> bool:
    """Whether the workers of a stage form their batches themselves."""
    return plan.batch_size == 1 and plan.specs[0].max_batch_size > 1


def fit(plan: StagePlan, size: int) -> StagePlan:
    """Return a stage as it is beside workers that were made for `size` tasks at a time."""
    if plan.batch_size == 1:
        return replace(plan, concurrency=min(plan.concurrency, size))
    return replace(plan, batch_size=size)


@dataclass(frozen=True, slots=True)
class Scenario:
    """A history before it is run.

    Attributes:
        world: the service.
        paces: how quick each stage's workers are.
        arrivals: the clients, in order.
        faults: how often each kind of fault happens, from 0 to 1, where it can.
        latencies: seconds that a message may be on its way; one of them is drawn for each.
        ignores_stop: how often a worker that is asked to stop does not.
        dies_slowly: how often a killed worker takes a while to be gone.
        thaws: how often a frozen worker goes on after a while.
        clock_lag: the most seconds by which the clock differs from the loop's time.
        stop_at: when the service is stopped, in seconds from the start; None for when all clients have their answers.
        grace: seconds that it gets then.
        heals: no more faults once the clients have their answers: the service must come back to full health.
        holds: how often a result lies in memory that a link shares with its worker.
        pickled: all messages are pickled on their way; nothing may depend on it.
        changes: of the stages, while they serve.
    """

    world: World
    paces: Sequence[Pace]
    arrivals: Sequence[Arrival]
    faults: dict[str, float]
    latencies: Sequence[float]
    ignores_stop: float
    dies_slowly: float
    thaws: float
    clock_lag: float
    stop_at: float | None
    grace: float
    heals: bool
    holds: float
    pickled: bool
    changes: Sequence[Change] = ()


class Modelled(Worker):
    """Stands for the worker class of a simulated stage; nobody runs it."""

    def forward(self, data: object) -> object:
        """Return the data."""
        return data


def draw(random: Random, world: World | None = None) -> Scenario:
    """Draw a scenario, for a service of one's own or for any."""
    given = world is not None
    world = world or _draw_world(random)
    arrivals = _draw_arrivals(random, world)
    end = arrivals[-1].at
    scenario = Scenario(
        world=world,
        paces=[_draw_pace(random, stage) for stage in world.stages],
        arrivals=arrivals,
        faults=_draw_faults(random),
        latencies=random.choice(((0.0,), (0.0,), (0.0, 0.0, 0.001), (0.0, 0.0001, 0.003, 0.02))),
        ignores_stop=random.choice((0.0, 0.0, 0.3)),
        dies_slowly=random.choice((0.0, 0.2, 0.5)),
        thaws=random.choice((0.0, 0.3, 0.9)),
        clock_lag=random.choice((0.0, 0.0009)),
        stop_at=random.uniform(0.0, end + 0.5) if random.random() < 0.25 else None,
        grace=world.limits.timeout if given else random.choice((0.0, 0.05, 1.0, 20.0)),
        heals=random.random() < 0.15,
        holds=random.choice((0.0, 0.0, 0.5, 1.0)),
        pickled=random.random() < 0.2,
        changes=_draw_changes(random, world, end),
    )
    # Drawn last, so that the rest of a history is what it was before there were rules, and before work was shared.
    if random.random() >= 0.6:
        scenario = _in_order(random, scenario, given=given)
    return scenario if random.random() < 0.7 else _alike(random, scenario, given=given)


def _draw_changes(random: Random, world: World, end: float) -> list[Change]:
    """Draw changes of the stages, in some histories, often several of one stage at a time."""
    if random.random() < 0.5:
        return []
    at = sorted(random.uniform(0.0, end + 0.2) for _ in range(random.choice((1, 2, 4, 8))))
    return [_draw_change(random, world, when if random.random() < 0.7 else at[0]) for when in at]


def _draw_change(random: Random, world: World, at: float) -> Change:
    index = random.randrange(len(world.stages))
    plan = world.stages[index]
    size = plan.specs[0].max_batch_size
    return Change(
        at,
        index,
        random.choice(tuple(Kind)),
        num=random.choice((1, 1, 2, 3, 4)),
        batch_size=random.choice((0, 2, 3, 5, 8)) if size > 1 else 0,
        timeout=random.choice((0.0, 0.0, 0.1, 0.5, 2.0)),
        max_wait=random.choice((0.0, 0.002, 0.1)),
        adaptive=random.random() < 0.4,
        latency_target=random.choice((0.0, 0.0, 0.02)),
        gives_up_after=random.choice((0.0, 0.01, 1.0)) if random.random() < 0.1 else None,
    )


def _in_order(random: Random, scenario: Scenario, *, given: bool) -> Scenario:
    """Return the scenario with an order of its own: with costs, keys, priorities, tenants, or some of them."""
    stages = scenario.world.stages
    if not given:
        stages = [replace(stage, rules=_draw_rules(random)) for stage in stages]
    priorities = random.choice(((0,), (0,), (0, 0, 1), (-2, 0, 3, 10)))
    tenants = random.choice((("",), ("",), ("a", "b"), ("a", "a", "a", "b", "c")))
    keys = random.choice((("",), ("x", "y"), tuple("rstuvwxyz")))
    costs = random.choice(((1,), (1, 2, 3), (0, 1, 40)))
    arrivals = [
        replace(
            arrival,
            priority=random.choice(priorities),
            tenant=random.choice(tenants),
            key=random.choice(keys),
            cost=random.choice(costs),
        )
        for arrival in scenario.arrivals
    ]
    return replace(scenario, world=replace(scenario.world, stages=stages), arrivals=arrivals)


def _alike(random: Random, scenario: Scenario, *, given: bool) -> Scenario:
    """Return the scenario with clients that ask for the same, and stages that compute it once."""
    stages = scenario.world.stages
    if not given:
        stages = [replace(stage, coalesce=not stage.streams and random.random() < 0.7) for stage in stages]
    bodies = random.choice((1, 3, 8))
    first: dict[int, Arrival] = {}
    arrivals = []
    for arrival in scenario.arrivals:
        body = random.randint(1, bodies) if random.random() < 0.8 else 0
        if body:
            # What follows from the input is the same for all of them.
            same = first.setdefault(body, arrival)
            arrival = replace(
                arrival, body=body, poison=same.poison, fails_at=same.fails_at, key=same.key, cost=same.cost
            )
        arrivals.append(arrival)
    return replace(scenario, world=replace(scenario.world, stages=stages), arrivals=arrivals)


def _draw_rules(random: Random) -> Rules:
    return Rules(
        max_cost=random.choice((0, 0, 3, 10)),
        keyed=random.random() < 0.5,
        by_cost=random.random() < 0.2,
        ageing=random.choice((0.001, 0.1, 1.0)),
        weights=random.choice(({}, {"a": 3.0}, {"b": 0.5})),
    )


def _draw_faults(random: Random) -> dict[str, float]:
    """Let some kinds of fault happen, the fewer the more often, or once in a while none at all."""
    if random.random() < 0.1:
        return {}
    kinds = random.sample(FAULTS, random.choice((1, 2, 3, 5, 8, len(FAULTS))))
    often = random.choice((0.5, 1.0, 1.5)) / (len(kinds) + 1)
    return {kind: often * random.uniform(0.2, 1.0) for kind in kinds}


def _draw_world(random: Random) -> World:
    plain = [_draw_stage(random, f"Plain_{n}", streams=False) for n in range(random.randint(1, 3))]
    streams = [_draw_stage(random, f"Stream_{n}", streams=True) for n in range(random.choice((0, 0, 1, 1, 2)))]
    stages = [*plain, *streams]
    routes = []
    for number in range(random.randint(1, 3)):
        pipeline = sorted(random.sample(range(len(plain)), random.randint(1, len(plain))))
        if streams and random.random() < 0.7:
            last = random.randrange(len(plain), len(stages))
            pipeline = [last] if random.random() < 0.4 else [*pipeline, last]
        routes.append(RoutePlan(f"/{number}", tuple(pipeline)))
    return World(stages, routes, _draw_limits(random))


def _draw_limits(random: Random) -> Limits:
    return Limits(
        capacity=random.choice((1, 3, 6, 20, 1000)),
        timeout=random.choice((0.2, 1.0, 3.0, 12.0)),
        event_timeout=random.choice((0.1, 0.5, 2.0)),
        stall_timeout=random.choice((0.2, 1.0, 4.0)),
        stream_buffer=random.choice((16, 64, 256)),
        load_shedding=random.random() < 0.6,
        drain_timeout=random.choice((0.05, 1.0, 5.0)),
    )


def _draw_stage(random: Random, name: str, *, streams: bool) -> StagePlan:
    batch_size = random.choice((1, 1, 1, 2, 4, 7))
    concurrency = random.choice((1, 1, 1, 2, 5))
    timeout = random.choice((0.1, 0.5, 2.0))
    num = random.choice((1, 1, 2, 3))
    # Workers that run several tasks at a time take as many as they were told to, if they form their batches.
    size = random.choice((1, concurrency)) if batch_size == 1 else batch_size
    return StagePlan(
        specs=[WorkerSpec(Modelled, name, number, size, timeout) for number in range(1, num + 1)],
        variables=None,
        batch_size=batch_size,
        max_wait=random.choice((0.0, 0.002, 0.01, 0.1)),
        adaptive=random.random() < 0.4,
        max_attempts=random.choice((1, 2, 2, 2, 3)),
        start_timeout=random.choice((0.5, 5.0)),
        concurrency=concurrency,
        ordered=not streams and concurrency == 1 and random.random() < 0.8,
        streams=streams,
        latency_target=random.choice((0.0, 0.0, 0.0, 0.001, 0.02, 0.1)),
        recycling=random.choice((NEVER, NEVER, NEVER, Recycling(max_calls=random.choice((1, 3, 8))), LEAKING)),
    )


def _draw_pace(random: Random, stage: StagePlan) -> Pace:
    most = min(random.choice((0.0002, 0.003, 0.02, 0.08)), stage.timeout * 0.9)
    return Pace(most * random.choice((0.1, 0.5, 1.0)), most, random.choice((1, 4, 12)))


def _draw_arrivals(random: Random, world: World) -> list[Arrival]:
    """Draw clients that come singly and in bursts."""
    count = random.choice((2, 5, 10, 24)) if random.random() < 0.99 else 150
    gaps = random.choice(((0.0,), (0.0, 0.001), (0.0, 0.0, 0.02), (0.0, 0.01, 0.3), (0.0, 0.0, 0.0, 0.0, 3.0, 11.0)))
    leaving = random.choice((0.0, 0.1, 0.4))
    stalling = random.choice((0.0, 0.1, 0.5))
    wrong = random.choice((0.0, 0.1, 0.3))
    hurried = random.choice((0.0, 0.1, 0.5))
    reads = random.choice((0.0, 0.0, 0.005, 0.1))
    at = 0.0
    arrivals = []
    for _ in range(count):
        gap = random.choice(gaps)
        at += gap if random.random() < 0.5 else gap * random.expovariate(1.0)
        route = random.randrange(len(world.routes))
        stages = world.routes[route].stages
        timeout = world.limits.timeout
        arrivals.append(
            Arrival(
                at=at,
                route=route,
                timeout=random.choice((0.001, 0.01, 0.1, 0.9)) * timeout if random.random() < hurried else None,
                leaves_after=_early(random, timeout) if random.random() < leaving else None,
                raises=random.random() < 0.05,
                reads_after=reads * random.random(),
                stalls_at=random.randrange(4) if random.random() < stalling else None,
                stalls_for=random.choice((0.5, 3.0)) * world.limits.stall_timeout * random.random(),
                poison=random.choice(stages) if random.random() < wrong / 3 else None,
                fails_at=random.choice(stages) if random.random() < wrong else None,
            )
        )
    return arrivals


def _early(random: Random, timeout: float) -> float:
    """Return seconds, mostly few: at once, after some milliseconds, or anytime."""
    return random.choice((0.0, 0.001, 0.01, 0.1, 1.0)) * random.random() * min(timeout, 2.0)
