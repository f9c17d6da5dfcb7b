from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import pytest

from mosec_asgi.errors import WrongShape
from mosec_asgi.inside.shape import checked


@pytest.mark.parametrize(
    "results",
    [[1, 2], (1, 2), deque([1, 2]), np.array([1, 2]), range(1, 3), {"a": 1, "b": 2}.values(), {1: "a", 2: "b"}.keys()],
)
def test_what_has_a_length_and_an_order_is_a_result_for_each_item(results: Any) -> None:
    assert list(checked(results, 2)) == [1, 2]
    with pytest.raises(WrongShape, match="2 results for a batch of 3 items"):
        checked(results, 3)


@pytest.mark.parametrize("results", ["ab", b"ab", {"a": 1, "b": 2}, {1, 2}, frozenset((1, 2)), 2, None, map(str, "ab")])
def test_what_is_probably_a_mistake_is_refused(results: Any) -> None:
    with pytest.raises(WrongShape):
        checked(results, 2)
