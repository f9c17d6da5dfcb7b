"""Preloaded workers where the program ignores SIGCHLD or reaps whatever ends, and where their template is killed."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from harness import Program, python, running, wait_until, written

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs a pidfd")

PROGRAM = """
import os, signal, time
from mosec_asgi import Server, Worker

{setup}

class Slow(Worker):
    def forward(self, data):
        time.sleep(data)
        handler = signal.getsignal(signal.SIGCHLD)
        return [os.getpid(), os.getppid(), getattr(handler, "__name__", "") or signal.Handlers(handler).name]

if __name__ == "__main__":
    server = Server(timeout=60000)
    server.append_worker(Slow, num=2, preload=True)
    server.run()
"""
SETUPS = {
    "default": "",
    "ignored": "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
    "reaped": """
def reap(*_):
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
signal.signal(signal.SIGCHLD, reap)
""",
}
SETUP = pytest.mark.parametrize("setup", list(SETUPS))


@contextlib.contextmanager
def serving(folder: Path, setup: str) -> Iterator[Program]:
    file = written(folder, PROGRAM.replace("{setup}", SETUPS[setup]))
    with running(python(file), folder / "output.log") as program:
        program.wait_ready()
        wait_until(lambda: len(pids(program)) == 2, "both workers answer")
        yield program


def ask(program: Program) -> tuple[int, int, str]:
    pid, parent, handler = program.client.post("/inference", content=b"0.02").json()
    return pid, parent, handler


def pids(program: Program) -> set[int]:
    """Return the workers that answer several requests at once."""
    with ThreadPoolExecutor(4) as threads:
        return {pid for pid, _, _ in threads.map(lambda _: ask(program), range(4))}


@SETUP
def test_a_dead_worker_is_replaced_and_its_siblings_serve_on(tmp_path: Path, setup: str) -> None:
    with serving(tmp_path, setup) as program:
        template = ask(program)[1]
        victim, sibling = sorted(pids(program))
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: len(pids(program) - {victim}) == 2, "the dead one is replaced")
        assert sibling in pids(program)
        assert ask(program)[1] == template
        assert program.restarts("Slow_1") == 1
        assert any("was killed by signal 9" in message for message in program.messages())


@SETUP
def test_workers_outlive_their_template_and_the_next_one_brings_a_new_one(tmp_path: Path, setup: str) -> None:
    with serving(tmp_path, setup) as program:
        template = ask(program)[1]
        victim, sibling = sorted(pids(program))
        os.kill(template, signal.SIGKILL)
        program.wait_for_output("they serve on")
        assert pids(program) == {victim, sibling}
        assert program.restarts("Slow_1") == 0
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: len(pids(program) - {victim}) == 2, "the dead one is replaced")
        assert sibling in pids(program)
        assert program.restarts("Slow_1") == 1
        assert program.output.count("they serve on") == 1


def test_a_worker_that_has_lost_its_template_ends_with_the_server_all_the_same(tmp_path: Path) -> None:
    with serving(tmp_path, "default") as program:
        os.kill(ask(program)[1], signal.SIGKILL)
        program.wait_for_output("they serve on")
        # At work, it does not read its pipe, whose end would tell it otherwise.
        client = httpx.Client(base_url=program.url, timeout=0.5)
        with client, pytest.raises(httpx.TimeoutException):
            client.post("/inference", content=b"3600")
        program.send(signal.SIGKILL)
        program.wait()
        program.assert_nothing_left(15.0)


@SETUP
def test_a_worker_has_the_handler_of_the_program(tmp_path: Path, setup: str) -> None:
    expected = {"default": "SIG_DFL", "ignored": "SIG_IGN", "reaped": "reap"}
    with serving(tmp_path, setup) as program:
        assert ask(program)[2] == expected[setup]
