"""Inline workers: a server without processes, and what a test can have its workers do."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import os
import random
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import pytest
from fakes import told
from starlette.applications import Starlette
from starlette.routing import Mount

from mosec_asgi import ClientError, ContinuousWorker, Server, SSEWorker, Worker, get_logger, testing
from mosec_asgi.errors import DefinitionError, MosecError, ServerError, StartupError
from mosec_asgi.testing import InlineService


def on_virtual_time(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        testing.run(test(*args, **kwargs))

    return run


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    # What tests before have left to the collector is not this one's.
    gc.collect()
    threads, descriptors = set(threading.enumerate()), open_descriptors()
    yield
    gc.collect()
    assert set(threading.enumerate()) == threads
    assert open_descriptors() == descriptors


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0


def now() -> float:
    return asyncio.get_running_loop().time()


# -- workers of every kind ---------------------------------------------------------------------------------------------


class Double(Worker):
    example = 1

    def forward(self, data: Any) -> Any:
        return data * 2


class Increment(Worker):
    example = [1, 2]

    def forward(self, data: list[int]) -> list[Any]:
        return [ClientError("no zero") if item == 0 else item + 1 for item in data]


class Wait(Worker):
    example = 0

    async def forward(self, data: float) -> float:
        await asyncio.sleep(data)
        return data


class Count(SSEWorker):
    example = 1

    def forward(self, data: int) -> Iterator[str]:
        yield from map(str, range(data))


class Push(SSEWorker):
    example = 1

    def forward(self, data: int) -> None:
        for number in range(data):
            self.send_stream_event(str(number))


class CountAll(SSEWorker):
    def forward(self, data: list[int]) -> Iterator[list[Any]]:
        for number in range(max(data)):
            yield [str(number) if number < item else None for item in data]


class Tick(SSEWorker):
    example = 1

    async def forward(self, data: int) -> AsyncIterator[str]:
        for number in range(data):
            await asyncio.sleep(0.5)
            yield str(number)


class Countdown(ContinuousWorker):
    def __init__(self) -> None:
        self.left: dict[int, int] = {}

    def admit(self, item: int) -> int:
        slot = next(slot for slot in range(4) if slot not in self.left)
        self.left[slot] = item
        return slot

    def step(self) -> Iterator[tuple[int, Any]]:
        for slot in self.left:
            self.left[slot] -= 1
            yield slot, str(self.left[slot])
            if not self.left[slot]:
                yield slot, self.FINISHED

    def evict(self, slot: int) -> None:
        del self.left[slot]


def events(*numbers: int) -> str:
    return "".join(f"data: {number}\n\n" for number in numbers)


def served(worker: type[Worker], /, settings: dict[str, Any] | None = None, **options: Any) -> InlineService:
    server = Server(**(settings or {}))
    server.append_worker(worker, **options)
    return testing.serving(server)


@pytest.mark.parametrize(
    ("worker", "options", "body", "answer"),
    [
        (Double, {}, 4, "8"),
        (Increment, {"max_batch_size": 4}, 4, "5"),
        (Wait, {}, 0.5, "0.5"),
        (Wait, {"concurrency": 4}, 0.5, "0.5"),
        (Count, {}, 3, events(0, 1, 2)),
        (Push, {}, 3, events(0, 1, 2)),
        (CountAll, {"max_batch_size": 4}, 3, events(0, 1, 2)),
        (Tick, {}, 3, events(0, 1, 2)),
        (Countdown, {"max_batch_size": 4}, 3, events(2, 1, 0)),
    ],
    ids=["plain", "batch", "async", "concurrent", "generator", "pushed", "stream batch", "async stream", "continuous"],
)
@on_virtual_time
async def test_every_kind_of_worker_can_be_served(
    worker: type[Worker], options: dict[str, Any], body: Any, answer: str
) -> None:
    async with served(worker, **options) as service:
        response = await service.client.post("/inference", json=body)
        assert (response.status_code, response.text) == (200, answer)
        assert service.worker(worker).calls == (
            [[body]] if options.get("max_batch_size") and answer != events(2, 1, 0) else [body]
        )
        assert service.worker(worker).starts == 1


@on_virtual_time
async def test_requests_pass_all_stages() -> None:
    server = Server(timeout=3_600_000)
    server.append_worker(Double, num=2)
    server.append_worker(Wait)
    server.append_worker(Increment, max_batch_size=8)
    async with testing.serving(server) as service:
        responses = await asyncio.gather(*(service.client.post("/inference", json=n) for n in range(20)))
    assert [response.status_code for response in responses] == [400] + [200] * 19
    assert [response.json() for response in responses[1:]] == [2 * n + 1 for n in range(1, 20)]


@on_virtual_time
async def test_concurrent_requests_share_a_batch() -> None:
    async with served(Increment, max_batch_size=4, max_wait_time=50) as service:
        responses = await asyncio.gather(*(service.client.post("/inference", json=n) for n in range(4)))
        assert [response.status_code for response in responses] == [400, 200, 200, 200]
        assert service.worker("Increment").calls == [[0, 1, 2, 3]]


@on_virtual_time
async def test_a_wait_takes_no_time_and_passes_all_the_same() -> None:
    async with served(Wait, {"timeout": 10_000_000}) as service:
        began = now()
        assert (await service.client.post("/inference", json=3600)).json() == 3600
        assert now() - began == pytest.approx(3600)


async def test_it_works_in_real_time_too() -> None:
    async with served(Double) as service:
        assert (await service.client.post("/inference", json=4)).json() == 8
        service.worker(Double).crash()
        while service.worker(Double).starts < 2:
            await asyncio.sleep(0.001)
        assert (await service.client.post("/inference", json=4)).json() == 8


@pytest.mark.parametrize("worker", [Double, Wait])
@on_virtual_time
async def test_what_does_not_fit_into_a_pipe_at_once_comes_through(worker: type[Worker]) -> None:
    class Twice(worker):  # type: ignore[misc,valid-type]
        if worker is Double:

            def forward(self, data: Any) -> Any:
                return data * 2
        else:

            async def forward(self, data: Any) -> Any:
                return data * 2

    async with served(Twice) as service:
        body = "x" * 3_000_000
        assert (await service.client.post("/inference", json=body)).json() == body * 2


# -- its surroundings --------------------------------------------------------------------------------------------------


class Where(Worker):
    def __init__(self) -> None:
        self.where = os.environ.get("PLACE")

    def forward(self, data: Any) -> Any:
        return [self.where, self.worker_id, self.stage, threading.current_thread() is threading.main_thread()]


@on_virtual_time
async def test_a_worker_is_loaded_as_in_its_process() -> None:
    async with served(Where, num=2, env=[{"PLACE": "here"}, {"PLACE": "there"}]) as service:
        responses = await asyncio.gather(*(service.client.post("/inference", json=n) for n in range(2)))
    assert [response.json() for response in responses] == [
        ["here", 1, "Where_1", False],
        ["there", 2, "Where_1", False],
    ]
    assert "PLACE" not in os.environ


class Speak(Worker):
    def forward(self, data: str) -> str:
        get_logger().info("plain")
        return data


class SpeakLater(Worker):
    async def forward(self, data: str) -> str:
        get_logger().info("asynchronous")
        return data


@on_virtual_time
async def test_a_workers_log_lines_say_whose_they_are(logged: pytest.LogCaptureFixture) -> None:
    server = Server()
    server.append_worker(Speak)
    server.append_worker(SpeakLater)
    async with testing.serving(server) as service:
        await service.client.post("/inference", json="a", headers={"x-request-id": "r1"})
    assert [
        told(record, "stage", "worker", "request_id") for record in logged.records if record.name == "mosec_asgi.user"
    ] == [("Speak_1", 1, "r1"), ("SpeakLater_2", 1, "r1")]


@on_virtual_time
async def test_settings_of_the_environment_apply(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOSEC_TIMEOUT", "700")
    async with served(Wait) as service:
        began = now()
        assert (await service.client.post("/inference", json=60)).status_code == 408
        assert now() - began == pytest.approx(0.7, abs=0.01)


@on_virtual_time
async def test_an_app_that_the_server_is_mounted_in_can_be_tested() -> None:
    server = Server()
    server.append_worker(Double)
    app = Starlette(routes=[Mount("/ml", server)], lifespan=server.lifespan)
    async with testing.serving(server, app) as service:
        assert (await service.client.post("/ml/inference", json=4)).json() == 8


@on_virtual_time
async def test_a_server_can_be_served_again_and_again() -> None:
    server = Server()
    server.append_worker(Double)
    for _ in range(2):
        async with testing.serving(server) as service:
            assert (await service.client.post("/inference", json=4)).json() == 8
            with pytest.raises(RuntimeError, match="the server runs already"):
                async with testing.serving(server):
                    pass
        assert server._platform is None


@on_virtual_time
async def test_health_and_statistics_tell_how_things_stand() -> None:
    async with served(Double, num=2) as service:
        assert (await service.client.get("/readyz")).status_code == 200
        assert [(stage.ready, stage.workers) for stage in service.statistics.stages] == [(2, 2)]
        assert "mosec_service_workers_ready" in (await service.client.get("/metrics")).text
    with pytest.raises(RuntimeError, match="does not run"):
        _ = service.statistics


def test_a_worker_that_is_not_there_is_an_error_that_names_those_that_are() -> None:
    server = Server()
    server.append_worker(Double, num=2)
    server.append_worker(Double)
    service = testing.serving(server)
    assert service.worker("Double_1", 2).number == 2
    with pytest.raises(
        DefinitionError, match=r"several stages are of 'Double'; name one: .* Double_1 1, Double_1 2, Double_2 1"
    ):
        service.worker(Double)
    with pytest.raises(DefinitionError, match="no stage and no class is called 'Other'"):
        service.worker("Other")
    with pytest.raises(DefinitionError, match="there is no worker 3 of 'Double_1'"):
        service.worker("Double_1", 3)
    with pytest.raises(RuntimeError, match="is not alive"):
        service.worker("Double_2").crash()


def test_without_httpx_the_client_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(RuntimeError, match="pip install httpx"):
        _ = testing.serving(Server()).client


# -- faults ------------------------------------------------------------------------------------------------------------

KINDS = pytest.mark.parametrize(
    ("worker", "options"),
    [
        (Double, {}),
        (Increment, {"max_batch_size": 4}),
        (Wait, {"concurrency": 2}),
        (Count, {}),
        (Tick, {}),
        (Countdown, {}),
    ],
    ids=["plain", "batch", "async", "stream", "async stream", "continuous"],
)


async def ask(service: InlineService) -> int:
    """Return the status of an answer; of a stream's error, too."""
    response = await service.client.post("/inference", json=1)
    _, error, status = response.text.partition("SSE inference error: ")
    return int(status[:3]) if error else response.status_code


