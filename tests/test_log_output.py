"""Lines for a pipe or a socket that nobody reads: never waited for, kept up to a bound, then dropped and counted."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from harness import free_port, wait_until, written

from mosec_asgi import log, log_output
from mosec_asgi.log_output import PatientHandler


def record(message: str) -> logging.LogRecord:
    return logging.LogRecord("mosec_asgi.x", logging.INFO, __file__, 1, message, None, None)


@contextlib.contextmanager
def patient() -> Iterator[tuple[PatientHandler, int]]:
    """Yield a handler on a pipe, and the end to read from."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    os.set_blocking(read, False)
    handler = PatientHandler(write, lambda data: os.write(write, data))
    handler.setFormatter(logging.Formatter("%(message)s"))
    try:
        yield handler, read
    finally:
        drained(handler, read)
        os.close(read)
        os.close(write)


def drained(handler: PatientHandler, read: int) -> list[str]:
    """Read until nothing is kept any more; return the lines."""
    data = b""

    def empty() -> bool:
        nonlocal data
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(read, 1 << 16):
                data += piece
        return not handler._following

    wait_until(empty, "all that was kept is written")
    empty()
    return data.decode().splitlines()


def test_a_line_is_written_at_once() -> None:
    with patient() as (handler, read):
        handler.handle(record("hello"))
        assert os.read(read, 100) == b"hello\n"
        assert not handler._following


def test_lines_that_find_no_room_come_later_whole_and_in_order() -> None:
    lines = [f"{number} {'x' * 7000}" for number in range(60)]
    with patient() as (handler, read):
        for line in lines:
            handler.handle(record(line))
        assert drained(handler, read) == lines
        handler.handle(record("and then"))
        assert os.read(read, 100) == b"and then\n"


def test_lines_beyond_the_bound_are_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_output, "MOST_KEPT", 10_000)
    lines = [f"{number} {'x' * 1000}" for number in range(200)]
    with patient() as (handler, read):
        for line in lines:
            handler.handle(record(line))
        assert handler._bytes <= 10_000
        *came, last = drained(handler, read)
        assert came == lines[: len(came)]
        assert last == f"{len(lines) - len(came)} log lines were dropped: nobody has read standard error"


def test_a_process_that_is_forked_leaves_what_is_kept_to_its_parent() -> None:
    with patient() as (handler, read):
        for number in range(200):
            handler.handle(record(f"{number} {'x' * 1000}"))
        pid = os.fork()
        if not pid:
            handler.handle(record("child"))
            os._exit(0 if [line for line in handler._kept if b"x" in line] == [] else 1)
        assert os.waitpid(pid, 0)[1] == 0
        numbers = [line.split()[0] for line in drained(handler, read)]
        assert [number for number in numbers if number != "child"] == [str(number) for number in range(200)]


def test_a_reader_that_has_left_is_no_error() -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    handler = PatientHandler(write, lambda data: os.write(write, data))
    os.close(read)
    handler.handle(record("to nobody"))
    assert not handler._kept
    os.close(write)


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_standard_error_itself_stays_as_it_is(kind: str) -> None:
    text = """
        import logging, os, sys
        from mosec_asgi import log
        log.configure("info", others=("other",))
        one, two = logging.getLogger("mosec_asgi").handlers[0], logging.getLogger("other").handlers[0]
        log.configure("info")
        assert one is two is logging.getLogger("mosec_asgi").handlers[0], "one of them, whatever the number of starts"
        for _ in range(3000):
            logging.getLogger("mosec_asgi").info("x" * 500)
        print(type(one).__name__, os.get_blocking(2), flush=True)
        sys.stdin.read()
        logging.getLogger("mosec_asgi").info("the last")
    """
    if kind == "pipe":
        read, write = os.pipe()
    else:
        ours, theirs = socket.socketpair()
        read, write = ours.detach(), theirs.detach()
    command = [sys.executable, "-c", textwrap.dedent(text)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=write, text=True) as process:
        os.close(write)
        assert process.stdout
        assert process.stdout.readline() == "PatientHandler True\n"
        assert process.stdin
        process.stdin.close()
        with open(read, "rb") as reader:
            lines = [json.loads(line) for line in reader]
    assert process.returncode == 0
    assert "log lines were dropped" in lines[-1]["fields"]["message"]
    dropped = int(lines[-1]["fields"]["message"].split()[0])
    assert dropped + len(lines) - 1 == 3001


def test_a_service_whose_log_nobody_reads_goes_on(tmp_path: Path) -> None:
    text = """
        from mosec_asgi import Server, Worker, get_logger

        class Chatty(Worker):
            def forward(self, data):
                get_logger().info("y" * 20000)
                return data

        if __name__ == "__main__":
            server = Server(access_log=True)
            server.append_worker(Chatty)
            server.run()
    """
    file, port = written(tmp_path, textwrap.dedent(text)), free_port()
    read, write = os.pipe()
    process = subprocess.Popen([sys.executable, str(file), "--port", str(port)], stderr=write)
    os.close(write)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=5) as client:

            def ready() -> bool:
                with contextlib.suppress(httpx.TransportError):
                    return client.get("/readyz").status_code == 200
                return False

            wait_until(ready, "it is ready")
            for number in range(200):
                # More than a pipe holds: of the server, 64 KiB are full at the half.
                path = "/inference?" + "q" * 1000
                assert client.post(path, content=str(number).encode()).json() == number
        process.terminate()
        assert process.wait(15) == 0
    finally:
        process.kill()
        process.wait()
        os.close(read)


def test_a_stream_of_the_programs_own_is_written_to_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    with open(os.devnull, "w") as own:
        monkeypatch.setattr(sys, "stderr", own)
        handler = log_output.handler_for_stderr()
    assert type(handler) is logging.StreamHandler
    assert handler.stream is own
    assert log.ROOT == "mosec_asgi"
