"""The server as process number 1 of a container: it stops when it is told to, and buries whom it has to.

The kernel gives that process no default handling of signals, and makes it the parent of every process whose own parent
has died. The container is a process namespace of its own, which `unshare` makes.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from containers import Container, contained, unshare
from harness import python, wait_until, written

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


@contextlib.contextmanager
def serving(folder: Path, service: str) -> Iterator[Container]:
    """Run a service as process 1, without waiting until it is ready."""
    command, reason = unshare()
    if not command:
        pytest.skip(reason)
    file = written(folder, textwrap.dedent(service))
    with contained([*command, *python(file)], folder / "output.log") as container:
        yield container


@pytest.fixture
def container(tmp_path: Path) -> Iterator[Container]:
    with serving(tmp_path, SERVICE) as container:
        container.program.wait_ready()
        assert '"pid": 1,' in container.program.output, "it is not process 1"
        yield container


def test_sigterm_ends_it_in_good_order(container: Container, tmp_path: Path) -> None:
    program, gate = container.program, tmp_path / "gate"
    with ThreadPoolExecutor(1) as threads:
        request = threads.submit(program.client.post, "/gate", json=str(gate))
        program.wait_for_output("waiting at the gate")
        container.send(signal.SIGTERM)
        wait_until(lambda: not program.answers("/readyz"), "it stays ready")
        gate.touch()
        assert request.result().status_code == 200
    assert program.wait() == 0
    program.assert_nothing_left(1.0)


def test_sigterm_ends_it_while_its_workers_load(tmp_path: Path) -> None:
    with serving(tmp_path, SERVICE.replace("Gate, route", "Loading, route")) as container:
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