@KINDS
@on_virtual_time
async def test_a_worker_that_crashes_is_replaced_and_its_request_answered(
    worker: type[Worker], options: dict[str, Any]
) -> None:
    async with served(worker, **options) as service:
        one = service.worker(worker)
        one.crash(after=0)
        assert await ask(service) == 200
        assert one.starts == 2
        one.crash()
        await asyncio.sleep(1.0)
        assert one.starts == 3
        assert await ask(service) == 200


@KINDS
@on_virtual_time
async def test_a_request_that_crashes_two_workers_is_answered_500(
    worker: type[Worker], options: dict[str, Any]
) -> None:
    async with served(worker, **options) as service:
        one = service.worker(worker)
        one.crash(after=0, times=2)
        assert await ask(service) == 500
        await asyncio.sleep(1.0)
        assert await ask(service) == 200


@on_virtual_time
async def test_a_crash_can_wait_for_its_request() -> None:
    async with served(Double) as service:
        one = service.worker(Double)
        one.crash(after=2)
        for starts in (1, 1, 2, 2):
            assert await ask(service) == 200
            assert one.starts == starts


@KINDS
@on_virtual_time
async def test_a_worker_that_hangs_is_noticed_by_the_watchdog(worker: type[Worker], options: dict[str, Any]) -> None:
    async with served(worker, {"timeout": 60_000}, timeout=2, **options) as service:
        one = service.worker(worker)
        one.hang(after=0)
        began = now()
        assert await ask(service) == 408
        assert 3.0 <= now() - began <= 3.6
        await asyncio.sleep(1.0)
        assert one.starts == 2
        assert await ask(service) == 200


