"""What services written for mosec do, and what people expect of a stream, through the public names alone."""

from __future__ import annotations

import functools
import json
import math
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from harness import ROOT, child_processes, python, running, wait_until, written

from mosec_asgi import ClientError, Server, SSEWorker, Worker, testing

# -- who a worker is ---------------------------------------------------------------------------------------------------


class Sets(Worker):
    def __init__(self) -> None:
        self.seen = (self.max_batch_size, self.stage, self.worker_id)
        self.max_batch_size = 16
        self.stage = "detect"
        self.worker_id = str(self.worker_id)  # type: ignore[assignment]

    def forward(self, data: list[Any]) -> list[Any]:
        return [[self.seen, (self.max_batch_size, self.stage, self.worker_id)] for _ in data]


class Later(Worker):
    def forward(self, data: Any) -> Any:
        self.stage = "busy"
        self.max_batch_size = 9
        self.worker_id = str(self.worker_id)  # type: ignore[assignment]
        return self.stage, self.max_batch_size, self.worker_id


class ClassAttributes(Worker):
    max_batch_size = 16  # type: ignore[assignment]
    stage = "detect"  # type: ignore[assignment]

    def forward(self, data: list[Any]) -> list[Any]:
        return [(self.max_batch_size, self.stage) for _ in data]


class OwnProperty(Worker):
    @property
    def stage(self) -> str:  # type: ignore[override]
        return "fixed"

    def forward(self, data: Any) -> Any:
        return self.stage, self.max_batch_size


@pytest.mark.parametrize(
    ("worker", "max_batch_size", "expected"),
    [
        (Sets, 4, [[4, "Sets_1", 1], [4, "Sets_1", 1]]),
        (Later, 1, ["busy", 9, "1"]),
        (ClassAttributes, 4, [4, "ClassAttributes_1"]),
        (OwnProperty, 1, ["fixed", 1]),
    ],
)
async def test_what_a_worker_is_can_be_assigned_and_is_set_anew_after_its_constructor(
    worker: type[Worker], max_batch_size: int, expected: Any
) -> None:
    server = Server()
    server.append_worker(worker, max_batch_size=max_batch_size)
    async with testing.serving(server) as service:
        for _ in range(2):
            assert (await service.client.post("/inference", json=0)).json() == expected


# -- SSE workers before the last stage ---------------------------------------------------------------------------------


class Numbers(Worker):
    def forward(self, data: dict[str, int]) -> list[int]:
        if "n" not in data:
            raise ClientError("missing: n")
        return list(range(data["n"]))


class Middle(SSEWorker):
    def forward(self, data: list[int]) -> list[int]:
        return [number * 255 for number in data]


class MiddleBatch(SSEWorker):
    def forward(self, data: list[list[int]]) -> list[list[int]]:
        return [[number * 255 for number in numbers] for numbers in data]


class MiddleAsync(SSEWorker):
    async def forward(self, data: list[int]) -> list[int]:
        return [number * 255 for number in data]


class SpeaksTooSoon(SSEWorker):
    async def forward(self, data: list[int]) -> list[int]:
        self.send_stream_event("too soon")
        return data


class Respond(SSEWorker):
    def forward(self, data: list[int]) -> None:
        for number in data:
            self.send_stream_event(json.dumps(number), index=0)


def pipeline(*stages: type[Worker], batch: int = 1) -> Server:
    server = Server()
    for stage in stages:
        server.append_worker(stage, max_batch_size=batch if stage is MiddleBatch else 1)
    return server


@pytest.mark.parametrize(("middle", "batch"), [(Middle, 1), (MiddleBatch, 4), (MiddleAsync, 1)])
async def test_an_sse_worker_before_the_last_stage_passes_its_results_on(middle: type[Worker], batch: int) -> None:
    async with testing.serving(pipeline(Numbers, middle, Respond, batch=batch)) as service:
        answer = await service.client.post("/inference", json={"n": 2})
        assert (answer.status_code, answer.text) == (200, "data: 0\n\ndata: 255\n\n")
        failed = await service.client.post("/inference", json={})
        assert failed.text.startswith(
            "event: error\ndata: SSE inference error: 400: Bad Request: bad request: missing: n"
        )


