"""`map`: many items, as many in flight as fill whole batches, bounded memory, errors as results."""

from __future__ import annotations

import asyncio
import gc
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import infer_workers as workers
import numpy as np
import pytest
from common import PATIENCE

from mosec_asgi import Server
from mosec_asgi.calls.mapping import MOST_OFFERS, Ask, Lane, Pump
from mosec_asgi.calls.routes import CallRoute
from mosec_asgi.calls.window import Window
from mosec_asgi.errors import (
    STAGE_DOWN,
    CallError,
    ClientError,
    DefinitionError,
    EncodingError,
    Failure,
    ServerError,
    ValidationError,
    raised,
)
from mosec_asgi.messages import Call, Outcome
from mosec_asgi.testing import loop as virtual_time

BOTH = pytest.mark.parametrize("executor", ["process", "thread"])


def server_of(worker: Any, executor: str = "thread", **options: Any) -> Server:
    names = ("timeout", "capacity", "load_shedding")
    settings = {name: options.pop(name) for name in names if name in options}
    server = Server(**{"timeout": 20_000, **settings})
    server.append_worker(worker, executor=executor, **options)
    return server


def at_rest(server: Server) -> None:
    """Wait until no call and no memory is left."""
    limit = time.monotonic() + PATIENCE
    while True:
        gc.collect()
        assert server._running is not None
        now = server._running.statistics()
        left = (now.admitted, now.shared_memory, now.stages[0].queued, now.stages[0].in_flight)
        if left == (0, 0, 0, 0):
            return
        assert time.monotonic() < limit, left
        time.sleep(0.002)


@BOTH
@pytest.mark.parametrize("size", [1, 8])
def test_results_come_in_the_order_of_their_items_or_with_their_index(executor: str, size: int) -> None:
    worker = workers.Echo if size == 1 else workers.Sizes
    with server_of(worker, executor, max_batch_size=size, num=2).engine() as engine:
        items = [{number} for number in range(500)]

        def right(result: Any) -> Any:
            return result if size == 1 else result[0]

        assert [right(result) for result in engine.map(items)] == items
        pairs = list(engine.map(iter(items), ordered=False))
        assert sorted(index for index, _ in pairs) == list(range(500))
        assert all(right(result) == items[index] for index, result in pairs)
        assert list(engine.map([])) == []


@BOTH
def test_batches_are_whole(executor: str) -> None:
    with server_of(workers.Sizes, executor, max_batch_size=16, max_wait_time=5_000).engine() as engine:
        sizes = [size for _, size in engine.map(range(320))]
    assert sizes == [16] * 320


@BOTH
def test_an_item_that_fails_stands_as_its_error_and_ends_nothing(executor: str) -> None:
    names = ["ValidationError", "ClientError", "KeyError"]
    items: list[Any] = [("raise", name) for name in names]
    items += [(x for x in ()), ("return", "one"), ("lambda", 1), ("return", "two")]
    with server_of(workers.Awkward, executor).engine() as engine:
        results = list(engine.map(items))
    kinds = [ValidationError, ClientError, ServerError, EncodingError, str, EncodingError, str]
    assert [type(result) for result in results] == kinds
    assert (results[4], results[6]) == ("one", "two")


@BOTH
def test_an_item_and_a_result_that_would_end_the_program_end_nothing(executor: str) -> None:
    items = ["a", workers.Exits(late=False), "exits", "b"]
    with server_of(workers.Exiting, executor).engine() as engine:
        for _ in range(2):
            first, item, result, last = engine.map(items)
            assert (first, last) == ("a", "b")
            assert isinstance(item, EncodingError)
            assert isinstance(result, ServerError)
            assert "what Exiting_1 returned cannot be unpickled in the server: SystemExit" in str(result)


def test_no_more_items_are_taken_than_are_in_hand() -> None:
    source = Counted()
    server = server_of(workers.Sizes, max_batch_size=32)
    with server.engine() as engine:
        for handed_on, _ in enumerate(itertools.islice(engine.map(source), 1000), 1):
            assert source.taken - handed_on < 4 * 32
        at_rest(server)
        source = Counted()
        for handed_on, _ in enumerate(itertools.islice(engine.map(source, in_flight=3, ordered=False), 100), 1):
            assert source.taken - handed_on < 6


