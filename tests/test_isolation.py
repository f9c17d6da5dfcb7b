from __future__ import annotations

import math
from itertools import chain, combinations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mosec_asgi.inside import isolation


def found(size: int, culprits: set[int], calls: int | None = None) -> tuple[list[int], list[list[int]]]:
    """Run a search in a batch where a part fails if it holds a culprit.

    Returns:
        the verdict, and the parts that were run.
    """
    search = isolation.search(size, calls)
    asked: list[list[int]] = []
    try:
        part = next(search)
        while True:
            asked.append(part)
            part = search.send(culprits.isdisjoint(part))
    except StopIteration as stop:
        verdict: list[int] = stop.value
    return verdict, asked


@st.composite
def batches(draw: st.DrawFn, least: int, most: int) -> tuple[int, set[int]]:
    size = draw(st.integers(least, most))
    return size, draw(st.sets(st.integers(0, size - 1), min_size=1))


@pytest.mark.parametrize("size", range(1, 8))
def test_every_set_of_culprits_in_a_small_batch_is_found(size: int) -> None:
    for culprits in chain.from_iterable(combinations(range(size), k) for k in range(1, size + 1)):
        verdict, asked = found(size, set(culprits))
        assert verdict == list(culprits)
        assert len(asked) <= isolation.budget(size)


@settings(max_examples=150, deadline=None)
@given(batches(1, isolation.COMPLETE))
def test_culprits_in_a_batch_up_to_16_are_found_exactly(batch: tuple[int, set[int]]) -> None:
    size, culprits = batch
    verdict, asked = found(size, culprits)
    assert verdict == sorted(culprits)
    assert len(asked) <= isolation.budget(size)


@settings(max_examples=150, deadline=None)
@given(batches(isolation.COMPLETE + 1, 2048))
def test_a_larger_batch_blames_all_culprits_within_its_budget(batch: tuple[int, set[int]]) -> None:
    size, culprits = batch
    verdict, asked = found(size, culprits)
    assert culprits <= set(verdict)
    assert len(asked) <= math.ceil(4 * math.log2(size))
    cleared = {place for part in asked if culprits.isdisjoint(part) for place in part}
    assert set(range(size)) - set(verdict) == cleared


