"""The promises that every executor keeps: the same tests for workers in processes and in threads."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import executor_workers as workers
import pytest
from common import PATIENCE, until

from mosec_asgi.batching.coordinator import Coordinator
from mosec_asgi.batching.future import FutureOutcome
from mosec_asgi.config import check_keywords, resolve
from mosec_asgi.definition import plan_service
from mosec_asgi.errors import CANCELLED, StartupError
from mosec_asgi.inside.spec import WorkerSpec
from mosec_asgi.messages import EGRESS, INGRESS, Call, Chunk, Chunks, Credit, Outcome, Results, Tasks
from mosec_asgi.pool.link import Launcher
from mosec_asgi.pool.process.launcher import ProcessLauncher
from mosec_asgi.pool.thread import MOST_GIVEN_UP, ThreadLauncher
from mosec_asgi.runtime import Runtime

EXECUTORS: dict[str, Callable[[asyncio.AbstractEventLoop], Launcher]] = {
    "process": lambda loop: ProcessLauncher(loop, "spawn"),
    "thread": ThreadLauncher,
}


@pytest.fixture(params=EXECUTORS)
def executor(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Caller(FutureOutcome):
    """Waits for an outcome; makes room for the stream as its client would."""

    def __init__(self, engine: Coordinator) -> None:
        super().__init__()
        self.chunks: list[bytes] = []
        self._engine = engine

    def streamed(self, chunk: Chunk) -> None:
        self.chunks.append(chunk.payload)
        credit = Credit(chunk.call_id, len(chunk.payload))
        asyncio.get_running_loop().call_soon(self._engine.credit, credit)


class Engine:
    """The engine of a service, and what a test asks of it."""

    def __init__(self, coordinator: Coordinator) -> None:
        self.coordinator = coordinator

    def submit(self, item: Any, route: int = 0) -> tuple[int, Caller]:
        caller = Caller(self.coordinator)
        call = Call(self.coordinator.new_id(), route, json.dumps(item).encode(), f"request-{item}")
        self.coordinator.submit(call, caller)
        return call.id, caller

    async def outcome(self, item: Any, route: int = 0) -> Outcome:
        _, caller = self.submit(item, route)
        return await asyncio.wait_for(caller.future, PATIENCE)

    async def ask(self, item: Any, route: int = 0) -> Any:
        outcome = await self.outcome(item, route)
        assert outcome.code == 200, outcome
        return json.loads(outcome.payload)

    async def stream(self, item: Any) -> list[bytes]:
        _, caller = self.submit(item)
        assert (await asyncio.wait_for(caller.future, PATIENCE)).code == 200
        return caller.chunks


@asynccontextmanager
async def serving(executor: str, *stages: Runtime, **settings: Any) -> AsyncIterator[Engine]:
    """Start the engine of a pipeline; nothing of it may be left at the end."""
    threads = set(threading.enumerate())
    plans, routes, limits = plan_service({"/inference": list(stages)}, resolve(check_keywords(settings)))
    coordinator = Coordinator(plans, routes, lambda plan, loop: EXECUTORS[executor](loop), limits)
    await coordinator.start()
    try:
        yield Engine(coordinator)
    finally:
        await coordinator.stop(PATIENCE)
    assert coordinator.statistics().admitted == 0
    # Not how many they are: one of a test before this one may end during it.
    await until(lambda: threads.issuperset(threading.enumerate()))


async def test_each_answer_belongs_to_its_request(executor: str) -> None:
    async with serving(executor, Runtime(workers.Echo, 2), Runtime(workers.Echo, 2)) as engine:
        assert await asyncio.gather(*map(engine.ask, range(200))) == list(range(200))


async def test_batches_form(executor: str) -> None:
    async with serving(executor, Runtime(workers.Batch, 1, 8, 50)) as engine:
        answers = await asyncio.gather(*map(engine.ask, range(64)))
    assert [item for item, _ in answers] == list(range(64))
    assert max(size for _, size in answers) == 8


async def test_an_item_that_fails_fails_alone(executor: str) -> None:
    async with serving(executor, Runtime(workers.Batch, 1, 8, 50)) as engine:
        items = [0, 1, "bad", 3, 4, "bad", 6, 7]
        outcomes = await asyncio.gather(*map(engine.outcome, items))
    assert [outcome.code for outcome in outcomes] == [500 if item == "bad" else 200 for item in items]


@pytest.mark.parametrize("worker", [workers.Echo, workers.AsyncEcho])
async def test_whatever_is_raised_is_one_requests_fault(executor: str, worker: type) -> None:
    async with serving(executor, Runtime(worker, 1)) as engine:
        assert (await engine.outcome("panic")).code == 500
        assert await engine.ask("fine") == "fine"
        assert engine.coordinator.statistics().stages[0].restarts == 0


async def test_whatever_forward_does_to_its_loop_each_request_is_answered(executor: str) -> None:
    items = ["says 499", "stops the loop", "fine", "cancels all", "fine"]
    async with serving(executor, Runtime(workers.Reckless, 1, concurrency=5)) as engine:
        outcomes = await asyncio.gather(*map(engine.outcome, items))
        codes = [outcome.code for outcome in outcomes]
        assert (codes[0], codes[3]) == (500, 200)
        assert set(codes) == {200, 500}
        assert await engine.ask("fine") == "fine"
        assert engine.coordinator.statistics().stages[0].restarts == 0


async def test_an_error_of_ours_reaches_the_client(executor: str) -> None:
    async with serving(executor, Runtime(workers.Echo)) as engine:
        outcome = await engine.outcome("invalid")
        assert (outcome.code, outcome.payload) == (422, b"request validation error: not this")
        assert (await engine.outcome("exit")).code == 500
        assert await engine.ask(1) == 1


async def test_a_worker_knows_its_place(executor: str) -> None:
    async with serving(executor, Runtime(workers.Where, 2)) as engine:
        answers = [await engine.ask(None) for _ in range(20)]
    assert {(stage, number) for _, _, stage, number in answers} <= {("Where_1", 1), ("Where_1", 2)}
    assert {pid == os.getpid() for pid, *_ in answers} == {executor == "thread"}
    assert all(thread != threading.get_ident() or pid != os.getpid() for pid, thread, _, _ in answers)


@pytest.mark.parametrize("worker", [workers.Counts, workers.CountsAsync])
async def test_streams_come_whole_and_in_order(executor: str, worker: type) -> None:
    async with serving(executor, Runtime(worker), stream_buffer=1024) as engine:
        streams = await asyncio.gather(*(engine.stream(400) for _ in range(4)))
    assert streams == [[b"data: %d\n\n" % number for number in range(400)]] * 4


async def test_of_a_batch_of_generators_one_that_raises_ends_alone(executor: str) -> None:
    stage = Runtime(workers.CountsEach, 1, max_batch_size=3, max_wait_time=int(PATIENCE * 1000))
    async with serving(executor, stage) as engine:
        callers = [engine.submit(item)[1] for item in (3, 0, 2)]
        codes = [(await asyncio.wait_for(caller.future, PATIENCE)).code for caller in callers]
        assert codes == [200, 500, 200]
        assert [len(caller.chunks) for caller in callers] == [3, 1, 2]


async def test_requests_join_a_running_batch(executor: str) -> None:
    async with serving(executor, Runtime(workers.Slots, 1, 4)) as engine:
        streams = await asyncio.gather(*map(engine.stream, (5, 3, 8)))
    expected = [[b"data: %d\n\n" % (count - 1 - step) for step in range(count)] for count in (5, 3, 8)]
    assert streams == expected


async def test_a_client_that_leaves_is_told_to_forward(executor: str, tmp_path: Path) -> None:
    async with serving(executor, Runtime(workers.Gate)) as engine:
        gate = tmp_path / "gate"
        call_id, caller = engine.submit(str(gate))
        await until(Path(f"{gate}.begun").exists)
        engine.coordinator.cancel(call_id)
        assert (await caller.future).code == CANCELLED
        await until(Path(f"{gate}.left").exists)


async def test_what_waits_is_dropped_when_its_client_leaves(executor: str, tmp_path: Path) -> None:
    async with serving(executor, Runtime(workers.Gate)) as engine:
        first, second = tmp_path / "first", tmp_path / "second"
        _, running = engine.submit(str(first))
        await until(Path(f"{first}.begun").exists)
        call_id, waiting = engine.submit(str(second))
        engine.coordinator.cancel(call_id)
        first.touch()
        assert (await running.future).code == 200
        assert (await waiting.future).code == CANCELLED
        assert not Path(f"{second}.begun").exists()


async def test_a_forward_that_never_comes_back_costs_its_own_request_only(executor: str, tmp_path: Path) -> None:
    end = tmp_path / "end"
    async with serving(executor, Runtime(workers.Hangs, 1, timeout=0.2), timeout=9000) as engine:
        outcome = await engine.outcome(str(end))
        assert outcome.code == 408
        assert outcome.failure is not None
        assert "raise `timeout` (seconds) of its stage" in outcome.failure.text
        # Another has taken the place of the one that hangs.
        assert await engine.ask("quick") == "done"
        end.touch()


@pytest.mark.parametrize("worker", [workers.FormatsHang, workers.AsyncFormatsHang])
@pytest.mark.parametrize("method", ["deserialize", "serialize"])
async def test_so_does_a_format_that_never_comes_back(
    executor: str, worker: type[workers.FormatsHang], method: str, tmp_path: Path
) -> None:
    end = tmp_path / "end"
    async with serving(executor, Runtime(worker, 1, timeout=0.2), timeout=9000) as engine:
        outcome = await engine.outcome([method, str(end)])
        assert outcome.code == 408
        assert outcome.failure is not None
        assert f"`{method}`" in outcome.failure.text
        assert "raise `timeout` (seconds) of its stage" in outcome.failure.text
        assert await engine.ask(["neither", ""]) == ["neither", ""]
        end.touch()


async def test_the_deadline_of_the_service_holds_whatever_the_worker_does(executor: str, tmp_path: Path) -> None:
    end = tmp_path / "end"
    async with serving(executor, Runtime(workers.Hangs), timeout=300) as engine:
        began = asyncio.get_running_loop().time()
        assert (await engine.outcome(str(end))).code == 408
        assert asyncio.get_running_loop().time() - began < PATIENCE / 2
        end.touch()


@pytest.mark.parametrize("worker", [workers.CannotStart, workers.PanicsAtStart])
async def test_a_stage_that_cannot_start_says_why(executor: str, worker: type[workers.CannotStart]) -> None:
    with pytest.raises(StartupError, match=f"{worker.error.__name__}: no weights"):
        async with serving(executor, Runtime(worker)):
            pass


async def test_a_worker_is_closed_at_the_end(executor: str, tmp_path: Path) -> None:
    async with serving(executor, Runtime(workers.Closes)) as engine:
        await engine.ask(str(tmp_path / "closed"))
    assert (tmp_path / "closed").exists()


async def test_what_was_admitted_is_finished_before_the_end(executor: str, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with serving(executor, Runtime(workers.Gate)) as engine:
        _, caller = engine.submit(str(gate))
        await until(Path(f"{gate}.begun").exists)
        engine.coordinator.close()
        assert (await engine.outcome("late")).code == 503
        asyncio.get_running_loop().call_soon(gate.touch)
        await engine.coordinator.stop(PATIENCE)
        assert (await caller.future).code == 200


# -- what is a thread's alone ----------------------------------------------------------------------------------------


async def test_a_thread_has_no_environment_of_its_own() -> None:
    with pytest.raises(StartupError, match="executor='process'"):
        async with serving("thread", Runtime(workers.Echo, env=[{"A": "1"}])):
            pass


class Silence:
    """Hears a worker, and does nothing about it."""

    def __init__(self) -> None:
        self.is_ready = self.has_exited = False

    def ready(self) -> None:
        self.is_ready = True

    def failed(self, traceback: str) -> None:
        raise AssertionError(traceback)

    def results(self, results: Results) -> None:
        raise AssertionError("a thread that was given up is not heard")

    def chunks(self, chunks: Chunks) -> None:
        raise AssertionError("a thread that was given up is not heard")

    def closed(self, reason: str = "") -> None:
        raise AssertionError(reason)

    def exited(self) -> None:
        self.has_exited = True


async def test_threads_that_were_given_up_have_a_bound(tmp_path: Path) -> None:
    end = tmp_path / "end"
    launcher = ThreadLauncher(asyncio.get_running_loop())
    spec = WorkerSpec(workers.Hangs, "Hangs_1", 1, 1, 5.0)
    item = json.dumps(str(end)).encode()
    for _ in range(MOST_GIVEN_UP):
        events = Silence()
        link = launcher.launch(spec, {}, events)
        await until(lambda events=events: events.is_ready)
        link.send(Tasks([1], [INGRESS | EGRESS], ["a"], [item]))
        await until(lambda link=link: link.progress().begun)
        link.kill()
        await until(lambda events=events: events.has_exited)
        assert "a thread cannot be killed" in link.describe_exit()
    with pytest.raises(StartupError, match="8 threads of this stage were given up"):
        launcher.launch(spec, {}, Silence())
    end.touch()
    await until(lambda: all(thread.name != "Hangs_1 1" for thread in threading.enumerate()))
    events = Silence()
    link = launcher.launch(spec, {}, events)
    await until(lambda: events.is_ready)
    link.finish()
    await until(lambda: events.has_exited)
