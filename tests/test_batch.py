"""The one algorithm that all runners drive: what they have in common is tried on each of them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from common import told
from fake_port import (
    BOTH,
    ENDED,
    INTERNAL,
    Recorder,
    ServerEnd,
    data,
    hang,
    json_tasks,
    ok,
    run,
    run_batch,
    runner_of,
    served,
    spec_of,
    tasks,
    worker_of,
)

from mosec_asgi.errors import ClientError
from mosec_asgi.inside.batch import BatchAlgorithm, Forward, Steps, Unit
from mosec_asgi.inside.codec import Codec
from mosec_asgi.inside.ending import Ending
from mosec_asgi.inside.isolation import Raised
from mosec_asgi.inside.loading import warm_up
from mosec_asgi.messages import EGRESS, EXAMPLE, INGRESS
from mosec_asgi.streaming import ContinuousWorker, SSEWorker
from mosec_asgi.worker import Worker

pytestmark = pytest.mark.usefixtures("logged")


class Panic(BaseException):
    """As libraries in Rust raise it."""


class Silent(BaseException):
    """An exception that cannot even be told."""

    def __str__(self) -> str:
        raise Panic("no text")

    def __repr__(self) -> str:
        raise Panic("no text")


class Strange(ClientError):
    """An error of ours whose status cannot be read."""

    @property
    def code(self) -> int:  # type: ignore[override]
        raise Panic("no code")


FOREIGN = [Panic, Silent, Strange, SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError]
foreign = pytest.mark.parametrize("error", FOREIGN)
# Nothing can tell what an asynchronous `forward` raises by itself from its being ended.
awaitable = pytest.mark.parametrize("error", [kind for kind in FOREIGN if kind is not GeneratorExit])


def failing(error: type[BaseException]) -> Callable[[Any], Any]:
    """Return a function that gives back what it gets, but for "bad"."""

    def check(item: Any) -> Any:
        if item == "bad":
            raise error("bad")
        return item

    return check


def assert_told_once(logged: pytest.LogCaptureFixture, *request_ids: str) -> None:
    """A fault is one record, at ERROR, with its traceback and requests."""
    (record,) = logged.records
    assert (record.levelname, *told(record, "request_id")) == ("ERROR", " ".join(request_ids))
    assert record.exc_info


# -- exceptions that are no `Exception` --------------------------------------------------------------------------------


@foreign
@pytest.mark.parametrize("method", ["deserialize", "forward", "serialize"])
@pytest.mark.parametrize("max_batch_size", [1, 4])
def test_whatever_is_raised_fails_its_own_request(
    error: type[BaseException], method: str, max_batch_size: int, logged: pytest.LogCaptureFixture
) -> None:
    check = failing(error)

    class Made(Worker):
        def deserialize(self, data: bytes) -> Any:
            item = super().deserialize(data)
            return check(item) if method == "deserialize" else item

        def forward(self, data: Any) -> Any:
            if method != "forward":
                return data
            return [check(item) for item in data] if max_batch_size > 1 else check(data)

        def serialize(self, data: Any) -> bytes:
            return super().serialize(check(data) if method == "serialize" else data)

    answers = run(Made, json_tasks("a", "bad", "b"), max_batch_size=max_batch_size)
    assert answers == [ok("a"), INTERNAL, ok("b")]
    assert_told_once(logged, "r2")


@awaitable
@pytest.mark.parametrize("max_batch_size", [1, 4])
def test_whatever_an_asynchronous_forward_raises_fails_its_own_request(
    error: type[BaseException], max_batch_size: int, logged: pytest.LogCaptureFixture
) -> None:
    check = failing(error)

    class Made(Worker):
        async def forward(self, data: Any) -> Any:
            await asyncio.sleep(0.01)
            return [check(item) for item in data] if max_batch_size > 1 else check(data)

    answers = run(Made, json_tasks("a", "bad", "b"), max_batch_size=max_batch_size, concurrency=3)
    assert answers == [ok("a"), INTERNAL, ok("b")]
    assert_told_once(logged, "r2")


@awaitable
def test_whatever_a_task_of_forward_raises_fails_its_own_request(
    error: type[BaseException], logged: pytest.LogCaptureFixture
) -> None:
    """Of these, asyncio lets some through to whoever runs the loop."""
    check = failing(error)

    async def step(item: Any) -> Any:
        await asyncio.sleep(0)
        return check(item)

    class Made(Worker):
        async def forward(self, data: Any) -> Any:
            (result,) = await asyncio.gather(asyncio.create_task(step(data)))
            await asyncio.sleep(0.01)
            return result

    answers = run(Made, json_tasks("a", "bad", "b"), concurrency=3)
    assert answers == [ok("a"), INTERNAL, ok("b")]
    assert_told_once(logged, "r2")


@awaitable
@pytest.mark.parametrize("asynchronous", [False, True])
def test_whatever_a_generator_raises_ends_its_own_stream(
    error: type[BaseException], asynchronous: bool, logged: pytest.LogCaptureFixture
) -> None:
    check = failing(error)

    class Plain(SSEWorker):
        def forward(self, data: str) -> Iterator[str]:
            yield "first"
            yield check(data)

    class Awaiting(SSEWorker):
        async def forward(self, data: str) -> AsyncIterator[str]:
            yield "first"
            await asyncio.sleep(0.01)
            yield check(data)

    server = served(Awaiting if asynchronous else Plain, json_tasks("a", "bad", "b"), concurrency=3)
    assert server.answers == {1: ENDED, 2: INTERNAL, 3: ENDED}
    assert server.events == {1: data("first", "a"), 2: data("first"), 3: data("first", "b")}
    assert_told_once(logged, "r2")


@foreign
def test_whatever_is_raised_while_a_generator_is_closed_is_logged(
    error: type[BaseException], logged: pytest.LogCaptureFixture
) -> None:
    class Made(SSEWorker):
        def forward(self, data: str) -> Iterator[Any]:
            try:
                yield self.FINISHED
            finally:
                raise error("bad")

    expected = {1: ENDED, 2: ENDED}
    assert served(Made, json_tasks("a", "b")).answers == expected
    # A generator may end like this.
    assert len(logged.records) == (0 if error is GeneratorExit else 2)


@foreign
def test_an_event_that_cannot_be_given_its_form_ends_its_own_stream(error: type[BaseException]) -> None:
    class Bytes(bytearray):
        def decode(self, *args: Any) -> str:
            raise error("bad")

    class Text(str):
        def encode(self, *args: Any) -> bytes:
            raise error("bad")

    class Made(SSEWorker):
        def forward(self, data: str) -> Iterator[Any]:
            yield Text(data) if data == "bad" else data

    assert served(Made, json_tasks("a", "bad", "b")).answers == {1: ENDED, 2: INTERNAL, 3: ENDED}


class Spell(ContinuousWorker):
    """Spells two letters for each request; fails where it is told to."""

    error: type[BaseException]

    def __init__(self) -> None:
        self.left: dict[str, int] = {}

    def admit(self, item: str) -> str:
        if item == "admit":
            raise self.error("bad")
        self.left[item] = 2
        return item

    def step(self) -> Iterator[tuple[str, Any]]:
        if "step" in self.left:
            raise self.error("bad")
        for slot in list(self.left):
            self.left[slot] -= 1
            yield slot, "x" if self.left[slot] else self.FINISHED

    def evict(self, slot: str) -> None:
        del self.left[slot]
        if slot == "evict":
            raise self.error("bad")


@foreign
@pytest.mark.parametrize(("method", "answer"), [("admit", INTERNAL), ("evict", ENDED)])
def test_whatever_is_raised_for_one_request_of_a_continuous_batch_is_its_own_matter(
    error: type[BaseException], method: str, answer: Any, logged: pytest.LogCaptureFixture
) -> None:
    worker = type("Made", (Spell,), {"error": error})
    server = served(worker, json_tasks("a", method, "b"), max_batch_size=4)
    assert server.answers == {1: ENDED, 2: answer, 3: ENDED}
    assert len(logged.records) == 1


@foreign
def test_whatever_a_step_raises_ends_the_streams_that_it_was_for(
    error: type[BaseException], logged: pytest.LogCaptureFixture
) -> None:
    worker = type("Made", (Spell,), {"error": error})
    server = served(worker, json_tasks("a", "step", "b"), max_batch_size=2)
    assert server.answers == {1: INTERNAL, 2: INTERNAL, 3: ENDED}
    assert_told_once(logged, "r1", "r2")


@foreign
def test_whatever_an_example_raises_the_worker_serves(error: type[BaseException]) -> None:
    worker = worker_of(failing(error), example="bad")
    with ServerEnd() as server, runner_of(worker, server) as runner:
        warm_up(runner, ["bad"], spec_of(worker))
        server.send(json_tasks("a"))
        runner.serve()
    assert server.answers == {1: ok("a")}


@foreign
def test_whatever_the_example_of_a_dry_run_raises_is_its_answer(error: type[BaseException]) -> None:
    class Made(Worker):
        @property
        def example(self) -> Any:
            raise error("bad")

        def forward(self, data: Any) -> Any:
            return data

    assert run(Made, tasks(b"", flags=EXAMPLE | EGRESS)) == [INTERNAL]


async def _echo(self: Worker, data: Any) -> Any:
    return data


FORMATS = {"deserialize": BOTH, "serialize": BOTH, "deserialize_ipc": EGRESS, "serialize_ipc": INGRESS}


@pytest.mark.parametrize("method", FORMATS)
@pytest.mark.parametrize("max_batch_size", [1, 3])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_format_that_hangs_costs_its_own_item_only(method: str, max_batch_size: int, asynchronous: bool) -> None:
    def convert(self: Worker, data: Any) -> Any:
        text = data if isinstance(data, str) else bytes(data).decode()
        if text == "hangs":
            hang()
        return text if method.startswith("de") else text.encode()

    plain = {"deserialize": lambda self, data: bytes(data).decode(), "serialize": lambda self, data: data.encode()}
    worker = worker_of(lambda data: data, **{**plain, method: convert})
    if asynchronous:
        worker = type("Made", (worker,), {"forward": _echo})
    work = tasks(b"fine", b"hangs", b"too", flags=FORMATS[method])
    options = {"max_batch_size": max_batch_size, "timeout": 0.2, "concurrency": 3 if asynchronous else 1}
    answers = run(worker, work, **options)
    code, text = answers.pop(1)
    assert (code, text.partition(b";")[0]) == (
        408,
        b"mosec timeout error: `%s` took longer than 0.2 s" % method.encode(),
    )
    assert answers == [(200, b"fine"), (200, b"too")]


# -- what it asks for --------------------------------------------------------------------------------------------------


class Clock:
    """A clock that stands still until it is moved."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def steps_of(server: ServerEnd, clock: Clock, *values: Any, timeout: float = 1.0) -> Steps:
    """Return what the algorithm does with a batch."""
    spec = spec_of(worker_of(lambda batch: batch), max_batch_size=64, timeout=timeout)
    work = json_tasks(*values)
    server.send(work)
    server.port.wait_for_tasks()
    codec = Codec(spec.worker(), spec)
    return BatchAlgorithm(spec, codec, server.port, clock).run(Unit(server.port.tasks.popleft(), range(len(values))))


