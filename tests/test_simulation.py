"""The simulation: its histories keep the contracts, and it would notice if they did not."""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import pytest
from fakes import Echo, Events, Steps

from mosec_asgi import Server
from mosec_asgi.batching import coordinator, stage
from mosec_asgi.batching.admission import Admission, Reason
from mosec_asgi.batching.changes import StageValues
from mosec_asgi.batching.coordinator import MOST_RETRY_SECONDS, Coordinator
from mosec_asgi.batching.engine import Caller
from mosec_asgi.batching.flow import Flow
from mosec_asgi.batching.loads import Loads
from mosec_asgi.batching.ordered_queue import Bands, OrderedQueue
from mosec_asgi.batching.policy import Pick, batch
from mosec_asgi.batching.policy.batch import BatchPolicy
from mosec_asgi.batching.policy.ordered import OrderedBatchPolicy
from mosec_asgi.batching.policy.steering import Fit, Steering
from mosec_asgi.batching.policy.window import WindowPolicy
from mosec_asgi.batching.queue import TaskQueue
from mosec_asgi.batching.scheduler import Scheduler
from mosec_asgi.batching.single_flight import Flight, SingleFlight
from mosec_asgi.batching.stage import Stage
from mosec_asgi.batching.stage_admission import StageAdmission
from mosec_asgi.batching.task import State, Task
from mosec_asgi.errors import CANCELLED, CLOSING, Failure, StartupError
from mosec_asgi.messages import OK, Call, Credit, Outcome, Payload, Results
from mosec_asgi.observing.metrics import StageMetrics
from mosec_asgi.pool import supervisor
from mosec_asgi.pool.lifecycle import Backoff
from mosec_asgi.pool.lifecycle import State as WorkerState
from mosec_asgi.pool.rolling import Recycler
from mosec_asgi.pool.supervisor import Place, PoolWorker, Supervisor
from mosec_asgi.pool.watchdog import Watchdog
from mosec_asgi.testing import Violation, simulate
from mosec_asgi.testing.simulation.history import History, silenced
from mosec_asgi.testing.simulation.messages import Held, over_a_socket
from mosec_asgi.testing.simulation.scenario import FAULTS, World, draw

HISTORIES = 1500
# Histories in which a fault of the service must show.
ENOUGH = 4000


def test_whatever_happens_the_contracts_hold() -> None:
    summary = simulate(histories=HISTORIES)
    assert summary.histories == HISTORIES
    happened = {what for what, number in summary.counts.items() if number >= 3}
    assert {f"fault: {fault}" for fault in FAULTS if fault != "launch is refused"} <= happened
    outcomes = {f"answered {code}" for code in (200, 408, 422, 499, 500, 503)} | {"refused 429", "refused 503"}
    ends = {"workers stuck", "workers too long in starting", "workers too long in stopping", "stages down"}
    reasons = {"refusals for its latency target", "refusals for its time"}
    ways = {"histories with pickled messages", "payloads in memory", "answers looked for"}
    ways |= {"batches of a key", "batches within a budget", "work for several", "work for one that others may share"}
    ways |= {"batches for a target"}
    changes = {"changes: scale", "changes: configure", "changes: restart", "changes failed", "changes given up"}
    changes |= {"successors launched", "workers recycled", "workers too long in draining"}
    assert outcomes | ends | reasons | ways | changes | {"services healed", "services that could not start"} <= happened


# Each is the seed of a fault that was found by it, of the service or of the checks.
BROKEN_ONCE = (
    7063,
    15574,
    40852,
    78642,
    87638,
    304389,
    312531,
    637122,
    707646,
    837437,
    844143,
    868471,
    881591,
    926572,
    1096755,
    1200705,
    1206323,
    1289157,
)


@pytest.mark.parametrize("seed", BROKEN_ONCE)
def test_a_history_that_broke_a_contract_once_keeps_all_of_them(seed: int) -> None:
    assert simulate(seed=seed).histories == 1


# -- a seed says all ---------------------------------------------------------------------------------------------------


def history_of(seed: int, world: World | None = None, **changes: Any) -> list[str]:
    history = History(seed, world, verbose=False)
    scenario = replace(history.scenario, **changes)
    history.scenario = history._around.scenario = scenario
    with silenced(True):
        history.run()
    return history.oracle.journal.history


@pytest.mark.parametrize("seed", [3, 17, 99])
def test_a_seed_is_a_history(seed: int) -> None:
    assert history_of(seed) == history_of(seed)
    assert history_of(seed) != history_of(seed + 1)


