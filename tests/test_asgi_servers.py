"""The same app under the ASGI servers that people use: ready, right answers, a good end, no process left."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness import Program, child_processes, python, running, wait_until, written

APP = """
    from mosec_asgi import Server, Worker
    from workers import Closing, Echo, Gate, Modules, Parent


    class Triple(Worker):
        def forward(self, data):
            return data * 3


    server = Server()
    server.append_worker(Echo, num=2)
    # Its class is in this module, which its process then has to import.
    server.append_worker(Triple, route="/triple")
    for worker in [{workers}]:
        server.append_worker(worker, route="/" + worker.__name__.lower())

    if __name__ == "__main__":
        server.run()
"""
# The commands as people type them: a server that is started as a script, and not by `python -m`, is the main module
# that a spawned worker would import.
SERVERS = {
    "run()": [],
    "uvicorn": ["uvicorn", "app:server", "--port", "{port}"],
    "uvicorn-2-workers": ["uvicorn", "app:server", "--port", "{port}", "--workers", "2"],
    "uvicorn-asyncio-h11": ["uvicorn", "app:server", "--port", "{port}", "--loop", "asyncio", "--http", "h11"],
    "hypercorn": ["hypercorn", "app:server", "--bind", "127.0.0.1:{port}"],
    "hypercorn-one-process": ["hypercorn", "app:server", "--bind", "127.0.0.1:{port}", "--workers", "0"],
    "granian": ["granian", "--interface", "asgi", "--port", "{port}", "app:server"],
}
EACH_SERVER = pytest.mark.parametrize("server", SERVERS)
# What a worker has no use for; loading it would cost time and memory in each.
UNWANTED = {"starlette", "uvicorn", "pydantic", "prometheus_client", "fastapi", "hypercorn", "granian", "uvloop"}


@contextmanager
def serving(server: str, folder: Path, *workers: str) -> Iterator[Program]:
    """Serve the app, with routes for more of `workers`, which are named like these."""
    app = written(folder, textwrap.dedent(APP).replace("{workers}", ", ".join(workers)), "app.py")
    name, *arguments = SERVERS[server] or [""]
    if name and importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    command = [str(Path(sys.executable).parent / name), *arguments] if name else python(app)
    environment = {"MOSEC_TIMEOUT": "60000"}
    with running(command, folder / "output.log", cwd=folder, environment=environment) as program:
        program.wait_ready()
        yield program


@pytest.fixture(scope="module")
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """The app under one server, for all tests that only ask it."""
    with serving(request.param, tmp_path_factory.mktemp("shared"), "Modules", "Parent") as program:
        yield program


def shared_by(*servers: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("shared", servers, indirect=True)


@EACH_SERVER
def test_the_app_is_served_and_ends_in_good_order(server: str, tmp_path: Path) -> None:
    with serving(server, tmp_path, "Closing") as program:
        answers = [program.client.post("/inference", json=n) for n in range(20)]
        assert [(answer.status_code, answer.json()["echo"]) for answer in answers] == [(200, n) for n in range(20)]
        assert program.client.post("/triple", json=14).json() == 42
        assert program.client.post("/inference", content=b"").status_code == 400
        assert program.client.get("/metrics").status_code == 200
        program.send(signal.SIGTERM)
        program.wait(10.0)
        program.assert_nothing_left(5.0)
        assert program.output.count("closed worker 1") == (2 if "2-workers" in server else 1)
        assert "Traceback" not in program.output


@EACH_SERVER
def test_workers_end_by_themselves_when_the_server_is_killed(server: str, tmp_path: Path) -> None:
    with serving(server, tmp_path) as program:
        # Some servers have a process that supervises, and others below it that serve and have our workers.
        main = program.process.pid

        def serve() -> list[int]:
            return [child for child in child_processes(main) if child_processes(child)]

        if server == "uvicorn-2-workers":
            # The second of them may not have come to its workers yet when the first is ready.
            wait_until(lambda: len(serve()) == 2, "the second process has no workers")
        for pid in (main, *serve()):
            os.kill(pid, signal.SIGKILL)
        program.wait()
        program.assert_nothing_left(10.0)


def test_ctrl_c_pressed_twice_under_uvicorn_ends_it_even_if_a_worker_is_at_work(tmp_path: Path) -> None:
    with serving("uvicorn", tmp_path, "Gate") as program, ThreadPoolExecutor(1) as threads:
        request = threads.submit(program.client.post, "/gate", json=str(tmp_path / "never"))
        program.wait_for_output("waiting at the gate")
        os.killpg(program.process.pid, signal.SIGINT)
        wait_until(lambda: not program.answers("/readyz"), "it stays ready")
        os.killpg(program.process.pid, signal.SIGINT)
        # Far less than the request may take.
        program.wait(10.0)
        program.assert_nothing_left(5.0)
        request.exception()


EARLY = [("POST /inference", 413), ("POST /unknown", 404), ("PUT /inference", 405), ("POST /inference compressed", 415)]


@shared_by("run()", "uvicorn", "uvicorn-asyncio-h11", "hypercorn")
def test_an_answer_that_is_given_before_the_body_has_come_arrives(shared: Program) -> None:
    for head, status in EARLY:
        method, path, *compressed = head.split()
        size = 9_000_000 if compressed else 20_000_000
        lines = [f"{method} {path} HTTP/1.1", "host: test", "connection: close", f"content-length: {size}"]
        lines += ["content-encoding: gzip"] * len(compressed)
        with socket.create_connection(("127.0.0.1", shared.port), timeout=10.0) as client:
            client.sendall("\r\n".join([*lines, "", ""]).encode())
            # A client that reads only once it has sent all.
            for _ in range(size // 1_000_000):
                client.sendall(bytes(1_000_000))
            answer = b"".join(iter(lambda client=client: client.recv(65536), b""))
        assert answer.startswith(f"HTTP/1.1 {status} ".encode()), head
        assert shared.client.post("/inference", json=1).status_code == 200


LOADING = """
    import contextlib

    from fastapi import FastAPI
    from mosec_asgi import Server
    from workers import Loading

    server = Server()
    server.append_worker(Loading, num=2)


    @contextlib.asynccontextmanager
    async def own(app):
        async with server.lifespan(app):
            yield
            print("the app's own end", flush=True)


    app = FastAPI(lifespan=server.lifespan)
    app.mount("/ml", server)
    nested = FastAPI(lifespan=own)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    "command",
    [
        ["uvicorn", "app:server"],
        ["uvicorn", "app:server", "--loop", "asyncio"],
        ["uvicorn", "app:server", "--workers", "2"],
        ["uvicorn", "app:app"],
        ["uvicorn", "app:nested"],
        ["hypercorn", "app:server", "--workers", "0", "--bind", "127.0.0.1:{port}"],
        ["granian", "--interface", "asgi", "app:server"],
    ],
    ids=" ".join,
)
def test_a_signal_while_models_load_ends_the_program_at_once(
    command: list[str], number: signal.Signals, tmp_path: Path
) -> None:
    written(tmp_path, textwrap.dedent(LOADING), "app.py")
    name, *arguments = command
    port = [] if name == "hypercorn" else ["--port", "{port}"]
    program_path = str(Path(sys.executable).parent / name)
    with running([program_path, *arguments, *port], tmp_path / "output.log", cwd=tmp_path) as program:
        wait_until(lambda: program.output.count("loading has begun") >= 2, "no worker loads")
        if number == signal.SIGINT and name != "granian":
            # As a terminal does it. Of granian it reaches the process that supervises, which then waits for ever for
            # the other, whatever app it is.
            os.killpg(program.process.pid, number)
        else:
            program.send(number)
        assert program.wait(10.0) in (0, -number)
        program.assert_nothing_left(5.0)
        assert "Traceback" not in program.output
        assert "ERROR" not in program.output
        assert ("the app's own end" in program.output) == (arguments[0] == "app:nested")


