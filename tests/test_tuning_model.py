from __future__ import annotations

import pytest

from mosec_asgi.labels import Label
from mosec_asgi.tuning.fit import Line
from mosec_asgi.tuning.model import Choice, StageModel, capacity

LABELS = [Label(2), Label(4)]


def test_the_time_of_a_batch_goes_by_its_items_or_by_their_cost_or_by_the_padded_cost() -> None:
    line = Line(1.0, 0.5)
    assert StageModel("a", line, LABELS, batched=True).seconds([2, 9]) == 2.0
    assert StageModel("a", line, LABELS, batched=True, by_cost=True).seconds([2, 9]) == 6.5
    assert StageModel("a", line, LABELS, batched=True, by_cost=True, pads=True).seconds([2, 9]) == 10.0


def test_a_capacity_is_that_of_full_batches_on_all_workers() -> None:
    model = StageModel("a", Line(0.005, 0.001), LABELS, batched=True)
    assert model.capacity(Choice(2, 5)) == pytest.approx(1000.0)


def test_a_budget_bounds_the_batches_that_a_capacity_is_reckoned_with() -> None:
    model = StageModel("a", Line(0.006, 0.001), LABELS, batched=True, by_cost=True)
    assert model.mean_cost == 3.0
    # Four items of a mean cost of 3.
    assert model.capacity(Choice(1, 64, budget=12)) == pytest.approx(4 / 0.018)
    # One runs whatever it costs.
    assert model.capacity(Choice(1, 64, budget=1)) == pytest.approx(1 / 0.009)


def test_a_stage_that_takes_no_time_has_a_capacity_all_the_same() -> None:
    assert StageModel("a", Line(0.0, 0.0), [Label(0)], batched=True).capacity(Choice(1, 8, budget=4)) > 1e6


def test_a_pipeline_does_what_its_slowest_stage_does() -> None:
    models = [
        StageModel("a", Line(0.01, 0.0), LABELS, batched=False),
        StageModel("b", Line(0.1, 0.0), LABELS, batched=False),
    ]
    assert capacity(models, (Choice(), Choice(2))) == pytest.approx(20.0)