def test_a_batch_asks_for_one_call_and_answers_each_task() -> None:
    with ServerEnd() as server:
        steps = steps_of(server, Clock(), 1, 2)
        assert next(steps) == Forward([1, 2])
        with pytest.raises(StopIteration):
            steps.send([3, 4])
    assert server.answers == {1: ok(3), 2: ok(4)}


def test_the_search_for_culprits_takes_as_long_again_as_one_call_may_and_no_longer() -> None:
    clock = Clock()
    calls = []
    with ServerEnd() as server:
        steps = steps_of(server, clock, *range(8), timeout=10.0)
        came: Any = None
        with contextlib.suppress(StopIteration):
            while isinstance(wanted := steps.send(came), Forward):
                calls.append(wanted.data)
                clock.now += 3.0
                # The first half is fine.
                came = wanted.data if max(wanted.data) < 4 else Raised(ClientError("no"))
    # After the first call, at 3 s, there are 10 s for more: those begun at 3, 6, 9 and 12 s.
    assert len(calls) == 1 + 4
    assert [server.answers[number] for number in (1, 2, 3, 4)] == [ok(value) for value in range(4)]
    assert {server.answers[number][0] for number in (5, 6, 7, 8)} == {400}


def changing(batch: list[dict[str, int]]) -> list[int]:
    """Change each item in place, and the list as well, and fail at the last one if it is bad."""
    results = []
    while batch:
        item = batch.pop(0)
        item["n"] += 1
        results.append(item["n"])
    if 0 in results:
        raise ValueError("bad")
    return results


