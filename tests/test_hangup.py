"""SIGHUP under `run()`: workers are replaced; a terminal that is closed ends the service."""

from __future__ import annotations

import asyncio
import logging
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import settled_loop, until
from harness import environment_of_programs, exit_code_without_terminal, free_port, wait_until, written

from mosec_asgi.errors import StartupError
from mosec_asgi.host.hangup import Hangup

SERVICE = """
from mosec_asgi import Server, Worker


class Echo(Worker):
    def forward(self, data):
        return data


server = Server()
server.append_worker(Echo, executor="thread")
if __name__ == "__main__":
    server.run()
"""


class Restarts:
    """Counts restarts, each of which lasts until the test lets it end."""

    def __init__(self) -> None:
        self.begun = 0
        self.gate = asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self) -> None:
        self.begun += 1
        await self.gate.wait()
        if self.error is not None:
            raise self.error


async def test_signals_during_a_restart_make_one_more() -> None:
    restarts = Restarts()
    hangup = Hangup(restarts)
    with hangup.heard():
        hangup.workers_are_ready()
        signal.raise_signal(signal.SIGHUP)
        await until(lambda: restarts.begun == 1)
        for _ in range(3):
            signal.raise_signal(signal.SIGHUP)
            await settled_loop()
        assert restarts.begun == 1
        restarts.gate.set()
        await until(lambda: restarts.begun == 2)
        await settled_loop()
        assert restarts.begun == 2
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


async def test_a_restart_that_fails_is_logged_and_the_next_signal_is_heard(caplog: pytest.LogCaptureFixture) -> None:
    restarts = Restarts()
    restarts.gate.set()
    restarts.error = StartupError("no weights")
    hangup = Hangup(restarts)
    with caplog.at_level(logging.ERROR), hangup.heard():
        hangup.workers_are_ready()
        signal.raise_signal(signal.SIGHUP)
        await until(lambda: restarts.begun == 1)
        await asyncio.sleep(0.01)
        signal.raise_signal(signal.SIGHUP)
        await until(lambda: restarts.begun == 2)


async def test_workers_that_load_are_replaced_once_they_are_ready(caplog: pytest.LogCaptureFixture) -> None:
    restarts = Restarts()
    restarts.gate.set()
    hangup = Hangup(restarts)
    with caplog.at_level(logging.INFO, "mosec_asgi"), hangup.heard():
        for _ in range(2):
            signal.raise_signal(signal.SIGHUP)
            await until(lambda: "still loading" in caplog.text)
        assert restarts.begun == 0
        hangup.workers_are_ready()
        await until(lambda: restarts.begun == 1)
    assert caplog.text.count("still loading") == 1
    assert all(record.levelno == logging.INFO for record in caplog.records)


async def test_a_stop_during_a_restart_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    restarts = Restarts()
    restarts.error = StartupError("the service stops")
    stops: list[bool] = []
    hangup = Hangup(restarts, lambda: bool(stops))
    with caplog.at_level(logging.INFO, "mosec_asgi"), hangup.heard():
        hangup.workers_are_ready()
        signal.raise_signal(signal.SIGHUP)
        await until(lambda: restarts.begun == 1)
        stops.append(True)
        restarts.gate.set()
        await until(lambda: "not replaced: the service stops" in caplog.text)
    assert all(record.levelno == logging.INFO for record in caplog.records)


async def test_a_service_that_stops_replaces_no_workers(caplog: pytest.LogCaptureFixture) -> None:
    restarts = Restarts()
    hangup = Hangup(restarts, lambda: True)
    with caplog.at_level(logging.INFO, "mosec_asgi"), hangup.heard():
        hangup.workers_are_ready()
        signal.raise_signal(signal.SIGHUP)
        await until(lambda: "not replaced any more" in caplog.text)
    assert restarts.begun == 0


LOADS_UNTIL_TOLD = """
import os
import time
from pathlib import Path

from mosec_asgi import Server, Worker


class Echo(Worker):
    def __init__(self):
        Path("loading").touch()
        while not os.path.exists("go"):
            time.sleep(0.01)

    def forward(self, data):
        return data


server = Server()
server.append_worker(Echo)
if __name__ == "__main__":
    server.run()
"""


@pytest.mark.parametrize(
    "way", [["service.py"], ["-m", "mosec_asgi", "engine", "service:server", "--socket", "engine"]]
)
def test_sighup_while_models_load_replaces_them_afterwards(tmp_path: Path, way: list[str]) -> None:
    (tmp_path / "service.py").write_text(LOADS_UNTIL_TOLD)
    log = tmp_path / "log"
    environment = environment_of_programs() | {"MOSEC_PORT": str(free_port())}
    with log.open("w") as output:
        program = subprocess.Popen([sys.executable, *way], cwd=tmp_path, stderr=output, env=environment)
    try:
        wait_until((tmp_path / "loading").exists, "the worker loads")
        program.send_signal(signal.SIGHUP)
        wait_until(lambda: "still loading" in log.read_text(), "the signal is heard")
        (tmp_path / "go").touch()
        wait_until(lambda: "the workers have been replaced" in log.read_text(), "the workers are replaced")
        program.terminate()
        assert program.wait(30) == 0
        assert "ERROR" not in log.read_text()
    finally:
        program.kill()
        program.wait()


async def test_a_signal_that_is_ignored_or_handled_stays_so() -> None:
    restarts = Restarts()
    heard: list[int] = []
    for handler in (signal.SIG_IGN, lambda number, frame: heard.append(number)):
        before = signal.signal(signal.SIGHUP, handler)
        try:
            with Hangup(restarts).heard():
                assert signal.getsignal(signal.SIGHUP) is handler
        finally:
            signal.signal(signal.SIGHUP, before)
    assert restarts.begun == 0


def test_a_service_ends_with_its_terminal(tmp_path: Path) -> None:
    file, log = written(tmp_path, SERVICE), tmp_path / "log"
    port = str(free_port())
    assert exit_code_without_terminal([sys.executable, str(file), "--port", port], log) == 0, log.read_text()
    assert "the terminal has been closed" in log.read_text()
