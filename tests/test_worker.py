from __future__ import annotations

import dataclasses
import json
from datetime import date, datetime, timezone
from typing import Any

import numpy as np
import pytest
from fakes import Echo
from hypothesis import given, settings
from hypothesis import strategies as st

from mosec_asgi.errors import DecodingError, EncodingError
from mosec_asgi.worker import Worker

WORKER = Echo()


def written(value: Any) -> Any:
    """Return what a client reads of `value`; what is no strict JSON fails."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    encoded = WORKER.serialize(value)
    assert type(encoded) is bytes
    return json.loads(encoded, parse_constant=refuse)


@dataclasses.dataclass
class Point:
    x: float
    label: str


PLAIN = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
VALUES = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=60, deadline=None)
@given(VALUES)
def test_what_json_can_hold_comes_back_as_it_was(value: Any) -> None:
    assert WORKER.deserialize(WORKER.serialize(value)) == value


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (np.arange(6, dtype=np.float32).reshape(2, 3), [[0, 1, 2], [3, 4, 5]]),
        ({"scores": np.array([0.5, 1.5])}, {"scores": [0.5, 1.5]}),
        (np.array([True, False]), [True, False]),
        (np.array(3.5), 3.5),
        (np.array([]), []),
        (np.array(["a", "b"]), ["a", "b"]),
        (np.arange(8)[::2], [0, 2, 4, 6]),
        (np.arange(4).reshape(2, 2).T, [[0, 2], [1, 3]]),
        (np.array([1, 2], dtype=">i4"), [1, 2]),
        (np.array([0.5, 1.0], dtype=np.float16), [0.5, 1.0]),
        ([np.arange(4)[::2], np.float64(2)], [[0, 2], 2]),
        (np.float32(0.5), 0.5),
        (np.float16(0.5), 0.5),
        (np.int8(-3), -3),
        (np.uint64(2**64 - 1), 2**64 - 1),
        (np.bool_(True), True),
        (np.str_("text"), "text"),
    ],
    ids=repr,
)
def test_numpy_arrays_and_scalars_are_json(value: Any, expected: Any) -> None:
    assert written(value) == expected


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), -float("inf"), np.float64("nan"), np.float32("inf"), np.array(float("nan"))],
    ids=repr,
)
def test_what_is_no_number_is_null(value: Any) -> None:
    assert written({"a": [value, 1]}) == {"a": [None, 1]}
    # And in the slower ways too, which values that come with it make necessary.
    assert written({1: value}) == {"1": None}
    assert written([value, 2**70]) == [None, 2**70]


def test_no_numbers_in_arrays_are_null() -> None:
    expected = [None, 1.0, None]
    array = np.array([np.nan, 1.0, np.inf])
    assert written(array) == expected
    assert written(np.stack([array, array]).T.copy().T[0]) == expected
    assert written(np.repeat(array, 2)[::2]) == expected


def test_no_numbers_in_an_array_beside_a_huge_integer_are_null() -> None:
    assert written([2**70, np.array([np.nan, 1.0])[::1]]) == [2**70, [None, 1.0]]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Point(1.5, "a"), {"x": 1.5, "label": "a"}),
        (datetime(2024, 1, 2, 3, 4, 5, tzinfo=timezone.utc), "2024-01-02T03:04:05+00:00"),
        (date(2024, 1, 2), "2024-01-02"),
        ((1, 2), [1, 2]),
        ({7: "a", 2.5: "b", None: "c", True: "d"}, {"7": "a", "2.5": "b", "null": "c", "true": "d"}),
        ({1: np.arange(4)[::2]}, {"1": [0, 2]}),
        ({1: date(2024, 1, 2)}, {"1": "2024-01-02"}),
        (2**64, 2**64),
        (-(2**63) - 1, -(2**63) - 1),
        ({"huge": [10**30, {"deep": (10**40,)}]}, {"huge": [10**30, {"deep": [10**40]}]}),
        ({3: 10**30}, {"3": 10**30}),
        ("Ünïcødé 🦀", "Ünïcødé 🦀"),
        (None, None),
    ],
    ids=repr,
)
def test_other_values_are_json(value: Any, expected: Any) -> None:
    assert written(value) == expected


class Strange:
    def __repr__(self) -> str:
        return "Strange()"


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Strange(), "Strange"),
        ({"deep": [1, Strange()]}, "Strange"),
        ({1: Strange()}, "Strange"),
        ({1, 2}, "set"),
        (b"raw", "bytes"),
        (1j, "complex"),
        (np.array([Strange()]), "Strange"),
        (np.complex64(1), "complex"),
        ([10**30, Strange()], "Strange"),
    ],
    ids=repr,
)
def test_a_value_that_has_no_form_in_json_is_told_by_its_type(value: Any, name: str) -> None:
    with pytest.raises(EncodingError, match=name):
        WORKER.serialize(value)


def test_a_value_that_holds_itself_is_an_encoding_error() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(EncodingError):
        WORKER.serialize(loop)


@pytest.mark.parametrize("body", [b"{", b"nope", b"nan", b"[1,]", b"\xff", b"'a'", b"1 2", b" "])
def test_a_body_that_is_no_json_is_a_decoding_error(body: bytes) -> None:
    with pytest.raises(DecodingError, match="the body is not JSON: "):
        WORKER.deserialize(body)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=30))
def test_any_bytes_are_decoded_or_a_decoding_error(body: bytes) -> None:
    try:
        WORKER.deserialize(body)
    except DecodingError:
        return
    json.loads(body)


def test_between_stages_anything_passes_that_pickle_can_hold() -> None:
    value = {"a": np.arange(3), "b": Point(1.0, "x"), "c": {1, 2}}
    received = WORKER.deserialize_ipc(WORKER.serialize_ipc(value))
    assert received["b"] == value["b"]
    assert received["c"] == value["c"]
    assert (received["a"] == value["a"]).all()


def test_the_defaults_of_a_worker() -> None:
    assert (Echo.example, list(Echo.multi_examples)) == (None, [])
    assert Echo.req_mime_type == Echo.resp_mime_type == "application/json"
    assert (WORKER.worker_id, WORKER.stage, WORKER.max_batch_size) == (0, "", 1)
    WORKER.close()


def test_a_worker_needs_a_forward() -> None:
    with pytest.raises(TypeError, match="forward"):
        Worker()  # type: ignore[abstract]