@KINDS
@on_virtual_time
async def test_a_worker_that_hangs_can_go_on(worker: type[Worker], options: dict[str, Any]) -> None:
    async with served(worker, {"timeout": 60_000}, timeout=2, **options) as service:
        one = service.worker(worker)
        one.hang()
        answer = asyncio.ensure_future(ask(service))
        await asyncio.sleep(1.0)
        assert not answer.done()
        one.resume()
        assert await answer == 200
        assert one.starts == 1


@on_virtual_time
async def test_what_a_worker_that_hangs_has_not_begun_is_run_by_the_next() -> None:
    async with served(Double, {"timeout": 60_000}, timeout=2) as service:
        service.worker(Double).hang()
        assert await ask(service) == 200
        assert service.worker(Double).starts == 2


@KINDS
@on_virtual_time
async def test_garbage_costs_a_worker_and_no_request(worker: type[Worker], options: dict[str, Any]) -> None:
    async with served(worker, **options) as service:
        service.worker(worker).garble()
        assert await ask(service) == 200
        assert service.worker(worker).starts == 2


@KINDS
@on_virtual_time
async def test_a_worker_that_answers_twice_is_replaced(worker: type[Worker], options: dict[str, Any]) -> None:
    async with served(worker, **options) as service:
        service.worker(worker).answer_twice()
        assert await ask(service) == 200
        await asyncio.sleep(1.0)
        assert service.worker(worker).starts == 2
        assert await ask(service) == 200