def test_a_history_does_not_depend_on_the_process() -> None:
    program = "import sys; sys.path.insert(0, 'tests'); from test_simulation import history_of; print(history_of(17))"
    told = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(told) == 1


@pytest.mark.parametrize("seed", range(40))
def test_messages_may_cross_sockets_and_nothing_depends_on_it(seed: int) -> None:
    world = draw(Random(seed)).world
    # An input that lies in memory is not compared with others, and behind a socket it is plain bytes.
    world = replace(world, stages=[replace(stage, coalesce=False) for stage in world.stages])
    assert history_of(seed, world, pickled=True) == history_of(seed, world, pickled=False)


def test_a_message_that_changes_on_its_way_is_noticed() -> None:
    class Kept(tuple[int, ...]):
        def __reduce__(self) -> Any:
            return tuple, ((1, 2),)

    assert over_a_socket(Credit(1, 2)) == Credit(1, 2)
    with pytest.raises(ValueError, match="after its way"):
        over_a_socket(Kept((1, 2)))


def test_a_payload_in_memory_is_not_to_be_used_once_it_is_dropped() -> None:
    drops: list[None] = []
    held = Held(b"abc", lambda: drops.append(None), ValueError)
    assert (len(held), held.read()) == (3, b"abc")
    held.drop()
    assert len(drops) == 1
    with pytest.raises(ValueError, match="read after"):
        held.read()
    with pytest.raises(ValueError, match="dropped after"):
        held.drop()
    assert len(drops) == 1


def test_a_scenario_has_its_clients_in_order() -> None:
    for seed in range(50):
        times = [arrival.at for arrival in draw(Random(seed)).arrivals]
        assert times == sorted(times)


# -- a server of one's own ---------------------------------------------------------------------------------------------


def test_a_server_of_ones_own_can_be_simulated() -> None:
    server = Server(capacity=7, timeout=500, load_shedding=True)
    server.append_worker(Echo, num=2, max_batch_size=4, route=["/one", "/two"])
    server.append_worker(Events, route="/two")
    server.append_worker(Steps, max_batch_size=3, route="/three")
    summary = simulate(server, histories=60)
    assert summary.histories == 60
    assert summary.counts["answered 200"] > 50
    assert summary.counts["refused 429"] > 0


def test_the_routes_and_limits_are_those_of_the_server() -> None:
    server = Server(capacity=2, timeout=100)
    server.append_worker(Echo, route="/one", timeout=7)
    history = History(5, worlds_of(server), verbose=False)
    world = history.scenario.world
    assert (world.limits.capacity, world.limits.timeout) == (2, 0.1)
    assert [(route.path, route.stages) for route in world.routes] == [("/one", (0,))]
    assert [stage.timeout for stage in world.stages] == [7]
    history.loop.close()


def worlds_of(server: Server) -> Any:
    from mosec_asgi.testing.simulation import _world_of

    return _world_of(server)


# -- what it would notice ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mutation:
    """A fault that a programmer could have made, in one function.

    Attributes:
        name: what goes wrong.
        owner: the class, or the module, that the function belongs to.
        original: the function as it is.
        break_: returns the function with the fault, given the one without.
    """

    name: str
    owner: Any
    original: Any
    break_: Callable[[Any], Any]

    def make(self, monkeypatch: pytest.MonkeyPatch) -> None:
        function = self.original.fget if isinstance(self.original, property) else self.original
        monkeypatch.setattr(self.owner, function.__name__, self.break_(self.original))


def left_out(original: Any) -> Any:
    """Do nothing."""
    return lambda *arguments, **keywords: None


def unless(condition: Callable[..., bool]) -> Callable[[Any], Any]:
    """Do nothing where a condition of the arguments holds."""

    def break_(original: Any) -> Any:
        return lambda *arguments: None if condition(*arguments) else original(*arguments)

    return break_


def afterwards(change: Callable[..., object]) -> Callable[[Any], Any]:
    """Do something after the function, with its arguments."""

    def break_(original: Any) -> Any:
        def changed(*arguments: Any, **keywords: Any) -> Any:
            result = original(*arguments, **keywords)
            change(*arguments)
            return result

        return changed

    return break_


