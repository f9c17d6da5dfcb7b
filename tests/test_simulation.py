"""The simulation: its histories keep the contracts, and it would notice if they did not."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import pytest

from mosec_asgi import ContinuousWorker, Server, SSEWorker, Worker
from mosec_asgi.batching.coordinator import Coordinator
from mosec_asgi.batching.flow import Flow
from mosec_asgi.batching.rate import Rate
from mosec_asgi.batching.scheduler import Scheduler
from mosec_asgi.batching.stage import Stage
from mosec_asgi.batching.task import Task
from mosec_asgi.pool.lifecycle import Backoff
from mosec_asgi.pool.supervisor import Supervisor
from mosec_asgi.pool.watchdog import Watchdog
from mosec_asgi.testing import Violation, simulate
from mosec_asgi.testing.simulation.history import History, silenced
from mosec_asgi.testing.simulation.scenario import FAULTS, draw

HISTORIES = 1000
# Histories in which a fault of the service must show.
ENOUGH = 2000


def test_whatever_happens_the_contracts_hold() -> None:
    summary = simulate(histories=HISTORIES)
    assert summary.histories == HISTORIES
    happened = {what for what, number in summary.counts.items() if number >= 3}
    assert {f"fault: {fault}" for fault in FAULTS if fault != "launch is refused"} <= happened
    outcomes = {f"answered {code}" for code in (200, 408, 422, 499, 500, 503)} | {"refused 429", "refused 503"}
    ends = {"workers stuck", "workers too long in starting", "workers too long in stopping", "stages down"}
    assert outcomes | ends | {"services healed", "services that could not start"} <= happened


# -- a seed says all ---------------------------------------------------------------------------------------------------


def history_of(seed: int) -> list[str]:
    history = History(seed, None, verbose=False)
    with silenced(True):
        history.run()
    return history.oracle.history


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


def test_a_scenario_has_its_clients_in_order() -> None:
    for seed in range(50):
        times = [arrival.at for arrival in draw(Random(seed)).arrivals]
        assert times == sorted(times)


# -- a server of one's own ---------------------------------------------------------------------------------------------


class Echo(Worker):
    def forward(self, data: Any) -> Any:
        return data


class Chat(SSEWorker):
    def forward(self, data: Any) -> Any:
        yield data


class Steps(ContinuousWorker):
    def admit(self, item: Any) -> int:
        return 0

    def step(self) -> Any:
        return []

    def evict(self, slot: Any) -> None: ...


def test_a_server_of_ones_own_can_be_simulated() -> None:
    server = Server(capacity=7, timeout=500, load_shedding=True)
    server.append_worker(Echo, num=2, max_batch_size=4, route=["/one", "/two"])
    server.append_worker(Chat, route="/two")
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
    """A fault that a programmer could have made: in one method, other words in the place of some."""

    name: str
    owner: type
    method: str
    before: str
    after: str


MUTATIONS = [
    Mutation("a result is not passed on", Coordinator, "answered", "self._settle(task, payload)", "pass"),
    Mutation("an error is not passed on", Coordinator, "answered", "self._settle(task, Failure(", "(task, Failure("),
    Mutation(
        "a failure is told twice",
        Coordinator,
        "failed",
        "self._settle(task, failure)",
        "self._settle(task, failure); self._settle(task, failure)",
    ),
    Mutation(
        "a client that leaves is not heard", Coordinator, "cancel", "self.failed(entry.task, CLIENT_LEFT)", "pass"
    ),
    Mutation(
        "one more than the capacity", Coordinator, "_refusal", ">= self._limits.capacity", "> self._limits.capacity"
    ),
    Mutation(
        "one less than the capacity",
        Coordinator,
        "_refusal",
        ">= self._limits.capacity",
        ">= max(1, self._limits.capacity - 1)",
    ),
    Mutation("a stage that is down is asked", Coordinator, "_refusal", ".pool.down", ".pool._stopping"),
    Mutation("a service that closes admits", Coordinator, "_refusal", "if self._closing:", "if False:"),
    Mutation("no Retry-After", Coordinator, "_retry_after", "max(1, ", "max(0, "),
    Mutation("no second sweep", Coordinator, "_sweep", "if self._admitted:", "if False:"),
    Mutation(
        "an earlier deadline is overlooked",
        Coordinator,
        "submit",
        "if deadline < self._sweep_at:",
        "if self._sweep_timer is None:",
    ),
    Mutation("an event gives a stream no time", Coordinator, "streamed", "self._allow(task, now)", "pass"),
    Mutation("reading gives a stream no time", Coordinator, "taken", "if was_full:", "if False:"),
    Mutation("a stream leaks in the metrics", Coordinator, "_settle", "streams_open -= 1", "streams_open -= 0"),
    Mutation("the workers are not stopped", Coordinator, "stop", "pool.ask_to_stop()", "pass"),
    Mutation("timers outlive the service", Coordinator, "stop", "stage.stop_timers()", "pass"),
    Mutation("the rest is not answered at the end", Coordinator, "stop", "self.failed(entry.task, CLOSING)", "pass"),
    Mutation("the grace is forgotten", Coordinator, "stop", "if self._admitted and grace > 0:", "if False:"),
    Mutation("answers are swapped", Stage, "worker_results", "zip(tasks, codes", "zip(tasks[::-1], codes"),
    Mutation("a dead worker's tasks are lost", Stage, "worker_gone", "self.scheduler.requeue(again)", "pass"),
    Mutation("one attempt too many", Stage, "worker_gone", "task.attempts < self.plan", "task.attempts <= self.plan"),
    Mutation("one attempt too few", Stage, "worker_gone", "task.attempts < self.plan", "task.attempts + 1 < self.plan"),
    Mutation("what was sent ahead counts as begun", Stage, "worker_gone", "if task.place <= begun:", "if True:"),
    Mutation("what was begun does not count", Stage, "worker_gone", "if task.place <= begun:", "if False:"),
    Mutation("a stream is run again after an event", Stage, "worker_gone", " and not begun_stream", ""),
    Mutation("a settled task comes back", Stage, "worker_gone", "if task.state is State.SETTLED:", "if False:"),
    Mutation("a dropped task still counts as waiting", Stage, "drop", "self.scheduler.discard(task)", "pass"),
    Mutation("a worker is not told who has left", Stage, "drop", "[]).append(task.id)", "[])"),
    Mutation("a worker is not told what was read", Stage, "taken", "if worker is not None:", "if False:"),
    Mutation(
        "a stage that went down lets its tasks wait",
        Stage,
        "stage_down",
        "self._owner.failed(task, STAGE_DOWN)",
        "pass",
    ),
    Mutation(
        "a stage is not looked at after results", Stage, "worker_results", "if self.scheduler.queued:", "if False:"
    ),
    Mutation("a stage is not looked at when a worker is ready", Stage, "worker_ready", "self._mark()", "pass"),
    Mutation("nobody wakes for a batch that waits", Stage, "_dispatch", "if wake_at != self._wake_at:", "if False:"),
    Mutation("the watchdog sleeps", Stage, "_look", "in self._watchdog.stuck(beats, now)", "in ()"),
    Mutation("the watchdog looks once", Stage, "_look", "if self.scheduler.in_flight:", "if False:"),
    Mutation("what was stuck is tried again", Stage, "_look", "self._owner.timed_out(task)", "pass"),
    Mutation("the watchdog sees no progress", Watchdog, "stuck", "before[0] == count", "before[0] <= count"),
    Mutation(
        "a proven stream keeps its worker for itself", Stage, "worker_events", "self.scheduler.proven(worker)", "pass"
    ),
    Mutation("not alone after a crash", Scheduler, "requeue", "task.alone = task.attempts > 0", "task.alone = False"),
    Mutation(
        "order is lost after a crash",
        Scheduler,
        "requeue",
        "deque(sorted(self._queue, key=_arrival))",
        "deque(sorted(self._queue, key=_arrival, reverse=True))",
    ),
    Mutation(
        "those that come back queue up behind",
        Scheduler,
        "requeue",
        "self._queue = deque(sorted(self._queue, key=_arrival))",
        "pass",
    ),
    Mutation("a window of one more", Scheduler, "_least_loaded_with_room", "room = ", "room = 1 + "),
    Mutation("no window at all", Scheduler, "_least_loaded_with_room", "room = ", "room = 1_000_000 + "),
    Mutation("a batch of one more", Scheduler, "_assign_batches", "(self.max_batch_size)", "(self.max_batch_size + 1)"),
    Mutation("a part of a batch is sent ahead", Scheduler, "_assign_batches", "if full else None", "if True else None"),
    Mutation("answers in any order are believed", Scheduler, "answered", "if self.ordered:", "if False:"),
    Mutation(
        "a task waits too long for a batch",
        Scheduler,
        "_wait_until",
        "most = oldest.queued + self.max_wait",
        "most = oldest.queued + self.max_wait + 0.05",
    ),
    Mutation(
        "a dead worker's tasks stay in flight", Scheduler, "remove_worker", "self._in_flight -= len(tasks)", "pass"
    ),
    Mutation("attempts are carried to the next stage", Task, "advance", "self.attempts = 0", "pass"),
    Mutation("a full stream may send", Flow, "came", "if self.full:", "if False:"),
    Mutation("a worker is told of more than was read", Flow, "taken", "return report", "return report + 1"),
    Mutation("what was read makes no room", Flow, "taken", "self._outstanding -= report", "pass"),
    Mutation("quiet time counts as work", Rate, "wait", "now if waiting else None", "now"),
    Mutation("a dead worker is not replaced", Supervisor, "_on_exit", "self._relaunch(place, delay)", "pass"),
    Mutation("a failed start is not tried again", Supervisor, "_start_failed", "self._relaunch(", "(lambda *_: None)("),
    Mutation("no back-off", Backoff, "delay", "self._first * 2.0**exponent", "0.0"),
    Mutation(
        "a back-off for workers that answer", Backoff, "delay", "if answered or (", "if (False and answered) or ("
    ),
    Mutation(
        "a back-off without an end",
        Backoff,
        "delay",
        "min(most, self._first * 2.0**exponent)",
        "self._first * 4.0**exponent",
    ),
    Mutation("last words are not read", Supervisor, "_on_exit", "worker.pipe.drain()", "pass"),
    Mutation(
        "a worker may take for ever to start",
        Supervisor,
        "_launch",
        "self._start_timeout, self._start_timed_out",
        "1e6, self._start_timed_out",
    ),
    Mutation("a stage does not recover", Supervisor, "_on_ready", "self.down = False", "pass"),
    Mutation("a stage is never down", Supervisor, "_start_failed", "self.down = True", "pass"),
    Mutation("a broken pipe is overlooked", Supervisor, "_on_closed", "self._lose(worker)", "return"),
    Mutation("a given up worker lives on", Supervisor, "_on_closed", "worker.handle.kill()", "pass"),
    Mutation(
        "a worker that was killed keeps its tasks", Supervisor, "_lose", "self._listener.worker_gone(worker)", "pass"
    ),
    Mutation("workers are launched after the stop", Supervisor, "_on_exit", "if self._stopping:", "if False:"),
]


def mutated(mutation: Mutation) -> Callable[..., Any]:
    """Return a method with the fault in it."""
    method = mutation.owner.__dict__[mutation.method]
    source = textwrap.dedent(inspect.getsource(method))
    assert source.count(mutation.before) == 1, f"{mutation.before!r} is not in\n{source}"
    program = "from __future__ import annotations\n" + source.replace(mutation.before, mutation.after)
    scope: dict[str, Any] = {}
    exec(compile(program, inspect.getfile(mutation.owner), "exec"), vars(sys.modules[mutation.owner.__module__]), scope)
    changed: Callable[..., Any] = scope[mutation.method]
    return changed


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_it_notices_when(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutation.owner, mutation.method, mutated(mutation))
    with pytest.raises(Violation):
        simulate(histories=ENOUGH)


# -- what it says then -------------------------------------------------------------------------------------------------


def test_a_violation_says_what_happened_and_how_to_see_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    swapped = next(mutation for mutation in MUTATIONS if mutation.name == "answers are swapped")
    monkeypatch.setattr(swapped.owner, swapped.method, mutated(swapped))
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
