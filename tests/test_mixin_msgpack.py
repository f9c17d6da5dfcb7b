from __future__ import annotations

import re
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mosec_asgi import Worker
from mosec_asgi.errors import DecodingError, EncodingError
from mosec_asgi.formats import MAX_DEPTH
from mosec_asgi.mixin import MsgpackMixin


class Echo(MsgpackMixin, Worker):
    def forward(self, data: Any) -> Any:
        return data


WORKER = Echo()
SCALARS: st.SearchStrategy[Any] = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary())
    | st.builds(msgpack.Timestamp, st.integers(-(2**63), 2**63 - 1), st.integers(0, 10**9 - 1))
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.dictionaries(st.text() | st.binary(), inner, max_size=3),
    max_leaves=10,
)


def nested(depth: int, inner: bytes = b"\xc0") -> bytes:
    return b"\x91" * depth + inner


@settings(max_examples=60, deadline=None)
@given(VALUES)
def test_what_msgpack_can_hold_comes_back_as_it_was_in_mosecs_bytes(value: Any) -> None:
    encoded = WORKER.serialize(value)
    assert encoded == msgpack.packb(value)
    assert WORKER.deserialize(encoded) == value


@pytest.mark.parametrize("size", [0, 1, 20_000, 200_000])
def test_large_bodies_come_back_as_they_were(size: int) -> None:
    value = {"bytes": b"x" * size, "numbers": tuple(range(size)), "maps": ({"a": ()},) * (size // 10)}
    assert WORKER.deserialize(WORKER.serialize(value)) == value


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.array([[1, 2], [3, 4]]), ((1, 2), (3, 4))),
        ({"scores": np.array([0.5, 1.5], dtype="f4")}, {"scores": (0.5, 1.5)}),
        (np.arange(8)[::2], (0, 2, 4, 6)),
        (np.array(3.5), 3.5),
        (np.array([b"a", b"b"]), (b"a", b"b")),
        (np.float32(0.5), 0.5),
        (np.float64(0.5), 0.5),
        (np.int8(-3), -3),
        (np.uint64(2**64 - 1), 2**64 - 1),
        (np.bool_(True), True),
        (np.str_("text"), "text"),
        (np.bytes_(b"raw"), b"raw"),
    ],
    ids=repr,
)
def test_numpy_arrays_and_scalars_are_arrays_and_numbers(value: Any, expected: Any) -> None:
    received = WORKER.deserialize(WORKER.serialize(value))
    assert (received, type(received)) == (expected, type(expected))


class Strange:
    pass


LOOP: list[Any] = []
LOOP.append(LOOP)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (Strange(), "Strange"),
        ({"deep": [1, Strange()]}, "Strange"),
        (1j, "complex"),
        (np.complex64(1), "complex"),
        ({1, 2}, "set"),
        (2**64, "an integer needs more than 64 bits"),
        ("\ud800", "surrogates"),
        (LOOP, "recursion limit"),
    ],
    ids=["object", "inside", "complex", "numpy complex", "set", "huge integer", "surrogate", "holds itself"],
)
def test_a_value_that_has_no_form_in_msgpack_is_told_by_its_type(value: Any, said: str) -> None:
    with pytest.raises(EncodingError, match=said):
        WORKER.serialize(value)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_decoded_or_a_decoding_error_with_a_reason(body: bytes) -> None:
    try:
        WORKER.serialize(WORKER.deserialize(body))
    except DecodingError as refused:
        error = refused
    else:
        return
    assert re.match(r"the body is (not msgpack: .|nested deeper)", str(error))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"\xc1", "a value has an unknown format"),
        (b"\x92\x01", "incomplete input"),
        (b"\x01\x01", "extra data"),
        (b"\xa1\xff", "utf-8"),
        (b"\xdd\xff\xff\xff\xff", "4294967295 exceeds max_array_len"),
        (b"\xdf\xff\xff\xff\xff", "4294967295 exceeds max_map_len"),
        (b"\xdb\xff\xff\xff\xff", "not msgpack"),
        (b"\xc6\xff\xff\xff\xff", "not msgpack"),
        (b"\xc9\xff\xff\xff\xff\x05", "not msgpack"),
        (b"\x81\x01\xc0", "int is not allowed for map key$"),
        (b"\x81\x80\xc0", "dict is not allowed for map key$"),
        (b"\x81\x90\xc0", "not allowed for map key$"),
        (b"\xd7\xff" + b"\xff" * 8, "nanoseconds"),
        (b"\xc7\x03\xffabc", "invalid timestamp data"),
    ],
    ids=lambda value: repr(value)[:25] if isinstance(value, bytes) else None,
)
def test_bad_input_is_a_decoding_error_that_says_why(body: bytes, said: str) -> None:
    with pytest.raises(DecodingError, match=said):
        WORKER.deserialize(body)


def test_what_the_format_defines_and_nobody_knows_is_passed_on() -> None:
    assert WORKER.deserialize(b"\xd4\x05a") == msgpack.ExtType(5, b"a")
    # Of two entries with the same key the last one counts.
    assert WORKER.deserialize(b"\x82\xa1a\x01\xa1a\x02") == {"a": 2}


@pytest.mark.parametrize("inner", [b"\xc0", b"\xc4\x00", b"\xc6\x00\x01\x00\x00" + bytes(1 << 16)], ids=len)
def test_a_body_may_nest_as_deep_as_everything_behind_can_follow(inner: bytes) -> None:
    deepest = WORKER.deserialize(nested(MAX_DEPTH, inner))
    assert WORKER.serialize(WORKER.deserialize_ipc(WORKER.serialize_ipc(deepest))) == nested(MAX_DEPTH, inner)
    for depth in (MAX_DEPTH + 1, 1000, 1024, 1025, 100_000):
        with pytest.raises(DecodingError, match=f"nested deeper than {MAX_DEPTH} levels"):
            WORKER.deserialize(nested(depth, inner))


def test_maps_count_as_levels_too() -> None:
    WORKER.deserialize(b"\x81\xa0" * MAX_DEPTH + b"\xc0")
    with pytest.raises(DecodingError, match="nested deeper"):
        WORKER.deserialize(b"\x81\xa0" * (MAX_DEPTH + 1) + b"\xc0")


def test_an_old_library_that_a_small_body_can_make_take_all_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from mosec_asgi.mixin import msgpack_worker

    monkeypatch.setattr(msgpack, "version", (1, 1, 2))
    msgpack_worker._msgpack.cache_clear()
    with pytest.raises(ImportError, match=r"msgpack 1.1.2 lets .* install 1.2.4 or later: pip install 'mosec-asgi"):
        WORKER.serialize(None)
    monkeypatch.undo()
    assert WORKER.serialize(None) == b"\xc0"