@KINDS
@on_virtual_time
async def test_a_slow_worker_takes_its_time(worker: type[Worker], options: dict[str, Any]) -> None:
    async with served(worker, **options) as service:
        began = now()
        assert await ask(service) == 200
        quick = now() - began
        service.worker(worker).slow(1.5)
        began = now()
        assert await ask(service) == 200
        assert now() - began == pytest.approx(quick + 1.5, abs=0.02)


@KINDS
@on_virtual_time
async def test_a_worker_that_is_too_slow_is_interrupted(worker: type[Worker], options: dict[str, Any]) -> None:
    async with served(worker, {"timeout": 60_000}, timeout=2, **options) as service:
        service.worker(worker).slow(10.0)
        began = now()
        assert await ask(service) == 408
        assert now() - began == pytest.approx(2.0, abs=0.6)
        assert service.worker(worker).starts == 1


@KINDS
@on_virtual_time
async def test_a_start_can_fail(worker: type[Worker], options: dict[str, Any]) -> None:
    async with served(worker, **options) as service:
        service.worker(worker).fail_to_start(2)
        service.worker(worker).crash()
        await asyncio.sleep(0.05)
        assert (await service.client.get("/readyz")).status_code == 503
        assert await ask(service) == 503
        await asyncio.sleep(2.0)
        assert service.worker(worker).starts == 4
        assert await ask(service) == 200


