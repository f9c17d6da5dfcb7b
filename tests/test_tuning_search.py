"""What is found, beside the best of a full sweep over the same simulation."""

from __future__ import annotations

import itertools
import math

import pytest

from mosec_asgi.labels import Label
from mosec_asgi.tuning.fit import Line
from mosec_asgi.tuning.model import Choice, Choices, StageModel
from mosec_asgi.tuning.room import Machine
from mosec_asgi.tuning.search import CALLS, Search, sizes
from mosec_asgi.tuning.simulation import Workload

WORKLOAD = Workload.drawn(1000, 1)
MACHINE = Machine(2, 1 << 40, 2)


def stage(fixed: float, slope: float, most: int = 64, *, batched: bool = True) -> StageModel:
    return StageModel("stage", Line(fixed, slope), [Label()], batched=batched, most=most if batched else 1)


def swept(search: Search, options: list[Choice], stages: int) -> float:
    """Return the best rate of all combinations."""
    best = 0.0
    for choices in itertools.product(options, repeat=stages):
        best = max(best, search.rate_of(choices, best))
    return best


@pytest.mark.parametrize(
    ("models", "target", "sweep"),
    [
        ([stage(0.005, 0.0001)], 0.02, [(num, size, wait) for num in (1, 2) for size in (2, 3, 5, 8, 12, 20, 32, 50, 64)
                                        for wait in (0, 1, 2, 5, 10)]),
        ([stage(0.02, 0.005)], 0.1, [(num, size, wait) for num in (1, 2) for size in (2, 3, 4, 5, 6, 7, 8, 10, 12)
                                     for wait in (0, 5, 10, 20, 40)]),
        ([stage(0.002, 0.001), stage(0.01, 0.0002)], 0.1, [(2, size, wait) for size in (4, 8, 16, 32, 64)
                                                           for wait in (0, 10)]),
    ],
)  # fmt: skip
def test_what_is_found_is_within_5_percent_of_a_full_sweep(
    models: list[StageModel], target: float, sweep: list[tuple[int, int, int]]
) -> None:
    search = Search(models, MACHINE, WORKLOAD, target)
    found = search.best()
    assert found.whole
    assert found.played.p99 <= target
    best = swept(search, [Choice(*each) for each in sweep], len(models))
    assert found.rate >= 0.95 * best


def test_throughput_alone_takes_the_fewest_workers_that_keep_up() -> None:
    found = Search([stage(0.002, 0.001), stage(0.01, 0.0002)], MACHINE, Workload.drawn(CALLS, 1), math.inf).best()
    first, second = found.choices
    assert first.num == 2
    # It could do five times as much with both.
    assert second.num == 1
    assert found.rate == pytest.approx(2 * 64 / 0.066, rel=0.05)


def test_a_target_that_cannot_be_met_gives_the_best_that_can() -> None:
    found = Search([stage(0.02, 0.005)], MACHINE, WORKLOAD, 0.01).best()
    assert found.rate == 0.0
    assert found.played.p99 == pytest.approx(0.025, abs=0.002)


def test_workers_that_gain_nothing_are_not_recommended() -> None:
    found = Search([stage(0.02, 0.0, batched=False), stage(0.001, 0.0001)], MACHINE, WORKLOAD, 0.2).best()
    assert [choice.num for choice in found.choices] == [2, 1]


def test_a_search_without_time_ends_and_says_so() -> None:
    answers = iter([True] * 3)
    found = Search([stage(0.005, 0.0001)], MACHINE, WORKLOAD, 0.05, lambda: next(answers, False)).best()
    assert not found.whole
    assert found.tried < 10


def test_a_budget_is_found_where_items_differ_much() -> None:
    labels = [Label(1)] * 9 + [Label(50)]
    model = StageModel("stage", Line(0.002, 0.0005), labels, batched=True, most=32, by_cost=True, budgeted=True)
    search = Search([model], MACHINE, Workload.drawn(1000, len(labels)), 0.1)
    found = search.best()
    without: Choices = max(((Choice(2, size),) for size in sizes(model)), key=search.rate_of)
    assert found.rate >= 0.99 * search.rate_of(without)


def test_a_stage_that_takes_single_items_stays_without_batches() -> None:
    assert sizes(stage(0.01, 0.0, batched=False)) == [1]
    # One that takes lists is not given single items.
    assert sizes(stage(0.01, 0.0, most=12)) == [2, 3, 4, 6, 8, 12]
