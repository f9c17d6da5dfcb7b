"""Several web processes and one engine, as real processes: each kind of request, deaths of either side, the end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from authority import Authority, needs_openssl
from harness import TESTS, Program, child_processes, python, running, wait_until

SERVICE = TESTS / "web_app.py"
# Of the service, each loaded once.
WORKERS = 8


@contextlib.contextmanager
def started(folder: Path, *arguments: str) -> Iterator[Program]:
    """Run the service with two web processes of its own."""
    command = python(SERVICE, "--http-processes", "2", "--dashboard", *arguments)
    with running(command, folder / "output.log") as program:
        program.wait_ready()
        yield program


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """Return the service that several tests share, with two web processes of its own."""
    with started(tmp_path_factory.mktemp("served")) as program:
        yield program


def engine(folder: Path) -> contextlib.AbstractContextManager[Program]:
    command = [sys.executable, "-m", "mosec_asgi", "engine", "web_app:server", "--app-dir", str(TESTS)]
    return running([*command, "--socket", str(folder / "engine.sock"), "--dashboard"], folder / "engine.log")


def web(folder: Path, app: str = "web_app:app") -> contextlib.AbstractContextManager[Program]:
    command = [sys.executable, "-m", "uvicorn", app, "--port", "{port}", "--workers", "2"]
    environment = {"MOSEC_ENGINE": str(folder / "engine.sock"), "MOSEC_DASHBOARD": "1"}
    return running(command, folder / "web.log", environment=environment)


def web_processes(program: Program) -> list[int]:
    """Return the web processes that the program itself has started."""
    return child_processes(starter(program))


def starter(program: Program) -> int:
    """Return the process from which they are forked."""
    [fork_server] = [pid for pid in child_processes(program.process.pid) if child_processes(pid) and _is_copy(pid)]
    return fork_server


def _is_copy(pid: int) -> bool:
    return b"--http-processes" in Path(f"/proc/{pid}/cmdline").read_bytes()


def ask_everything(program: Program) -> None:

    body = os.urandom(200_000)
    for _ in range(4):
        # New connections, so that they go to either process.
        with httpx.Client(base_url=program.url, timeout=20) as client:
            assert client.post("/inference", json={"a": 1}).json() == {"a": 1}
            answer = client.post("/inference", json="wrong")
            assert (answer.status_code, answer.text) == (400, "bad request: that is wrong")
            assert client.post("/raw", content=body).content == body
            assert client.post("/raw", content=b"").status_code == 400
            assert client.post("/count", json=3).text == "data: 0\n\ndata: 1\n\ndata: 2\n\n"
            assert client.post("/tell/me?a=b", json=1).json() == ["POST", "/tell/{name}", "b", "me"]
            chat = {"model": "small", "messages": [{"role": "user", "content": "hello"}]}
            told = client.post("/v1/chat/completions", json=chat).json()
            assert told["choices"][0]["message"]["content"] == "you said hello"
            late = client.post("/slow", json=0.3, headers={"x-request-timeout": "100"})
            assert late.status_code == 408
            assert client.get("/readyz").json() == {"status": "ready", "stages": {}}
            assert client.get("/dashboard/data").json()["report"]["state"] == "serving"


def answered(program: Program, route: str, code: int = 200) -> int:
    lines = program.client.get("/metrics").text.splitlines()
    name = f'mosec_service_throughput_total{{code="{code}",endpoint="{route}"}} '
    return sum(int(line.removeprefix(name)) for line in lines if line.startswith(name))


def idle(program: Program) -> bool:
    """Whether nothing is on its way, and no memory is taken."""
    gauges = ("remaining_task", "shared_memory_bytes", 'slots_in_use{stage="Slow_4"}', 'queue_length{stage="Slow_4"}')
    return not any(program.metric(name) for name in gauges)


def pids_that_serve(program: Program) -> set[int]:
    """Return which web processes have heard of an engine that serves; each connects by itself."""
    pids: set[int] = set()
    # As long as it does not listen yet.
    with contextlib.suppress(httpx.TransportError):
        for _ in range(40):
            told = program.client.get("/statistics", headers={"connection": "close"}).json()
            if told["state"] == "serving":
                pids.add(told["pid"])
    return pids


def test_every_kind_of_request_is_answered_and_counted_once(served: Program) -> None:
    before = [answered(served, route) for route in ("/inference", "/raw")]
    ask_everything(served)
    assert len(web_processes(served)) == 2
    # Whichever process is asked.
    for _ in range(4):
        with httpx.Client(base_url=served.url) as client:
            text = client.get("/metrics").text
        assert f'mosec_service_throughput_total{{code="200",endpoint="/inference"}} {before[0] + 4}' in text
        assert f'mosec_service_throughput_total{{code="200",endpoint="/raw"}} {before[1] + 4}' in text
    wait_until(lambda: idle(served), "something is still on its way")
    # The models are loaded once.
    assert served.output.count("worker is ready") == WORKERS


def test_killed_web_processes_take_their_own_clients_alone(served: Program) -> None:
    program = served
    first, second = web_processes(program)
    stop = threading.Event()
    wrong: list[Any] = []
    done = [0]

    def ask(number: int) -> None:
        count = 0
        while not stop.is_set():
            count += 1
            text = f"{number} {count}"
            try:
                with httpx.Client(base_url=program.url, timeout=20) as client:
                    answer = client.post("/inference", json=text)
                    if answer.json() != text:
                        wrong.append(answer.text)
                    done[0] += 1
            except httpx.TransportError:
                # Its connection has died with the process.
                continue
            except json.JSONDecodeError as error:
                wrong.append(error)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    try:
        os.kill(first, signal.SIGKILL)
        before = done[0]
        wait_until(lambda: done[0] > before + 20, "the other process does not answer")
        wait_until(
            lambda: len(web_processes(program)) == 2 and first not in web_processes(program),
            "it is not started again",
        )
        os.kill(second, signal.SIGKILL)
        before = done[0]
        wait_until(lambda: done[0] > before + 20, "the new process does not answer")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong
    wait_until(lambda: idle(program), "calls of the dead are left")
    assert any("has ended by signal 9; another is started" in message for message in program.messages())


def test_what_a_killed_web_process_has_asked_for_is_dropped(served: Program, tmp_path: Path) -> None:
    left, program = tmp_path / "left", served
    with httpx.Client(base_url=program.url, timeout=20) as client:
        with client.stream("POST", "/endless", json=str(left)) as stream:
            pieces = stream.iter_raw()
            next(pieces)
            for pid in web_processes(program):
                os.kill(pid, signal.SIGKILL)
            with pytest.raises(httpx.TransportError):
                for _ in pieces:
                    pass
        wait_until(left.exists, "the worker is not told that its client has left")


def test_a_client_that_leaves_frees_its_worker(served: Program, tmp_path: Path) -> None:
    left = tmp_path / "left"
    with httpx.Client(base_url=served.url, timeout=20) as client:
        with client.stream("POST", "/endless", json=str(left)) as stream:
            next(stream.iter_raw())
        wait_until(left.exists, "the worker is not told that its client has left")


def test_at_the_end_requests_are_answered_first(tmp_path: Path) -> None:
    with started(tmp_path) as program:
        answers: list[httpx.Response] = []
        thread = threading.Thread(
            target=lambda: answers.append(httpx.post(f"{program.url}/slow", json=1.0, timeout=20))
        )
        thread.start()
        wait_until(lambda: program.metric("remaining_task"), "the request does not come")
        assert program.stop() == 0
        thread.join()
        assert answers[0].status_code == 200


def test_a_stopped_starter_of_web_processes_does_not_keep_the_program_from_its_end(tmp_path: Path) -> None:
    with started(tmp_path) as program:
        os.kill(starter(program), signal.SIGSTOP)
        assert program.stop() == 0


@needs_openssl
def test_web_processes_whose_key_is_gone_say_so_before_the_service_ends(tmp_path: Path) -> None:
    files = Authority(tmp_path).node()
    tls = ["--ssl-certfile", files.certificate, "--ssl-keyfile", files.key]
    command = python(SERVICE, "--http-processes", "2", "--uds", str(tmp_path / "http.sock"), *tls)
    with running(command, tmp_path / "output.log") as program:
        program.wait_for_output("all workers are ready")
        os.unlink(files.key)
        for pid in web_processes(program):
            os.kill(pid, signal.SIGKILL)
        assert program.wait() == 3
        assert "a web process could not be started: the key" in program.output
        assert f"{files.key} cannot be read" in program.output
        assert "Traceback" not in program.output
        program.assert_nothing_left()


def test_at_a_path_they_share_one_socket_and_ctrl_c_ends_them(tmp_path: Path) -> None:
    path = str(tmp_path / "http.sock")
    with running(python(SERVICE, "--http-processes", "2", "--uds", path), tmp_path / "output.log") as program:
        program.wait_for_output("all workers are ready")
        with httpx.Client(transport=httpx.HTTPTransport(uds=path), base_url="http://localhost") as client:
            wait_until(lambda: client.get("/readyz").status_code == 200, "it is not ready")
            assert client.post("/inference", json=1).json() == 1
        assert program.stop(signal.SIGINT) == 0
    assert not os.path.exists(path)


def test_a_stopped_web_process_delays_one_scrape_and_no_other(tmp_path: Path) -> None:
    path = str(tmp_path / "http.sock")

    def silent() -> int:
        [value] = [line.split()[1] for line in asked.get("/metrics").text.splitlines() if line.startswith(name)]
        return int(value)

    name = "mosec_service_web_processes_silent "
    with running(python(SERVICE, "--http-processes", "2", "--uds", path), tmp_path / "output.log") as program:
        program.wait_for_output("all workers are ready")
        wait_until(lambda: program.output.count("is connected") == 2, "a web process does not find the engine")
        stopped = web_processes(program)[0]
        os.kill(stopped, signal.SIGSTOP)
        # The other one takes the connection.
        with httpx.Client(transport=httpx.HTTPTransport(uds=path), base_url="http://localhost", timeout=20) as asked:
            assert asked.post("/inference", json=1).json() == 1
            assert silent() == 1
            began = time.monotonic()
            assert [silent() for _ in range(10)] == [1] * 10
            # Each would take a second.
            assert time.monotonic() - began < 5
            os.kill(stopped, signal.SIGCONT)
            wait_until(lambda: silent() == 0, "it counts as one that does not answer")
        assert sum("has not told" in message for message in program.messages()) == 1
        assert program.stop() == 0


def test_nothing_is_left_of_a_killed_program(tmp_path: Path) -> None:
    with started(tmp_path) as program:
        program.send(signal.SIGKILL)
        program.wait()
        program.assert_nothing_left()


def test_readyz_answers_while_the_models_load(tmp_path: Path) -> None:
    command = python(TESTS / "slow_to_load.py", "--http-processes", "2")
    with running(command, tmp_path / "output.log") as program:
        states: list[str] = []
        refused: list[int] = []

        def ready() -> bool:
            with contextlib.suppress(httpx.TransportError):
                states.append(program.client.get("/readyz").json()["status"])
                if states[-1] != "ready":
                    refused.append(program.client.post("/inference", json=1).status_code)
            return states[-1:] == ["ready"]

        wait_until(ready, "it is not ready")
        assert "loading" in states
        # It may have become ready since it was asked.
        assert 503 in refused
        assert set(refused) <= {503, 200}
        assert program.client.post("/inference", json=1).status_code == 200


def test_a_port_that_is_taken_is_said(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = python(SERVICE, "--http-processes", "2", "--address", "127.0.0.1")
        with running(command, tmp_path / "output.log", port=port) as program:
            assert program.wait() == 1
            assert "Choose another port" in program.output


def test_any_servers_processes_share_an_engine_which_may_go_and_come(tmp_path: Path) -> None:
    with web(tmp_path) as program:
        wait_until(lambda: program.answers("/livez"), "it does not answer without an engine")
        assert program.client.get("/readyz").status_code == 503
        assert program.client.get("/readyz").json() == {"status": "no engine", "stages": {}}
        refused = program.client.post("/inference", json=1)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert program.client.get("/metrics").status_code == 503
        assert program.client.get("/dashboard/data").status_code == 503
        with engine(tmp_path) as heart:
            wait_until(lambda: len(pids_that_serve(program)) == 2, "a web process does not find the engine")
            ask_everything(program)
            assert program.client.get("/infer").text == "True ['0', '1', '2']"
            assert "mosec-asgi ctl" in program.client.get("/steered").text
            wait_until(lambda: idle(program), "something is still on its way")
            heart.send(signal.SIGKILL)
            heart.wait()
            wait_until(
                lambda: program.client.post("/inference", json=1).status_code == 503, "it answers without engine"
            )
            heart.assert_nothing_left()
        with engine(tmp_path) as heart:
            wait_until(lambda: len(pids_that_serve(program)) == 2, "a web process does not find the engine again")
            assert program.client.post("/inference", json=1).json() == 1
            assert program.client.get("/infer").text == "True ['0', '1', '2']"
            assert heart.stop() == 0
        assert not (tmp_path / "engine.sock").exists()


def test_a_web_deploy_leaves_the_models_loaded(tmp_path: Path) -> None:
    with engine(tmp_path) as heart:
        workers: list[Any] = []
        for _ in range(2):
            with web(tmp_path) as program:
                wait_until(lambda: len(pids_that_serve(program)) == 2, "a web process does not find the engine")
                workers.append(program.client.post("/pid", json=0).json())
        assert heart.output.count("worker is ready") == WORKERS
        assert workers[0] == workers[1]


def test_several_processes_without_an_engine_warn_once(tmp_path: Path) -> None:
    with running(
        [sys.executable, "-m", "uvicorn", "web_app:server", "--port", "{port}", "--workers", "3"],
        tmp_path / "web.log",
        cwd=TESTS,
    ) as program:
        wait_until(lambda: program.output.count("startup complete") == 3, "they do not start", 60)
        warnings = [row["fields"]["message"] for row in program.lines() if row["level"] == "WARNING"]
        assert [text for text in warnings if "loads all models" in text] == warnings
        assert len(warnings) == 1
        assert "mosec-asgi engine" in warnings[0]


LOADS = """
import os

