"""What is read from the rounds of a benchmark: medians, ratios, and on what the numbers were taken."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from harness import benchmark

results = benchmark("results")
report = benchmark("report")
cost = benchmark("cost")
load = benchmark("load")
machine = benchmark("machine")
scenarios = benchmark("scenarios")

ECHO, LATENCY = (next(s for s in scenarios.SCENARIOS if s.name == name) for name in ("echo", "latency"))
MACHINE = {"cpu": "Some Processor 9", "cores": 2, "python": "CPython 3.11.7", "load_average_before": 0.1}


def side(per_second: float, p50: float = 1.0, spent: Any = None, others: float | None = 0.0) -> Any:
    return results.Side(load.Measurement(per_second, p50, 2 * p50, 1000), spent, others)


def result(scenario: Any, theirs: Sequence[Any], ours: Sequence[Any]) -> Any:
    return results.Result(scenario, [results.Pair(*pair) for pair in zip(theirs, ours, strict=True)])


def test_the_ratio_is_the_median_of_those_of_the_pairs() -> None:
    # Of the medians of both it would be 3.
    measured = result(ECHO, [side(10), side(20), side(30)], [side(100), side(60), side(60)])
    assert (measured.ratios, measured.ratio) == ([10, 3, 2], 3)
    measured = result(ECHO, [side(10), side(20), side(60)], [side(10), side(30), side(60)])
    assert (measured.ratio, measured.theirs("per_second"), measured.ours("per_second")) == (1, 20, 30)


def test_of_latencies_less_is_better() -> None:
    assert result(LATENCY, [side(1, p50=0.4)], [side(1, p50=0.2)]).ratio == 2


def test_a_cost_is_the_median_of_the_rounds_its_sum_too() -> None:
    rounds = [side(1, spent=cost.Cost(*spent)) for spent in ((10.0, 9.0), (20.0, 1.0), (30.0, 2.0))]
    assert results.median_cost(rounds) == results.MedianCost(server=20.0, workers=2.0, total=21.0)
    assert results.median_cost([side(1)]) is None


def test_the_costs_of_every_round_and_their_medians_are_kept(tmp_path: Path) -> None:
    theirs, ours = side(1, spent=cost.Cost(80.0, 70.5), others=0.3), side(2, spent=cost.Cost(30.0, 7.0), others=0.1)
    where = MACHINE | machine.conditions(MACHINE, [0.2], busy=False)
    report.write_json(tmp_path / "r.json", where, {}, [result(ECHO, [theirs], [ours])])
    data = json.loads((tmp_path / "r.json").read_text())
    assert (data["machine"]["cpu"], data["machine"]["quiet"]) == ("Some Processor 9", False)
    row = data["scenarios"][0]
    assert row["cost_us"]["theirs"] == {"server": 80.0, "workers": 70.5, "total": 150.5}
    assert row["rounds"]["ours"]["workers_us"] == [7.0]
    assert row["rounds"]["theirs"]["others"] == [0.3]


def test_the_table_of_costs_says_on_what_processor_they_were_taken() -> None:
    theirs, ours = side(1, spent=cost.Cost(80.0, 68.0)), side(2, spent=cost.Cost(30.0, 7.0))
    where = MACHINE | machine.conditions(MACHINE, [0.0], busy=False)
    text = report.cost_table([result(ECHO, [theirs], [ours])], machine.brief(where))
    assert "Some Processor 9, 2 cores, CPython 3.11.7; quiet" in text
    assert text.splitlines()[-1].split() == ["echo", "80.0", "68.0", "148.0", "30.0", "7.0", "37.0", "4.00"]


def test_where_costs_are_not_known_the_table_says_so() -> None:
    assert "not known" in report.cost_table([result(ECHO, [side(1, others=None)], [side(1, others=None)])], "this")


def test_the_disturbance_of_a_row_is_the_median_of_its_measurements() -> None:
    # A moment of something else in one of them is not a busy machine.
    assert result(ECHO, [side(1, others=0.0)] * 3, [side(1, others=0.02)] * 2 + [side(1, others=5.0)]).others == 0.01
    assert result(ECHO, [side(1, others=None)], [side(1, others=None)]).others is None


@pytest.mark.parametrize(
    ("others", "load_average", "busy", "quiet"),
    [
        ([0.01, 0.1], 5.0, False, True),
        ([0.01, 0.11], 0.0, False, False),
        ([0.0], 0.0, True, False),
        # Elsewhere than on Linux only the load average is there.
        ([None], 0.5, False, True),
        ([None], 0.6, False, False),
    ],
)
def test_a_run_is_quiet_where_no_row_was_disturbed(
    others: list[float | None], load_average: float, busy: bool, quiet: bool
) -> None:
    where = MACHINE | {"load_average_before": load_average}
    assert machine.conditions(where, others, busy=busy)["quiet"] is quiet


def test_what_disturbed_a_run_is_said() -> None:
    def said(others: float, busy: bool) -> str:
        return machine.brief(MACHINE | machine.conditions(MACHINE, [others], busy=busy)).partition("; ")[2]

    assert said(0.0, True) == "beside a busy loop"
    assert said(0.5, True) == "beside a busy loop; other programs kept up to 0.50 processors busy"
    assert said(0.5, False) == "NOT QUIET; other programs kept up to 0.50 processors busy"