@on_virtual_time
async def test_a_service_none_of_whose_workers_starts_does_not_start() -> None:
    service = served(Double, num=2)
    service.worker(Double, 1).fail_to_start()
    service.worker(Double, 2).fail_to_start()
    with pytest.raises(StartupError, match="scripted to fail"):
        await service.__aenter__()


@on_virtual_time
async def test_one_worker_of_two_that_starts_is_enough() -> None:
    service = served(Double, num=2)
    service.worker(Double, 1).fail_to_start()
    async with service:
        assert await ask(service) == 200
        await asyncio.sleep(1.0)
        assert service.statistics.stages[0].ready == 2


class Stubborn(Worker):
    def forward(self, data: Any) -> Any:
        with contextlib.suppress(BaseException):
            while not self.is_cancelled():
                pass
        while not self.is_cancelled():
            pass
        return data


@on_virtual_time
async def test_a_worker_that_swallows_its_end_ends_all_the_same() -> None:
    async with served(Stubborn) as service:
        request = asyncio.ensure_future(service.client.post("/inference", json=1))
        await asyncio.sleep(0.1)
        service.worker(Stubborn).crash()
        await asyncio.sleep(0.1)
        assert service.worker(Stubborn).starts == 2
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request


# -- streams and clients -----------------------------------------------------------------------------------------------


class Endless(SSEWorker):
    closed = 0

    def forward(self, data: int) -> Iterator[str]:
        try:
            while True:
                yield "x" * data
        finally:
            type(self).closed += 1


class EndlessAsync(SSEWorker):
    closed = 0

    async def forward(self, data: int) -> AsyncIterator[str]:
        try:
            while True:
                yield "x" * data
                await asyncio.sleep(0.01)
        finally:
            type(self).closed += 1


@on_virtual_time
async def test_events_come_as_they_are_made() -> None:
    async with served(Tick) as service, service.client.stream("POST", "/inference", json=3) as response:
        times = []
        async for line in response.aiter_lines():
            if line:
                times.append(now())
        assert [later - times[0] for later in times] == pytest.approx([0.0, 0.5, 1.0])


@pytest.mark.parametrize("worker", [Endless, EndlessAsync])
@on_virtual_time
async def test_a_stream_ends_when_its_client_leaves(worker: Any) -> None:
    before = worker.closed
    async with served(worker) as service:
        async with service.client.stream("POST", "/inference", json=1) as response:
            lines = response.aiter_lines()
            assert await anext(lines) == "data: x"
        await asyncio.sleep(0.5)
        assert worker.closed == before + 1
        assert service.statistics.admitted == 0
        assert service.worker(worker).starts == 1


@pytest.mark.parametrize("worker", [Endless, EndlessAsync])
@on_virtual_time
async def test_a_client_that_does_not_read_stalls_its_stream_alone(worker: Any) -> None:
    async with served(worker, {"stall_timeout": 2000, "stream_buffer": 10_000}) as service:
        began = now()
        async with service.client.stream("POST", "/inference", json=1000) as response:
            while service.statistics.admitted:
                await asyncio.sleep(0.1)
            assert 2.0 <= now() - began <= 5.0
            text = (await response.aread()).decode()
    assert "SSE inference error: 408" in text
    assert service.worker(worker).starts == 1


@on_virtual_time
async def test_a_request_that_is_cancelled_is_a_client_that_leaves() -> None:
    async with served(Wait) as service:
        request = asyncio.ensure_future(service.client.post("/inference", json=2.0))
        await asyncio.sleep(0.1)
        assert service.statistics.admitted == 1
        request.cancel()
        await asyncio.sleep(0.1)
        assert service.statistics.admitted == 0
        with pytest.raises(asyncio.CancelledError):
            await request


class Patient(Worker):
    def forward(self, data: Any) -> Any:
        while not self.is_cancelled():
            pass
        return data


