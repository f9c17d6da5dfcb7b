"""`mosec-asgi check`: what it shows, what it warns of, and that it starts nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import environment_of_programs, written

from mosec_asgi.cli.advice import advice
from mosec_asgi.config import Settings
from mosec_asgi.runtime import Runtime
from mosec_asgi.worker import Worker

SERVICE = """
from typing import TypedDict
from mosec_asgi import Server, Worker


class Text(TypedDict):
    text: str


class Prepare(Worker):
    example = {"text": "hello"}

    def forward(self, data: Text) -> str:
        return data["text"]


class Model(Worker):
    def __init__(self):
        raise AssertionError("a worker was made")

    def forward(self, data: list[str]) -> list[int]:
        return [len(text) for text in data]


server = Server(title="lengths")
server.append_worker(Prepare, num=2)
server.append_worker(Model, max_batch_size=8, max_wait_time=5, timeout=2)
broken = Server()
broken.append_worker(Prepare)
wrong = Server()


def within():
    class Local(Worker):
        def forward(self, data):
            return data

    return Local


local = Server()
local.append_worker(within())
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    written(tmp_path, SERVICE, "app.py")
    return tmp_path


def check(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mosec_asgi", "check", *arguments]
    variables = {**environment_of_programs(), **environment}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, env=variables)


def test_the_stages_routes_formats_and_settings_are_shown(folder: Path) -> None:
    done = check(folder, "app:server", "--port=8123", MOSEC_API_KEYS="a-secret-of-many-letters")
    assert (done.returncode, done.stderr) == (0, "")
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["Prepare_1", "app.Prepare", "2", "1", "10", "3", "process,", "spawn"] in rows
    assert ["Model_2", "app.Model", "1", "8", "5", "2", "process,", "spawn"] in rows
    assert ["/inference", "Prepare_1", "→", "Model_2"] in rows
    assert any(row[:2] == ["/inference", "POST"] and "{text: string}" in " ".join(row) for row in rows if row)
    assert ["port", "8123", "8000"] in rows
    assert "secret" not in done.stdout
    assert "app:server can be served" in done.stdout


def test_what_cannot_be_served_is_one_line_and_exit_code_1(folder: Path) -> None:
    for arguments, text in (
        (["app:wrong"], "app:wrong cannot be started: the server has no stage to serve"),
        (["app:server", "--timeout=soon"], "--timeout must be a whole number of milliseconds, not 'soon'"),
        # What only a start would find out, before a worker runs.
        (["app:local"], "the worker class within.<locals>.Local of stage Local_1 cannot be sent to a spawned process"),
        (["app:server", "--tenant-weights=gold:3"], "the setting tenant_weights is a list of names and numbers"),
        (["app:server", "--api-key-file=none.txt"], "the file of API keys none.txt cannot be read"),
        (["app:server", "--ssl-certfile=none.pem"], "MOSEC_SSL_CERTFILE) none.pem cannot be read"),
    ):
        done = check(folder, *arguments)
        [line] = done.stderr.splitlines()
        assert (done.returncode, done.stdout, text in line) == (1, "", True), line


def test_an_exporter_of_spans_that_is_not_there_is_found_before_a_start(folder: Path) -> None:
    done = check(folder, "app:server", "--tracing", OTEL_EXPORTER_OTLP_PROTOCOL="carrier-pigeon")
    assert (done.returncode, done.stdout) == (1, "")
    assert "cannot be started: OTEL_EXPORTER_OTLP_PROTOCOL must be one of" in done.stderr


def test_warnings_fail_only_where_that_is_asked_for(folder: Path) -> None:
    done = check(folder, "app:server", "--timeout=1500")
    assert done.returncode == 0
    # What is logged at each start is among them.
    assert "warning: timeout=2 (seconds) of the stage Model_2 has no effect" in done.stdout
    assert done.stderr == ""
    assert check(folder, "app:server", "--timeout=1500", "--strict").returncode == 1


class Echo(Worker):
    def forward(self, data: Any) -> Any:
        return data


class Tried(Echo):
    example = 1


def told(runtime: Runtime, cpus: int = 64, **settings: Any) -> Iterator[str]:
    return advice({"/inference": [runtime]}, Settings(**settings), cpus)


def test_nothing_is_said_of_what_is_in_order() -> None:
    assert list(told(Runtime(Tried, num=4, max_batch_size=8, max_wait_time=10))) == []


@pytest.mark.parametrize(
    ("runtime", "settings", "text"),
    [
        (Runtime(Tried), {"timeout": 0}, "timeout=0: requests wait without a limit"),
        (Runtime(Tried, num=3), {"cpus": 2}, "3 worker processes share 2 CPUs"),
        (Runtime(Tried, max_wait_time=9), {}, "max_wait_time=9 has no effect"),
        (Runtime(Tried, max_batch_size=8), {"capacity": 4}, "no batch is ever full"),
        (Runtime(Tried, num=2, max_batch_size=3), {"capacity": 4}, "its 2 workers are never all busy"),
        (
            Runtime(Tried, max_batch_size=2, max_wait_time=500),
            {"timeout": 500},
            "just in time to be answered: lower it",
        ),
        (Runtime(Echo), {}, "/inference: Echo has no example"),
    ],
)
def test_what_is_probably_not_meant_is_said_with_what_to_do(
    runtime: Runtime, settings: dict[str, Any], text: str
) -> None:
    [line] = told(runtime, **settings)
    assert text in line
    assert ";" in line or ":" in line


def test_threads_are_no_processes() -> None:
    assert list(told(Runtime(Tried, num=9, executor="thread"), cpus=1)) == []
