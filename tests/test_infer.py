"""Calls from the program itself, to workers in processes and in threads, of one service with calls over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import random
import re
import threading
import tracemalloc
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import httpx
import infer_workers as workers
import msgspec
import numpy as np
import pydantic
import pytest
from common import PATIENCE, until
from infer_workers import ERRORS, Point

from mosec_asgi import Event, Server, Worker
from mosec_asgi.batching.engine import Statistics
from mosec_asgi.errors import (
    CallError,
    ClientError,
    DecodingError,
    EncodingError,
    MosecError,
    ServerError,
    ValidationError,
)
from mosec_asgi.mixin import NumBinIPCMixin, PydanticMixin, TypedMsgPackMixin

EXECUTORS = ["process", "thread"]
BOTH = pytest.mark.parametrize("executor", EXECUTORS)


@contextlib.asynccontextmanager
async def serving(*stages: type[Worker], executor: str = "process", **options: Any) -> AsyncIterator[Server]:
    """Serve one pipeline for the time of a block; at its end nothing may be left of any call."""
    names = ("timeout", "capacity", "shared_memory", "stream_buffer", "load_shedding", "stall_timeout")
    settings = {name: options.pop(name) for name in names if name in options}
    server = Server(**{"timeout": 20_000, "load_shedding": False, **settings})
    for stage in stages:
        server.append_worker(stage, executor=executor, **options)
    async with server:
        yield server
        await at_rest(server)


def statistics(server: Server) -> Statistics:
    assert server._running is not None
    return server._running.statistics()


async def at_rest(server: Server) -> None:
    """Wait until nothing is left of any call, in the queues, in the workers and in the memory."""

    def rests() -> bool:
        gc.collect()
        now = statistics(server)
        used = [(stage.queued, stage.in_flight, stage.slots_in_use) for stage in now.stages]
        return (now.admitted, now.shared_memory) == (0, 0) and set(used) == {(0, 0, 0)}

    await until(rests)


async def over_http(server: Server, body: Any, path: str = "/inference") -> httpx.Response:
    transport = httpx.ASGITransport(server)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.post(path, json=body)


async def failure(call: Coroutine[Any, Any, Any]) -> MosecError:
    with pytest.raises(MosecError) as caught:
        await asyncio.wait_for(call, PATIENCE)
    return caught.value


# -- objects in and out ------------------------------------------------------------------------------------------------

OBJECTS = [None, {1, 2}, (1, [2.5, b"x"]), {(1, 2): "a key"}, Point(3), b"", complex(1, 2), "\ud800"]


@BOTH
async def test_any_object_goes_in_and_comes_out_as_it_is(executor: str) -> None:
    async with serving(workers.Echo, workers.Echo, executor=executor) as server:
        assert await asyncio.gather(*[server.infer(item) for item in OBJECTS]) == OBJECTS


@BOTH
async def test_no_format_for_clients_is_on_the_way(executor: str) -> None:
    async with serving(workers.Closed, executor=executor) as server:
        assert await server.infer({1}) == [{1}, "Closed_1"]
    async with serving(workers.Closed, workers.Closed, executor=executor) as server:
        assert await server.infer({1}) == [[{1}, "Closed_1"], "Closed_2"]


@BOTH
@pytest.mark.parametrize("worker", [workers.Sizes, workers.AsyncSizes])
async def test_one_batch_holds_calls_of_both_kinds(executor: str, worker: type[Worker]) -> None:
    async with serving(worker, executor=executor, max_batch_size=4, max_wait_time=10_000) as server:
        calls: list[Coroutine[Any, Any, Any]] = [over_http(server, "a"), server.infer({1}), over_http(server, "b")]
        first, second, third, fourth = await asyncio.gather(*calls, server.infer(b"2"))
        assert (first.json(), second, third.json(), fourth) == (["a", 4], [{1}, 4], ["b", 4], [b"2", 4])


@BOTH
async def test_an_item_that_fails_in_a_batch_fails_alone_whatever_kind_it_is(executor: str) -> None:
    async with serving(workers.Sizes, executor=executor, max_batch_size=3, max_wait_time=10_000) as server:
        calls: list[Coroutine[Any, Any, Any]] = [over_http(server, 1), server.infer({1}), over_http(server, 2)]
        first, second, third = await asyncio.gather(*calls)
        assert (first.status_code, second, third.status_code) == (200, [{1}, 3], 200)
    async with serving(workers.Spell, executor=executor) as server:
        assert (await over_http(server, [{}])).text.startswith("event: error"), "over HTTP that is no event"
        assert [event async for event in server.stream([{}])] == [{}]


@BOTH
@pytest.mark.parametrize("size", [10, 100_000])
async def test_an_array_that_is_changed_in_a_batch_that_fails_gives_the_right_answer(executor: str, size: int) -> None:
    options = {"max_batch_size": 4, "max_wait_time": 5_000}
    async with serving(workers.Doubles, executor=executor, **options) as server:
        arrays = [np.full(size, number) for number in (1.0, 2.0, -3.0, 4.0)]
        results = await asyncio.gather(*map(server.infer, arrays), return_exceptions=True)
    assert [result if isinstance(result, float) else type(result) for result in results] == [2.0, 4.0, ServerError, 8.0]


async def test_what_passes_between_stages_by_a_mixin_does_so_and_the_ends_do_not() -> None:
    async with serving(workers.KeyEcho, workers.KeyEcho) as server:
        assert await server.infer({"a": (1, 2)}) == {"a": (1, 2)}
    async with serving(NumBinEcho, NumBinEcho) as server:
        assert (await server.infer(np.ones((300, 300)))).sum() == 90_000
        assert "not set" in str(await failure(server.infer({1}))), "between the stages it is numbin's business"


class NumBinEcho(NumBinIPCMixin, Worker):
    def forward(self, data: Any) -> Any:
        return data


class Request(pydantic.BaseModel):
    text: str
    limit: int = 10


class Struct(msgspec.Struct):
    text: str
    limit: int = 10


class PydanticEcho(PydanticMixin):
    def forward(self, data: list[Request]) -> list[Request]:
        assert all(type(item) is Request for item in data)
        return data


class TypedEcho(TypedMsgPackMixin):
    def forward(self, data: Struct) -> Struct:
        assert type(data) is Struct
        return data


@BOTH
@pytest.mark.parametrize(("worker", "model", "size"), [(PydanticEcho, Request, 8), (TypedEcho, Struct, 1)])
async def test_a_worker_with_a_schema_takes_its_model_or_data_that_it_checks(
    executor: str, worker: type[Worker], model: Any, size: int
) -> None:
    async with serving(worker, executor=executor, max_batch_size=size) as server:
        assert await server.infer(model(text="a", limit=3)) == model(text="a", limit=3)
        assert await server.infer({"text": "a"}) == model(text="a")
        error = await failure(server.infer({"text": 1}))
        assert isinstance(error, ValidationError)
        assert (error.code, "text" in str(error)) == (422, True)


# -- what goes wrong ---------------------------------------------------------------------------------------------------

RAISED: dict[str, tuple[type[MosecError], int, str]] = {
    "ClientError": (ClientError, 400, "the details"),
    "DecodingError": (DecodingError, 400, "the details"),
    "ValidationError": (ValidationError, 422, "the details"),
    "ServerError": (ServerError, 500, "the details"),
    "EncodingError": (EncodingError, 500, "the details"),
    "Teapot": (MosecError, 418, "I am a teapot: the details"),
    "Busy": (MosecError, 429, "busy: the details"),
    "KeyError": (ServerError, 500, "inference internal error"),
}


@BOTH
async def test_an_error_of_a_worker_is_raised_with_its_code(executor: str) -> None:
    assert RAISED.keys() == ERRORS.keys()
    async with serving(workers.Echo, workers.Awkward, executor=executor) as server:
        for name, (kind, code, text) in RAISED.items():
            error = await failure(server.infer(("raise", name)))
            assert (type(error), error.code, str(error), error.retry_after) == (kind, code, text, None)


@BOTH
async def test_a_call_that_is_not_done_in_time_fails_with_408(executor: str) -> None:
    async with serving(workers.Slow, executor=executor) as server:
        error = await failure(server.infer(5.0, timeout=50))
        assert (error.code, str(error).startswith("inference timeout")) == (408, True)
    async with serving(workers.Slow, executor=executor, timeout=100) as server:
        assert (await failure(server.infer(5.0, timeout=10_000))).code == 408, "the service's own is the limit"


@BOTH
async def test_a_call_over_capacity_is_refused_and_says_when_to_come_again(executor: str) -> None:
    async with serving(workers.Slow, executor=executor, capacity=1) as server:
        first = asyncio.ensure_future(server.infer(5.0))
        await until(lambda: statistics(server).admitted == 1)
        error = await failure(server.infer(np.zeros(1_000_000)))
        assert (error.code, (error.retry_after or 0) >= 1) == (429, True)
        assert statistics(server).shared_memory == 0, "what was refused lies nowhere"
        first.cancel()


@BOTH
async def test_an_item_that_cannot_be_pickled_is_named_and_nothing_is_sent(executor: str) -> None:
    async with serving(workers.Echo, executor=executor) as server:
        for item, name in [((x for x in ()), "generator"), (threading.Lock(), "lock"), ([lambda: 1], "list")]:
            error = await failure(server.infer(item))
            assert (type(error), name in str(error)) == (EncodingError, True)
        assert statistics(server).admitted == 0
        assert await server.infer(1) == 1


@BOTH
async def test_a_result_that_cannot_be_pickled_names_its_stage_and_spoils_no_other(executor: str) -> None:
    async with serving(workers.Echo, workers.Awkward, executor=executor) as server:
        results = [server.infer(("lambda", 1)), server.infer(("return", 2)), server.infer(("lambda", 3))]
        first, second, third = await asyncio.gather(*results, return_exceptions=True)
        assert second == 2
        for error in (first, third):
            assert isinstance(error, EncodingError)
            assert "what Awkward_2 returned cannot be pickled for `infer`" in str(error)


@dataclasses.dataclass
class Hidden:
    """Says that it is of a class which nobody can import."""

    def __reduce__(self) -> Any:
        return getattr, ("text", "there_is_no_such_thing")


class MakeHidden(Worker):
    def forward(self, data: Any) -> Any:
        return Hidden()


@BOTH
async def test_what_cannot_be_unpickled_says_on_which_side(executor: str) -> None:
    async with serving(workers.Echo, executor=executor) as server:
        error = await failure(server.infer(Hidden()))
        assert isinstance(error, DecodingError)
        assert "the item cannot be unpickled in Echo_1: AttributeError" in str(error)
    async with serving(MakeHidden, executor=executor) as server:
        error = await failure(server.infer(1))
        assert isinstance(error, ServerError)
        assert "what MakeHidden_1 returned cannot be unpickled in the server: AttributeError" in str(error)


async def test_a_worker_that_dies_with_a_call_is_replaced_and_the_call_fails() -> None:
    async with serving(workers.Awkward) as server:
        error = await failure(server.infer(("die", None)))
        assert (error.code, "the worker died" in str(error)) == (500, True)
        assert await server.infer(("return", 1)) == 1


async def test_an_array_outlives_the_death_of_the_worker_that_is_given_it() -> None:
    async with serving(workers.Awkward, max_attempts=2) as server:
        array = np.zeros(1_000_000)
        assert (await failure(server.infer(("die", array)))).code == 500
        assert (await server.infer(("return", array))).shape == array.shape


# -- where it is called ------------------------------------------------------------------------------------------------


async def test_a_route_that_there_is_not_and_a_wrong_way_to_call_one_say_what_there_is() -> None:
    server = Server()
    server.append_worker(workers.Echo, executor="thread", route="/plain")
    server.append_worker(workers.Spell, executor="thread", route="/spell")
    async with server:
        unknown = await failure(server.infer(1))
        assert (type(unknown), unknown.code) == (CallError, 404)
        assert "there is no route '/inference'; there are /plain, /spell" in str(unknown)
        streaming = await failure(server.infer(1, "/spell"))
        assert (streaming.code, "server.stream(item, route='/spell')" in str(streaming)) == (405, True)
        with pytest.raises(CallError, match=r"does not stream: use `await server.infer\(item, route='/plain'\)`"):
            server.stream(1, "/plain")


@pytest.mark.parametrize("timeout", [0, -1, 0.5, True, "3", float("nan")])
async def test_a_timeout_is_in_milliseconds(timeout: Any) -> None:
    async with serving(workers.Echo, executor="thread") as server:
        with pytest.raises(CallError, match="a number of milliseconds, at least 1"):
            await server.infer(1, timeout=timeout)


async def test_a_server_that_does_not_run_says_what_to_do() -> None:
    server = Server()
    server.append_worker(workers.Echo, executor="thread")
    for _ in range(2):
        error = await failure(server.infer(1))
        assert (type(error), error.code) == (CallError, 503)
        for remedy in ("async with server", "lifespan=server.lifespan", "server.engine()"):
            assert remedy in str(error)
        with pytest.raises(CallError, match="is not running"):
            server.stream(1)
        async with server:
            assert await server.infer(1) == 1


async def test_a_call_from_another_event_loop_says_what_to_do_and_disturbs_nothing() -> None:
    async with serving(workers.Echo, executor="thread") as server:

        def elsewhere() -> str:
            with pytest.raises(CallError, match=r"server\.engine\(\)") as caught:
                asyncio.run(server.infer(1))
            with pytest.raises(CallError, match=r"server\.engine\(\)"):
                server.stream(1)
            return str(caught.value)

        assert "another event loop" in await asyncio.to_thread(elsewhere)
        assert await server.infer(1) == 1


async def test_calls_that_run_when_the_service_is_told_to_stop_are_finished_and_others_refused() -> None:
    server = Server()
    server.append_worker(workers.Slow, executor="thread")
    async with server:
        running = asyncio.ensure_future(server.infer(0.2))
        await until(lambda: statistics(server).admitted == 1)
        server.close()
        error = await failure(server.infer(0.1))
        assert (error.code, error.retry_after) == (503, 1)
    assert await running == 0.2


async def test_blocks_of_one_server_may_lie_in_each_other() -> None:
    server = Server()
    server.append_worker(workers.Echo, executor="thread")
    async with server:
        async with server as same, server.lifespan():
            assert same is server
        assert await server.infer(1) == 1
    assert (await failure(server.infer(1))).code == 503


async def test_a_block_inside_of_a_lifespan_that_a_server_of_asgi_runs_does_not_end_it() -> None:
    server = Server()
    server.append_worker(workers.Echo, executor="thread")
    inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    outbox: asyncio.Queue[Any] = asyncio.Queue()
    inbox.put_nowait({"type": "lifespan.startup"})
    life = asyncio.ensure_future(server({"type": "lifespan"}, inbox.get, outbox.put))
    assert (await outbox.get())["type"] == "lifespan.startup.complete"
    async with server:
        pass
    assert await server.infer(1) == 1
    inbox.put_nowait({"type": "lifespan.shutdown"})
    await life
    assert (await failure(server.infer(1))).code == 503


def test_a_server_whose_loop_has_ended_does_not_run() -> None:
    server = Server()
    server.append_worker(workers.Echo, executor="thread")

    async def leave() -> None:
        await server.__aenter__()

    async def again() -> None:
        assert (await failure(server.infer(1))).code == 503
        async with server:
            assert await server.infer(1) == 1

    asyncio.run(leave())
    asyncio.run(again())


async def test_the_metrics_count_calls_as_they_count_requests() -> None:
    async with serving(workers.Awkward, executor="thread") as server:
        await server.infer(("return", 1))
        await over_http(server, ["return", 1])
        await failure(server.infer(("raise", "ValidationError")))
        assert server._running is not None
        metrics = server._running._metrics
        assert metrics.throughput == {("/inference", 200): 2, ("/inference", 422): 1}
        assert metrics.duration.count == 2


@BOTH
async def test_the_request_id_is_what_the_logs_say(
    executor: str, logged: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    async with serving(workers.Awkward, executor=executor) as server:
        await failure(server.infer(("raise", "KeyError"), request_id="my-own-id"))
        await failure(server.infer(("raise", "KeyError"), request_id="not\nprintable"))
    text = capfd.readouterr().err + "".join(repr(record.__dict__) for record in logged.records)
    assert "my-own-id" in text
    assert "printable" not in text


# -- cancellation ------------------------------------------------------------------------------------------------------


@BOTH
async def test_a_cancelled_call_leaves_the_queue_and_tells_a_worker_that_runs_it(executor: str, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with serving(workers.Gate, executor=executor) as server:
        running = asyncio.ensure_future(server.infer(str(gate)))
        await until((tmp_path / "gate.begun").exists)
        waiting = [asyncio.ensure_future(server.infer(str(gate))) for _ in range(300)]
        await until(lambda: statistics(server).admitted == 301)
        for call in waiting:
            call.cancel()
        await asyncio.wait(waiting)
        now = statistics(server)
        assert (now.admitted, now.stages[0].queued) == (1, 0)
        running.cancel()
        await until((tmp_path / "gate.left").exists)
        with pytest.raises(asyncio.CancelledError):
            await running


@BOTH
async def test_a_thousand_calls_that_are_cancelled_at_random_leave_nothing(executor: str) -> None:
    chance = random.Random(7)
    async with serving(workers.Slow, workers.Echo, executor=executor, capacity=2000) as server:
        calls = []
        for number in range(1000):
            item: Any = 0.0 if number % 8 else 0.004
            calls.append(asyncio.ensure_future(server.infer(item)))
            if number % 50 == 0:
                await asyncio.sleep(chance.choice([0, 0.002]))
            if chance.random() < 0.5:
                chance.choice(calls[-60:]).cancel()
        results = await asyncio.gather(*calls, return_exceptions=True)
        cancelled = sum(isinstance(result, asyncio.CancelledError) for result in results)
        assert 100 < cancelled < 1000
        assert {type(result) for result in results} == {float, asyncio.CancelledError}
        await at_rest(server)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(server), base_url="http://test") as client:
            shown = re.findall(
                r"^mosec_service_(\w+)(?:{.*})? (\S+)$", (await client.get("/metrics")).text, re.MULTILINE
            )
        gauges = {"remaining_task", "queue_length", "slots_in_use"}
        found = [(name, float(value)) for name, value in shown if name in gauges]
        assert {name for name, _ in found} == gauges
        assert {value for _, value in found} == {0.0}


@pytest.mark.parametrize("settled_first", [True, False])
async def test_a_result_that_comes_in_the_turn_of_its_cancellation_is_dropped(settled_first: bool) -> None:
    async with serving(workers.Arrays) as server:
        call = asyncio.ensure_future(server.infer(200_000))
        await until(lambda: statistics(server).admitted == 1)
        assert server._running is not None
        coordinator: Any = server._running.engine
        [task] = coordinator._admitted.values()
        task.caller = Between(task.caller, call, settled_first)
        with pytest.raises(asyncio.CancelledError):
            await call


class Between:
    """Hears an outcome in the place of a caller, whose call it cancels just then."""

    def __init__(self, caller: Any, call: asyncio.Future[Any], settled_first: bool) -> None:
        self.streamed = caller.streamed
        self._steps = [caller.settled, lambda outcome: call.cancel()]
        if not settled_first:
            self._steps.reverse()

    def settled(self, outcome: Any) -> None:
        for step in self._steps:
            step(outcome)


LEAVING = pytest.mark.parametrize("leave", ["close", "drop", "collect"])


async def leave_by_hand(coroutines: list[Coroutine[Any, Any, Any]], leave: str) -> None:
    """Leave the only coroutine of a list, which nobody else has."""
    if leave == "close":
        coroutines.pop().close()
    elif leave == "drop":
        coroutines.clear()
    else:
        garbage: list[Any] = [coroutines.pop()]
        garbage.append(garbage)
        del garbage
        # In another thread, as may be.
        await asyncio.to_thread(gc.collect)


@LEAVING
@pytest.mark.parametrize("begun", [True, False])
async def test_a_call_whose_coroutine_is_closed_or_dropped_while_it_waits_ends(
    leave: str, begun: bool, tmp_path: Path
) -> None:
    gate, first = tmp_path / "gate", tmp_path / "first"
    async with serving(workers.Gate, executor="thread") as server:
        blocking = None if begun else asyncio.ensure_future(server.infer(str(first)))
        if blocking is not None:
            await until((tmp_path / "first.begun").exists)
        before = statistics(server).admitted
        coroutines = [server.infer(str(gate))]
        coroutines[0].send(None)
        assert statistics(server).admitted == before + 1
        if begun:
            await until((tmp_path / "gate.begun").exists)
        await leave_by_hand(coroutines, leave)
        await until(lambda: statistics(server).admitted == before)
        if blocking is None:
            await until((tmp_path / "gate.left").exists)
        else:
            first.touch()
            await blocking


async def test_a_result_that_has_come_when_the_coroutine_is_closed_is_dropped() -> None:
    async with serving(workers.Arrays) as server:
        coroutine = server.infer(200_000)
        coroutine.send(None)
        await until(lambda: statistics(server).admitted == 0)
        assert statistics(server).shared_memory
        coroutine.close()


def test_a_coroutine_may_be_closed_when_the_event_loop_is_closed() -> None:
    kept: list[Coroutine[Any, Any, Any]] = []

    async def main() -> None:
        async with serving(workers.Echo, executor="thread") as server:
            kept.append(server.infer(1))
            kept[0].send(None)

    asyncio.run(main())
    kept[0].close()


# -- large arrays ------------------------------------------------------------------------------------------------------


async def test_a_large_array_is_copied_once_on_its_way_in_and_never_on_its_way_out() -> None:
    array = np.arange(2_500_000, dtype=np.float32)
    async with serving(workers.Twice, workers.Last) as server:
        result = await server.infer(array)
        got = result["array"]
        assert not result["owned"], "the last stage has it where it lies"
        assert not got.flags.owndata, "and so has the caller"
        assert statistics(server).shared_memory == 10_002_432, "once, in whole pages: the input is gone"
        assert (got == np.arange(2_500_000, dtype=np.float32) * 2).all()
        assert array[1] == 1.0, "the caller's own has not been touched"
        got += 1
        assert got[1] == 3.0
        # In any thread.
        await asyncio.to_thread(result.clear)
        del got
        await at_rest(server)


@pytest.mark.parametrize("shared_memory", [1 << 28, 0])
async def test_a_large_array_is_never_copied_into_the_memory_of_a_process(shared_memory: int) -> None:
    array = np.arange(2_500_000, dtype=np.float32)
    async with serving(workers.Traced, workers.Traced, shared_memory=shared_memory) as server:
        # What the first call leaves in a worker on its way out shows in the second.
        for _ in range(2):
            tracemalloc.start()
            try:
                result, peaks = await server.infer((array, []))
                peaks.append(tracemalloc.get_traced_memory()[1])
            finally:
                tracemalloc.stop()
            assert (result == array).all()
            del result
    assert len(peaks) == 3
    if shared_memory:
        assert max(peaks) < array.nbytes / 10, peaks
    else:
        assert min(peaks) >= array.nbytes, "through the pipe it is in each of them, or this test sees nothing"


async def test_arrays_that_are_kept_fill_the_memory_and_the_next_ones_come_through_the_pipe() -> None:
    size = 1 << 20
    async with serving(workers.Arrays, shared_memory=3 * size) as server:
        kept = [await server.infer(size) for _ in range(5)]
        assert [bool(array.flags.owndata) for array in kept[:3]] == [False] * 3
        assert statistics(server).shared_memory == 3 * size
        assert all((array == 7).all() for array in kept)
        kept.clear()
        await at_rest(server)
        assert not (await server.infer(size)).flags.owndata


async def test_an_array_outlives_its_service() -> None:
    server = Server()
    server.append_worker(workers.Echo)
    async with server:
        array = await server.infer(np.ones(1_000_000))
        assert not array.flags.owndata
    assert array.sum() == 1_000_000
    async with server:
        del array
        gc.collect()
        assert await server.infer(1) == 1


@BOTH
async def test_many_large_items_at_once_are_each_right(executor: str) -> None:
    async with serving(workers.Echo, workers.Echo, executor=executor, num=2, shared_memory=4 << 20) as server:
        arrays = [np.full(200_000 + number, number, np.uint8) for number in range(40)]
        results = await asyncio.gather(*[server.infer({"n": n, "a": array}) for n, array in enumerate(arrays)])
        for number, result in enumerate(results):
            assert (result["n"], result["a"].shape) == (number, (200_000 + number,))
            assert (result["a"] == number).all()
        results.clear()
        del result


async def test_without_shared_memory_arrays_go_through_the_pipe() -> None:
    async with serving(workers.Twice, workers.Echo, shared_memory=0) as server:
        assert (await server.infer(np.ones(1_000_000))).sum() == 2_000_000


async def test_a_large_pickle_without_buffers_goes_through_the_memory_too() -> None:
    async with serving(workers.Echo) as server:
        text = ["x" * 1000 + str(number) for number in range(1000)]
        assert await server.infer(text) == text
        assert len(await server.infer(b"x" * 1_000_000)) == 1_000_000


# -- streams -----------------------------------------------------------------------------------------------------------

EVENTS = ["a", b"b", {"c": 1}, Event("d", event="e"), None, 6, Point(7)]


@BOTH
@pytest.mark.parametrize("worker", [workers.Spell, workers.Push, workers.AsyncSpell])
async def test_a_stream_yields_what_the_worker_yields(executor: str, worker: type[Worker]) -> None:
    async with serving(worker, executor=executor) as server:
        assert [event async for event in server.stream(EVENTS)] == EVENTS
        assert [event async for event in server.stream([])] == []


@BOTH
async def test_streams_of_both_kinds_run_in_one_batch(executor: str) -> None:
    async with serving(workers.SpellTogether, executor=executor, max_batch_size=2, max_wait_time=10_000) as server:

        async def events() -> list[Any]:
            return [event async for event in server.stream("ab")]

        mine, theirs = await asyncio.gather(events(), over_http(server, "xyz"))
        assert mine == [("a", 2), ("b", 2)]
        assert "must be text, bytes or an Event, not tuple" in theirs.text
    async with serving(workers.Steps, executor=executor, max_batch_size=4) as server:
        streams = await asyncio.gather(*[_gathered(server.stream(text)) for text in ("ab", "", "xyz")])
        assert streams == [[{"part": part} for part in text] for text in ("ab", "", "xyz")]


async def _gathered(stream: AsyncIterator[Any]) -> list[Any]:
    return [event async for event in stream]


STREAM_FAULTS: list[tuple[str, type[MosecError], str]] = [
    ("ValidationError", ValidationError, "the details"),
    ("KeyError", ServerError, "inference internal error"),
    ("lambda", EncodingError, "an event of Spell_1 cannot be pickled for `stream`"),
]


@BOTH
async def test_a_stream_that_fails_gives_its_events_first(executor: str) -> None:
    async with serving(workers.Spell, executor=executor) as server:
        for name, kind, text in STREAM_FAULTS:
            stream = server.stream(["a", "b", name])
            assert [await anext(stream), await anext(stream)] == ["a", "b"]
            with pytest.raises(kind, match=text):
                await anext(stream)


@BOTH
@pytest.mark.parametrize("leave", ["break", "aclose", "cancel"])
async def test_whoever_leaves_a_stream_ends_it_in_the_worker(executor: str, leave: str, tmp_path: Path) -> None:
    file = tmp_path / "made"
    async with serving(workers.Endless, executor=executor) as server:
        if leave == "break":
            async for _ in server.stream(str(file)):
                break
        elif leave == "aclose":
            stream = server.stream(str(file))
            await anext(stream)
            await stream.aclose()
        else:
            reading = asyncio.ensure_future(_gathered(server.stream(str(file))))
            await until(file.exists)
            reading.cancel()
            await asyncio.wait([reading])
        await until((tmp_path / "made.ended").exists)
        await at_rest(server)


@LEAVING
async def test_a_stream_whose_coroutine_is_closed_or_dropped_while_it_waits_ends(leave: str, tmp_path: Path) -> None:
    faults: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: faults.append(context))
    file = tmp_path / "made"
    async with serving(workers.Endless, executor="thread") as server:
        coroutines: list[Coroutine[Any, Any, Any]] = [_gathered(server.stream(str(file)))]
        coroutines[0].send(None)
        await until(file.exists)
        await leave_by_hand(coroutines, leave)
        await until((tmp_path / "made.ended").exists)
        await at_rest(server)
    assert not faults


async def test_a_stream_is_used_as_an_async_generator() -> None:
    async with serving(workers.Spell, executor="thread") as server:
        stream = server.stream("abc")
        assert aiter(stream) is stream
        assert [await anext(stream), await stream.asend(None), await anext(stream)] == ["a", "b", "c"]
        for _ in range(2):
            with pytest.raises(StopAsyncIteration):
                await anext(stream)
        for thrown in (KeyError("thrown"), KeyError):
            stream = server.stream("abc")
            assert await anext(stream) == "a"
            with pytest.raises(KeyError):
                await stream.athrow(thrown)  # type: ignore[call-overload]
            await stream.aclose()
            with pytest.raises(StopAsyncIteration):
                await anext(stream)


async def test_a_stream_has_one_reader_at_a_time(tmp_path: Path) -> None:
    async with serving(workers.Endless, executor="thread") as server:
        stream = server.stream(str(tmp_path / "made"))
        reading = asyncio.ensure_future(stream.__anext__())  # type: ignore[arg-type]
        await asyncio.sleep(0)
        for other in (stream.__anext__, stream.aclose):
            with pytest.raises(RuntimeError, match="is awaited"):
                await other()
        assert await reading == "x" * 1000
        await stream.aclose()


@BOTH
async def test_a_stream_that_nobody_reads_holds_its_worker_back(executor: str, tmp_path: Path) -> None:
    file = tmp_path / "made"
    async with serving(workers.Endless, executor=executor, stream_buffer=10_000) as server:
        stream = server.stream(str(file))
        await anext(stream)

        async def made() -> int:
            """Return how many events were made, once that does not change any more."""
            last = -1
            while last != (now := file.stat().st_size):
                last = now
                await asyncio.sleep(0.3)
            return last

        assert 9 <= await made() <= 12
        for _ in range(20):
            await anext(stream)
        assert 28 <= await made() <= 33
        await stream.aclose()


async def test_a_stream_whose_reader_stalls_ends_with_408(tmp_path: Path) -> None:
    async with serving(workers.Endless, executor="thread", stream_buffer=5000, stall_timeout=100) as server:
        stream = server.stream(str(tmp_path / "made"))
        await anext(stream)
        await until(lambda: statistics(server).admitted == 0)
        error = await failure(_gathered(stream))
        assert (error.code, "does not read its stream" in str(error)) == (408, True)


async def test_a_stream_that_nobody_asks_for_is_no_call() -> None:
    async with serving(workers.Spell) as server:
        stream = server.stream(np.zeros(1_000_000))
        assert (statistics(server).admitted, statistics(server).shared_memory) == (0, 0)
        await stream.aclose()
        with pytest.raises(EncodingError, match="generator"):
            await anext(server.stream(x for x in ()))
