"""How many workers of each stage the machine takes. Pure.

What is assumed: a worker takes the processors that it took alone, while it is at work; workers that have processors of
their own do not slow each other; the server itself takes little. For what workers share beside processors and memory (a
GPU, a disk, a service that they ask) nothing is known, so that stages have no more than `most` workers.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mosec_asgi.tuning.model import StageModel

# A worker that takes less is not bound by processors.
LITTLE_CPU = 0.02
# Of the memory, the rest is for the server, its shared memory and the system.
MEMORY_SHARE = 0.8
# Ways to divide the machine that are looked at: the pipelines of more stages have more.
MOST_WAYS = 24


@dataclass(frozen=True, slots=True)
class Machine:
    """What there is.

    Attributes:
        cores: processors.
        memory: bytes.
        most: workers of a stage.
    """

    cores: float
    memory: int
    most: int


def slowed(
    models: Sequence[StageModel], machine: Machine, nums: Sequence[int] | None = None
) -> tuple[list[StageModel], float]:
    """Return the stages as they are where their workers take more processors than there are; and by what factor.

    Where the machine has room for all, the factor is 1.

    Args:
        models: the stages.
        machine: what there is.
        nums: workers of each; None for the fewest.
    """
    nums = [max(1, model.fixed_num) for model in models] if nums is None else nums
    factor = max(1.0, _cpu(models, nums) / machine.cores)
    if factor <= 1.0:
        return list(models), 1.0
    lines = [replace(model.line, fixed=model.line.fixed * factor, slope=model.line.slope * factor) for model in models]
    return [replace(model, line=line) for model, line in zip(models, lines, strict=True)], factor


def ways(models: Sequence[StageModel], machine: Machine) -> list[tuple[int, ...]]:
    """Return how many workers each stage may have, as far as no stage could have one more; most promising first."""
    least = tuple(max(1, model.fixed_num) for model in models)
    if not _has_room(models, least, machine):
        return [least]
    tops = [_top(models, least, place, machine) for place in range(len(models))]
    found = [
        nums
        for nums in itertools.islice(_within(least, tops), 20_000)
        if _has_room(models, nums, machine)
        and not any(
            nums[place] < tops[place] and _has_room(models, _one_more(nums, place), machine)
            for place in range(len(models))
        )
    ]
    found.sort(key=lambda nums: -_promise(models, nums))
    return found[:MOST_WAYS] or [least]


def _within(least: Sequence[int], tops: Sequence[int]) -> itertools.product[tuple[int, ...]]:
    return itertools.product(*(range(low, top + 1) for low, top in zip(least, tops, strict=True)))


def _top(models: Sequence[StageModel], least: tuple[int, ...], place: int, machine: Machine) -> int:
    """Return the most workers of a stage, where the others have as few as they can."""
    nums = least
    while not models[place].fixed_num and nums[place] < machine.most:
        more = _one_more(nums, place)
        if not _has_room(models, more, machine):
            break
        nums = more
    return nums[place]


def _one_more(nums: tuple[int, ...], place: int) -> tuple[int, ...]:
    return (*nums[:place], nums[place] + 1, *nums[place + 1 :])


def _has_room(models: Sequence[StageModel], nums: Sequence[int], machine: Machine) -> bool:
    memory = sum(model.memory * num for model, num in zip(models, nums, strict=True))
    # A worker that is measured at 1.03 processors takes one.
    return _cpu(models, nums) <= machine.cores * 1.05 and memory <= machine.memory * MEMORY_SHARE


def _cpu(models: Sequence[StageModel], nums: Sequence[int]) -> float:
    return sum(num * (model.cpu if model.cpu > LITTLE_CPU else 0.0) for model, num in zip(models, nums, strict=True))


def _promise(models: Sequence[StageModel], nums: Sequence[int]) -> float:
    """Return the rate of a pipeline with the largest batches."""
    return min(
        num * model.most / max(model.line.at(model.most * (model.mean_cost if model.by_cost else 1)), 1e-9)
        for model, num in zip(models, nums, strict=True)
    )
