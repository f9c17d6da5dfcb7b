"""How many workers the machine takes."""

from __future__ import annotations

import pytest

from mosec_asgi.labels import Label
from mosec_asgi.tuning.fit import Line
from mosec_asgi.tuning.model import StageModel
from mosec_asgi.tuning.room import Machine, slowed, ways


def stage(cpu: float, memory: int = 0, fixed_num: int = 0) -> StageModel:
    return StageModel(
        "stage", Line(0.01, 0.001), [Label()], batched=True, most=8, cpu=cpu, memory=memory, fixed_num=fixed_num
    )


@pytest.mark.parametrize(
    ("stages", "machine", "expected"),
    [
        # Bound by processors; by their number alone; by memory.
        ([stage(1.0)], Machine(4, 1 << 40, 16), {(4,)}),
        ([stage(0.0)], Machine(4, 1 << 40, 16), {(16,)}),
        ([stage(0.0, memory=10)], Machine(4, 50, 16), {(4,)}),
        # Two stages divide the processors, in every way that leaves none idle.
        ([stage(1.0), stage(1.0)], Machine(4, 1 << 40, 16), {(1, 3), (2, 2), (3, 1)}),
        ([stage(1.0), stage(0.0)], Machine(2, 1 << 40, 3), {(2, 3)}),
        # Their number follows from the devices.
        ([stage(0.0, fixed_num=2), stage(1.0)], Machine(3, 1 << 40, 8), {(2, 3)}),
        # Not even one of each has room, and each has one.
        ([stage(2.0), stage(2.0)], Machine(2, 1 << 40, 8), {(1, 1)}),
    ],
)
def test_stages_have_as_many_workers_as_there_is_room_for(
    stages: list[StageModel], machine: Machine, expected: set[tuple[int, ...]]
) -> None:
    assert set(ways(stages, machine)) == expected


def test_stages_that_take_more_processors_than_there_are_are_slower() -> None:
    models, factor = slowed([stage(2.0), stage(1.0)], Machine(2, 1 << 40, 8))
    assert factor == 1.5
    assert [model.line.fixed for model in models] == [0.015, 0.015]
    assert slowed([stage(1.0), stage(0.5)], Machine(2, 1 << 40, 8), nums=[3, 2])[1] == 2.0
    assert slowed([stage(1.0)], Machine(2, 1 << 40, 8)) == ([stage(1.0)], 1.0)
