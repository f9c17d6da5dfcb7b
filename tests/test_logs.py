"""The logs of a real service: one request's lines, found by its id, across the server and all kinds of workers."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from harness import Program, python, running, wait_until, written

from mosec_asgi.rationing import MOST, MOST_WHOLE

PROGRAM = """
import asyncio
import threading
from mosec_asgi import ContinuousWorker, Server, SSEWorker, ValidationError, Worker, get_logger

logger = get_logger()

class Read(Worker):
    def __init__(self):
        logger.info("loading")

    def forward(self, data):
        logger.info("reading")
        if data == "wrong":
            raise ValidationError("no")
        if data == "broken":
            raise KeyError("no")
        return data

class Work(Worker):
    def forward(self, data):
        # What a library does that works in threads.
        thread = threading.Thread(target=logger.info, args=("working on %d", len(data)))
        thread.start()
        thread.join()
        if "fails" in data:
            raise RuntimeError("the batch has failed")
        return data

class Wait(Worker):
    async def forward(self, data):
        await asyncio.sleep(0.02)
        await asyncio.to_thread(logger.info, "waited")
        return data

class Say(SSEWorker):
    def forward(self, data):
        logger.info("saying")
        yield "said"

class Step(ContinuousWorker):
    def __init__(self):
        self.slots = {}

    def admit(self, item):
        logger.info("admitting")
        slot = min(set(range(self.max_batch_size)) - self.slots.keys())
        self.slots[slot] = item
        return slot

    def step(self):
        for slot in self.slots:
            yield slot, "step"
            yield slot, self.FINISHED

    def evict(self, slot):
        logger.info("evicting")
        del self.slots[slot]

server = Server()
server.append_worker(Read)
server.append_worker(Work, max_batch_size=8, max_wait_time=50)
server.append_worker(Wait, concurrency=8, route="/async")
server.append_worker(Say, route="/stream")
server.append_worker(Step, max_batch_size=4, route="/steps")
if __name__ == "__main__":
    server.run()
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    folder = tmp_path_factory.mktemp("logs")
    file = written(folder, PROGRAM)
    with running(python(file, "--access-log", "--timeout", "30000"), folder / "output.log", cwd=folder) as program:
        program.wait_ready()
        yield program


def ask(program: Program, request_id: str, route: str = "/inference", data: object = "secret") -> int:
    return program.client.post(route, json=data, headers={"x-request-id": request_id}).status_code


def lines_of(program: Program, request_id: str) -> list[dict[str, Any]]:
    """Return the fields of the lines with a request's id, by itself or among others, once its last one is there."""

    def found() -> list[dict[str, Any]]:
        rows = [row["fields"] for row in program.lines()]
        return [fields for fields in rows if request_id in str(fields.get("request_id", "")).split()]

    wait_until(lambda: any("status" in fields for fields in found()), f"{request_id} has no access line")
    return found()


def said(fields: dict[str, Any]) -> tuple[Any, ...]:
    return fields.get("stage", "server"), fields["message"]


def test_one_request_is_found_by_its_id_in_the_server_and_in_both_stages(program: Program) -> None:
    assert ask(program, "order-66") == 200
    *stages, access = lines_of(program, "order-66")
    assert [(*said(fields), fields["worker"]) for fields in stages] == [
        ("Read_1", "reading", 1),
        ("Work_2", "working on 1", 1),
    ]
    assert re.fullmatch(r"POST /inference 200 in [0-9.]+ ms", access["message"])
    assert (access["method"], access["path"], access["status"]) == ("POST", "/inference", 200)
    assert 0 < access["duration_ms"] < 30_000


def test_a_batch_has_the_ids_of_all_its_requests(program: Program) -> None:
    ids = [f"of-eight-{number}" for number in range(8)]
    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(lambda request_id: ask(program, request_id), ids)) == {200}
    batches = [fields for fields in lines_of(program, ids[0]) if fields.get("stage") == "Work_2"]
    assert len(batches) == 1
    together = batches[0]["request_id"].split()
    assert set(together) <= set(ids)
    assert batches[0]["message"] == f"working on {len(together)}"


def test_a_part_of_a_batch_that_is_run_again_has_its_own_ids_only(program: Program) -> None:
    with ThreadPoolExecutor(4) as threads:
        asked = [threads.submit(ask, program, f"part-{n}", data="fails" if n == 0 else n) for n in range(4)]
        assert [one.result() for one in asked] == [500, 200, 200, 200]
    rows = [fields for fields in lines_of(program, "part-0") if fields["message"].startswith("working on")]
    sizes = [len(fields["request_id"].split()) for fields in rows]
    assert [fields["message"] for fields in rows] == [f"working on {size}" for size in sizes]
    assert sizes[-1] == 1