class Counted:
    """Numbers without end, and how many of them have been taken."""

    def __init__(self) -> None:
        self.taken = 0

    def __iter__(self) -> Iterator[int]:
        while True:
            self.taken += 1
            yield self.taken


def test_a_slow_item_holds_up_those_behind_it_only_as_far_as_memory_is_bounded() -> None:
    items = [0.3] + [0.0] * 200
    with server_of(workers.Slow, num=2).engine() as engine:
        assert list(engine.map(items)) == items
        first = next(iter(engine.map(items, ordered=False)))
        assert first[1] == 0.0


@BOTH
@pytest.mark.parametrize("how", ["close", "drop", "raise"])
def test_whoever_leaves_drops_what_runs(executor: str, how: str) -> None:
    server = server_of(workers.Slow, executor)
    with server.engine() as engine:

        def source() -> Iterator[float]:
            yield 0.0
            yield from [5.0] * 10
            if how == "raise":
                raise OSError("the disk is full")
            yield from [5.0] * 1000

        results = engine.map(source())
        if how == "raise":
            with pytest.raises(OSError, match="disk is full"):
                list(results)
        else:
            assert next(results) == 0.0
        if how == "close":
            results.close()  # type: ignore[attr-defined]
        del results
        at_rest(server)


@BOTH
def test_large_results_that_nobody_takes_are_given_back(executor: str) -> None:
    server = server_of(workers.Echo, executor)
    with server.engine() as engine:
        arrays = (np.full(100_000, number % 256, np.uint8) for number in itertools.count())
        results = engine.map(arrays)
        for number, array in enumerate(itertools.islice(results, 100)):
            assert (array == number).all()
        del array, results
        at_rest(server)


def test_what_is_refused_for_want_of_room_is_offered_again() -> None:
    # A model of 100 ms within 750 ms, so long for the sake of a busy machine: seven at a time, where 32 keep quick
    # workers at work.
    server = server_of(workers.Slow, timeout=750)
    with server.engine() as engine:
        assert list(engine.map([0.1] * 40)) == [0.1] * 40


def test_without_shedding_no_item_waits_for_longer_than_it_may() -> None:
    server = server_of(workers.Slow, timeout=750, load_shedding=False)
    with server.engine() as engine:
        assert list(engine.map([0.05] * 60)) == [0.05] * 60


def test_others_that_take_all_room_are_waited_for() -> None:
    server = server_of(workers.Slow, capacity=1)
    with server.engine() as engine:
        other = engine.map([0.3, 0.0])
        rest = engine.map([0.01] * 5)
        came: list[float] = []
        thread = threading.Thread(target=lambda: came.extend(other))
        thread.start()
        while not server._running or not server._running.statistics().admitted:
            time.sleep(0.001)
        assert list(rest) == [0.01] * 5
        thread.join()
        assert came == [0.3, 0.0]


def test_a_refusal_of_the_workers_own_is_a_result() -> None:
    server = server_of(workers.Awkward)
    with server.engine() as engine:
        [result] = engine.map([("raise", "Busy")])
        assert server._running is not None
        assert server._running._metrics.stages[0].in_time == 1, "it was run once"
    assert (result.code, str(result)) == (429, "busy: the details")


def test_what_cannot_be_mapped_says_so_at_once() -> None:
    server = server_of(workers.Echo)
    with server.engine() as engine:
        with pytest.raises(CallError, match="there is no route '/x'"):
            engine.map([1], "/x")
        with pytest.raises(DefinitionError, match="at least 1"):
            engine.map([1], in_flight=0)
        with pytest.raises(DefinitionError, match="at least 1, not '2'"):
            engine.map([1], in_flight="2")  # type: ignore[arg-type]
        with pytest.raises(CallError, match="milliseconds"):
            engine.map([1], timeout=0.1)
        later = engine.map([1, 2, 3])
    with pytest.raises(CallError, match="is not running"):
        next(later)


