from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import common
import pytest
from common import told
from fake_port import (
    ENDED,
    INTERNAL,
    LEFT,
    PATIENCE,
    TOO_SLOW,
    UNUSUAL,
    Recorder,
    ServerEnd,
    data,
    json_tasks,
    ok,
    run,
    run_batch,
    runner_of,
    served,
    spec_of,
    tasks,
    until,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from mosec_asgi.errors import ClientError, MosecTimeoutError, ValidationError
from mosec_asgi.inside import async_runner
from mosec_asgi.inside.async_runner import BEAT_SECONDS, CANCEL_SECONDS, AsyncRunner
from mosec_asgi.inside.loading import load
from mosec_asgi.streaming import FINISHED, Event, SSEWorker
from mosec_asgi.worker import Worker

LATE = 408


pytestmark = pytest.mark.usefixtures("logged")


def awaiting(
    forward: Callable[[Any, Any], Awaitable[Any]], base: type[Worker] = Worker, **members: Any
) -> type[Worker]:
    """Return a worker whose `forward` is asynchronous, and gets the worker itself."""

    async def call(self: Worker, data: Any) -> Any:
        return await forward(self, data)

    return type("Made", (base,), {"forward": call, **members})


def yielding(forward: Callable[[Any], AsyncIterator[Any]], **members: Any) -> type[Worker]:
    """Return a worker whose `forward` is an asynchronous generator."""

    async def call(self: Worker, data: Any) -> AsyncIterator[Any]:
        # Its own `finally` must run when this one is closed.
        events = forward(data)
        try:
            async for event in events:
                yield event
        finally:
            await events.aclose()  # type: ignore[attr-defined]

    return type("Made", (SSEWorker,), {"forward": call, **members})


def pushing(forward: Callable[[SSEWorker, Any], Awaitable[Any]], **members: Any) -> type[Worker]:
    """Return a worker whose `forward` is asynchronous, gets the worker itself, and sends events."""
    return awaiting(forward, SSEWorker, **members)


class Counter:
    """Counts how many are inside at a time."""

    def __init__(self) -> None:
        self.inside = 0
        self.most = 0

    def __enter__(self) -> None:
        self.inside += 1
        self.most = max(self.most, self.inside)

    def __exit__(self, *_: object) -> None:
        self.inside -= 1


# -- results -----------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.integers(1, 5))
def test_each_request_gets_its_own_result_in_whatever_order_they_come(naps: list[int], concurrency: int) -> None:
    async def forward(self: Worker, item: int) -> int:
        for _ in range(naps[item]):
            await asyncio.sleep(0)
        return item * 2

    answers = run(awaiting(forward), json_tasks(*range(len(naps))), concurrency=concurrency)
    assert answers == [ok(2 * number) for number in range(len(naps))]


def test_one_that_is_done_is_answered_though_others_are_not() -> None:
    async def forward(self: Worker, item: int) -> int:
        if item == 1:
            await common.until(lambda: set(server.answers) == {2, 3})
        return item

    server = ServerEnd()
    served(awaiting(forward), json_tasks(1, 2, 3), server=server, concurrency=3)
    assert list(server.answers)[-1] == 1


@pytest.mark.parametrize("concurrency", [1, 3])
def test_as_many_run_at_a_time_as_may(concurrency: int) -> None:
    counter = Counter()

    async def forward(self: Worker, item: int) -> int:
        with counter:
            for _ in range(5):
                await asyncio.sleep(0)
            return item

    run(awaiting(forward), json_tasks(*range(10)), concurrency=concurrency)
    assert counter.most == concurrency


def test_they_begin_in_the_order_in_which_they_came() -> None:
    begun = Recorder()

    async def forward(self: Worker, item: int) -> int:
        begun(item)
        await asyncio.sleep(0.001 * (item % 3))
        return item

    with ServerEnd() as server, runner_of(awaiting(forward), server, concurrency=4) as runner:
        server.send(json_tasks(0, 1, 2), json_tasks(*range(3, 12), first=4))
        runner.serve()
    assert begun.calls == list(range(12))


def test_each_fault_fails_its_own_item() -> None:
    async def forward(self: Worker, item: Any) -> Any:
        await asyncio.sleep(0)
        if item == "client":
            raise ClientError("not that")
        if item == "bug":
            raise KeyError("a secret")
        return object() if item == "no json" else item

    work = tasks(b'"client"', b'"fine"', b"{", b'"bug"', b'"no json"')
    answers = run(awaiting(forward), work, concurrency=2)
    assert [code for code, _ in answers] == [400, 200, 400, 500, 500]
    assert (answers[0], answers[1], answers[3]) == ((400, b"bad request: not that"), ok("fine"), INTERNAL)


def test_a_forward_that_cancels_itself_has_a_bug() -> None:
    async def forward(self: Worker, item: Any) -> Any:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    async def raise_it(self: Worker, item: Any) -> Any:
        raise asyncio.CancelledError

    assert run(awaiting(forward), json_tasks(1, 2)) == [INTERNAL] * 2
    assert run(awaiting(raise_it), json_tasks(1, 2)) == [INTERNAL] * 2


@pytest.mark.parametrize("max_batch_size", [1, 2])
def test_a_forward_that_stops_the_loop_stops_nothing(max_batch_size: int, logged: pytest.LogCaptureFixture) -> None:
    async def forward(self: Worker, item: Any) -> Any:
        asyncio.get_running_loop().stop()
        await asyncio.sleep(0.001)
        return item

    answers = run(awaiting(forward), json_tasks(1, 2, 3), max_batch_size=max_batch_size, concurrency=2)
    assert answers == [ok(1), ok(2), ok(3)]
    assert "`forward` has stopped the event loop, which goes on" in logged.messages


def test_a_forward_that_cancels_all_tasks_ends_only_what_has_begun(logged: pytest.LogCaptureFixture) -> None:
    async def forward(self: Worker, item: Any) -> Any:
        if item == "cancel":
            for task in asyncio.all_tasks():
                if task is not asyncio.current_task():
                    task.cancel()
        elif item == "beside":
            await asyncio.sleep(PATIENCE)
        await asyncio.sleep(0)
        return item

    work = json_tasks("beside", "cancel", "not begun", "waits")
    answers = run(awaiting(forward), work, concurrency=3)
    assert answers == [INTERNAL, ok("cancel"), ok("not begun"), ok("waits")]
    assert "`forward` has cancelled tasks that are not its own" in logged.messages


@pytest.mark.parametrize("streams", [False, True])
def test_a_worker_that_ends_by_itself_answers_nothing(streams: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    async def forward(self: Worker, item: Any) -> Any:
        await asyncio.sleep(PATIENCE)

    async def fail(self: AsyncRunner) -> None:
        await asyncio.sleep(0)
        raise LookupError("a fault of ours")

    async def events(item: Any) -> AsyncIterator[Any]:
        yield "first"
        await asyncio.sleep(PATIENCE)

    worker = yielding(events) if streams else awaiting(forward)
    with ServerEnd() as server:
        with runner_of(worker, server, concurrency=2) as runner:
            server.send(json_tasks(1, 2))
            until(lambda: server.port.poll() or server.port.tasks)
            monkeypatch.setattr(AsyncRunner, "_news_come", fail)
            with pytest.raises(LookupError):
                runner.serve()
        assert not server.port.ended
    assert server.answers == {}


@pytest.mark.parametrize("max_batch_size", [1, 4])
def test_forward_may_raise_the_timeout_itself(max_batch_size: int) -> None:
    async def forward(self: Worker, item: Any) -> Any:
        raise MosecTimeoutError("gave up")

    answers = run(awaiting(forward), json_tasks(1), max_batch_size=max_batch_size)
    assert answers == [(408, b"mosec timeout error: gave up")]


# -- batches -----------------------------------------------------------------------------------------------------------


def test_several_batches_run_at_a_time() -> None:
    counter = Counter()

    async def forward(self: Worker, batch: list[int]) -> list[int]:
        with counter:
            for _ in range(5):
                await asyncio.sleep(0)
            return [2 * item for item in batch]

    work = [json_tasks(*range(n, n + 3), first=n + 1) for n in range(0, 12, 3)]
    with ServerEnd() as server:
        server.send(*work)
        with runner_of(awaiting(forward), server, concurrency=2, max_batch_size=3) as runner:
            runner.serve()
    assert server.answers == {number + 1: ok(2 * number) for number in range(12)}
    assert counter.most == 2
    assert [len(reply.ids) for reply in server.results] == [3] * 4


def test_a_batch_that_fails_costs_only_its_culprits() -> None:
    calls = Recorder()

    async def forward(self: Worker, batch: list[int]) -> list[int]:
        calls(list(batch))
        await asyncio.sleep(0)
        for item in batch:
            if item < 0:
                raise ClientError(f"{item} is negative")
        return batch

    answers = run_batch(awaiting(forward), 1, -2, 3, 4)
    assert answers == [ok(1), (400, b"bad request: -2 is negative"), ok(3), ok(4)]
    assert calls.calls == [[1, -2, 3, 4], [1, -2], [3, 4], [1], [-2]]


def test_an_exception_in_the_result_list_and_a_wrong_length_are_told() -> None:
    async def with_error(self: Worker, batch: list[int]) -> list[Any]:
        return [ValidationError("odd") if item % 2 else item for item in batch]

    async def too_short(self: Worker, batch: list[int]) -> list[int]:
        return batch[1:]

    assert run_batch(awaiting(with_error), 1, 2) == [(422, b"request validation error: odd"), ok(2)]
    wrong = (500, b"internal error: forward returned 1 results for a batch of 2 items")
    assert run_batch(awaiting(too_short), 1, 2) == [wrong] * 2


def test_an_item_that_cannot_be_decoded_fails_alone() -> None:
    seen = Recorder()

    async def forward(self: Worker, batch: list[int]) -> list[int]:
        return seen(batch)  # type: ignore[no-any-return]

    answers = run(awaiting(forward), tasks(b"1", b"{", b"3"), max_batch_size=4)
    assert [code for code, _ in answers] == [200, 400, 200]
    assert seen.calls == [[1, 3]]


# -- time --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_batch_size", [1, 4])
def test_a_forward_that_takes_too_long_is_cancelled_and_answered_408(max_batch_size: int) -> None:
    cleaned: list[str] = []

    async def forward(self: Worker, item: Any) -> Any:
        try:
            await asyncio.sleep(PATIENCE)
        except Exception:
            cleaned.append("swallowed")
        finally:
            await asyncio.sleep(0)
            cleaned.append("cleaned up")

    answers = run(awaiting(forward), json_tasks(1), max_batch_size=max_batch_size, timeout=0.05)
    ((code, text),) = answers
    assert (code, text.partition(b";")[0]) == (408, b"mosec timeout error: `forward` took longer than 0.05 s")
    assert cleaned == ["cleaned up"]


def test_the_time_of_one_is_not_that_of_the_others() -> None:
    async def forward(self: Worker, item: float) -> float:
        await asyncio.sleep(item)
        return item

    answers = run(awaiting(forward), json_tasks(0.5, PATIENCE, 0.5, 0.5, 0.5), concurrency=2, timeout=1.2)
    assert [code for code, _ in answers] == [200, LATE, 200, 200, 200]


@pytest.mark.parametrize("streams", [False, True])
def test_what_was_done_in_time_is_answered_though_another_has_blocked_the_loop(streams: bool) -> None:
    waiting: list[bool] = []

    async def nap() -> None:
        waiting.append(True)
        await asyncio.sleep(0.01)

    async def wait(item: str) -> None:
        if item == "waits":
            await asyncio.gather(asyncio.wait_for(nap(), PATIENCE))
        else:
            while not waiting:
                await asyncio.sleep(0)
            time.sleep(0.3)

    async def forward(self: Worker, item: str) -> str:
        await wait(item)
        return item

    async def events(item: str) -> AsyncIterator[str]:
        await wait(item)
        yield item

    worker = yielding(events) if streams else awaiting(forward)
    answers = run(worker, json_tasks("waits", "blocks"), concurrency=2, timeout=0.1)
    assert answers == ([ENDED] * 2 if streams else [ok("waits"), ok("blocks")])


@pytest.mark.parametrize("error", UNUSUAL)
def test_whatever_is_raised_on_a_batch_costs_only_its_culprits(error: type[BaseException]) -> None:
    async def forward(self: Worker, batch: list[int]) -> list[int]:
        await asyncio.sleep(0)
        if 3 in batch:
            raise error("three")
        return batch

    answers = run_batch(awaiting(forward), 1, 2, 3, 4)
    assert answers == [ok(1), ok(2), INTERNAL, ok(4)]


def test_a_batch_that_takes_too_long_is_not_run_again() -> None:
    calls = Recorder()

    async def forward(self: Worker, batch: list[int]) -> list[int]:
        calls(batch)
        await asyncio.sleep(PATIENCE)
        return batch

    assert [code for code, _ in run_batch(awaiting(forward), 1, 2, timeout=0.05)] == [LATE, LATE]
    assert len(calls.calls) == 1


@pytest.mark.parametrize("max_batch_size", [1, 4])
def test_a_forward_that_goes_on_though_it_was_cancelled_is_answered_and_holds_up_nobody(
    max_batch_size: int, logged: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(async_runner, "CLEANING_SECONDS", 0.2)
    ended: list[bool] = []

    async def forward(self: Worker, item: Any) -> Any:
        if item in (1, [1]):
            while not any(record.levelno == logging.ERROR for record in logged.records):
                try:
                    await asyncio.sleep(0.01)
                except asyncio.CancelledError:
                    continue
            ended.append(True)
        else:
            await common.until(lambda: ended)
        return item

    server = ServerEnd()
    server.on_answer = lambda number: server.send(json_tasks(2, first=2)) if number == 1 else None
    served(awaiting(forward), json_tasks(1), server=server, max_batch_size=max_batch_size, timeout=0.6)
    assert [server.answers[1][0], server.answers[2]] == [LATE, ok(2)]
    assert any("goes on though it was cancelled" in record.getMessage() for record in logged.records)


async def end_in_the_turn_in_which_it_is_given_up() -> None:
    """Come back in a turn of the loop in which its time to end is over as well."""

    def wake() -> None:
        woken.set_result(None)
        time.sleep(CANCEL_SECONDS)

    loop = asyncio.get_running_loop()
    woken = loop.create_future()
    loop.call_later(CANCEL_SECONDS / 2, wake)
    await woken
    # Other loops look at the time between two turns.
    time.sleep(0.01)


@pytest.mark.parametrize("leaves", [False, True])
@pytest.mark.parametrize("max_batch_size", [1, 4])
def test_a_unit_that_ends_in_the_turn_in_which_it_is_given_up_is_answered_once(
    max_batch_size: int, leaves: bool, logged: pytest.LogCaptureFixture
) -> None:
    async def forward(self: Worker, item: Any) -> Any:
        if leaves:
            server.cancel(1, 2)
        try:
            await asyncio.sleep(PATIENCE)
        finally:
            await end_in_the_turn_in_which_it_is_given_up()

    server = ServerEnd()
    timeout = PATIENCE if leaves else 0.05
    served(awaiting(forward), json_tasks(1, 2), server=server, timeout=timeout, max_batch_size=max_batch_size)
    assert {code for code, _ in server.answers.values()} == {LEFT[0] if leaves else LATE}
    assert not [record for record in logged.records if record.levelno > logging.INFO]


@pytest.mark.parametrize("leaves", [False, True])
def test_a_stream_that_ends_in_the_turn_in_which_it_is_given_up_is_answered_once(leaves: bool) -> None:
    async def forward(item: Any) -> AsyncIterator[str]:
        try:
            yield "a"
            await asyncio.sleep(PATIENCE)
        finally:
            await end_in_the_turn_in_which_it_is_given_up()

    server = ServerEnd(on_event=lambda number, payload: server.cancel(number) if leaves else None)
    served(yielding(forward), json_tasks(1, 2), server=server, timeout=PATIENCE if leaves else 0.05)
    assert {code for code, _ in server.answers.values()} == {LEFT[0] if leaves else LATE}


@pytest.mark.parametrize("leaves", [False, True])
def test_a_forward_that_takes_its_time_to_clean_up_is_answered_in_time_and_not_blamed(
    leaves: bool, logged: pytest.LogCaptureFixture
) -> None:
    cleaned: list[bool] = []

    async def forward(self: Worker, item: Any) -> Any:
        if item == 2:
            # Begun once the first has been given up.
            await common.until(lambda: cleaned)
            return item
        if leaves:
            server.cancel(1)
        try:
            await asyncio.sleep(PATIENCE)
        finally:
            await asyncio.sleep(2 * CANCEL_SECONDS)
            cleaned.append(True)

    def answered(number: int) -> None:
        if number == 1:
            assert not cleaned

    server = ServerEnd(on_answer=answered)
    served(awaiting(forward), json_tasks(1, 2), server=server, timeout=PATIENCE if leaves else 4 * CANCEL_SECONDS)
    assert server.answers == {1: LEFT if leaves else server.answers[1], 2: ok(2)}
    assert cleaned
    assert [record.levelno for record in logged.records] == ([] if leaves else [logging.INFO])


def test_a_fault_of_ours_is_an_answer_too(logged: pytest.LogCaptureFixture) -> None:
    async def forward(self: Worker, item: Any) -> Any:
        # Nothing can tell this from the end of the coroutine.
        raise GeneratorExit

    assert run(awaiting(forward), json_tasks(1, 2)) == [INTERNAL] * 2


def test_a_forward_that_swallows_its_cancellation_and_returns_is_late_all_the_same() -> None:
    async def forward(self: Worker, item: Any) -> Any:
        try:
            await asyncio.sleep(PATIENCE)
        except asyncio.CancelledError:
            return item

    assert run(awaiting(forward), json_tasks(1), timeout=0.05)[0][0] == LATE


def test_a_generator_that_swallows_its_cancellation_and_ends_is_late_all_the_same() -> None:
    async def forward(item: Any) -> AsyncIterator[str]:
        yield "a"
        try:
            await asyncio.sleep(PATIENCE)
        except asyncio.CancelledError:
            return

    server = served(yielding(forward), json_tasks(1), timeout=0.05)
    assert (server.events[1], server.answers[1][0]) == (data("a"), LATE)


def test_the_worker_gives_signs_of_life_while_it_awaits_and_none_while_it_is_blocked() -> None:
    beats: dict[str, int] = {}

    def note() -> int:
        return server.begun().beats

    async def forward(self: Worker, item: str) -> None:
        before = note()
        if item == "awaits":
            await common.until(lambda: note() > before)
        else:
            time.sleep(3 * BEAT_SECONDS)
            beats["blocked"] = note() - before

    server = ServerEnd()
    served(awaiting(forward), json_tasks("awaits", "blocks"), server=server)
    assert beats == {"blocked": 0}


# -- clients that leave ------------------------------------------------------------------------------------------------


def test_a_request_whose_client_leaves_is_cancelled_and_the_others_go_on() -> None:
    cleaned = Recorder()

    async def forward(self: Worker, item: int) -> int:
        if item == 1:
            server.cancel(1)
            try:
                await asyncio.sleep(PATIENCE)
            finally:
                cleaned(item)
        await common.until(lambda: 1 in server.answers)
        return item

    server = ServerEnd()
    served(awaiting(forward), json_tasks(1, 2, 3), server=server, concurrency=2)
    assert server.answers == {1: LEFT, 2: ok(2), 3: ok(3)}
    assert cleaned.calls == [1]


def test_a_batch_is_cancelled_only_when_all_its_clients_have_left() -> None:
    async def forward(self: Worker, batch: list[int]) -> list[int]:
        server.cancel(1)
        await common.until(lambda: self.is_cancelled(0))
        if 3 in batch:
            return batch
        server.cancel(2)
        await asyncio.sleep(PATIENCE)
        raise AssertionError("nobody is left")

    for values, expected in (((1, 2, 3), {2: ok(2), 3: ok(3)}), ((1, 2), {1: LEFT, 2: LEFT})):
        server = ServerEnd()
        served(awaiting(forward), json_tasks(*values), server=server, max_batch_size=4)
        assert expected.items() <= server.answers.items()


def test_one_that_waits_is_not_run_once_its_client_has_left() -> None:
    seen = Recorder()

    async def forward(self: Worker, item: int) -> int:
        seen(item)
        if item == 1:
            server.cancel(2, 3)
            await common.until(lambda: server.port.cancelled)
        return item

    server = ServerEnd()
    served(awaiting(forward), json_tasks(1, 2, 3, 4), server=server)
    assert server.answers == {1: ok(1), 2: LEFT, 3: LEFT, 4: ok(4)}
    assert seen.calls == [1, 4]
    assert server.progress.begun == 4


def test_one_whose_client_leaves_before_its_first_step_is_not_run() -> None:
    seen = Recorder()

    async def forward(self: Worker, item: int) -> int:
        seen(item)
        if item == 1:
            # Without a step of the loop: the second is begun, then cancelled, and has not run yet.
            server.send(json_tasks(2, first=2))
            until(lambda: self.is_cancelled() or server.begun().begun == 2)
            server.cancel(2)
            until(lambda: self.is_cancelled() or server.port.cancelled)
        return item

    server = ServerEnd()
    served(awaiting(forward), json_tasks(1), server=server, concurrency=2)
    assert server.answers == {1: ok(1), 2: LEFT}
    assert seen.calls == [1]


def test_what_comes_while_forward_asks_for_its_client_is_begun() -> None:
    """It is taken in by the asking, and nothing else comes behind it."""

    async def forward(self: Worker, item: int) -> int:
        if item == 1:
            server.send(json_tasks(2, first=2))
            until(lambda: self.is_cancelled() or len(server.port._held) == 2)
            await common.until(lambda: 2 in server.answers)
        return item

    server = ServerEnd()
    served(awaiting(forward), json_tasks(1), server=server, concurrency=2)
    assert list(server.answers) == [2, 1]


def test_forward_can_ask_for_each_item_and_those_beside_it_are_not_meant() -> None:
    asked: dict[int, list[bool]] = {}

    async def forward(self: Worker, batch: list[int]) -> list[int]:
        if 1 in batch:
            server.cancel(2)
        await common.until(lambda: server.port.cancelled)
        asked[batch[0]] = [self.is_cancelled(index) for index in range(-1, 3)]
        await common.until(lambda: len(asked) == 2)
        return batch

    server = ServerEnd()
    with server, runner_of(awaiting(forward), server, concurrency=2, max_batch_size=2) as runner:
        server.send(json_tasks(1, 2), json_tasks(3, 4, first=3))
        runner.serve()
    assert asked == {1: [False, False, True, False], 3: [False, False, False, False]}


def test_what_runs_for_nobody_in_particular_cannot_ask() -> None:
    async def forward(self: Worker, item: Any) -> str:
        with pytest.raises(RuntimeError, match="only by `forward`"):
            contextvars.Context().run(self.is_cancelled)
        return "told"

    assert run(awaiting(forward), json_tasks(1)) == [ok("told")]


# -- streams -----------------------------------------------------------------------------------------------------------


def test_each_yield_of_an_asynchronous_generator_is_an_event_of_its_own_stream() -> None:
    async def forward(item: int) -> AsyncIterator[Any]:
        for number in range(item):
            yield f"{item}-{number}"
            await asyncio.sleep(0)
        yield Event(b"last", id="9")

    server = served(yielding(forward), json_tasks(0, 1, 2, 3), concurrency=3)
    for task_id, item in enumerate(range(4), 1):
        expected = b"".join(data(*(f"{item}-{number}" for number in range(item)))).decode()
        assert server.texts(task_id) == expected + "data: last\nid: 9\n\n"
    assert set(server.answers.values()) == {ENDED}


def test_units_that_push_at_a_time_push_each_into_its_own_streams() -> None:
    async def forward(self: SSEWorker, batch: list[int]) -> None:
        for _ in range(3):
            for index, item in enumerate(batch):
                self.send_stream_event(f"{item}", index)
                await asyncio.sleep(0)

    server = ServerEnd()
    with server, runner_of(pushing(forward), server, concurrency=3, max_batch_size=2) as runner:
        server.send(*(json_tasks(n, n + 1, first=n) for n in (1, 3, 5)))
        runner.serve()
    assert server.events == {number: data(*[f"{number}"] * 3) for number in range(1, 7)}


def test_what_forward_starts_pushes_for_it_be_it_a_task_or_a_thread() -> None:
    async def forward(self: SSEWorker, item: int) -> None:
        await asyncio.gather(*(push(self, f"{item}") for _ in range(2)))
        await asyncio.to_thread(self.send_stream_event, f"{item} by a thread")
        assert not await asyncio.to_thread(self.is_cancelled)

    async def push(self: SSEWorker, text: str) -> None:
        await asyncio.sleep(0)
        self.send_stream_event(text)

    server = served(pushing(forward), json_tasks(1, 2, 3), concurrency=3)
    assert server.events == {n: data(f"{n}", f"{n}", f"{n} by a thread") for n in (1, 2, 3)}


@pytest.mark.parametrize("error", UNUSUAL)
def test_of_a_batch_of_generators_one_that_raises_ends_alone(error: type[BaseException]) -> None:
    async def events(item: str) -> AsyncIterator[str]:
        yield "a"
        await asyncio.sleep(0)
        if item == "raises":
            raise error
        yield "b"

    async def forward(self: Worker, batch: list[str]) -> list[AsyncIterator[str]]:
        return list(map(events, batch))

    worker = awaiting(forward, SSEWorker)
    server = served(worker, json_tasks("fine", "raises", "fine"), max_batch_size=3)
    assert server.events == {1: data("a", "b"), 2: data("a"), 3: data("a", "b")}
    assert server.answers == {1: ENDED, 2: INTERNAL, 3: ENDED}


def test_generators_of_a_batch_that_take_too_long_are_late_and_cleaned_up() -> None:
    cleaned: list[str] = []

    async def events(item: str) -> AsyncIterator[str]:
        try:
            yield "a"
            if item == "slow":
                await asyncio.sleep(PATIENCE)
            yield "b"
        finally:
            cleaned.append(item)

    async def forward(self: Worker, batch: list[str]) -> list[AsyncIterator[str]]:
        return list(map(events, batch))

    server = served(awaiting(forward, SSEWorker), json_tasks("slow", "quick"), max_batch_size=2, timeout=0.05)
    assert [server.answers[number][0] for number in (1, 2)] == [LATE, LATE]
    assert sorted(cleaned) == ["quick", "slow"]


def test_a_generator_keeps_its_context_from_one_event_to_the_next() -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)

    async def forward(item: int) -> AsyncIterator[str]:
        task = asyncio.current_task()
        for _ in range(3):
            variable.set(variable.get() + item)
            yield f"{variable.get()}"
            await asyncio.sleep(0)
            assert asyncio.current_task() is task

    server = served(yielding(forward), json_tasks(1, 10), concurrency=2)
    assert server.events == {1: data("1", "2", "3"), 2: data("10", "20", "30")}
    assert variable.get() == 0


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.timeout is younger")
def test_a_limit_of_time_that_a_generator_sets_holds_across_its_events() -> None:
    async def forward(item: Any) -> AsyncIterator[str]:
        try:
            async with asyncio.timeout(0.05):  # type: ignore[attr-defined]
                yield "a"
                await asyncio.sleep(PATIENCE)
        except TimeoutError:
            yield "over"

    server = served(yielding(forward), json_tasks(1))
    assert (server.events[1], server.answers) == (data("a", "over"), {1: ENDED})


def test_in_a_batch_streams_end_one_by_one() -> None:
    async def forward(batch: list[int]) -> AsyncIterator[Any]:
        yield ["a", "b", None]
        yield 0, FINISHED
        yield 1, ClientError("no")
        await common.until(lambda: set(server.answers) == {1, 2})
        yield 2, "c"

    server = ServerEnd()
    served(yielding(forward), json_tasks(1, 2, 3), server=server, max_batch_size=4)
    assert server.events == {1: data("a"), 2: data("b"), 3: data("c")}
    assert server.answers == {1: ENDED, 2: (400, b"bad request: no"), 3: ENDED}


def test_an_item_that_cannot_be_decoded_is_answered_before_the_streams_of_the_others_end() -> None:
    async def forward(self: SSEWorker, batch: list[int]) -> None:
        await common.until(lambda: 2 in server.answers)

    server = ServerEnd()
    served(pushing(forward), tasks(b"1", b"{", b"3"), server=server, max_batch_size=4)
    assert [server.answers[number][0] for number in (2, 1, 3)] == [400, 200, 200]


def test_a_batch_that_fails_before_its_first_event_costs_only_its_culprits() -> None:
    async def forward(batch: list[int]) -> AsyncIterator[Any]:
        await asyncio.sleep(0)
        if -2 in batch:
            raise ClientError("negative")
        for index, item in enumerate(batch):
            yield index, f"{item}"

    server = served(yielding(forward), json_tasks(1, -2, 3, 4), max_batch_size=4)
    assert server.answers == {1: ENDED, 2: (400, b"bad request: negative"), 3: ENDED, 4: ENDED}
    assert server.events == {1: data("1"), 2: [], 3: data("3"), 4: data("4")}


def test_a_batch_that_fails_after_an_event_is_not_run_again() -> None:
    calls = Recorder()

    async def forward(self: SSEWorker, batch: list[int]) -> None:
        calls(batch)
        self.send_stream_event("a", 1)
        await asyncio.sleep(0)
        raise ClientError("no")

    server = served(pushing(forward), json_tasks(1, 2), max_batch_size=4)
    assert server.answers == dict.fromkeys((1, 2), (400, b"bad request: no"))
    assert (server.events[2], len(calls.calls)) == (data("a"), 1)


@pytest.mark.parametrize("kind", ["yields", "pushes"])
def test_a_stream_may_take_longer_than_each_of_its_events(kind: str) -> None:
    async def forward(item: Any) -> AsyncIterator[str]:
        for number in range(5):
            await asyncio.sleep(0.3)
            yield f"{number}"

    async def push(self: SSEWorker, item: Any) -> None:
        for number in range(5):
            await asyncio.sleep(0.3)
            self.send_stream_event(f"{number}")

    server = served(yielding(forward) if kind == "yields" else pushing(push), json_tasks(1), timeout=1.0)
    assert (len(server.events[1]), server.answers) == (5, {1: ENDED})


@pytest.mark.parametrize("kind", ["yields", "pushes"])
def test_an_event_that_takes_too_long_ends_the_stream(kind: str) -> None:
    cleaned: list[bool] = []

    async def forward(item: Any) -> AsyncIterator[str]:
        try:
            yield "a"
            await asyncio.sleep(PATIENCE)
        finally:
            cleaned.append(True)

    async def push(self: SSEWorker, item: Any) -> None:
        try:
            self.send_stream_event("a")
            await asyncio.sleep(PATIENCE)
        finally:
            cleaned.append(True)

    server = served(yielding(forward) if kind == "yields" else pushing(push), json_tasks(1), timeout=0.1)
    assert (server.events[1], server.answers[1][0], cleaned) == (data("a"), LATE, [True])


def test_an_only_generator_waits_for_its_client_without_spending_its_time() -> None:
    made = Recorder()

    async def forward(item: Any) -> AsyncIterator[str]:
        for number in range(4):
            made(number)
            yield "x" * 100

    def read_late() -> None:
        until(lambda: server.events.get(1))
        time.sleep(0.4)
        ahead.append(len(made.calls))
        server.take_all(1)

    ahead: list[int] = []
    server = ServerEnd(buffer=50, reads=False)
    client = threading.Thread(target=read_late)
    client.start()
    served(yielding(forward), json_tasks(1), server=server, timeout=0.2)
    client.join()
    assert (server.events[1], server.answers) == (data("x" * 100) * 4, {1: ENDED})
    assert ahead == [1]


def test_streams_that_wait_for_their_clients_hold_up_nobody_and_each_is_woken() -> None:
    async def forward(item: int) -> AsyncIterator[str]:
        for _ in range(3):
            yield "x" * 100

    def take(number: int, payload: bytes) -> None:
        if number == 3:
            # While the first two wait.
            server.take(3, len(payload))
        if len(server.events[3]) == 3 and server.events[1] and server.events[2]:
            server.take_all(1)
            server.take_all(2)

    server = ServerEnd(buffer=50, reads=False, on_event=take)
    served(yielding(forward), json_tasks(1, 2, 3), server=server, concurrency=3)
    assert set(server.answers.values()) == {ENDED}
    assert next(iter(server.answers)) == 3


@pytest.mark.parametrize("kind", ["a batch", "pushes"])
def test_a_full_stream_that_cannot_wait_ends_and_the_others_go_on(kind: str) -> None:
    async def forward(batch: list[int]) -> AsyncIterator[Any]:
        for number in range(4):
            yield 0, "x" * 100
            yield 1, f"{number}"
            await common.until(lambda number=number: len(server.events[2]) == number + 1)  # type: ignore[misc]

    async def push(self: SSEWorker, batch: list[int]) -> None:
        async for index, event in forward(batch):
            self.send_stream_event(event, index)

    server = ServerEnd(buffer=50, reads=False)
    server.on_event = lambda number, payload: server.take(2, len(payload)) if number == 2 else None
    worker = yielding(forward) if kind == "a batch" else pushing(push)
    served(worker, json_tasks(1, 2), server=server, max_batch_size=4)
    assert server.answers == {1: TOO_SLOW, 2: ENDED}
    assert (server.events[1], server.events[2]) == (data("x" * 100), data("0", "1", "2", "3"))


@pytest.mark.parametrize("new_loop", [async_runner._new_loop, asyncio.new_event_loop], ids=["default", "asyncio"])
def test_streams_that_are_quicker_than_the_server_reads_lose_nothing(
    new_loop: Callable[[], asyncio.AbstractEventLoop], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Together they fill the pipe, though each is within its bounds."""

    async def forward(item: int) -> AsyncIterator[str]:
        for number in range(10):
            yield f"{item}-{number}" + "." * 100_000
            await asyncio.sleep(0)

    monkeypatch.setattr(async_runner, "_new_loop", new_loop)
    server = ServerEnd(on_event=lambda number, payload: time.sleep(0.002))
    served(yielding(forward), json_tasks(*range(8)), server=server, concurrency=8)
    assert set(server.answers.values()) == {ENDED}
    assert [len(server.events[number]) for number in range(1, 9)] == [10] * 8


def test_a_stream_whose_client_leaves_is_cancelled_and_cleans_up() -> None:
    cleaned: list[bool] = []

    async def forward(item: Any) -> AsyncIterator[str]:
        try:
            yield "a"
            await asyncio.sleep(PATIENCE)
        finally:
            await asyncio.sleep(0)
            cleaned.append(True)

    server = ServerEnd(on_event=lambda number, payload: server.cancel(number))
    served(yielding(forward), json_tasks(1), server=server)
    assert (server.answers, cleaned) == ({1: LEFT}, [True])


def test_a_client_that_leaves_while_its_stream_waits_for_it_ends_it() -> None:
    async def forward(item: Any) -> AsyncIterator[str]:
        while True:
            yield "x" * 100

    server = ServerEnd(buffer=50, reads=False, on_event=lambda number, payload: server.cancel(number))
    served(yielding(forward), json_tasks(1), server=server)
    assert (len(server.events[1]), server.answers) == (1, {1: LEFT})


def test_a_stream_of_a_batch_whose_client_leaves_ends_alone() -> None:
    async def forward(batch: list[int]) -> AsyncIterator[Any]:
        number = 0
        while 1 not in server.answers:
            yield [f"{number}", f"{number}"]
            await asyncio.sleep(0.001)
            number += 1
        yield 1, "last"

    server = ServerEnd(on_event=lambda number, payload: server.cancel(1) if len(server.events[1]) == 3 else None)
    served(yielding(forward), json_tasks(1, 2), server=server, max_batch_size=4)
    assert server.answers == {1: LEFT, 2: ENDED}
    assert server.events[2][-1:] == data("last")


def test_what_forward_does_after_the_end_of_its_stream_is_not_cut_off_by_another_client() -> None:
    done: list[int] = []

    async def forward(self: SSEWorker, item: int) -> None:
        if item == 1:
            self.send_stream_event(FINISHED)  # type: ignore[arg-type]
            server.cancel(2)
            await common.until(lambda: 2 in server.answers)
            await asyncio.sleep(0.01)
            done.append(item)
        elif item == 2:
            await asyncio.sleep(PATIENCE)
        else:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(common.until(lambda: done), 1.0)

    server = ServerEnd()
    served(pushing(forward), json_tasks(1, 2, 3), server=server, concurrency=3)
    assert server.answers == {1: ENDED, 2: LEFT, 3: ENDED}
    assert done == [1]


def test_an_error_of_the_cleaning_up_of_a_generator_is_logged(logged: pytest.LogCaptureFixture) -> None:
    async def forward(item: Any) -> AsyncIterator[Any]:
        try:
            yield FINISHED
        finally:
            raise ValueError("no cleaning up")

    assert served(yielding(forward), json_tasks(1, 2)).answers == {1: ENDED, 2: ENDED}
    messages = [record.getMessage() for record in logged.records]
    assert messages == ["closing a stream of forward failed: ValueError('no cleaning up')"] * 2


# -- its life ----------------------------------------------------------------------------------------------------------


def test_answered_tasks_are_told_to_the_worker_with_their_payloads() -> None:
    told_of: list[bytes] = []

    def answered(self: Worker, payloads: Any) -> None:
        told_of.extend(payloads)

    async def forward(self: Worker, item: int) -> int:
        return item

    run(awaiting(forward, _answered=answered), tasks(b"1", b"{", b"3"), concurrency=2)
    assert sorted(told_of) == [b"1", b"3", b"{"]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_worker_is_closed_on_its_loop(asynchronous: bool) -> None:
    closed: list[Any] = []

    def close(self: Worker) -> None:
        closed.append("closed")

    async def close_later(self: Worker) -> None:
        await asyncio.sleep(0)
        closed.append("closed")

    async def forward(self: Worker, item: int) -> int:
        return item

    worker = awaiting(forward, close=close_later if asynchronous else close)
    assert run(worker, json_tasks(1)) == [ok(1)]
    assert closed == ["closed"]


@pytest.mark.parametrize("max_batch_size", [1, 4])
def test_at_the_end_of_the_stream_what_runs_is_cancelled_once_and_waited_for_a_little(
    max_batch_size: int, logged: pytest.LogCaptureFixture
) -> None:
    notes: list[str] = []

    async def forward(self: Worker, item: Any) -> Any:
        notes.append("begun")
        server.end()
        try:
            await asyncio.sleep(PATIENCE)
        finally:
            await asyncio.sleep(0.01)
            notes.append("cleaned up")

    async def close(self: Worker) -> None:
        notes.append("closed")

    server = ServerEnd()
    worker = awaiting(forward, close=close)
    served(worker, json_tasks(1, 2), server=server, max_batch_size=max_batch_size, answers=False)
    assert notes == ["begun", "cleaned up", "closed"]
    assert not [record for record in logged.records if record.levelno >= logging.WARNING]


def test_a_forward_that_will_not_end_does_not_keep_the_worker_from_ending() -> None:
    async def forward(self: Worker, item: Any) -> Any:
        server.end()
        end = time.monotonic() + 4 * CANCEL_SECONDS
        while time.monotonic() < end:
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                continue

    server = ServerEnd()
    began = time.monotonic()
    with server:
        worker = awaiting(forward)
        with runner_of(worker, server) as runner:
            server.send(json_tasks(1))
            runner.serve()
            # Let it end, so that nothing is left of it.
            loop = runner._loop  # type: ignore[attr-defined]
            loop.run_until_complete(asyncio.sleep(4 * CANCEL_SECONDS))
    assert time.monotonic() - began < PATIENCE


@pytest.mark.parametrize("max_batch_size", [1, 4])
def test_the_events_of_a_rehearsal_go_nowhere(max_batch_size: int, logged: pytest.LogCaptureFixture) -> None:
    ran: list[Any] = []

    async def push(self: SSEWorker, item: Any) -> None:
        self.send_stream_event("a")
        assert not self.is_cancelled()
        await asyncio.sleep(0)
        ran.append(item)

    async def forward(item: Any) -> AsyncIterator[Any]:
        yield "a"
        ran.append(item)

    async def plain(self: Worker, item: Any) -> None:
        assert not self.is_cancelled()
        ran.append(item)

    for worker in (pushing(push), yielding(forward), awaiting(plain)):
        with ServerEnd() as server, runner_of(worker, server, max_batch_size=max_batch_size) as runner:
            runner.rehearse(7)
        assert server.frames == []
    assert ran == [7, 7, 7]
    assert not logged.records


def test_a_rehearsal_raises_what_forward_raises() -> None:
    async def forward(self: Worker, item: Any) -> Any:
        raise ValueError("no such layer")

    with (
        ServerEnd() as server,
        runner_of(awaiting(forward), server) as runner,
        pytest.raises(ValueError, match="no such layer"),
    ):
        runner.rehearse(1)


def test_a_runner_can_run_on_a_given_loop() -> None:
    async def forward(self: Worker, item: int) -> int:
        assert asyncio.get_running_loop() is loop
        return item

    loop = asyncio.new_event_loop()
    with ServerEnd() as server:
        spec = spec_of(awaiting(forward))
        runner = AsyncRunner(load(spec), spec, server.port, loop=loop)
        server.send(json_tasks(1))
        runner.serve()
        runner.close()
    assert server.answers == {1: ok(1)}
    assert loop.is_closed()


def test_a_fault_is_told_with_its_own_requests(logged: pytest.LogCaptureFixture) -> None:
    async def forward(self: Worker, item: int) -> int:
        await asyncio.sleep(0)
        raise ClientError(f"{item}")

    run(awaiting(forward), json_tasks(1, 2, 3), concurrency=3)
    assert sorted((*told(record, "request_id"), record.getMessage()) for record in logged.records) == [
        (f"r{n}", f"bad request: {n}") for n in (1, 2, 3)
    ]
