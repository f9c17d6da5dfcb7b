from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from mosec_asgi.rationing import (
    MOST,
    MOST_AFTER,
    MOST_KINDS,
    MOST_WHOLE,
    NAMES,
    SECONDS,
    WHOLE_SECONDS,
    Rationing,
    Shown,
    Summary,
)

KIND = ("forward", 42)


def ask(rationing: Rationing, count: int, now: float, kind: object = KIND, *, whole: bool = True) -> list[Shown]:
    return [rationing.ask(kind, now, place, whole=whole).shown for place in range(count)]


def test_the_first_faults_are_whole_the_next_are_lines_and_the_rest_is_counted() -> None:
    rationing = Rationing()
    shown = ask(rationing, 2 * MOST, 0.0)
    assert shown == [Shown.WHOLE] * MOST_WHOLE + [Shown.LINE] * (MOST - MOST_WHOLE) + [Shown.NOTHING] * MOST
    assert rationing.due(SECONDS / 2) == []
    assert rationing.next_due() == SECONDS
    assert rationing.due(SECONDS) == [Summary(2 * MOST - 1, MOST, SECONDS)]
    assert rationing.next_due() is None
    assert rationing.due(2 * SECONDS) == []


def test_a_slow_fault_always_has_its_line_and_again_its_traceback_after_a_while() -> None:
    rationing = Rationing()
    shown = [rationing.ask(KIND, float(now), None, whole=True).shown for now in range(int(2 * WHOLE_SECONDS))]
    lines = [Shown.LINE] * (int(WHOLE_SECONDS) - MOST_WHOLE)
    assert shown == ([Shown.WHOLE] * MOST_WHOLE + lines) * 2


def test_what_goes_on_has_few_lines_in_the_next_stretch_and_all_again_once_it_was_quiet() -> None:
    rationing = Rationing()
    for now in (0.0, SECONDS, 2 * SECONDS):
        shown = ask(rationing, 2 * MOST, now)
        assert shown.count(Shown.NOTHING) == 2 * MOST - (MOST if not now else MOST_AFTER)
        assert len(rationing.due(now + SECONDS)) == 1
    assert Shown.NOTHING not in ask(rationing, MOST, 4 * SECONDS)


def test_without_anybody_who_asks_the_next_one_says_what_was_left_out() -> None:
    rationing = Rationing()
    ask(rationing, MOST + 7, 0.0)
    assert rationing.ask(KIND, 3 * SECONDS, None).before == Summary(MOST + 6, 7, 3 * SECONDS)


def test_a_line_that_names_many_requests_counts_as_several_and_a_summary_counts_requests() -> None:
    rationing = Rationing()
    shown = [rationing.ask(KIND, 0.0, None, requests=NAMES * 10).shown for _ in range(MOST)]
    assert shown.count(Shown.LINE) == MOST // 10
    assert rationing.all(1.0) == [Summary(None, NAMES * 10 * (MOST - MOST // 10), 1.0)]


def test_another_kind_is_shown_whole_at_once() -> None:
    rationing = Rationing()
    ask(rationing, 2 * MOST, 0.0)
    assert ask(rationing, 1, 0.0, "another") == [Shown.WHOLE]


def test_kinds_beyond_the_most_share_one_ration_until_others_were_quiet() -> None:
    rationing = Rationing()
    for number in range(MOST_KINDS):
        ask(rationing, 1, 0.0, number)
    shown = [each for number in range(MOST) for each in ask(rationing, 1, 0.0, f"new {number}")]
    assert shown == [Shown.WHOLE] * MOST_WHOLE + [Shown.LINE] * (MOST - MOST_WHOLE)
    assert ask(rationing, 1, 0.0, "and another") == [Shown.NOTHING]
    assert rationing.all(0.0) == [Summary(0, 1, 0.0)]
    assert ask(rationing, 1, WHOLE_SECONDS, "and another") == [Shown.WHOLE]


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0, 4 * SECONDS), st.integers(1, 60), st.integers(0, 3), st.booleans()),
        max_size=60,
    ),
    st.integers(0, 2),
)
def test_what_is_logged_and_what_is_told_add_up_and_are_bounded(
    history: list[tuple[float, int, int, bool]], kinds: int
) -> None:
    rationing, now = Rationing(), 0.0
    came = logged = told = 0
    in_stretch: dict[int, list[float]] = {}
    for pause, count, kind, asked in history:
        now += pause
        kind %= kinds + 1
        for _ in range(count):
            verdict = rationing.ask(kind, now, None, whole=True)
            came += 1
            told += 0 if verdict.before is None else verdict.before.requests
            if verdict.shown is not Shown.NOTHING:
                logged += 1
                in_stretch.setdefault(kind, []).append(now)
        if asked:
            told += sum(summary.requests for summary in rationing.due(now))
    told += sum(summary.requests for summary in rationing.all(now))
    assert came == logged + told
    for times in in_stretch.values():
        assert all(times[place + 2 * MOST] - times[place] >= SECONDS for place in range(len(times) - 2 * MOST))
