from __future__ import annotations

import json
from typing import Any

from mosec_asgi.observing.history import MOST_NUMBERS, MOST_POINTS, WINDOW, History
from mosec_asgi.observing.statistics import ServiceReport, StageReport


def at(count: int) -> ServiceReport:
    return ServiceReport("serving", answered={"/a": {200: count}}, stages=(StageReport("Model_1", queued=count),))


def filled(seconds: int, stages: int = 1) -> History:
    history = History(stages)
    for second in range(seconds + 1):
        history.add(at(second * second), float(second), 1e9 + second)
    return history


def test_each_second_is_a_point() -> None:
    told = filled(3).columns()
    assert (told["first"], told["next"], told["times"]) == (0, 3, [1e9 + 1, 1e9 + 2, 1e9 + 3])
    assert told["service"]["ok"] == [1.0, 3.0, 5.0]
    assert told["service"]["p50"] == [None] * 3
    assert told["stages"][0]["queued"] == [1, 4, 9]
    assert json.loads(json.dumps(told)) == told


def test_whoever_has_the_first_points_is_sent_the_others() -> None:
    history = filled(5)
    assert history.columns(after=3)["times"] == [1e9 + 4, 1e9 + 5]
    for after in (5, 99):
        told: Any = history.columns(after=after)
        assert (told["times"], told["service"]["ok"], told["stages"], told["next"]) == ([], [], [], 5)


def test_it_holds_a_bounded_number_of_points() -> None:
    told = filled(MOST_POINTS + 10).columns()
    assert (told["first"], told["next"], len(told["times"])) == (10, MOST_POINTS + 10, MOST_POINTS)
    assert filled(MOST_POINTS + 10).columns(after=4)["first"] == 10


def test_a_service_of_very_many_stages_is_remembered_for_less_long() -> None:
    few = len(filled(300, stages=MOST_NUMBERS).columns()["times"])
    assert few == WINDOW


def test_a_rate_is_taken_over_the_time_that_has_really_passed() -> None:
    history = History(1)
    history.add(at(0), 0.0, 0.0)
    history.add(at(30), 3.0, 3.0)
    assert history.columns()["service"]["ok"] == [10.0]
    assert history.latest is not None
    assert history.latest.routes == {"/a": 10.0}


def test_two_reports_of_one_moment_are_one() -> None:
    history = filled(2)
    history.add(at(100), 2.0, 2.0)
    assert history.added == 2


def test_a_report_is_due_a_second_after_the_last() -> None:
    history = History(1)
    assert history.due(0.0)
    history.add(at(0), 0.0, 0.0)
    assert not history.due(0.9)
    assert history.due(1.0)
