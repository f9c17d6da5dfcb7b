"""The server as process number 1 of a container: it stops when it is told to, and buries whom it has to.

The kernel gives that process no default handling of signals, and makes it the parent of every process whose own parent
has died. The container is a process namespace of its own, which `unshare` makes.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import signal
import subprocess
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness import Program, child_processes, processes, python, running, wait_until, written

SERVICE = """
    from mosec_asgi import Server
    from workers import Abandon, Echo, Gate, Loading

    if __name__ == "__main__":
        server = Server(timeout=20_000)
        server.append_worker(Echo, num=2)
        server.append_worker(Gate, route="/gate")
        server.append_worker(Abandon, max_attempts=1, route="/abandon")
        server.run()
"""


@functools.cache
def unshare() -> tuple[list[str], str]:
    """Return the command that runs another as process 1 of a namespace, or none and why it cannot be done here."""
    path = shutil.which("unshare")
    if path is None:
        return [], "unshare, of util-linux, is not here"
    reason = ""
    # With rights of its own, or those that it may give itself.
    for rights in ([], ["--user", "--map-root-user"]):
        command = [path, *rights, "--pid", "--fork", "--mount-proc", "--kill-child"]
        done = subprocess.run([*command, "true"], capture_output=True, text=True)
        if done.returncode == 0:
            return command, ""
        reason = done.stderr.strip()
    return [], f"this kernel or container forbids namespaces: {reason}"


@dataclass
class Container:
    """A server that is process 1 of its namespace.

    Attributes:
        program: what runs it, whose exit code is the server's.
        pid: the server's number outside.
    """

    program: Program
    pid: int

    def workers(self) -> set[int]:
        """Return the numbers, outside, of its children that run."""
        return {pid for pid, parent, _, state in processes() if parent == self.pid and state not in "ZX"}

    def zombies(self) -> set[int]:
        """Return the numbers, outside, of its children that have ended and are not buried."""
        return {pid for pid, parent, _, state in processes() if parent == self.pid and state == "Z"}

    def stop(self) -> int:
        """Send it SIGTERM; return its exit code."""
        os.kill(self.pid, signal.SIGTERM)
        return self.program.wait(10.0)


@contextlib.contextmanager
def contained(folder: Path, service: str) -> Iterator[Container]:
    """Run a service as process 1, without waiting until it is ready."""
    command, reason = unshare()
    if not command:
        pytest.skip(reason)
    file = written(folder, textwrap.dedent(service))
    with running([*command, *python(file)], folder / "output.log") as program:
        wait_until(lambda: child_processes(program.process.pid), "the namespace does not come to be")
        [pid] = child_processes(program.process.pid)
        yield Container(program, pid)


@pytest.fixture
def container(tmp_path: Path) -> Iterator[Container]:
    with contained(tmp_path, SERVICE) as container:
        container.program.wait_ready()
        assert '"pid": 1,' in container.program.output, "it is not process 1"
        yield container


def test_sigterm_ends_it_in_good_order(container: Container, tmp_path: Path) -> None:
    program, gate = container.program, tmp_path / "gate"
    with ThreadPoolExecutor(1) as threads:
        request = threads.submit(program.client.post, "/gate", json=str(gate))
        program.wait_for_output("waiting at the gate")
        os.kill(container.pid, signal.SIGTERM)
        wait_until(lambda: not program.answers("/readyz"), "it stays ready")
        gate.touch()
        assert request.result().status_code == 200
    assert program.wait() == 0
    program.assert_nothing_left(1.0)


def test_sigterm_ends_it_while_its_workers_load(tmp_path: Path) -> None:
    with contained(tmp_path, SERVICE.replace("Gate, route", "Loading, route")) as container:
        container.program.wait_for_output("loading has begun")
        assert container.stop() == 0
        container.program.assert_nothing_left(1.0)


def test_workers_that_die_are_buried_and_replaced(container: Container) -> None:
    number = len(container.workers())
    for _ in range(3):
        before = container.workers()
        # The newest has been a worker for sure: `multiprocessing` starts its own helper first.
        os.kill(max(before), signal.SIGKILL)
        wait_until(lambda old=before: len(container.workers() - old) == 1, "it is not replaced")
        wait_until(lambda: container.program.answers("/readyz"), "it is not ready again")
        assert container.zombies() == set()
    assert len(container.workers()) == number
    assert container.stop() == 0


def test_processes_that_its_workers_abandon_do_not_disturb_it(container: Container, tmp_path: Path) -> None:
    """Two that it inherits: one ends while it serves, the other is still there at its own end."""
    program, before = container.program, container.workers()
    for name in ("soon", "never"):
        assert program.client.post("/abandon", json=str(tmp_path / name)).status_code == 500
    assert len(re.findall(r"abandoned \d+", program.output)) == 2
    wait_until(lambda: len(container.workers()) == len(before) + 2, "it has not inherited them")
    (tmp_path / "soon").touch()
    wait_until(lambda: len(container.workers()) == len(before) + 1, "the first does not end")

    wait_until(lambda: program.answers("/readyz"), "it is not ready")
    assert program.client.post("/abandon", json="stay").status_code == 200
    assert program.client.post("/inference", json=1).json()["echo"] == 1
    assert container.stop() == 0
    program.assert_nothing_left(1.0)
