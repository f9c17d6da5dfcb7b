"""The two interfaces of the engine: whoever keeps to them can call it, and can work for it; only messages cross."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import pytest
from fakes import PATIENCE, FutureOutcome, Service, answer, refusal, running, settled_loop, stage, until
from pickled import PickledCoordinator, crossings

from mosec_asgi.batching.coordinator import Coordinator, Limits, RoutePlan
from mosec_asgi.batching.engine import Engine
from mosec_asgi.errors import CLIENT_LEFT, CLOSING, Failure, at_capacity
from mosec_asgi.inside.spec import WorkerSpec
from mosec_asgi.messages import Call, Chunk, Outcome, Progress, Results, Tasks
from mosec_asgi.pool.link import Launcher, WorkerEvents, WorkerLink

pytestmark = pytest.mark.usefixtures("logged")


# -- a caller that waits for one outcome -------------------------------------------------------------------------------


async def test_a_future_gets_the_outcome_and_one_that_was_cancelled_gets_none() -> None:
    caller, gone = FutureOutcome(), FutureOutcome()
    gone.future.cancel()
    for one in (caller, gone):
        one.settled(Outcome(1, 200, b"x"))
    assert await caller.future == Outcome(1, 200, b"x")
    assert gone.future.cancelled()


async def test_a_future_cannot_take_a_stream() -> None:
    with pytest.raises(TypeError, match="call 7 is answered by a stream"):
        FutureOutcome().streamed(Chunk(7, b""))


# -- a worker on the event loop itself, written against `pool.link` and `messages` alone -------------------------------


class Loopback:
    """A worker that marks what it is given with its stage's name."""

    name, pid = "the event loop", None

    def __init__(self, spec: WorkerSpec, events: WorkerEvents) -> None:
        self._mark, self._events, self._begun = spec.stage.encode() + b":", events, 0
        self._open, self._ended = True, False
        self._later(events.ready)

    def _later(self, report: Callable[..., None], *what: Results) -> None:
        asyncio.get_running_loop().call_soon(lambda: report(*what) if self._open else None)

    def send(self, tasks: Tasks) -> None:
        self._begun += len(tasks.ids)
        answers = [self._mark + (one if isinstance(one, bytes) else one.read()) for one in tasks.payloads]
        self._later(self._events.results, Results(tasks.ids, [200] * len(answers), answers, 0.0))

    def progress(self) -> Progress:
        return Progress(self._begun, self._begun)

    def busy_poll(self, seconds: float) -> bool | None:
        return False

    def close(self) -> None:
        self._open = False

    def kill(self) -> None:
        if not self._ended:
            self._ended = True
            asyncio.get_running_loop().call_soon(self._events.exited)

    def describe_exit(self) -> str:
        return "has ended"

    def _nothing(self, *_: object) -> None: ...

    finish = kill
    cancel = credit = reap = drain = memory = _nothing


class LoopbackLauncher:
    def launch(self, spec: WorkerSpec, variables: Mapping[str, str], events: WorkerEvents) -> WorkerLink:
        return Loopback(spec, events)

    def close(self) -> None:
        pass


@asynccontextmanager
async def loopback(coordinator: type[Coordinator]) -> AsyncIterator[Engine]:
    """Start a pipeline of two stages on the event loop; nothing of it may be left at the end."""
    before = asyncio.all_tasks()
    stages = [stage("One_1", num=2), stage("Two_2", max_batch_size=4)]
    limits = Limits(100, PATIENCE, PATIENCE, PATIENCE, 1024)
    launcher: Launcher = LoopbackLauncher()
    engine = coordinator(stages, [RoutePlan("/", (0, 1))], lambda plan, loop: launcher, limits)
    await engine.start()
    try:
        yield engine
    finally:
        await asyncio.wait_for(engine.stop(PATIENCE), PATIENCE)
    await settled_loop()
    assert asyncio.all_tasks() == before


