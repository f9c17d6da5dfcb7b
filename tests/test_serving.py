"""`python server.py`: the command line, the signals, the exit codes, and what is left of it all.

Every program runs in a process group of its own, and `running` fails a test that leaves a process of it behind.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from harness import Program, child_processes, free_port, python, running, wait_until, written

FLAGS_OF_MOSEC = (
    "path", "capacity", "timeout", "wait", "address", "port", "namespace", "debug", "log-level", "dry-run",
    "compression", "max-request-size",
)  # fmt: skip
# Seconds; prompt is what no user would take for a hang.
PROMPT = 6.0
START_METHODS = pytest.mark.parametrize("start_method", ["spawn", "fork"])


def server_program(folder: Path, stages: str, settings: str = "") -> Path:
    """Write the usual program of a user: stages of `tests/workers.py`, and `server.run()` behind the guard."""
    text = f"""
        import multiprocessing
        import subprocess
        import sys

        from mosec_asgi import Server
        from workers import *

        if __name__ == "__main__":
            server = Server({settings})
            {stages}
            server.run()
            print("run() has returned", flush=True)
    """
    return written(folder, textwrap.dedent(text))


@contextlib.contextmanager
def started(
    folder: Path,
    stages: str = "server.append_worker(Echo)",
    *arguments: str,
    settings: str = "",
    environment: dict[str, str] | None = None,
    port: int | None = None,
    stops: bool = True,
) -> Iterator[Program]:
    """Start the program of `server_program` for the time of a block, without waiting for anything."""
    command = python(server_program(folder, stages, settings), *arguments)
    with running(command, folder / "output.log", port=port, environment=environment, stops=stops) as program:
        yield program


@contextlib.contextmanager
def serving(
    folder: Path, stages: str = "server.append_worker(Echo)", *arguments: str, settings: str = "", stops: bool = True
) -> Iterator[Program]:
    """Serve for the time of a block."""
    with started(folder, stages, *arguments, settings=settings, stops=stops) as program:
        program.wait_ready()
        yield program


def finished(folder: Path, text: str) -> tuple[int, str]:
    """Run a program that ends by itself; return its exit code and all that it has printed."""
    file = written(folder, textwrap.dedent(text))
    with running(python(file), folder / "output.log") as program:
        code = program.wait()
        return code, program.output


def pid_of_worker(program: Program) -> int:
    """Return the process that answers a request to `Echo`."""
    return int(program.client.post("/inference", content=b"1").json()["pid"])


def remaining(program: Program) -> int:
    """Return how many requests are admitted and not yet answered."""
    text = program.client.get("/metrics").text
    found = re.search(r"^mosec_service_remaining_task (\d+)", text, re.MULTILINE)
    assert found
    return int(found[1])


# -- the command line --------------------------------------------------------------------------------------------------


def test_help_shows_the_flags_of_mosec_and_starts_nothing(tmp_path: Path) -> None:
    with started(tmp_path, "server.append_worker(Loading)", "--help", settings="timeout=4321") as program:
        assert program.wait() == 0
        flags = re.findall(r"^  (?:-\w, )?--([\w-]+)", program.output, re.MULTILINE)
        assert set(flags) >= set(FLAGS_OF_MOSEC)
        assert "4321" in program.output
        assert "MOSEC_PORT" in program.output
        assert "loading has begun" not in program.output


def test_the_environment_wins_over_keywords_and_the_command_line_over_both(tmp_path: Path) -> None:
    with started(
        tmp_path,
        "server.append_worker(Raw)",
        "--max-request-size",
        "30",
        settings="port=1, namespace='keyword', max_request_size=10, log_level='error'",
        environment={"MOSEC_PORT": "2", "MOSEC_MAX_REQUEST_SIZE": "20", "MOSEC_NAMESPACE": "environment"},
    ) as program:
        program.wait_ready()
        assert program.client.post("/inference", content=b"x" * 30).status_code == 200
        assert program.client.post("/inference", content=b"x" * 31).status_code == 413
        assert "environment_throughput_total" in program.client.get("/metrics").text
        # The keyword, which nothing overrides: no line at level info.
        assert program.lines() == []


def test_a_setting_may_come_from_the_environment_alone(tmp_path: Path) -> None:
    text = """
        from mosec_asgi import Server
        from workers import Raw

        if __name__ == "__main__":
            server = Server()
            server.append_worker(Raw)
            server.run()
    """
    file = written(tmp_path, textwrap.dedent(text))
    port = free_port()
    variables = {"MOSEC_PORT": str(port), "MOSEC_MAX_REQUEST_SIZE": "5"}
    with running([sys.executable, str(file)], tmp_path / "output.log", port=port, environment=variables) as program:
        program.wait_ready()
        assert program.client.post("/inference", content=b"123456").status_code == 413


@pytest.mark.parametrize(
    ("arguments", "variables", "source"),
    [
        (["--timeout", "soon"], {}, "--timeout"),
        (["--capacity", "0"], {}, "the argument --capacity must be at least 1, not 0"),
        (["--log-level", "loud"], {}, "--log-level"),
        (
            [],
            {"MOSEC_TIMEOUT": "soon"},
            "the environment variable MOSEC_TIMEOUT must be a whole number of milliseconds, not 'soon'",
        ),
        ([], {"MOSEC_DEBUG": "perhaps"}, "the environment variable MOSEC_DEBUG must be true or false, not 'perhaps'"),
    ],
)
def test_a_bad_setting_ends_the_program_with_its_source(
    tmp_path: Path, arguments: list[str], variables: dict[str, str], source: str
) -> None:
    with started(tmp_path, "server.append_worker(Loading)", *arguments, environment=variables) as program:
        assert program.wait() == 2
        assert source in program.output
        assert "Traceback" not in program.output


def test_arguments_that_are_not_the_servers_own_are_left_to_the_program(tmp_path: Path) -> None:
    text = """
        import argparse
        from typing import Any

        from mosec_asgi import Server, Worker

        parser = argparse.ArgumentParser()
        parser.add_argument("--model")
        MODEL = parser.parse_known_args()[0].model

        class Model(Worker):
            def forward(self, data: Any) -> str:
                return MODEL

        if __name__ == "__main__":
            server = Server()
            server.append_worker(Model)
            server.run()
    """
    file = written(tmp_path, textwrap.dedent(text))
    with running(python(file, "--model", "large", "-x", "more"), tmp_path / "output.log") as program:
        program.wait_ready()
        assert program.client.post("/inference", content=b"1").json() == "large"


def test_a_busy_port_ends_the_program_before_anything_is_started(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with started(tmp_path, "server.append_worker(Loading)", port=port) as program:
            assert program.wait(PROMPT) == 1
            assert f"cannot listen on 0.0.0.0:{port}" in program.output
            assert "--port" in program.output
            assert "Traceback" not in program.output
            assert "loading has begun" not in program.output


def test_a_port_that_does_not_exist_is_refused_without_a_traceback(tmp_path: Path) -> None:
    with started(tmp_path, port=70_000) as program:
        assert program.wait() != 0
        assert "port" in program.output
        assert "Traceback" not in program.output


def test_an_empty_variable_counts_as_none_as_in_mosec(tmp_path: Path) -> None:
    with started(tmp_path, environment={"MOSEC_TIMEOUT": "", "MOSEC_ADDRESS": ""}) as program:
        program.wait_ready()


# -- programs that are written wrongly ---------------------------------------------------------------------------------


def test_a_program_without_its_main_guard_is_told_the_cause_and_the_remedy(tmp_path: Path) -> None:
    code, output = finished(
        tmp_path,
        """
        from mosec_asgi import Server
        from workers import Echo

        server = Server()
        server.append_worker(Echo)
        server.run()
        """,
    )
    assert code != 0
    assert "server.run() was called while a worker process imported this module" in output
    assert 'if __name__ == "__main__":' in output


@pytest.mark.parametrize(
    "start",
    [
        "asyncio.run(main())",
        "with server.engine() as engine:\n            engine.infer(1)",
        "uvicorn.run(server, port=0)",
    ],
)
def test_whatever_starts_a_server_without_the_main_guard_is_told_the_same(start: str, tmp_path: Path) -> None:
    code, output = finished(
        tmp_path,
        f"""
        import asyncio

        import uvicorn
        from mosec_asgi import Server, Worker

        class Here(Worker):
            def forward(self, data):
                return data

        server = Server()
        server.append_worker(Here)

        async def main():
            async with server:
                await server.infer(1)

        {start}
        """,
    )
    assert code != 0
    assert "the server was started while a worker process imported this module" in output
    assert 'if __name__ == "__main__":' in output


def test_a_local_worker_class_is_named_with_the_remedy(tmp_path: Path) -> None:
    code, output = finished(
        tmp_path,
        """
        from mosec_asgi import Server, Worker

        def main():
            class Local(Worker):
                def forward(self, data):
                    return data

            server = Server()
            server.append_worker(Local)
            server.run()

        if __name__ == "__main__":
            main()
        """,
    )
    assert code != 0
    assert "the worker class main.<locals>.Local of stage Local_1 cannot be sent to a spawned process" in output
    assert "top level of a module" in output
    assert "start_method='fork'" in output


def test_a_local_worker_class_can_be_forked(tmp_path: Path) -> None:
    text = """
        from mosec_asgi import Server, Worker

        def main():
            class Local(Worker):
                def forward(self, data):
                    return data

            server = Server()
            server.append_worker(Local, start_method="fork")
            server.run()

        if __name__ == "__main__":
            main()
    """
    with running(python(written(tmp_path, textwrap.dedent(text))), tmp_path / "output.log") as program:
        program.wait_ready()
        assert program.client.post("/inference", content=b"1").json() == 1


def test_a_program_without_a_stage_is_told_what_to_do(tmp_path: Path) -> None:
    with started(tmp_path, "pass") as program:
        assert program.wait() != 0
        assert "call append_worker(YourWorker) first" in program.output


@pytest.mark.parametrize("start_method", ["spawn", "fork"])
def test_a_stage_that_cannot_start_ends_the_program_with_its_traceback_told_once(
    tmp_path: Path, start_method: str
) -> None:
    stages = f"server.append_worker(Echo); server.append_worker(Broken, num=2, start_method={start_method!r})"
    with started(tmp_path, stages) as program:
        assert program.wait() not in (0, -signal.SIGTERM)
        assert program.output.count("RuntimeError: the weights are missing") == 1
        assert "Broken_2" in program.output
        assert "run() has returned" not in program.output


def test_readyz_is_answered_in_no_time_all_through_the_load_of_a_model(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with started(tmp_path, f"server.append_worker(BusyLoading, args=({str(gate)!r},))") as program:
        wait_until(lambda: program.answers("/livez"), "it does not answer")
        program.wait_for_output("loading has begun")
        took = []
        for _ in range(100):
            began = time.monotonic()
            with httpx.Client(transport=httpx.HTTPTransport(verify=False)) as client:
                ready = client.get(f"{program.url}/readyz")
            took.append(time.monotonic() - began)
            assert (ready.status_code, ready.json()["status"]) == (503, "loading")
        # All but those that other programs have kept from the processor.
        assert sorted(took)[-10] < 0.1
        gate.touch()
        program.wait_ready()
        assert program.client.post("/inference", content=b"1").json() == 1
        program.wait_for_output("all workers are ready")


def test_a_stage_that_cannot_start_ends_the_program_while_another_is_still_loading(tmp_path: Path) -> None:
    with started(tmp_path, "server.append_worker(Loading); server.append_worker(Broken)") as program:
        assert program.wait() == 3
        assert program.output.count("RuntimeError: the weights are missing") == 1


# -- ending it ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@START_METHODS
def test_a_signal_ends_the_service_in_good_order(tmp_path: Path, number: signal.Signals, start_method: str) -> None:
    stages = f"server.append_worker(Closing, num=2, start_method={start_method!r})"
    with serving(tmp_path, stages) as program:
        assert program.stop(number) == 0
        assert {f"closed worker {worker}" for worker in (1, 2)} <= set(program.output.splitlines())
        assert program.output.splitlines()[-1] == "run() has returned"
        assert "Traceback" not in program.output


def test_ctrl_c_which_reaches_the_workers_too_ends_the_service_in_good_order(tmp_path: Path) -> None:
    with serving(tmp_path, "server.append_worker(Closing, num=2)") as program:
        os.killpg(program.process.pid, signal.SIGINT)
        assert program.wait() == 0
        assert {f"closed worker {worker}" for worker in (1, 2)} <= set(program.output.splitlines())
        assert "Traceback" not in program.output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@START_METHODS
def test_a_signal_ends_a_service_whose_workers_are_still_loading(
    tmp_path: Path, number: signal.Signals, start_method: str
) -> None:
    with started(tmp_path, f"server.append_worker(Loading, start_method={start_method!r})") as program:
        program.wait_for_output("loading has begun")
        program.send(number)
        assert program.wait(PROMPT) == 0
        program.assert_nothing_left(PROMPT)
        assert "Traceback" not in program.output


def test_a_request_that_was_accepted_before_sigterm_gets_its_answer(tmp_path: Path) -> None:
    gate, count = tmp_path / "gate", 64
    with (
        serving(tmp_path, "server.append_worker(Gate, num=2)", "--timeout", "20000") as program,
        ThreadPoolExecutor(count) as threads,
    ):

        def ask() -> httpx.Response:
            return program.client.post("/inference", json=str(gate))

        accepted = [threads.submit(ask) for _ in range(count)]
        wait_until(lambda: remaining(program) == count, "not all requests are accepted")
        program.send(signal.SIGTERM)
        wait_until(lambda: not program.answers("/readyz"), "it stays ready")
        assert program.process.poll() is None
        gate.touch()
        assert [answer.result().status_code for answer in accepted] == [200] * count
        assert program.wait() == 0


def test_under_load_sigterm_costs_no_request_its_answer_that_has_reached_a_worker(tmp_path: Path) -> None:
    """New requests are answered 503 or find the port closed; none is answered anything else.

    A connection that the operating system has taken and the server has not yet is reset when the port closes.
    """
    runs = tmp_path / "runs"

    def ask_until_refused() -> list[int]:
        statuses = []
        # A connection of its own for each request: one that is kept may be closed at any time while it is idle.
        limits = httpx.Limits(max_keepalive_connections=0)
        with httpx.Client(transport=httpx.HTTPTransport(verify=False, limits=limits), timeout=20) as client:
            while not statuses or statuses[-1] == 200:
                try:
                    statuses.append(client.post(f"{program.url}/inference", json=str(runs)).status_code)
                except (httpx.NetworkError, httpx.RemoteProtocolError):
                    break
        return statuses

    stages = "server.append_worker(Counted, num=2, max_batch_size=1)"
    with serving(tmp_path, stages) as program, ThreadPoolExecutor(16) as threads:
        clients = [threads.submit(ask_until_refused) for _ in range(16)]
        wait_until(lambda: runs.exists() and runs.stat().st_size > 100, "no request is answered")
        program.send(signal.SIGTERM)
        assert program.wait() == 0
        statuses = [status for client in clients for status in client.result()]
        assert set(statuses) <= {200, 503}
        assert statuses.count(200) == runs.stat().st_size


def test_a_second_signal_ends_a_service_whose_workers_are_at_work(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with (
        serving(tmp_path, "server.append_worker(Gate)", "--timeout", "20000", stops=False) as program,
        ThreadPoolExecutor(1) as threads,
    ):
        request = threads.submit(program.client.post, "/inference", json=str(gate))
        wait_until(lambda: remaining(program) == 1, "the request is not accepted")
        program.send(signal.SIGINT)
        wait_until(lambda: not program.answers("/readyz"), "it stays ready")
        program.send(signal.SIGINT)
        assert program.wait(PROMPT) == 130
        program.assert_nothing_left(PROMPT)
        request.exception()
        assert "the end was forced; 1 requests were dropped" in program.messages()
        assert "Traceback" not in program.output
        assert not [row for row in program.lines() if row["level"] == "ERROR"]


@pytest.mark.parametrize("code", [0, 3])
def test_the_end_of_a_daemon_process_ends_the_service(tmp_path: Path, code: int) -> None:
    stages = f"""server.append_worker(Echo)
            command = [sys.executable, "-c", "import sys; sys.stdin.read(); sys.exit({code})"]
            daemon = subprocess.Popen(command, stdin=subprocess.PIPE)
            print("daemon", daemon.pid, flush=True)
            server.register_daemon("the daemon", daemon)"""
    with serving(tmp_path, stages) as program:
        found = re.search(r"daemon (\d+)", program.output)
        assert found
        assert program.client.post("/inference", content=b"1").status_code == 200
        os.kill(int(found[1]), signal.SIGTERM)
        assert program.wait() not in (0, None)
        assert any("the daemon process the daemon has ended" in message for message in program.messages())


def test_a_daemon_process_of_multiprocessing_is_watched_too(tmp_path: Path) -> None:
    stages = """server.append_worker(Echo)
            import time
            daemon = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,), daemon=True)
            daemon.start()
            print("daemon", daemon.pid, flush=True)
            server.register_daemon("the daemon", daemon)"""
    with serving(tmp_path, stages) as program:
        found = re.search(r"daemon (\d+)", program.output)
        assert found
        os.kill(int(found[1]), signal.SIGKILL)
        assert program.wait() not in (0, None)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at_work", [False, True])
def test_a_signal_to_all_processes_ends_the_daemon_too_and_the_exit_code_is_0(
    tmp_path: Path, number: signal.Signals, at_work: bool
) -> None:
    gate = tmp_path / "gate"
    stages = """server.append_worker(Gate)
            server.register_daemon("side", subprocess.Popen(["sleep", "600"]))"""
    with serving(tmp_path, stages) as program, ThreadPoolExecutor(1) as threads:
        if at_work:
            request = threads.submit(program.client.post, "/inference", json=str(gate))
            wait_until(lambda: remaining(program) == 1, "the request is at work")
        os.killpg(program.process.pid, number)
        if at_work:
            program.wait_for_output("the daemon process side has ended")
            gate.touch()
            assert request.result().status_code == 200
        assert program.wait() == 0
        assert not [row for row in program.lines() if row["level"] == "ERROR"]


@pytest.mark.parametrize("preload", [False, True])
def test_a_worker_that_is_started_from_edited_code_says_so(tmp_path: Path, preload: bool) -> None:
    model = tmp_path / "model.py"
    text = (
        "import os\n\nfrom mosec_asgi import Worker\n\n\nclass Model(Worker):\n    def forward(self, data):\n"
        "        return [os.getpid(), os.getppid(), 'one']\n"
    )
    model.write_text(text)
    stages = f"""import model
            server.append_worker(model.Model, preload={preload})"""
    with serving(tmp_path, stages) as program:
        pid, template, version = program.client.post("/inference", content=b"1").json()
        assert version == "one"
        model.write_text(text.replace("one", "another"))
        if preload:
            os.kill(template, signal.SIGKILL)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: program.restarts("Model_1") == 1 and program.answers("/readyz"), "it is started again")
        assert program.client.post("/inference", content=b"1").json()[2] == "another"
        said = [row for row in program.lines() if "edited code" in row["fields"]["message"]]
        assert len(said) == 1
        assert f"edited code: {model} changed" in said[0]["fields"]["message"]
        assert said[0]["fields"]["stage"] == "Model_1"


@START_METHODS
def test_workers_end_by_themselves_when_the_server_is_killed(tmp_path: Path, start_method: str) -> None:
    with serving(tmp_path, f"server.append_worker(Echo, num=2, start_method={start_method!r})") as program:
        assert len(child_processes(program.process.pid)) >= 2
        program.send(signal.SIGKILL)
        assert program.wait() == -signal.SIGKILL
        program.assert_nothing_left(PROMPT)


def test_a_worker_that_is_still_loading_ends_when_the_server_is_killed(tmp_path: Path) -> None:
    with started(tmp_path, "server.append_worker(Loading)") as program:
        program.wait_for_output("loading has begun")
        program.send(signal.SIGKILL)
        program.wait()
        program.assert_nothing_left(PROMPT)


def test_a_worker_that_has_just_been_launched_ends_when_the_server_is_killed(tmp_path: Path) -> None:
    with started(tmp_path, "server.append_worker(Loading, num=8)") as program:
        # Some of them are so young that they are not yet running Python.
        wait_until(lambda: len(child_processes(program.process.pid)) >= 8, "no worker is launched")
        program.send(signal.SIGKILL)
        program.wait()
        program.assert_nothing_left(PROMPT)


def test_a_worker_that_is_at_work_ends_when_the_server_is_killed(tmp_path: Path) -> None:
    with serving(tmp_path, "server.append_worker(Stuck)") as program, ThreadPoolExecutor(1) as threads:
        request = threads.submit(program.client.post, "/inference", json=600)
        program.wait_for_output("stuck")
        program.send(signal.SIGKILL)
        program.wait()
        request.exception()
        program.assert_nothing_left(PROMPT)


def test_a_dry_run_that_is_ended_leaves_no_loading_worker_behind(tmp_path: Path) -> None:
    with started(tmp_path, "server.append_worker(Loading)", "--dry-run") as program:
        program.wait_for_output("loading has begun")
        program.send(signal.SIGTERM)
        assert program.wait() != 0
        program.assert_nothing_left(PROMPT)


def test_a_worker_that_never_comes_back_does_not_keep_the_service_from_ending(tmp_path: Path) -> None:
    with (
        serving(tmp_path, "server.append_worker(Stuck)", "--timeout", "300") as program,
        ThreadPoolExecutor(1) as threads,
    ):
        request = threads.submit(program.client.post, "/inference", json=600)
        program.wait_for_output("stuck")
        program.send(signal.SIGTERM)
        assert program.wait() == 0
        assert request.result().status_code in (408, 503)


def test_a_worker_that_never_comes_back_is_replaced(tmp_path: Path) -> None:
    with serving(tmp_path, "server.append_worker(Stuck, timeout=0.2)", "--timeout", "1000") as program:
        first = program.client.post("/inference", json=0).json()
        assert program.client.post("/inference", json=600).status_code == 408

        def another_answers() -> bool:
            answer = program.client.post("/inference", json=0)
            return answer.status_code == 200 and answer.json() != first

        wait_until(another_answers, "the worker is not replaced", PROMPT)


# -- forked workers ----------------------------------------------------------------------------------------------------


def test_forked_workers_share_what_the_program_has_loaded(tmp_path: Path) -> None:
    text = """
        from mosec_asgi import Server, Worker

        WEIGHTS = {}

        class Model(Worker):
            def forward(self, data):
                return WEIGHTS["w"] * data

        if __name__ == "__main__":
            WEIGHTS["w"] = 3
            server = Server()
            server.append_worker(Model, num=2, start_method="fork")
            server.run()
    """
    with running(python(written(tmp_path, textwrap.dedent(text))), tmp_path / "output.log") as program:
        program.wait_ready()
        assert program.client.post("/inference", content=b"14").json() == 42


def test_a_forked_worker_holds_neither_the_port_nor_its_servers_connections(tmp_path: Path) -> None:
    """A worker that is forked while clients are connected, and at work when the server has closed all its sockets."""
    gate = tmp_path / "gate"
    stages = """server.append_worker(Echo, start_method="fork")
            server.append_worker(Gate, route="/gate", start_method="fork")"""
    with (
        serving(tmp_path, stages, "--timeout", "20000") as program,
        ThreadPoolExecutor(1) as threads,
        connected(program) as connection,
    ):
        connection.sendall(b"GET /livez HTTP/1.1\r\nhost: test\r\n\r\n")
        received_until(connection, b"\r\n\r\nok")
        # Both workers are forked anew while this connection is there.
        first = set(child_processes(program.process.pid))
        for worker in first:
            os.kill(worker, signal.SIGKILL)

        def all_are_replaced() -> bool:
            now = set(child_processes(program.process.pid))
            return len(now) == len(first) and not now & first and program.answers("/readyz")

        wait_until(all_are_replaced, "the workers are not replaced")
        request = threads.submit(program.client.post, "/gate", json=str(gate))
        program.wait_for_output("waiting at the gate")

        # Closed by the server, it is closed.
        connection.sendall(b"GET /livez HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n")
        assert received_until(connection, b"\0").endswith(b"\r\n\r\nok")

        # The server has closed the port, and waits for the worker: another may have it.
        program.send(signal.SIGTERM)
        wait_until(lambda: can_listen(program.port), "the port is not free")
        assert len(program.members()) == 3
        gate.touch()
        assert request.result().status_code == 200
        assert program.wait() == 0


def can_listen(port: int) -> bool:
    """Whether a server could take a port now."""
    with socket.socket() as successor:
        successor.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            successor.bind(("0.0.0.0", port))
            successor.listen()
        except OSError:
            return False
        return True


# -- workers that die --------------------------------------------------------------------------------------------------


@START_METHODS
def test_a_worker_that_is_killed_is_replaced_and_no_request_is_lost(tmp_path: Path, start_method: str) -> None:
    with serving(tmp_path, f"server.append_worker(Echo, start_method={start_method!r})") as program:
        first = pid_of_worker(program)
        os.kill(first, signal.SIGKILL)
        assert pid_of_worker(program) != first
        wait_until(lambda: program.answers("/readyz"), "it is not ready again")
        assert first not in child_processes(program.process.pid), "the dead worker has not been reaped"
        text = program.client.get("/metrics").text
        assert 'mosec_service_worker_restarts_total{stage="Echo_1"} 1\n' in text


def test_a_request_whose_worker_is_killed_is_run_again_on_the_next(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with (
        serving(tmp_path, "server.append_worker(Gate, start_method='fork')", "--timeout", "20000") as program,
        ThreadPoolExecutor(1) as threads,
    ):
        request = threads.submit(program.client.post, "/inference", json=str(gate))
        wait_until(lambda: remaining(program) == 1, "the request is not accepted")
        [worker] = child_processes(program.process.pid)
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: worker not in child_processes(program.process.pid), "the dead worker is not reaped")
        gate.touch()
        assert request.result().status_code == 200


# -- dry run -----------------------------------------------------------------------------------------------------------


def test_a_dry_run_sends_each_pipeline_its_example_and_reports(tmp_path: Path) -> None:
    stages = (
        "server.append_worker(GoodExample, num=3); server.append_worker(Halve); "
        "server.append_worker(Echo, route='/without')"
    )
    with started(tmp_path, stages, "--dry-run") as program:
        assert program.wait() == 0
        messages = program.messages()
        [result] = [message for message in messages if message.startswith("dry run result: ")]
        assert '"route": "/inference"' in result
        assert '"stages": ["GoodExample", "Halve"]' in result
        assert '"request": {"x": 3}' in result
        measured = json.loads(result.removeprefix("dry run result: "))["stage_metrics"]
        assert [stage["stage"] for stage in measured] == ["GoodExample", "Halve"]
        assert all(0 < stage["cpu_time_seconds"] < PROMPT and stage["max_rss_bytes"] > 1 << 20 for stage in measured)
        assert any("/without: Echo has no example" in message for message in messages)
        assert messages[-1] == "dry run finished: 2 of 2 routes passed"
        assert sum("worker is ready" in message for message in messages) == 3


def test_a_dry_run_whose_example_fails_ends_with_a_non_zero_code(tmp_path: Path) -> None:
    stages = "server.append_worker(BadExample); server.append_worker(GoodExample, route='/good')"
    with started(tmp_path, stages, "--dry-run") as program:
        assert program.wait() == 1
        assert program.messages()[-1] == "dry run finished: 1 of 2 routes passed"
        assert "/inference: the example was answered 500" in program.output
        # The worker's own traceback is what a user needs.
        assert "TypeError: unsupported operand" in program.output


def test_a_dry_run_whose_stage_cannot_start_ends_with_a_non_zero_code(tmp_path: Path) -> None:
    with started(tmp_path, "server.append_worker(Broken)", environment={"MOSEC_DRY_RUN": "1"}) as program:
        assert program.wait() == 1
        assert any("the weights are missing" in message for message in program.messages())


# -- on the wire -------------------------------------------------------------------------------------------------------

POST = b"POST /inference HTTP/1.1\r\nhost: test\r\n"


@contextlib.contextmanager
def connected(program: Program) -> Iterator[socket.socket]:
    """Connect to a program without a client that would hide how the bytes travel."""
    with socket.create_connection(("127.0.0.1", program.port), 20) as connection:
        yield connection


def received_until(connection: socket.socket, ending: bytes) -> bytes:
    """Return what arrives until it ends so, or the server ends it."""
    received = b""
    while not received.endswith(ending) and (data := connection.recv(100_000)):
        received += data
    return received


def test_requests_that_come_together_on_one_connection_are_answered_in_order(tmp_path: Path) -> None:
    bodies = [b"<number %d>" % number for number in range(100)]
    with serving(tmp_path, "server.append_worker(Raw, num=2)") as program, connected(program) as connection:
        connection.sendall(b"".join(POST + b"content-length: %d\r\n\r\n%s" % (len(body), body) for body in bodies))
        received = received_until(connection, bodies[-1])
        assert received.count(b"HTTP/1.1 200 OK\r\n") == len(bodies)
        assert re.findall(rb"<number \d+>", received) == bodies


@pytest.mark.parametrize(
    "request_line",
    [b"POST /inference HTTP/1.0\r\n", POST + b"connection: close\r\n"],
    ids=["http-1.0", "connection-close"],
)
def test_the_whole_answer_is_sent_before_the_connection_is_closed(tmp_path: Path, request_line: bytes) -> None:
    body = bytes(range(1, 251)) * 20_000
    with serving(tmp_path, "server.append_worker(Raw)", "--timeout", "20000") as program:
        with connected(program) as connection:
            connection.sendall(request_line + b"content-length: %d\r\n\r\n%s" % (len(body), body))
            head, _, answer = received_until(connection, b"\0").partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert answer == body


def test_a_client_that_waits_for_100_continue_is_told_to_go_on_or_that_its_body_is_too_large(tmp_path: Path) -> None:
    with serving(tmp_path, "server.append_worker(Raw)", "--max-request-size", "1000") as program:
        with connected(program) as connection:
            connection.sendall(POST + b"expect: 100-continue\r\ncontent-length: 3\r\n\r\n")
            assert received_until(connection, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            connection.sendall(b"abc")
            assert received_until(connection, b"\r\n\r\nabc").startswith(b"HTTP/1.1 200 OK\r\n")
        with connected(program) as connection:
            connection.sendall(POST + b"expect: 100-continue\r\ncontent-length: 1001\r\n\r\n")
            assert received_until(connection, b"accepts").startswith(b"HTTP/1.1 413 ")


def test_a_body_over_the_limit_is_answered_413_however_much_of_it_is_sent(tmp_path: Path) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(200):
            yield b"x" * 100_000

    with serving(tmp_path, "server.append_worker(Raw)", "--max-request-size", "100000") as program:
        for content in (b"x" * 20_000_000, chunks()):
            assert program.client.post("/inference", content=content).status_code == 413
        # The connection, or another, is good for more.
        assert program.client.post("/inference", content=b"small").content == b"small"


def test_a_client_that_leaves_frees_its_place(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with serving(tmp_path, "server.append_worker(Gate)", "--timeout", "20000", "--capacity", "1") as program:
        with connected(program) as connection:
            body = json.dumps(str(gate)).encode()
            connection.sendall(POST + b"content-length: %d\r\n\r\n%s" % (len(body), body))
            wait_until(lambda: remaining(program) == 1, "the request is not accepted")
        wait_until(lambda: remaining(program) == 0, "its place is not freed")
        gate.touch()
        assert program.client.post("/inference", json=str(gate)).status_code == 200


# -- HTTP/2 ------------------------------------------------------------------------------------------------------------


def post_over_http2(url: str, body: bytes) -> tuple[int, bytes]:
    """Return status and body of an answer over HTTP/2 that is spoken from the first byte."""
    if importlib.util.find_spec("h2"):
        with httpx.Client(transport=httpx.HTTPTransport(verify=False, http1=False, http2=True), timeout=20) as client:
            answer = client.post(url, content=body)
            assert answer.http_version == "HTTP/2"
            return answer.status_code, answer.content
    curl = shutil.which("curl")
    if curl is None or b"HTTP2" not in subprocess.run([curl, "--version"], capture_output=True, check=True).stdout:
        pytest.skip("neither h2 (for httpx) nor a curl with HTTP/2 is here")
    command = [curl, "-s", "--http2-prior-knowledge", "--data-binary", "@-", "-w", "%{http_version}%{http_code}", url]
    output = subprocess.run(command, input=body, capture_output=True, check=True, timeout=20).stdout
    assert output[-4:-3] == b"2"
    return int(output[-3:]), output[:-4]


def test_http1_and_prior_knowledge_http2_are_served_on_one_port(tmp_path: Path) -> None:
    """The server needs the extra `http2` (zttp); the client h2, which hypercorn brings, or curl."""
    pytest.importorskip("zttp")
    with serving(tmp_path) as program:
        for body in (b"1", b'"' + b"x" * 1_000_000 + b'"'):
            status, new = post_over_http2(f"{program.url}/inference", body)
            old = program.client.post("/inference", content=body)
            assert (status, json.loads(new)) == (200, old.json())
            assert old.http_version == "HTTP/1.1"
        assert post_over_http2(f"{program.url}/inference", b"")[0] == 400
