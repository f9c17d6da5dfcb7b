"""Workers that die, hang and lie: no request is lost, and none spoils another. Real processes, real signals."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from harness import Program, benchmark, child_processes, serving, wait_until

faults = benchmark("faults")
servers = benchmark("servers")

GOOD = [f"good {number}" for number in range(5)]
BAD_JSON = b"{"
# How an item breaks its worker: the status that it is answered, and how many workers that costs. Out of memory comes in
# two kinds. An allocation that is refused is an exception like others; where the machine itself is out of memory the
# kernel sends SIGKILL from outside, which is the way "outside".
WAYS = {
    "exit": (500, 2),
    "kill": (500, 2),
    "segfault": (500, 2),
    "memory": (500, 0),
    "close": (500, 2),
    "garbage": (500, 2),
    "unknown": (500, 2),
    # Its first answer is right, and the second one is the offence.
    "twice": (200, 1),
    # Alone it cannot be out of order.
    "reverse": (200, 1),
    "outside": (500, 2),
}


@pytest.fixture(scope="module", params=["fork", "spawn"])
def saboteurs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """Serve a stage for each way to break a worker; `/<way>` is the route of stage `Sabotage_<place in WAYS>`."""
    stages = f"""
        for way in Sabotage.WAYS:
            server.append_worker(
                Sabotage, max_batch_size=8, max_wait_time=5000, start_method={request.param!r}, route=f"/{{way}}"
            )
    """
    with serving(tmp_path_factory.mktemp(request.param), stages, "--timeout", "20000") as program:
        yield program


@contextmanager
def asked(program: Program, route: str, bodies: Sequence[bytes]) -> Iterator[list[httpx.Response]]:
    """Send requests all at once; their answers are there, in the order of the bodies, at the block's end."""
    answers: list[httpx.Response] = []
    with ThreadPoolExecutor(len(bodies)) as threads:
        waiting = [threads.submit(program.client.post, route, content=body) for body in bodies]
        yield answers
        answers.extend(answer.result() for answer in waiting)


def encoded(*items: Any) -> list[bytes]:
    return [json.dumps(item).encode() for item in items]


@pytest.mark.parametrize("way", WAYS)
def test_what_breaks_a_worker_costs_no_other_request_of_the_batch(saboteurs: Program, way: str) -> None:
    status, restarts = WAYS[way]
    stage = f"Sabotage_{list(WAYS).index(way) + 1}"
    # It is the first of its batch, which leaves when it is full.
    with asked(saboteurs, f"/{way}", encoded(way)) as culprit:
        wait_until(lambda: saboteurs.metric(f'queue_length{{stage="{stage}"}}'), "it does not wait for the others")
        with asked(saboteurs, f"/{way}", [*encoded(*GOOD), BAD_JSON, *encoded("invalid")]) as others:
            if way == "outside":
                kill_who_waits_for_it(saboteurs, times=2)
    assert [(answer.status_code, answer.json()) for answer in others[:5]] == [(200, item) for item in GOOD]
    assert [answer.status_code for answer in (*others[5:], *culprit)] == [400, 422, status]

    with asked(saboteurs, f"/{way}", encoded(*range(8))) as answers:
        pass
    assert [(answer.status_code, answer.json()) for answer in answers] == [(200, number) for number in range(8)]
    assert saboteurs.restarts(stage) == restarts
    assert len(deaths_told(saboteurs, stage)) == restarts


def kill_who_waits_for_it(program: Program, times: int) -> None:
    killed: set[int] = set()

    def another_waits() -> set[int]:
        return {int(pid) for pid in re.findall(r"to be killed: (\d+)", program.output)} - killed

    for _ in range(times):
        wait_until(another_waits, "no worker waits to be killed")
        for worker in another_waits():
            os.kill(worker, signal.SIGKILL)
            killed.add(worker)


def deaths_told(program: Program, stage: str) -> list[str]:
    """Return the messages that tell of the end of the stage's first worker, and of no request."""
    return [
        row["fields"]["message"]
        for row in program.lines()
        if row["level"] == "ERROR"
        and (row["fields"].get("stage"), row["fields"].get("worker")) == (stage, 1)
        and "request_id" not in row["fields"]
    ]


# -- workers that do not come back -------------------------------------------------------------------------------------


@pytest.mark.parametrize("lock", ["held", "released"])
def test_a_worker_stuck_in_c_costs_its_request_a_408_and_nobody_else_anything(tmp_path: Path, lock: str) -> None:
    stages = "server.append_worker(Deadlock, timeout=0.3)"
    with serving(tmp_path, stages, "--timeout", "20000") as program:
        first = program.client.post("/inference", json="who").json()
        with ThreadPoolExecutor(1) as threads:
            began = time.monotonic()
            stuck = threads.submit(program.client.post, "/inference", json=lock)
            program.wait_for_output("locked in")
            with asked(program, "/inference", encoded(*["who"] * 4)) as answers:
                assert stuck.result().status_code == 408
                # Far below the 20 s of the service, and far above the 1.3 s that are meant.
                assert time.monotonic() - began < 8
        assert {answer.status_code for answer in answers} == {200}
        assert first not in {answer.json() for answer in answers}
        assert program.restarts("Deadlock_1") == 1


