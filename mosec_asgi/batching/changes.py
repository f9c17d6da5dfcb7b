"""Changes of a stage while it serves: other values, more workers or fewer, others in their place.

Values are of two kinds. Those of the scheduler and of the admission hold from the moment at which they are set. What
workers themselves go by (`WorkerSpec`: the batch size for which they were made, the time of a step) holds for workers
that are made with it, so all are replaced (`pool.rolling`). As long as a worker is there that was made for fewer tasks
at a time, batches have no more than it can take. If a replacement cannot be started, all values are again what they
were; workers that have been replaced by then stay until they are replaced for another reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from mosec_asgi.inside.spec import WorkerSpec
from mosec_asgi.pool import rolling
from mosec_asgi.pool.supervisor import Supervisor


@dataclass(frozen=True, slots=True)
class StageValues:
    """The values of a stage that can be changed while it serves; for their meaning see `stage_plan.StagePlan`."""

    worker_batch_size: int
    timeout: float
    batch_size: int
    concurrency: int
    max_wait: float
    adaptive: bool
    latency_target: float

    def for_worker(self, spec: WorkerSpec) -> WorkerSpec:
        """Return what a worker is to run."""
        return replace(spec, max_batch_size=self.worker_batch_size, timeout=self.timeout)

    def for_workers_of(self, size: int) -> StageValues:
        """Return the values that go for workers which were made for `size` tasks at a time, where that is less."""
        if size >= self.worker_batch_size:
            return self
        if self.batch_size == 1:
            return replace(self, concurrency=min(self.concurrency, size))
        return replace(self, batch_size=size)


class Stage(Protocol):
    """What is changed; see `batching.stage.Stage`."""

    @property
    def pool(self) -> Supervisor:
        """Its workers."""

    @property
    def variables(self) -> Sequence[Mapping[str, str]] | None:
        """The environment of each worker, by its number; None for none."""

    @property
    def values(self) -> StageValues:
        """What it goes by."""

    def apply(self, values: StageValues) -> None:
        """Go by other values from here on."""


async def scale(stage: Stage, num: int) -> None:
    """Have `num` workers; returns when they are ready, or those that are too many have ended.

    Raises:
        StartupError: a further worker could not be started; there are as many as before.
    """
    async with stage.pool.changing:
        await rolling.scale(stage.pool, num, stage.variables)


async def restart(stage: Stage) -> None:
    """Replace all workers, one after the other.

    Raises:
        StartupError: a replacement could not be started; the worker whose place it was to take serves on.
    """
    async with stage.pool.changing:
        await rolling.renew(stage.pool)


async def configure(stage: Stage, change: Callable[[StageValues], StageValues]) -> None:
    """Go on with other values.

    Args:
        stage: which.
        change: returns the new values for those that hold when it is the change's turn.

    Raises:
        StartupError: a worker could not be started with them; all values are what they were.
    """
    async with stage.pool.changing:
        before = stage.values
        values = change(before)
        stage.apply(values)
        try:
            await rolling.renew(stage.pool, values.for_worker)
        except BaseException:
            for place in stage.pool.places:
                place.spec = before.for_worker(place.spec)
            stage.apply(before)
            raise