async def test_an_sse_worker_before_a_plain_last_stage_is_a_plain_worker() -> None:
    async with testing.serving(pipeline(Numbers, Middle, Middle2)) as service:
        answer = await service.client.post("/inference", json={"n": 2})
        assert (answer.status_code, answer.json()) == (200, [0, 255])


class Middle2(Worker):
    def forward(self, data: Any) -> Any:
        return data


class Announce(SSEWorker):
    def forward(self, data: list[int]) -> list[int]:
        for number in data:
            self.send_stream_event(f"soon {number}")
        return data


async def test_events_of_an_earlier_stage_come_before_those_of_the_last_one_and_are_counted_with_them() -> None:
    async with testing.serving(pipeline(Numbers, Announce, Respond)) as service:
        answer = await service.client.post("/inference", json={"n": 2})
        assert answer.text == "".join(f"data: {text}\n\n" for text in ("soon 0", "soon 1", "0", "1"))
        metrics = (await service.client.get("/metrics")).text.splitlines()
        stage = next(line for line in metrics if "events_sent_total{" in line).partition("{")[2].partition("}")[0]
        assert "Respond" in stage
        assert f"mosec_service_events_sent_total{{{stage}}} 4" in metrics
        assert f"mosec_service_streams_open{{{stage}}} 0" in metrics


async def test_events_before_a_last_stage_that_does_not_stream_are_dropped(caplog: pytest.LogCaptureFixture) -> None:
    server = Server(stream_buffer=1024)
    for stage in (Numbers, Announce, Middle2):
        server.append_worker(stage)
    async with testing.serving(server) as service:
        for _ in range(2):
            # More than a stream may have on its way.
            answer = await service.client.post("/inference", json={"n": 500})
            assert (answer.status_code, answer.json()) == (200, list(range(500)))
    assert caplog.text.count("events are dropped") == 1


async def test_an_asynchronous_worker_sends_events_only_in_the_last_stage(caplog: pytest.LogCaptureFixture) -> None:
    async with testing.serving(pipeline(Numbers, SpeaksTooSoon, Respond)) as service:
        answer = await service.client.post("/inference", json={"n": 2})
        assert "500" in answer.text
    assert "only in the last stage of a route" in caplog.text


# -- examples ----------------------------------------------------------------------------------------------------------


class TupleExample(Worker):
    example = (0, 1e-5, 2e-4)
    seen: list[Any] = []

    def forward(self, data: list[float]) -> list[float]:
        self.seen.append(data)
        return list(data)


async def test_a_tuple_is_a_batch_where_a_stage_has_batches(caplog: pytest.LogCaptureFixture) -> None:
    server = Server()
    server.append_worker(TupleExample, max_batch_size=32)
    TupleExample.seen.clear()
    async with testing.serving(server):
        assert TupleExample.seen == [(0, 1e-5, 2e-4)]
    assert "warm-up failed" not in caplog.text


# -- JSON --------------------------------------------------------------------------------------------------------------


class Describe(Worker):
    def forward(self, data: Any) -> str:
        return ascii(data)


class Two(SSEWorker):
    def forward(self, data: Any) -> None:
        self.send_stream_event("a")
        self.send_stream_event("b")


LOOSE = {
    b"NaN": math.nan,
    b"[Infinity, -Infinity]": [math.inf, -math.inf],
    b"1e999": math.inf,
    b"\xef\xbb\xbf[1]": [1],
    '{"a": "\u00e9"}'.encode("utf-16"): {"a": "\u00e9"},
    "[2]".encode("utf-32-be"): [2],
    rb'"\ud800"': "\ud800",
    b'"\xed\xa0\x80"': "\ud800",
}


async def test_what_pythons_json_takes_is_taken_and_only_that() -> None:
    server = Server()
    server.append_worker(Describe)
    server.append_worker(Two, route="/sse")
    async with testing.serving(server) as service:
        for body, value in LOOSE.items():
            answer = await service.client.post("/inference", content=body)
            assert (answer.status_code, answer.json()) == (200, ascii(value))
            assert (await service.client.post("/sse", content=body)).text == "data: a\n\ndata: b\n\n"
        for body in (b'"\xff"', b"nan", b"[NaN,]", b"9" * 5000):
            assert (await service.client.post("/inference", content=body)).status_code == 400


