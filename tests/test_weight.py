"""What is in a body of JSON is counted right, and quickly whatever it is."""

from __future__ import annotations

import time
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosec_asgi.web.protocols.weight import Weight, rough_weight, weight_of

MANY = Weight(1000, 1000, 1000)
VALUES = st.recursive(
    st.none() | st.integers(-9, 9) | st.text('a"\\[{,', max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text('b"\\]:', max_size=4), inner, max_size=4),
    max_leaves=20,
)


def counted(value: Any) -> Weight:
    """Return what is in a value, by a walk through it."""
    if isinstance(value, str):
        return Weight(1, 0, 0)
    if not isinstance(value, (list, dict)):
        return Weight(0, 0, 0)
    parts = [counted(each) for each in (value.values() if isinstance(value, dict) else value)]
    names = len(value) if isinstance(value, dict) else 0
    texts, brackets, commas = (
        sum(column) for column in zip(*parts, Weight(names, 1, max(0, len(value) - 1)), strict=True)
    )
    return Weight(texts, brackets, commas)


@given(VALUES)
def test_texts_brackets_and_commas_are_counted_outside_of_texts(value: Any) -> None:
    body = orjson.dumps(value)
    assert weight_of(body, MANY) == counted(value)
    assert all(rough >= true for rough, true in zip(rough_weight(body), counted(value), strict=True))


@pytest.mark.parametrize("piece", [b'""', b'"\\\\"', b"[", b",", b'"\\"', b"\\"])
def test_ten_megabytes_of_anything_are_counted_in_the_time_in_which_one_of_objects_is_read(piece: bytes) -> None:
    body = piece * (10_000_000 // len(piece))
    began = time.process_time()
    orjson.loads(b"[" + b",".join([b'{"a":{}}'] * 110_000) + b"]")
    read = time.process_time() - began
    began = time.process_time()
    weight_of(body, MANY)
    assert time.process_time() - began < max(0.1, 2 * read)
