from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mosec_asgi.ipc.arena import PAGE, Arena, ArenaError, pages


@pytest.mark.parametrize(("length", "whole"), [(0, 0), (1, PAGE), (PAGE, PAGE), (PAGE + 1, 2 * PAGE)])
def test_lengths_are_rounded_up_to_pages(length: int, whole: int) -> None:
    assert pages(length) == whole


def test_the_lowest_place_that_fits_is_taken() -> None:
    arena = Arena(10 * PAGE)
    first, second, third = (arena.allocate(size * PAGE) for size in (2, 1, 3))
    assert (first, second, third) == (0, 2 * PAGE, 3 * PAGE)
    arena.free(0)
    assert [arena.allocate(size * PAGE) for size in (3, 1, 1)] == [6 * PAGE, 0, PAGE]


def test_what_was_freed_in_pieces_is_whole_again() -> None:
    arena = Arena(4 * PAGE)
    blocks = [arena.allocate(PAGE) for _ in range(4)]
    assert arena.allocate(1) is None
    for place in (1, 3, 0, 2):
        block = blocks[place]
        assert block is not None
        arena.free(block)
    assert arena.allocate(4 * PAGE) == 0


@pytest.mark.parametrize("size", [0, PAGE])
def test_what_is_larger_than_the_arena_finds_no_room(size: int) -> None:
    assert Arena(size).allocate(size + 1) is None


@pytest.mark.parametrize("begin", [1, PAGE, -PAGE])
def test_only_a_block_can_be_freed(begin: int) -> None:
    arena = Arena(4 * PAGE)
    arena.allocate(2 * PAGE)
    with pytest.raises(ArenaError, match=f"no block begins at {begin}"):
        arena.free(begin)
    arena.free(0)
    with pytest.raises(ArenaError):
        arena.free(0)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_blocks_never_overlap_and_all_room_comes_back(data: st.DataObject) -> None:
    size = 32
    arena = Arena(size * PAGE)
    taken: dict[int, int] = {}
    for _ in range(data.draw(st.integers(0, 60))):
        if taken and data.draw(st.booleans()):
            begin = data.draw(st.sampled_from(sorted(taken)))
            del taken[begin]
            arena.free(begin)
        else:
            wanted = data.draw(st.integers(1, 12 * PAGE))
            used = {page for first, length in taken.items() for page in range(first // PAGE, (first + length) // PAGE)}
            needed = pages(wanted) // PAGE
            fitting = [first for first in range(size - needed + 1) if used.isdisjoint(range(first, first + needed))]
            begin = arena.allocate(wanted)
            assert begin == (fitting[0] * PAGE if fitting else None)
            if begin is not None:
                taken[begin] = pages(wanted)
        assert arena.in_use == sum(taken.values())
    for begin in list(taken):
        arena.free(begin)
    assert arena.allocate(size * PAGE) == 0
