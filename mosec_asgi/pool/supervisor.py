"""Keeps the `num` workers of one stage alive: launch, ready, replace with back-off, stop, kill.

One `Supervisor` for a stage, one `PoolWorker` for each life of a worker. What happens to a worker is told to a
`Listener`: when it is ready, what it answers, and that it is gone, which is told once per life and before its
replacement is launched.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from mosec_asgi import log
from mosec_asgi.errors import StartupError
from mosec_asgi.inside.spec import WorkerSpec
from mosec_asgi.ipc import frames
from mosec_asgi.messages import Chunks, Results
from mosec_asgi.pool.lifecycle import Backoff, Event, State, transition
from mosec_asgi.pool.process.launcher import Handle, Launcher, Pipe

# Seconds in which a worker that has closed its pipe, or could not start, exits by itself; then it is killed.
EXIT_SECONDS = 1.0
# What a worker sends while it has tasks.
_AT_WORK = (Results, Chunks, frames.Kept, frames.Released)

logger = log.internal_logger(__name__)


class Listener(Protocol):
    """Hears what happens to the workers of a stage."""

    def worker_ready(self, worker: PoolWorker) -> None:
        """Take `worker` into use."""

    def worker_results(self, worker: PoolWorker, results: Results) -> None:
        """Take in results; raise `frames.FrameError` if `worker` was never given those tasks."""

    def worker_events(self, worker: PoolWorker, events: Chunks) -> None:
        """Take in pieces of streams; raise `frames.FrameError` if `worker` may not send them."""

    def worker_memory(self, worker: PoolWorker, frame: frames.Kept | frames.Released) -> None:
        """Take in what `worker` says of shared memory; raise `frames.FrameError` if it cannot be so."""

    def worker_gone(self, worker: PoolWorker) -> None:
        """Give no more tasks to `worker`, and take back what it has not answered."""

    def stage_down(self) -> None:
        """Expect nothing of the stage: no worker is ready, and every last try to start one has failed."""


class PoolWorker:
    """One life of a worker: its place in the stage, its process, its pipe, its state."""

    def __init__(self, spec: WorkerSpec) -> None:
        self.spec = spec
        self.worker_id = spec.worker_id
        self.state = State.STARTING
        self.ready_at: float | None = None
        self.answered = False
        # Why it is being killed, for the log line at its end.
        self.reason = ""
        # What it said if it could not start.
        self.traceback = ""
        # Ends it: while it starts, and once it has nothing more to do but to exit.
        self.timer: asyncio.TimerHandle | None = None
        self.handle: Handle
        self.pipe: Pipe

    def __repr__(self) -> str:
        return f"<PoolWorker {self.spec.stage} {self.worker_id} {self.state.value}>"

    def send(self, data: bytes) -> None:
        """Send it a frame."""
        self.pipe.send(data)


@dataclass(slots=True)
class _Place:
    """One of the `num` places of a stage: who is in it, and what its deaths have taught."""

    spec: WorkerSpec
    variables: dict[str, str]
    backoff: Backoff = field(default_factory=Backoff)
    worker: PoolWorker | None = None
    relaunch: asyncio.TimerHandle | None = None
    # Whether the first try to start a worker here has come to an end.
    tried: bool = False
    # The last try here failed before it was ready, and this is why.
    failing: bool = False
    error: str = ""


class Supervisor:
    """Keeps the workers of one stage alive."""

    def __init__(
        self,
        specs: list[WorkerSpec],
        variables: list[dict[str, str]] | None,
        launcher: Launcher,
        listener: Listener,
        clock: Callable[[], float],
        loop: asyncio.AbstractEventLoop,
        start_timeout: float,
    ) -> None:
        """Describe the pool; nothing is started.

        Args:
            specs: one for each worker.
            variables: the environment of each, or None.
            launcher: starts them.
            listener: hears what happens to them.
            clock: seconds, monotonic.
            loop: for the delayed replacements.
            start_timeout: seconds that a worker may take from its launch to its being ready.
        """
        self.stage = specs[0].stage
        self.restarts = 0
        # Whether requests to this stage are hopeless: no worker is ready and every last try to start one failed.
        self.down = False
        self._places = [_Place(spec, (variables or [{}] * len(specs))[i]) for i, spec in enumerate(specs)]
        self._launcher = launcher
        self._listener = listener
        self._clock = clock
        self._loop = loop
        self._start_timeout = start_timeout
        self._stopping = False
        self._started = False
        self._changed = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Supervisor {self.stage} {self.ready} of {len(self._places)} ready>"

    @property
    def size(self) -> int:
        """The number of workers that there should be."""
        return len(self._places)

    @property
    def workers(self) -> list[PoolWorker]:
        """The workers that are alive, or not yet reaped."""
        return [place.worker for place in self._places if place.worker is not None]

    @property
    def ready(self) -> int:
        """The number of workers that can be given tasks."""
        return sum(worker.state is State.READY for worker in self.workers)

    def start(self) -> None:
        """Launch all workers; `wait_started` tells what became of them."""
        for place in self._places:
            self._launch(place)

    async def wait_started(self) -> None:
        """Wait until each worker's first start has ended one way or the other.

        Raises:
            StartupError: none of them is ready; the text holds the last one's traceback.
        """
        while not all(place.tried for place in self._places):
            self._changed.clear()
            await self._changed.wait()
        failed = [place for place in self._places if place.failing]
        if len(failed) == len(self._places):
            raise StartupError(f"no worker of stage {self.stage} could be started: {failed[0].error}")
        self._started = True
        for place in failed:
            self._log_failed_start(place)

    def ask_to_stop(self) -> None:
        """Launch no more workers and ask those that live to stop once they have answered what they have."""
        self._stopping = True
        for place in self._places:
            if place.relaunch is not None:
                place.relaunch.cancel()
                place.relaunch = None
        for worker in self.workers:
            was_ready = worker.state is State.READY
            if worker.state is State.STARTING:
                _cancel_timer(worker)
            worker.state = transition(worker.state, Event.STOP)
            if was_ready:
                self._listener.worker_gone(worker)
            worker.pipe.finish()

    def kill_all(self, reason: str) -> None:
        """Kill what still lives."""
        for worker in self.workers:
            self.kill(worker, reason)

    def abandon(self) -> None:
        """End all workers at once, without the loop that they were started on, which has been closed."""
        self._stopping = True
        for worker in self.workers:
            worker.pipe.close()
            worker.handle.kill()
            worker.handle.reap(1.0)

    async def wait_stopped(self) -> None:
        """Wait until every process has been reaped."""
        while self.workers:
            self._changed.clear()
            await self._changed.wait()

    def kill(self, worker: PoolWorker, reason: str) -> None:
        """Kill a worker; its tasks are given back at once, and another takes its place.

        Args:
            worker: the worker.
            reason: what it did, for the log.
        """
        if not worker.reason:
            worker.reason = reason
        if worker.state in (State.STARTING, State.READY, State.STOPPING):
            self._lose(worker)
        worker.handle.kill()

    def _launch(self, place: _Place) -> None:
        place.relaunch = None
        worker = PoolWorker(place.spec)
        try:
            worker.handle, worker.pipe = self._launcher.launch(
                place.spec,
                place.variables,
                lambda frame: self._on_frame(worker, place, frame),
                lambda reason: self._on_closed(worker, reason),
                lambda: self._on_exit(worker, place),
            )
        except StartupError as error:
            self._start_failed(place, str(error))
            return
        place.worker = worker
        worker.timer = self._loop.call_later(self._start_timeout, self._start_timed_out, worker)
        logger.debug("started as process %s", worker.handle.pid, extra=_extra(worker))

    def _start_timed_out(self, worker: PoolWorker) -> None:
        self.kill(
            worker,
            f"was not ready within {self._start_timeout:g} s; if it needs longer to load and warm up, "
            "raise the setting start_timeout",
        )

    def _on_frame(self, worker: PoolWorker, place: _Place, frame: frames.Frame) -> None:
        if isinstance(frame, _AT_WORK) and worker.state is State.READY:
            try:
                if isinstance(frame, Results):
                    self._listener.worker_results(worker, frame)
                    worker.answered = worker.answered or bool(frame.ids)
                elif isinstance(frame, Chunks):
                    self._listener.worker_events(worker, frame)
                else:
                    self._listener.worker_memory(worker, frame)
            except frames.FrameError as error:
                self.kill(worker, str(error))
        elif isinstance(frame, _AT_WORK) and worker.state is State.STOPPING:
            # Its tasks were taken back when it was asked to stop; nobody waits for these answers any more.
            return
        elif isinstance(frame, frames.Ready) and worker.state in (State.STARTING, State.STOPPING):
            self._on_ready(worker, place)
        elif isinstance(frame, frames.Failed) and worker.state in (State.STARTING, State.STOPPING):
            worker.reason = "could not start"
            worker.traceback = frame.text
            self._expect_exit(worker)
        else:
            self.kill(worker, f"sent a frame of {type(frame).__name__} while it was {worker.state.value}")

    def _on_ready(self, worker: PoolWorker, place: _Place) -> None:
        worker.state = transition(worker.state, Event.READY)
        _cancel_timer(worker)
        if worker.state is not State.READY:
            return
        worker.ready_at = self._clock()
        place.tried, place.failing = True, False
        self.down = False
        logger.info("worker is ready, process %s", worker.handle.pid, extra=_extra(worker))
        self._listener.worker_ready(worker)
        self._changed.set()

    def _on_closed(self, worker: PoolWorker, reason: str) -> None:
        """Its pipe has ended: nothing more can be said to it or heard from it, so its process must end too."""
        if worker.state is State.STOPPING:
            # As asked; its process ends in its own time, within the limit of whoever stops us.
            return
        if not worker.reason and reason != "it was closed":
            worker.reason = f"broke its pipe ({reason})"
        self._lose(worker)
        if reason == "it was closed":
            self._expect_exit(worker)
        else:
            worker.handle.kill()

    def _expect_exit(self, worker: PoolWorker) -> None:
        """Kill a worker that should exit by itself now, unless it does so soon: a thread of the user's may hold it."""
        _cancel_timer(worker)
        worker.timer = self._loop.call_later(EXIT_SECONDS, worker.handle.kill)

    def _lose(self, worker: PoolWorker) -> None:
        was_ready = worker.state is State.READY
        worker.state = transition(worker.state, Event.LOST)
        worker.pipe.close()
        if was_ready:
            self._listener.worker_gone(worker)

    def _on_exit(self, worker: PoolWorker, place: _Place) -> None:
        # Its end may be noticed before its last words are read, and they say which tasks it has answered.
        worker.pipe.drain()
        was_ready = worker.state is State.READY
        asked = worker.state is State.STOPPING
        worker.state = transition(worker.state, Event.EXIT)
        _cancel_timer(worker)
        worker.pipe.close()
        place.worker = None
        if was_ready:
            self._listener.worker_gone(worker)
        if self._stopping:
            if not asked:
                logger.warning("%s", _obituary(worker), extra=_extra(worker))
            self._changed.set()
            return
        if worker.ready_at is None:
            self._start_failed(place, f"{_obituary(worker)}\n{worker.traceback}".rstrip())
            return
        delay = place.backoff.delay(worker.ready_at, self._clock(), answered=worker.answered)
        logger.error("%s; another is started in %.1f s", _obituary(worker), delay, extra=_extra(worker))
        self._relaunch(place, delay)

    def _start_failed(self, place: _Place, error: str) -> None:
        place.tried = place.failing = True
        place.error = error
        if not self._stopping:
            # Until all first starts have ended, `wait_started` reports: the whole service may not start at all.
            if self._started:
                self._log_failed_start(place)
            self._relaunch(place, place.backoff.delay(None, self._clock()))
        if all(place.failing for place in self._places):
            self.down = True
            self._listener.stage_down()
        self._changed.set()

    def _log_failed_start(self, place: _Place) -> None:
        extra = {"stage": self.stage, "worker": place.spec.worker_id}
        logger.error("worker could not start and is tried again: %s", place.error, extra=extra)

    def _relaunch(self, place: _Place, delay: float) -> None:
        self.restarts += 1
        place.relaunch = self._loop.call_later(delay, self._launch, place)


def _cancel_timer(worker: PoolWorker) -> None:
    if worker.timer is not None:
        worker.timer.cancel()
        worker.timer = None


def _extra(worker: PoolWorker) -> dict[str, object]:
    return {"stage": worker.spec.stage, "worker": worker.worker_id}


def _obituary(worker: PoolWorker) -> str:
    ending = f"worker process {worker.handle.pid} {worker.handle.describe_exit()}"
    return f"{ending}; it {worker.reason}" if worker.reason else ending
