"""Workers in this process: everything of a worker but its process, so that a test can see into it and break it.

The pipe, the frames, the page of its progress and the code that runs it are the real ones. A plain worker runs in a
thread that takes turns with the event loop (`baton`), an asynchronous one on the loop itself.

What cannot be had without a process: `finally` blocks run even where a worker crashes; a plain `forward` that never
comes back holds up the whole program; and the stage's timeout interrupts a plain `forward` only where it is the test
that makes it slow.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import os
import socket
import time
import traceback
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from mosec_asgi import log
from mosec_asgi.errors import too_slow
from mosec_asgi.ipc import frames
from mosec_asgi.ipc.channel import Channel
from mosec_asgi.ipc.progress import Progress, ProgressPage
from mosec_asgi.pool.child import load, runner_for, speaker_for, warm_up
from mosec_asgi.pool.codec import as_input, examples
from mosec_asgi.pool.concurrent import ConcurrentRunner
from mosec_asgi.pool.port import Port
from mosec_asgi.pool.process import environment
from mosec_asgi.pool.spec import WorkerSpec
from mosec_asgi.streaming import ContinuousWorker, is_async
from mosec_asgi.testing.baton import BatonThread, Ended
from mosec_asgi.testing.script import ScriptedWorker
from mosec_asgi.worker import Worker

# Seconds that the tasks of an asynchronous worker that has been ended get to end.
END_SECONDS = 1.0
# Waits up to so many seconds are measured by the system's clock (before the first step of a continuous batch). They
# pass in fact, and not on the loop.
SHORT_SECONDS = 0.005

# A worker that asks again and again whether its client has left works meanwhile, which takes time.
MOST_LOOKS = 10
LOOK_SECONDS = 0.001

logger = log.internal_logger(__name__)


class InlineLauncher:
    """Starts workers in this process."""

    def __init__(self, loop: asyncio.AbstractEventLoop, scripts: Mapping[tuple[str, int], ScriptedWorker]) -> None:
        """Prepare; nothing is started.

        Args:
            loop: the loop to run on, or in turn with.
            scripts: what the workers are to do, by stage and number.
        """
        self._loop = loop
        self._scripts = scripts

    def launch(
        self,
        spec: WorkerSpec,
        variables: Mapping[str, str],
        on_frame: Callable[[frames.Frame], None],
        on_closed: Callable[[str], None],
        on_exit: Callable[[], None],
    ) -> tuple[InlineWorker, Channel]:
        """Start a worker; see `Launcher.launch`."""
        ours, theirs = socket.socketpair()
        channel = Channel(ours, on_frame, on_closed)
        channel.open(self._loop)
        script = self._scripts[spec.stage, spec.worker_id]
        kind = AsyncWorker if is_async(spec.worker) else PlainWorker
        worker = kind(spec, variables, self._loop, theirs, script, on_exit)
        self._loop.call_soon(worker.start)
        return worker, channel


class InlinePage(ProgressPage):
    """The page of a worker's progress, which lets a script know when the worker begins a task."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_begin: Callable[[int], None]) -> None:
        super().__init__()
        self.frozen = False
        # When the first of the tasks that are not answered was begun.
        self.began: float | None = None
        # How often the worker has looked into its pipe since its last step.
        self.looks = 0
        self._loop = loop
        self._on_begin = on_begin

    def begin(self, tasks: int = 1) -> None:
        """Note that the worker begins tasks; it may be the last that it does."""
        super().begin(tasks)
        self.looks = 0
        if self.began is None:
            self.began = self._loop.time()
        self._on_begin(tasks)

    def beat(self) -> None:
        """Note that the worker does a step, unless it only seems to."""
        self.looks = 0
        if not self.frozen:
            super().beat()


class InlinePort(Port):
    """A worker's end of its pipe that never blocks the loop, which reads the other end."""

    progress: InlinePage

    def __init__(
        self, sock: socket.socket, progress: InlinePage, loop: asyncio.AbstractEventLoop, script: ScriptedWorker
    ) -> None:
        super().__init__(sock, progress)
        sock.setblocking(False)
        self.frozen = False
        self._loop = loop
        self._script = script
        self._unsent = bytearray()
        self._closed = False

    def answer(self, results: frames.Results) -> None:
        """Send results, with the time that they took by the loop's clock."""
        began, self.progress.began = self.progress.began, None
        seconds = 0.0 if began is None else self._loop.time() - began
        results = frames.Results(results.ids, results.codes, results.payloads, seconds)
        super().answer(results)
        if self._script.repeats():
            self._send(frames.encode_results(results))

    def write(self, data: bytes) -> None:
        """Send bytes, be they frames or not."""
        self._send(data)

    def flush(self) -> None:
        """Send what has been held back, as far as there is room for it."""
        with self._lock:
            if self._closed or self.frozen:
                return
            try:
                while self._unsent:
                    del self._unsent[: self._sock.send(self._unsent)]
            except BlockingIOError:
                self._loop.call_soon_threadsafe(self._flush_when_writable)
            except (BrokenPipeError, ConnectionResetError):
                self.ended = True
                self._unsent.clear()

    def close(self) -> None:
        """Let go of the pipe: nothing more comes out of it. Idempotent."""
        with self._lock:
            if not self._closed and not self._loop.is_closed():
                self._loop.remove_writer(self._sock)
                self._loop.remove_reader(self._sock)
            self._closed = self.ended = True
            self._sock.close()

    def _send(self, data: bytes) -> None:
        with self._lock:
            self._unsent += data
            self.flush()

    def _flush_when_writable(self) -> None:
        def writable() -> None:
            self._loop.remove_writer(self._sock)
            self.flush()

        if not self._closed:
            self._loop.add_writer(self._sock, writable)


