from __future__ import annotations

import math
from itertools import chain, combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mosec_asgi.pool import isolation


def resolve(size: int, culprits: set[int], calls: int | None = None) -> tuple[list[int], list[list[int]]]:
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
        verdict, asked = resolve(size, set(culprits))
        assert verdict == list(culprits)
        assert len(asked) <= isolation.budget(size)


@settings(max_examples=150, deadline=None)
@given(batches(1, isolation.COMPLETE))
def test_culprits_in_a_batch_up_to_16_are_found_exactly(batch: tuple[int, set[int]]) -> None:
    size, culprits = batch
    verdict, asked = resolve(size, culprits)
    assert verdict == sorted(culprits)
    assert len(asked) <= isolation.budget(size)


@settings(max_examples=150, deadline=None)
@given(batches(isolation.COMPLETE + 1, 2048))
def test_a_larger_batch_blames_all_culprits_within_its_budget(batch: tuple[int, set[int]]) -> None:
    size, culprits = batch
    verdict, asked = resolve(size, culprits)
    assert culprits <= set(verdict)
    assert len(asked) <= math.ceil(4 * math.log2(size))
    cleared = {place for part in asked if culprits.isdisjoint(part) for place in part}
    assert set(range(size)) - set(verdict) == cleared


@pytest.mark.parametrize("size", [17, 64, 100, 1024])
def test_one_culprit_in_a_larger_batch_is_found_exactly(size: int) -> None:
    for culprit in {0, 1, size // 2, size - 1}:
        verdict, asked = resolve(size, {culprit})
        assert verdict == [culprit]
        assert len(asked) <= 2 * math.ceil(math.log2(size))


@settings(max_examples=100, deadline=None)
@given(batches(2, 64), st.none() | st.integers(0, 40))
def test_parts_are_proper_ordered_and_never_the_same(batch: tuple[int, set[int]], calls: int | None) -> None:
    size, culprits = batch
    _, asked = resolve(size, culprits, calls)
    assert all(0 < len(part) < size and part == sorted(set(part)) for part in asked)
    assert len({tuple(part) for part in asked}) == len(asked)


@settings(max_examples=100, deadline=None)
@given(batches(1, 64), st.integers(0, 20))
def test_a_set_number_of_calls_is_kept_and_no_culprit_goes_free(batch: tuple[int, set[int]], calls: int) -> None:
    size, culprits = batch
    verdict, asked = resolve(size, culprits, calls)
    assert len(asked) <= calls
    assert culprits <= set(verdict)
    assert verdict == sorted(set(verdict))


@pytest.mark.parametrize("size", [1, 2, 16, 100])
def test_no_calls_fail_all(size: int) -> None:
    assert resolve(size, {0}, calls=0) == (list(range(size)), [])


def test_a_batch_whose_parts_all_succeed_has_no_culprit() -> None:
    verdict, asked = resolve(8, set())
    assert verdict == []
    assert len(asked) == 2


def test_a_batch_of_one_is_its_own_culprit_without_a_call() -> None:
    assert resolve(1, {0}) == ([0], [])


@pytest.mark.parametrize(("size", "calls"), [(0, 0), (1, 0), (2, 2), (16, 30), (17, 17), (64, 24), (1024, 40)])
def test_the_budget(size: int, calls: int) -> None:
    assert isolation.budget(size) == calls


def test_larger_parts_are_cleared_before_smaller_ones_are_split() -> None:
    _, asked = resolve(16, {0, 15})
    lengths = [len(part) for part in asked]
    assert lengths == sorted(lengths, reverse=True)
