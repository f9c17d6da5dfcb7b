"""What a service counts and measures.

`StageMetrics` observes its stage. The numbers are plain Python objects that the hot path adds to; `exposition` makes
Prometheus text of them when somebody asks. A labelled counter of prometheus_client costs 2.4 µs an increment and a
bound histogram 1.2 µs; the objects here cost 0.1 and 0.3 µs, and a request touches about eight of them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from mosec_asgi.messages import OK
from mosec_asgi.observing.observer import ObservedTask, StageObserver

# mosec's bounds: powers of two, in seconds and in items.
DURATION_BUCKETS = tuple(0.001 * 2**i for i in range(13))
# Of whole requests, which are looked at more closely and may take longer: two steps where mosec has one, from 0.06 ms
# to 131 s. So a percentile that is read from them is less than a fifth off.
LATENCY_BUCKETS = tuple(float(f"{0.001 * 2 ** (i / 2):.4g}") for i in range(-8, 35))
SIZE_BUCKETS = tuple(float(2**i) for i in range(10))
# In whatever unit: from tokens to pixels.
COST_BUCKETS = tuple(float(4**i) for i in range(14))


class Histogram:
    """A distribution: how many observations fell below each bound, and their sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float] = DURATION_BUCKETS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Add an observation, or `times` equal ones."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    def observe_each(self, values: Sequence[float]) -> None:
        """Add several observations: a call for each would take as long as the rest."""
        counts, bounds = self.counts, self.bounds
        for value in values:
            counts[bisect_left(bounds, value)] += 1
        self.total += sum(values)

    @property
    def count(self) -> int:
        """The number of observations."""
        return sum(self.counts)

    def buckets(self, bounds: Sequence[float] = ()) -> list[tuple[str, float]]:
        """Return the cumulative counts by upper bound, as Prometheus wants them.

        Args:
            bounds: those of its bounds to show; all where there are none.
        """
        shown = set(bounds or self.bounds)
        below = 0
        rows: list[tuple[str, float]] = []
        for bound, count in zip(self.bounds, self.counts, strict=False):
            below += count
            if bound in shown:
                rows.append((repr(round(bound, 9)), below))
        return [*rows, ("+Inf", below + self.counts[-1])]


class WorkerMetrics:
    """What is measured of one place of a stage, for all the workers that have it one after the other."""

    __slots__ = ("batch_duration", "batch_size", "process_duration")

    def __init__(self) -> None:
        self.process_duration = Histogram()
        self.batch_size = Histogram(SIZE_BUCKETS)
        self.batch_duration = Histogram()


class StageMetrics(StageObserver):
    """What is counted and measured of one stage.

    Attributes:
        batched: whether the stage forms batches; mosec shows batch sizes and durations only then.
        workers: by the worker's number.
        streams: whether its results are streams; what is measured of those is shown only then.
        batch_cost: what the tasks of a batch cost together; None where the stage counts no cost.
        queue_wait: seconds from a task's arrival at the stage to its being sent to a worker.
        refusals: calls that were refused because of this stage, by the reason.
        in_time, in_vain: tasks that workers have answered while a client still waited, and when none did any more.
        coalesced: calls that were answered with the work for another, whose input is equal.
        coalesces: whether the stage does that; it is shown only then.
        timeouts, cancellations: calls that ended at this stage by a 408, and by their client's leaving.
        streams_open: streams that have begun and not ended.
        events: events sent so far.
        first_event: seconds from a request's arrival to the first event of its stream.
        event_gap: seconds between two events of a stream.
    """

    def __init__(
        self, stage: str, *, batched: bool, streams: bool = False, costed: bool = False, coalesces: bool = False
    ) -> None:
        self.stage = stage
        self.coalesces = coalesces
        self.coalesced = 0
        self.batch_cost = Histogram(COST_BUCKETS) if costed else None
        self.batched = batched
        self.streams = streams
        self.workers: dict[int, WorkerMetrics] = {}
        self.queue_wait = Histogram()
        self.refusals: dict[str, int] = {}
        self.in_time = 0
        self.in_vain = 0
        self.timeouts = 0
        self.cancellations = 0
        self.streams_open = 0
        self.events = 0
        self.first_event = Histogram()
        self.event_gap = Histogram()

    @property
    def rejected(self) -> int:
        """Calls that were refused, for whatever reason."""
        return sum(self.refusals.values())

    def worker(self, worker_id: int) -> WorkerMetrics:
        """Return what is measured of a worker."""
        found = self.workers.get(worker_id)
        if found is None:
            found = self.workers[worker_id] = WorkerMetrics()
        return found

    def refused(self, code: int, reason: str, now: float) -> None:
        """Count a call that was not admitted."""
        self.refusals[reason] = self.refusals.get(reason, 0) + 1

    def joined(self, task: ObservedTask, flight: ObservedTask, now: float) -> None:
        """Count a call that waits for the work for another."""
        self.coalesced += 1

    def sent(self, worker_id: int, tasks: Sequence[ObservedTask], now: float) -> None:
        """Measure how long tasks have waited, and the size of their batch."""
        self.queue_wait.observe_each([now - task.queued for task in tasks])
        if self.batched:
            measured = self.worker(worker_id)
            measured.batch_size.observe(len(tasks))
            if self.batch_cost is not None:
                self.batch_cost.observe(sum(task.cost for task in tasks))
            measured.batch_duration.observe(now - tasks[0].queued)

    def answered(self, worker_id: int, tasks: Sequence[ObservedTask], seconds: float, wanted: int, now: float) -> None:
        """Measure how long a batch, or each of several tasks, has taken, and count the tasks done in vain."""
        self.in_time += wanted
        self.in_vain += len(tasks) - wanted
        measured = self.worker(worker_id).process_duration
        if self.batched:
            measured.observe(seconds)
        elif tasks:
            measured.observe(seconds / len(tasks), len(tasks))

    def chunk(self, task: ObservedTask, since: float | None, now: float) -> None:
        """Count an event of a stream, and measure the time before it."""
        self.events += 1
        if since is None:
            self.first_event.observe(now - task.arrived)
            self.streams_open += 1
        else:
            self.event_gap.observe(now - since)

    def stream_ended(self, task: ObservedTask, now: float) -> None:
        """Count a stream as ended."""
        self.streams_open -= 1

    def timed_out(self, task: ObservedTask, now: float) -> None:
        """Count a task that was answered 408."""
        self.timeouts += 1

    def cancelled(self, task: ObservedTask, now: float) -> None:
        """Count a task whose client has left."""
        self.cancellations += 1


class ServiceMetrics:
    """What is counted and measured of a service.

    Attributes:
        stages: in the order of the service's list.
        throughput: answers by route and status.
        duration: seconds from a request's arrival to its answer, for those that were answered 200.
    """

    def __init__(self, namespace: str, stages: Sequence[StageMetrics]) -> None:
        self.namespace = namespace
        self.stages = stages
        self.throughput: dict[tuple[str, int], int] = {}
        self.duration = Histogram(LATENCY_BUCKETS)

    def answered(self, route: str, code: int, seconds: float | None = None) -> None:
        """Count an answer, and measure it where it is 200 and took so many seconds."""
        key = (route, code)
        self.throughput[key] = self.throughput.get(key, 0) + 1
        if seconds is not None and code == OK:
            self.duration.observe(seconds)
