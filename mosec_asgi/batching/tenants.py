"""Whose turn it is among the tenants of a stage: deficit round robin, with a bounded allowance. Pure.

In each round a tenant may spend as much as its weight, and what it does not spend counts for its next task; a task that
costs more waits for as many rounds as it takes (Shreedhar and Varghese, "Efficient fair queuing using deficit round
robin", IEEE/ACM Transactions on Networking 4(3), 1996). The round in which a task's turn comes follows from what its
tenant has asked for before, so it is computed once, as the task comes, and the tasks stand in order of their rounds.
So the order costs a search in a sorted list, however many tenants there are, and fits any policy that takes tasks from
wherever they stand.

*What is saved.* A tenant that asks for less than its share saves what it does not use, up to the cost of `SAVED` usual
tasks, as a token bucket does. When it comes again, its turns are in rounds that are over, so before those of all who
have had their share: also where it brings several tasks, which would else wait for one of the others in between. In any
span of time a tenant gets its share and what it had saved at most, so that nobody waits for more than that of each
other tenant beside the turns of both.

The round that is served is that of the first task that waits, not the latest of which a task was taken: a batch of like
costs holds some from far behind, and their round is not yet the turn of those who come now.

The usual cost is a geometric mean of what was served. So one task of an extreme cost says next to nothing, and one that
is cancelled nothing.

What is settled before its turn is given back, so that nobody's share is lost with calls that expire. The next task
stands behind those that wait; once none does, no more is left than can be saved.

The number of tenants that are told apart is bounded, because a client may choose its name: beyond it all others are one
tenant, until some have nothing waiting and have saved all that can be saved. As that is how a new one begins, names
that change bring no more turns than as many that stay.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from typing import NamedTuple

from mosec_asgi.batching.average import MovingAverage

MOST_TENANTS = 256
# Of those beyond the bound. No tenant that a client names has it.
OTHERS = "\0others"
# Tasks of the usual cost that a tenant may save. With fewer, those of a light tenant that come together wait for heavy
# ones in between (`make policies`); with more, a burst would hold up others for longer.
SAVED = 8
# The round of tasks that had their turn and were lost with their worker.
AGAIN = -1
# The weight of the newest task in the usual cost.
SMOOTHING = 0.05


class Place(NamedTuple):
    """How far a tenant has come.

    Attributes:
        round: up to which it has had what it asked for.
        credit: what is left of it for its next task.
    """

    round: int
    credit: float

    def is_past(self, other: Place) -> bool:
        """Whether a tenant at this place has had more than it would have at another one."""
        return (self.round, -self.credit) > (other.round, -other.credit)

    def after(self, cost: int, weight: float) -> Place:
        """Return the place after one more task."""
        short = cost - self.credit
        rounds = math.ceil(short / weight) if short > 0 else 0
        return Place(self.round + rounds, self.credit + rounds * weight - cost)

    def not_before(self, turn: int, weight: float) -> Place:
        """Return the place from which no task has its turn before `turn`, with as much to spend until then."""
        return self if turn <= self.round else Place(turn, self.credit + (turn - self.round) * weight)

    def even(self, weight: float) -> Place:
        """Return the same place with the credit of no more than one round."""
        back = min(int(self.credit // weight), self.round)
        return self if self.credit <= weight else Place(self.round - back, self.credit - back * weight)


class Tenant:
    """What a tenant has asked for.

    Attributes:
        weight: what it may spend in a round.
        place: how far it has come.
        turns: the rounds of its tasks that wait, in order.
    """

    __slots__ = ("place", "turns", "weight")

    def __init__(self, weight: float) -> None:
        self.weight = weight
        # Credit of more than a round counts as earlier rounds, whatever turns wait.
        self.place = Place(0, weight)
        self.turns: list[int] = []


class Tenants:
    """The tenants of a stage.

    Attributes:
        round: that is being served.
    """

    __slots__ = ("_log_cost", "_tenants", "_weights", "round")

    def __init__(self, weights: Mapping[str, float]) -> None:
        """Begin with the first round.

        Args:
            weights: of tenants by their names, above 0; 1 for those that are not here.
        """
        self.round = 0
        self._weights = weights
        self._tenants: dict[str, Tenant] = {}
        # Of the cost of tasks, the logarithm.
        self._log_cost = MovingAverage(SMOOTHING)

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
        tenant = self._known(name)
        place = self._from(tenant).after(cost, tenant.weight)
        tenant.place = place.even(tenant.weight)
        tenant.turns.append(place.round)
        return place.round

    def returned(self, name: str) -> int:
        """Note a task that has had its turn and waits again; return its round, which is before all others."""
        self._known(name).turns.insert(0, AGAIN)
        return AGAIN

    def turn(self, name: str, cost: int) -> int:
        """Return the round in which the turn of a task would come that came now."""
        tenant = self._tenants.get(name) or Tenant(self._weights.get(name, 1.0))
        return self._from(tenant).after(cost, tenant.weight).round

    def served(self, name: str, cost: int, turn: int, first: int) -> None:
        """Note that a task has been begun.

        Args:
            name: of its tenant.
            cost: of it.
            turn: the round in which its turn was.
            first: that of the first task that waited, which may be another one.
        """
        self.round = max(self.round, first)
        if turn != AGAIN:
            self._log_cost.add(math.log(cost))
        self._gone(name, turn)

    def left(self, name: str, cost: int, turn: int) -> None:
        """Note that a task has been settled before its turn, which was to be in the round `turn`."""
        tenant = self._gone(name, turn)
        if turn != AGAIN:
            place = tenant.place
            tenant.place = Place(place.round, place.credit + cost).even(tenant.weight)

    def _known(self, name: str) -> Tenant:
        tenant = self._tenants.get(name)
        if tenant is None:
            tenant = self._tenants[name] = Tenant(self._weights.get(name, 1.0))
        return tenant

    def _gone(self, name: str, turn: int) -> Tenant:
        tenant = self._tenants[name]
        del tenant.turns[bisect_left(tenant.turns, turn)]
        return tenant

    def _from(self, tenant: Tenant) -> Place:
        """Return the place from which a tenant goes on: its own, or where one begins that has saved all it can."""
        first = self._first(tenant.weight)
        place = first if first.is_past(tenant.place) else tenant.place
        # Behind all of its own that wait, of which the order stays.
        return place.not_before(tenant.turns[-1], tenant.weight) if tenant.turns else place

    def _first(self, weight: float) -> Place:
        """Return the place of a tenant of a weight that has saved all it can."""
        # Rounded, because a logarithm is not exact.
        saved = SAVED * round(math.exp(self._log_cost.value or 0.0), 6)
        rounds = min(self.round, math.ceil(saved / weight))
        return Place(self.round - rounds, min(weight, weight - rounds * weight + saved))

    def _forget_idle(self) -> None:
        """Forget those who have nothing waiting and have saved all they can: they begin at the same place again."""
        self._tenants = {
            name: each
            for name, each in self._tenants.items()
            if each.turns or each.place.is_past(self._first(each.weight))
        }
