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

What is settled before its turn is given back.

The number of tenants that are told apart is bounded, because a client may choose its name: beyond it all others are one
tenant, until some have been idle for a round. Who is forgotten and comes again is taken to have saved all that
can be saved: whoever may choose among so many names can be many tenants anyway.
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
        round: in which its latest task's turn comes.
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
        self.place = Place(0, weight)
        self.turns: list[int] = []


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
        self._usual_cost = MovingAverage(SMOOTHING)

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
        self._usual_cost.add(cost)
        tenant = self._known(name)
        tenant.place = self._from(tenant).after(cost, tenant.weight)
        tenant.turns.append(tenant.place.round)
        return tenant.place.round

    def returned(self, name: str) -> int:
        """Note a task that has had its turn and waits again; return its round, which is before all others."""
        self._known(name).turns.insert(0, AGAIN)
        return AGAIN

    def turn(self, name: str, cost: int) -> int:
        """Return the round in which the turn of a task would come that came now."""
        tenant = self._tenants.get(name) or Tenant(self._weights.get(name, 1.0))
        return self._from(tenant).after(cost, tenant.weight).round

    def served(self, name: str, turn: int) -> None:
        """Note that a task has been begun whose turn was in the round `turn`."""
        self.round = max(self.round, turn)
        self._gone(name, turn)

    def left(self, name: str, cost: int, turn: int) -> None:
        """Note that a task has been settled before its turn, which was to be in the round `turn`."""
        tenant = self._gone(name, turn)
        if turn == AGAIN:
            return
        place = tenant.place
        credit = place.credit + cost
        # Its next task comes behind all that wait, of which the order stays.
        most = place.round - tenant.turns[-1] if tenant.turns else place.round
        back = min(int(credit // tenant.weight), most)
        tenant.place = Place(place.round - back, credit - back * tenant.weight)

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
        weight = tenant.weight
        saved = SAVED * (self._usual_cost.value or 1.0)
        rounds = min(self.round, math.ceil(saved / weight))
        first = Place(self.round - rounds, min(weight, weight - rounds * weight + saved))
        return first if first.is_past(tenant.place) else tenant.place

    def _forget_idle(self) -> None:
        """Forget those whose turn is over and who have nothing waiting."""
        self._tenants = {n: each for n, each in self._tenants.items() if each.turns or each.place.round >= self.round}
