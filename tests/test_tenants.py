"""Turns of tenants: deficit round robin, with a bound on how many there are."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from mosec_asgi.batching.tenants import MOST_TENANTS, OTHERS, Tenants

COSTS = st.lists(st.integers(1, 50), min_size=1, max_size=60)


@given(a=COSTS, b=COSTS, weight=st.sampled_from((0.5, 1.0, 3.0)))
def test_what_tenants_get_differs_by_one_turn_at_most(a: list[int], b: list[int], weight: float) -> None:
    tenants = Tenants({"a": weight})
    turns = [(tenants.came("a", cost), 0, cost) for cost in a] + [(tenants.came("b", cost), 1, cost) for cost in b]
    spent = [0.0, 0.0]
    total = [float(sum(a)), float(sum(b))]
    most = max(*a, *b)
    for _, who, cost in sorted(turns, key=lambda turn: turn[0]):
        if 0.0 < spent[0] < total[0] and 0.0 < spent[1] < total[1]:
            # The bound of the source: in any span the shares differ by the quantum and the largest costs.
            assert abs(spent[0] / weight - spent[1]) <= 2 * most / min(weight, 1.0) + 2
        spent[who] += cost


def test_the_number_of_tenants_has_a_bound() -> None:
    tenants = Tenants({})
    names = Counter(tenants.name(f"tenant-{n}") for n in range(10))
    assert set(names) == {f"tenant-{n}" for n in range(10)}
    for n in range(10 * MOST_TENANTS):
        tenants.came(tenants.name(f"tenant-{n}"), 1)
    assert len(tenants) <= MOST_TENANTS + 1
    assert tenants.name("one more") == OTHERS


def test_tenants_whose_turn_is_over_make_room_for_others() -> None:
    tenants = Tenants({})
    for n in range(MOST_TENANTS):
        tenants.served(f"tenant-{n}", 1, tenants.came(f"tenant-{n}", 1))
    tenants.served("tenant-0", 1, tenants.came("tenant-0", 1))
    assert tenants.name("one more") == "one more"


def test_the_greediest_has_the_most_waiting_for_its_weight() -> None:
    tenants = Tenants({"gold": 4.0})
    for _ in range(8):
        turn = tenants.came("gold", 1)
    for _ in range(3):
        tenants.came("free", 1)
    assert (tenants.demand("gold"), tenants.demand("free"), tenants.demand("nobody")) == (2.0, 3.0, 0.0)
    tenants.served("gold", 1, turn)
    assert tenants.demand("gold") == 1.75
