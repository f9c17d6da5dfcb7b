"""`mosec-asgi serve --reload`: an edit takes over without a lost call, and a broken one changes nothing."""

from __future__ import annotations

import asyncio
import io
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from harness import (
    Program,
    environment_of_programs,
    exit_code_without_terminal,
    free_port,
    running,
    wait_until,
    written,
)

from mosec_asgi.cli.output import Output
from mosec_asgi.cli.reload import Reloader

SERVICE = """
import time
from mosec_asgi import Server, Worker


class Times(Worker):
    def __init__(self):
        # A model takes a while to load; whoever took calls meanwhile could not answer them.
        time.sleep(0.5)

    def forward(self, data: int) -> int:
        return FACTOR * data


server = Server()
server.append_worker(Times, executor="thread", num=2)
"""


def edit(folder: Path, factor: str) -> None:
    """Write the service at one blow, as editors do, so that no half of it is ever read."""
    written(folder, SERVICE.replace("FACTOR", factor), "new")
    os.replace(folder / "new", folder / "app.py")


@contextmanager
def serving(folder: Path, *arguments: str, stops: bool = True) -> Iterator[Program]:
    command = [sys.executable, "-m", "mosec_asgi", "serve", "app:server", "--reload", "--port={port}", *arguments]
    environment = {"MOSEC_LOG_LEVEL": "warning"}
    with running(command, folder.parent / "output.log", cwd=folder, environment=environment, stops=stops) as program:
        yield program


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "service"
    folder.mkdir()
    edit(folder, "2")
    return folder


def answer(program: Program) -> str:
    return program.client.post("/inference", json=10).text


class Load:
    """Clients that ask all the time, over connections that they keep, and over new ones."""

    def __init__(self, url: str, uds: str | None = None) -> None:
        self.answers: list[str] = []
        self.failures: list[str] = []
        self._ended = threading.Event()
        self._url = url
        self._uds = uds
        self._threads = [threading.Thread(target=self._ask, args=(keeps,)) for keeps in (True, True, False)]

    def _ask(self, keeps: bool) -> None:
        headers = {} if keeps else {"connection": "close"}
        transport = httpx.HTTPTransport(verify=False, uds=self._uds)
        with httpx.Client(base_url=self._url, headers=headers, timeout=20, transport=transport) as client:
            while not self._ended.is_set():
                try:
                    response = client.post("/inference", json=10)
                except httpx.HTTPError as error:
                    self.failures.append(repr(error))
                    continue
                if response.status_code == 200:
                    self.answers.append(response.text)
                else:
                    self.failures.append(f"{response.status_code} {response.text}")

    def wait_for(self, text: str) -> None:
        """Wait until the newest answer is this one."""
        wait_until(lambda: self.answers[-1:] == [text], f"{text} is not answered")

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()


def test_edits_take_over_without_a_lost_call_and_broken_ones_change_nothing(folder: Path) -> None:
    with serving(folder) as program:
        program.wait_ready()
        with Load(program.url) as load:
            load.wait_for("20")
            edit(folder, "3")
            load.wait_for("30")
            edit(folder, "no python")
            program.wait_for_output("the edit does not start")
            assert "mosec-asgi: error: the module 'app' cannot be imported: SyntaxError" in program.output
            assert "importlib" not in program.output, "only the user's own lines are shown"
            load.wait_for("30")
            # One that can be imported, and whose model cannot be loaded.
            broken = SERVICE.replace("time.sleep(0.5)", "1 / 0")
            written(folder, broken.replace("FACTOR", "9"), "app.py")
            wait_until(lambda: program.output.count("the edit does not start") == 2, "it is not said")
            assert "ZeroDivisionError" in program.output
            load.wait_for("30")
            edit(folder, "4")
            load.wait_for("40")
            program.wait_for_output("reloaded in")
        assert load.failures == []
        assert set(load.answers) == {"20", "30", "40"}
        assert program.output.count("serves mosec-asgi service on") == 1, "the banner is shown once"
        assert program.stop(signal.SIGINT) == 0


def test_uvicorns_own_way_and_a_unix_socket_are_passed_on_as_well(folder: Path) -> None:
    path = folder / "service.sock"
    admin = folder / "admin.sock"
    with serving(folder, "--http=plain", f"--uds={path}", f"--admin-socket={admin}") as program:
        program.wait_for_output("  stop ")
        with Load("http://localhost", str(path)) as load:
            load.wait_for("20")
            edit(folder, "3")
            load.wait_for("30")
        assert load.failures == []
        assert path.exists()
        # The process before it has ended by then, or ends.
        steer = [sys.executable, "-m", "mosec_asgi", "ctl", "--socket", str(admin), "status"]
        done = subprocess.run(steer, capture_output=True, text=True, timeout=60, env=environment_of_programs())
        assert (done.returncode, "Times_1" in done.stdout) == (0, True), done.stderr
        assert program.stop(signal.SIGTERM) == 0
    assert not path.exists()
    assert not admin.exists()