def test_concurrent_units_of_one_process_do_not_mix_their_ids(program: Program) -> None:
    ids = [f"async-{number}" for number in range(8)]
    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(lambda request_id: ask(program, request_id, "/async"), ids)) == {200}
    for request_id in ids:
        told = [fields for fields in lines_of(program, request_id) if "stage" in fields]
        assert [(*said(fields), fields["request_id"]) for fields in told] == [("Wait_3", "waited", request_id)]


@pytest.mark.parametrize(
    ("route", "stage", "messages"), [("/stream", "Say_4", ["saying"]), ("/steps", "Step_5", ["admitting", "evicting"])]
)
def test_a_stream_is_found_as_well(program: Program, route: str, stage: str, messages: list[str]) -> None:
    request_id = f"of{route}".replace("/", "-")
    assert ask(program, request_id, route) == 200

    def all_there() -> bool:
        # The slot is freed after the answer.
        told = [said(fields) for fields in lines_of(program, request_id) if "stage" in fields]
        return told == [(stage, message) for message in messages]

    wait_until(all_there, f"the lines are {lines_of(program, request_id)}")


@pytest.mark.parametrize(("data", "status"), [("wrong", 422), ("broken", 500)])
def test_an_error_is_found_in_the_worker_and_in_the_server(program: Program, data: str, status: int) -> None:
    assert ask(program, f"order-{status}", data=data) == status
    rows = lines_of(program, f"order-{status}")
    assert [fields.get("stage") for fields in rows] == ["Read_1", "Read_1", None]
    assert rows[-1]["status"] == status


def test_outside_of_a_request_a_worker_says_who_it_is(program: Program) -> None:
    [fields] = [row["fields"] for row in program.lines() if row["fields"]["message"] == "loading"]
    assert fields == {"message": "loading", "stage": "Read_1", "worker": 1}


def test_uvicorns_lines_have_the_same_form_and_so_has_every_line(program: Program) -> None:
    targets = {row["target"].partition("::")[0] for row in program.lines()}
    assert {"uvicorn.error", "user", "mosec_asgi.host.run", "mosec_asgi.web.access"} <= targets
    assert len(program.lines()) == len(program.output.splitlines())


def test_other_paths_have_a_line_too_and_no_query(program: Program) -> None:
    program.client.get("/readyz?token=hidden", headers={"x-request-id": "probe"})
    [fields] = lines_of(program, "probe")
    assert (fields["method"], fields["path"], fields["status"]) == ("GET", "/readyz", 200)
    assert "hidden" not in program.output


def test_nothing_that_a_request_holds_is_logged_even_when_debugging_and_no_access_without_the_setting(
    tmp_path: Path, log: Path
) -> None:
    file = written(tmp_path, PROGRAM)
    with running([sys.executable, str(file), "--port", "{port}", "--debug"], log, cwd=tmp_path) as program:
        program.wait_ready()
        assert [ask(program, "r1", route, "secret") for route in ("/inference", "/async", "/stream")] == [200] * 3
        assert program.client.post("/inference", content=b'{"secret').status_code == 400
        assert program.client.post("/inference", content=b"secret", headers={"x-request-timeout": "0"}).is_error
    assert "DEBUG" in program.output
    assert "stage=Read_1 worker=1 request_id=r1" in program.output
    assert ("secret" in program.output, "\x1b[" in program.output, "POST /" in program.output) == (False, False, False)


def test_of_a_fault_that_a_client_repeats_some_is_logged_and_what_is_told_adds_up(tmp_path: Path, log: Path) -> None:
    file = written(tmp_path, PROGRAM)
    count = 3 * MOST
    with running(python(file), log, cwd=tmp_path) as program:
        program.wait_ready()
        with ThreadPoolExecutor(4) as pool:
            statuses = set(pool.map(lambda n: ask(program, f"f{n}", data="broken"), range(count)))
        assert statuses == {500}
        # Another one is shown whole, in the midst of that.
        assert ask(program, "other", data="fails") == 500
        assert program.metric('throughput_total{code="500",endpoint="/inference"}') == count + 1
    rows = [row["fields"] for row in program.lines() if row["level"] == "ERROR"]
    [other] = [fields for fields in rows if fields.get("request_id") == "other"]
    assert "RuntimeError: the batch has failed" in other["exc_info"]
    rows.remove(other)
    summaries = [fields for fields in rows if "more requests have failed in the same way" in fields["message"]]
    lines = [fields for fields in rows if fields not in summaries]
    assert sum("exc_info" in fields for fields in lines) == MOST_WHOLE
    assert all(fields["message"].startswith("KeyError: 'no'") and fields["request_id"] for fields in lines)
    told = sum(int(fields["message"].split()[0]) for fields in summaries)
    assert len(lines) + told == count
    assert len(rows) < MOST + 5
