"""A pipeline on virtual time, beside what can be reckoned by hand."""

from __future__ import annotations

import math

import pytest

from mosec_asgi.labels import Label
from mosec_asgi.tuning.fit import Line
from mosec_asgi.tuning.model import Choice, StageModel
from mosec_asgi.tuning.simulation import HOP, Run, Workload

WORKLOAD = Workload.drawn(4000, 4)


def stage(fixed: float, slope: float = 0.0, labels: tuple[int, ...] = (1, 1, 1, 1), **values: object) -> StageModel:
    return StageModel("stage", Line(fixed, slope), [Label(cost) for cost in labels], **{"batched": True, **values})  # type: ignore[arg-type]


def test_an_idle_pipeline_takes_what_its_stages_take() -> None:
    models = [stage(0.003, batched=False), stage(0.005, batched=False)]
    played = Run(models, (Choice(), Choice()), WORKLOAD, 0.1).play()
    assert played.p50 == pytest.approx(0.008 + 4 * HOP)
    assert played.per_second == pytest.approx(0.1, rel=0.1)


def test_a_single_server_has_the_queue_of_the_textbook() -> None:
    """M/D/1 at a load of 0.5: the mean time in the queue is half of the service; here the median, which is less."""
    played = Run([stage(0.01, batched=False)], (Choice(),), Workload.drawn(20_000, 1), 50).play()
    assert 0.010 < played.p50 < 0.016
    # Of an M/D/1 queue at that load one in a hundred waits three to four services.
    assert 0.03 < played.p99 < 0.06


def test_a_pipeline_that_has_more_than_it_can_do_does_what_it_can() -> None:
    played = Run([stage(0.008, 0.001)], (Choice(2, 8),), WORKLOAD, 3000).play()
    assert played.per_second == pytest.approx(2 * 8 / 0.016, rel=0.05)
    assert played.batches == (pytest.approx(8, rel=0.05),)


def test_a_run_ends_when_the_target_is_missed_for_sure() -> None:
    choices = (Choice(1, 8),)
    late = Run([stage(0.008, 0.001)], choices, WORKLOAD, 2000, target=0.05).play()
    assert not late.met
    met = Run([stage(0.008, 0.001)], choices, WORKLOAD, 300, target=0.05).play()
    assert met.met
    assert met.p99 <= 0.05


def test_a_budget_bounds_a_batch() -> None:
    models = [stage(0.01, 0.001, (1, 2, 3, 4), by_cost=True)]
    free = Run(models, (Choice(1, 64),), WORKLOAD, 2000).play()
    bounded = Run(models, (Choice(1, 64, 0, 10),), WORKLOAD, 2000).play()
    assert bounded.batches[0] == pytest.approx(10 / 2.5, abs=0.7)
    assert free.batches[0] > 2 * bounded.batches[0]


def test_keys_are_not_mixed() -> None:
    model = StageModel("stage", Line(0.01, 0.0), [Label(1, key) for key in "abcd"], batched=True, keyed=True)
    few = Run([model], (Choice(1, 64, 5),), WORKLOAD, 200).play()
    many = Run([stage(0.01)], (Choice(1, 64, 5),), WORKLOAD, 200).play()
    assert few.batches[0] < many.batches[0]


def test_the_same_run_comes_out_the_same() -> None:
    runs = [Run([stage(0.005, 0.0001)], (Choice(1, 16, 3),), WORKLOAD, 800).play() for _ in range(2)]
    assert runs[0] == runs[1]
    assert not math.isinf(runs[0].p99)