class ThreadPort(InlinePort):
    """The port of a worker that runs in a thread, which gives the loop its turn where a process would wait."""

    baton: BatonThread

    def poll(self) -> None:
        """Take in what has come, after a turn of the loop, which may bring something."""
        if self.baton.is_current:
            self.progress.looks += 1
            self.baton.wait(0.0 if self.progress.looks < MOST_LOOKS else LOOK_SECONDS)
        super().poll()

    def wait(self, seconds: float) -> None:
        """Wait until something comes, then take it in."""
        if self.ended:
            return
        if seconds <= SHORT_SECONDS:
            self.baton.wait(0.0)
            time.sleep(seconds)
        else:
            self.baton.wait(seconds, self.fileno())
        super().poll()

    def _receive(self, flags: int) -> bool:
        if flags == 0 and self.baton.is_current:
            self.baton.wait(descriptor=self.fileno())
        return super()._receive(socket.MSG_DONTWAIT)


class InlineWorker:
    """One life of a worker in this process: to its supervisor a `Handle`, to its script a `Life`."""

    def __init__(
        self,
        spec: WorkerSpec,
        variables: Mapping[str, str],
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        script: ScriptedWorker,
        on_exit: Callable[[], None],
    ) -> None:
        self.pid: int | None = os.getpid()
        # It is in the server's own process.
        self.memory = None
        self.spec = spec
        self.script = script
        self.loop = loop
        self.page = InlinePage(loop, self._begins)
        self.port = self._port(sock)
        self._variables = variables
        self._on_exit = on_exit
        self._ending = "is still running"
        self._ended = False

    # -- what the service sees ---------------------------------------------------------------------------------------

    def progress(self) -> Progress:
        """How far it has come."""
        return self.page.read()

    def kill(self) -> None:
        """End it now, without asking. Idempotent."""
        self._end_with("was killed by signal 9")

    def reap(self, timeout: float) -> None:
        """End it without a loop."""
        self._stop()

    def describe_exit(self) -> str:
        """Say how it ended."""
        return self._ending

    # -- what its script sees ----------------------------------------------------------------------------------------

    def crash(self) -> None:
        """End it now, as a signal does."""
        self._end_with("was killed by signal 11")

    def freeze(self) -> None:
        """Stop it in the middle of whatever it does."""
        raise NotImplementedError

    def thaw(self) -> None:
        """Let it go on."""
        raise NotImplementedError

    def write(self, data: bytes) -> None:
        """Put bytes into its pipe."""
        self.port.write(data)

    # -- its life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to run."""
        raise NotImplementedError

    def _port(self, sock: socket.socket) -> InlinePort:
        return InlinePort(sock, self.page, self.loop, self.script)

    def _begins(self, tasks: int) -> None:
        """Do what the script says as it begins tasks."""
        raise NotImplementedError

    def _stop(self) -> None:
        """Stop what runs, wherever it is."""
        raise NotImplementedError

    def _load(self) -> Worker:
        """Make the user's worker."""
        if self.script.born(self):
            raise RuntimeError("this start was scripted to fail")
        with environment(self._variables):
            worker = load(self.spec)
        self.script.instance = worker
        return worker

    def _end_with(self, ending: str) -> None:
        if not self._ended and self._ending == "is still running":
            self._ending = ending
            self.loop.call_soon(self._stop)

    def _has_ended(self) -> None:
        """Let go of all, and let the service know, as the kernel does of a process."""
        if self._ended:
            return
        self._ended = True
        if self._ending == "is still running":
            self._ending = "exited with status 0"
        self.script.died()
        self.port.close()
        if not self.loop.is_closed():
            self.loop.call_soon(self._exit)

    def _exit(self) -> None:
        self._on_exit()
        self.page.close()


