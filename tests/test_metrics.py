from __future__ import annotations

import random

import pytest
from fakes import new_task

from mosec_asgi.batching.task import Task
from mosec_asgi.observing.metrics import DURATION_BUCKETS, SIZE_BUCKETS, Histogram, ServiceMetrics, StageMetrics

# -- a histogram -------------------------------------------------------------------------------------------------------


def test_the_bounds_are_mosecs() -> None:
    assert pytest.approx([0.001 * 2**i for i in range(13)]) == DURATION_BUCKETS
    assert SIZE_BUCKETS == (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


def test_a_value_counts_into_each_bucket_whose_bound_it_does_not_exceed() -> None:
    histogram = Histogram((1.0, 2.0, 4.0))
    for value in (0.5, 1.0, 1.5, 4.0, 9.0):
        histogram.observe(value)
    assert histogram.buckets() == [("1.0", 2), ("2.0", 3), ("4.0", 4), ("+Inf", 5)]
    assert (histogram.count, histogram.total) == (5, 16.0)


def test_equal_values_can_be_counted_at_once() -> None:
    one, many = Histogram(), Histogram()
    for _ in range(7):
        one.observe(0.25)
    many.observe(0.25, 7)
    assert one.buckets() == many.buckets()
    assert (one.count, one.total) == (many.count, many.total)


def test_buckets_never_fall() -> None:
    histogram = Histogram()
    generator = random.Random(1)
    for _ in range(200):
        histogram.observe(generator.expovariate(10))
    counts = [count for _, count in histogram.buckets()]
    assert counts == sorted(counts)
    assert counts[-1] == histogram.count == 200


# -- a stage -----------------------------------------------------------------------------------------------------------


def tasks(*queued: float) -> list[Task]:
    """Return tasks that have come to their stage at these times."""
    return [new_task(number, now) for number, now in enumerate(queued)]


def test_calls_are_counted_by_how_they_end_at_the_stage() -> None:
    stage = StageMetrics("Echo_1", batched=False)
    (task,) = tasks(1.0)
    for reason in ("deadline", "capacity", "deadline"):
        stage.refused(429, reason, 2.0)
    for _ in range(2):
        stage.timed_out(task, 2.0)
    for _ in range(3):
        stage.cancelled(task, 2.0)
    assert (stage.rejected, stage.timeouts, stage.cancellations) == (3, 2, 3)
    assert stage.refusals == {"deadline": 2, "capacity": 1}


def test_what_workers_have_answered_counts_by_whether_somebody_still_waited() -> None:
    stage = StageMetrics("Echo_1", batched=False)
    stage.answered(1, tasks(0.0, 0.0, 0.0), 2.0, 2, 3.0)
    stage.answered(1, tasks(0.0), 2.0, 0, 3.0)
    assert (stage.in_time, stage.in_vain) == (2, 2)


def test_the_wait_of_each_task_is_measured_and_of_a_batch_its_size_and_the_time_in_which_it_was_formed() -> None:
    plain, batched = StageMetrics("Echo_1", batched=False), StageMetrics("Echo_1", batched=True)
    for stage in (plain, batched):
        stage.sent(2, tasks(1.0, 2.0, 2.5), 3.0)
        assert (stage.queue_wait.count, stage.queue_wait.total) == (3, 3.5)
    assert plain.workers == {}
    measured = batched.worker(2)
    assert (measured.batch_size.count, measured.batch_size.total) == (1, 3)
    assert (measured.batch_duration.count, measured.batch_duration.total) == (1, 2.0)


def test_the_time_of_an_answer_is_shared_by_its_tasks_without_batching() -> None:
    plain, batched = StageMetrics("Echo_1", batched=False), StageMetrics("Echo_1", batched=True)
    for stage in (plain, batched):
        stage.answered(1, tasks(0.0, 0.0, 0.0, 0.0), 2.0, 4, 3.0)
    one, other = plain.worker(1).process_duration, batched.worker(1).process_duration
    assert (one.count, one.total, one.counts[-1]) == (4, 2.0, 0)
    assert (other.count, other.total) == (1, 2.0)
    plain.answered(1, [], 2.0, 0, 3.0)
    assert one.count == 4, "an answer to nothing is none"


def test_events_of_a_stream_and_the_times_between_them_are_measured() -> None:
    stage = StageMetrics("Chat_1", batched=False, streams=True)
    (task,) = tasks(1.0)
    stage.chunk(task, None, 1.5)
    stage.chunk(task, 1.5, 2.5)
    stage.chunk(task, 2.5, 4.5)
    assert (stage.first_event.count, stage.first_event.total) == (1, 0.5)
    assert (stage.event_gap.count, stage.event_gap.total) == (2, 3.0)
    assert (stage.events, stage.streams_open) == (3, 1)
    stage.stream_ended(task, 5.0)
    assert (stage.events, stage.streams_open) == (3, 0)


def test_workers_are_made_at_first_use_and_then_kept() -> None:
    stage = StageMetrics("Echo_1", batched=False)
    assert stage.worker(2) is stage.worker(2)
    assert set(stage.workers) == {2}


# -- a service ---------------------------------------------------------------------------------------------------------


def test_answers_are_counted_by_route_and_status() -> None:
    service = ServiceMetrics("test", [])
    for route, code in (("/a", 200), ("/a", 200), ("/b", 200), ("/a", 408)):
        service.answered(route, code)
    assert service.throughput == {("/a", 200): 2, ("/b", 200): 1, ("/a", 408): 1}
