"""Keeps the `num` workers of one stage alive: launch, ready, replace with back-off, stop, kill.

There is one `Supervisor` for a stage, and one `PoolWorker` for each life of a worker, which receives the reports of its
link. A `Listener` is told when a worker is ready, what it answers, and, once for each life and before the replacement
is launched, that it is gone.

Each worker has one of three parts. It is in a *place*, of which there are `num`: when it dies, another is launched
there. Or it is a *successor*, launched beside the worker in a place (`begin`): once it is ready, the place is its own,
and the other one leaves; if it cannot start, nothing has changed. Or it is *leaving* (`retire`): it is given no more
tasks, ends once it has answered those that it has, and nobody takes its place. What is made of these steps, one after
the other, is in `rolling`.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from mosec_asgi import log
from mosec_asgi.errors import StartupError
from mosec_asgi.inside.spec import WorkerSpec
from mosec_asgi.messages import Chunks, LinkError, Results, drop_all
from mosec_asgi.pool.lifecycle import AT_WORK, Backoff, Event, State, transition
from mosec_asgi.pool.link import Launcher, WorkerLink
from mosec_asgi.pool.recycling import LOOK_SECONDS, NEVER, Recycling

# Seconds in which a worker that has closed its link, or could not start, exits by itself; then it is killed.
EXIT_SECONDS = 1.0
# Seconds that a worker gets to run `Worker.close` before it is killed.
CLOSE_SECONDS = 5.0
# Seconds in which a worker that is leaving has to answer what it has, where nobody has said how many.
DRAIN_SECONDS = 30.0

# Characters of an error's line that are shown where there is no room for all of it.
MOST_OF_ERROR = 200

# What may have sent SIGKILL, where the server has not.
NOT_BY_US = (
    "not by this server: perhaps by the system for lack of memory (dmesg says so), by another program, or by the "
    "worker's own timer, if it hung and the server did not end it"
)

STOPPING = "the service stops, and its workers are not changed any more"

logger = log.internal_logger(__name__)


class Listener(Protocol):
    """Hears what happens to the workers of a stage."""

    def worker_ready(self, worker: PoolWorker) -> None:
        """Take `worker` into use."""

    def worker_draining(self, worker: PoolWorker) -> None:
        """Give no more tasks to `worker`, which answers those that it has."""

    def has_tasks(self, worker: PoolWorker) -> bool:
        """Whether `worker` has tasks that it has not answered."""

    def resized(self, num: int) -> None:
        """Note that there are to be `num` workers, as there is one more, or before some are told to leave."""

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

    def __init__(self, spec: WorkerSpec, place: Place, pool: Supervisor) -> None:
        self.spec = spec
        self.worker_id = spec.worker_id
        self.state = State.STARTING
        self.launched_at = pool.now
        self.ready_at: float | None = None
        # Tasks that it has answered, and after how many it is replaced.
        self.calls = 0
        self.most_calls = pool.recycling.most_calls
        # Bytes of memory that it took when it was ready.
        self.memory: int | None = None
        # Why it is killed, for the log line at its end.
        self.reason = ""
        # What it reported if it could not start.
        self.traceback = ""
        # Kills it if it takes too long to start or to exit.
        self.timer: asyncio.TimerHandle | None = None
        self.link: WorkerLink
        self.place = place
        self.leaves_for_memory = False
        self._pool = pool

    def __repr__(self) -> str:
        return f"<PoolWorker {self.spec.stage} {self.worker_id} {self.state.value}>"

    # The stage handles the worker's answers while the worker is ready, or drains. Once it was asked to stop, its tasks
    # have been taken back, and nobody waits for its answers any more.

    def results(self, results: Results) -> None:
        """Pass its answers on."""
        # Not by `AT_WORK`: to hash a state takes longer than both comparisons.
        if self.state is State.READY or self.state is State.DRAINING:
            try:
                self._pool.listener.worker_results(self, results)
            except LinkError as error:
                self._pool.kill(self, str(error))
            else:
                self.calls += len(results.ids)
                if self.state is not State.READY:
                    self._pool.look_at_draining(self)
                elif self.calls >= self.most_calls:
                    self._pool.recycle(self, f"has answered {self.calls} calls (max_calls)")
        else:
            drop_all(results.payloads)
            self._expect_stopping("results")

    def chunks(self, chunks: Chunks) -> None:
        """Pass pieces of streams on."""
        if self.state is State.READY or self.state is State.DRAINING:
            try:
                self._pool.listener.worker_chunks(self, chunks)
            except LinkError as error:
                self._pool.kill(self, str(error))
        else:
            self._expect_stopping("pieces of streams")

    def ready(self) -> None:
        """Note that it can be given tasks."""
        if self.state in (State.STARTING, State.STOPPING):
            self._pool.worker_ready(self, self.place)
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
        self._pool.worker_exited(self, self.place)

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


@dataclass(slots=True, eq=False)
class Place:
    """One of the `num` places of a stage: the worker in it, and the state of its back-off.

    Attributes:
        spec: what a worker is to run that is launched here in the place of a dead one.
        variables: its environment.
    """

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
        *,
        drain_seconds: float = DRAIN_SECONDS,
        recycling: Recycling = NEVER,
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
            drain_seconds: seconds that a worker which is leaving may take to answer what it has.
            recycling: when a worker is replaced though it is well.
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
        self._drain_seconds = drain_seconds
        self.recycling = recycling
        # Called with a worker that is to be replaced though it is well, and the reason.
        self.on_recycle: Callable[[PoolWorker, str], None] | None = None
        # Whoever changes the workers holds it: one change comes after the other.
        self.changing = asyncio.Lock()
        self._successors: list[PoolWorker] = []
        self._leaving: list[PoolWorker] = []
        self._memory_timer: asyncio.TimerHandle | None = None
        self._told_of_memory = False
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
    def workers(self) -> list[PoolWorker]:
        """The workers that are alive, or not yet reaped."""
        placed = [place.worker for place in self._places if place.worker is not None]
        return [*placed, *self._successors, *self._leaving]

    @property
    def places(self) -> Sequence[Place]:
        """The places, in the order of their workers' numbers."""
        return tuple(self._places)

    @property
    def leaving(self) -> Sequence[PoolWorker]:
        """The workers that have no place any more, or never had one, and have not ended."""
        return tuple(self._leaving)

    @property
    def draining(self) -> int:
        """The number of workers that answer what they have, and are given nothing more."""
        return sum(worker.state is State.DRAINING for worker in self._leaving)

    @property
    def stopping(self) -> bool:
        """Whether all workers have been asked to stop."""
        return self._stopping

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
            StartupError: none of them is ready; the text holds the traceback of the first.
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
        if self.recycling.max_memory:
            self._look_at_memory()

    def ask_to_stop(self) -> None:
        """Launch no more workers, and ask the living ones to stop once they have answered their tasks."""
        self._stopping = True
        if self._memory_timer is not None:
            self._memory_timer.cancel()
        for place in self._places:
            self._cancel_relaunch(place)
        for worker in self.workers:
            had_tasks = worker.state in AT_WORK
            if had_tasks or worker.state is State.STARTING:
                worker.cancel_timer()
            worker.state = transition(worker.state, Event.STOP)
            if had_tasks:
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
        if worker.state not in (State.LOST, State.DEAD):
            self._lose(worker)
        worker.link.kill()

    def _launch(self, place: Place) -> None:
        """Launch a worker in a place that has none."""
        place.relaunch = None
        try:
            place.worker = self._start(place, place.spec)
        except StartupError as error:
            self._start_failed(place, str(error))

    def _start(self, place: Place, spec: WorkerSpec) -> PoolWorker:
        worker = PoolWorker(spec, place, self)
        worker.link = self._launcher.launch(spec, place.variables, worker)
        worker.timer = self._loop.call_later(self._start_timeout, self._start_timed_out, worker)
        logger.debug("started as %s", worker.link.name, extra=_extra(worker))
        return worker

    # -- changes, which `rolling` makes of these steps ---------------------------------------------------------------

    def begin(self, place: Place, spec: WorkerSpec) -> PoolWorker:
        """Launch a worker that takes a place over once it is ready; at once, where nobody is in that place.

        Args:
            place: one of `places`, or a new one, which is then one of them.
            spec: what the worker is to run, and those that follow it there.

        Raises:
            StartupError: it cannot be launched.
        """
        if place not in self._places or place.worker is not None:
            worker = self._start(place, spec)
            self._successors.append(worker)
            return worker
        self._cancel_relaunch(place)
        try:
            place.worker = self._start(place, spec)
        except StartupError as error:
            self._start_failed(place, str(error))
            raise
        return place.worker

    async def wait_ready(self, worker: PoolWorker) -> None:
        """Wait until a worker that was begun is ready.

        Raises:
            StartupError: it could not start, or the service stops; the text says which.
        """
        while worker.ready_at is None and worker.state is not State.DEAD:
            self._changed.clear()
            await self._changed.wait()
        if worker.ready_at is None:
            if self._stopping:
                raise StartupError(STOPPING)
            raise StartupError(f"{_end_of(worker)}\n{worker.traceback}".rstrip())

    async def wait_ended(self, workers: Iterable[PoolWorker]) -> None:
        """Wait until workers that are leaving have ended."""
        for worker in workers:
            while worker.state is not State.DEAD:
                self._changed.clear()
                await self._changed.wait()

    def drop(self, worker: PoolWorker) -> None:
        """End a worker that was begun, unless it is ready and has taken its place over."""
        if worker in self._successors:
            self._successors.remove(worker)
            self.retire(worker)

    def remove_places(self, count: int) -> list[PoolWorker]:
        """Take places away: those of dead workers first, then of those that start; of like ones, the last.

        Returns:
            the workers that were there, which are leaving.
        """
        removed, leaving = sorted(self._places, key=_usefulness)[:count], []
        for place in removed:
            self._places.remove(place)
        if removed:
            self.listener.resized(self.size)
        for place in removed:
            self._cancel_relaunch(place)
            if place.worker is not None:
                worker, place.worker = place.worker, None
                leaving.append(worker)
                self.retire(worker)
        return leaving

    def retire(self, worker: PoolWorker) -> None:
        """Have a worker leave, once it has answered what it has."""
        self._leaving.append(worker)
        if worker.state is State.READY:
            worker.state = transition(worker.state, Event.DRAIN)
            worker.timer = self._loop.call_later(self._drain_seconds, self._drain_timed_out, worker)
            logger.info(
                "worker drains, %s: it is given no more tasks, and answers those that it has",
                worker.link.name,
                extra=_extra(worker),
            )
            self.listener.worker_draining(worker)
            self.look_at_draining(worker)
        elif worker.state is State.STARTING:
            worker.cancel_timer()
            self._finish(worker)

    def look_at_draining(self, worker: PoolWorker) -> None:
        """Have a worker that drains stop if it has answered all that it had."""
        if worker.state is State.DRAINING and not self.listener.has_tasks(worker):
            worker.cancel_timer()
            self.listener.worker_gone(worker)
            self._finish(worker)

    def _finish(self, worker: PoolWorker) -> None:
        worker.state = transition(worker.state, Event.STOP)
        worker.timer = self._loop.call_later(CLOSE_SECONDS, self.kill, worker, "did not stop when asked")
        worker.link.finish()

    def _drain_timed_out(self, worker: PoolWorker) -> None:
        self.kill(
            worker,
            f"was being replaced, and had not answered all that it had within {self._drain_seconds:g} s; if that takes "
            "longer, raise the setting drain_timeout",
        )

    def _successor_of(self, place: Place) -> PoolWorker | None:
        return next((worker for worker in self._successors if worker.place is place), None)

    # -- workers that are well, and replaced all the same ------------------------------------------------------------

    def recycle(self, worker: PoolWorker, reason: str) -> None:
        """Have a worker that has reached a limit replaced."""
        worker.most_calls = math.inf
        if self.on_recycle is not None and not self._stopping:
            self.on_recycle(worker, reason)

    def _look_at_memory(self) -> None:
        self._memory_timer = self._loop.call_later(LOOK_SECONDS, self._look_at_memory)
        for place in self._places:
            worker = place.worker
            if worker is None or worker.state is not State.READY or worker.memory is None:
                continue
            size = worker.link.memory()
            if size is None or worker.leaves_for_memory:
                continue
            if self.recycling.too_large(worker.memory, size):
                worker.leaves_for_memory = True
                most = self.recycling.max_memory
                self.recycle(worker, f"takes {size} bytes of memory, and may take {most} (max_memory)")

    def _look_at_first(self, worker: PoolWorker) -> None:
        # Not a second later: by then its first calls may have made it large, and it would be left alone for that.
        worker.memory = worker.link.memory()
        if worker.memory is not None:
            self._advise_on_memory(worker, worker.memory)

    def _advise_on_memory(self, worker: PoolWorker, size: int) -> None:
        if size >= self.recycling.max_memory and not self._told_of_memory:
            self._told_of_memory = True
            logger.warning(
                "max_memory=%d has no effect: a worker takes %d bytes as soon as it is ready; raise it (told once)",
                self.recycling.max_memory,
                size,
                extra=_extra(worker),
            )

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
        if worker.state is not State.READY:
            return
        worker.cancel_timer()
        worker.ready_at = self._clock()
        if self.recycling.max_memory:
            self._look_at_first(worker)
        before = self._take_over(worker, place) if worker in self._successors else None
        place.spec = worker.spec
        place.tried, place.failing = True, False
        self.down = False
        seconds = worker.ready_at - worker.launched_at
        logger.info(
            "worker is ready after %.1f s (%d of %d), %s",
            seconds,
            self.ready,
            self.size,
            worker.link.name,
            extra=_extra(worker),
        )
        self.listener.worker_ready(worker)
        if before is not None:
            self.retire(before)
        self._changed.set()

    def _take_over(self, worker: PoolWorker, place: Place) -> PoolWorker | None:
        """Give a place to its successor; return who was there before."""
        self._successors.remove(worker)
        if place not in self._places:
            self._places.append(place)
            self._places.sort(key=lambda each: each.spec.worker_id)
            self.listener.resized(self.size)
        before, place.worker = place.worker, worker
        place.backoff = Backoff()
        return before

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
        had_tasks = worker.state in AT_WORK
        worker.state = transition(worker.state, Event.LOST)
        worker.link.close()
        if had_tasks:
            self.listener.worker_gone(worker)

    def worker_exited(self, worker: PoolWorker, place: Place) -> None:
        """Replace a worker that has ended."""
        # Its end may be noticed before its last messages are read, which may answer tasks.
        worker.link.drain()
        had_tasks = worker.state in AT_WORK
        asked = worker.state is State.STOPPING
        worker.state = transition(worker.state, Event.EXIT)
        worker.cancel_timer()
        worker.link.close()
        placed = self._let_go(worker, place)
        if had_tasks:
            self.listener.worker_gone(worker)
        self._changed.set()
        if self._stopping or not placed:
            # The failure of a successor is told by whoever has begun it.
            if not asked and (self._stopping or worker.ready_at is not None):
                logger.warning("%s", _end_of(worker), extra=_extra(worker))
            return
        if worker.ready_at is None:
            self._start_failed(place, f"{_end_of(worker)}\n{worker.traceback}".rstrip())
            return
        if place.worker is not None:
            logger.error("%s; its successor is starting", _end_of(worker), extra=_extra(worker))
            return
        delay = place.backoff.delay(worker.ready_at, self._clock(), answered=worker.calls > 0)
        logger.error("%s; another is started in %.1f s", _end_of(worker), delay, extra=_extra(worker))
        self._relaunch(place, delay)

    def _let_go(self, worker: PoolWorker, place: Place) -> bool:
        """Remove a worker that has ended; return whether it was in a place, which its successor then has."""
        if worker in self._leaving:
            self._leaving.remove(worker)
            return False
        if worker in self._successors:
            self._successors.remove(worker)
            return False
        place.worker = self._successor_of(place)
        if place.worker is not None:
            self._successors.remove(place.worker)
        return True

    def _start_failed(self, place: Place, error: str) -> None:
        place.tried = place.failing = True
        place.error = error
        if not self._stopping:
            # Until all first starts have ended, `wait_started` reports failures: the service may not start at all.
            if self._started:
                self._log_failed_start(place)
            if place.worker is None:
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

    @staticmethod
    def _cancel_relaunch(place: Place) -> None:
        if place.relaunch is not None:
            place.relaunch.cancel()
            place.relaunch = None


def _usefulness(place: Place) -> tuple[int, int]:
    """Return a key to sort places by: the least useful come first."""
    state = None if place.worker is None else place.worker.state
    rank = 2 if state is State.READY else int(state is State.STARTING and not place.failing)
    return rank, -place.spec.worker_id


def _extra(worker: PoolWorker) -> dict[str, object]:
    return {"stage": worker.spec.stage, "worker": worker.worker_id}


def _end_of(worker: PoolWorker) -> str:
    ending = f"worker {worker.link.name} {worker.link.describe_exit()}"
    if worker.reason:
        return f"{ending}; it {worker.reason}"
    return f"{ending}; {NOT_BY_US}" if ending.endswith("(SIGKILL)") else ending
