from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from mosec_asgi.pool.watchdog import LATE_SECONDS, Watchdog

# Seconds between two looks, in the tests.
LOOK = 0.25


def looks(watchdog: Watchdog[str], counts: list[dict[str, int]], now: float = 100.0) -> list[list[str]]:
    """Return who was stuck at each look."""
    return [watchdog.stuck(beats, now + place * LOOK) for place, beats in enumerate(counts)]


def test_a_worker_whose_count_stands_still_for_the_limit_is_stuck() -> None:
    assert looks(Watchdog(lambda worker: 1.0), [{"a": 7}] * 6) == [[], [], [], [], ["a"], ["a"]]


def test_a_worker_that_steps_is_not_stuck_however_long_it_is_at_work() -> None:
    assert not any(looks(Watchdog(lambda worker: 1.0), [{"a": count // 4} for count in range(400)]))


def test_a_step_gives_the_whole_limit_again() -> None:
    counts = [{"a": 1}] * 4 + [{"a": 2}] * 5
    assert looks(Watchdog(lambda worker: 1.0), counts) == [[]] * 8 + [["a"]]


def test_a_count_that_has_begun_anew_is_a_step() -> None:
    counts = [{"a": 900}] * 4 + [{"a": 0}] * 4
    assert not any(looks(Watchdog(lambda worker: 1.0), counts))


def test_a_worker_that_had_nothing_to_do_meanwhile_is_not_stuck() -> None:
    counts: list[dict[str, int]] = [*[{"a": 7}] * 3, {}, *[{"a": 7}] * 4]
    assert not any(looks(Watchdog(lambda worker: 1.0), counts))


def test_a_look_that_comes_late_tells_nothing() -> None:
    watchdog: Watchdog[str] = Watchdog(lambda worker: 1.0)
    assert looks(watchdog, [{"a": 7}] * 4) == [[]] * 4
    late = 100.0 + 3 * LOOK + LATE_SECONDS + 0.01
    assert looks(watchdog, [{"a": 7}] * 6, now=late) == [[], [], [], [], ["a"], ["a"]]


def test_a_look_that_is_a_little_late_is_as_good_as_another() -> None:
    watchdog: Watchdog[str] = Watchdog(lambda worker: 1.0)
    watchdog.stuck({"a": 7}, 100.0)
    watchdog.stuck({"a": 7}, 100.2)
    assert watchdog.stuck({"a": 7}, 100.2 + LATE_SECONDS) == ["a"]


def test_only_those_that_are_stuck_are_named() -> None:
    counts = [{"a": 7, "b": place, "c": 7 + (place > 2)} for place in range(5)]
    assert looks(Watchdog(lambda worker: 1.0), counts)[-1] == ["a"]


def test_workers_that_are_gone_are_forgotten() -> None:
    watchdog: Watchdog[int] = Watchdog(lambda worker: 1.0)
    for worker in range(1000):
        watchdog.stuck({worker: 0}, 100.0 + worker * LOOK)
    assert len(watchdog._seen) == 1


def test_a_stage_with_nothing_to_do_has_nobody_stuck() -> None:
    assert looks(Watchdog(lambda worker: 0.0), [{}, {}]) == [[], []]


@given(
    st.floats(0.0, 3.0),
    st.lists(
        st.dictionaries(st.sampled_from("abc"), st.integers(0, 2), max_size=3),
        max_size=40,
    ),
)
@settings(max_examples=300, deadline=None)
def test_those_are_stuck_that_showed_one_count_at_every_look_for_the_limit(
    limit: float, counts: list[dict[str, int]]
) -> None:
    found = looks(Watchdog(lambda worker: limit), counts, now=0.0)
    for place, beats in enumerate(counts):
        expected = []
        for worker, count in beats.items():
            first = place
            while first > 0 and counts[first - 1].get(worker) == count:
                first -= 1
            if (place - first) * LOOK >= limit:
                expected.append(worker)
        assert sorted(found[place]) == sorted(expected)
