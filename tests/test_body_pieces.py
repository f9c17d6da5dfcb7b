"""The pieces of a body are what has come, and few where they are tiny."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosec_asgi.web.body_pieces import TINY, TOGETHER, BodyPieces


def pieces_of(sizes: list[int]) -> tuple[BodyPieces, bytes]:
    body = bytes(number % 251 for number in range(sum(sizes)))
    pieces = BodyPieces()
    for end, size in zip(itertools.accumulate(sizes), sizes, strict=True):
        pieces.add(body[end - size : end] if size % 2 else memoryview(body)[end - size : end])
    return pieces, body


@given(st.lists(st.sampled_from([1, 2, 3, TINY, 5 * TINY]), max_size=3 * TOGETHER))
def test_they_are_together_what_has_come(sizes: list[int]) -> None:
    pieces, body = pieces_of(sizes)
    assert b"".join(pieces) == body


@pytest.mark.parametrize("size", [1, 2, 100, TINY - 1])
def test_tiny_ones_become_few(size: int) -> None:
    pieces, body = pieces_of([size] * 40 * TOGETHER)
    assert b"".join(pieces) == body
    assert len(pieces) <= 40 + TOGETHER


def test_those_of_the_usual_size_stay_as_they_are() -> None:
    large = [bytes(TINY) for _ in range(3 * TOGETHER)]
    pieces = BodyPieces()
    for piece in large:
        pieces.add(piece)
    assert all(kept is piece for kept, piece in zip(pieces, large, strict=True))
