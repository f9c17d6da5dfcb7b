"""Changes of a stage's workers while it serves: more of them, fewer, or others in their place, one after the other.

A replacement is ready before the worker in its place drains, and that one has ended before the next is begun: so there
is one worker more than usual at a time, and never one less. What a change has left behind for which nobody waits any
more, a worker that drains or is being killed, has ended before the next change begins. The caller holds
`Supervisor.changing`, but for `Recycler`, which takes it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from mosec_asgi import log
from mosec_asgi.errors import StartupError
from mosec_asgi.inside.spec import WorkerSpec
from mosec_asgi.pool.lifecycle import Backoff, State
from mosec_asgi.pool.supervisor import STOPPING, Place, PoolWorker, Supervisor

logger = log.internal_logger(__name__)


async def scale(pool: Supervisor, num: int, variables: Sequence[Mapping[str, str]] | None) -> None:
    """Have `num` workers.

    Args:
        pool: of the stage.
        num: places that there are to be.
        variables: the environment of each worker, by its number, or one that is the same for all; None for none.

    Raises:
        StartupError: a further worker could not be started; there are as many as before.
    """
    _check_open(pool)
    if num <= pool.size:
        await pool.wait_ended(pool.remove_places(pool.size - num))
        return
    taken = {place.spec.worker_id for place in pool.places}
    free = [number for number in range(1, num + 1) if number not in taken][: num - pool.size]
    spec = pool.places[0].spec
    places = [
        # Beyond those that were defined, the caller has made sure that all have the same.
        Place(replace(spec, worker_id=number), dict((variables or [{}])[min(number, len(variables or [{}])) - 1]))
        for number in free
    ]
    await _add(pool, places)


async def _add(pool: Supervisor, places: Sequence[Place]) -> None:
    await pool.wait_ended(pool.leaving)
    _check_open(pool)
    begun: list[PoolWorker] = []
    before = pool.size
    try:
        for place in places:
            begun.append(pool.begin(place, place.spec))
        for worker in begun:
            await pool.wait_ready(worker)
    except BaseException:
        for worker in begun:
            pool.drop(worker)
        # Not those that were added, if others are of less use by now.
        pool.remove_places(pool.size - before)
        raise


async def renew(pool: Supervisor, change: Callable[[WorkerSpec], WorkerSpec] | None = None) -> None:
    """Replace workers, one after the other.

    Args:
        pool: of the stage.
        change: returns what a worker is to run in the place of one that runs its argument; where that is the same, the
            worker stays. None to replace all.

    Raises:
        StartupError: a replacement could not be started; the worker whose place it was to take serves on, and so do
            those that have not had their turn.
    """
    for place in pool.places:
        await pool.wait_ended(pool.leaving)
        now = place.spec if place.worker is None else place.worker.spec
        wanted = place.spec if change is None else change(place.spec)
        if change is None or wanted != now:
            await _replace(pool, place, wanted)
        else:
            # What its worker runs need not be what the place is for: a change that has failed had replaced it already.
            place.spec = wanted


async def _replace(pool: Supervisor, place: Place, spec: WorkerSpec) -> None:
    """Replace the worker of a place. What others have left behind must have ended; see the module's text."""
    _check_open(pool)
    before = place.worker
    worker = pool.begin(place, spec)
    try:
        await pool.wait_ready(worker)
    except BaseException:
        pool.drop(worker)
        raise
    if before is not None:
        await pool.wait_ended([before])


def _check_open(pool: Supervisor) -> None:
    if pool.stopping:
        raise StartupError(STOPPING)


class Recycler:
    """Replaces the workers of a stage that have reached the limits of their lives (`recycling`)."""

    def __init__(self, pool: Supervisor, clock: Callable[[], float]) -> None:
        """Prepare.

        Args:
            pool: of the stage; `recycle` is to be its `on_recycle`.
            clock: seconds, monotonic.
        """
        self._pool = pool
        self._clock = clock
        self._tasks: set[asyncio.Task[None]] = set()

    def recycle(self, worker: PoolWorker, reason: str) -> None:
        """Replace a worker, after those whose turn it is before."""
        task = asyncio.get_running_loop().create_task(self._recycle(worker, reason))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """Replace no more workers."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _recycle(self, worker: PoolWorker, reason: str) -> None:
        extra = {"stage": worker.spec.stage, "worker": worker.worker_id}
        backoff = Backoff()
        while True:
            async with self._pool.changing:
                # Meanwhile the worker may die, and another take its place.
                await self._pool.wait_ended(self._pool.leaving)
                if worker.state is not State.READY or self._pool.stopping:
                    return
                logger.info("another worker is started in the place of one that %s", reason, extra=extra)
                try:
                    await _replace(self._pool, worker.place, worker.place.spec)
                    return
                except StartupError as error:
                    delay = backoff.delay(None, self._clock())
                    logger.error(
                        "a worker that %s is not replaced, and serves on; tried again in %.1f s: %s",
                        reason,
                        delay,
                        error,
                        extra=extra,
                    )
            await asyncio.sleep(delay)