class PlainWorker(InlineWorker):
    """A worker whose `forward` blocks, in a thread that takes turns with the loop."""

    port: ThreadPort

    def start(self) -> None:
        """Begin to run."""
        if not self._ended:
            self._baton.start()

    def freeze(self) -> None:
        """Stop it in the middle of whatever it does."""
        self._baton.frozen = True

    def thaw(self) -> None:
        """Let it go on."""
        self._baton.thaw()

    def _port(self, sock: socket.socket) -> ThreadPort:
        port = ThreadPort(sock, self.page, self.loop, self.script)
        name = f"{self.spec.stage} {self.spec.worker_id}"
        self._baton = port.baton = BatonThread(self.loop, self._main, self._has_ended, name)
        return port

    def _stop(self) -> None:
        self._baton.end()

    def _begins(self, tasks: int) -> None:
        what = self.script.begins(tasks)
        if what == "crash":
            self._ending = "was killed by signal 11"
            raise Ended
        if what == "freeze":
            self._baton.frozen = True
            self._baton.wait(0.0)

    def _main(self) -> None:
        """Do what `pool.child.main` does."""
        try:
            worker = self._load()
            runner = runner_for(worker, self.spec, self.port)
            log.speak_as(speaker_for(runner, self.spec), context=True)
        except Exception:
            self.port.failed(traceback.format_exc())
            self._ending = "exited with status 1"
            return
        try:
            warm_up(runner, examples(worker), self.spec)
            self._watch(worker)
            self.port.ready()
            runner.serve()
            runner.close()
        except Ended:
            return
        except BaseException:
            logger.exception("a worker has failed", extra={"stage": self.spec.stage, "worker": self.spec.worker_id})
            self._ending = "exited with status 1"

    def _watch(self, worker: Worker) -> None:
        """Have the script know of the worker's calls, and slow them down."""
        if isinstance(worker, ContinuousWorker):
            _replace(worker, "admit", self._recorded)
            _replace(worker, "step", self._slowed)
        else:
            _replace(worker, "forward", self._slowed)
            _replace(worker, "forward", self._recorded)

    def _recorded(self, method: Callable[..., Any], data: Any) -> Any:
        self.script.calls.append(data)
        return method(data)

    def _slowed(self, method: Callable[..., Any], *arguments: Any) -> Any:
        seconds, limit = self.script.seconds, self.spec.timeout
        if seconds > limit:
            self._baton.wait(limit)
            raise too_slow(limit)
        if seconds:
            self._baton.wait(seconds)
        return method(*arguments)


class AsyncWorker(InlineWorker):
    """A worker whose `forward` is asynchronous, on the service's own loop."""

    _serving: asyncio.Task[None] | None = None
    _runner: ConcurrentRunner | None = None
    _stopping: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to run."""
        if not self._ended:
            self._serving = self.loop.create_task(self._main())

    def freeze(self) -> None:
        """Let nothing come out of it or go into it; what it has begun cannot be stopped, but nobody sees it."""
        self.page.frozen = self.port.frozen = True
        self.loop.remove_reader(self.port.fileno())

    def thaw(self) -> None:
        """Let it go on."""
        self.page.frozen = self.port.frozen = False
        self.port.flush()
        if self._runner is not None:
            self.loop.add_reader(self.port.fileno(), self._runner.poll)

    def _begins(self, tasks: int) -> None:
        what = self.script.begins(tasks)
        if what == "crash":
            # Before the first step of what it begins.
            self.crash()
        elif what == "freeze":
            self.freeze()

    def _stop(self) -> None:
        self.port.close()
        if self.loop.is_closed():
            self._has_ended()
        elif self._stopping is None:
            self._stopping = self.loop.create_task(self._end_tasks())

    async def _end_tasks(self) -> None:
        running = [] if self._runner is None else list(self._runner._running)
        left = [task for task in (self._serving, *running) if task is not None]
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=END_SECONDS)
        self._has_ended()

    async def _main(self) -> None:
        """Do what `pool.child.main` does, on a loop that runs already."""
        try:
            worker = self._load()
            self._runner = runner = ConcurrentRunner(worker, self.spec, self.port, loop=self.loop)
            log.speak_as(speaker_for(runner, self.spec), context=True)
        except Exception:
            self.port.failed(traceback.format_exc())
            self._ending = "exited with status 1"
            self._has_ended()
            return
        await self._warm_up(worker)
        self._watch(worker)
        self.port.ready()
        await runner._serve()
        closing = worker.close()  # type: ignore[func-returns-value]
        if inspect.isawaitable(closing):
            await closing
        self._has_ended()

    async def _warm_up(self, worker: Worker) -> None:
        try:
            for example in examples(worker):
                result = worker.forward(as_input(example, batched=self.spec.max_batch_size > 1))
                if isinstance(result, AsyncIterator):
                    async for _ in result:
                        pass
                else:
                    await result
        except Exception:
            logger.exception("warm-up failed", extra={"stage": self.spec.stage, "worker": self.spec.worker_id})

    def _watch(self, worker: Worker) -> None:
        """Have the script know of the worker's calls, and slow them down."""
        yields = inspect.isasyncgenfunction(worker.forward)
        _replace(worker, "forward", self._yielding if yields else self._returning)

    async def _returning(self, forward: Callable[..., Any], data: Any) -> Any:
        self.script.calls.append(data)
        await asyncio.sleep(self.script.seconds)
        return await forward(data)

    async def _yielding(self, forward: Callable[..., Any], data: Any) -> AsyncIterator[Any]:
        self.script.calls.append(data)
        await asyncio.sleep(self.script.seconds)
        async with contextlib.aclosing(forward(data)) as events:
            async for event in events:
                yield event


def _replace(worker: Worker, name: str, wrapper: Callable[..., Any]) -> None:
    """Put a method of one worker into a wrapper, which is called with it first."""
    setattr(worker, name, functools.partial(wrapper, getattr(worker, name)))
