"""`mosec-asgi serve --reload`: an edit takes over without a lost call; a broken one leaves the old service there."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from harness import Program, running, wait_until, written

SERVICE = """
from mosec_asgi import Server, Worker


class Times(Worker):
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

    def __init__(self, url: str) -> None:
        self.answers: list[str] = []
        self.failures: list[str] = []
        self._ended = threading.Event()
        self._url = url
        self._threads = [threading.Thread(target=self._ask, args=(keeps,)) for keeps in (True, True, False)]

    def _ask(self, keeps: bool) -> None:
        headers = {} if keeps else {"connection": "close"}
        with httpx.Client(base_url=self._url, headers=headers, timeout=20) as client:
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

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()


@pytest.mark.parametrize("http", ["auto", "plain"])
def test_edits_take_over_without_a_lost_call_and_broken_ones_change_nothing(folder: Path, http: str) -> None:
    with serving(folder, f"--http={http}") as program:
        program.wait_ready()
        wait_until(lambda: answer(program) == "20", "it does not answer")
        with Load(program.url) as load:
            edit(folder, "3")
            wait_until(lambda: answer(program) == "30", "the edit does not take over")
            edit(folder, "unknown +")
            # It is broken where it is run, not where it is imported; so is the next.
            wait_until(lambda: program.output.count("reloaded") == 2, "the second edit does not take over")
            edit(folder, "4")
            wait_until(lambda: answer(program) == "40", "the third edit does not take over")
        # Those of the second edit, whose model fails.
        assert {text for text in load.failures if not text.startswith("500 ")} == set()
        assert {"20", "30", "40"} <= set(load.answers)
        assert program.output.count("serves mosec-asgi service on") == 1, "the banner is shown once"


def test_an_edit_that_does_not_start_shows_its_error_and_the_old_service_answers(folder: Path) -> None:
    with serving(folder) as program:
        program.wait_ready()
        edit(folder, "no python")
        program.wait_for_output("the edit does not start")
        assert "SyntaxError" in program.output
        assert "mosec-asgi: error: the module 'app' cannot be imported" in program.output
        assert "importlib" not in program.output
        assert answer(program) == "20"
        edit(folder, "5")
        wait_until(lambda: answer(program) == "50", "the edit does not take over")


def test_a_model_that_cannot_load_leaves_the_old_service_answering(folder: Path) -> None:
    with serving(folder) as program:
        program.wait_ready()
        text = SERVICE.replace("class Times(Worker):", "class Times(Worker):\n    def __init__(self): 1 / 0\n")
        written(folder, text.replace("FACTOR", "3"), "app.py")
        program.wait_for_output("the edit does not start")
        assert "ZeroDivisionError" in program.output
        assert answer(program) == "20"


def test_a_service_that_is_broken_from_the_beginning_is_started_by_the_edit_that_mends_it(folder: Path) -> None:
    edit(folder, "no python")
    with serving(folder) as program:
        program.wait_for_output("started again after the next edit")
        edit(folder, "2")
        program.wait_ready()
        assert answer(program) == "20"


def test_a_wrong_command_line_ends_at_once(folder: Path) -> None:
    with serving(folder, "--timeout=x") as program:
        assert program.wait() == 2
        assert "--timeout must be a whole number" in program.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_processes(folder: Path, number: signal.Signals) -> None:
    with serving(folder) as program:
        program.wait_ready()
        assert len(program.members()) > 1
        assert program.stop(number) == 0


def test_nothing_is_left_where_it_is_killed(folder: Path) -> None:
    with serving(folder, "--uds={port}.sock") as program:
        program.wait_for_output("  stop ")
        program.send(signal.SIGKILL)
        program.assert_nothing_left()


def test_a_unix_socket_is_passed_on_and_removed_at_the_end(folder: Path) -> None:
    path = folder / "service.sock"
    with serving(folder, f"--uds={path}") as program:
        program.wait_for_output("  stop ")
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://localhost") as client:
            assert client.post("/inference", json=10).text == "20"
            edit(folder, "3")
            program.wait_for_output("reloaded")
            wait_until(lambda: client.post("/inference", json=10).text == "30", "the edit does not take over")
        assert program.stop() == 0
    assert not path.exists()


def test_other_files_are_watched_where_they_are_named(folder: Path) -> None:
    with serving(folder, "--reload-include=*.json") as program:
        program.wait_ready()
        written(folder, "{}", "notes.txt")
        written(folder, "{}", "labels.json")
        program.wait_for_output("reloaded")
        assert re.findall(r"edited: (.*);", program.output) == ["labels.json"]
