"""The settings of a pipeline that do most at a target, by the simulation. Pure: whoever calls says when to stop.

*At a latency.* What settings are worth is the highest rate at which 99 calls in a hundred are answered within the
target. For each way to divide the machine: coarse batch sizes of all stages together, then one stage after the other
with fine ones, waits and budgets, until nothing gets better. Most candidates cost a fraction of a run: one that could
not do more than the best so far, by its capacity, is not run at all, and one that misses the target at the rate of the
best is dropped as soon as that is sure. At last, workers and waits that gain next to nothing are taken away.

*Throughput alone.* The stage that can do least bounds it, so each is given the fewest workers, and the smallest
batches, by which it keeps up with that one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from mosec_asgi.tuning.model import Choice, Choices, StageModel, capacity
from mosec_asgi.tuning.room import Machine, ways
from mosec_asgi.tuning.simulation import Played, Run, Workload

# Of a pipeline's capacity: above it queues grow for so long that a run would be too short to show it.
MOST_LOAD = 0.97
# The lowest rate that is tried, as a part of the highest.
LEAST_PART = 256
# Rates are found to within this share: at last, and on the way, where another one is better from that on.
PRECISION = 0.005
ROUGH = 0.01
# What fewer workers, or no wait, may lose.
SIMPLER = 0.015
# Calls of a run: so many that a queue which grows near the capacity shows, and the fewest whose p99 says something.
CALLS = 10_000
LEAST_CALLS = 2000
_ROUNDS = 4
# Combinations of coarse sizes that are tried together.
_MOST_TOGETHER = 150
_WAITS = (0.05, 0.1, 0.2, 0.4)
_MOST_WAIT = 1000
CURVE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, MOST_LOAD)


@dataclass(frozen=True, slots=True)
class Found:
    """What was found.

    Attributes:
        choices: the settings.
        rate: calls a second at the target; 0 where no settings meet it.
        played: the run at that rate; where the target cannot be met, that of the lowest p99.
        tried: how many settings were looked at.
        whole: the search came to its end.
    """

    choices: Choices
    rate: float
    played: Played
    tried: int
    whole: bool


class Search:
    """A search over the settings of a pipeline."""

    def __init__(
        self,
        models: Sequence[StageModel],
        machine: Machine,
        workload: Workload,
        target: float,
        may_go_on: Callable[[], bool] = lambda: True,
    ) -> None:
        """Prepare.

        Args:
            models: the stages.
            machine: how many workers there may be.
            workload: what comes.
            target: seconds; infinite for throughput alone.
            may_go_on: False ends the search with the best that it has.
        """
        self._models = models
        self._machine = machine
        self._workload = workload
        self._target = target
        self._may_go_on = may_go_on
        self._tried = 0

    def best(self) -> Found:
        """Return the best settings."""
        return self._most() if math.isinf(self._target) else self._within()

    def rate_of(self, choices: Choices, floor: float = 0.0, precision: float = PRECISION) -> float:
        """Return the calls a second at the target, to within a share; 0 where it is not above `floor`, or never met."""
        self._tried += 1
        top = MOST_LOAD * capacity(self._models, choices)
        if math.isinf(self._target):
            return self.saturated(choices)
        if top <= floor or (floor and not self._meets(choices, floor)):
            return 0.0
        if self._meets(choices, top):
            return top
        low, high = floor, top
        if not low:
            low = top / LEAST_PART
            if not self._meets(choices, low):
                return 0.0
        while high > low * (1 + precision) and self._may_go_on():
            middle = math.sqrt(low * high)
            if self._meets(choices, middle):
                low = middle
            else:
                high = middle
        return low

    def saturated(self, choices: Choices) -> float:
        """Return the calls a second of a pipeline that always has more to do."""
        return self.play(choices, 1.5 * capacity(self._models, choices), math.inf).per_second

    def play(self, choices: Choices, rate: float, target: float | None = None) -> Played:
        """Run the pipeline at a rate."""
        target = self._target if target is None else target
        return Run(self._models, choices, self._workload, rate, target=target).play()

    def curve(self, choices: Choices) -> list[Played]:
        """Return runs from little load to nearly all that the pipeline can do."""
        top = capacity(self._models, choices)
        return [self.play(choices, share * top, math.inf) for share in CURVE]

    # -- at a latency ------------------------------------------------------------------------------------------------

    def _meets(self, choices: Choices, rate: float) -> bool:
        return self.play(choices, rate).met

    def _better(self, choices: Choices, rate: float) -> float:
        """Return the rate of settings that are clearly better than a rate; 0 for others."""
        return self.rate_of(choices, rate * (1 + ROUGH), ROUGH)

    def _within(self) -> Found:
        best, rate = None, 0.0
        for nums in ways(self._models, self._machine):
            if not self._may_go_on():
                break
            for start in self._starts(nums, rate):
                if (gained := self._better(start, rate)) > rate:
                    best, rate = start, gained
            if best is not None and tuple(choice.num for choice in best) == nums:
                best, rate = self._climbed(best, rate)
        if best is None:
            return self._unmet()
        whole = self._may_go_on()
        if whole:
            best = self._simpler(best, rate)
            # What is simpler has been seen to do that much, and may do more.
            rate = max(rate * (1 - SIMPLER), self.rate_of(best))
        return Found(best, rate, self.play(best, rate, math.inf), self._tried, whole)

    def _starts(self, nums: Sequence[int], floor: float) -> Iterator[Choices]:
        """Yield settings of coarse batch sizes, without waits, most promising first."""
        coarse = [[size for size in sizes(model) if size & (size - 1) == 0 or size == model.most] or [model.most]
                  for model in self._models]  # fmt: skip
        while math.prod(map(len, coarse)) > _MOST_TOGETHER:
            longest = max(coarse, key=len)
            if len(longest) < 2:
                break
            longest[:] = longest[::2]
        found = [
            tuple(Choice(num, size) for num, size in zip(nums, chosen, strict=True))
            for chosen in itertools.product(*coarse)
        ]
        found.sort(key=lambda choices: -capacity(self._models, choices))
        # The first that meets the target makes the rest cheap, and batches in the middle mostly do.
        for choices in [*found[len(found) // 2 :][:1], *found]:
            if not self._may_go_on():
                return
            if MOST_LOAD * capacity(self._models, choices) > floor:
                yield choices

    def _climbed(self, best: Choices, rate: float) -> tuple[Choices, float]:
        for _ in range(_ROUNDS):
            before = rate
            for place, model in enumerate(self._models):
                options = self._options(model, best[place].num)
                options.sort(key=lambda option, model=model: -model.capacity(option))  # type: ignore[misc]
                for option in options:
                    if not self._may_go_on():
                        return best, rate
                    other = _with(best, place, option)
                    if other != best and (gained := self._better(other, rate)) > rate:
                        best, rate = other, gained
            if rate <= before:
                break
        return best, rate

    def _options(self, model: StageModel, num: int) -> list[Choice]:
        if not model.batched:
            return [Choice(num)]
        waits = [0, *sorted({min(_MOST_WAIT, round(1000 * self._target * part)) for part in _WAITS} - {0})]
        found = [Choice(num, size, wait) for size in sizes(model) for wait in waits]
        if model.budgeted:
            found += [
                Choice(num, model.most, wait, max(1, round(size * model.mean_cost)))
                for size in sizes(model)
                for wait in waits
            ]
        return found

    def _simpler(self, best: Choices, rate: float) -> Choices:
        """Take away what gains next to nothing: waits, workers, budgets."""
        enough = rate * (1 - SIMPLER)
        for place in range(len(best)):
            for fields in ({"wait": 0}, {"budget": 0}):
                other = _with(best, place, best[place]._replace(**fields))
                if other != best and self._can(other, enough):
                    best = other
            while best[place].num > 1 and not self._models[place].fixed_num:
                other = _with(best, place, best[place]._replace(num=best[place].num - 1))
                if not self._can(other, enough):
                    break
                best = other
        return best

    def _can(self, choices: Choices, rate: float) -> bool:
        self._tried += 1
        return MOST_LOAD * capacity(self._models, choices) >= rate and self._meets(choices, rate)

    def _unmet(self) -> Found:
        """Return the settings of the lowest p99, at next to no load."""
        nums = ways(self._models, self._machine)[0]
        found: list[tuple[Played, Choices]] = []
        for wait in (0, 1):
            choices = tuple(
                Choice(num, sizes(model)[0], wait if model.batched else 0)
                for num, model in zip(nums, self._models, strict=True)
            )
            rate = MOST_LOAD * capacity(self._models, choices) / LEAST_PART
            found.append((self.play(choices, rate, math.inf), choices))
        played, choices = min(found, key=lambda pair: pair[0].p99)
        return Found(choices, 0.0, played, self._tried, self._may_go_on())

    # -- throughput alone --------------------------------------------------------------------------------------------

    def _most(self) -> Found:
        def bound(nums: Sequence[int]) -> float:
            return min(self._top(model, num) for model, num in zip(self._models, nums, strict=True))

        nums = max(ways(self._models, self._machine), key=bound)
        enough = bound(nums) * (1 - SIMPLER)
        choices = tuple(self._least(model, num, enough) for model, num in zip(self._models, nums, strict=True))
        rate = self.saturated(choices)
        return Found(choices, rate, self.play(choices, 0.9 * rate, math.inf), self._tried, self._may_go_on())

    def _top(self, model: StageModel, num: int) -> float:
        self._tried += 1
        return max(model.capacity(Choice(num, size)) for size in sizes(model))

    def _least(self, model: StageModel, num: int, enough: float) -> Choice:
        """Return the fewest workers, and then the smallest batches, that do `enough` a second."""
        while not model.fixed_num and num > 1 and self._top(model, num - 1) >= enough:
            num -= 1
        size = next((size for size in sizes(model) if model.capacity(Choice(num, size)) >= enough), model.most)
        return Choice(num, size)


def sizes(model: StageModel) -> list[int]:
    """Return the batch sizes that are looked at: powers of two and those in the middle of them, up to the largest."""
    if not model.batched:
        return [1]
    most = max(2, model.most)
    doubled = [2**power for power in range(1, most.bit_length())]
    return sorted({size for each in doubled for size in (each, each * 3 // 2) if size <= most} | {most})


def _with(choices: Choices, place: int, choice: Choice) -> Choices:
    return (*choices[:place], choice, *choices[place + 1 :])
