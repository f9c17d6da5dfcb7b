"""A worker's process: its exit is told once, whoever notices it, and it is always reaped."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess

import pytest
from fakes import PATIENCE, settled_loop, until
from harness import child_processes

from mosec_asgi.pool.process import watched
from mosec_asgi.pool.process.watched import WatchedProcess, forget_all

# These tests fork this process, which other tests may have given threads.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
LINUX = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs a pidfd")


def wait_for_ever() -> None:
    while True:
        time.sleep(3600)


def leave(status: int) -> None:
    os._exit(status)


Started = Callable[..., tuple[WatchedProcess, BaseProcess]]


@pytest.fixture
def started() -> Iterator[Started]:
    """Starts processes that the end of the test ends."""
    made: list[tuple[WatchedProcess, int]] = []

    def start(target: Callable[..., None], *arguments: object) -> tuple[WatchedProcess, BaseProcess]:
        process = multiprocessing.get_context("fork").Process(target=target, args=arguments)
        process.start()
        assert process.pid is not None
        made.append((WatchedProcess(process), process.pid))
        return made[-1][0], process

    yield start
    for process, pid in made:
        if process in watched._running:
            process.reap(0.0)
        assert pid not in child_processes(os.getpid())


async def test_the_exit_of_a_process_is_told_once_with_its_status(started: Started) -> None:
    process, _ = started(leave, 7)
    exits: list[str] = []
    process.watch(asyncio.get_running_loop(), lambda: exits.append(process.describe_exit()))
    await until(lambda: exits)
    await settled_loop()
    assert exits == ["exited with status 7"]
    assert process not in watched._running
    assert process.describe_exit() == "exited with status 7", "who hears of it later is told the same"


async def test_a_process_that_is_killed_has_its_exit_told_as_any_other(started: Started) -> None:
    process, _ = started(wait_for_ever)
    exits: list[str] = []
    process.watch(asyncio.get_running_loop(), lambda: exits.append(process.describe_exit()))
    assert (process.describe_exit(), exits) == ("is still running", [])
    process.kill()
    process.kill()
    await until(lambda: exits)
    assert exits == ["was killed by signal 9 (SIGKILL)"]
    process.kill()


async def test_the_number_of_a_process_is_known_after_its_end(started: Started) -> None:
    process, inner = started(leave, 0)
    number, exits = inner.pid, []
    process.watch(asyncio.get_running_loop(), lambda: exits.append(1))
    await until(lambda: exits)
    assert process.pid == number is not None


def test_a_process_is_reaped_without_a_loop_and_killed_where_it_does_not_end(started: Started) -> None:
    for target, arguments in ((leave, (0,)), (wait_for_ever, ())):
        process, inner = started(target, *arguments)
        pid = inner.pid
        process.reap(5.0 if target is leave else 0.01)
        assert pid not in child_processes(os.getpid())
        assert process not in watched._running


def leave_a_child_behind(heard: int, told: int) -> None:
    """End, with a child that lives on and holds all that it has inherited until `told` is closed elsewhere."""
    if not os.fork():
        os.close(told)
        os.read(heard, 1)
    os._exit(0)


@LINUX
def test_a_child_that_lives_on_does_not_hold_up_the_reaping_of_its_parent(started: Started) -> None:
    heard, told = os.pipe()
    try:
        process, inner = started(leave_a_child_behind, heard, told)
        began, pid = time.monotonic(), inner.pid
        process.reap(PATIENCE)
        assert time.monotonic() - began < PATIENCE / 2
        assert pid not in child_processes(os.getpid())
    finally:
        os.close(told)
        os.close(heard)


@LINUX
async def test_a_process_that_somebody_else_has_reaped_is_told_to_have_ended(started: Started) -> None:
    process, inner = started(wait_for_ever)
    exits: list[str] = []
    process.watch(asyncio.get_running_loop(), lambda: exits.append(process.describe_exit()))
    assert inner.pid is not None
    os.kill(inner.pid, signal.SIGKILL)
    os.waitpid(inner.pid, 0)
    await until(lambda: exits)
    assert exits == ["has ended, nobody knows how"]


async def test_without_pidfds_the_end_is_noticed_by_the_sentinel(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    process, inner = started(leave, 4)
    assert process._watched == inner.sentinel
    exits: list[str] = []
    process.watch(asyncio.get_running_loop(), lambda: exits.append(process.describe_exit()))
    await until(lambda: exits)
    assert exits == ["exited with status 4"]


async def test_descriptors_that_cannot_be_had_leave_the_sentinel(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(pid: int) -> int:
        raise OSError(24, os.strerror(24))

    monkeypatch.setattr(os, "pidfd_open", refuse, raising=False)
    process, inner = started(leave, 0)
    assert process._watched == inner.sentinel


def test_a_forked_process_forgets_those_of_its_server(started: Started) -> None:
    before = set(watched._running)
    process, _ = started(wait_for_ever)
    assert process in watched._running
    forget_all()
    assert watched._running == set()
    watched._running.update(before | {process})


def test_a_server_that_nobody_shut_down_ends_its_workers_when_it_exits() -> None:
    program = (
        "import multiprocessing, time\n"
        "from mosec_asgi.pool.process.watched import WatchedProcess\n"
        "process = multiprocessing.get_context('fork').Process(target=time.sleep, args=(3600,))\n"
        "process.start()\n"
        "worker = WatchedProcess(process)\n"
        "print(process.pid, flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        worker = int(server.stdout.readline())
        try:
            assert server.wait(PATIENCE) == 0
            with pytest.raises(ProcessLookupError):
                os.kill(worker, 0)
        finally:
            server.kill()
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
