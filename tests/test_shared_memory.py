"""Large payloads between real processes: nothing is mixed up, nothing is lost, and nothing is left of any of them."""

from __future__ import annotations

import os
import random
import signal
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from harness import Program, child_processes, python, running, wait_until, written

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="this system has no memfd")

PROGRAM = """
    import sys
    from mosec_asgi import Runtime, Server
    from array_workers import AsyncUse, BatchUse, Garbage, Make, Use
    from workers import Raw

    if __name__ == "__main__":
        method = sys.argv[-1]
        made, raw = Runtime(Make, start_method=method), Runtime(Raw, start_method=method)
        server = Server(timeout=20_000)
        server.register_runtime({
            "/use": [made, Runtime(Use, start_method=method)],
            "/async": [made, Runtime(AsyncUse, concurrency=4, start_method=method)],
            "/batch": [made, Runtime(BatchUse, max_batch_size=4, start_method=method)],
            "/raw": [raw],
            "/garbage": [Runtime(Garbage, start_method=method)],
        })
        server.run()
"""
ROUTES = ("/use", "/async", "/batch")


@pytest.fixture(scope="module", params=["spawn", "fork"])
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """A program that the module's tests share; each must leave it as it was."""
    folder = tmp_path_factory.mktemp("program")
    file = written(folder, textwrap.dedent(PROGRAM))
    with running(python(file, request.param), folder / "output.log", cwd=folder) as program:
        program.wait_ready()
        yield program


@pytest.fixture(autouse=True)
def _nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "program" in request.fixturenames:
        program: Program = request.getfixturevalue("program")
        wait_until(lambda: in_use(program) == 0, f"{in_use(program)} bytes are left in use")


def in_use(program: Program) -> int:
    return program.metric("shared_memory_bytes")


def ask(program: Program, route: str, do: str = "answer", **data: Any) -> Any:
    """Return what a request finds in its array."""
    answer = program.client.post(route, json={"do": do, "value": 7, **data})
    assert answer.status_code == 200, answer.text
    return answer.json()


def workers(program: Program, stage: str) -> list[int]:
    """Return the processes of a stage's workers, as the log tells of them, that still run."""
    told = [row for row in program.lines() if row["fields"].get("stage") == stage]
    named = [row["fields"]["message"] for row in told if "worker is ready" in row["fields"]["message"]]
    return [
        pid for pid in (int(text.rsplit(" ", 1)[1]) for text in named) if pid in child_processes(program.process.pid)
    ]


@pytest.mark.parametrize("route", ROUTES)
def test_what_forward_keeps_stays_as_it_was_over_later_requests(program: Program, route: str) -> None:
    for value in range(5):
        ask(program, route, "keep", value=value)
    assert in_use(program) == 5 * 1_003_520
    for value in range(100, 120):
        assert ask(program, route, value=value) == [value, value]
    assert ask(program, route, "tell and let go") == [[value] for value in range(5)]
    # What was let go of is told with the next answer.
    ask(program, route)


def echo_all(program: Program) -> None:
    """Send bodies of all sizes at once; each must come back as it was."""
    noise = random.Random(1).randbytes(600_000)

    def echo(size: int) -> None:
        body = noise[size % 1000 :][:size]
        answer = program.client.post("/raw", content=body)
        assert (answer.status_code, answer.content == body) == (200, True)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(echo, [65_535, 65_536, 65_537, 100_000, 333_333, 399_999, 500_000] * 4))


def test_bodies_and_results_of_all_sizes_come_back_as_they_were(program: Program) -> None:
    echo_all(program)


@pytest.mark.parametrize("stage", ["Make_1", "Use_3"])
def test_a_killed_worker_leaves_nothing_behind(program: Program, stage: str) -> None:
    descriptors = memory_descriptors(program.process.pid)
    for value in range(2):
        ask(program, "/use", "keep", value=value)
        (pid,) = workers(program, stage)
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(ask, program, "/use", value=number) for number in range(20)]
            os.kill(pid, signal.SIGKILL)
            assert [answer.result() for answer in asked] == [[number, number] for number in range(20)]
        wait_until(lambda before=pid: workers(program, stage) not in ([], [before]), "it is not replaced")
    ask(program, "/use", "tell and let go")
    ask(program, "/use")
    assert memory_descriptors(program.process.pid) == descriptors


def memory_descriptors(pid: int) -> int:
    """Return how many descriptors of shared memory a process has."""
    folder = Path(f"/proc/{pid}/fd")
    return sum("mosec_asgi payloads" in os.readlink(link) for link in folder.iterdir() if os.path.lexists(link))


def test_a_worker_killed_while_it_writes_is_replaced_and_its_task_run_again(program: Program, tmp_path: Path) -> None:
    file = tmp_path / "killed"
    assert ask(program, "/use", "die while it writes", value=3, file=str(file)) == [3, 3]
    assert file.exists()


def test_the_second_attempt_gets_the_array_as_the_first_one_got_it(program: Program, tmp_path: Path) -> None:
    file = tmp_path / "killed"
    assert ask(program, "/use", "change it and die", value=4, file=str(file)) == [4, 4]
    assert file.exists()


def test_a_task_that_was_answered_before_its_stage_has_is_no_burden(program: Program, tmp_path: Path) -> None:
    file = tmp_path / "go on"
    answer = program.client.post(
        "/use", json={"do": "wait", "value": 1, "file": str(file)}, headers={"x-request-timeout": "200"}
    )
    assert answer.status_code == 408
    assert in_use(program) == 1_003_520
    file.touch()


def test_a_worker_that_answers_garbage_is_taken_for_dead(program: Program) -> None:
    before = program.restarts("Garbage_6")
    assert program.client.post("/garbage", content=b"garbage").status_code == 500
    assert program.client.post("/garbage", content=b"fine").content == b"fine"
    assert program.restarts("Garbage_6") == before + 2
    assert any("not in its writer's memory" in message for message in program.messages())


def test_where_there_is_little_memory_all_is_answered_and_each_process_says_so_once(tmp_path: Path) -> None:
    file = written(tmp_path, textwrap.dedent(PROGRAM))
    command = python(file, "--shared-memory", "400000", "fork")
    with running(command, tmp_path / "output.log", cwd=tmp_path) as program:
        program.wait_ready()
        echo_all(program)
        for value in range(5):
            ask(program, "/use", "keep", value=value, bytes=100_000 if value % 2 else 1_000_000)
        assert ask(program, "/use", "tell and let go") == [[value] for value in range(5)]
        # What is free again is written again.
        for value in range(20):
            assert ask(program, "/use", value=value, bytes=100_000) == [value, value]
        ask(program, "/use", "keep", bytes=100_000)
        assert in_use(program) == 102_400
        told = [row for row in program.lines() if "raise the setting shared_memory" in row["fields"]["message"]]
        pids = [row["pid"] for row in told]
        assert pids
        assert len(pids) == len(set(pids))
        assert workers(program, "Make_1")[0] in pids
