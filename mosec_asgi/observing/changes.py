"""What a service did between two of its reports: rates, percentiles, means. Pure.

Counts are compared over the time since the report before. What is read from a distribution (percentiles, the mean size
of a batch) is taken over a longer window, since a second may see too few requests to say anything; it is None where
even the window saw none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from mosec_asgi.observing.distribution import EMPTY, Distribution
from mosec_asgi.observing.statistics import ServiceReport, StageReport

# The statuses of what was not done, for whatever reason, and might be if it is asked for again.
LATE, REFUSED = {408}, {429, 503}


class ServiceChange(NamedTuple):
    """A service in the time between two reports; rates are per second, times are seconds.

    Attributes:
        ok: answers with a status below 400.
        client_error: answers with 4xx, without those that follow.
        late: answers with 408.
        refused: answers with 429 or 503.
        server_error: answers with 5xx, without 503.
        p50, p90, p99: percentiles of the time of requests that were answered 200.
        admitted: calls that were admitted and not answered, at the end.
        streams: streams that were open, at the end.
    """

    ok: float
    client_error: float
    late: float
    refused: float
    server_error: float
    p50: float | None
    p90: float | None
    p99: float | None
    admitted: int
    streams: int

    @property
    def answered(self) -> float:
        """All answers."""
        return self.ok + self.client_error + self.late + self.refused + self.server_error


class StageChange(NamedTuple):
    """A stage in the time between two reports; rates are per second, times are seconds.

    Attributes:
        tasks: tasks that workers have answered.
        queued: tasks that waited, at the end.
        in_flight: tasks that workers had, at the end.
        slots_in_use: tasks, or batches where there is batching, that workers ran, at the end.
        ready: workers that could be given tasks, at the end.
        batch_size: the mean size of a batch.
        queue_wait: the mean time that tasks waited.
        process: the mean time of a task, or a batch where there is batching, in a worker.
        refused: calls that were refused because of this stage.
        events: events of streams.
    """

    tasks: float
    queued: int
    in_flight: int
    slots_in_use: int
    ready: int
    batch_size: float | None
    queue_wait: float | None
    process: float | None
    refused: float
    events: float


class Change(NamedTuple):
    """What happened between two reports.

    Attributes:
        service: all of it.
        stages: each stage, in the order of the later report.
        routes: answers per second by route.
    """

    service: ServiceChange
    stages: tuple[StageChange, ...]
    routes: Mapping[str, float]


def change(now: ServiceReport, before: ServiceReport, seconds: float, window: ServiceReport) -> Change:
    """Return what happened between two reports.

    Args:
        now: the later one.
        before: the earlier one.
        seconds: between them; above 0.
        window: one that is earlier still, or the same, from which on distributions are looked at.
    """
    earlier, longer = ({stage.name: stage for stage in each.stages} for each in (before, window))
    return Change(
        _service(now, before, seconds, window),
        tuple(_stage(stage, earlier.get(stage.name), seconds, longer.get(stage.name)) for stage in now.stages),
        {route: _sum(rates) for route, rates in _answer_rates(now, before, seconds).items()},
    )


def _service(now: ServiceReport, before: ServiceReport, seconds: float, window: ServiceReport) -> ServiceChange:
    by_class = dict.fromkeys(("ok", "client_error", "late", "refused", "server_error"), 0.0)
    for rates in _answer_rates(now, before, seconds).values():
        for code, rate in rates.items():
            by_class[kind_of(code)] += rate
    latency = now.latency.since(window.latency)
    return ServiceChange(
        **by_class,
        p50=latency.quantile(0.5),
        p90=latency.quantile(0.9),
        p99=latency.quantile(0.99),
        admitted=now.admitted,
        streams=now.streams_open,
    )


def kind_of(code: int) -> str:
    """Return the name of the rate in `ServiceChange` that an answer's status counts to."""
    if code in LATE:
        return "late"
    if code in REFUSED:
        return "refused"
    return "ok" if code < 400 else "client_error" if code < 500 else "server_error"


def _answer_rates(now: ServiceReport, before: ServiceReport, seconds: float) -> dict[str, dict[int, float]]:
    return {
        route: {
            code: _rate(count, before.answered.get(route, {}).get(code, 0), seconds) for code, count in codes.items()
        }
        for route, codes in now.answered.items()
    }


def _stage(now: StageReport, before: StageReport | None, seconds: float, window: StageReport | None) -> StageChange:
    def mean(of: Callable[[StageReport], Distribution]) -> float | None:
        return of(now).since(of(window) if window else EMPTY).mean

    return StageChange(
        tasks=_rate(now.in_time + now.in_vain, before.in_time + before.in_vain if before else 0, seconds),
        queued=now.queued,
        in_flight=now.in_flight,
        slots_in_use=now.slots_in_use,
        ready=now.ready,
        batch_size=mean(lambda stage: stage.batch_size),
        queue_wait=mean(lambda stage: stage.queue_wait),
        process=mean(lambda stage: stage.process),
        refused=_rate(_sum(now.refused), _sum(before.refused) if before else 0, seconds),
        events=_rate(now.events, before.events if before else 0, seconds),
    )


def _rate(now: float, before: float, seconds: float) -> float:
    """Return how quickly a count has grown; one that has fallen was begun anew."""
    return (now - before if now >= before else now) / seconds


def _sum(counts: Mapping[str, float] | Mapping[int, float]) -> float:
    return sum(counts.values())
