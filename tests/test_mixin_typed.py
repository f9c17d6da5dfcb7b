from __future__ import annotations

import contextlib
from typing import Annotated, Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mosec_asgi import Worker
from mosec_asgi.errors import DecodingError, DefinitionError, EncodingError, ValidationError
from mosec_asgi.formats import MAX_DEPTH
from mosec_asgi.mixin import TypedMsgPackMixin
from mosec_asgi.mixin.typed_worker import _decoder


class Point(msgspec.Struct):
    x: float
    y: Annotated[float, msgspec.Meta(ge=0)] = 0.0


class Request(msgspec.Struct):
    text: str
    image: bytes = b""
    points: list[Point] = []
    labels: dict[str, int] = {}


class Tree(msgspec.Struct):
    child: Tree | None = None


class Typed(TypedMsgPackMixin, Worker):
    def forward(self, data: Request) -> Any:
        return data


class Batched(TypedMsgPackMixin):
    _max_batch_size = 8

    def forward(self, data: list[Request]) -> Any:
        return data


class Wrong(TypedMsgPackMixin):
    _max_batch_size = 8

    def forward(self, data: Request) -> Any:
        return data


class Anything(TypedMsgPackMixin):
    def forward(self, data):  # type: ignore[no-untyped-def]
        return data


class Deep(TypedMsgPackMixin):
    def forward(self, data: Tree) -> Any:
        return data


class Sets(TypedMsgPackMixin):
    def forward(self, data: set[Any]) -> Any:
        return data


TYPED, BATCHED, ANYTHING, DEEP, SETS = Typed(), Batched(), Anything(), Deep(), Sets()
ALL = [TYPED, BATCHED, ANYTHING, DEEP, SETS]
FLOATS = st.floats(allow_nan=False)
REQUESTS = st.builds(
    Request,
    st.text(),
    st.binary(),
    st.lists(st.builds(Point, FLOATS, FLOATS.filter(lambda y: y >= 0)), max_size=3),
    st.dictionaries(st.text(), st.integers(-(2**63), 2**64 - 1), max_size=3),
)


@settings(max_examples=40, deadline=None)
@given(REQUESTS)
def test_a_struct_comes_back_as_it_was_in_mosecs_bytes(request: Request) -> None:
    encoded = TYPED.serialize(request)
    assert encoded == msgspec.msgpack.encode(request)
    assert TYPED.deserialize(encoded) == request
    # With batching one body is one item.
    assert BATCHED.deserialize(encoded) == request


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({}, r"missing required field `text`"),
        ({"text": 1}, r"Expected `str`, got `int` - at `\$.text`"),
        ({"text": "", "points": [{"x": 1}, {"x": "1"}]}, r"Expected `float`, got `str` - at `\$.points\[1\].x`"),
        ({"text": "", "points": [{"x": 1, "y": -1}]}, r"Expected `float` >= 0.0 - at `\$.points\[0\].y`"),
        ([], "Expected `object`, got `array`"),
    ],
)
def test_a_value_of_the_wrong_type_is_a_validation_error_that_says_where(value: Any, said: str) -> None:
    for worker in (TYPED, BATCHED):
        with pytest.raises(ValidationError, match=said):
            worker.deserialize(msgspec.msgpack.encode(value))


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_decoded_or_an_error_of_the_client(body: bytes) -> None:
    for worker in ALL:
        with contextlib.suppress(DecodingError, ValidationError):
            worker.serialize(worker.deserialize(body))


@settings(max_examples=60, deadline=None)
@given(REQUESTS, st.data())
def test_a_body_that_is_cut_or_changed_is_decoded_or_an_error_of_the_client(
    request: Request, data: st.DataObject
) -> None:
    body = bytearray(TYPED.serialize(request))
    body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    del body[data.draw(st.integers(1, len(body))) :]
    for worker in ALL:
        with contextlib.suppress(DecodingError, ValidationError):
            worker.deserialize(bytes(body))


@pytest.mark.parametrize(
    "body",
    [
        b"\xc1",
        b"\x92\x01",
        b"\x01\x01",
        b"\xa1\xff",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x05",
        b"\x81\x80\xc0",
    ],
    ids=repr,
)
def test_bytes_that_are_no_msgpack_are_a_decoding_error(body: bytes) -> None:
    with pytest.raises(DecodingError, match=r"^the body is not msgpack: ."):
        ANYTHING.deserialize(body)


def test_what_cannot_be_in_a_set_is_an_error_of_the_client() -> None:
    assert SETS.deserialize(b"\x91\x01") == {1}
    # The first is what msgspec before 0.23 makes of it.
    with pytest.raises((DecodingError, ValidationError), match="hashable"):
        SETS.deserialize(b"\x91\x81\xa0\xc0")


def test_a_bad_timestamp_is_a_validation_error() -> None:
    with pytest.raises(ValidationError, match="nanoseconds"):
        ANYTHING.deserialize(b"\xd7\xff" + b"\xff" * 8)


def test_what_the_format_defines_and_nobody_knows_is_passed_on() -> None:
    extension = ANYTHING.deserialize(b"\xd4\x05a")
    assert (extension.code, extension.data) == (5, b"a")
    assert ANYTHING.serialize(extension) == b"\xd4\x05a"
    assert ANYTHING.deserialize(b"\x82\xa1a\x01\xa1a\x02") == {"a": 2}


@pytest.mark.parametrize(("worker", "level"), [(ANYTHING, b"\x91"), (ANYTHING, b"\x81\xa0"), (DEEP, b"\x81\xa5child")])
def test_a_body_may_nest_as_deep_as_everything_behind_can_follow(worker: Worker, level: bytes) -> None:
    deepest = worker.deserialize(level * MAX_DEPTH + b"\xc0")
    worker.serialize(worker.deserialize_ipc(worker.serialize_ipc(deepest)))
    for depth in (MAX_DEPTH + 1, 990, 1000, 5000, 9990, 100_000):
        with pytest.raises(DecodingError, match=f"nested deeper than {MAX_DEPTH} levels"):
            worker.deserialize(level * depth + b"\xc0")


@pytest.mark.parametrize(
    ("worker", "bounded"), [(TYPED, True), (BATCHED, True), (ANYTHING, False), (DEEP, False), (SETS, False)]
)
def test_only_types_that_can_nest_without_end_are_looked_into(worker: Worker, bounded: bool) -> None:
    assert _decoder(type(worker), worker.max_batch_size > 1)[1] is bounded


def test_numpy_in_a_result_is_arrays_and_numbers() -> None:
    assert TYPED.serialize({"a": np.arange(3), "b": np.float32(0.5)}) == TYPED.serialize({"a": [0, 1, 2], "b": 0.5})


class Strange:
    pass


LOOP: list[Any] = []
LOOP.append(LOOP)


@pytest.mark.parametrize(
    ("value", "said"),
    [(Strange(), "Strange"), (1j, "complex"), (2**64, "msgpack"), ("\ud800", "surrogates"), (LOOP, "recursion")],
    ids=["object", "complex", "huge integer", "surrogate", "holds itself"],
)
def test_a_value_that_has_no_form_in_msgpack_is_an_encoding_error(value: Any, said: str) -> None:
    with pytest.raises(EncodingError, match=said):
        TYPED.serialize(value)


def test_an_annotation_that_is_no_list_with_batching_is_told_with_what_to_write() -> None:
    with pytest.raises(DefinitionError, match=r"annotate its argument as `data: list\[.*Request\]`"):
        Wrong().deserialize(b"\x80")
