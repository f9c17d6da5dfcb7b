"""The example of an environment for each worker: each has its GPU, also in its next life."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from harness import ROOT, Program, child_processes, running, wait_until

EXAMPLE = ROOT / "examples" / "environment"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """The service under uvicorn; as `python server.py` it runs in test_examples_openapi.py."""
    log = tmp_path_factory.mktemp("log") / "server.log"
    # The service's own is not theirs.
    environment = {"CUDA_VISIBLE_DEVICES": "7", "MOSEC_TIMEOUT": "30000"}
    command = [sys.executable, "-m", "uvicorn", "server:server", "--port", "{port}"]
    with running(command, log, cwd=EXAMPLE, environment=environment) as program:
        program.wait_ready()
        yield program


def gpus(program: Program) -> dict[int, str]:
    """Return the GPU of each worker that answers one of many requests."""
    answers = [program.client.post("/inference", json={}).json() for _ in range(50)]
    return {answer["worker"]: answer["gpu"] for answer in answers}


def test_each_worker_has_its_own_and_keeps_it_when_it_is_replaced(program: Program) -> None:
    wait_until(lambda: gpus(program) == {1: "0", 2: "1"}, "the workers do not both answer")
    for pid in child_processes(program.process.pid):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: program.restarts("Where_1") == 2, "the workers are not replaced")
    wait_until(lambda: program.metric('workers_ready{stage="Where_1"}') == 2, "no workers have taken their places")
    wait_until(lambda: gpus(program) == {1: "0", 2: "1"}, "the new workers do not both answer")


def test_the_client_shows_them(program: Program) -> None:
    command = [sys.executable, str(EXAMPLE / "client.py"), "--count", "40", "--url", program.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    assert {line.partition(" and ")[0] for line in lines} <= {"worker 1 has GPU 0", "worker 2 has GPU 1"}
    assert sum(int(line.split()[-1]) for line in lines) == 40
