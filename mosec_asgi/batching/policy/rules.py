"""What decides which task of a stage is next, and which share a batch, where that is not the order of arrival. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Rules:
    """How the tasks of a stage are put in order and into batches.

    Attributes:
        max_cost: the most that the tasks of a batch may cost together; a task above it runs alone. 0 for no bound.
        keyed: only tasks of equal keys share a batch.
        by_cost: a batch is of tasks of like cost, and costs as many times the largest as it has tasks: padding.
        ageing: seconds that a task waits until it is worth as much as one of the next higher priority.
        weights: of tenants, by their names; 1 for those that are not here.
    """

    max_cost: int = 0
    keyed: bool = False
    by_cost: bool = False
    ageing: float = 1.0
    weights: Mapping[str, float] = field(default_factory=dict)

    @property
    def sums_costs(self) -> bool:
        """Whether batches are full by what all that waits costs together.

        Where keys or like costs part what waits, a queue of as much as a batch makes several that are far from full.
        """
        return bool(self.max_cost) and not (self.keyed or self.by_cost)

    @property
    def plain(self) -> bool:
        """Whether they say no more than the order of arrival, as long as no task brings a priority or a tenant."""
        return not (self.max_cost or self.keyed or self.by_cost)