async def test_only_strict_json_is_taken_where_the_setting_says_so() -> None:
    server = Server(strict_json=True)
    server.append_worker(Describe)
    async with testing.serving(server) as service:
        for body in LOOSE:
            answer = await service.client.post("/inference", content=body)
            assert (answer.status_code, answer.text[:36]) == (400, "decoding error: the body is not JSON")
        assert (await service.client.post("/inference", content=b"[1]")).json() == "[1]"


# -- what forward returns ----------------------------------------------------------------------------------------------


def timed(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*arguments: Any) -> Any:
        return function(*arguments)

    return wrapper


def words(text: str) -> Iterator[str]:
    yield from text.split()


async def awaited_words(text: str) -> AsyncIterator[str]:
    for word in text.split():
        yield word


class Returns(SSEWorker):
    def forward(self, data: str) -> Iterator[str]:
        return words(data)


class Decorated(SSEWorker):
    @timed
    def forward(self, data: str) -> Iterator[str]:
        yield from words(data)


class ReturnsIterator(SSEWorker):
    def forward(self, data: str) -> Iterator[str]:
        return map(str, data.split())


class AsyncReturns(SSEWorker):
    async def forward(self, data: str) -> AsyncIterator[str]:
        return awaited_words(data)


class AsyncReturnsPlain(SSEWorker):
    async def forward(self, data: str) -> Iterator[str]:
        return words(data)


class Batch(SSEWorker):
    def forward(self, data: list[str]) -> list[Iterator[str]]:
        return [words(text) for text in data]


class AsyncBatch(SSEWorker):
    async def forward(self, data: list[str]) -> list[Any]:
        return [awaited_words(text) if place % 2 else words(text) for place, text in enumerate(data)]


class ReturnsAsync(SSEWorker):
    def forward(self, data: str) -> AsyncIterator[str]:
        return awaited_words(data)


class DecoratedAsync(SSEWorker):
    @timed
    async def forward(self, data: str) -> AsyncIterator[str]:
        yield data


class DecoratedCoroutine(SSEWorker):
    @timed
    async def forward(self, data: str) -> None:
        self.send_stream_event(data)


class BatchOfAsync(SSEWorker):
    def forward(self, data: list[str]) -> list[Any]:
        return [awaited_words(text) for text in data]


class ReturnsText(SSEWorker):
    def forward(self, data: str) -> str:
        return data


class AsyncReturnsText(SSEWorker):
    async def forward(self, data: str) -> str:
        return data


class ReturnsList(SSEWorker):
    def forward(self, data: str) -> list[str]:
        return data.split()


class PlainGenerator(Worker):
    def forward(self, data: str) -> Any:
        return words(data)


class PlainAsyncGenerator(Worker):
    async def forward(self, data: str) -> Any:
        return awaited_words(data)


class PlainCoroutine(Worker):
    @timed
    async def forward(self, data: str) -> str:
        return data


class PlainBatchCoroutine(Worker):
    @timed
    async def forward(self, data: list[str]) -> list[str]:
        return data


class SendsAndReturns(SSEWorker):
    def forward(self, data: str) -> str:
        for word in data.split():
            self.send_stream_event(word)
        return data


class SendsNothing(SSEWorker):
    def forward(self, data: str) -> None:
        pass


class HasNothingToSend(SSEWorker):
    """As mosec's own examples do: what it returns is ignored."""

    def forward(self, data: str) -> str:
        [self.send_stream_event(word) for word in data.split() if word == "three"]
        return "ignored"


class Inherits(HasNothingToSend):
    @timed
    def forward(self, data: str) -> str:
        return super().forward(data)


async def answer_of(worker: type[Worker]) -> httpx.Response:
    server = Server()
    server.append_worker(worker, max_batch_size=4 if "Batch" in worker.__name__ else 1)
    async with testing.serving(server) as service:
        return await service.client.post("/inference", json="one two")


@pytest.mark.parametrize(
    "worker",
    [Returns, Decorated, ReturnsIterator, AsyncReturns, AsyncReturnsPlain, Batch, AsyncBatch, SendsAndReturns],
)
async def test_the_events_of_what_forward_returns_are_sent(worker: type[Worker]) -> None:
    assert (await answer_of(worker)).text == "data: one\n\ndata: two\n\n"