def submit(engine: Engine, payload: bytes) -> asyncio.Future[Outcome]:
    caller = FutureOutcome()
    engine.submit(Call(engine.new_id(), 0, payload, "request"), caller)
    return caller.future


def test_the_worker_on_the_event_loop_is_short() -> None:
    assert len(inspect.getsource(Loopback).splitlines()) <= 40
    link: type[WorkerLink] = Loopback
    assert not [name for name in vars(WorkerLink) if not name.startswith("_") and not hasattr(link, name)]


@pytest.mark.parametrize("coordinator", [Coordinator, PickledCoordinator])
async def test_a_worker_of_forty_lines_serves_a_pipeline(coordinator: type[Coordinator]) -> None:
    async with loopback(coordinator) as engine:
        outcomes = await asyncio.gather(*(submit(engine, b"%d" % number) for number in range(50)))
        assert [outcome.payload for outcome in outcomes] == [b"Two_2:One_1:%d" % number for number in range(50)]
        assert {outcome.code for outcome in outcomes} == {200}
        assert engine.statistics().admitted == 0


async def test_a_worker_of_forty_lines_finishes_what_it_has_when_the_service_ends() -> None:
    async with loopback(Coordinator) as engine:
        outcomes = [submit(engine, b"%d" % number) for number in range(10)]
    assert [outcome.result().payload for outcome in outcomes] == [b"Two_2:One_1:%d" % number for number in range(10)]
    late = submit(engine, b"late")
    await asyncio.sleep(0)
    assert late.result().failure == CLOSING


# -- every message as bytes, in both directions ------------------------------------------------------------------------
# `test_coordinator` runs all of its tests over such an engine as well.


@pytest.fixture
def _crossing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Service, "engine", PickledCoordinator)
    crossings.clear()


@pytest.mark.usefixtures("_crossing")
async def test_results_and_errors_cross() -> None:
    async with running(stage("A_1"), stage("B_2")) as service:
        first, second = service.workers
        good, bad = service.submit(b"x"), service.submit(b"y")
        await first.gets_work()
        first.reply()
        await until(lambda: first.has and second.has)
        first.reply(code=422, payloads=[b"no"])
        second.reply()
        assert [await answer(good), await answer(bad)] == [b"re:re:x", Failure(422, "no")]
    assert {name: crossings[name] for name in ("Call", "Tasks", "Results", "Outcome")} == {
        "Call": 2,
        "Tasks": 3,
        "Results": 3,
        "Outcome": 2,
    }


@pytest.mark.usefixtures("_crossing")
async def test_a_refusal_crosses() -> None:
    async with running(stage(), capacity=1) as service:
        service.submit()
        assert await refusal(service.try_to_submit(0, b"", "one too many")) == at_capacity(1)


@pytest.mark.usefixtures("_crossing")
async def test_a_stream_its_credit_and_its_cancel_cross() -> None:
    async with running(stage(streams=True, ordered=False, concurrency=4), stream_buffer=1024) as service:
        stream, gone = service.stream(), service.stream()
        await until(lambda: len(service.worker.has) == 2)
        service.worker.emit([stream.id, gone.id], [b"a" * 1024, b"x"])
        service.credit(stream.id, 1024)
        service.coordinator.cancel(gone.id)
        assert await answer(gone.ticket) == CLIENT_LEFT
        await until(lambda: service.worker.taken and service.worker.cancelled)
        assert (service.worker.taken, service.worker.cancelled) == ([(stream.id, 1024)], [gone.id])
        service.worker.emit([stream.id, gone.id], [b"b", b"y"])
        service.worker.reply([stream.id], payloads=[b""])
        assert await answer(stream.ticket) == b""
        assert (stream.chunks, gone.chunks) == ([b"a" * 1024, b"b"], [b"x"])
    assert (crossings["Chunks"], crossings["Chunk"]) == (2, 3)
    assert [crossings[name] for name in ("Credit", "Credits", "Cancel", "Cancels")] == [1, 1, 1, 1]
