from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from mosec_asgi.pool.process import spare
from mosec_asgi.pool.process.spare import SpareDescriptors

MOST = 3


@pytest.fixture
def held() -> Iterator[SpareDescriptors]:
    descriptors = SpareDescriptors(MOST)
    before = count()
    descriptors.join()
    descriptors.fill()
    yield descriptors
    descriptors.leave()
    assert count() == before


def count() -> int:
    return len(os.listdir("/dev/fd"))


def test_nothing_is_held_for_nobody() -> None:
    before = count()
    descriptors = SpareDescriptors(MOST)
    descriptors.fill()
    assert count() == before


def test_they_are_free_for_the_time_of_a_start_whatever_comes_of_it(held: SpareDescriptors) -> None:
    full = count()
    with held.given_up():
        assert count() == full - MOST
    assert count() == full
    with pytest.raises(OSError, match="no start"), held.given_up():
        raise OSError("no start")
    assert count() == full


def test_they_are_held_until_the_last_one_leaves(held: SpareDescriptors) -> None:
    full = count()
    held.join()
    held.leave()
    assert count() == full


def test_as_many_are_held_as_there_are(held: SpareDescriptors, monkeypatch: pytest.MonkeyPatch) -> None:
    full = count()
    left = [None]

    def scarce(*_: object) -> int:
        if not left:
            raise OSError(24, "Too many open files")
        left.pop()
        return os.dup(0)

    with held.given_up():
        monkeypatch.setattr(spare.os, "open", scarce)
    assert count() == full - MOST + 1
    monkeypatch.undo()
    held.fill()
    assert count() == full
