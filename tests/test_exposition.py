from __future__ import annotations

import pytest
from prometheus_client import REGISTRY, Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from mosec_asgi.batching.engine import StageStatistics, Statistics
from mosec_asgi.observing.exposition import Exposition
from mosec_asgi.observing.metrics import DURATION_BUCKETS, LATENCY_BUCKETS, SIZE_BUCKETS, ServiceMetrics, StageMetrics
from mosec_asgi.observing.statistics import BatchLine

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def service(namespace: str = "mosec_service") -> ServiceMetrics:
    """Return metrics of a service of two stages that has been used a little; `NOW` is how it stands."""
    metrics = ServiceMetrics(namespace, [StageMetrics("Pre_1", batched=False), StageMetrics("Model_2", batched=True)])
    pre, model = metrics.stages
    metrics.answered("/inference", 200)
    metrics.answered("/inference", 200)
    metrics.answered("/inference", 408)
    metrics.answered("/other", 200)
    metrics.duration.observe(0.003)
    pre.worker(1).process_duration.observe(0.001, 3)
    model.worker(2).process_duration.observe(0.5)
    model.worker(2).batch_size.observe(8)
    model.worker(2).batch_duration.observe(0.01)
    pre.queue_wait.observe(0.002)
    pre.timeouts, pre.cancellations = 2, 3
    pre.refusals["capacity"] = 1
    pre.in_time, pre.in_vain = 9, 2
    return metrics


NOW = Statistics(
    admitted=5,
    closing=False,
    stages=(
        StageStatistics("Pre_1", queued=0, in_flight=0, slots_in_use=0, ready=1, workers=1, restarts=0, down=False),
        StageStatistics(
            "Model_2",
            4,
            6,
            3,
            ready=2,
            workers=2,
            restarts=1,
            down=False,
            expected_wait=0.25,
            batch_line=BatchLine(0.005, 0.001, 45.0),
        ),
    ),
    shared_memory=4096,
)
STARTING = Statistics(0, False, ())


def samples(metrics: ServiceMetrics, accept: str = "", now: Statistics = NOW) -> Samples:
    body, content_type = Exposition(metrics, lambda: now).render(accept)
    parse = parse_openmetrics if "openmetrics" in content_type else parse_text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse(body.decode())
        for sample in family.samples
    }


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())


# -- the text ----------------------------------------------------------------------------------------------------------


def test_what_is_refused_expected_and_done_in_vain_is_shown() -> None:
    found = samples(service())
    assert found[key("mosec_service_refused_total", stage="Pre_1", reason="capacity")] == 1
    assert found[key("mosec_service_expected_wait_second", stage="Model_2")] == 0.25
    assert found[key("mosec_service_batch_fixed_second", stage="Model_2")] == 0.005
    assert found[key("mosec_service_batch_item_second", stage="Model_2")] == 0.001
    assert found[key("mosec_service_batch_size_allowed", stage="Model_2")] == 45
    assert key("mosec_service_batch_size_allowed", stage="Pre_1") not in found
    assert found[key("mosec_service_goodput_total", stage="Pre_1", result="in_time")] == 9
    assert found[key("mosec_service_goodput_total", stage="Pre_1", result="in_vain")] == 2


@pytest.mark.parametrize("accept", ["", "*/*", OPENMETRICS], ids=["none", "any", "openmetrics"])
def test_mosecs_names_and_labels_are_kept(accept: str) -> None:
    found = samples(service(), accept)
    assert found[key("mosec_service_throughput_total", code="200", endpoint="/inference")] == 2
    assert found[key("mosec_service_throughput_total", code="408", endpoint="/inference")] == 1
    assert found[key("mosec_service_throughput_total", code="200", endpoint="/other")] == 1
    assert found[key("mosec_service_remaining_task")] == 5
    assert found[key("mosec_service_shared_memory_bytes")] == 4096
    for stage, connection, duration, count in (
        ("total", "total", 0.003, 1),
        ("Pre_1", "1", 0.003, 3),
        ("Model_2", "2", 0.5, 1),
    ):
        place = {"stage": stage, "connection": connection}
        assert found[key("mosec_service_process_duration_second_sum", **place)] == pytest.approx(duration)
        assert found[key("mosec_service_process_duration_second_count", **place)] == count
    model = {"stage": "Model_2", "connection": "2"}
    assert found[key("mosec_service_batch_size_sum", **model)] == 8
    assert found[key("mosec_service_batch_size_count", **model)] == 1
    assert found[key("mosec_service_batch_duration_second_sum", **model)] == pytest.approx(0.01)
    assert found[key("mosec_service_batch_duration_second_count", **model)] == 1


