"""What `server.statistics()` returns: a service at one moment, and what it has done since it was started. Pure.

A `ServiceReport` holds what the dashboard, `mosec-asgi top` and others show. Its counts only grow; what has happened in
between two reports is the difference of their counts, and of their distributions (`Distribution.since`). To make one
takes some 30 µs for each stage, and costs requests nothing: all of it is counted for `/metrics` anyway.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Protocol

from mosec_asgi.observing.distribution import EMPTY, Distribution
from mosec_asgi.observing.metrics import Histogram, ServiceMetrics, StageMetrics

# What a distribution is in the form for JSON, beside its count and its mean.
SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}

# The states of a service.
STOPPED, LOADING, SERVING, STOPPING = "stopped", "loading", "serving", "stopping"


@dataclass(frozen=True, slots=True)
class BatchLine:
    """What is known of the batches of a stage with a latency target: one of `n` takes `fixed + per_unit * n` seconds.

    Attributes:
        fixed: the seconds of a batch that do not depend on what is in it.
        per_unit: the seconds that each task adds, or each unit of cost where the stage counts costs.
        most: the largest batch that the target allows, in the same unit; infinite where it allows any.
    """

    fixed: float
    per_unit: float
    most: float


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """A worker of a stage, or its place while there is none.

    Attributes:
        worker_id: its number in the stage.
        state: one of `pool.lifecycle.State`, by its value: "starting", "ready", "draining", "stopping", "lost" (it is
            being killed), or "dead": another is to be started.
        seconds: since it was ready, or, before that, since it was started; 0 where it is dead.
        name: what it runs on, such as "process 1234"; empty where it is dead.
        in_flight: tasks that it has and has not answered.
        error: why the last try to start a worker here has failed, in a line; empty if it has not.
    """

    worker_id: int
    state: str
    seconds: float = 0.0
    name: str = ""
    in_flight: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True)
class StageReport:
    """A stage. All times are seconds; what was counted was counted since the service has been started.

    Attributes:
        name: the stage's name.
        routes: the paths whose pipelines it is in.
        workers: its workers, by their numbers.
        wanted: workers that there should be.
        ready: workers that can be given tasks.
        down: no worker is alive, and the last try to start one failed.
        draining: workers that are being replaced, or taken away, and answer what they still have.
        restarts: workers started in place of dead ones.
        queued: tasks that wait.
        in_flight: tasks that workers have and have not answered.
        slots_in_use: tasks, or batches where there is batching, that workers run.
        slots: how many of them its ready workers can run at a time.
        max_batch_size: the most tasks in a batch; 1 where there is no batching.
        expected_wait: how long a task which comes now is likely to wait; 0 while that is not known.
        batch_size: how large batches were; empty where there is no batching.
        queue_wait: how long tasks have waited here.
        process: how long workers took for a task, or a batch where there is batching.
        in_time: tasks that workers have answered while a client waited.
        in_vain: tasks that workers have answered when no client waited any more.
        coalesced: calls that waited for the answer to another with an equal input, at a stage with `coalesce`.
        refused: calls that were refused because of this stage, by the reason.
        timed_out: tasks answered 408 here.
        cancelled: tasks whose client left while they were here.
        streams_open: streams that have begun and not ended.
        events: events of streams that were sent.
        first_event: how long after their requests' arrivals the first events of streams came.
    """

    name: str
    routes: tuple[str, ...] = ()
    workers: tuple[WorkerReport, ...] = ()
    wanted: int = 0
    ready: int = 0
    down: bool = False
    draining: int = 0
    restarts: int = 0
    queued: int = 0
    in_flight: int = 0
    slots_in_use: int = 0
    slots: int = 0
    max_batch_size: int = 1
    expected_wait: float = 0.0
    batch_size: Distribution = EMPTY
    queue_wait: Distribution = EMPTY
    process: Distribution = EMPTY
    in_time: int = 0
    in_vain: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)
    timed_out: int = 0
    cancelled: int = 0
    streams_open: int = 0
    events: int = 0
    first_event: Distribution = EMPTY
    coalesced: int = 0


@dataclass(frozen=True, slots=True)
class ServiceReport:
    """A service. All times are seconds; what was counted was counted since it has been started.

    Attributes:
        state: "stopped", "loading", "serving" or "stopping".
        uptime: since it serves; while it is loading, since it was started.
        admitted: calls admitted and not yet answered.
        capacity: the most of them.
        answered: answers by route and by status.
        latency: from requests' arrivals to their answers, of those that were answered 200.
        shared_memory: bytes of shared memory that payloads take.
        stages: in the order of the service's list; empty where it is stopped.
    """

    state: str = STOPPED
    uptime: float = 0.0
    admitted: int = 0
    capacity: int = 0
    answered: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    latency: Distribution = EMPTY
    shared_memory: int = 0
    stages: tuple[StageReport, ...] = ()

    @property
    def ready(self) -> bool:
        """Whether each stage has a worker that can be given tasks, and requests are taken."""
        return self.state == SERVING and all(stage.ready for stage in self.stages)

    @property
    def refused(self) -> dict[str, int]:
        """Calls that were refused, by the reason, at all stages together."""
        return _summed(stage.refused for stage in self.stages)

    @property
    def streams_open(self) -> int:
        """Streams that have begun and not ended."""
        return sum(stage.streams_open for stage in self.stages)

    @property
    def loading(self) -> tuple[tuple[str, WorkerReport], ...]:
        """The workers that load, each with the name of its stage."""
        return tuple((stage.name, each) for stage in self.stages for each in stage.workers if each.state == "starting")

    def as_dict(self) -> dict[str, Any]:
        """Return the report in a form for JSON: of each distribution its count, its mean, and `SHARES` of it."""
        plain: dict[str, Any] = _plain(self)
        return plain | {"ready": self.ready, "refused": self.refused, "streams_open": self.streams_open}


class StageNow(Protocol):
    """What is shown of a stage as it is now; see `batching.engine.StageStatistics`."""

    @property
    def queued(self) -> int:
        """Tasks that wait."""

    @property
    def in_flight(self) -> int:
        """Tasks that workers have and have not answered."""

    @property
    def slots_in_use(self) -> int:
        """Tasks, or batches, that workers run."""

    @property
    def ready(self) -> int:
        """Workers that can be given tasks."""

    @property
    def workers(self) -> int:
        """Workers that there should be."""

    @property
    def restarts(self) -> int:
        """Workers started in place of dead ones so far."""

    @property
    def down(self) -> bool:
        """No worker is alive, and the last try to start one failed."""

    @property
    def draining(self) -> int:
        """Workers that answer what they have, and are given nothing more."""

    @property
    def expected_wait(self) -> float:
        """Seconds that a task which comes now is likely to wait."""

    @property
    def batch_size(self) -> int:
        """The most tasks in a batch."""

    @property
    def concurrency(self) -> int:
        """Tasks, or batches, that a worker runs at a time."""

    @property
    def batch_line(self) -> BatchLine | None:
        """What a batch takes, where a latency target bounds batches and that is known."""

    @property
    def places(self) -> Sequence[WorkerReport]:
        """Its workers."""


class ServiceNow(Protocol):
    """What is shown of a service as it is now; see `batching.engine.Statistics`."""

    @property
    def admitted(self) -> int:
        """Calls admitted and not yet answered."""

    @property
    def loading(self) -> bool:
        """Whether the workers are being started for the first time."""

    @property
    def closing(self) -> bool:
        """Whether the service is shutting down."""

    @property
    def shared_memory(self) -> int:
        """Bytes of shared memory that payloads take."""

    @property
    def stages(self) -> Sequence[StageNow]:
        """In the order of the service's list; empty while it starts."""