@on_virtual_time
async def test_a_worker_can_ask_whether_its_client_has_left() -> None:
    async with served(Patient) as service:
        request = asyncio.ensure_future(service.client.post("/inference", json=1))
        await asyncio.sleep(0.1)
        assert service.statistics.stages[0].in_flight == 1
        request.cancel()
        await asyncio.sleep(0.1)
        assert service.statistics.stages[0].in_flight == 0
        with pytest.raises(asyncio.CancelledError):
            await request


# -- calls from the program itself -------------------------------------------------------------------------------------


def calling(executor: str) -> Server:
    """Return a server with workers of several kinds, which takes calls of objects."""
    server = Server(timeout=10_000)
    server.append_worker(Double, executor=executor, route="/double")
    server.append_worker(Increment, executor=executor, max_batch_size=4, max_wait_time=1000, route="/increment")
    server.append_worker(Wait, executor=executor, concurrency=4, route="/wait")
    server.append_worker(Count, executor=executor, route="/count")
    return server


EXECUTORS = pytest.mark.parametrize("executor", ["process", "thread"])


@EXECUTORS
@on_virtual_time
async def test_objects_go_in_and_come_out_as_they_are(executor: str) -> None:
    async with testing.serving(calling(executor)) as service:
        assert await service.infer((1, b"x"), "/double") == (1, b"x", 1, b"x")
        began = now()
        asked = service.client.post("/increment", json=5)
        answer, first, second = await asyncio.gather(
            asked, service.infer(1, "/increment"), service.infer(0, "/increment"), return_exceptions=True
        )
        assert isinstance(second, ClientError)
        assert (answer.json(), first, str(second), second.code) == (6, 2, "no zero", 400)
        assert now() - began == pytest.approx(1.0), "it has waited for a fourth"
        assert sorted(service.worker(Increment).calls[-1]) == [0, 1, 5]
        assert await _gathered(service, 3) == ["0", "1", "2"]


@EXECUTORS
@on_virtual_time
async def test_a_call_meets_its_deadline_on_virtual_time(executor: str) -> None:
    async with testing.serving(calling(executor)) as service:
        began = now()
        with pytest.raises(MosecError) as caught:
            await service.infer(3600.0, "/wait", timeout=250)
        assert (caught.value.code, now() - began) == (408, pytest.approx(0.25))
        service.worker(Double).crash(after=0)
        assert await service.infer(4, "/double") == 8
        service.worker(Double).crash(after=0, times=2)
        with pytest.raises(ServerError, match="the worker died"):
            await service.infer(4, "/double")


@EXECUTORS
@on_virtual_time
async def test_a_thousand_calls_that_are_cancelled_at_random_leave_nothing(executor: str) -> None:
    chance = random.Random(11)
    server = calling(executor)
    async with testing.serving(server) as service:
        calls: list[asyncio.Task[Any]] = []
        for _ in range(1000):
            route, item = chance.choice([("/double", 1), ("/increment", 2), ("/wait", 0.01), ("/count", 4)])
            call = _gathered(service, item) if route == "/count" else service.infer(item, route)
            calls.append(asyncio.create_task(call))
            await asyncio.sleep(chance.choice([0.0, 0.0, 0.004]))
            if chance.random() < 0.5:
                chance.choice(calls[-4:]).cancel()
        results = await asyncio.gather(*calls, return_exceptions=True)
        cancelled = [result for result in results if isinstance(result, asyncio.CancelledError)]
        failed = [result for result in results if isinstance(result, Exception)]
        assert (len(cancelled) > 100, failed) == (True, [])
        await asyncio.sleep(1)
        rest = [(each.queued, each.in_flight, each.slots_in_use) for each in service.statistics.stages]
        assert (service.statistics.admitted, set(rest)) == (0, {(0, 0, 0)})


async def _gathered(service: InlineService, item: Any) -> list[Any]:
    return [event async for event in service.stream(item, "/count")]