def test_a_worker_that_is_stopped_at_work_costs_its_request_a_408_and_is_replaced(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    stages = "server.append_worker(Gate, timeout=0.3, start_method='fork')"
    with serving(tmp_path, stages, "--timeout", "20000") as program, ThreadPoolExecutor(1) as threads:
        request = threads.submit(program.client.post, "/inference", json=str(gate))
        program.wait_for_output("waiting at the gate")
        [worker] = child_processes(program.process.pid)
        os.kill(worker, signal.SIGSTOP)
        assert request.result().status_code == 408
        gate.touch()
        assert program.client.post("/inference", json=str(gate)).status_code == 200
        assert worker not in child_processes(program.process.pid)


def test_a_worker_that_is_stopped_while_it_is_idle_is_replaced(tmp_path: Path) -> None:
    stages = "server.append_worker(Echo, timeout=0.3, start_method='fork')"
    with serving(tmp_path, stages, "--timeout", "20000") as program:
        [worker] = child_processes(program.process.pid)
        os.kill(worker, signal.SIGSTOP)
        # It has not begun the first request, which may so be run again.
        assert program.client.post("/inference", json=1).status_code in (200, 408)
        assert program.client.post("/inference", json=2).json()["pid"] != worker
        assert worker not in child_processes(program.process.pid)


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_workers_stuck_in_c_end_with_a_server_that_is_killed(tmp_path: Path, start_method: str) -> None:
    # The server, if it lived, would replace them; now nobody does, and they end within the same time or so.
    stages = f"""
        for route in ("/held", "/released"):
            server.append_worker(Deadlock, timeout=1.5, start_method={start_method!r}, route=route)
    """
    with serving(tmp_path, stages, "--timeout", "20000") as program, ThreadPoolExecutor(2) as threads:
        requests = [threads.submit(program.client.post, f"/{lock}", json=lock) for lock in ("held", "released")]
        wait_until(lambda: program.output.count("locked in") == 2, "the workers are not stuck")
        program.send(signal.SIGKILL)
        program.wait()
        assert {type(request.exception()) for request in requests} <= {httpx.ReadError, httpx.RemoteProtocolError}
        program.assert_nothing_left(15.0)


# -- stages whose workers no longer start ------------------------------------------------------------------------------


@pytest.mark.parametrize("cause", ["raise", "hang"])
def test_a_stage_whose_workers_no_longer_start_is_down_until_they_do(tmp_path: Path, cause: str) -> None:
    stages = """
        server.append_worker(Relapse, max_attempts=1, start_method="fork")
        server.append_worker(Echo, route="/other")
    """
    environment = {"TESTS_FOLDER": str(tmp_path)}
    with serving(tmp_path, stages, "--start-timeout", "2000", environment=environment) as program:
        obstacle = tmp_path / cause
        obstacle.touch()
        assert program.client.post("/inference", json="die").status_code == 500

        def stages_not_ready() -> dict[str, str]:
            return dict(program.client.get("/readyz").json()["stages"])

        wait_until(lambda: "do not start" in stages_not_ready().get("Relapse_1", ""), "/readyz does not tell")
        assert list(stages_not_ready()) == ["Relapse_1"]
        refused = program.client.post("/inference", json="hello")
        assert (refused.status_code, int(refused.headers["retry-after"]) > 0) == (503, True)
        # The rest of the service does not suffer from it.
        assert program.client.post("/other", json=1).status_code == 200
        assert program.answers("/livez")

        obstacle.unlink()
        program.wait_ready()
        assert program.client.post("/inference", json="hello").json() == "hello"


# -- load --------------------------------------------------------------------------------------------------------------


def test_clients_that_leave_while_workers_die_leave_nothing_behind(tmp_path: Path) -> None:
    """Whatever a client had sent and whatever its worker was at, its place among `capacity` is free again."""
    chance = random.Random(1)
    stages = "server.append_worker(Echo, num=2, start_method='fork', max_attempts=5)"
    head = b"POST /inference HTTP/1.1\r\nhost: test\r\ncontent-length: 2000\r\n\r\n"
    request = head + json.dumps("x" * 1998).encode()
    with serving(tmp_path, stages, "--timeout", "20000", "--capacity", "8") as program:
        for number in range(300):
            with socket.create_connection(("127.0.0.1", program.port), 20) as connection:
                connection.sendall(request[: chance.choice([len(request), chance.randrange(len(request))])])
                time.sleep(chance.random() * 0.004)
            if number % 60 == 0:
                os.kill(child_processes(program.process.pid)[0], signal.SIGKILL)
        wait_until(lambda: not program.metric("remaining_task"), "places are not freed")
        with asked(program, "/inference", encoded(*range(8))) as answers:
            pass
        assert [(answer.status_code, answer.json()["echo"]) for answer in answers] == [(200, n) for n in range(8)]
        assert program.metric('queue_length{stage="Echo_1"}') == 0


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks into another process by /proc")
def test_a_worker_that_dies_costs_the_server_no_descriptor(tmp_path: Path) -> None:
    with serving(tmp_path, "server.append_worker(Echo, start_method='fork')") as program:
        descriptors = Path(f"/proc/{program.process.pid}/fd")

        def replaced() -> int:
            [worker] = child_processes(program.process.pid)
            os.kill(worker, signal.SIGKILL)
            wait_until(lambda: worker not in child_processes(program.process.pid), "it is not buried")
            assert program.client.post("/inference", json=1).status_code == 200
            return len(list(descriptors.iterdir()))

        assert len({replaced() for _ in range(5)}) == 1


@pytest.fixture(scope="module")
def besieged() -> Iterator[Any]:
    with servers.alone("besieged") as server:
        yield server


@pytest.mark.parametrize("promise", faults.PROMISES, ids=lambda promise: promise.name)
def test_a_short_siege_breaks_no_promise(besieged: Any, promise: Any) -> None:
    """`make faults` does the same for a minute each."""
    outcome = faults.besiege(besieged, promise, seconds=1.0, interval=0.3)
    assert faults.broken(promise, outcome) == []
