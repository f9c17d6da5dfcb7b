"""Scripted workers: as `pool.thread` runs them, on the loop's own time, so that a test can see into one and break it.

The link and the code that runs in it are those of the executor "thread". A plain worker runs in a thread that takes
turns with the event loop (`baton`), an asynchronous one on the loop itself. Each notes what its script
(`ScriptedWorker`) wants to know, and does what it says.

What cannot be had without a process: `finally` blocks run even where a worker crashes; a plain `forward` that never
comes back holds up the whole program; and the stage's timeout interrupts a plain `forward` only where it is the test
that makes it slow.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import time
import traceback
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from mosec_asgi import log
from mosec_asgi.errors import too_slow
from mosec_asgi.inside.async_runner import AsyncRunner
from mosec_asgi.inside.codec import as_input, examples
from mosec_asgi.inside.loading import speaker_for
from mosec_asgi.inside.port import ProgressNotes
from mosec_asgi.inside.spec import WorkerSpec
from mosec_asgi.messages import Results
from mosec_asgi.pool.link import WorkerEvents
from mosec_asgi.pool.process.launcher import environment
from mosec_asgi.pool.thread import STILL_RUNNING, InProcessLink, Notes, QueuePort, Report
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
    """Starts scripted workers in this process."""

    def __init__(self, loop: asyncio.AbstractEventLoop, scripts: dict[tuple[str, int], ScriptedWorker]) -> None:
        """Prepare; nothing is started.

        Args:
            loop: the loop to run on, or in turn with.
            scripts: what the workers are to do, by stage and number; those that a stage is scaled up to are added.
        """
        self._loop = loop
        self._scripts = scripts

    def launch(self, spec: WorkerSpec, variables: Mapping[str, str], events: WorkerEvents) -> InlineLink:
        """Start a worker; see `Launcher.launch`."""
        key = (spec.stage, spec.worker_id)
        script = self._scripts.setdefault(key, ScriptedWorker(*key))
        kind = AsyncLink if is_async(spec.worker) else PlainLink
        link = kind(spec, variables, events, self._loop, script)
        self._loop.call_soon(link.start)
        return link

    def close(self) -> None:
        """Let go of nothing: what the workers were started from belongs to the service."""


class ScriptedNotes(Notes):
    """Where a worker notes how far it has come, which lets its script know when it begins a task."""

    __slots__ = ("_loop", "_on_begin", "began", "frozen", "looks")

    def __init__(self, loop: asyncio.AbstractEventLoop, on_begin: Callable[[int], None]) -> None:
        super().__init__()
        self.frozen = False
        # When the first of the tasks that are not answered was begun.
        self.began: float | None = None
        # How often the worker has looked for news since its last step.
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


class ScriptedPort(QueuePort):
    """A worker's end of its link, with the loop's time, and answers that its script may repeat."""

    progress: ScriptedNotes

    def __init__(
        self,
        progress: ProgressNotes,
        post: Callable[[Report], None],
        loop: asyncio.AbstractEventLoop,
        script: ScriptedWorker,
    ) -> None:
        super().__init__(progress, post)
        self._loop = loop
        self._now = loop.time
        self._script = script

    def _send_results(self, results: Results) -> None:
        """Send results, with the time that they took by the loop's clock."""
        began, self.progress.began = self.progress.began, None
        timed = results._replace(seconds=0.0 if began is None else self._loop.time() - began)
        super()._send_results(timed)
        if self._script.repeats():
            super()._send_results(timed)


class BatonPort(ScriptedPort):
    """The port of a worker that runs in turn with the loop, which it gives a turn where a thread would wait."""

    baton: BatonThread

    def poll(self) -> None:
        """Take in what has come, after a turn of the loop, which may bring something."""
        if self.baton.is_current:
            self.progress.looks += 1
            self.baton.wait(0.0 if self.progress.looks < MOST_LOOKS else LOOK_SECONDS)
        super().poll()

    def wait(self, seconds: float) -> None:
        """Wait until something comes, then take it in."""
        if self.ended or not self.baton.is_current:
            super().wait(seconds)
            return
        if seconds <= SHORT_SECONDS:
            self.baton.wait(0.0)
            time.sleep(seconds)
        elif not self._has_news():
            self.baton.wait(seconds, news=True)
        super().poll()

    def _receive(self, *, wait: bool) -> bool:
        if wait and self.baton.is_current:
            while not self._has_news():
                self.baton.wait(news=True)
            wait = False
        return super()._receive(wait=wait)

    def _wake(self) -> None:
        super()._wake()
        self.baton.news()


