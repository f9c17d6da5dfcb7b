"""`mosec-asgi ctl`, SIGHUP and recycling, beside clients of a service of real processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from harness import Program, environment_of_programs, python, running, wait_until, written

from mosec_asgi.cli.ctl import Client

SERVICE = """
import os
import time

from mosec_asgi import Server, Worker


class Spawned(Worker):
    def forward(self, data):
        time.sleep(0.002)
        return [data, os.getpid()]


class Preloaded(Worker):
    def forward(self, data):
        return [[item, os.getpid(), self.max_batch_size] for item in data]


class Leaking(Worker):
    def __init__(self):
        self.kept = []

    def forward(self, data):
        self.kept.append(b"x" * 8_000_000)
        return [data, os.getpid()]


server = Server(timeout=20_000)
server.append_worker(Spawned, num=2)
server.append_worker(Preloaded, num=2, max_batch_size=4, preload=True, route="/preloaded")
server.append_worker(Leaking, max_memory=150_000_000, start_method="fork", route="/leaking")
if __name__ == "__main__":
    server.run()
"""


def ctl(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mosec_asgi", "ctl", "--socket", str(path), *arguments],
        env=environment_of_programs(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@contextmanager
def asking(program: Program, route: str) -> Iterator[list[tuple[int, Any]]]:
    """Ask one request after the other for the time of a block; what came back is there at its end."""
    answers: list[tuple[int, Any]] = []
    over = threading.Event()

    def ask(client: int) -> None:
        number = 0
        with httpx.Client(base_url=f"http://127.0.0.1:{program.port}", timeout=30.0) as http:
            while not over.is_set():
                number += 1
                item = f"{client}-{number}"
                answer = http.post(route, json=item)
                told = answer.json() if answer.status_code == 200 else [answer.text]
                answers.append((answer.status_code if told[0] == item else 0, told[-1]))

    clients = [threading.Thread(target=ask, args=(client,)) for client in range(4)]
    for thread in clients:
        thread.start()
    try:
        yield answers
    finally:
        over.set()
        for thread in clients:
            thread.join()


def test_a_service_of_processes_is_changed_under_load_and_no_call_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    file = written(tmp_path, SERVICE)
    with running(python(file, "--admin-socket", str(path)), tmp_path / "log") as program:
        program.wait_ready()

        client = Client(str(path))

        def names(stage: int) -> set[str]:
            return {worker["name"] for worker in client.ask("GET", "/status")["stages"][stage]["workers"]}

        def changed(change: Callable[[], object], route: str) -> None:
            with asking(program, route) as answers:
                wait_until(lambda: len(answers) > 20, "clients are answered")
                change()
                there = len(answers)
                wait_until(lambda: len(answers) > there + 20, "clients are answered after the change")
            assert {status for status, _ in answers} == {200}

        def told(*arguments: str) -> None:
            done = ctl(path, *arguments)
            assert (done.returncode, done.stderr) == (0, "")

        changed(lambda: told("scale", "Spawned_1", "3"), "/inference")
        assert len(names(0)) == 3
        changed(lambda: told("scale", "1", "1"), "/inference")
        before = names(0), names(1)
        assert len(before[0]) == 1
        changed(lambda: told("restart", "Spawned_1"), "/inference")
        assert not names(0) & before[0]
        changed(lambda: told("configure", "Preloaded_2", "max_batch_size=8", "latency_target=5000"), "/preloaded")
        assert not names(1) & before[1]
        before = names(0), names(1)

        def hang_up() -> None:
            os.kill(program.process.pid, signal.SIGHUP)
            wait_until(lambda: not (names(0) & before[0] or names(1) & before[1]), "all workers are replaced")

        changed(hang_up, "/preloaded")
        assert httpx.post(f"http://127.0.0.1:{program.port}/preloaded", json=1).json()[2] == 8
        first = names(2)
        with asking(program, "/leaking") as answers:
            wait_until(lambda: not names(2) & first, "the worker that leaks is replaced")
        assert {status for status, _ in answers} == {200}
        assert json.loads(ctl(path, "status", "--json").stdout)["state"] == "serving"
        shown = ctl(path, "status").stdout
        assert "Preloaded_2" in shown
        assert "max_batch_size=8" in shown
    assert not path.exists()


# -- what it cannot do -------------------------------------------------------------------------------------------------


def failed(path: Path, *arguments: str) -> tuple[int, str]:
    """Return the exit code, and the one line that says why."""
    done = ctl(path, *arguments)
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("status",), 1, "there is no socket at"),
        (("scale", "Item_1", "two"), 2, "'two' is not a valid integer"),
        (("configure", "Item_1"), 2, "Missing argument"),
        (("configure", "Item_1", "batch=2"), 2, "'batch=2' must be KEY=VALUE, with KEY one of max_batch_size"),
        (("configure", "Item_1", "max_batch_size=2.5"), 2, "max_batch_size must be a whole number, not '2.5'"),
        (("halt",), 2, "No such command"),
        # Of another command; it was given as what might be meant.
        (("status", "--admin-socket", "x"), 2, "; see mosec-asgi ctl status --help"),
    ],
)
def test_what_cannot_be_asked_is_one_line(tmp_path: Path, arguments: tuple[str, ...], code: int, message: str) -> None:
    status, line = failed(tmp_path / "none.sock", *arguments)
    assert (status, message in line) == (code, True), line


def test_a_socket_at_which_nobody_listens_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "left.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    assert failed(path, "status") == (1, f"mosec-asgi: error: nobody listens at {path}: the service has ended\n")


def test_a_socket_of_another_kind_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "other.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()

        def answer() -> None:
            connection, _ = other.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"who is there?\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        code, line = failed(path, "status")
        thread.join()
    assert (code, "is no admin socket that answers" in line) == (1, True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_the_socket_of_another_user_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    tmp_path.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        os.chmod(path, 0o600)
        other.listen()
        probe = (
            "import os, sys\n"
            "from mosec_asgi.cli.ctl import Client\n"
            "from mosec_asgi.cli.faults import CommandError\n"
            "os.setgid(65534); os.setuid(65534)\n"
            "try: Client(sys.argv[1]).ask('GET', '/status')\n"
            "except CommandError as error: print(error)"
        )
        for folder in [*tmp_path.parents][:2]:
            folder.chmod(0o755)
        done = subprocess.run(
            [sys.executable, "-c", probe, str(path)],
            env=environment_of_programs(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert "is another user's; use it as that user, or as root" in done.stdout, done.stderr