class ChangingLater(Worker):
    async def forward(self, data: list[dict[str, int]]) -> list[int]:
        await asyncio.sleep(0)
        return changing(data)


@pytest.mark.parametrize("worker", [worker_of(changing), ChangingLater])
@pytest.mark.parametrize("bad", [None, 0, 2, 3])
def test_what_forward_changes_of_a_batch_before_it_fails_changes_no_answer(
    worker: type[Worker], bad: int | None
) -> None:
    items = [{"n": 10 * (place + 1)} for place in range(4)]
    right = [ok(item["n"] + 1) for item in items]
    if bad is not None:
        items[bad]["n"], right[bad] = -1, INTERNAL
    assert run_batch(worker, *items) == right


def test_an_item_that_cannot_be_decoded_again_fails_alone() -> None:
    decoded = Recorder()

    class Once(Worker):
        def deserialize(self, data: bytes) -> Any:
            decoded(data)
            if data == b"2" and decoded.calls.count(data) > 1:
                raise ClientError("only once")
            return super().deserialize(data)

        def forward(self, batch: list[int]) -> list[int]:
            if len(batch) > 1:
                raise ValueError("too many")
            return batch

    assert [code for code, _ in run_batch(Once, 1, 2, 3)] == [200, 400, 200]


def test_a_batch_that_fails_slowly_again_and_again_does_not_hold_up_its_worker() -> None:
    calls = Recorder()

    def forward(batch: list[int]) -> Any:
        calls(batch)
        time.sleep(0.2)
        raise ValueError("no")

    assert run_batch(worker_of(forward), *range(16), timeout=0.5) == [INTERNAL] * 16
    assert len(calls.calls) <= 5


