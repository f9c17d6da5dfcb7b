"""The example of several routes: both answer, and they share the workers of their first stage."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator

import pytest
from harness import ROOT, Program, child_processes, running

EXAMPLE = ROOT / "examples" / "routes"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """The service under uvicorn; as `python server.py` it runs in test_examples_openapi.py."""
    log = tmp_path_factory.mktemp("log") / "server.log"
    command = [sys.executable, "-m", "uvicorn", "server:server", "--port", "{port}"]
    with running(command, log, cwd=EXAMPLE, environment={"MOSEC_TIMEOUT": "30000"}) as program:
        program.wait_ready()
        yield program


def test_the_client_prints_what_the_readme_shows(program: Program) -> None:
    readme = (EXAMPLE / "README.md").read_text()
    arguments, shown = re.search(r"client\.py (.*)\n\n```\n(.*?)```", readme, re.DOTALL).groups()  # type: ignore[union-attr]
    command = [sys.executable, str(EXAMPLE / "client.py"), *shlex.split(arguments), "--url", program.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, shown, "")


def test_the_first_stage_is_shared(program: Program) -> None:
    def split() -> int:
        return sum(
            program.metric(f'process_duration_second_count{{connection="{worker}",stage="Split_1"}}')
            for worker in (1, 2)
            if f'connection="{worker}",stage="Split_1"' in program.client.get("/metrics").text
        )

    before = split()
    for route in ("/count", "/frequent"):
        assert program.client.post(route, json={"text": "a"}).status_code == 200
    assert split() == before + 2
    stages = {line for line in program.client.get("/metrics").text.splitlines() if "workers_ready{" in line}
    assert {line.partition("stage=")[2] for line in stages} == {'"Split_1"} 2', '"Count_2"} 1', '"Frequent_3"} 1'}
    assert len(child_processes(program.process.pid)) >= 4


@pytest.mark.parametrize("route", ["/count", "/frequent"])
def test_a_wrong_request_is_refused_on_both(program: Program, route: str) -> None:
    answer = program.client.post(route, json={"text": 1})
    assert (answer.status_code, answer.text) == (422, "request validation error: 'text' must be a string")


def test_a_route_that_is_not_there_fails_the_client(program: Program) -> None:
    command = [sys.executable, str(EXAMPLE / "client.py"), "/other", "--text", "a", "--url", program.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "/other: 404\n")
