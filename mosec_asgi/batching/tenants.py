"""Whose turn it is among the tenants of a stage: deficit round robin. Pure.

In each round a tenant may spend as much as its weight, and what it does not spend counts for its next task; a task that
costs more waits for as many rounds as it takes (Shreedhar and Varghese, "Efficient fair queuing using deficit round
robin", IEEE/ACM Transactions on Networking 4(3), 1996). The round in which a task's turn comes follows from what its
tenant has asked for before, so it is computed once, as the task comes, and the tasks stand in order of their rounds.
So the order costs a search in a sorted list, however many tenants there are, and fits any policy that takes tasks from
wherever they stand.

A tenant that has nothing waiting joins the round that is being served, with what it has not spent of it: it does not
save up for later, and others do not fall behind because of it. What is settled before its turn is given back.

The number of tenants that are told apart is bounded, because a client may choose its name: beyond it all others are one
tenant, until some have been idle for a round.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

MOST_TENANTS = 256
# Of those beyond the bound. No tenant that a client names has it.
OTHERS = "\0others"


class Tenant:
    """What a tenant has asked for.

    Attributes:
        weight: what it may spend in a round.
        round: in which its latest task's turn comes.
        credit: what is left of it for its next task.
        waiting: the cost of its tasks that wait.
        tasks: how many these are.
    """

    __slots__ = ("credit", "round", "tasks", "waiting", "weight")

    def __init__(self, weight: float, first: int) -> None:
        self.weight = weight
        self.round = first
        self.credit = weight
        self.waiting = 0
        self.tasks = 0

    @property
    def demand(self) -> float:
        """The cost of what waits, in relation to the weight: the tenant with the most is the greediest."""
        return self.waiting / self.weight


class Tenants:
    """The tenants of a stage.

    Attributes:
        round: that is being served.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        """Begin with the first round.

        Args:
            weights: of tenants by their names, above 0; 1 for those that are not here.
        """
        self.round = 0
        self._weights = weights
        self._tenants: dict[str, Tenant] = {}

    def __len__(self) -> int:
        return len(self._tenants)

    def name(self, tenant: str) -> str:
        """Return the name under which a tenant is known from now on: its own, or that of all others."""
        if tenant in self._tenants or len(self._tenants) < MOST_TENANTS:
            return tenant
        self._forget_idle()
        return tenant if len(self._tenants) < MOST_TENANTS else OTHERS

    def came(self, name: str, cost: int) -> int:
        """Note a task of a tenant known as `name`; return the round in which its turn comes."""
        tenant = self._tenants.get(name)
        if tenant is None:
            tenant = self._tenants[name] = Tenant(self._weights.get(name, 1.0), self.round)
        elif tenant.round < self.round:
            tenant.round, tenant.credit = self.round, tenant.weight
        tenant.waiting += cost
        tenant.tasks += 1
        short = cost - tenant.credit
        if short > 0:
            rounds = math.ceil(short / tenant.weight)
            tenant.round += rounds
            tenant.credit += rounds * tenant.weight
        tenant.credit -= cost
        return tenant.round

    def served(self, name: str, cost: int, turn: int) -> None:
        """Note that a task has been begun whose turn was in the round `turn`."""
        self.round = max(self.round, turn)
        self._gone(name, cost)

    def left(self, name: str, cost: int) -> None:
        """Note that a task has been settled before its turn."""
        self._gone(name, cost).credit += cost

    def demand(self, name: str) -> float:
        """Return what a tenant has waiting, in relation to its weight."""
        tenant = self._tenants.get(name)
        return tenant.demand if tenant is not None else 0.0

    def greediest(self) -> str:
        """Return the tenant that has most waiting in relation to its weight; there must be one."""
        return max(self._tenants, key=self.demand)

    def weight(self, name: str) -> float:
        """Return the weight of a tenant."""
        return self._weights.get(name, 1.0)

    def _gone(self, name: str, cost: int) -> Tenant:
        tenant = self._tenants[name]
        tenant.waiting -= cost
        tenant.tasks -= 1
        return tenant

    def _forget_idle(self) -> None:
        """Forget those whose turn is over and who have nothing waiting: they would begin anew anyway."""
        self._tenants = {name: each for name, each in self._tenants.items() if each.tasks or each.round >= self.round}