@shared_by(*SERVERS)
def test_a_worker_loads_nothing_of_the_web(shared: Program) -> None:
    loaded = set(shared.client.post("/modules", json={}).json())
    assert "mosec_asgi.worker" in loaded
    assert not loaded & UNWANTED


@shared_by("run()", "granian", "hypercorn")
def test_a_worker_may_have_processes_of_its_own(shared: Program) -> None:
    assert shared.client.post("/parent", json=3).json() == 3


@shared_by("uvicorn-2-workers")
def test_each_of_uvicorns_processes_has_workers_of_its_own(shared: Program) -> None:
    with ThreadPoolExecutor(16) as threads:
        seen: set[int] = set()

        def ask(_: int) -> int:
            # A connection of its own for each request: the operating system chooses the process that takes it.
            answer = shared.client.post("/inference", json=1, headers={"connection": "close"})
            return int(answer.json()["pid"])

        def three_have_answered() -> bool:
            seen.update(threads.map(ask, range(16)))
            return len(seen) > 2

        wait_until(three_have_answered, f"only {seen} have answered")


def test_under_trio_each_request_is_answered_503_and_one_line_says_that_asyncio_is_needed(tmp_path: Path) -> None:
    pytest.importorskip("trio")
    written(tmp_path, textwrap.dedent(APP).replace("{workers}", ""), "app.py")
    command = [sys.executable, "-m", "hypercorn", "-k", "trio", "app:server", "--bind", "127.0.0.1:{port}"]
    with running(command, tmp_path / "output.log", cwd=tmp_path) as program:
        program.wait_for_output("Running on")
        for path in ("/inference", "/inference", "/readyz"):
            answer = program.client.post(path, content=b"1")
            assert answer.status_code == 503
            assert "asyncio" in answer.text
        assert program.output.count("need an event loop of asyncio") == 1
        assert "hypercorn -k asyncio" in program.output
        assert "Traceback" not in program.output
