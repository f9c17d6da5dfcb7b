"""Streams and asynchronous workers over real processes, a real server and real connections."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from harness import Program, running, until, wait_until, written
from mosec_pair import Pair, serving_both

SERVER = """
from stream_workers import *
from mosec_asgi import Server

server = Server(timeout=20000, stream_buffer=65536)
server.append_worker(Count, route="/count")
server.append_worker(CountBatch, num=2, max_batch_size=16, max_wait_time=20, route="/batch")
server.append_worker(Pushed, max_batch_size=8, max_wait_time=20, route="/pushed")
server.append_worker(CountAsync, concurrency=64, route="/async")
server.append_worker(Slots, num=2, max_batch_size=16, route="/slots")
server.append_worker(Odd, max_batch_size=8, max_wait_time=200, route="/odd")
server.append_worker(Fields, route="/fields")
server.append_worker(Raw, route="/raw")
server.append_worker(Dies, route="/dies")
server.append_worker(Waits, concurrency=64, route="/waits")
server.append_worker(Waits, concurrency=64, max_batch_size=8, route="/waits-batch")
server.append_worker(WaitsForLeaving, route="/leaving")

if __name__ == "__main__":
    server.run()
"""
ONE_BY_ONE = """
from stream_workers import Slow
from mosec_asgi import Server

server = Server(timeout=2000, event_timeout=2000)
server.append_worker(Slow)
server.append_worker(Slow, timeout=1.0, route="/short")

if __name__ == "__main__":
    server.run()
"""
ERROR = "SSE inference error: "


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which workers note what happens to them."""
    return tmp_path_factory.mktemp("notes")


@pytest.fixture(scope="module")
def program(notes: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    folder = tmp_path_factory.mktemp("streams")
    command = [sys.executable, str(written(folder, SERVER)), "--port", "{port}"]
    with running(command, folder / "log", environment={"NOTES": str(notes)}) as program:
        program.wait_ready()
        yield program


@asynccontextmanager
async def client_of(program: Program) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=program.url, timeout=30, limits=limits, trust_env=False) as client:
        yield client


async def events(client: httpx.AsyncClient, path: str, body: Any) -> list[str]:
    """Return the data of all events of a stream, an error's with "error: " before it."""
    response = await client.post(path, json=body)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/event-stream"
    return parsed(response.text)


def parsed(text: str) -> list[str]:
    """Return the data of each event of a stream of events."""
    found = []
    for block in text.split("\n\n")[:-1]:
        lines = block.split("\n")
        kind = "error: " if "event: error" in lines else ""
        found.append(kind + "\n".join(line[6:] for line in lines if line.startswith("data: ")))
    return found


def noted(notes: Path, name: str) -> list[str]:
    file = notes / name
    return file.read_text().splitlines() if file.exists() else []


def metric(program: Program, name: str, stage: str) -> float:
    """Return a stage's metric; the number at the end of the stage's name may be left out."""
    for line in program.client.get("/metrics").text.splitlines():
        if re.match(rf'mosec_service_{name}{{stage="{stage}(_\d+)?"}}', line):
            return float(line.split()[-1])
    raise AssertionError(f"there is no {name} of {stage}")


# -- beside mosec ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with serving_both("sse", tmp_path_factory.mktemp("sse")) as pair:
        yield pair


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/one", {"events": ["a", "b"]}),
        ("/one", {"events": ["two\nlines", "tail\n", "\n", " leading", "ü 漢 🎉"]}),
        ("/one", {"events": []}),
        ("/one", {"events": ["a", "fail", "b"]}),
        ("/one", {"events": ["fail"]}),
        ("/one", {"events": ["a", "bug"]}),
        ("/one", ["no object"]),
        ("/many", {"events": ["p", "q"]}),
        ("/many", {"events": "none"}),
        ("/middle", {"events": ["a", "b"]}),
        ("/middle", {"events": ["a", "bug", "b"]}),
        ("/middle", {"events": ["a", "fail"]}),
        ("/middle-batch", {"events": ["a", "b"]}),
        ("/no-stream", {"events": ["a"]}),
    ],
    ids=[
        "two events", "lines and letters", "no event", "error in the middle", "error at the start", "a bug",
        "refused by the worker", "behind another stage", "refused by the stage before", "events of two stages",
        "a bug after an event of the first stage", "an error after events of two stages", "events of a batch before",
        "no stream",
    ],
)  # fmt: skip
def test_a_stream_is_mosecs_byte_for_byte(pair: Pair, path: str, body: Any) -> None:
    answers = pair.post(path, json.dumps(body).encode())
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert len({answer.headers["content-type"] for answer in answers}) == 1