def report(
    metrics: ServiceMetrics,
    now: ServiceNow,
    routes: Mapping[str, Sequence[str]],
    *,
    state: str,
    uptime: float,
    capacity: int,
) -> ServiceReport:
    """Return a service at one moment.

    Args:
        metrics: what was counted and measured.
        now: how things stand.
        routes: the names of the stages of each path.
        state: of the service, as far as `now` does not say that it stops.
        uptime: seconds.
        capacity: the most calls that are admitted at a time.
    """
    answered: dict[str, dict[int, int]] = {}
    for (route, code), count in dict(metrics.throughput).items():
        answered.setdefault(route, {})[int(code)] = count
    stages = zip(metrics.stages, now.stages, strict=False)
    return ServiceReport(
        state=STOPPING if now.closing else state,
        uptime=uptime,
        admitted=now.admitted,
        capacity=capacity,
        answered=answered,
        latency=_distribution(metrics.duration),
        shared_memory=now.shared_memory,
        stages=tuple(
            _stage(measured, each, tuple(path for path, names in routes.items() if measured.stage in names))
            for measured, each in stages
        ),
    )


def _stage(measured: StageMetrics, now: StageNow, routes: tuple[str, ...]) -> StageReport:
    workers = list(measured.workers.values())
    return StageReport(
        name=measured.stage,
        routes=routes,
        workers=tuple(now.places),
        wanted=now.workers,
        ready=now.ready,
        down=now.down,
        draining=now.draining,
        restarts=now.restarts,
        queued=now.queued,
        in_flight=now.in_flight,
        slots_in_use=now.slots_in_use,
        slots=now.ready * now.concurrency,
        max_batch_size=now.batch_size,
        expected_wait=now.expected_wait,
        batch_size=_together([worker.batch_size for worker in workers]) if measured.batched else EMPTY,
        queue_wait=_distribution(measured.queue_wait),
        process=_together([worker.process_duration for worker in workers]),
        in_time=measured.in_time,
        in_vain=measured.in_vain,
        refused=dict(measured.refusals),
        timed_out=measured.timeouts,
        cancelled=measured.cancellations,
        streams_open=measured.streams_open,
        events=measured.events,
        first_event=_distribution(measured.first_event) if measured.streams else EMPTY,
        coalesced=measured.coalesced,
    )


def _distribution(histogram: Histogram) -> Distribution:
    return Distribution(tuple(histogram.bounds), tuple(histogram.counts), histogram.total)


def _together(histograms: Sequence[Histogram]) -> Distribution:
    return sum(map(_distribution, histograms), EMPTY)


def _summed(counts: Any) -> dict[str, int]:
    total: dict[str, int] = {}
    for each in counts:
        for key, count in each.items():
            total[key] = total.get(key, 0) + count
    return total


def _plain(value: Any) -> Any:
    """Return a report, or a part of one, as what JSON has."""
    if isinstance(value, Distribution):
        read = {name: value.quantile(share) for name, share in SHARES.items()}
        return {"count": value.count, "mean": value.mean, **read}
    if is_dataclass(value):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return value
