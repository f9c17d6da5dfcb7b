"""What a worker starts has the usual signals, and ends with the worker, whatever its end is."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_port import PATIENCE, json_tasks, spec_of, until

from mosec_asgi.ipc import frames
from mosec_asgi.ipc.progress import ProgressPage
from mosec_asgi.ipc.shm import Share, SharedMemory
from mosec_asgi.messages import Results
from mosec_asgi.pool.process import child
from mosec_asgi.pool.process.group import begin_worker, end_group, interrupt_held
from mosec_asgi.worker import Worker

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it is /proc that tells what there is")


def sleep() -> None:
    while True:
        time.sleep(1.0)


def alive(process: int) -> bool:
    """Whether a process runs; one that nobody has reaped does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Starting(Worker):
    """Starts processes of both kinds, and tells their numbers."""

    def __init__(self) -> None:
        self.tool = subprocess.Popen(["sleep", "600"])
        self.helper = multiprocessing.get_context("fork").Process(target=sleep, daemon=True)
        self.helper.start()

    def forward(self, data: Any) -> Any:
        if data == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        return [self.tool.pid, self.helper.pid]


class Life:
    """A worker's process, and the server's end of its pipe."""

    def __init__(self, worker: type[Worker], share: Share | None = None) -> None:
        self.sock, theirs = socket.socketpair()
        self.page = ProgressPage()
        self.process = multiprocessing.get_context("fork").Process(
            target=_main, args=(self.sock, spec_of(worker), theirs, self.page, share)
        )
        self.process.start()
        theirs.close()
        self._decoder = frames.Decoder()
        self._asked = 0

    def ask(self, value: Any) -> Any:
        """Return what the worker answers."""
        self._asked += 1
        self.sock.sendall(frames.encode_tasks(json_tasks(value, first=self._asked)))
        self.sock.settimeout(PATIENCE)
        while data := self.sock.recv(1 << 16):
            self._decoder.receive_data(data)
            for frame in iter(self._decoder.next_frame, None):
                if isinstance(frame, Results):
                    return json.loads(frame.payloads[0])  # type: ignore[arg-type]
        return None

    def end(self) -> None:
        """Ask it to stop, and wait until it has."""
        self.sock.shutdown(socket.SHUT_WR)
        self.process.join(PATIENCE)

    def close(self) -> None:
        """Leave nothing behind."""
        with contextlib.suppress(ValueError):
            pid = self.process.pid
            self.process.kill()
            self.process.join()
            assert pid is not None
            end_group(pid)
        self.sock.close()
        self.page.close()


def _main(ours: socket.socket, *arguments: Any) -> None:
    ours.close()
    child.main(*arguments)


@pytest.fixture
def life() -> Iterator[Life]:
    life = Life(Starting)
    yield life
    life.close()


# -- their signals -----------------------------------------------------------------------------------------------------


class Asking(Worker):
    def forward(self, data: Any) -> Any:
        if data == "program":
            tool = subprocess.Popen(["sleep", "600"])
            tool.terminate()
            return tool.wait(PATIENCE)
        if data == "fork":
            helper = multiprocessing.get_context("fork").Process(target=sleep)
            helper.start()
            helper.terminate()
            helper.join(PATIENCE)
            return helper.exitcode
        if data == "spawn":
            helper = multiprocessing.get_context("spawn").Process(target=sleep)  # type: ignore[assignment]
            helper.start()
            helper.terminate()
            helper.join(PATIENCE)
            return helper.exitcode
        if data == "interrupt":
            tool = subprocess.Popen(["sleep", "600"])
            tool.send_signal(signal.SIGINT)
            return tool.wait(PATIENCE)
        command = ["grep", "SigIgn", "/proc/self/status"]
        ignored = int(subprocess.run(command, capture_output=True, check=True).stdout.split()[1], 16)
        return [ignored >> (number - 1) & 1 for number in (signal.SIGINT, signal.SIGTERM)]


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("program", -signal.SIGTERM),
        ("fork", -signal.SIGTERM),
        ("spawn", -signal.SIGTERM),
        ("interrupt", -signal.SIGINT),
        ("ignored", [0, 0]),
    ],
)
def test_what_a_worker_starts_can_be_terminated(kind: str, code: Any) -> None:
    life = Life(Asking)
    try:
        assert life.ask(kind) == code
    finally:
        life.close()


def test_an_interrupt_of_the_servers_group_reaches_neither_the_worker_nor_what_it_has_started(life: Life) -> None:
    for process in [life.process.pid, *life.ask(1)]:
        assert process is not None
        assert os.getpgid(process) == life.process.pid != os.getpgrp()


def _interrupt_before_it_is_a_worker(told: socket.socket) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    begin_worker()
    told.sendall(b"a worker")


def test_a_process_that_is_started_hears_of_no_interrupt_before_it_is_a_worker() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = multiprocessing.get_context("spawn").Process(
            target=_interrupt_before_it_is_a_worker, args=(theirs,), daemon=True
        )
        with interrupt_held():
            process.start()
        process.join(PATIENCE)
        theirs.close()
        assert process.exitcode == 0
        assert ours.recv(100) == b"a worker"
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


