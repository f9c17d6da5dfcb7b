"""What is known of a stage, and the settings that are chosen for it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mosec_asgi.labels import Label
from mosec_asgi.tuning.fit import Line


@dataclass(frozen=True, slots=True)
class StageModel:
    """A stage, as it is simulated.

    Attributes:
        name: the stage's name.
        line: the time of a batch by its number of items, or by their cost.
        labels: what each item of the sample costs here, and its key.
        batched: `forward` takes lists.
        most: the largest batch that was measured.
        by_cost: `line` is by cost.
        pads: the cost of a batch is that of its largest item for each (`sort_by_cost`).
        keyed: only items of the same key share a batch.
        budgeted: `max_batch_cost` may be chosen.
        cpu: processors that a worker takes while it is at work.
        memory: bytes that a worker has.
        fixed_num: workers, where that is not to be chosen; 0 where it is.
    """

    name: str
    line: Line
    labels: Sequence[Label]
    batched: bool
    most: int = 1
    by_cost: bool = False
    pads: bool = False
    keyed: bool = False
    budgeted: bool = False
    cpu: float = 0.0
    memory: int = 0
    fixed_num: int = 0

    @property
    def mean_cost(self) -> float:
        """Of an item."""
        return sum(label.cost for label in self.labels) / len(self.labels)

    def seconds(self, costs: Sequence[int]) -> float:
        """Return the time of a batch of items of such costs."""
        return self.line.at(self.load(costs))

    def load(self, costs: Sequence[int]) -> float:
        """Return what the time of a batch goes by."""
        if not self.by_cost:
            return len(costs)
        return len(costs) * max(costs) if self.pads else sum(costs)

    def capacity(self, choice: Choice) -> float:
        """Return the most items a second that so many workers can do, nearly; no less than they can."""
        size = float(choice.size)
        if choice.budget:
            size = max(1.0, min(size, choice.budget / max(self.mean_cost, 1e-9)))
        return choice.num * size / max(self.line.at(size * self.mean_cost if self.by_cost else size), 1e-9)


class Choice(NamedTuple):
    """The settings of a stage.

    Attributes:
        num: workers.
        size: `max_batch_size`.
        wait: `max_wait_time`, milliseconds; 0 leaves it to the scheduler.
        budget: `max_batch_cost`; 0 for none.
    """

    num: int = 1
    size: int = 1
    wait: int = 0
    budget: int = 0


Choices = tuple[Choice, ...]


def capacity(models: Sequence[StageModel], choices: Choices) -> float:
    """Return the most calls a second that a pipeline can do, nearly; no less than it can."""
    return min(model.capacity(choice) for model, choice in zip(models, choices, strict=True))
