"""The header Server-Timing: on every way of a request, of failures and streams as well, and as a browser reads it."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from browser import chromium
from harness import python, running, written

from mosec_asgi import Server, SSEWorker, Worker, testing
from mosec_asgi.messages import Outcome, StageTime
from mosec_asgi.web import server_timing
from mosec_asgi.web.responses import Response

ENTRY = re.compile(r"([^;, ]+);dur=([0-9.]+)")


class First(Worker):
    def forward(self, data: Any) -> Any:
        return data


class Second(Worker):
    def forward(self, data: list[Any]) -> list[Any]:
        return data


class Spell(SSEWorker):
    def forward(self, data: str) -> Any:
        yield from data


def server(**settings: Any) -> Server:
    made = Server(**{"timeout": 60_000, "server_timing": True, **settings})
    made.append_worker(First)
    made.append_worker(Second, max_batch_size=4)
    made.append_worker(Spell, route="/spell")
    return made


def times(response: httpx.Response) -> dict[str, float]:
    """Return what the header says, in milliseconds."""
    return {name: float(value) for name, value in ENTRY.findall(response.headers.get("server-timing", ""))}


def test_each_stage_says_how_long_a_request_has_waited_and_how_long_it_was_worked_on() -> None:
    async def check() -> None:
        async with testing.serving(server()) as service:
            service.worker(First).slow(2.0)
            service.worker(Second).slow(3.0)
            ahead = asyncio.ensure_future(service.client.post("/inference", json=1))
            await asyncio.sleep(0.5)
            behind = await service.client.post("/inference", json=2)
            said = times(behind)
            assert list(said) == ["First_1.queue", "First_1.compute", "Second_2.queue", "Second_2.compute"]
            assert said["First_1.queue"] == pytest.approx(1500, abs=20)
            assert said["First_1.compute"] == pytest.approx(2000, abs=20)
            assert said["Second_2.queue"] == pytest.approx(1000, abs=20)
            assert said["Second_2.compute"] == pytest.approx(3000, abs=20)
            assert times(await ahead)["First_1.queue"] == pytest.approx(0, abs=20)

    testing.run(check())


def test_a_request_that_was_not_done_in_time_says_where_its_time_went() -> None:
    async def check() -> None:
        async with testing.serving(server(timeout=4000, load_shedding=False)) as service:
            service.worker(Second).hang(after=0)
            late = await service.client.post("/inference", json=1)
            assert late.status_code == 408
            said = times(late)
            assert said["First_1.compute"] == pytest.approx(0, abs=20)
            assert said["Second_2.queue"] + said["Second_2.compute"] == pytest.approx(4000, abs=20)

    testing.run(check())


def test_a_refused_request_has_been_nowhere() -> None:
    async def check() -> None:
        async with testing.serving(server()) as service:
            assert "server-timing" not in (await service.client.post("/inference", content=b"")).headers
            failed = await service.client.post("/inference", content=b"no json")
            assert failed.status_code == 400
            assert "First_1.compute" in times(failed)

    testing.run(check())


def test_a_stream_says_what_is_known_at_its_first_piece() -> None:
    async def check() -> None:
        async with testing.serving(server()) as service:
            service.worker(Spell).slow(1.5)
            answer = await service.client.post("/spell", json="hey")
            assert answer.text.count("data:") == 3
            assert times(answer)["Spell_3.compute"] == pytest.approx(1500, abs=20)

    testing.run(check())


def test_without_the_setting_nobody_is_told() -> None:
    async def check() -> None:
        async with testing.serving(server(server_timing=False)) as service:
            for path in ("/inference", "/spell"):
                assert "server-timing" not in (await service.client.post(path, json="hey")).headers

    testing.run(check())


def test_of_several_calls_the_longest_time_at_each_stage_is_said() -> None:
    one = Outcome(1, 200, b"", times=(StageTime("A_1", 0.001, 0.5), StageTime("B_2", 0.0, 0.1)))
    other = Outcome(2, 200, b"", times=(StageTime("A_1", 0.25, 0.002),))
    _, value = server_timing.added(Response(200, (), b""), [one, other]).headers[-1]
    assert dict(ENTRY.findall(value.decode())) == {
        "A_1.queue": "250.000", "A_1.compute": "500.000", "B_2.queue": "0.000", "B_2.compute": "100.000"
    }  # fmt: skip


def test_a_name_with_letters_that_a_header_cannot_have_is_made_harmless() -> None:
    _, value = server_timing.header([[StageTime("Größe, x;y_1", 0.0, 0.0)]])
    assert value == b"Gr__e__x_y_1.queue;dur=0.000, Gr__e__x_y_1.compute;dur=0.000"


SERVICE = """
import time


from mosec_asgi import Server, Worker


class Model(Worker):
    def forward(self, data):
        time.sleep(0.05)
        return data


if __name__ == "__main__":
    server = Server(server_timing=True)
    server.append_worker(Model)
    server.run()
"""
READ = """
const done = arguments[0];
fetch("/inference", {method: "POST", body: "[1]"})
    .then(answer => answer.text())
    .then(() => {
        const [entry] = performance.getEntriesByType("resource").filter(each => each.name.endsWith("/inference"));
        done(entry.serverTiming.map(each => [each.name, each.duration]));
    });
"""


def test_a_browser_reads_it_through_the_performance_api_past_asgi(tmp_path: Path) -> None:
    program_file = written(tmp_path, SERVICE)
    with running(python(program_file), tmp_path / "log") as program:
        program.wait_ready()
        # Past ASGI, and through it: a chunked body does not take the short way.
        assert times(program.client.post("/inference", json=[1]))["Model_1.compute"] >= 50
        assert times(program.client.post("/inference", content=iter([b"[1]"])))["Model_1.compute"] >= 50
        with chromium(tmp_path / "profile") as browser:
            browser.get(f"http://127.0.0.1:{program.port}/openapi/swagger/")
            read = dict(browser.execute_async_script(READ))
    assert list(read) == ["Model_1.queue", "Model_1.compute"]
    assert 50 <= read["Model_1.compute"] < 1000
    assert 0 <= read["Model_1.queue"] < 1000