@pytest.mark.parametrize("accept", ["", OPENMETRICS], ids=["text", "openmetrics"])
@pytest.mark.parametrize(
    ("name", "bounds", "value"),
    [
        ("process_duration_second", DURATION_BUCKETS, 0.5),
        ("batch_size", SIZE_BUCKETS, 8),
        ("batch_duration_second", DURATION_BUCKETS, 0.01),
    ],
)
def test_each_histogram_has_mosecs_buckets(name: str, bounds: tuple[float, ...], value: float, accept: str) -> None:
    found = samples(service(), accept)
    shown = {
        float(dict(labels)["le"]): count
        for (sample, labels), count in found.items()
        if sample == f"mosec_service_{name}_bucket" and dict(labels)["stage"] == "Model_2"
    }
    assert list(shown) == pytest.approx([*bounds, float("inf")])
    assert all(count == (bound >= value) for bound, count in shown.items())


def test_bounds_are_written_without_the_noise_of_binary_fractions() -> None:
    body, _ = Exposition(service(), lambda: NOW).render("")
    bounds = {line.split('le="')[1].split('"')[0] for line in body.decode().splitlines() if 'le="' in line}
    assert {"0.001", "0.002", "0.008", "0.064", "4.096", "1.0", "512.0", "+Inf"} <= bounds
    assert all(len(bound) <= 9 for bound in bounds)


def test_batch_metrics_are_shown_only_for_stages_with_batching() -> None:
    found = samples(service())
    stages = {dict(labels)["stage"] for (name, labels) in found if name.startswith("mosec_service_batch_")}
    assert stages == {"Model_2"}


def test_the_houses_own_metrics_are_shown_by_stage() -> None:
    found = samples(service())
    assert found[key("mosec_service_queue_length", stage="Model_2")] == 4
    assert found[key("mosec_service_workers_ready", stage="Model_2")] == 2
    assert found[key("mosec_service_worker_restarts_total", stage="Model_2")] == 1
    assert found[key("mosec_service_tasks_rejected_total", stage="Pre_1")] == 1
    assert found[key("mosec_service_tasks_timed_out_total", stage="Pre_1")] == 2
    assert found[key("mosec_service_tasks_cancelled_total", stage="Pre_1")] == 3
    assert found[key("mosec_service_queue_wait_second_count", stage="Pre_1")] == 1


def test_a_service_that_was_never_used_can_be_shown() -> None:
    metrics = ServiceMetrics("mosec_service", [StageMetrics("Echo_1", batched=True)])
    for accept in ("", OPENMETRICS):
        found = samples(metrics, accept, STARTING)
        assert found[key("mosec_service_remaining_task")] == 0
        assert found[key("mosec_service_process_duration_second_count", stage="total", connection="total")] == 0


def test_while_a_service_starts_nothing_is_said_of_how_its_stages_stand() -> None:
    found = samples(service(), now=STARTING)
    shown = {name for name, _ in found}
    assert not {f"mosec_service_{name}" for name in ("queue_length", "slots_in_use", "workers_ready")} & shown
    assert found[key("mosec_service_tasks_rejected_total", stage="Pre_1")] == 1, "what was counted is shown"


