from __future__ import annotations

from mosec_asgi.web.budget import SMALL, Budget, UnreadBudget


def test_what_finds_no_room_takes_none() -> None:
    budget = Budget(3 * SMALL)
    assert budget.take(2 * SMALL)
    assert not budget.has_room(2 * SMALL)
    assert not budget.take(2 * SMALL)
    assert budget.used == 2 * SMALL


def test_a_small_body_always_has_room_and_no_longer_when_it_grows_large() -> None:
    budget = Budget(2 * SMALL)
    assert budget.take(2 * SMALL)
    assert budget.has_room(SMALL)
    assert budget.take(SMALL)
    assert not budget.take(1, held=SMALL)
    budget.give(3 * SMALL)
    assert budget.used == 0


class Connection:
    """One whose client has taken all but so many bytes."""

    def __init__(self, size: int) -> None:
        self.size = size

    def size_unread(self) -> int:
        return self.size


def held(budget: UnreadBudget, connection: Connection, now: float) -> list[object]:
    return list(budget.hold(connection, connection.size, now))


def test_unread_answers_have_room_up_to_the_limit_and_one_more() -> None:
    budget = UnreadBudget(100, 10)
    first, second, third = Connection(60), Connection(60), Connection(5)
    assert held(budget, first, 0.0) == []
    assert held(budget, second, 1.0) == []
    assert held(budget, third, 2.0) == [first]
    assert budget.used == 65


def test_those_are_ended_that_have_taken_least_for_their_time() -> None:
    budget = UnreadBudget(100, 10)
    silent, reads, young = Connection(40), Connection(50), Connection(10)
    held(budget, reads, 0.0)
    held(budget, silent, 1.0)
    held(budget, young, 4.0)
    # It has taken more than it had to, and is older than the others.
    reads.size = 10
    silent.size = 75
    assert held(budget, Connection(20), 5.0) == []
    assert held(budget, Connection(20), 5.0) == [silent]


def test_what_was_taken_or_is_gone_is_counted_no_more() -> None:
    budget = UnreadBudget(100, 10)
    first = Connection(60)
    held(budget, first, 0.0)
    budget.release(first)
    budget.release(first)
    assert budget.used == 0
    assert held(budget, Connection(60), 0.0) == held(budget, Connection(40), 0.0) == []


def test_what_clients_take_makes_room() -> None:
    budget = UnreadBudget(100, 10)
    first = Connection(90)
    held(budget, first, 0.0)
    first.size = 10
    assert held(budget, Connection(50), 0.0) == held(budget, Connection(50), 0.0) == []
    assert budget.used == 110


def test_a_large_answer_drives_nobody_out_as_it_comes_and_has_no_room_beside_what_lay_there_before() -> None:
    budget = UnreadBudget(100, 10)
    small, large = Connection(50), Connection(500)
    held(budget, small, 0.0)
    assert held(budget, large, 1.0) == []
    large.size = 501
    assert list(budget.hold(large, 1, 1.0)) == [small, large]
    assert budget.used == 0


def test_a_flood_of_unread_answers_does_not_look_at_all_connections_for_each() -> None:
    looks = 0

    class Counted(Connection):
        def size_unread(self) -> int:
            nonlocal looks
            looks += 1
            return self.size

    budget = UnreadBudget(1000, 10)
    ended = sum(len(budget.hold(Counted(1), 1, float(number))) for number in range(10_000))
    assert 9000 <= ended < 10_000
    assert looks < 10_000 * 10
