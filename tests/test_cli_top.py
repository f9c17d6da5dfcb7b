"""`mosec-asgi top` beside a real service: on a terminal, in a pipe, once; with keys, and with nobody there."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Program, environment_of_programs, free_port, python, running, serving, wait_until, written

from mosec_asgi.cli.faults import UsageError
from mosec_asgi.cli.top.source import Source, SourceError

STAGES = """
    server.append_worker(Echo, num=2)
    server.append_worker(Sabotage, max_batch_size=4, route="/batch")
    server.append_worker(Echo, route="/other")
"""
TOP = [sys.executable, "-m", "mosec_asgi", "top"]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    folder = tmp_path_factory.mktemp("service")
    with serving(folder, STAGES) as program, asked_again_and_again(program):
        yield program


@contextlib.contextmanager
def asked_again_and_again(program: Program) -> Iterator[None]:
    stopped = threading.Event()

    def ask() -> None:
        while not stopped.wait(0.005):
            for route in ("/inference", "/batch"):
                assert program.client.post(route, json=1).status_code == 200

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def top(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*TOP, *arguments], capture_output=True, text=True, timeout=60, env=environment_of_programs())


def test_once_shows_the_tables_and_ends(service: Program) -> None:
    done = top("--once", "--interval", "0.3", service.url)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert next(line[:3] for line in lines if line[:1] == ["STAGE"]) == ["STAGE", "WORKERS", "BUSY"]
    stages = {line[0]: line[1] for line in lines if line and line[0].endswith(("_1", "_2", "_3"))}
    assert stages == {"Echo_1": "2/2", "Sabotage_2": "1/1", "Echo_3": "1/1"}
    assert any(line[:1] == ["/inference"] and float(line[1]) > 0 for line in lines)


def test_as_json_it_is_an_object_a_line(service: Program) -> None:
    done = top("--once", "--json", "--interval", "0.3", service.url)
    told = json.loads(done.stdout)
    assert told["change"]["service"]["ok"] > 0
    assert told["change"]["stages"]["Sabotage_2"]["batch_size"] >= 1
    assert told["report"]["stages"][0]["ready"] == 2


def test_in_a_pipe_it_is_a_line_each_time_until_nobody_reads(service: Program) -> None:
    command = [*TOP, "--interval", "0.1", service.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          env=environment_of_programs()) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        lines = [process.stdout.readline() for _ in range(3)]
        process.stdout.close()
        assert all("answers/s" in line and "workers 4/4" in line for line in lines), lines
        assert process.wait(30) == 0
        assert process.stderr.read() == ""


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["http://127.0.0.1:{port}"], 1, "Connection refused"),
        (["ftp://127.0.0.1"], 2, "no address of a service"),
        (["http://127.0.0.1:99999"], 2, "no address of a service"),
        (["--uds", "/nowhere.sock"], 1, "No such file or directory"),
        (["{service}/inference"], 1, "/inference/metrics is answered 404"),
        (["--namespace", "other", "{service}"], 1, "there are no metrics other_remaining_task"),
        (["--interval", "0", "{service}"], 2, "0 is not in the range"),
    ],
)
def test_what_cannot_be_watched_is_said_in_one_line(
    service: Program, arguments: list[str], code: int, reason: str
) -> None:
    done = top("--once", *(each.format(port=free_port(), service=service.url) for each in arguments))
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.count("\n") == 1
    assert reason in done.stderr


def test_an_api_key_is_sent_and_asked_for(tmp_path: Path) -> None:
    key = "0123456789abcdef0123"
    with serving(tmp_path, "server.append_worker(Echo)", environment={"MOSEC_API_KEYS": key}) as program:
        assert "pass --api-key" in top("--once", program.url).stderr
        assert top("--once", "--interval", "0.1", "--api-key", key, program.url).returncode == 0


def test_a_service_on_a_unix_socket_is_watched(tmp_path: Path) -> None:
    path = tmp_path / "service.sock"
    program = "from mosec_asgi import Server\nfrom workers import Echo\nserver = Server()\nserver.append_worker(Echo)\n"
    file = written(tmp_path, f'{program}if __name__ == "__main__":\n    server.run()\n')
    with running(python(file, "--uds", str(path)), tmp_path / "output.log", cwd=tmp_path):
        wait_until(lambda: top("--once", "--interval", "0.1", "--uds", str(path)).returncode == 0, "it is not watched")


def test_what_answers_something_else_is_no_service(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        source = Source(f"127.0.0.1:{listener.getsockname()[1]}")

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"SSH-2.0-OpenSSH\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(SourceError, match="speaks no HTTP"):
            source.report()
        thread.join()


def test_the_address_of_the_metrics_is_an_address_of_the_service() -> None:
    assert Source("https://host:1/ml/metrics").name == Source("https://host:1/ml/").name == "https://host:1/ml"
    with pytest.raises(UsageError, match="printable ASCII"):
        Source("host", key="a\nb")


# -- on a terminal -----------------------------------------------------------------------------------------------------


class Terminal:
    """A terminal in which `top` runs."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._socket = f"top-{uuid.uuid4().hex}"
        self._exit = folder / "exit"
        command = " ".join([*TOP, *arguments])
        self._tmux("new-session", "-d", "-s", "top", "-x", "130", "-y", "40", f"{command}; echo $? > {self._exit}; cat")

    def _tmux(self, *arguments: str) -> str:
        command = ["tmux", "-L", self._socket, *arguments]
        # Not the width of the terminal in which the tests run: what runs side by side is told of it by COLUMNS.
        env = {name: value for name, value in environment_of_programs().items() if name not in ("COLUMNS", "LINES")}
        return subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout

    @property
    def screen(self) -> str:
        return self._tmux("capture-pane", "-p", "-t", "top")

    def press(self, *keys: str) -> None:
        self._tmux("send-keys", "-t", "top", *keys)

    def shows(self, *texts: str) -> None:
        wait_until(lambda: all(text in self.screen for text in texts), f"{texts} is not shown:\n{self.screen}")

    def stages(self) -> list[str]:
        firsts = [line.split()[0] for line in self.screen.splitlines() if line.strip()]
        return [name for name in firsts if name[-2:] in ("_1", "_2", "_3")]

    @property
    def code(self) -> str:
        wait_until(self._exit.exists, f"it does not end:\n{self.screen}")
        wait_until(lambda: self._exit.read_text().endswith("\n"), "no exit code")
        return self._exit.read_text().strip()

    def close(self) -> None:
        self._tmux("kill-server")


