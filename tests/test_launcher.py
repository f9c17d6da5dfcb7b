"""Workers as real processes: how they are launched, what is noticed of their ends, and that nothing is left of them."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
from fakes import spec
from harness import child_processes, until

from mosec_asgi.errors import StartupError
from mosec_asgi.ipc import frames
from mosec_asgi.ipc.channel import Channel
from mosec_asgi.messages import EGRESS, INGRESS, Results, Tasks
from mosec_asgi.pool.process.launcher import ProcessLauncher, WorkerProcess
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
                # It has the pipe too, and outlives its parent.
                child = os.fork()
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


class Life:
    """One life of a worker: what was heard of it."""

    def __init__(self, method: str, worker: type[Worker] = Obedient, variables: dict[str, str] | None = None) -> None:
        self.frames: list[frames.Frame] = []
        self.closed: list[str] = []
        # How it ended, and how far it had come, as could be told each time that its end was noticed.
        self.ends: list[str] = []
        self.progress: list[int] = []
        self.handle: WorkerProcess
        self.channel: Channel
        self.handle, self.channel = ProcessLauncher(asyncio.get_running_loop(), method).launch(
            spec(worker), variables or {}, self.frames.append, self.closed.append, self._ended
        )

    def _ended(self) -> None:
        self.ends.append(self.handle.describe_exit())
        self.progress.append(self.handle.progress().begun)
        self.channel.close()

    async def ready(self) -> None:
        await until(lambda: self.frames, "it says that it is ready")
        assert self.frames == [frames.Ready()]

    async def ended(self) -> str:
        """Wait until its end is noticed, and return how that was."""
        await until(lambda: self.ends, "its end is noticed")
        return self.ends[0]

    def send(self, body: bytes) -> None:
        tasks = Tasks([1], [INGRESS | EGRESS], ["request"], [body])
        self.channel.send(frames.encode_tasks(tasks))

    async def ask(self, body: bytes) -> bytes:
        """Return the answer to a task."""
        before = len(self.frames)
        self.send(body)
        await until(lambda: len(self.frames) > before, "it answers")
        results = self.frames[-1]
        assert isinstance(results, Results)
        assert list(results.codes) == [200]
        return results.payloads[0]


@asynccontextmanager
async def life(*arguments: Any) -> AsyncIterator[Life]:
    """Launch a worker, and end it at the end."""
    worker = Life(*arguments)
    try:
        yield worker
    finally:
        worker.handle.kill()
        await worker.ended()
    assert len(worker.ends) == 1, "its end is told once"
    assert worker.handle.pid not in child_processes(os.getpid())


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/dev/fd"))


@METHODS
async def test_a_worker_starts_answers_and_ends_when_its_pipe_does(method: str) -> None:
    async with life(method) as worker:
        await worker.ready()
        assert worker.handle.describe_exit() == "is still running"
        assert worker.handle.pid in child_processes(os.getpid())
        assert await worker.ask(b'"x"') == b'"x"'
        worker.channel.finish()
        assert await worker.ended() == "exited with status 0"


@METHODS
async def test_a_worker_that_cannot_start_says_why_and_exits(method: str) -> None:
    async with life(method, Unable) as worker:
        await until(lambda: worker.frames, "it says why")
        (said,) = worker.frames
        assert isinstance(said, frames.Failed)
        assert "OSError: no weights" in said.text
        assert await worker.ended() == "exited with status 1"


@METHODS
async def test_the_end_of_a_worker_is_noticed_with_its_status_and_how_far_it_had_come(method: str) -> None:
    async with life(method) as worker:
        await worker.ready()
        assert worker.handle.progress().begun == 0
        await worker.ask(b"1")
        await worker.ask(b"2")
        assert worker.handle.progress().begun == 2
        assert worker.handle.progress().beats >= 2
        worker.send(b'["exit", 7]')
        assert await worker.ended() == "exited with status 7"
        assert worker.progress == [3], "it can be told though the worker is dead"


@METHODS
async def test_a_worker_can_be_killed_more_than_once(method: str) -> None:
    async with life(method) as worker:
        await worker.ready()
        worker.handle.kill()
        worker.handle.kill()
        assert await worker.ended() == "was killed by signal 9"
        number = worker.handle.pid
        worker.handle.kill()
        assert worker.handle.pid == number is not None


@METHODS
async def test_variables_are_set_in_the_worker_and_not_in_the_server(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINE", "before")
    monkeypatch.delenv("OTHER", raising=False)
    async with life(method, Obedient, {"MINE": "inside", "OTHER": "2"}) as worker:
        assert (os.environ["MINE"], os.environ.get("OTHER")) == ("before", None)
        await worker.ready()
        assert await worker.ask(b'["environment", "MINE"]') == b'"inside"'
        assert await worker.ask(b'["environment", "OTHER"]') == b'"2"'


async def test_a_spawned_worker_does_not_import_the_main_module_of_whoever_serves() -> None:
    main = sys.modules["__main__"]
    async with life("spawn") as worker:
        assert sys.modules["__main__"] is main
        await worker.ready()
        assert await worker.ask(b'["main"]') == b"null"


@LINUX
@METHODS
async def test_the_death_of_a_worker_is_noticed_though_a_child_of_it_holds_its_pipe(method: str) -> None:
    async with life(method) as worker:
        await worker.ready()
        child = int(await worker.ask(b'["leave a child"]'))
        try:
            worker.handle.kill()
            assert await worker.ended() == "was killed by signal 9"
            assert worker.closed == []
        finally:
            os.kill(child, signal.SIGKILL)


@LINUX
async def test_the_end_of_a_worker_that_somebody_else_has_reaped_is_noticed_all_the_same() -> None:
    async with life("fork") as worker:
        await worker.ready()
        pid = worker.handle.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        # The loop does not turn meanwhile.
        os.waitpid(pid, 0)
        assert await worker.ended() == "has ended, nobody knows how"
        worker.handle.kill()
        worker.handle.reap(0.1)


@METHODS
async def test_nothing_is_left_of_a_worker_that_has_ended(method: str) -> None:
    async def live() -> None:
        async with life(method) as worker:
            await worker.ready()
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
    worker = Life(method)
    await worker.ready()
    asyncio.get_running_loop().remove_reader(worker.handle._watched)
    worker.channel.close()
    worker.handle.reap(0.01)
    assert worker.handle.pid not in child_processes(os.getpid())
    assert worker.ends == []
    if method == "fork":
        assert descriptors() == before


# -- what cannot be launched -------------------------------------------------------------------------------------------


async def test_a_class_that_a_spawned_process_cannot_find_is_refused_with_what_to_change() -> None:
    class Local(Obedient):
        pass

    before = descriptors()
    with pytest.raises(StartupError, match=r"Local of stage Echo_1 cannot be sent.*top level.*start_method='fork'"):
        Life("spawn", Local)
    assert descriptors() == before
    async with life("fork", Local) as worker:
        await worker.ready()


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


@LINUX
@pytest.mark.parametrize("number", range(6))
async def test_without_descriptors_a_launch_fails_and_leaves_none(number: int) -> None:
    before, children = descriptors(), child_processes(os.getpid())
    with no_more_descriptors_than(number), pytest.raises(StartupError, match=r"worker 1 of Echo_1.*open files"):
        Life("fork")
    assert descriptors() == before
    assert child_processes(os.getpid()) == children