def test_streams_of_one_batch_are_mosecs_byte_for_byte(pair: Pair) -> None:
    bodies = [json.dumps({"events": [f"{n}-{k}" for k in range(n + 1)]}).encode() for n in range(8)]
    with ThreadPoolExecutor(8) as threads:
        for answers in threads.map(lambda body: pair.post("/many", body), bodies):
            assert len({answer.content for answer in answers}) == 1


def test_a_carriage_return_is_a_line_break_and_an_empty_text_an_event_unlike_in_mosec(pair: Pair) -> None:
    answer = pair.ours.client.post("/one", json={"events": ["a\rb\r\nc", ""]})
    assert answer.content == b"data: a\ndata: b\ndata: c\n\ndata: \n\n"


# -- each its own ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/batch", "/pushed", "/async", "/slots"])
async def test_200_streams_at_once_get_exactly_their_own_events_in_order(program: Program, path: str) -> None:
    async with client_of(program) as client:
        counts = {f"{path}-{number}": 3 + number % 30 for number in range(200)}
        streams = [events(client, path, {"name": name, "count": count}) for name, count in counts.items()]
        for (name, count), got in zip(counts.items(), await asyncio.gather(*streams), strict=True):
            assert got == [f"{name} {number}" for number in range(count)]


async def test_a_server_that_is_held_up_for_a_moment_loses_no_event_of_an_asynchronous_worker(program: Program) -> None:
    """Meanwhile the worker's pipe runs full: some 280 frames fill it, however small."""
    names = [f"held-{number}" for number in range(64)]
    async with client_of(program) as client:
        before = metric(program, "events_sent_total", "CountAsync")
        streams = [
            asyncio.create_task(events(client, "/async", {"name": name, "count": 200, "seconds": 0.005}))
            for name in names
        ]
        await until(lambda: metric(program, "events_sent_total", "CountAsync") > before, "the streams have begun")
        program.send(signal.SIGSTOP)
        try:
            # What it would do meanwhile is long done by then; nothing tells.
            await asyncio.sleep(1.0)
        finally:
            program.send(signal.SIGCONT)
        for name, got in zip(names, await asyncio.gather(*streams), strict=True):
            assert got == [f"{name} {number}" for number in range(200)]


async def test_a_request_joins_a_running_batch_and_leaves_it_before_the_others(program: Program, notes: Path) -> None:
    body = {"name": "long", "count": 400}
    async with client_of(program) as client, client.stream("POST", "/slots", json=body) as long:
        lines = long.aiter_lines()
        await anext(lines)
        assert await events(client, "/slots", {"name": "short", "count": 3}) == [f"short {n}" for n in range(3)]
        left = [line async for line in lines if line.startswith("data: ")]
    assert left[-1] == "data: long 399"
    order = [line.split()[0] for line in noted(notes, "batch") if "long" in line or "short" in line]
    assert order[-4:] == ["+long", "+short", "-short", "-long"]


async def test_an_event_carries_its_type_its_id_and_the_time_to_connect_again(program: Program) -> None:
    async with client_of(program) as client:
        response = await client.post("/fields", json={})
    assert response.content == b"event: token\ndata: one\ndata: two\nid: 7\nretry: 1000\n\ndata: \xc3\xbc\n\n"


async def test_another_content_type_streams_the_bare_bytes(program: Program) -> None:
    async with client_of(program) as client, client.stream("POST", "/raw", json={"count": 3}) as response:
        assert response.headers["content-type"] == "application/octet-stream"
        assert response.headers["transfer-encoding"] == "chunked"
        assert b"".join([chunk async for chunk in response.aiter_raw()]) == bytes([0] * 5 + [1] * 5 + [2] * 5)


async def test_a_raw_stream_that_fails_before_its_first_chunk_is_an_ordinary_error(program: Program) -> None:
    async with client_of(program) as client:
        response = await client.post("/raw", json={"fail": "before"})
    assert (response.status_code, response.text) == (400, "bad request: nothing to send")


async def test_a_raw_stream_that_fails_later_is_broken_off(program: Program) -> None:
    async with client_of(program) as client:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.post("/raw", json={"fail": "after"})
        assert (await client.post("/raw", json={})).status_code == 200