def test_sighup_has_the_workers_replaced_as_without_reload(folder: Path) -> None:
    with serving(folder, "--log-level=info") as program:
        program.wait_ready()
        # Until this process knows, too, it passes nothing on.
        edit(folder, "3")
        program.wait_for_output("reloaded in")
        program.send(signal.SIGHUP)
        program.wait_for_output("the workers have been replaced")
        assert answer(program) == "30"
        assert program.stop(signal.SIGTERM) == 0


def test_a_terminal_that_is_closed_ends_it_and_leaves_no_socket(folder: Path, tmp_path: Path) -> None:
    path, log = folder / "service.sock", tmp_path / "log"
    command = [sys.executable, "-m", "mosec_asgi", "serve", "app:server", "--reload", f"--uds={path}"]
    code = exit_code_without_terminal(command, log, folder)
    assert not path.exists()
    # The latter where the terminal was quicker than the word that the workers are ready.
    assert code in (0, 128 + signal.SIGTERM), log.read_text()


def test_what_was_broken_from_the_beginning_is_started_by_an_edit_and_nothing_outlives_a_kill(folder: Path) -> None:
    edit(folder, "no python")
    with serving(folder, "--reload-include=*.json") as program:
        program.wait_for_output("started again after the next edit")
        edit(folder, "2")
        program.wait_ready()
        assert answer(program) == "20"
        written(folder, "{}", "notes.txt")
        written(folder, "{}", "labels.json")
        program.wait_for_output("reloaded")
        assert re.findall(r"edited: (.*);", program.output)[-1] == "labels.json"
        program.send(signal.SIGKILL)
        program.assert_nothing_left()


def test_a_wrong_command_line_ends_at_once(folder: Path) -> None:
    with serving(folder, "--timeout=x") as program:
        assert program.wait() == 2
        assert "--timeout must be a whole number" in program.output


def test_of_several_web_processes_there_is_one_which_is_said_once(folder: Path) -> None:
    with serving(folder, "--http-processes=3") as program:
        program.wait_ready()
        edit(folder, "3")
        program.wait_for_output("reloaded in")
        [said] = [message for message in program.messages() if "http_processes" in message]
        assert said.startswith("http_processes=3 has no effect with --reload")
        assert "serve without --reload" in said


def test_the_port_of_grpc_is_taken_once_the_process_before_has_let_it_go(folder: Path) -> None:
    pytest.importorskip("grpc")
    port = free_port()
    text = f"""
from mosec_asgi.protocols import OpenInference

server.add_protocol(OpenInference({{"times": "/inference"}}, grpc_port={port}, grpc_host="127.0.0.1"))
"""
    written(folder, SERVICE.replace("FACTOR", "2") + text, "app.py")
    with serving(folder, "--log-level=info") as program:
        program.wait_ready()
        written(folder, SERVICE.replace("FACTOR", "3") + text, "app.py")
        wait_until(lambda: program.output.count("gRPC listens on") == 2, f"it does not listen\n{program.output}")
        wait_until(lambda: answer(program) == "30", "the edit does not take over")
        socket.create_connection(("127.0.0.1", port)).close()


def test_an_interrupt_ends_a_service_that_starts_and_does_not_hear_it(folder: Path) -> None:
    deaf = """
import pathlib, time
pathlib.Path("here").touch()
while True:
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        pass
"""
    written(folder, deaf, "app.py")
    with serving(folder, stops=False) as program:
        wait_until((folder / "here").exists, "the module is not imported")
        assert program.stop(signal.SIGINT) == 130


async def test_a_signal_that_comes_while_a_process_is_made_ends_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    reloader = Reloader(command, folder, ["*.py"], Output(io.StringIO()), quiet=True)
    made = asyncio.create_subprocess_exec

    async def interrupted(*arguments: Any, **options: Any) -> asyncio.subprocess.Process:
        process = await made(*command, **options)
        os.kill(os.getpid(), signal.SIGINT)
        # The loop hears of it in one of its next turns.
        while not reloader._stopping:
            await asyncio.sleep(0)
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", interrupted)
    assert await asyncio.wait_for(reloader.run(), 30) == 130
    assert not reloader._children
