"""A report that is read from /metrics says the same as the service's own."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_exposition import NOW, OPENMETRICS, service

from mosec_asgi.observing.exposition import Exposition
from mosec_asgi.observing.metrics import ServiceMetrics
from mosec_asgi.observing.scraped import ScrapeError, read
from mosec_asgi.observing.statistics import report

MOSEC = """# HELP mosec_service_remaining_task remaining tasks for the whole service
# TYPE mosec_service_remaining_task gauge
mosec_service_remaining_task 3
# TYPE mosec_service_throughput counter
mosec_service_throughput_total{code="200",endpoint="/inference"} 7
"""


def text_of(metrics: ServiceMetrics) -> str:
    return Exposition(metrics, lambda: NOW).render("")[0].decode()


def test_what_is_read_is_what_the_service_itself_reports() -> None:
    metrics = service()
    metrics.stages[1].worker(1).batch_size.observe(3)
    metrics.duration.observe(1000.0)
    own = report(metrics, NOW, {}, state="serving", uptime=0.0, capacity=0)
    stages = tuple(replace(stage, workers=(), max_batch_size=1, expected_wait=0.0) for stage in own.stages)
    found = read(text_of(metrics))
    assert found.latency.counts == own.latency.counts
    assert found.stages[1].batch_size == own.stages[1].batch_size
    assert found == replace(own, stages=stages, latency=found.latency)
    assert [stage.name for stage in found.stages] == ["Pre_1", "Model_2"]


def test_of_several_services_the_named_one_is_read() -> None:
    other = service("other")
    other.answered("/only", 200)
    both = text_of(service()) + text_of(other)
    assert "/only" not in read(both).answered
    assert "/only" in read(both, "other").answered
    with pytest.raises(ScrapeError, match="there are no metrics third_remaining_task, but of mosec_service, other"):
        read(both, "third")


def test_metrics_of_users_beside_the_services_own_are_left_out() -> None:
    text = text_of(service())
    assert read(f'{text}tokens_total{{stage="Model_2"}} 5\n') == read(text)


def test_mosecs_own_metrics_are_read_as_far_as_they_go() -> None:
    found = read(MOSEC)
    assert (found.admitted, found.answered, found.stages) == (3, {"/inference": {200: 7}}, ())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<html>no</html>", "no text in Prometheus' format"),
        ("up{ 1", "no text in Prometheus' format"),
        ("up 1\n", "none of a model service"),
        ("", "none of a model service"),
    ],
)
def test_what_is_no_such_text_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(ScrapeError, match=reason):
        read(text)
    assert OPENMETRICS


@pytest.mark.parametrize(
    "lines",
    [
        "x_remaining_task NaN",
        "x_remaining_task +Inf",
        'x_remaining_task 0\nx_throughput_total{code="many",endpoint="/"} 1',
        "x_remaining_task 0\nx_tasks_rejected_total 1",
        'x_remaining_task 0\nx_request_duration_second_bucket{le="+Inf"} NaN',
    ],
)
def test_values_and_labels_that_no_service_has_are_refused(lines: str) -> None:
    with pytest.raises(ScrapeError, match="with other values or labels"):
        read(lines + "\n")
