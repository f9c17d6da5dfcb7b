"""A service is changed while it serves: by name, in users' units, and nothing is changed by what does not fit."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fakes import PATIENCE

from mosec_asgi import ContinuousWorker, Server, SSEWorker, Worker
from mosec_asgi.errors import CallError, DefinitionError, StartupError

# What the workers in threads of this process share with the test.
GATES: dict[str, threading.Event] = {}
MADE: list[Worker] = []
FAILS = threading.Event()


class Item(Worker):
    """Answers who has worked, once it may."""

    def __init__(self) -> None:
        if FAILS.is_set():
            raise OSError("no weights")
        MADE.append(self)

    def forward(self, data: Any) -> Any:
        if data in GATES:
            GATES[data].wait(PATIENCE)
        # Forked processes may have like addresses, and threads have one process.
        return [self.worker_id, (id(self), os.getpid())]


class Grows(Worker):
    """Keeps so many bytes more, and answers who has worked."""

    def __init__(self) -> None:
        self.kept: list[bytes] = []

    def forward(self, data: int) -> int:
        self.kept.append(b"x" * data)
        return os.getpid()


class Items(Worker):
    def forward(self, data: list[Any]) -> list[Any]:
        return [[self.max_batch_size, len(data)] for _ in data]


class Chat(SSEWorker):
    def forward(self, data: str) -> Any:
        yield "begun"
        GATES[data].wait(PATIENCE)
        yield "ended"


class Steps(ContinuousWorker):
    def admit(self, item: Any) -> int:
        return 0

    def step(self) -> Any:
        return []

    def evict(self, slot: Any) -> None: ...


@pytest.fixture(autouse=True)
def clean() -> Any:
    GATES.clear()
    MADE.clear()
    FAILS.clear()
    yield
    for gate in GATES.values():
        gate.set()


@asynccontextmanager
async def serving(**settings: Any) -> AsyncIterator[Server]:
    server = Server(**{"timeout": 20_000, **settings})
    server.append_worker(Item, num=2, executor="thread")
    server.append_worker(Items, max_batch_size=4, executor="thread", route="/items")
    server.append_worker(Chat, executor="thread", route="/chat")
    server.append_worker(Steps, executor="thread", route="/steps")
    async with server:
        yield server


def workers(server: Server, stage: int = 0) -> tuple[int, int]:
    """Return how many workers of a stage there are to be, and are ready."""
    told = server.statistics().stages[stage]
    return told.wanted, told.ready


async def test_a_stage_is_scaled_up_and_down() -> None:
    async with serving() as server:
        await server.scale("Item_1", 4)
        assert workers(server) == (4, 4)
        assert len({tuple(await server.infer(n)) for n in range(40)}) > 1
        await server.scale(1, 1)
        assert workers(server) == (1, 1)
        assert len({tuple(await server.infer(n)) for n in range(10)}) == 1


async def test_a_worker_that_leaves_answers_what_it_has_and_is_given_no_more() -> None:
    GATES["first"] = threading.Event()
    async with serving() as server:
        await server.scale(1, 1)
        first = asyncio.ensure_future(server.infer("first"))
        await asyncio.sleep(0)
        restart = asyncio.ensure_future(server.restart(1))
        while server.statistics().stages[0].draining == 0:
            await asyncio.sleep(0.01)
        # The other one has its place, and what comes goes there.
        later = await server.infer("later")
        assert not first.done()
        assert not restart.done()
        GATES["first"].set()
        assert (await first)[1] != later[1]
        await restart
        assert workers(server) == (1, 1)


async def test_a_stream_ends_on_the_worker_on_which_it_has_begun() -> None:
    GATES["a"] = threading.Event()
    async with serving() as server:
        stream = server.stream("a", "/chat")
        assert await anext(stream) == "begun"
        restart = asyncio.ensure_future(server.restart("Chat_3"))
        while server.statistics().stages[2].draining == 0:
            await asyncio.sleep(0.01)
        GATES["a"].set()
        assert [event async for event in stream] == ["ended"]
        await restart


async def test_a_worker_that_never_ends_what_it_has_is_ended_after_the_drain_timeout() -> None:
    GATES["a"] = threading.Event()
    async with serving(drain_timeout=100) as server:
        stream = server.stream("a", "/chat")
        assert await anext(stream) == "begun"
        await asyncio.wait_for(server.restart("Chat_3"), PATIENCE)
        with pytest.raises(Exception, match="died"):
            await anext(stream)


async def test_restart_replaces_every_worker_of_every_stage() -> None:
    async with serving() as server:
        before = {id(worker) for worker in MADE}
        await server.restart()
        seen = {(await server.infer(n))[1] for n in range(20)}
        assert len(MADE) == 4
        assert not seen & before


async def test_other_values_hold_for_the_scheduler_and_in_the_workers() -> None:
    async with serving() as server:
        assert await server.infer(0, "/items") == [4, 1]
        await server.configure("Items_2", max_batch_size=2, max_wait_time=5, latency_target=500, timeout=7)
        assert {tuple(each) for each in await asyncio.gather(*(server.infer(n, "/items") for n in range(8)))} <= {
            (2, 1),
            (2, 2),
        }
        running = server._running
        assert running is not None
        values = running._coordinator.values(1)
        assert (values.batch_size, values.max_wait, values.adaptive) == (2, 0.005, False)
        assert (values.latency_target, values.timeout) == (0.5, 7.0)
        await server.configure(2, max_wait_time=0)
        assert running._coordinator.values(1).adaptive
        assert running.steering.all_values()["Items_2"]["max_batch_size"] == 2


async def test_the_slots_of_a_continuous_batch_can_be_changed() -> None:
    async with serving() as server:
        await server.configure("Steps_4", max_batch_size=3)
        assert server.statistics().stages[3].slots == 3


async def test_callers_are_told_how_many_calls_are_worth_having_in_flight() -> None:
    async with serving() as server:
        running = server._running
        assert running is not None
        before = running.calls.routes["/items"].at_once
        await server.scale("Items_2", 3)
        assert running.calls.routes["/items"].at_once == 3 * before


@pytest.mark.parametrize(
    ("stage", "num", "message"),
    [
        ("Item_1", 0, "at least 1, not 0"),
        ("Item_1", -1, "at least 1"),
        ("Item_1", 10_000, r"at most 64, not 10000; the setting max_workers"),
        ("Item_1", 2.0, "a whole number of workers"),
        ("Item_1", True, "a whole number of workers"),
        ("Item", 2, r"there is no stage 'Item'; by name, or by number, there are Item_1 \(1\)"),
        (0, 2, "there is no stage 0"),
        (5, 2, "there is no stage 5"),
        ("9" * 50, 2, "there is no stage"),
        ("9" * 5000, 2, "there is no stage"),
        (None, 2, "there is no stage None"),
    ],
)
async def test_a_number_of_workers_that_does_not_fit_changes_nothing(stage: Any, num: Any, message: str) -> None:
    async with serving() as server:
        with pytest.raises(DefinitionError, match=message):
            await server.scale(stage, num)
        assert workers(server) == (2, 2)
        assert len(MADE) == 2


@pytest.mark.parametrize(
    ("stage", "values", "message"),
    [
        (1, {}, "nothing to change: give a value for max_batch_size, max_wait_time"),
        (1, {"max_batch_size": 4}, "is given one item, and would be given a list of items"),
        (2, {"max_batch_size": 1}, "is given a list of items, and would be given one item"),
        (2, {"max_batch_size": 0}, "at least 1"),
        (2, {"max_batch_size": 2, "max_wait_time": -1}, "max_wait_time must be at least 0"),
        (2, {"timeout": -1}, "timeout must be a number of seconds"),
        (2, {"timeout": float("nan")}, "timeout must be a number of seconds"),
        (2, {"latency_target": "7"}, "latency_target must be a number of milliseconds"),
    ],
)
async def test_values_that_do_not_fit_change_nothing(stage: int, values: dict[str, Any], message: str) -> None:
    async with serving() as server:
        running = server._running
        assert running is not None
        before = running._coordinator.values(stage - 1)
        with pytest.raises(DefinitionError, match=message):
            await server.configure(stage, **values)
        assert running._coordinator.values(stage - 1) == before


async def test_a_stage_has_no_more_workers_than_environments() -> None:
    server = Server()
    server.append_worker(Item, num=2, env=[{"GPU": "0"}, {"GPU": "1"}])
    from mosec_asgi import testing

    async with testing.serving(server):
        await server.scale(1, 1)
        await server.scale(1, 2)
        with pytest.raises(DefinitionError, match=r"at most 2, not 3: so many workers of Item_1 have an environment"):
            await server.scale(1, 3)


async def test_a_replacement_that_cannot_start_leaves_the_others_serving() -> None:
    async with serving() as server:
        before = await server.infer(1)
        FAILS.set()
        with pytest.raises(StartupError, match=r"(?s)could not start.*no weights"):
            await server.restart(1)
        with pytest.raises(StartupError, match="no weights"):
            await server.scale(1, 3)
        with pytest.raises(StartupError, match="no weights"):
            await server.configure(1, timeout=3)
        assert workers(server) == (2, 2)
        running = server._running
        assert running is not None
        assert running._coordinator.values(0).timeout == 20.0
        assert before[1] in {(await server.infer(n))[1] for n in range(20)}


async def test_a_replacement_process_that_cannot_start_leaves_the_others_serving() -> None:
    server = Server(timeout=20_000)
    server.append_worker(Item, start_method="fork", max_calls=3)
    async with server:
        before = await server.infer(0)
        FAILS.set()
        for change in (server.restart(1), server.scale(1, 2), server.configure(1, timeout=3)):
            with pytest.raises(StartupError, match=r"(?s)worker 1.*exited with status|no weights"):
                await change
        # It is to be recycled now, and that is tried until it succeeds.
        assert [await server.infer(0) for _ in range(5)] == [before] * 5
        FAILS.clear()
        await is_replaced(server, before)


async def test_changes_of_one_stage_take_turns() -> None:
    async with serving() as server:
        await asyncio.gather(server.scale(1, 4), server.restart(1), server.scale(1, 1), server.scale(1, 3))
        assert workers(server) == (3, 3)


async def test_a_change_needs_a_service_that_runs_here() -> None:
    server = Server()
    server.append_worker(Item, executor="thread")
    for change in (server.scale(1, 2), server.configure(1, timeout=1), server.restart()):
        with pytest.raises(CallError, match="not running"):
            await change


async def test_a_worker_is_replaced_after_so_many_calls() -> None:
    server = Server(timeout=20_000)
    server.append_worker(Item, executor="thread", max_calls=5)
    async with server:
        seen = []
        while len(set(seen)) < 3:
            seen.append((await server.infer(0))[1])
        # Served on until the other was there, and no longer.
        assert seen[:5] == [seen[0]] * 5
        assert server.statistics().stages[0].restarts == 0


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="memory is looked at in Linux's /proc")
async def test_a_worker_whose_first_call_makes_it_too_large_is_replaced() -> None:
    server = Server(timeout=20_000)
    # Spawned, so that what it takes at first does not depend on this process: some 60 MB.
    server.append_worker(Grows, max_memory=300_000_000)
    async with server:
        # Those that the service begins with are looked at when it has started.
        await server.restart(1)
        await is_replaced(server, await server.infer(400_000_000))


async def is_replaced(server: Server, before: Any) -> None:
    """Wait until another worker answers."""
    limit = time.monotonic() + 30
    while await server.infer(0) == before:
        assert time.monotonic() < limit, "it is not replaced"
        await asyncio.sleep(0.01)


def test_limits_of_a_workers_life_must_fit() -> None:
    server = Server()
    with pytest.raises(DefinitionError, match="max_memory is for workers that are processes"):
        server.append_worker(Item, executor="thread", max_memory=1 << 30)
    with pytest.raises(DefinitionError, match="max_calls must be at least 0"):
        server.append_worker(Item, max_calls=-1)


async def test_workers_that_all_have_the_same_environment_can_be_more() -> None:
    from mosec_asgi import testing

    server = Server()
    server.append_worker(Item, num=2, env=[{"OMP_NUM_THREADS": "2"}, {"OMP_NUM_THREADS": "2"}])
    async with testing.serving(server):
        await server.scale(1, 3)
        running = server._running
        assert running is not None
        places = running._coordinator._stages[0].pool.places
        assert [place.variables for place in places] == [{"OMP_NUM_THREADS": "2"}] * 3
