"""A report of a service that runs elsewhere, read from the text of its `/metrics`. Reads nothing itself.

So whoever can scrape a service can look at it, whatever its settings. What `/metrics` does not tell (the state of each
worker, the paths of a stage) is empty in the report.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from mosec_asgi.observing.distribution import EMPTY, Distribution
from mosec_asgi.observing.statistics import LOADING, SERVING, ServiceReport, StageReport

# Which service it is: the metric that each has, behind its namespace.
_MARK = "_remaining_task"


class ScrapeError(Exception):
    """A text is not that of a service's metrics; it says why."""


@dataclass
class _Histogram:
    total: float = 0.0
    below: dict[float, float] = field(default_factory=dict)

    def distribution(self) -> Distribution:
        bounds = sorted(self.below)
        if not bounds or bounds[-1] != float("inf"):
            return EMPTY
        cumulative = [int(self.below[bound]) for bound in bounds]
        counts = (now - before for now, before in zip(cumulative, [0, *cumulative], strict=False))
        return Distribution(tuple(bounds[:-1]), tuple(counts), self.total)


class _Samples:
    """What a text says, by the names of samples without their namespace."""

    def __init__(self, samples: Iterable[tuple[str, Mapping[str, str], float]]) -> None:
        self._values: dict[str, list[tuple[Mapping[str, str], float]]] = {}
        for name, labels, value in samples:
            self._values.setdefault(name, []).append((labels, value))

    def of(self, name: str) -> list[tuple[Mapping[str, str], float]]:
        return self._values.get(name, [])

    def number(self, name: str, stage: str = "") -> int:
        """Return a value; that of a stage where one is named."""
        return int(sum(value for labels, value in self.of(name) if not stage or labels.get("stage") == stage))

    def by(self, name: str, label: str, stage: str) -> dict[str, int]:
        """Return the values of a stage by another label."""
        found = self.of(name)
        return {labels.get(label, ""): int(value) for labels, value in found if labels.get("stage") == stage}

    def histogram(self, name: str, stage: str = "") -> Distribution:
        """Return a histogram; that of a stage where one is named, over all of its workers."""
        found: dict[str, _Histogram] = {}
        for suffix in ("_bucket", "_sum"):
            for labels, value in self.of(name + suffix):
                if stage and labels.get("stage") != stage:
                    continue
                histogram = found.setdefault(labels.get("connection", ""), _Histogram())
                if suffix == "_sum":
                    histogram.total = value
                else:
                    histogram.below[float(labels["le"])] = value
        return sum((each.distribution() for each in found.values()), EMPTY)


def read(text: str, namespace: str = "") -> ServiceReport:
    """Return how a service stands by the text of its metrics.

    Args:
        text: in Prometheus' format.
        namespace: of the service's metrics; the first that is found where it is empty.

    Raises:
        ScrapeError: the text is none of metrics, or not of a model service.
    """
    from prometheus_client.parser import text_string_to_metric_families

    try:
        samples = [
            (sample.name, sample.labels, float(sample.value))
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        ]
    # What its parser raises depends on what is wrong with the text.
    except Exception as error:
        raise ScrapeError("the answer is no text in Prometheus' format") from error
    found = [name.removesuffix(_MARK) for name, _, _ in samples if name.endswith(_MARK)]
    if namespace and namespace not in found:
        raise ScrapeError(f"there are no metrics {namespace}{_MARK}, but of {', '.join(found) or 'no model service'}")
    if not found:
        raise ScrapeError("there are metrics, but none of a model service")
    prefix = f"{namespace or found[0]}_"
    own = _Samples((name[len(prefix) :], *rest) for name, *rest in samples if name.startswith(prefix))  # type: ignore[misc]
    try:
        return _report(own)
    except (ValueError, OverflowError, KeyError) as error:
        # A value that is no number, or a label that is missing.
        raise ScrapeError("there are metrics named as a model service's, but with other values or labels") from error


def _report(samples: _Samples) -> ServiceReport:
    answered: dict[str, dict[int, int]] = {}
    for labels, value in samples.of("throughput_total"):
        answered.setdefault(labels.get("endpoint", ""), {})[int(labels.get("code", 0))] = int(value)
    return ServiceReport(
        state=LOADING if samples.number("loading") else SERVING,
        admitted=samples.number("remaining_task"),
        answered=answered,
        latency=samples.histogram("request_duration_second"),
        shared_memory=samples.number("shared_memory_bytes"),
        stages=tuple(
            _stage(samples, name)
            # In the order of the service's list.
            for name in dict.fromkeys(labels["stage"] for labels, _ in samples.of("tasks_rejected_total"))
        ),
    )


def _stage(samples: _Samples, name: str) -> StageReport:
    done = samples.by("goodput_total", "result", name)
    return StageReport(
        name=name,
        wanted=samples.number("workers", name),
        ready=samples.number("workers_ready", name),
        draining=samples.number("workers_draining", name),
        restarts=samples.number("worker_restarts_total", name),
        queued=samples.number("queue_length", name),
        in_flight=samples.number("tasks_in_flight", name),
        slots_in_use=samples.number("slots_in_use", name),
        slots=samples.number("slots", name),
        batch_size=samples.histogram("batch_size", name),
        queue_wait=samples.histogram("queue_wait_second", name),
        process=samples.histogram("process_duration_second", name),
        in_time=done.get("in_time", 0),
        in_vain=done.get("in_vain", 0),
        refused=samples.by("refused_total", "reason", name),
        timed_out=samples.number("tasks_timed_out_total", name),
        cancelled=samples.number("tasks_cancelled_total", name),
        coalesced=samples.number("tasks_coalesced_total", name),
        streams_open=samples.number("streams_open", name),
        events=samples.number("events_sent_total", name),
        first_event=samples.histogram("first_event_second", name),
    )