# -- their end ---------------------------------------------------------------------------------------------------------


def test_what_a_worker_has_started_ends_with_it(life: Life) -> None:
    started = life.ask(1)
    assert all(map(alive, started))
    life.end()
    assert life.process.exitcode == 0
    until(lambda: not any(map(alive, started)))


def test_what_a_dead_worker_has_started_is_ended_with_its_group(life: Life) -> None:
    started = life.ask(1)
    assert life.ask("crash") is None
    # Not by `join`, which waits for a pipe that the forked one holds.
    until(lambda: life.process.exitcode == -signal.SIGKILL)
    assert all(map(alive, started))
    assert life.process.pid is not None
    end_group(life.process.pid)
    until(lambda: not any(map(alive, started)))


class Busy(Worker):
    """Has a pool whose processes are at work, and a process that heeds no signal."""

    def __init__(self) -> None:
        self.pool = multiprocessing.get_context("fork").Pool(2)
        self.jobs = self.pool.map_async(_job, range(2))
        self.deaf = subprocess.Popen(["sh", "-c", "trap '' TERM; echo; sleep 600 & wait; wait"], stdout=subprocess.PIPE)
        assert self.deaf.stdout is not None
        self.deaf.stdout.readline()

    def forward(self, data: Any) -> Any:
        return [*(process.pid for process in self.pool._pool), self.deaf.pid]  # type: ignore[attr-defined]


def _job(number: int) -> None:
    sleep()


def test_a_busy_pool_does_not_hold_up_the_end_of_its_worker() -> None:
    life = Life(Busy)
    try:
        *pool, deaf = life.ask(1)
        began = time.monotonic()
        life.end()
        assert life.process.exitcode == 0
        assert time.monotonic() - began < PATIENCE / 4
        assert not any(map(alive, pool))
        # What does not heed the signal is the server's to end.
        assert alive(deaf)
        assert life.process.pid is not None
        end_group(life.process.pid)
        until(lambda: not alive(deaf))
    finally:
        life.close()


SERVER = """
import socket, sys, threading, time
sys.path[:0] = {path!r}
import test_group
from fake_port import json_tasks
life = test_group.Life(test_group.{worker})
print(life.process.pid, *life.ask(1), flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("worker", ["Starting", "Busy"])
def test_what_a_worker_has_started_ends_though_its_server_was_killed(worker: str) -> None:
    program = SERVER.format(path=sys.path, worker=worker)
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        processes = [int(number) for number in server.stdout.readline().split()]
        try:
            assert all(map(alive, processes))
            server.kill()
            until(lambda: not any(map(alive, processes)), f"some of {processes} are left")
        finally:
            end_group(processes[0])


def test_a_process_with_a_session_of_its_own_outlives_the_worker() -> None:
    class Leaving(Worker):
        def forward(self, data: Any) -> Any:
            return subprocess.Popen(["sleep", "600"], start_new_session=True).pid

    life = Life(Leaving)
    try:
        process = life.ask(1)
        life.end()
        assert life.process.pid is not None
        end_group(life.process.pid)
        assert alive(process)
        os.kill(process, signal.SIGKILL)
    finally:
        life.close()


def test_the_group_of_a_worker_that_has_left_nothing_behind_is_gone() -> None:
    process = subprocess.Popen(["true"], start_new_session=True)
    process.wait()
    end_group(process.pid)


# -- what they inherit -------------------------------------------------------------------------------------------------


class Looking(Worker):
    """Tells what the processes that it starts have inherited."""

    def forward(self, data: Any) -> Any:
        if data == "program":
            listing = subprocess.run(
                ["sh", "-c", "ls -l /proc/self/fd"], capture_output=True, text=True, check=True, close_fds=False
            )
            return listing.stdout
        reading, writing = os.pipe()
        if not os.fork():
            os.write(writing, "\n".join(_links()).encode())
            os._exit(0)
        os.wait()
        os.close(writing)
        with os.fdopen(reading) as file:
            return file.read()


def _links() -> Iterator[str]:
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            yield os.readlink(f"/proc/self/fd/{name}")


@pytest.mark.parametrize("kind", ["program", "fork"])
def test_what_a_worker_starts_inherits_neither_its_pipe_nor_its_memory(kind: str) -> None:
    memory = SharedMemory(1 << 20, 1)
    worker = memory.open_worker()
    life = Life(Looking, worker.share)
    try:
        inherited = life.ask(kind)
    finally:
        life.close()
        memory.close()
    assert inherited
    assert "socket:" not in inherited
    if kind == "program":
        assert "mosec_asgi" not in inherited


def test_a_forked_child_that_goes_on_in_forward_says_nothing_to_the_server() -> None:
    class Forking(Worker):
        def forward(self, data: Any) -> Any:
            if not os.fork():
                assert self.is_cancelled()
                return "from the child"
            os.wait()
            return "from the worker"

    life = Life(Forking)
    try:
        assert [life.ask(1), life.ask(2)] == ["from the worker"] * 2
    finally:
        life.close()