def returning(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return something else."""

    def break_(original: Any) -> Any:
        return lambda *arguments, **keywords: change(original(*arguments, **keywords))

    return break_


def returning_property(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return something else of a property."""
    return lambda original: property(lambda self: change(original.fget(self)))


def stops_nothing(original: Any) -> Any:
    """Return at once, as a coroutine."""

    async def stop(self: Any) -> None: ...

    return stop


@contextmanager
def having(owner: Any, **values: Any) -> Iterator[None]:
    """Give attributes of an object other values for a while; all of them must be there."""
    before = {name: getattr(owner, name) for name in values}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


def with_values(**changes: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Run the function with other values in attributes of its object, each made of what is there."""

    def break_(original: Any) -> Any:
        def changed(self: Any, *arguments: Any, **keywords: Any) -> Any:
            with having(self, **{name: change(getattr(self, name)) for name, change in changes.items()}):
                return original(self, *arguments, **keywords)

        return changed

    return break_


def deaf(_: Any) -> Any:
    """Return a function that does nothing, in place of a method."""
    return lambda *arguments: None


# -- the coordinator


def told_twice(self: Coordinator, task: Task, failure: Failure) -> None:
    task.caller.settled(Outcome.of_failure(task.id, failure))


def told_at_once(original: Any) -> Any:
    def submit(self: Coordinator, call: Call, caller: Caller) -> None:
        stages, now = self._routes[call.route].stages, self._clock()
        refusal = self._refusal(stages, call.timeout or self._limits.timeout, now)
        if refusal is None:
            original(self, call, caller)
        else:
            caller.settled(Outcome.of_failure(call.id, self._answer_to(refusal.reason, stages, now)))

    return submit


def numbers_are_not_compared(original: Any) -> Any:
    def submit(self: Coordinator, call: Call, caller: Caller) -> None:
        self._admitted.pop(call.id, None)
        original(self, call, caller)

    return submit


def may_be_zero(original: Any) -> Any:
    return lambda self, stages, now: min(MOST_RETRY_SECONDS, math.ceil(self._admission.retry_after(stages, now)))


def earlier_is_overlooked(original: Any) -> Any:
    def submit(self: Coordinator, call: Call, caller: Caller) -> None:
        before = self._sweep_timer.when
        original(self, call, caller)
        if before < math.inf:
            self._sweep_timer.set(before)

    return submit


def event_gives_no_time(original: Any) -> Any:
    def streamed(self: Coordinator, task: Task, chunk: bytes, now: float) -> None:
        before = task.deadline
        original(self, task, chunk, now)
        task.deadline = before

    return streamed


def reading_gives_no_time(original: Any) -> Any:
    def credit(self: Coordinator, credit: Credit) -> None:
        task = self._admitted.get(credit.call_id)
        before = task.deadline if task is not None else 0.0
        original(self, credit)
        if task is not None:
            task.deadline = before

    return credit


def grace_is_forgotten(original: Any) -> Any:
    async def stop(self: Coordinator, grace: float) -> None:
        self.close()
        for task in list(self._admitted.values()):
            self.failed(task, CLOSING)
        await original(self, grace)

    return stop


def told_without_care(caller: Caller, outcome: Outcome, request_id: str, ration: object) -> None:
    caller.settled(outcome)


# -- the stage


def swapped(original: Any) -> Any:
    def worker_results(self: Stage, worker: PoolWorker, results: Results) -> None:
        codes, payloads = results.codes[::-1], results.payloads[::-1]
        original(self, worker, results._replace(codes=codes, payloads=payloads))

    return worker_results


def with_attempts(change: int) -> Callable[[Any], Any]:
    return with_values(plan=lambda plan: replace(plan, max_attempts=plan.max_attempts + change))


def with_places(place: int) -> Callable[[Any], Any]:
    """Take all that a worker had for begun, or for not begun."""

    def break_(original: Any) -> Any:
        def worker_gone(self: Stage, worker: PoolWorker) -> None:
            for task in self.scheduler.loads[worker].sent.values():
                task.place = place
            original(self, worker)

        return worker_gone

    return break_


def streams_run_again(original: Any) -> Any:
    def worker_gone(self: Stage, worker: PoolWorker) -> None:
        flows = [task.flow for task in self.scheduler.loads[worker].sent.values() if task.flow is not None]
        with contextlib.ExitStack() as stack:
            for flow in flows:
                stack.enter_context(having(flow, events=0))
            original(self, worker)

    return worker_gone


def settled_come_back(original: Any) -> Any:
    def worker_gone(self: Stage, worker: PoolWorker) -> None:
        settled = [task for task in self.scheduler.loads[worker].sent.values() if task.state is State.SETTLED]
        original(self, worker)
        for task in settled:
            task.state = State.QUEUED
            self.scheduler.queue.append(task)

    return worker_gone


def looks_once(self: Stage) -> None:
    if self._look_timer is not None:
        self._look_timer.cancel()
        self._look_timer = None


# -- the queue, the loads, the policies


def not_alone(original: Any) -> Any:
    def requeue(self: TaskQueue, tasks: list[Task]) -> None:
        with contextlib.ExitStack() as stack:
            for task in tasks:
                stack.enter_context(having(task, attempts=0))
            original(self, tasks)

    return requeue


def queue_up_behind(original: Any) -> Any:
    def requeue(self: TaskQueue, tasks: list[Task]) -> None:
        before = list(self._tasks)
        original(self, tasks)
        self._tasks = deque([*before, *(task for task in self._tasks if task not in before)])

    return requeue


def with_windows(change: int) -> Callable[[Any], Any]:
    def break_(original: Any) -> Any:
        def pick(self: WindowPolicy[Any], queue: TaskQueue, loads: Loads[Any], now: float) -> Any:
            with contextlib.ExitStack() as stack:
                for _, load in loads:
                    stack.enter_context(having(load, window=load.window + change))
                return original(self, queue, loads, now)

        return pick

    return break_


def batch_of_one_more(original: Any) -> Any:
    def pick(self: BatchPolicy[Any], queue: TaskQueue, loads: Loads[Any], now: float) -> Any:
        picked = original(self, queue, loads, now)
        return Pick(picked.worker, queue.first(self._size + 1)) if isinstance(picked, Pick) else picked

    return pick


def part_goes_ahead(original: Any) -> Any:
    def pick(self: BatchPolicy[Any], queue: TaskQueue, loads: Loads[Any], now: float) -> Any:
        picked = original(self, queue, loads, now)
        if picked is None and queue.head() is not None:
            worker = batch.first_to_be_free(loads)
            return None if worker is None else Pick(worker, queue.first(self._size))
        return picked

    return pick


def stay_in_flight(original: Any) -> Any:
    def remove(self: Loads[Any], worker: Any) -> list[Task]:
        tasks = original(self, worker)
        self.in_flight += len(tasks)
        return tasks

    return remove


def attempts_are_kept(original: Any) -> Any:
    def advance(self: Task, payload: Payload, now: float) -> None:
        attempts = self.attempts
        original(self, payload, now)
        self.attempts = attempts

    return advance


def dropped_twice(self: Task) -> None:
    if not isinstance(self.payload, bytes):
        self.payload.drop()


def makes_no_room(original: Any) -> Any:
    def taken(self: Flow, size: int) -> int:
        report = original(self, size)
        self._outstanding += report
        return report

    return taken


# -- the pool


def without_end(original: Any) -> Any:
    def delay(self: Backoff, ready_at: float | None, now: float, *, answered: bool = False) -> float:
        right = original(self, ready_at, now, answered=answered)
        return self._first * 4.0 ** (self._early_deaths - 1) if right else 0.0

    return delay


def last_words_are_lost(original: Any) -> Any:
    def worker_exited(self: Supervisor, worker: PoolWorker, place: Place) -> None:
        with having(worker.link, drain=deaf(worker)):
            original(self, worker, place)

    return worker_exited


def given_up_and_lives(original: Any) -> Any:
    def worker_closed(self: Supervisor, worker: PoolWorker, reason: str) -> None:
        with having(worker.link, kill=deaf(worker)) if reason else contextlib.nullcontext():
            original(self, worker, reason)

    return worker_closed


def keeps_its_tasks(original: Any) -> Any:
    def lose(self: Supervisor, worker: PoolWorker) -> None:
        with having(self.listener, worker_gone=deaf(worker)):
            original(self, worker)

    return lose


def does_not_recover(original: Any) -> Any:
    def worker_ready(self: Supervisor, worker: PoolWorker, place: Place) -> None:
        down = self.down
        original(self, worker, place)
        self.down = down

    return worker_ready


def never_down(self: Supervisor, place: Place, error: str) -> None:
    self.down = False


def restarts_are_not_counted(self: Supervisor, place: Place, delay: float) -> None:
    self.restarts -= 1


def drains_at_once(original: Any) -> Any:
    def begin(self: Supervisor, place: Place, spec: Any) -> PoolWorker:
        if place.worker is not None and place.worker.state is WorkerState.READY:
            worker, place.worker = place.worker, None
            self.retire(worker)
        begun: PoolWorker = original(self, place, spec)
        return begun

    return begin


def fails_in_silence(original: Any) -> Any:
    async def wait_ready(self: Supervisor, worker: PoolWorker) -> None:
        with contextlib.suppress(StartupError):
            await original(self, worker)

    return wait_ready


class NoLock:
    """Lets everybody in."""

    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *error: Any) -> None: ...


# -- the order


def target_is_forgotten(original: Any) -> Any:
    return lambda self, tasks, start, slots: Fit(len(tasks), full=len(tasks) == self._size)


def keys_are_mixed(original: Any) -> Any:
    def add(self: OrderedQueue, task: Task, turn: Any) -> None:
        key, task.key = task.key, "one"
        original(self, task, turn)
        task.key = key

    return add


def taken_with_their_lane(original: Any) -> Any:
    """Drop a task that lives: whatever stands before what is taken."""

    def take(self: OrderedQueue, tasks: list[Task]) -> None:
        leader = self.leader()
        original(self, tasks)
        if leader is not None and leader.id in self._entries and self.live > 3:
            original(self, [leader])

    return take


def last_comes_first(original: Any) -> Any:
    return lambda self: reversed(list(original(self)))


def priorities_do_not_count(original: Any) -> Any:
    return lambda self, priority, oldest: (oldest[0], 0, oldest[1])


# -- single flight


def all_leave(original: Any) -> Any:
    def leave(self: SingleFlight, task: Task) -> Task | None:
        flight = self._of.get(task.id)
        if isinstance(flight, Flight):
            for other in self.callers(flight):
                original(self, other)
            return flight
        left: Task | None = original(self, task)
        return left

    return leave


def tenants_share(original: Any) -> Any:
    def join(self: SingleFlight, task: Task, flags: int, now: float) -> Task | None:
        with having(task, tenant=""):
            unit: Task | None = original(self, task, flags, now)
        return unit

    return join


def refused_without_a_queue(original: Any) -> Any:
    """Refuse by the latency target what would not wait."""

    def broken(self: Admission, stage: StageAdmission, timeout: float, now: float) -> Reason | None:
        if stage.target and stage.leaves(0.0, 0, timeout, timeout, now) > stage.target:
            return Reason.LATENCY_TARGET
        reason: Reason | None = original(self, stage, timeout, now)
        return reason

    return broken


def refused_without_a_target(original: Any) -> Any:
    """Refuse by a target that nobody has set."""

    def broken(self: Admission, stage: StageAdmission, timeout: float, now: float) -> Reason | None:
        if stage.wait(stage.load.queued_work, now):
            return Reason.LATENCY_TARGET
        reason: Reason | None = original(self, stage, timeout, now)
        return reason

    return broken


MUTATIONS = [
    Mutation(
        "a result is not passed on",
        Coordinator,
        Coordinator.answered,
        unless(lambda self, task, code, *rest: code == OK and task.at_last_stage),
    ),
    Mutation(
        "an error is not passed on",
        Coordinator,
        Coordinator.answered,
        unless(lambda self, task, code, *rest: code != OK),
    ),
    Mutation(
        "a worker is believed that its client left",
        Coordinator,
        Coordinator._not_left,
        lambda original: lambda self, task, payload: (CANCELLED, b""),
    ),
    Mutation("a failure is told twice", Coordinator, Coordinator.failed, afterwards(told_twice)),
    Mutation("a refusal comes before its call is submitted", Coordinator, Coordinator.submit, told_at_once),
    Mutation("a number is used twice", Coordinator, Coordinator.submit, numbers_are_not_compared),
    Mutation("a caller's fault escapes", coordinator, coordinator._tell, lambda original: told_without_care),
    Mutation("a client that leaves is not heard", Coordinator, Coordinator.cancel, left_out),
    Mutation(
        "one more than the capacity",
        Coordinator,
        Coordinator._refusal,
        with_values(_limits=lambda limits: replace(limits, capacity=limits.capacity + 1)),
    ),
    Mutation(
        "one less than the capacity",
        Coordinator,
        Coordinator._refusal,
        with_values(_limits=lambda limits: replace(limits, capacity=max(1, limits.capacity - 1))),
    ),
    Mutation(
        "a stage that is down is asked",
        Coordinator,
        Coordinator._refusal,
        returning(lambda refusal: None if refusal is not None and refusal.reason is Reason.STAGE_DOWN else refusal),
    ),
    Mutation(
        "a service that closes admits",
        Coordinator,
        Coordinator._refusal,
        with_values(_closing=lambda closing: False),
    ),
    Mutation("a target refuses what need not wait", Admission, Admission._too_long_a_queue, refused_without_a_queue),
    Mutation("a target that nobody has set", Admission, Admission._too_long_a_queue, refused_without_a_target),
    Mutation("no Retry-After", Coordinator, Coordinator._retry_after, may_be_zero),
    Mutation("no second sweep", Coordinator, Coordinator._sweep, afterwards(lambda self: self._sweep_timer.clear())),
    Mutation("an earlier deadline is overlooked", Coordinator, Coordinator.submit, earlier_is_overlooked),
    Mutation("an event gives a stream no time", Coordinator, Coordinator.streamed, event_gives_no_time),
    Mutation("reading gives a stream no time", Coordinator, Coordinator.credit, reading_gives_no_time),
    Mutation("a stream leaks in the metrics", StageMetrics, StageMetrics.stream_ended, left_out),
    Mutation("a refusal is not counted", StageMetrics, StageMetrics.refused, left_out),
    Mutation("a 408 is not counted", StageMetrics, StageMetrics.timed_out, left_out),
    Mutation("a cancelled call is not counted", StageMetrics, StageMetrics.cancelled, left_out),
    Mutation("the workers are not stopped", Supervisor, Supervisor.ask_to_stop, left_out),
    Mutation("timers outlive the service", Stage, Stage.stop_timers, left_out),
    Mutation("the launchers are not closed", Coordinator, Coordinator._close_launchers, left_out),
    Mutation(
        "the rest is not answered at the end",
        Coordinator,
        Coordinator.failed,
        unless(lambda self, task, failure: failure == CLOSING),
    ),
    Mutation("the grace is forgotten", Coordinator, Coordinator.stop, grace_is_forgotten),
    Mutation("answers are swapped", Stage, Stage.worker_results, swapped),
    Mutation("a dead worker's tasks are lost", Scheduler, Scheduler.requeue, left_out),
    Mutation("one attempt too many", Stage, Stage.worker_gone, with_attempts(1)),
    Mutation("one attempt too few", Stage, Stage.worker_gone, with_attempts(-1)),
    Mutation("what was sent ahead counts as begun", Stage, Stage.worker_gone, with_places(0)),
    Mutation("what was begun does not count", Stage, Stage.worker_gone, with_places(1_000_000)),
    Mutation("a stream is run again after an event", Stage, Stage.worker_gone, streams_run_again),
    Mutation("a settled task comes back", Stage, Stage.worker_gone, settled_come_back),
    Mutation("a dropped task still counts as waiting", Scheduler, Scheduler.discard, left_out),
    Mutation(
        "a worker is not told who has left", Stage, Stage.drop, unless(lambda self, task: task.state is State.SENT)
    ),
    Mutation("a worker is not told what was read", Stage, Stage.credit, left_out),
    Mutation("a stage that went down lets its tasks wait", Stage, Stage.stage_down, left_out),
    Mutation("a stage is not looked at after results", Stage, Stage.worker_results, with_values(_mark=deaf)),
    Mutation("a stage is not looked at when a worker is ready", Stage, Stage.worker_ready, with_values(_mark=deaf)),
    Mutation(
        "nobody wakes for a batch that waits",
        Stage,
        Stage._dispatch,
        afterwards(lambda self, now: self._wake_timer.clear()),
    ),
    Mutation("the watchdog sleeps", Watchdog, Watchdog.stuck, returning(lambda stuck: [])),
    Mutation("the watchdog looks once", Stage, Stage._look, afterwards(looks_once)),
    Mutation("what was stuck is tried again", Loads, Loads.begun, returning(lambda tasks: [])),
    Mutation(
        "the watchdog sees no progress",
        Watchdog,
        Watchdog.stuck,
        lambda original: lambda self, beats, now: original(self, dict.fromkeys(beats, 0), now),
    ),
    Mutation("a proven stream keeps its worker for itself", Scheduler, Scheduler.proven, left_out),
    Mutation("not alone after a crash", TaskQueue, TaskQueue.requeue, not_alone),
    Mutation(
        "order is lost after a crash",
        TaskQueue,
        TaskQueue.requeue,
        afterwards(lambda self, tasks: self._tasks.reverse()),
    ),
    Mutation("those that come back queue up behind", TaskQueue, TaskQueue.requeue, queue_up_behind),
    Mutation("a window of one more", WindowPolicy, WindowPolicy.pick, with_windows(1)),
    Mutation("no window at all", WindowPolicy, WindowPolicy.pick, with_windows(1_000_000)),
    Mutation("a batch of one more", BatchPolicy, BatchPolicy.pick, batch_of_one_more),
    Mutation("a part of a batch is sent ahead", BatchPolicy, BatchPolicy.pick, part_goes_ahead),
    Mutation("answers in any order are believed", Loads, Loads.answered, with_values(_ordered=lambda ordered: False)),
    Mutation(
        "a task waits too long for a batch",
        BatchPolicy,
        BatchPolicy._wait_until,
        returning(lambda until: until + 0.05),
    ),
    Mutation("a dead worker's tasks stay in flight", Loads, Loads.remove, stay_in_flight),
    Mutation(
        "slots are counted twice",
        Loads,
        Loads.slots_in_use,
        lambda original: property(lambda self: 2 * original.fget(self)),
    ),
    Mutation("attempts are carried to the next stage", Task, Task.advance, attempts_are_kept),
    Mutation("a payload stays in memory", Task, Task._drop_payload, left_out),
    Mutation("a payload is dropped twice", Task, Task._drop_payload, afterwards(dropped_twice)),
    Mutation("payloads of wrong answers stay in memory", stage, stage.drop_all, left_out),
    Mutation("payloads of a worker that stops stay in memory", supervisor, supervisor.drop_all, left_out),
    Mutation("a full stream may send", Flow, Flow.came, with_values(_limit=lambda limit: math.inf)),
    Mutation(
        "a worker is told of more than was read", Flow, Flow.taken, returning(lambda report: report + bool(report))
    ),
    Mutation("what was read makes no room", Flow, Flow.taken, makes_no_room),
    Mutation(
        "a dead worker is not replaced",
        Supervisor,
        Supervisor._relaunch,
        afterwards(lambda self, place, delay: place.failing or place.relaunch.cancel()),
    ),
    Mutation(
        "a failed start is not tried again",
        Supervisor,
        Supervisor._relaunch,
        afterwards(lambda self, place, delay: place.failing and place.relaunch.cancel()),
    ),
    Mutation("restarts are not counted", Supervisor, Supervisor._relaunch, afterwards(restarts_are_not_counted)),
    Mutation("no back-off", Backoff, Backoff.delay, returning(lambda delay: 0.0)),
    Mutation(
        "a back-off for workers that answer",
        Backoff,
        Backoff.delay,
        lambda original: lambda self, ready_at, now, answered=False: original(self, ready_at, now),
    ),
    Mutation("a back-off without an end", Backoff, Backoff.delay, without_end),
    Mutation("last words are not read", Supervisor, Supervisor.worker_exited, last_words_are_lost),
    Mutation(
        "a worker may take for ever to start",
        Supervisor,
        Supervisor._launch,
        with_values(_start_timeout=lambda seconds: 1e6),
    ),
    Mutation("a stage does not recover", Supervisor, Supervisor.worker_ready, does_not_recover),
    Mutation("a stage is never down", Supervisor, Supervisor._start_failed, afterwards(never_down)),
    Mutation("a broken link is overlooked", Supervisor, Supervisor.worker_closed, left_out),
    Mutation("a given up worker lives on", Supervisor, Supervisor.worker_closed, given_up_and_lives),
    Mutation("a worker that was killed keeps its tasks", Supervisor, Supervisor._lose, keeps_its_tasks),
    Mutation("a worker that leaves is given more tasks", Loads, Loads.drain, left_out),
    Mutation("a worker that leaves is stopped with its tasks", Stage, Stage.has_tasks, returning(lambda has: False)),
    Mutation("a worker that has drained is kept", Supervisor, Supervisor.look_at_draining, left_out),
    Mutation("a worker may drain for ever", Supervisor, Supervisor._drain_timed_out, left_out),
    Mutation(
        "a worker that was replaced need not stop",
        Supervisor,
        Supervisor._finish,
        afterwards(lambda self, worker: worker.cancel_timer()),
    ),
    Mutation("a worker leaves before another is there", Supervisor, Supervisor.begin, drains_at_once),
    Mutation("a change forgets a worker", Supervisor, Supervisor.places, returning_property(lambda places: places[:1])),
    Mutation("a change that failed is said to be made", Supervisor, Supervisor.wait_ready, fails_in_silence),
    Mutation(
        "one worker too many is taken away",
        Supervisor,
        Supervisor.remove_places,
        lambda original: lambda self, count: original(self, min(count + 1, self.size - 1) if count else 0),
    ),
    Mutation(
        "the best workers are taken away",
        supervisor,
        supervisor._usefulness,
        returning(lambda order: tuple(-each for each in order)),
    ),
    Mutation(
        "batches grow before the workers",
        StageValues,
        StageValues.for_workers_of,
        lambda original: lambda self, size: self,
    ),
    Mutation("batches do not grow with the workers", Stage, Stage._fit, left_out),
    Mutation("a successor that nobody wants comes all the same", Supervisor, Supervisor.drop, left_out),
    Mutation("a full life has no end", Supervisor, Supervisor.recycle, left_out),
    Mutation("workers are recycled after the stop", Recycler, Recycler.stop, stops_nothing),
    Mutation(
        "changes of one stage do not wait for each other",
        Supervisor,
        Supervisor.__init__,
        afterwards(lambda self, *arguments: setattr(self, "changing", NoLock())),
    ),
    Mutation(
        "workers are launched after the stop",
        Supervisor,
        Supervisor.worker_exited,
        with_values(_stopping=lambda stopping: False),
    ),
    Mutation("keys share a batch", OrderedQueue, OrderedQueue._add, keys_are_mixed),
    Mutation(
        "a budget is exceeded",
        OrderedBatchPolicy,
        OrderedBatchPolicy._batch,
        with_values(_budget=lambda most: 2 * most),
    ),
    Mutation("a lane is run from its end", Bands, Bands.__iter__, last_comes_first),
    Mutation("priorities do not count", Bands, Bands._rank, priorities_do_not_count),
    Mutation("a full key waits", OrderedQueue, OrderedQueue.full, left_out),
    Mutation(
        "a rare key waits for others",
        OrderedBatchPolicy,
        OrderedBatchPolicy._wait_until,
        lambda original: lambda self, size, oldest, queue, loads, now: now + 1.0 if queue.keys > 1 else oldest.queued,
    ),
    Mutation("a target does not count", Steering, Steering.fit, target_is_forgotten),
    Mutation("what is taken is lost beside what waits", OrderedQueue, OrderedQueue.take, taken_with_their_lane),
    Mutation(
        "equal inputs are computed one by one",
        SingleFlight,
        SingleFlight.join,
        lambda original: lambda self, task, flags, now: task,
    ),
    Mutation("who leaves takes the others with it", SingleFlight, SingleFlight.leave, all_leave),
    Mutation("tenants share work", SingleFlight, SingleFlight.join, tenants_share),
    Mutation("work is shared that is done", SingleFlight, SingleFlight._end, left_out),
    Mutation("one of several is answered", SingleFlight, SingleFlight.callers, returning(lambda callers: callers[:1])),
    Mutation(
        "several have one payload in memory",
        Stage,
        Stage._copied,
        lambda original: lambda self, payload, tasks: (OK, payload),
    ),
]

# What a mutation raises that names what is not there any more: it shows nothing.
OUT_OF_DATE = (AttributeError, NameError, TypeError)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_it_notices_when(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    mutation.make(monkeypatch)
    with pytest.raises(Violation) as raised:
        simulate(histories=ENOUGH)
    assert not isinstance(raised.value.__cause__, OUT_OF_DATE), (
        f"the mutation is out of date: {raised.value.__cause__!r}"
    )


def test_a_mutation_that_names_what_is_not_there_is_an_error() -> None:
    class Thing:
        here = 1

    with pytest.raises(AttributeError), having(Thing(), there=2):
        pass


# -- what it says then -------------------------------------------------------------------------------------------------


def test_a_violation_says_what_happened_and_how_to_see_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    next(mutation for mutation in MUTATIONS if mutation.name == "answers are swapped").make(monkeypatch)
    with pytest.raises(Violation) as raised:
        simulate(histories=ENOUGH)
    violation = raised.value
    assert violation.replay == f"python -m mosec_asgi.testing simulate --seed {violation.seed} --verbose"
    assert f"seed {violation.seed} breaks a contract: 2 right answer" in str(violation)
    assert ": arrives for stages" in str(violation)
    assert violation.seed is not None
    with pytest.raises(Violation) as again:
        simulate(seed=violation.seed)
    assert str(again.value) == str(violation)
