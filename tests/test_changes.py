from __future__ import annotations

from dataclasses import replace

import pytest

from mosec_asgi.observing.changes import change, kind_of
from mosec_asgi.observing.distribution import Distribution
from mosec_asgi.observing.statistics import ServiceReport, StageReport


def spread(*counts: int, total: float = 0.0) -> Distribution:
    return Distribution((1.0, 2.0), counts, total)


BEFORE = ServiceReport(
    "serving",
    answered={"/a": {200: 10, 429: 5}},
    latency=spread(5, 0, 0),
    stages=(StageReport("Model_1", in_time=8, in_vain=2, batch_size=spread(1, 0, 0, total=1.0), refused={"x": 1}),),
)
NOW = ServiceReport(
    "serving",
    admitted=3,
    answered={"/a": {200: 30, 429: 7, 408: 1}, "/b": {201: 4, 404: 2, 500: 6, 503: 2}},
    latency=spread(5, 2, 0),
    stages=(
        StageReport(
            "Model_1",
            queued=4,
            in_flight=5,
            in_time=20,
            in_vain=4,
            batch_size=spread(1, 2, 0, total=5.0),
            refused={"x": 2, "y": 3},
            events=6,
            streams_open=2,
        ),
    ),
)


def test_counts_become_rates_by_what_the_answers_mean() -> None:
    told = change(NOW, BEFORE, 2.0, BEFORE).service
    assert (told.ok, told.client_error, told.late, told.refused, told.server_error) == (12, 1, 0.5, 2, 3)
    assert told.answered == 18.5
    assert (told.admitted, told.streams) == (3, 2)


def test_each_route_has_its_rate() -> None:
    assert change(NOW, BEFORE, 2.0, BEFORE).routes == {"/a": 11.5, "/b": 7.0}


def test_percentiles_and_means_are_of_the_window_and_of_nothing_before_it() -> None:
    told = change(NOW, BEFORE, 2.0, BEFORE)
    assert told.service.p50 == 1.5
    [stage] = told.stages
    assert stage.batch_size == 2.0
    assert (stage.tasks, stage.refused, stage.events, stage.queued, stage.in_flight) == (7, 2, 3, 4, 5)


def test_where_nothing_came_there_is_no_percentile() -> None:
    told = change(NOW, NOW, 1.0, NOW)
    assert (told.service.answered, told.service.p99, told.stages[0].batch_size) == (0, None, None)


def test_a_service_that_was_started_anew_counts_from_nothing() -> None:
    stages = (StageReport("Model_1", in_time=2),)
    fewer = replace(NOW, answered={"/a": {200: 4}}, latency=spread(0, 1, 0), stages=stages)
    told = change(fewer, NOW, 2.0, NOW)
    assert (told.service.ok, told.service.p50, told.stages[0].tasks) == (2, 1.5, 1)


def test_a_stage_that_was_not_there_before_counts_from_nothing() -> None:
    assert change(NOW, ServiceReport(), 2.0, ServiceReport()).stages[0].tasks == 12


@pytest.mark.parametrize(
    ("code", "kind"),
    [(200, "ok"), (304, "ok"), (400, "client_error"), (408, "late"), (429, "refused"), (503, "refused"),
     (500, "server_error"), (504, "server_error")],
)  # fmt: skip
def test_each_status_belongs_to_one_rate(code: int, kind: str) -> None:
    assert kind_of(code) == kind