# -- bad events --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("number", "500: Internal Server Error: encoding error: an event must be text, bytes or an Event, not int"),
        ("surrogate", "500: Internal Server Error: encoding error: the text of an event must be valid Unicode"),
        ("bytes", "500: Internal Server Error: encoding error: the data of an event must be UTF-8"),
        ("error", "400: Bad Request: bad request: asked to fail"),
    ],
)
async def test_an_event_that_is_none_ends_its_stream_with_an_error_and_no_other(
    program: Program, name: str, error: str
) -> None:
    names = ["first", name, "last"]
    async with client_of(program) as client:
        got = dict(zip(names, await asyncio.gather(*[events(client, "/odd", one) for one in names]), strict=True))
    assert got["first"] == ["first begins", "first ends"]
    assert got["last"] == ["last begins", "last ends"]
    begins, ended = got[name]
    assert begins == f"{name} begins"
    assert ended.startswith(f"error: {ERROR}{error}")


async def test_an_event_for_nobody_is_dropped_and_the_log_says_so(program: Program) -> None:
    async with client_of(program) as client:
        assert await events(client, "/odd", "far") == ["far begins", "far ends"]
    assert any("an event for item 4 of a batch of 1 was dropped" in line for line in program.messages())


async def test_an_event_after_the_end_is_dropped_and_the_log_says_so(program: Program) -> None:
    async with client_of(program) as client:
        late, other = await asyncio.gather(events(client, "/odd", "late"), events(client, "/odd", "other"))
    assert (late, other) == (["late begins"], ["other begins", "other ends"])
    wait_until(
        lambda: any("after the end of its stream" in line for line in program.messages()), "the late event is not told"
    )


async def test_what_is_neither_a_pair_nor_a_list_ends_the_streams_of_the_batch(program: Program) -> None:
    async with client_of(program) as client:
        begins, ended = await events(client, "/odd", "shape")
        assert begins == "shape begins"
        assert ended.startswith(f"error: {ERROR}500: Internal Server Error: internal error: with batching, forward")
        assert await events(client, "/odd", "next") == ["next begins", "next ends"]


# -- slow readers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/batch", "/slots"])
async def test_a_reader_that_stops_stops_nobody_else_in_its_batch(program: Program, path: str) -> None:
    others_done = asyncio.Event()

    async def stop_reading(client: httpx.AsyncClient) -> list[str]:
        # More than all buffers on its way can hold: the sockets', the server's, and the stream's own.
        body = {"name": "slow", "count": 400, "size": 100_000}
        async with client.stream("POST", path, json=body) as response:
            await others_done.wait()
            return parsed((await response.aread()).decode())

    async with client_of(program) as client:
        slow = asyncio.create_task(stop_reading(client))
        others = [events(client, path, {"name": f"quick-{n}", "count": 400}) for n in range(15)]
        for number, got in enumerate(await asyncio.gather(*others)):
            assert got == [f"quick-{number} {n}" for n in range(400)]
        others_done.set()
        *got, ended = await slow
    assert ended == f"error: {ERROR}408: Request Timeout: mosec timeout error: the client does not read its stream"
    assert [event.rstrip(".") for event in got] == [f"slow {n}" for n in range(len(got))]


async def test_an_only_stream_waits_for_its_reader_and_loses_nothing(program: Program, notes: Path) -> None:
    name = "patient"
    async with client_of(program) as client:
        body = {"name": name, "count": 600, "size": 30_000}
        async with client.stream("POST", "/count", json=body) as response:
            await until(lambda: noted(notes, name), "it has not begun")
            made = -1
            while made < len(noted(notes, name)):
                # It makes no more events once two looks in a row find as many.
                made = len(noted(notes, name))
                await asyncio.sleep(0.3)
            assert made < 600
            got = parsed((await response.aread()).decode())
    assert [event.rstrip(".") for event in got] == [f"{name} {n}" for n in range(600)]


# -- clients that leave ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/count", "/async"])
async def test_a_client_that_leaves_ends_its_generator_and_frees_the_worker(
    program: Program, notes: Path, path: str
) -> None:
    name = f"leaver{path.replace('/', '-')}"
    async with client_of(program) as client:
        async with client.stream("POST", path, json={"name": name, "count": 1000, "seconds": 0.3}) as response:
            assert await anext(response.aiter_lines()) == f"data: {name} 0"
        await until(lambda: "closed" in noted(notes, name), "the generator is not closed")
        assert await events(client, path, {"name": "next", "count": 2}) == ["next 0", "next 1"]
    # One that was being made while the client left, one more before the news came, and two where the machine stalls.
    assert len(noted(notes, name)) <= 6
    wait_until(lambda: "mosec_service_remaining_task 0\n" in program.client.get("/metrics").text, "a task remains")


