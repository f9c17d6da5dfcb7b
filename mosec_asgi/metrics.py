"""What a service counts and measures, under mosec's names, and its Prometheus text.

The numbers are plain Python objects that the hot path adds to, and a collector hands them to prometheus_client when
somebody asks. A labelled counter of that library costs 2.4 µs an increment and a bound histogram 1.2 µs; the objects
here cost 0.1 and 0.3 µs, and a request touches about eight of them. The text itself, with its formats and escapes, is
the library's. Each service has a registry of its own, so that several in one process do not collide.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder

# mosec's: powers of two, in seconds and in items.
DURATION_BUCKETS = tuple(0.001 * 2**i for i in range(13))
SIZE_BUCKETS = tuple(float(2**i) for i in range(10))


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

    @property
    def count(self) -> int:
        """The number of observations."""
        return sum(self.counts)

    def buckets(self) -> list[tuple[str, float]]:
        """Return the cumulative counts by upper bound, as Prometheus wants them."""
        names = [repr(round(bound, 9)) for bound in self.bounds] + ["+Inf"]
        below = 0
        rows: list[tuple[str, float]] = []
        for name, count in zip(names, self.counts, strict=True):
            below += count
            rows.append((name, below))
        return rows


class WorkerMetrics:
    """What is measured of one place of a stage, its workers one after the other."""

    __slots__ = ("batch_duration", "batch_size", "process_duration")

    def __init__(self) -> None:
        self.process_duration = Histogram()
        self.batch_size = Histogram(SIZE_BUCKETS)
        self.batch_duration = Histogram()


class Gauges(NamedTuple):
    """What is so at a stage at one moment.

    Attributes:
        queued: tasks that wait.
        running: tasks, or batches, that workers run.
        ready: workers that can be given tasks.
        restarts: workers started in place of dead ones so far.
    """

    queued: int
    running: int
    ready: int
    restarts: int


class StageMetrics:
    """What is counted and measured of one stage.

    Attributes:
        batched: whether the stage forms batches; mosec shows batch sizes and durations only then.
        workers: by the worker's number.
        streams: whether its results are streams; what is measured of those is shown only then.
        queue_wait: seconds from a task's arrival at the stage to its being sent to a worker.
        rejected, timed_out, cancelled: tasks that ended so at this stage.
        streams_open: streams that have begun and not ended.
        events: events sent so far.
        first_event: seconds from a request's arrival to the first event of its stream.
        event_gap: seconds between two events of a stream.
        gauges: returns what is so now.
    """

    def __init__(self, stage: str, *, batched: bool, streams: bool = False) -> None:
        self.stage = stage
        self.batched = batched
        self.streams = streams
        self.workers: dict[int, WorkerMetrics] = {}
        self.queue_wait = Histogram()
        self.rejected = 0
        self.timed_out = 0
        self.cancelled = 0
        self.streams_open = 0
        self.events = 0
        self.first_event = Histogram()
        self.event_gap = Histogram()
        self.gauges: Callable[[], Gauges] = lambda: Gauges(0, 0, 0, 0)

    def worker(self, worker_id: int) -> WorkerMetrics:
        """Return what is measured of a worker."""
        found = self.workers.get(worker_id)
        if found is None:
            found = self.workers[worker_id] = WorkerMetrics()
        return found


class ServiceMetrics:
    """What is counted and measured of a service, and the registry that shows it.

    Attributes:
        stages: in the order of the service's list.
        throughput: answers by route and status.
        duration: seconds from a request's arrival to its answer, for those that were answered 200.
        remaining: returns the number of tasks admitted and not yet answered.
        shared_memory: returns the bytes of shared memory that payloads take.
    """

    def __init__(self, namespace: str, stages: Sequence[StageMetrics]) -> None:
        self.namespace = namespace
        self.stages = stages
        self.throughput: dict[tuple[str, int], int] = {}
        self.duration = Histogram()
        self.remaining: Callable[[], int] = lambda: 0
        self.shared_memory: Callable[[], int] = lambda: 0
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def answered(self, route: str, code: int) -> None:
        """Count an answer."""
        key = (route, code)
        self.throughput[key] = self.throughput.get(key, 0) + 1

    def render(self, accept: str) -> tuple[bytes, str]:
        """Return the metrics as text, and its content type, in the format that the Accept header asks for."""
        encoder, content_type = choose_encoder(accept)
        return encoder(self.registry), content_type

    def describe(self) -> list[Metric]:
        """Return no names: they would be checked against those of other collectors, and there are none."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; called by the registry."""
        yield self._throughput()
        yield from self._durations()
        yield GaugeMetricFamily(
            f"{self.namespace}_remaining_task",
            "remaining tasks for the whole service",
            value=self.remaining(),
        )
        yield GaugeMetricFamily(
            f"{self.namespace}_shared_memory_bytes",
            "shared memory that payloads on their way take",
            value=self.shared_memory(),
        )
        yield from self._stage_metrics()

    def _throughput(self) -> Metric:
        family = CounterMetricFamily(
            f"{self.namespace}_throughput",
            "service inference endpoint throughput",
            labels=("code", "endpoint"),
        )
        for (route, code), value in self.throughput.items():
            family.add_metric((str(code), route), value)
        return family

    def _durations(self) -> Iterator[Metric]:
        process = self._histogram("process_duration_second", "process duration for each connection in each stage")
        sizes = self._histogram("batch_size", "batch size for each connection in each stage")
        batches = self._histogram(
            "batch_duration_second", "dynamic batching duration for each connection in each stage"
        )
        process.add_metric(("total", "total"), self.duration.buckets(), self.duration.total)
        for stage in self.stages:
            for worker_id, worker in sorted(stage.workers.items()):
                labels = (stage.stage, str(worker_id))
                process.add_metric(labels, worker.process_duration.buckets(), worker.process_duration.total)
                if stage.batched:
                    sizes.add_metric(labels, worker.batch_size.buckets(), worker.batch_size.total)
                    batches.add_metric(labels, worker.batch_duration.buckets(), worker.batch_duration.total)
        yield from (process, sizes, batches)

    def _histogram(self, name: str, text: str) -> HistogramMetricFamily:
        return HistogramMetricFamily(f"{self.namespace}_{name}", text, labels=("stage", "connection"))

    def _stage_metrics(self) -> Iterator[Metric]:
        stages = self.stages
        yield self._stage_histogram(
            "queue_wait_second",
            "time from a task's arrival at a stage to its being sent to a worker",
            {stage.stage: stage.queue_wait for stage in stages},
        )
        gauges = [stage.gauges() for stage in stages]
        running = [now.running for now in gauges]
        yield self._gauge("queue_length", "tasks that wait at a stage", stages, [now.queued for now in gauges])
        yield self._gauge("slots_in_use", "tasks, or batches, that workers run at this moment", stages, running)
        yield self._gauge("workers_ready", "workers that can be given tasks", stages, [now.ready for now in gauges])
        yield self._counter(
            "worker_restarts", "workers started in place of dead ones", stages, [now.restarts for now in gauges]
        )
        yield self._counter("tasks_rejected", "requests refused at a stage", stages, [s.rejected for s in stages])
        yield self._counter("tasks_timed_out", "tasks answered 408 at a stage", stages, [s.timed_out for s in stages])
        yield self._counter(
            "tasks_cancelled", "tasks whose client left while at a stage", stages, [s.cancelled for s in stages]
        )
        yield from self._stream_metrics([stage for stage in stages if stage.streams])

    def _stream_metrics(self, stages: Sequence[StageMetrics]) -> Iterator[Metric]:
        if not stages:
            return
        yield self._gauge(
            "streams_open", "streams that have begun and not ended", stages, [s.streams_open for s in stages]
        )
        yield self._counter("events_sent", "events of streams", stages, [s.events for s in stages])
        yield self._stage_histogram(
            "first_event_second",
            "time from a request's arrival to the first event of its stream",
            {stage.stage: stage.first_event for stage in stages},
        )
        yield self._stage_histogram(
            "event_gap_second",
            "time between two events of a stream",
            {stage.stage: stage.event_gap for stage in stages},
        )

    def _stage_histogram(self, name: str, text: str, measured: Mapping[str, Histogram]) -> Metric:
        family = HistogramMetricFamily(f"{self.namespace}_{name}", text, labels=("stage",))
        for stage, histogram in measured.items():
            family.add_metric((stage,), histogram.buckets(), histogram.total)
        return family

    def _gauge(self, name: str, text: str, stages: Sequence[StageMetrics], values: Sequence[int]) -> Metric:
        family = GaugeMetricFamily(f"{self.namespace}_{name}", text, labels=("stage",))
        for stage, value in zip(stages, values, strict=True):
            family.add_metric((stage.stage,), value)
        return family

    def _counter(self, name: str, text: str, stages: Sequence[StageMetrics], values: Sequence[int]) -> Metric:
        family = CounterMetricFamily(f"{self.namespace}_{name}", text, labels=("stage",))
        for stage, value in zip(stages, values, strict=True):
            family.add_metric((stage.stage,), value)
        return family
