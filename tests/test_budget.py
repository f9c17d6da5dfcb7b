from __future__ import annotations

from mosec_asgi.web.budget import SMALL, Budget


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