@pytest.mark.parametrize("size", [17, 64, 100, 1024])
def test_one_culprit_in_a_larger_batch_is_found_exactly(size: int) -> None:
    for culprit in {0, 1, size // 2, size - 1}:
        verdict, asked = found(size, {culprit})
        assert verdict == [culprit]
        assert len(asked) <= 2 * math.ceil(math.log2(size))


@settings(max_examples=100, deadline=None)
@given(batches(2, 64), st.none() | st.integers(0, 40))
def test_parts_are_proper_ordered_and_never_the_same(batch: tuple[int, set[int]], calls: int | None) -> None:
    size, culprits = batch
    _, asked = found(size, culprits, calls)
    assert all(0 < len(part) < size and part == sorted(set(part)) for part in asked)
    assert len({tuple(part) for part in asked}) == len(asked)


@settings(max_examples=100, deadline=None)
@given(batches(1, 64), st.integers(0, 20))
def test_a_set_number_of_calls_is_kept_and_no_culprit_goes_free(batch: tuple[int, set[int]], calls: int) -> None:
    size, culprits = batch
    verdict, asked = found(size, culprits, calls)
    assert len(asked) <= calls
    assert culprits <= set(verdict)
    assert verdict == sorted(set(verdict))


@pytest.mark.parametrize("size", [1, 2, 16, 100])
def test_no_calls_fail_all(size: int) -> None:
    assert found(size, {0}, calls=0) == (list(range(size)), [])


def test_a_batch_whose_parts_all_succeed_has_no_culprit() -> None:
    verdict, asked = found(8, set())
    assert verdict == []
    assert len(asked) == 2


def test_a_batch_of_one_is_its_own_culprit_without_a_call() -> None:
    assert found(1, {0}) == ([0], [])


@pytest.mark.parametrize(("size", "calls"), [(0, 0), (1, 0), (2, 2), (16, 30), (17, 17), (64, 24), (1024, 40)])
def test_the_budget(size: int, calls: int) -> None:
    assert isolation.budget(size) == calls


def test_larger_parts_are_cleared_before_smaller_ones_are_split() -> None:
    _, asked = found(16, {0, 15})
    lengths = [len(part) for part in asked]
    assert lengths == sorted(lengths, reverse=True)


# -- results -----------------------------------------------------------------------------------------------------------


class Model:
    """Stands in for `forward`: doubles what it gets, and raises for its first culprit.

    Attributes:
        calls: the parts that it was called with.
    """

    def __init__(self, culprits: set[int], *, final_at: int | None = None) -> None:
        self.calls: list[list[int]] = []
        self._culprits = culprits
        self._final_at = final_at

    def __call__(self, part: list[int]) -> isolation.Outcome:
        self.calls.append(part)
        for item in part:
            if item in self._culprits:
                return isolation.Raised(ValueError(item), final=len(self.calls) == self._final_at)
        return [2 * item for item in part]


def resolved(size: int, model: Model, calls: int | None = None) -> list[Any]:
    """Return what becomes of a batch; errors by what they were raised with."""
    steps = isolation.resolve(size, calls)
    part = next(steps)
    while True:
        try:
            part = steps.send(model(part))
        except StopIteration as done:
            return [result.args if isinstance(result, ValueError) else result for result in done.value]


@settings(max_examples=150, deadline=None)
@given(batches(1, isolation.COMPLETE))
def test_all_but_the_culprits_have_their_own_results(batch: tuple[int, set[int]]) -> None:
    size, culprits = batch
    model = Model(culprits)
    assert resolved(size, model) == [(place,) if place in culprits else 2 * place for place in range(size)]
    assert model.calls[0] == list(range(size))
    assert len(model.calls) <= 1 + isolation.budget(size)


def test_a_batch_that_succeeds_is_run_once() -> None:
    model = Model(set())
    assert resolved(4, model) == [0, 2, 4, 6]
    assert len(model.calls) == 1


@settings(max_examples=100, deadline=None)
@given(batches(2, 40), st.integers(0, 12))
def test_what_is_undecided_when_the_calls_are_spent_fails_with_what_its_last_run_raised(
    batch: tuple[int, set[int]], calls: int
) -> None:
    size, culprits = batch
    model = Model(culprits)
    results = resolved(size, model, calls)
    assert len(model.calls) <= 1 + calls
    for place, result in enumerate(results):
        last = [part for part in model.calls if place in part][-1]
        in_it = sorted(culprits.intersection(last))
        assert result == ((in_it[0],) if in_it else 2 * place)


def test_a_final_error_ends_the_search_and_fails_what_has_no_result() -> None:
    # The whole, then the first half, then the second one, which raises what ends it all.
    model = Model({1, 6}, final_at=3)
    assert resolved(8, model) == [(6,)] * 8
    assert model.calls == [list(range(8)), [0, 1, 2, 3], [4, 5, 6, 7]]


def test_a_final_error_takes_no_result_away() -> None:
    model = Model({6}, final_at=3)
    assert resolved(8, model) == [0, 2, 4, 6, (6,), (6,), (6,), (6,)]


def test_after_a_final_error_of_the_whole_nothing_is_run_again() -> None:
    model = Model({2}, final_at=1)
    assert resolved(4, model) == [(2,)] * 4
    assert len(model.calls) == 1


@pytest.mark.parametrize("result", [None, [], 0, False])
def test_a_result_may_be_anything(result: Any) -> None:
    steps = isolation.resolve(2)
    next(steps)
    assert steps.send(isolation.Raised(ValueError())) == [0]
    assert steps.send([result]) == [1]
    with pytest.raises(StopIteration) as done:
        steps.send([result])
    assert done.value.value == [result, result]
