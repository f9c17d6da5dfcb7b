"""Turns of tenants: deficit round robin, with a bound on how many there are."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from mosec_asgi.batching.tenants import AGAIN, MOST_TENANTS, OTHERS, SAVED, Tenants

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
        serve(tenants, f"tenant-{n}", 1)
    serve(tenants, "tenant-0", SAVED)
    assert tenants.name("one more") == OTHERS, "the others would save turns by being forgotten"
    serve(tenants, "tenant-0", 1)
    assert tenants.name("one more") == "one more"


def test_names_that_change_get_no_more_than_as_many_that_stay() -> None:
    tenants = Tenants({})
    rounds_of(tenants, "honest", 1)
    names = 0
    for turn in range(1, 51):
        # Before each task of the honest one, as many of others as come before it.
        for _ in range(50 * MOST_TENANTS):
            name = tenants.name(f"name-{names}")
            if tenants.turn(name, 1) >= turn:
                if name == OTHERS:
                    break
                names += 1
                continue
            serve(tenants, name, 1)
            names += 1
        else:
            raise AssertionError("they keep the honest one waiting")
        serve(tenants, "honest", 1)
    assert names <= 50 * (MOST_TENANTS + 1) + SAVED * (MOST_TENANTS + 1)


def rounds_of(tenants: Tenants, name: str, count: int, cost: int = 1) -> list[int]:
    return [tenants.came(name, cost) for _ in range(count)]


def serve(tenants: Tenants, name: str, count: int, cost: int = 1) -> int:
    """Let a tenant have so many tasks, one after the other; return the round of the last."""
    for _ in range(count):
        turn = tenants.came(name, cost)
        tenants.served(name, cost, turn, turn)
    return tenants.round


@given(
    weight=st.sampled_from((0.25, 1.0, 3.0, 50.0)),
    others=st.integers(0, 200),
    cost=st.sampled_from((1, 7, 500)),
)
def test_who_asks_for_less_saves_so_many_tasks_at_most(weight: float, others: int, cost: int) -> None:
    tenants = Tenants({"light": weight})
    now = serve(tenants, "heavy", others, cost)
    ours = rounds_of(tenants, "light", 100, cost)
    assert ours == sorted(ours)
    early = sum(turn < now for turn in ours)
    assert early <= SAVED
    if now >= cost * (SAVED / weight + 1):
        # A round may hold several, so that some of them are in the one that is served.
        assert early == SAVED


def test_a_turn_that_is_asked_for_is_that_of_a_task_that_comes() -> None:
    tenants = Tenants({"gold": 3.0})
    for _ in range(10):
        for name in ("gold", "free", "gold"):
            assert tenants.turn(name, 2) == tenants.came(name, 2)
    assert tenants.turn("new", 1) == tenants.came("new", 1)


def test_what_is_settled_from_the_end_gives_its_turn_to_the_next_and_all_of_it_leaves_nothing() -> None:
    tenants = Tenants({})
    turns = rounds_of(tenants, "a", 100)
    for turn in reversed(turns[10:]):
        tenants.left("a", 1, turn)
    assert tenants.turn("a", 1) == turns[10]
    for turn in turns[:10]:
        tenants.left("a", 1, turn)
    assert tenants.turn("a", 1) == turns[0], "as if it had asked for nothing"


def test_the_next_task_of_a_tenant_stands_behind_those_that_wait() -> None:
    tenants = Tenants({})
    turns = rounds_of(tenants, "a", 100)
    for turn in turns[:50]:
        tenants.left("a", 1, turn)
    assert tenants.came("a", 1) == turns[-1]


def test_who_cancels_all_but_the_last_has_saved_no_more_than_others() -> None:
    tenants = Tenants({})
    turns = rounds_of(tenants, "a", 1000)
    for turn in turns[:-1]:
        tenants.left("a", 1, turn)
    serve(tenants, "b", 1000)
    tenants.served("a", 1, turns[-1], turns[-1])
    early = sum(turn <= tenants.round for turn in rounds_of(tenants, "a", 1000))
    assert early <= SAVED + 1


@given(cost=st.sampled_from((10**5, 10**9)), cancelled=st.integers(0, 50))
def test_one_task_of_an_extreme_cost_does_not_have_tenants_save_more(cost: int, cancelled: int) -> None:
    tenants = Tenants({})
    serve(tenants, "b", 200)
    for _ in range(cancelled):
        tenants.left("a", cost, tenants.came("a", cost))
    serve(tenants, "c", 1, cost)
    now = tenants.round
    early = sum(turn < now for turn in rounds_of(tenants, "a", 200))
    assert SAVED <= early <= 3 * SAVED


def test_the_round_is_that_of_the_first_that_waits_though_others_are_taken() -> None:
    tenants = Tenants({})
    turns = rounds_of(tenants, "heavy", 1000)
    tenants.served("heavy", 1, turns[0], turns[0])
    tenants.served("heavy", 1, turns[-1], turns[1])
    assert tenants.came("light", 1) <= turns[1]


def test_what_comes_back_from_a_dead_worker_is_before_all_others_and_is_not_charged_again() -> None:
    tenants = Tenants({})
    serve(tenants, "a", 1)
    expected = tenants.turn("a", 1)
    assert tenants.returned("a") == AGAIN < 0
    assert tenants.turn("a", 1) == expected
    tenants.left("a", 1, AGAIN)
    assert tenants.turn("a", 1) == expected