class Manual:
    """Makes calls, and is the engine that they go to: refuses some of them, and answers the others at once."""

    def __init__(self, refused: Callable[[int], bool], failure: Failure) -> None:
        self.engine = self
        self.refused = refused
        self.failure = failure
        self.submitted = 0
        self.at: list[float] = []

    def call(self, item: Any, where: CallRoute, timeout: float | None, request_id: str | None = None) -> Call:
        self.submitted += 1
        return Call(self.submitted, where.place, item, request_id or "")

    def submit(self, call: Call, caller: Any) -> None:
        self.at.append(asyncio.get_running_loop().time())
        refused = self.refused(self.submitted)
        ended = Outcome.of_failure(call.id, self.failure) if refused else Outcome(call.id, 200, call.payload)
        caller.settled(ended)

    def result(self, outcome: Outcome, where: CallRoute, began: float) -> Any:
        if outcome.failure is not None:
            raise raised(outcome.failure)
        return outcome.payload

    async def run(self, *items: Any) -> list[Any]:
        """Return the results of items, at virtual times."""
        where = CallRoute("/r", 0, streams=False, apart=False, egress="x", at_once=4, in_flight=8, timeout=3.0)
        pump = Pump(self, asyncio.get_running_loop(), lambda _: Lane(where, Window(4, 8, 3.0)))  # type: ignore[arg-type]
        for index, item in enumerate(items):
            pump.put(index, Ask("/r", item))
        results: dict[int, Any] = {}
        while len(results) < len(items):
            await asyncio.sleep(1.0)
            results.update(pump.take(0.0))
        pump.close()
        await asyncio.sleep(0)
        return [results[index] for index in range(len(items))]


@pytest.mark.parametrize("failure", [STAGE_DOWN, Failure(429, "full", 5)])
def test_refusals_are_waited_out_for_as_long_as_they_say(failure: Failure) -> None:
    manual = Manual(lambda number: number <= 20, failure)
    assert virtual_time.run(manual.run("a", "b", "c")) == ["a", "b", "c"]
    # All of them at first, and then one now and then.
    assert 17 * 5.0 <= manual.at[-1] <= 20 * 5.0


def test_items_that_are_refused_in_vain_are_answered_so_in_the_end() -> None:
    manual = Manual(lambda number: True, STAGE_DOWN)
    results = virtual_time.run(manual.run(*"abcde"))
    assert [(result.code, result.retry_after) for result in results] == [(503, 5)] * 5
    # What is behind the first one does not wait as long again.
    assert manual.at[-1] <= MOST_OFFERS * 5.0
    assert manual.submitted <= MOST_OFFERS + 10


def test_what_is_answered_now_and_then_is_not_given_up() -> None:
    manual = Manual(lambda number: number % 70 != 0, STAGE_DOWN)
    assert virtual_time.run(manual.run(*"abcde")) == [*"abcde"]


def test_a_503_that_does_not_say_when_to_come_again_is_a_result() -> None:
    manual = Manual(lambda number: True, Failure(503, "the model's own"))
    [result] = virtual_time.run(manual.run("a"))
    assert (result.code, manual.submitted) == (503, 1)


def test_items_of_several_routes_are_mapped_together_and_hold_up_none() -> None:
    server = Server(timeout=20_000)
    server.append_worker(workers.Sizes, executor="thread", max_batch_size=8, route="/sizes")
    server.append_worker(workers.Slow, executor="thread", route="/slow")
    server.append_worker(workers.Sizes, executor="thread", max_batch_size=8, route="/other")
    with server.engine() as engine:
        asks = [Ask("/slow", 0.5), *(Ask(("/sizes", "/other", "/none")[n % 3], n) for n in range(60))]
        came = list(engine.map_asks(asks, ordered=False))
        in_order = list(engine.map_asks(asks))
    assert [index for index, _ in in_order] == list(range(61))
    for pairs in (came, in_order):
        results = dict(pairs)
        assert results[0] == 0.5
        assert all(results[n + 1][0] == n for n in range(60) if n % 3 < 2)
        assert all(results[n + 1].code == 404 for n in range(60) if n % 3 == 2)
    assert came[-1] == (0, 0.5)
