"""How many calls `map` keeps in flight."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mosec_asgi.calls.window import Window


def test_it_begins_with_what_the_workers_can_run_at_once_and_never_exceeds_the_most() -> None:
    assert Window(4, 10, 3.0).size == 4
    assert Window(20, 10, 3.0).size == 10
    assert Window(0, 0, 3.0).size == 1


def test_it_grows_a_little_with_each_round_of_quick_answers_up_to_the_most() -> None:
    window = Window(16, 24, 3.0)
    sizes = []
    for _ in range(5):
        sizes.append(window.size)
        for _ in range(window.size):
            window.answered(0.1)
    assert sizes == [16, 18, 22, 24, 24]


def test_it_stands_where_answers_take_half_of_their_time_and_shrinks_where_they_take_more() -> None:
    window = Window(10, 100, 1.0)
    window.answered(0.6)
    assert window.size == 10
    window.answered(0.8)
    assert window.size == 9
    for _ in range(100):
        window.answered(0.8)
    assert window.size == 1


def test_after_a_refusal_there_are_no_more_than_there_were_beside_it() -> None:
    window = Window(10, 100, 1.0)
    window.refused(7)
    assert window.size == 7
    window.refused(9)
    assert window.size == 7, "a refusal never lets it grow"
    window.refused(0)
    assert window.size == 1


def test_calls_without_a_limit_of_time_let_it_grow() -> None:
    window = Window(1, 3, float("inf"))
    window.answered(1e9)
    assert window.size == 2


@given(st.lists(st.one_of(st.floats(0, 10), st.integers(0, 50))), st.integers(1, 50), st.integers(1, 50))
def test_whatever_happens_there_is_room_for_one_and_for_no_more_than_the_most(
    history: list[float | int], start: int, most: int
) -> None:
    window = Window(start, most, 1.0)
    for event in history:
        if isinstance(event, int):
            window.refused(event)
        else:
            window.answered(event)
        assert 1 <= window.size <= most