def test_the_format_is_what_the_accept_header_asks_for() -> None:
    assert Exposition(service(), lambda: NOW).render("")[1].startswith("text/plain")
    body, content_type = Exposition(service(), lambda: NOW).render(OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


def test_the_namespace_stands_before_every_name() -> None:
    families: list[Metric] = list(Exposition(service("other"), lambda: NOW).collect())
    assert families
    assert all(family.name.startswith("other_") for family in families)


def test_two_services_in_one_process_keep_their_numbers_apart() -> None:
    first, second = service(), service()
    first.answered("/inference", 200)
    counted = key("mosec_service_throughput_total", code="200", endpoint="/inference")
    assert samples(first)[counted] == 3
    assert samples(second)[counted] == 2
    # Nor do they show up in the registry of the process, which is the user's.
    assert not any(family.name.startswith("mosec_service") for family in REGISTRY.collect())


def test_odd_routes_are_escaped() -> None:
    metrics = ServiceMetrics("mosec_service", [])
    metrics.answered('/a"b\\c\nd', 200)
    assert samples(metrics, now=STARTING)[key("mosec_service_throughput_total", code="200", endpoint='/a"b\\c\nd')] == 1


# -- streams -----------------------------------------------------------------------------------------------------------

STREAM_METRICS = {"streams_open", "events_sent", "first_event_second", "event_gap_second"}


def streaming_service() -> ServiceMetrics:
    """Return metrics of a service whose second stage streams, and has been used a little."""
    metrics = ServiceMetrics(
        "mosec_service", [StageMetrics("Pre_1", batched=False), StageMetrics("Chat_2", batched=False, streams=True)]
    )
    chat = metrics.stages[1]
    chat.streams_open, chat.events = 2, 7
    chat.first_event.observe(0.25)
    chat.event_gap.observe(0.03, 6)
    return metrics


@pytest.mark.parametrize("accept", ["", OPENMETRICS], ids=["text", "openmetrics"])
def test_what_is_measured_of_streams_is_shown_for_stages_that_stream(accept: str) -> None:
    found = samples(streaming_service(), accept)
    assert found[key("mosec_service_streams_open", stage="Chat_2")] == 2
    assert found[key("mosec_service_events_sent_total", stage="Chat_2")] == 7
    assert found[key("mosec_service_first_event_second_sum", stage="Chat_2")] == 0.25
    assert found[key("mosec_service_first_event_second_count", stage="Chat_2")] == 1
    assert found[key("mosec_service_first_event_second_bucket", stage="Chat_2", le="0.256")] == 1
    assert found[key("mosec_service_first_event_second_bucket", stage="Chat_2", le="0.128")] == 0
    assert found[key("mosec_service_event_gap_second_sum", stage="Chat_2")] == pytest.approx(0.18)
    assert found[key("mosec_service_event_gap_second_count", stage="Chat_2")] == 6


def test_nothing_of_streams_is_shown_for_other_stages() -> None:
    def stages(metrics: ServiceMetrics) -> set[str]:
        return {
            dict(labels)["stage"]
            for name, labels in samples(metrics)
            if any(name.startswith(f"mosec_service_{metric}") for metric in STREAM_METRICS)
        }

    assert stages(streaming_service()) == {"Chat_2"}
    assert stages(service()) == set()


def test_the_slots_in_use_are_shown_by_stage() -> None:
    found = samples(service())
    assert found[key("mosec_service_slots_in_use", stage="Model_2")] == 3
    assert found[key("mosec_service_slots_in_use", stage="Pre_1")] == 0


@pytest.mark.parametrize("accept", ["", OPENMETRICS], ids=["text", "openmetrics"])
def test_whole_numbers_are_written_as_such(accept: str) -> None:
    metrics = service()
    metrics.throughput['/a \\ "b" 1.0 }', 200] = 1_234_567
    metrics.duration.observe(0.25)
    text, _ = Exposition(metrics, lambda: NOW).render(accept)
    values = [line.rpartition(b" ")[2] for line in text.splitlines() if not line.startswith(b"#")]
    assert b"1234567" in values
    assert not [value for value in values if value.endswith(b".0") or b"e+" in value]
    assert [value for value in values if b"." in value], "others keep their fraction"
    assert b'1.0 }"' in text
    assert b'le="1.0"' in text


def test_the_time_of_requests_is_shown_in_mosecs_steps_and_in_finer_ones() -> None:
    metrics = service()
    metrics.duration.observe(30.0)
    found = samples(metrics)
    mosecs = {
        dict(labels)["le"]: value
        for (name, labels), value in found.items()
        if name == "mosec_service_process_duration_second_bucket" and ("stage", "total") in labels
    }
    assert len(mosecs) == len(DURATION_BUCKETS) + 1
    assert (mosecs["0.002"], mosecs["0.004"], mosecs["4.096"], mosecs["+Inf"]) == (0, 1, 1, 2)
    name = "mosec_service_request_duration_second"
    finer = [found[key(f"{name}_bucket", le=le)] for le in ("0.002", "0.002828", "0.004", "32.77", "+Inf")]
    assert finer == [0, 0, 1, 2, 2]
    assert (found[key(f"{name}_count")], found[key(f"{name}_sum")]) == (2, 30.003)
    assert set(DURATION_BUCKETS) < set(LATENCY_BUCKETS)