from mosec_asgi import Server, Worker


class Model(Worker):
    def __init__(self) -> None:
        open(f"loaded-{os.getpid()}", "w").close()

    def forward(self, data: int) -> int:
        return data


server = Server()
server.append_worker(Model)
"""


def test_a_second_engine_at_a_taken_socket_ends_before_it_loads_anything(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(LOADS)
    path = tmp_path / "engine.sock"
    command = [sys.executable, "-m", "mosec_asgi", "engine", "app:server", "--socket", str(path)]
    with running(command, tmp_path / "first.log", cwd=tmp_path) as first:
        first.wait_for_output("all workers are ready")
        with running(command, tmp_path / "second.log", cwd=tmp_path) as second:
            assert second.wait() == 3
            assert f"another program listens there, process {first.process.pid}. If that is an engine" in second.output
            assert "--socket" in second.output
        assert len(list(tmp_path.glob("loaded-*"))) == 1, "the second engine has loaded its model"
        assert path.exists()
        first.send(signal.SIGKILL)
        first.wait()
    assert path.exists(), "the test wants a file that was left behind"
    with running(command, tmp_path / "third.log", cwd=tmp_path) as third:
        third.wait_for_output("all workers are ready")
        assert third.stop() == 0
    assert not path.exists()


def test_a_web_process_without_its_engine_does_not_say_that_workers_are_ready(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mosec_asgi", "serve", "web_app:server", "--app-dir", str(TESTS)]
    socket = tmp_path / "engine.sock"
    with running([*command, "--port", "{port}", "--engine", str(socket)], tmp_path / "web.log") as program:
        program.wait_for_output("this process answers for its engine")
        assert program.client.get("/readyz").status_code == 503
        assert "all workers are ready" not in program.log.read_text()
