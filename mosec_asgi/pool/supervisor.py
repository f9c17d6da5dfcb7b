"""Keeps the `num` workers of one stage alive: launch, ready, replace with back-off, stop, kill.

There is one `Supervisor` for a stage, and one `PoolWorker` for each life of a worker, which receives the reports of its
link. A `Listener` is told when a worker is ready, what it answers, and, once for each life and before the replacement
is launched, that it is gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from mosec_asgi import log
from mosec_asgi.errors import StartupError
from mosec_asgi.inside.spec import WorkerSpec
from mosec_asgi.messages import Chunks, LinkError, Results, drop_all
from mosec_asgi.pool.lifecycle import Backoff, Event, State, transition
from mosec_asgi.pool.link import Launcher, WorkerLink

# Seconds in which a worker that has closed its link, or could not start, exits by itself; then it is killed.
EXIT_SECONDS = 1.0

# Characters of an error's line that are shown where there is no room for all of it.
MOST_OF_ERROR = 200

# What may have sent SIGKILL, where the server has not.
NOT_BY_US = (
    "not by this server: perhaps by the system for lack of memory (dmesg says so), by another program, or by the "
    "worker's own timer, if it hung and the server did not end it"
)

logger = log.internal_logger(__name__)


class Listener(Protocol):
    """Hears what happens to the workers of a stage."""

    def worker_ready(self, worker: PoolWorker) -> None:
        """Take `worker` into use."""

    def worker_results(self, worker: PoolWorker, results: Results) -> None:
        """Take in results; raise `LinkError` if `worker` was never given those tasks."""

    def worker_chunks(self, worker: PoolWorker, chunks: Chunks) -> None:
        """Take in pieces of streams; raise `LinkError` if `worker` may not send them."""

    def worker_gone(self, worker: PoolWorker) -> None:
        """Give no more tasks to `worker`, and take back what it has not answered."""

    def stage_down(self) -> None:
        """Expect nothing of the stage: no worker is ready, and the last try to start one failed in each place."""


class PoolWorker:
    """One life of a worker: its place in the stage, its link, its state. Receives the link's reports."""

    def __init__(self, place: Place, pool: Supervisor) -> None:
        self.spec = place.spec
        self.worker_id = place.spec.worker_id
        self.state = State.STARTING
        self.launched_at = pool.now
        self.ready_at: float | None = None
        self.answered = False
        # Why it is killed, for the log line at its end.
        self.reason = ""
        # What it reported if it could not start.
        self.traceback = ""
        # Kills it if it takes too long to start or to exit.
        self.timer: asyncio.TimerHandle | None = None
        self.link: WorkerLink
        self._place = place
        self._pool = pool

    def __repr__(self) -> str:
        return f"<PoolWorker {self.spec.stage} {self.worker_id} {self.state.value}>"

    # The stage handles the worker's answers while the worker is ready. Once it was asked to stop, its tasks have been
    # taken back, and nobody waits for its answers any more.

    def results(self, results: Results) -> None:
        """Pass its answers on."""
        if self.state is State.READY:
            try:
                self._pool.listener.worker_results(self, results)
            except LinkError as error:
                self._pool.kill(self, str(error))
            else:
                self.answered = self.answered or bool(results.ids)
        else:
            drop_all(results.payloads)
            self._expect_stopping("results")

    def chunks(self, chunks: Chunks) -> None:
        """Pass pieces of streams on."""
        if self.state is State.READY:
            try:
                self._pool.listener.worker_chunks(self, chunks)
            except LinkError as error:
                self._pool.kill(self, str(error))
        else:
            self._expect_stopping("pieces of streams")

    def ready(self) -> None:
        """Note that it can be given tasks."""
        if self.state in (State.STARTING, State.STOPPING):
            self._pool.worker_ready(self, self._place)
        else:
            self._broke("that it is ready")

    def failed(self, traceback: str) -> None:
        """Note why it could not start; it exits by itself."""
        if self.state in (State.STARTING, State.STOPPING):
            self.reason = "could not start"
            self.traceback = traceback
            self._pool.expect_exit(self)
        else:
            self._broke("that it could not start")

    def closed(self, reason: str = "") -> None:
        """Note that its link has ended."""
        self._pool.worker_closed(self, reason)

    def exited(self) -> None:
        """Note that it has ended."""
        self._pool.worker_exited(self, self._place)

    def cancel_timer(self) -> None:
        """Cancel the timer that would kill it."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def _expect_stopping(self, what: str) -> None:
        if self.state is not State.STOPPING:
            self._broke(what)

    def _broke(self, what: str) -> None:
        self._pool.kill(self, f"sent {what} while it was {self.state.value}")


@dataclass(slots=True)
class Place:
    """One of the `num` places of a stage: the worker in it, and the state of its back-off."""

    spec: WorkerSpec
    variables: dict[str, str]
    backoff: Backoff = field(default_factory=Backoff)
    worker: PoolWorker | None = None
    relaunch: asyncio.TimerHandle | None = None
    # The first try to start a worker here has ended.
    tried: bool = False
    # Whether, and why, the last try here ended before the worker was ready.
    failing: bool = False
    error: str = ""

    @property
    def fault(self) -> str:
        """The last line of `error`, as far as it is still so; a traceback says there what was raised."""
        return self.error.rstrip().rpartition("\n")[2][:MOST_OF_ERROR] if self.failing else ""


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
        # No request to this stage can be served: no worker is ready, and the last try to start one failed in each
        # place.
        self.down = False
        self._places = [Place(spec, (variables or [{}] * len(specs))[i]) for i, spec in enumerate(specs)]
        self._launcher = launcher
        self.listener = listener
        self._clock = clock
        self._loop = loop
        self._start_timeout = start_timeout
        self._stopping = False
        self._started = False
        self._changed = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Supervisor {self.stage} {self.ready} of {len(self._places)} ready>"

    @property
    def now(self) -> float:
        """The time, on the pool's clock."""
        return self._clock()

    @property
    def size(self) -> int:
        """The number of workers that there should be."""
        return len(self._places)

    @property
    def places(self) -> Sequence[Place]:
        """The places of the workers that there should be."""
        return self._places

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
        """Wait until each worker's first start has succeeded or failed.

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
        """Launch no more workers, and ask the living ones to stop once they have answered their tasks."""
        self._stopping = True
        for place in self._places:
            if place.relaunch is not None:
                place.relaunch.cancel()
                place.relaunch = None
        for worker in self.workers:
            was_ready = worker.state is State.READY
            if worker.state is State.STARTING:
                worker.cancel_timer()
            worker.state = transition(worker.state, Event.STOP)
            if was_ready:
                self.listener.worker_gone(worker)
            worker.link.finish()

    def kill_all(self, reason: str) -> None:
        """Kill all workers that still live."""
        for worker in self.workers:
            self.kill(worker, reason)

    def abandon(self) -> None:
        """End all workers at once, without the loop that they were started on, which has been closed."""
        self._stopping = True
        for worker in self.workers:
            worker.link.close()
            worker.link.kill()
            worker.link.reap(1.0)

    async def wait_stopped(self) -> None:
        """Wait until every worker has ended and left nothing behind."""
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
        worker.link.kill()

    def _launch(self, place: Place) -> None:
        place.relaunch = None
        worker = PoolWorker(place, self)
        try:
            worker.link = self._launcher.launch(place.spec, place.variables, worker)
        except StartupError as error:
            self._start_failed(place, str(error))
            return
        place.worker = worker
        worker.timer = self._loop.call_later(self._start_timeout, self._start_timed_out, worker)
        logger.debug("started as %s", worker.link.name, extra=_extra(worker))

    def _start_timed_out(self, worker: PoolWorker) -> None:
        self.kill(
            worker,
            f"was not ready within {self._start_timeout:g} s; if it needs longer to load and warm up, "
            "raise the setting start_timeout",
        )

    # -- told by a worker -------------------------------------------------------------------------------------------

    def worker_ready(self, worker: PoolWorker, place: Place) -> None:
        """Take a worker into use, unless it was asked to stop meanwhile."""
        worker.state = transition(worker.state, Event.READY)
        worker.cancel_timer()
        if worker.state is not State.READY:
            return
        worker.ready_at = self._clock()
        place.tried, place.failing = True, False
        self.down = False
        logger.info("worker is ready, %s", worker.link.name, extra=_extra(worker))
        self.listener.worker_ready(worker)
        self._changed.set()

    def worker_closed(self, worker: PoolWorker, reason: str) -> None:
        """End a worker whose link has ended: nothing more can be said to it or heard from it."""
        if worker.state is State.STOPPING:
            # It was asked to stop and ends by itself; the code that stops the service sets the time limit.
            return
        if not worker.reason:
            worker.reason = reason
        self._lose(worker)
        if reason:
            worker.link.kill()
        else:
            self.expect_exit(worker)

    def expect_exit(self, worker: PoolWorker) -> None:
        """Kill a worker that does not exit by itself soon, because a thread of the user keeps it alive."""
        worker.cancel_timer()
        worker.timer = self._loop.call_later(EXIT_SECONDS, partial(self._end_now, worker))

    def _end_now(self, worker: PoolWorker) -> None:
        if not worker.reason:
            worker.reason = f"had closed its link, and did not exit within {EXIT_SECONDS:g} s"
        worker.link.kill()

    def _lose(self, worker: PoolWorker) -> None:
        was_ready = worker.state is State.READY
        worker.state = transition(worker.state, Event.LOST)
        worker.link.close()
        if was_ready:
            self.listener.worker_gone(worker)

    def worker_exited(self, worker: PoolWorker, place: Place) -> None:
        """Replace a worker that has ended."""
        # Its end may be noticed before its last messages are read, which may answer tasks.
        worker.link.drain()
        was_ready = worker.state is State.READY
        asked = worker.state is State.STOPPING
        worker.state = transition(worker.state, Event.EXIT)
        worker.cancel_timer()
        worker.link.close()
        place.worker = None
        if was_ready:
            self.listener.worker_gone(worker)
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

    def _start_failed(self, place: Place, error: str) -> None:
        place.tried = place.failing = True
        place.error = error
        if not self._stopping:
            # Until all first starts have ended, `wait_started` reports failures: the service may not start at all.
            if self._started:
                self._log_failed_start(place)
            self._relaunch(place, place.backoff.delay(None, self._clock()))
        if all(place.failing for place in self._places):
            self.down = True
            self.listener.stage_down()
        self._changed.set()

    def _log_failed_start(self, place: Place) -> None:
        extra = {"stage": self.stage, "worker": place.spec.worker_id}
        logger.error("worker could not start and is tried again: %s", place.error, extra=extra)

    def _relaunch(self, place: Place, delay: float) -> None:
        self.restarts += 1
        place.relaunch = self._loop.call_later(delay, self._launch, place)


def _extra(worker: PoolWorker) -> dict[str, object]:
    return {"stage": worker.spec.stage, "worker": worker.worker_id}


def _obituary(worker: PoolWorker) -> str:
    ending = f"worker {worker.link.name} {worker.link.describe_exit()}"
    if worker.reason:
        return f"{ending}; it {worker.reason}"
    return f"{ending}; {NOT_BY_US}" if ending.endswith("(SIGKILL)") else ending