@pytest.mark.parametrize(
    ("worker", "remedy"),
    [
        (ReturnsAsync, "make `forward` an `async def`"),
        (DecoratedAsync, "likewise what a decorator puts around it"),
        (DecoratedCoroutine, "likewise what a decorator puts around it"),
        (BatchOfAsync, "make `forward` an `async def`"),
        (ReturnsText, "returned str and sent no event: yield the events"),
        (AsyncReturnsText, "returned str and sent no event: yield the events"),
        (ReturnsList, "returned list and sent no event: yield the events"),
        (PlainGenerator, "derive the worker from SSEWorker"),
        (PlainAsyncGenerator, "derive the worker from SSEWorker"),
        (PlainCoroutine, "likewise what a decorator puts around it"),
        (PlainBatchCoroutine, "likewise what a decorator puts around it"),
    ],
)
async def test_what_can_be_no_answer_is_an_error_that_says_what_to_change(worker: type[Worker], remedy: str) -> None:
    answer = await answer_of(worker)
    if issubclass(worker, SSEWorker):
        assert answer.text.startswith("event: error\ndata: SSE inference error: 500: ")
    else:
        assert answer.status_code == 500
    assert remedy in answer.text


@pytest.mark.parametrize("worker", [SendsNothing, HasNothingToSend, Inherits])
async def test_a_stream_may_be_empty(worker: type[Worker]) -> None:
    answer = await answer_of(worker)
    assert (answer.status_code, answer.text) == (200, "")


# -- real processes ----------------------------------------------------------------------------------------------------

LOGS = """
import os
from mosec_asgi import Server, Worker, get_logger
logger = get_logger()
logger.info("module level")
class Logs(Worker):
    def __init__(self, size, *, name):
        logger.info("in init %d %s", size, name)
    def forward(self, data):
        return data
if __name__ == "__main__":
    logger.debug("too low")
    logger.warning("before Server")
    server = Server()
    server.append_worker(Logs, num=2, args=(7,), kwargs={"name": "model"})
    logger.info("before run")
    server.run()
    logger.info("after run")
"""


def test_all_lines_are_logged_from_the_first_on_and_ps_names_the_workers(tmp_path: Path, log: Path) -> None:
    with running(python(written(tmp_path, LOGS, "service.py")), log) as program:
        program.wait_ready()
        names = set()
        for pid in child_processes(program.process.pid):
            names.add(Path(f"/proc/{pid}/comm").read_text().strip())
        assert {"Logs_1:1", "Logs_1:2"} <= names
        assert program.stop() == 0
    said = [row["fields"]["message"] for row in program.lines() if row["target"].startswith("user::")]
    # Twice more by the workers, which import the module as well.
    assert sorted(said) == sorted(
        ["module level"] * 3 + ["in init 7 model"] * 2 + ["before Server", "before run", "after run"]
    )
    assert said[:3] == ["module level", "before Server", "before run"]
    assert all(line.startswith("{") for line in program.output.splitlines())


@pytest.mark.parametrize("setting", ["--log-level=error", "MOSEC_LOG_LEVEL"])
def test_the_level_counts_before_the_start_as_well(setting: str, tmp_path: Path, log: Path) -> None:
    arguments = [setting] if setting.startswith("-") else []
    variables = {} if arguments else {setting: "error"}
    with running(python(written(tmp_path, LOGS, "service.py"), *arguments), log, environment=variables) as program:
        program.wait_ready()
        assert program.output == ""


MAIN = """
from mosec_asgi import Server, Worker
class Echo(Worker):
    def forward(self, data):
        return data
server = Server()
server.append_worker(Echo)
if __name__ == "__main__":
    server.run()
"""


def test_workers_of_a_main_module_that_nobody_can_import_are_refused_before_the_start(
    tmp_path: Path, log: Path
) -> None:
    package = tmp_path / "package"
    package.mkdir()
    written(package, "", "__init__.py")
    written(package, MAIN, "__main__.py")
    for command in (
        [sys.executable, "-c", MAIN],
        [sys.executable, "-m", "package"],
        [sys.executable, str(package)],
    ):
        with running(
            [*command, "--port", "{port}"], log, cwd=tmp_path, environment={"PYTHONPATH": str(ROOT)}
        ) as program:
            wait_until(lambda program=program: program.process.poll() is not None, "it ends")  # type: ignore[misc]
            assert program.process.returncode != 0
            assert "worker processes cannot import Echo" in program.output
            assert "Move it into a module of its own" in program.output