class InlineLink(InProcessLink):
    """One life of a scripted worker: to its pool a link, to its script a `Life`."""

    notes: ScriptedNotes
    port: ScriptedPort

    def __init__(
        self,
        spec: WorkerSpec,
        variables: Mapping[str, str],
        events: WorkerEvents,
        loop: asyncio.AbstractEventLoop,
        script: ScriptedWorker,
    ) -> None:
        self.loop = loop
        self.script = script
        self._variables = variables
        super().__init__(spec, events, loop)

    def _make_notes(self) -> Notes:
        return ScriptedNotes(self.loop, self._begins)

    def _make_port(self) -> QueuePort:
        return ScriptedPort(self.notes, self.post, self.loop, self.script)

    # -- what the pool sees ------------------------------------------------------------------------------------------

    def kill(self) -> None:
        """End it now, without asking. Idempotent."""
        self._end_with("was killed by signal 9")

    def reap(self, timeout: float) -> None:
        """End it without a loop."""
        self._stop()

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

    def garble(self) -> None:
        """Let it say what has no meaning."""
        self.post(lambda events: events.closed("broke its pipe (garbage came from it)"))

    # -- its life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to run."""
        raise NotImplementedError

    def load(self) -> Worker:
        """Make the user's worker."""
        if self.script.born(self):
            raise RuntimeError("this start was scripted to fail")
        with environment(self._variables):
            worker = super().load()
        self.script.instance = worker
        return worker

    def _begins(self, tasks: int) -> None:
        """Do what the script says as it begins tasks."""
        raise NotImplementedError

    def _stop(self) -> None:
        """Stop what runs, wherever it is."""
        raise NotImplementedError

    def _end_with(self, ending: str) -> None:
        if not self._gone and self.ending == STILL_RUNNING:
            self.ending = ending
            self.loop.call_soon(self._stop)

    def _has_ended(self) -> None:
        """Let go of all, and let the pool know."""
        if self.ending == STILL_RUNNING:
            self.ending = "exited with status 0"
        self.script.died()
        if not self.loop.is_closed():
            self.loop.call_soon(self.exit)


class PlainLink(InlineLink):
    """A worker whose `forward` blocks, in a thread that takes turns with the loop."""

    def start(self) -> None:
        """Begin to run."""
        if self.ending == STILL_RUNNING:
            self._baton.start()

    def freeze(self) -> None:
        """Stop it in the middle of whatever it does."""
        self._baton.frozen = True

    def thaw(self) -> None:
        """Let it go on."""
        self._baton.thaw()

    def _make_port(self) -> QueuePort:
        port = BatonPort(self.notes, self.post, self.loop, self.script)
        name = f"{self.spec.stage} {self.spec.worker_id}"
        self._baton = port.baton = BatonThread(self.loop, self._main, self._has_ended, name)
        return port

    def _stop(self) -> None:
        self._baton.end()

    def _begins(self, tasks: int) -> None:
        what = self.script.begins(tasks)
        if what == "crash":
            self.ending = "was killed by signal 11"
            raise Ended
        if what == "freeze":
            self._baton.frozen = True
            self._baton.wait(0.0)

    def _main(self) -> None:
        try:
            self.run()
        except Ended:
            return
        except BaseException:
            logger.exception("a worker has failed", extra={"stage": self.spec.stage, "worker": self.spec.worker_id})
            self.ending = "exited with status 1"

    def loaded(self, worker: Worker) -> None:
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


class AsyncLink(InlineLink):
    """A worker whose `forward` is asynchronous, on the service's own loop."""

    _serving: asyncio.Task[None] | None = None
    _runner: AsyncRunner | None = None
    _stopping: asyncio.Task[None] | None = None
    _frozen = False

    def start(self) -> None:
        """Begin to run."""
        if self.ending == STILL_RUNNING:
            self._serving = self.loop.create_task(self._main())

    def freeze(self) -> None:
        """Let nothing come out of it or go into it; what it has begun cannot be stopped, but nobody sees it."""
        self._frozen = self.notes.frozen = True
        self.port.unwatch(self.loop)

    def thaw(self) -> None:
        """Let it go on."""
        self._frozen = self.notes.frozen = False
        self.on_the_loop(self.drain)
        if self._runner is not None:
            self.port.watch(self.loop, self._runner.poll)

    def drain(self) -> None:
        """Report what it has said, as far as that has come out."""
        if not self._frozen:
            super().drain()

    def _begins(self, tasks: int) -> None:
        what = self.script.begins(tasks)
        if what == "crash":
            # Before the first step of what it begins.
            self.crash()
        elif what == "freeze":
            self.freeze()

    def _end_with(self, ending: str) -> None:
        # Nothing that it still does may be seen.
        self._frozen = True
        super()._end_with(ending)

    def _stop(self) -> None:
        self.port.ended = True
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
        """Do what `InProcessLink.run` does, on a loop that runs already."""
        try:
            worker = self.load()
            self._runner = runner = AsyncRunner(worker, self.spec, self.port, loop=self.loop)
            log.speak_as(speaker_for(runner, self.spec), context=True)
        except Exception:
            self.ending = "exited with status 1"
            self.port.failed(traceback.format_exc())
            self._has_ended()
            return
        await self._warm_up(worker, runner)
        self.loaded(worker)
        self.port.ready()
        await runner.serving()
        await runner.closing()
        self._has_ended()

    async def _warm_up(self, worker: Worker, runner: AsyncRunner) -> None:
        try:
            for example in examples(worker):
                await runner.rehearsal(as_input(example, batched=self.spec.max_batch_size > 1))
        except Exception:
            logger.exception("warm-up failed", extra={"stage": self.spec.stage, "worker": self.spec.worker_id})

    def loaded(self, worker: Worker) -> None:
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
