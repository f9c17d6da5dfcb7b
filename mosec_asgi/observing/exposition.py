"""The metrics of a service as Prometheus text, under mosec's names.

prometheus_client writes the text, with its formats and escapes. Each service has a registry of its own, so that several
services in one process do not collide.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder

from mosec_asgi.observing.custom import CustomMetrics
from mosec_asgi.observing.metrics import DURATION_BUCKETS, Histogram, ServiceMetrics, StageMetrics
from mosec_asgi.observing.statistics import BatchLine, ServiceNow, StageNow

# A sample: its name, its labels, and its value; a timestamp or an exemplar may follow.
_SAMPLE = re.compile(
    rb"""(?m)^([\w:]*(?:\{(?:[^"}\n]|"(?:[^"\\\n]|\\.)*")*\})?[ ])(-?\d+(?:\.\d+)?(?:e\+\d+)?)(?=$|[ ])"""
)


def _plain(found: re.Match[bytes]) -> bytes:
    """Return a sample with whole numbers written as integers, as in mosec: prometheus_client writes 1.0 and 1e+06."""
    value = float(found[2])
    return found[1] + (b"%d" % value if value.is_integer() and abs(value) < 2**53 else found[2])


class Exposition:
    """Shows what is counted and measured of a service; a collector of prometheus_client."""

    def __init__(
        self,
        service: ServiceMetrics,
        now: Callable[[], ServiceNow],
        custom: CustomMetrics | None = None,
        web: Callable[[], tuple[int, int]] | None = None,
    ) -> None:
        """Put together what is to be shown.

        Args:
            service: what was counted and measured.
            now: returns how things stand.
            custom: what users' workers count.
            web: returns how many web processes there are beside this one, and how many of them do not answer.
        """
        self._service = service
        self._now = now
        self._web = web
        self._registry = CollectorRegistry()
        self._registry.register(self)
        if custom is not None:
            self._registry.register(custom)

    def render(self, accept: str) -> tuple[bytes, str]:
        """Return the metrics as text, and its content type, in the format that the Accept header asks for."""
        encoder, content_type = choose_encoder(accept)
        return _SAMPLE.sub(_plain, encoder(self._registry)), content_type

    def describe(self) -> list[Metric]:
        """Return no names: they would only be compared with those of other collectors, and there are none."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; called by the registry."""
        now = self._now()
        yield self._throughput()
        yield from self._durations()
        yield GaugeMetricFamily(
            f"{self._service.namespace}_remaining_task",
            "remaining tasks for the whole service",
            value=now.admitted,
        )
        yield GaugeMetricFamily(
            f"{self._service.namespace}_loading",
            "1 while the workers load for the first time, and requests are answered 503; 0 from then on",
            value=float(now.loading),
        )
        yield GaugeMetricFamily(
            f"{self._service.namespace}_shared_memory_bytes",
            "shared memory that payloads on their way take",
            value=now.shared_memory,
        )
        if self._web is not None:
            yield from self._web_processes(*self._web())
        yield from self._stage_metrics(now.stages)

    def _web_processes(self, connected: int, silent: int) -> Iterator[Metric]:
        namespace = self._service.namespace
        yield GaugeMetricFamily(
            f"{namespace}_web_processes", "web processes that are connected to the engine", value=connected
        )
        yield GaugeMetricFamily(
            f"{namespace}_web_processes_silent",
            "web processes that have not told in time what they have counted, as they are stopped or busy; what they "
            "had told before is shown",
            value=silent,
        )

    def _throughput(self) -> Metric:
        family = CounterMetricFamily(
            f"{self._service.namespace}_throughput",
            "service inference endpoint throughput",
            labels=("code", "endpoint"),
        )
        for (route, code), value in self._service.throughput.items():
            family.add_metric((str(int(code)), route), value)
        return family

    def _durations(self) -> Iterator[Metric]:
        process = self._histogram("process_duration_second", "process duration for each connection in each stage")
        sizes = self._histogram("batch_size", "batch size for each connection in each stage")
        batches = self._histogram(
            "batch_duration_second", "dynamic batching duration for each connection in each stage"
        )
        duration = self._service.duration
        process.add_metric(("total", "total"), duration.buckets(DURATION_BUCKETS), duration.total)
        for stage in self._service.stages:
            for worker_id, worker in sorted(stage.workers.items()):
                labels = (stage.stage, str(worker_id))
                process.add_metric(labels, worker.process_duration.buckets(), worker.process_duration.total)
                if stage.batched:
                    sizes.add_metric(labels, worker.batch_size.buckets(), worker.batch_size.total)
                    batches.add_metric(labels, worker.batch_duration.buckets(), worker.batch_duration.total)
        yield from (process, sizes, batches)
        yield HistogramMetricFamily(
            f"{self._service.namespace}_request_duration_second",
            "time from a request's arrival to its answer, of those answered 200",
            buckets=duration.buckets(),
            sum_value=duration.total,
        )

    def _histogram(self, name: str, text: str) -> HistogramMetricFamily:
        return HistogramMetricFamily(f"{self._service.namespace}_{name}", text, labels=("stage", "connection"))

    def _stage_metrics(self, now: Sequence[StageNow]) -> Iterator[Metric]:
        stages = self._service.stages
        yield self._stage_histogram(
            "queue_wait_second",
            "time from a task's arrival at a stage to its being sent to a worker",
            {stage.stage: stage.queue_wait for stage in stages},
        )
        costs = {stage.stage: stage.batch_cost for stage in stages if stage.batch_cost is not None}
        if costs:
            text = "what the items of a batch cost together, at a stage with max_batch_cost or sort_by_cost"
            yield self._stage_histogram("batch_cost", text, costs)
        running = [stage.slots_in_use for stage in now]
        restarts = [stage.restarts for stage in now]
        shown = stages if now else []
        yield self._gauge("queue_length", "tasks that wait at a stage", shown, [stage.queued for stage in now])
        yield self._gauge("slots_in_use", "tasks, or batches, that workers run at this moment", shown, running)
        in_flight = [stage.in_flight for stage in now]
        yield self._gauge("tasks_in_flight", "tasks that workers have and have not answered", shown, in_flight)
        slots = [stage.ready * stage.concurrency for stage in now]
        yield self._gauge("slots", "tasks, or batches, that the ready workers can run at a time", shown, slots)
        yield self._gauge("workers", "workers that there should be", shown, [stage.workers for stage in now])
        yield self._gauge("workers_ready", "workers that can be given tasks", shown, [stage.ready for stage in now])
        draining = [stage.draining for stage in now]
        yield self._gauge("workers_draining", "workers that leave once they have answered", shown, draining)
        yield from self._batch_lines([(stage, each.batch_line) for stage, each in zip(shown, now, strict=True)])
        yield self._counter("worker_restarts", "workers started in place of dead ones", shown, restarts)
        yield self._counter("tasks_rejected", "requests refused at a stage", stages, [s.rejected for s in stages])
        yield self._counter_by(
            "refused", "requests refused because of a stage", "reason", {s.stage: s.refusals for s in stages}
        )
        done = {s.stage: {"in_time": s.in_time, "in_vain": s.in_vain} for s in stages}
        yield self._counter_by("goodput", "tasks that workers have answered, in time or in vain", "result", done)
        waits = [stage.expected_wait for stage in now]
        yield self._gauge(
            "expected_wait_second", "time that a task which comes now is likely to wait at a stage", shown, waits
        )
        yield self._counter("tasks_timed_out", "tasks answered 408 at a stage", stages, [s.timeouts for s in stages])
        yield self._counter(
            "tasks_cancelled", "tasks whose client left while at a stage", stages, [s.cancellations for s in stages]
        )
        coalescing = [stage for stage in stages if stage.coalesces]
        if coalescing:
            yield self._counter(
                "tasks_coalesced",
                "requests that waited for the answer to another with an equal input, at a stage with coalesce",
                coalescing,
                [stage.coalesced for stage in coalescing],
            )
        yield from self._stream_metrics([stage for stage in stages if stage.streams])

    def _batch_lines(self, stages: Sequence[tuple[StageMetrics, BatchLine | None]]) -> Iterator[Metric]:
        """Tell what is known of batches where a latency target bounds them."""
        known = [(stage, line) for stage, line in stages if line is not None]
        if not known:
            return
        shown = [stage for stage, _ in known]
        fixed = [line.fixed for _, line in known]
        yield self._gauge("batch_fixed_second", "what a batch takes, beside what each item of it adds", shown, fixed)
        added = [line.per_unit for _, line in known]
        yield self._gauge("batch_item_second", "what each item, or unit of cost, adds to a batch's time", shown, added)
        most = [line.most for _, line in known]
        yield self._gauge("batch_size_allowed", "the most that a batch may hold for latency_target", shown, most)

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
        family = HistogramMetricFamily(f"{self._service.namespace}_{name}", text, labels=("stage",))
        for stage, histogram in measured.items():
            family.add_metric((stage,), histogram.buckets(), histogram.total)
        return family

    def _gauge(self, name: str, text: str, stages: Sequence[StageMetrics], values: Sequence[float]) -> Metric:
        family = GaugeMetricFamily(f"{self._service.namespace}_{name}", text, labels=("stage",))
        for stage, value in zip(stages, values, strict=True):
            family.add_metric((stage.stage,), value)
        return family

    def _counter(self, name: str, text: str, stages: Sequence[StageMetrics], values: Sequence[int]) -> Metric:
        family = CounterMetricFamily(f"{self._service.namespace}_{name}", text, labels=("stage",))
        for stage, value in zip(stages, values, strict=True):
            family.add_metric((stage.stage,), value)
        return family

    def _counter_by(self, name: str, text: str, label: str, counts: Mapping[str, Mapping[str, int]]) -> Metric:
        family = CounterMetricFamily(f"{self._service.namespace}_{name}", text, labels=("stage", label))
        for stage, values in counts.items():
            for kind, value in values.items():
                family.add_metric((stage, kind), value)
        return family
