"""A service written for mosec's mixins, import changed: the same bytes in and out, beside mosec where it is here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import msgpack
import pytest
from mosec_pair import Pair, post_together, serving_both


@pytest.fixture(scope="module")
def mixins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with serving_both("mixins", tmp_path_factory.mktemp("mixins")) as pair:
        yield pair


def same(pair: Pair, path: str, body: bytes) -> httpx.Response:
    """Return the answer of both, which is the same to the byte."""
    answers = pair.post(path, body)
    shown = {(answer.status_code, answer.content) for answer in answers}
    assert len(shown) == 1, shown
    # mosec names the type of a result only.
    assert answers[0].is_error or len({answer.headers["content-type"] for answer in answers}) == 1
    return answers[0]


VALUES: list[Any] = [
    None,
    True,
    0,
    -1,
    2**63,
    2**64 - 1,
    -(2**63),
    1.5,
    float("inf"),
    "Ünïcødé 🦀",
    b"\x00\xff" * 40_000,
    [],
    [1, [2, [3, []]]],
    {"a": [1, 2], b"b": {"c": None}},
    msgpack.ExtType(5, b"abc"),
    msgpack.Timestamp(1, 2),
    list(range(100_000)),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:30])
def test_msgpack_is_answered_by_the_same_bytes_as_in_mosec(mixins: Pair, value: Any) -> None:
    answer = same(mixins, "/msgpack", msgpack.packb(value))
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/msgpack")
    received = msgpack.unpackb(answer.content)
    assert received["type"] == ("tuple" if isinstance(value, list) else type(value).__name__)
    assert received["data"] == value


@pytest.mark.parametrize(
    "body", [b"\xc1", b"\x92\x01", b"\x01\x01", b"\xa1\xff", b"\x81\x01\x02", b"\xdd\xff\xff\xff\xff"]
)
def test_what_is_no_msgpack_is_refused_as_by_mosec_and_the_reason_told(mixins: Pair, body: bytes) -> None:
    ours, *mosec = mixins.post("/msgpack", body)
    assert ours.text.startswith("decoding error: the body is not msgpack: ")
    assert [answer.status_code for answer in (ours, *mosec)] == [400] * (1 + len(mosec))


def test_a_result_that_msgpack_cannot_hold_is_an_encoding_error_as_in_mosec(mixins: Pair) -> None:
    ours, *mosec = mixins.post("/strange", b"\xc0")
    assert (
        ours.text
        == "encoding error: the result cannot be encoded as msgpack: a value of type builtins.object cannot be encoded"
    )
    assert [answer.status_code for answer in (ours, *mosec)] == [500] * (1 + len(mosec))


def test_typed_msgpack_is_answered_by_the_same_bytes_as_in_mosec(mixins: Pair) -> None:
    answer = same(mixins, "/typed", msgpack.packb({"name": "tea", "count": 3, "tags": ["a", "b"], "more": 1}))
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/msgpack")
    assert msgpack.unpackb(answer.content) == {"name": "tea", "total": 7.5, "raw": b"ab"}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"name": "tea", "count": "3"}, "Expected `int`, got `str` - at `$.count`"),
        ({"name": "tea"}, "Object missing required field `count`"),
        ([1], "Expected `object`, got `array`"),
        ({"name": "tea", "count": 1, "tags": ["a", 1]}, "Expected `str`, got `int` - at `$.tags[1]`"),
        ({"name": "tea", "count": -1}, "nothing is taken back"),
    ],
)
def test_a_value_of_the_wrong_type_is_told_in_the_same_words_as_by_mosec(mixins: Pair, value: Any, reason: str) -> None:
    answer = same(mixins, "/typed", msgpack.packb(value))
    assert (answer.status_code, answer.text) == (422, f"request validation error: {reason}")


def test_bytes_that_are_no_msgpack_are_the_clients_fault_and_in_mosec_the_servers(mixins: Pair) -> None:
    ours, *mosec = mixins.post("/typed", b"\xc1")
    assert ours.status_code == 400
    assert ours.text.startswith("decoding error: the body is not msgpack: ")
    assert [answer.status_code for answer in mosec] == [500] * len(mosec)


def test_with_batching_the_type_is_that_of_an_item_as_in_mosec(mixins: Pair) -> None:
    orders = [{"name": f"tea {number}", "count": number} for number in range(8)]
    expected = [{"name": f"tea {number}", "total": number * 2.5, "raw": b""} for number in range(8)]
    for program in mixins.programs:
        answers = post_together(program, "/typed-batch", [msgpack.packb(order) for order in orders])
        assert [msgpack.unpackb(answer.content) for answer in answers] == expected
    # An item of the wrong type fails alone; in mosec it takes those along that are in its batch.
    assert same(mixins, "/typed-batch", msgpack.packb({"name": "none"})).status_code == 422


@pytest.mark.parametrize(
    "array",
    [
        {"values": [1, 2, 3, 4], "type": "float32", "shape": [2, 2]},
        {"values": [1, 2], "type": "int64", "shape": [2]},
        {"values": [7], "type": "uint8", "shape": []},
        {"values": list(range(60_000)), "type": "float64", "shape": [3, 20_000]},
    ],
    ids=lambda array: f"{array['type']}{array['shape']}",
)
def test_arrays_between_stages_may_be_written_to_as_in_mosec(mixins: Pair, array: dict[str, Any]) -> None:
    answer = same(mixins, "/array", msgpack.packb(array))
    received = msgpack.unpackb(answer.content)
    assert (received["type"], received["shape"]) == (array["type"], array["shape"])
