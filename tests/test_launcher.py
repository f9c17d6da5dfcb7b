"""Workers as real processes: how they are launched, what is noticed of their ends, and that nothing is left of them."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import json
import os
import resource
import signal
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from common import PATIENCE
from fakes import spec
from harness import child_processes, until
from lives import Life
from prometheus_client.mmap_dict import MmapedDict

from mosec_asgi.errors import StartupError
from mosec_asgi.inside.spec import WorkerSpec
from mosec_asgi.observing.custom import VARIABLE, CustomMetrics
from mosec_asgi.pool.process import launcher
from mosec_asgi.pool.process.launcher import ProcessLauncher
from mosec_asgi.worker import Worker

# These tests fork this process, which other tests may have given threads.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

METHODS = pytest.mark.parametrize("method", ["spawn", "fork"])
LINUX = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs a pidfd")


class Obedient(Worker):
    """Does what it is told."""

    def forward(self, data: Any) -> Any:
        match data:
            case ["environment", name]:
                return os.environ.get(name)
            case ["exit", status]:
                os._exit(status)
            case ["leave a child"]:
                # It has the pipe too, and outlives its parent: forked by a library that does not tell Python, it lets
                # go of nothing, and it is in a session of its own.
                child = ctypes.PyDLL(None).fork()
                if not child:
                    os.setsid()
                while not child:
                    signal.pause()
                return child
            case ["main"]:
                return getattr(sys.modules["__main__"], "__file__", None)
        return data


class Unable(Worker):
    """Cannot start."""

    def __init__(self) -> None:
        raise OSError("no weights")

    def forward(self, data: Any) -> Any:
        return data


def launch(
    method: str,
    worker: type[Worker] = Obedient,
    variables: dict[str, str] | None = None,
    counts: CustomMetrics | None = None,
) -> Life:
    return Life(ProcessLauncher(asyncio.get_running_loop(), method, counts=counts), spec(worker), variables)


@asynccontextmanager
async def life(*arguments: Any) -> AsyncIterator[Life]:
    """Launch a worker, and end it at the end."""
    worker = launch(*arguments)
    try:
        yield worker
    finally:
        worker.link.kill()
        await worker.ended()
    assert len(worker.ends) == 1, "its end is told once"
    assert worker.link.pid not in child_processes(os.getpid())


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/dev/fd"))


@METHODS
async def test_a_worker_starts_answers_and_ends_when_its_pipe_does(method: str) -> None:
    async with life(method) as worker:
        await worker.wait_ready()
        assert worker.link.describe_exit() == "is still running"
        assert worker.link.pid in child_processes(os.getpid())
        assert await worker.ask(b'"x"') == b'"x"'
        worker.link.finish()
        assert await worker.ended() == "exited with status 0"


@METHODS
async def test_a_worker_that_cannot_start_says_why_and_exits(method: str) -> None:
    async with life(method, Unable) as worker:
        await until(lambda: worker.said, "it says why")
        event, traceback = worker.said[0]
        assert event == "failed"
        assert "OSError: no weights" in traceback
        assert await worker.ended() == "exited with status 1"
        assert worker.all("closed") in ([], [[""]]), "which end is noticed first is chance; its pipe ends in good order"
        assert {event for event, *_ in worker.said} <= {"failed", "closed", "exited"}


@METHODS
async def test_the_end_of_a_worker_is_noticed_with_its_status_and_how_far_it_had_come(method: str) -> None:
    async with life(method) as worker:
        await worker.wait_ready()
        assert worker.link.progress().begun == 0
        await worker.ask(b"1")
        await worker.ask(b"2")
        assert worker.link.progress().begun == 2
        assert worker.link.progress().beats >= 2
        worker.send(b'["exit", 7]')
        assert await worker.ended() == "exited with status 7"
        assert worker.progress == [3], "it can be told though the worker is dead"


@METHODS
async def test_a_worker_can_be_killed_more_than_once(method: str) -> None:
    async with life(method) as worker:
        await worker.wait_ready()
        worker.link.kill()
        worker.link.kill()
        assert await worker.ended() == "was killed by signal 9 (SIGKILL)"
        number = worker.link.pid
        worker.link.kill()
        assert worker.link.pid == number is not None


@METHODS
async def test_variables_are_set_in_the_worker_and_not_in_the_server(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINE", "before")
    monkeypatch.delenv("OTHER", raising=False)
    async with life(method, Obedient, {"MINE": "inside", "OTHER": "2"}) as worker:
        assert (os.environ["MINE"], os.environ.get("OTHER")) == ("before", None)
        await worker.wait_ready()
        assert await worker.ask(b'["environment", "MINE"]') == b'"inside"'
        assert await worker.ask(b'["environment", "OTHER"]') == b'"2"'


def test_workers_of_several_event_loops_that_start_together_have_each_its_own_variables(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MINE", raising=False)
    main = sys.modules["__main__"]
    ready = threading.Barrier(2)

    async def seen_by_workers(loop: int) -> list[bytes]:
        async with AsyncExitStack() as exits:
            ready.wait(PATIENCE)
            mine = [{"MINE": f"{loop}{number}"} for number in range(3)]
            workers = [await exits.enter_async_context(life("spawn", Obedient, each)) for each in mine]
            for worker in workers:
                await worker.wait_ready()
            return [await worker.ask(b'["environment", "MINE"]') for worker in workers]

    with ThreadPoolExecutor(2) as threads:
        seen = threads.map(lambda loop: asyncio.run(seen_by_workers(loop)), range(2))
        assert list(seen) == [[b'"00"', b'"01"', b'"02"'], [b'"10"', b'"11"', b'"12"']]
    assert "MINE" not in os.environ
    assert sys.modules["__main__"] is main


def test_a_process_that_is_forked_while_a_worker_starts_can_start_workers() -> None:
    with launcher._launching:
        child = os.fork()
        if not child:
            os._exit(0 if launcher._launching.acquire(blocking=False) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


async def test_a_spawned_worker_does_not_import_the_main_module_of_whoever_serves() -> None:
    main = sys.modules["__main__"]
    async with life("spawn") as worker:
        assert sys.modules["__main__"] is main
        await worker.wait_ready()
        assert await worker.ask(b'["main"]') == b"null"


@LINUX
@METHODS
async def test_the_death_of_a_worker_is_noticed_though_a_child_of_it_holds_its_pipe(method: str) -> None:
    async with life(method) as worker:
        await worker.wait_ready()
        child = int(await worker.ask(b'["leave a child"]'))
        try:
            worker.link.kill()
            assert await worker.ended() == "was killed by signal 9 (SIGKILL)"
            assert worker.all("closed") == []
        finally:
            os.kill(child, signal.SIGKILL)


@LINUX
async def test_the_end_of_a_worker_that_somebody_else_has_reaped_is_noticed_all_the_same() -> None:
    async with life("fork") as worker:
        await worker.wait_ready()
        pid = worker.link.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        # The loop does not turn meanwhile.
        os.waitpid(pid, 0)
        assert await worker.ended() == "has ended, nobody knows how"
        worker.link.kill()
        worker.link.reap(0.1)


@METHODS
async def test_nothing_is_left_of_a_worker_that_has_ended(method: str) -> None:
    async def live() -> None:
        async with life(method) as worker:
            await worker.wait_ready()
            worker.send(b'["exit", 0]')
            await worker.ended()

    # The first one brings what `multiprocessing` keeps.
    await live()
    before = descriptors()
    for _ in range(3):
        await live()
    assert descriptors() == before


@METHODS
async def test_a_worker_can_be_reaped_without_a_loop(method: str) -> None:
    before = descriptors() if method == "fork" else 0
    worker = launch(method)
    await worker.wait_ready()
    asyncio.get_running_loop().remove_reader(worker.link._process._watched)
    worker.link.close()
    worker.link.reap(0.01)
    assert worker.link.pid not in child_processes(os.getpid())
    assert worker.ends == []
    if method == "fork":
        assert descriptors() == before


# -- what workers count ------------------------------------------------------------------------------------------------


@pytest.fixture
def counts(tmp_path: Path) -> Iterator[CustomMetrics]:
    metrics = CustomMetrics(None, (str(tmp_path),))
    metrics.open()
    yield metrics
    metrics.close()


class Told(ProcessLauncher):
    """Keeps what the process is told to run."""

    def _start(self, arguments: tuple[Any, ...]) -> Any:
        self.spec: WorkerSpec = arguments[0]
        return super()._start(arguments)


@asynccontextmanager
async def counting(counts: CustomMetrics, variables: dict[str, str]) -> AsyncIterator[tuple[Told, Life]]:
    """Launch a worker that counts, and end it at the end."""
    launcher = Told(asyncio.get_running_loop(), "fork", counts=counts)
    worker = Life(launcher, spec(Obedient), variables)
    try:
        await worker.wait_ready()
        yield launcher, worker
    finally:
        worker.link.kill()
        await worker.ended()


async def test_a_worker_is_told_where_to_count_beside_its_own_variables(counts: CustomMetrics) -> None:
    async with counting(counts, {"GPU": "1"}) as (launcher, worker):
        assert await worker.ask(b'["environment", "GPU"]') == b'"1"'
        assert json.loads(await worker.ask(json.dumps(["environment", VARIABLE]).encode())) == counts.private
        assert launcher.spec.metrics_directory == counts.private


async def test_a_directory_that_the_user_gives_a_worker_is_its_own(counts: CustomMetrics, tmp_path: Path) -> None:
    async with counting(counts, {VARIABLE: str(tmp_path)}) as (_, worker):
        assert json.loads(await worker.ask(json.dumps(["environment", VARIABLE]).encode())) == str(tmp_path)


async def test_a_directory_of_the_users_is_not_the_workers_to_remove(tmp_path: Path) -> None:
    async with counting(CustomMetrics(str(tmp_path), ()), {}) as (launcher, worker):
        assert json.loads(await worker.ask(json.dumps(["environment", VARIABLE]).encode())) == str(tmp_path)
        assert launcher.spec.metrics_directory == ""


async def test_a_worker_whose_counts_are_not_shown_is_told_of_no_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    async with life("fork") as worker:
        await worker.wait_ready()
        assert await worker.ask(json.dumps(["environment", VARIABLE]).encode()) == b"null"


async def test_the_books_of_a_worker_are_closed_when_it_has_ended_and_all_have_heard_of_it(
    counts: CustomMetrics,
) -> None:
    files: list[list[str]] = []

    class Watching(Life):
        def exited(self) -> None:
            super().exited()
            files.append(os.listdir(counts.private))

    launcher = ProcessLauncher(asyncio.get_running_loop(), "fork", counts=counts)
    worker = Watching(launcher, spec(Obedient))
    await worker.wait_ready()
    mine = f"counter_{worker.link.pid}.db"
    MmapedDict(f"{counts.private}/{mine}").close()
    worker.link.kill()
    await worker.ended()
    assert files == [[mine]]
    assert os.listdir(counts.private) == ["counter_0.db"]


# -- what cannot be launched -------------------------------------------------------------------------------------------


async def test_a_class_that_a_spawned_process_cannot_find_is_refused_with_what_to_change() -> None:
    class Local(Obedient):
        pass

    before = descriptors()
    with pytest.raises(StartupError, match=r"Local of stage Echo_1 cannot be sent.*top level.*start_method='fork'"):
        launch("spawn", Local)
    assert descriptors() == before
    async with life("fork", Local) as worker:
        await worker.wait_ready()


@contextmanager
def no_more_descriptors_than(number: int) -> Iterator[None]:
    """Let this process open so many files more and no more, for the time of a block."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Descriptors are numbers below the limit, and the lowest free ones are taken. The listing's own is free again.
    taken = {number for number in map(int, os.listdir("/proc/self/fd")) if os.path.exists(f"/proc/self/fd/{number}")}
    free = [candidate for candidate in range(soft) if candidate not in taken]
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[number], hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def take_all_descriptors() -> list[int]:
    """Open files until the limit is reached."""
    taken: list[int] = []
    with contextlib.suppress(OSError):
        while True:
            taken.append(os.open(os.devnull, os.O_RDONLY))
    return taken


@LINUX
@METHODS
async def test_a_dead_worker_is_replaced_though_others_have_taken_all_descriptors(method: str) -> None:
    launcher = ProcessLauncher(asyncio.get_running_loop(), method)
    first = Life(launcher, spec(Obedient), None)
    await first.wait_ready()
    before = descriptors()
    with no_more_descriptors_than(0):
        first.link.kill()
        await first.ended()
        # What its end has freed is held back; connections take the rest.
        await asyncio.sleep(0)
        taken = take_all_descriptors()
        second = Life(launcher, spec(Obedient), None)
        await second.wait_ready()
    for descriptor in taken:
        os.close(descriptor)
    second.link.kill()
    await second.ended()
    launcher.close()
    launcher.close()
    assert descriptors() < before


@LINUX
@pytest.mark.parametrize("number", range(6))
async def test_without_descriptors_a_launch_fails_and_leaves_none(number: int) -> None:
    before, children = descriptors(), child_processes(os.getpid())
    with no_more_descriptors_than(number), pytest.raises(StartupError, match=r"worker 1 of Echo_1.*open files"):
        launch("fork")
    assert descriptors() == before
    assert child_processes(os.getpid()) == children
