from __future__ import annotations

import math

import pytest

from mosec_asgi.pool.recycling import NEVER, Recycling


def test_without_limits_a_worker_lives_for_ever() -> None:
    assert NEVER.most_calls == math.inf
    assert not NEVER.too_large(0, 1 << 60)


@pytest.mark.parametrize(
    ("at_first", "now", "large"),
    [(50, 99, False), (50, 100, True), (99, 100, True), (100, 200, False), (150, 200, False)],
)
def test_a_worker_is_too_large_where_another_would_be_smaller(at_first: int, now: int, large: bool) -> None:
    assert Recycling(max_memory=100).too_large(at_first, now) is large