@pytest.mark.parametrize("kind", ["plain", "asynchronous"])
def test_a_generator_that_a_forward_of_either_kind_returns_is_its_stream(kind: str) -> None:
    def events(item: int) -> Iterator[str]:
        yield f"{item}"

    class Plain(SSEWorker):
        def forward(self, data: int) -> Any:
            return events(data)

    class Awaiting(SSEWorker):
        async def forward(self, data: int) -> Any:
            await asyncio.sleep(0)
            return events(data)

    server = served(Plain if kind == "plain" else Awaiting, json_tasks(1, 2))
    assert server.events == {1: data("1"), 2: data("2")}


def test_an_asynchronous_generator_that_nothing_could_run_is_an_error_that_says_what_to_do() -> None:
    class Made(SSEWorker):
        def forward(self, data: int) -> Any:
            async def events() -> AsyncIterator[str]:
                yield "never"

            return events()

    ((code, text),) = served(Made, json_tasks(1)).answers.values()
    assert code == 500
    assert b"`async def`" in text


@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_ends_the_worker_passes_through_its_code(asynchronous: bool) -> None:
    class Plain(Worker):
        def forward(self, data: Any) -> Any:
            raise Ending

    class Awaiting(Worker):
        async def forward(self, data: Any) -> Any:
            raise Ending

    with pytest.raises(Ending):
        served(Awaiting if asynchronous else Plain, json_tasks(1), answers=False)
