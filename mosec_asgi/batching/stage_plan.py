"""A stage as it is to be run, as data."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from mosec_asgi.batching.changes import StageValues
from mosec_asgi.batching.policy.rules import Rules
from mosec_asgi.inside.spec import WorkerSpec
from mosec_asgi.labels import Labels
from mosec_asgi.pool.link import Launcher
from mosec_asgi.pool.recycling import NEVER, Recycling
from mosec_asgi.ray_options import RayOptions


@dataclass(frozen=True, slots=True)
class StagePlan:
    """A stage to be run.

    Attributes:
        specs: what each of its workers is to run.
        variables: the environment of each worker, or None.
        defaults: what all workers have in their environment where nothing else sets it.
        batch_size: the most tasks in a batch that the scheduler forms; 1 where workers take tasks one by one.
        concurrency: batches, or tasks where none are formed, that a worker runs at a time.
        ordered: workers answer in the order in which they are sent tasks.
        streams: results are streams.
        sends: workers may send pieces of the stream that a later stage answers with, before they pass on their results.
        max_wait: seconds that a task may wait for its batch to fill.
        adaptive: `max_wait` is not the user's: wait only where it pays.
        max_attempts: workers that may die with a task before it is answered 500.
        start_timeout: seconds that a worker may take to load and warm up.
        start_method: of its processes, where they are processes: "spawn" or "fork".
        preload: fork them from one that has loaded the worker.
        executor: what the workers run on: "process", "thread", "ray", or what makes a launcher of the plan and the
            event loop.
        ray: what is asked of Ray, where they run on that.
        latency_target: seconds that a task should be at the stage at most; 0 for no such wish.
        takes_request: its workers are told of the requests.
        recycling: when a worker is replaced though it is well.
        times: note of each task what its time has gone into.
        rules: which task is next, and which share a batch.
        labels: what is to be known of an item before it comes here, for `rules`; None for nothing.
        coalesce: equal inputs that are here at the same time are computed once.
    """

    specs: list[WorkerSpec]
    variables: list[dict[str, str]] | None
    batch_size: int
    max_wait: float
    adaptive: bool
    max_attempts: int
    start_timeout: float
    concurrency: int = 1
    ordered: bool = True
    streams: bool = False
    sends: bool = False
    start_method: str = "spawn"
    preload: bool = False
    executor: str | Callable[[StagePlan, asyncio.AbstractEventLoop], Launcher] = "process"
    ray: RayOptions | None = None
    latency_target: float = 0.0
    takes_request: bool = False
    defaults: Mapping[str, str] = field(default_factory=dict)
    recycling: Recycling = NEVER
    times: bool = False
    rules: Rules = field(default_factory=Rules)
    labels: Labels | None = None
    coalesce: bool = False

    @property
    def name(self) -> str:
        """The stage's name."""
        return self.specs[0].stage

    @property
    def timeout(self) -> float:
        """Seconds that a worker may take for one step of its work."""
        return self.specs[0].timeout

    @property
    def steered_target(self) -> float:
        """The seconds that a task should be at the stage, where batches are formed by that; else 0.

        Streams of a batch end one by one, when their clients have read them: what they take says nothing of a batch.
        """
        return 0.0 if self.streams else self.latency_target

    @property
    def sure_wait(self) -> float:
        """Seconds that an idle worker waits for a batch to fill, if it always does."""
        return 0.0 if self.adaptive or self.batch_size == 1 else self.max_wait


def values_of(plan: StagePlan) -> StageValues:
    """Return the values of a stage that can be changed while it serves."""
    spec = plan.specs[0]
    return StageValues(
        spec.max_batch_size,
        spec.timeout,
        plan.batch_size,
        plan.concurrency,
        plan.max_wait,
        plan.adaptive,
        plan.latency_target,
    )