@contextlib.contextmanager
def terminal(folder: Path, *arguments: str) -> Iterator[Terminal]:
    if shutil.which("tmux") is None:
        pytest.skip("tmux is not installed")
    pytest.importorskip("rich")
    shown = Terminal(folder, *arguments)
    try:
        yield shown
    finally:
        shown.close()


def test_on_a_terminal_it_is_a_live_view_with_keys(service: Program, tmp_path: Path) -> None:
    with terminal(tmp_path, "--interval", "0.2", service.url) as shown:
        shown.shows("answers/s", "p99", "Echo_1", "2/2", "/inference")
        wait_until(lambda: "█" in shown.screen, "no throughput is drawn")
        wait_until(lambda: shown.stages() == ["Echo_1", "Sabotage_2", "Echo_3"], "the stages are not in their order")
        shown.press("r")
        wait_until(lambda: shown.stages() == ["Echo_3", "Sabotage_2", "Echo_1"], "r does not turn the order round")
        # By ready workers, the most missing last: all the same. Then by tasks, of which Echo_3 has none.
        shown.press("r", "s", "s", "s")
        wait_until(lambda: shown.stages()[-1:] == ["Echo_3"], "s does not sort")
        shown.press("Space")
        shown.shows("held")
        shown.press("q")
        assert shown.code == "0"
        # The screen of before is back.
        assert "answers/s" not in shown.screen


def test_it_says_that_the_service_is_gone_and_finds_it_again(tmp_path: Path) -> None:
    port = str(free_port())
    program = "from mosec_asgi import Server\nfrom workers import Echo\nserver = Server()\nserver.append_worker(Echo)\n"
    command: list[Any] = python(written(tmp_path, f'{program}if __name__ == "__main__":\n    server.run()\n'))
    command[-1] = port
    with terminal(tmp_path, "--interval", "0.2", f"127.0.0.1:{port}") as shown:
        shown.shows("no answer since", "Connection refused")
        for life in ("first", "second"):
            with running(command, tmp_path / f"{life}.log", cwd=tmp_path):
                shown.shows("Echo_1", "1/1")
                wait_until(lambda: "no answer" not in shown.screen, "it is not found again")
            shown.shows("no answer since", "Connection refused", "Echo_1")
        shown.press("C-c")
        assert shown.code in ("0", "130")