async def test_a_client_that_leaves_frees_its_slot_at_once(program: Program, notes: Path) -> None:
    async with client_of(program) as client:
        async with client.stream("POST", "/slots", json={"name": "gone", "count": 100_000}) as response:
            await anext(response.aiter_lines())
        await until(lambda: any("-gone" in line for line in noted(notes, "batch")), "the slot is not free")
    wait_until(lambda: metric(program, "slots_in_use", "Slots") == 0, "a slot is in use")
    wait_until(lambda: metric(program, "streams_open", "Slots") == 0, "a stream is open")


async def test_forward_can_ask_whether_its_client_has_left(program: Program, notes: Path) -> None:
    async with client_of(program) as client:
        request = asyncio.create_task(client.post("/leaving", json={}))
        await until(lambda: noted(notes, "leaving"), "it has not begun")
        request.cancel()
        await until(lambda: noted(notes, "leaving") == ["begun", "noticed"], "it has not noticed")


async def test_an_asynchronous_forward_whose_client_has_left_is_cancelled(program: Program, notes: Path) -> None:
    (notes / "waits").unlink(missing_ok=True)
    async with client_of(program) as client:
        request = asyncio.create_task(client.post("/waits", json={"seconds": 60}))
        await until(lambda: metric(program, "slots_in_use", "Waits") == 1, "it has not begun")
        request.cancel()
        await until(lambda: noted(notes, "waits") == ["cancelled"], "it is not cancelled")
    wait_until(lambda: metric(program, "slots_in_use", "Waits") == 0, "a slot is in use")


# -- time and death ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    folder = tmp_path_factory.mktemp("impatient")
    with running([sys.executable, str(written(folder, ONE_BY_ONE)), "--port", "{port}"], folder / "log") as program:
        program.wait_ready()
        yield program


@pytest.mark.parametrize("path", ["/inference", "/short"])
@pytest.mark.parametrize(("where", "before"), [("before", []), ("between", ["first"])])
async def test_time_bounds_the_first_event_and_each_gap(
    impatient: Program, path: str, where: str, before: list[str]
) -> None:
    async with client_of(impatient) as client:
        *got, ended = await events(client, path, {where: 30})
        assert got == before
        assert ended.startswith(f"error: {ERROR}408: Request Timeout: ")
        assert await events(client, path, {}) == ["first", "second"]


async def test_a_stream_may_take_longer_than_the_time_for_one_event(impatient: Program) -> None:
    async with client_of(impatient) as client:
        # Either is 0.8 s below the bound, which a machine that stalls does not use up.
        assert await events(client, "/inference", {"before": 1.2, "between": 1.2}) == ["first", "second"]


async def test_a_worker_that_dies_before_the_first_event_costs_no_stream(program: Program, notes: Path) -> None:
    async with client_of(program) as client:
        assert await events(client, "/dies", {"name": "early", "when": "before"}) == ["first", "second"]


async def test_a_stream_whose_worker_dies_ends_with_an_error_and_is_not_run_again(
    program: Program, notes: Path
) -> None:
    async with client_of(program) as client:
        first, ended = await events(client, "/dies", {"name": "mid-stream", "when": "after"})
    assert first == "first"
    assert (
        ended == f"error: {ERROR}500: Internal Server Error: internal error: the worker died while it ran this request"
    )
    assert noted(notes, "lives").count("mid-stream") == 1


# -- asynchronous workers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "stage", "slots"), [("/waits", "Waits_10", 64), ("/waits-batch", "Waits_11", 8)])
async def test_64_requests_wait_at_once_in_one_process(program: Program, path: str, stage: str, slots: int) -> None:
    async with client_of(program) as client:
        requests = [asyncio.create_task(client.post(path, json={"seconds": 2.0})) for _ in range(64)]
        await until(lambda: metric(program, "slots_in_use", stage) >= slots, "they do not run at once")
        assert {answer.status_code for answer in await asyncio.gather(*requests)} == {200}


# -- numbers -----------------------------------------------------------------------------------------------------------


async def test_streams_are_counted_and_measured(program: Program) -> None:
    before = metric(program, "events_sent_total", "Count")
    body = {"name": "measured", "count": 5, "seconds": 0.2}
    async with client_of(program) as client, client.stream("POST", "/count", json=body) as response:
        lines = response.aiter_lines()
        await anext(lines)
        assert metric(program, "streams_open", "Count") == 1
        assert [line async for line in lines if line]
    assert metric(program, "events_sent_total", "Count") == before + 5
    wait_until(lambda: metric(program, "streams_open", "Count") == 0, "a stream is open")
    assert metric(program, "first_event_second_count", "Count") >= 1
    assert metric(program, "event_gap_second_count", "Count") >= 4
