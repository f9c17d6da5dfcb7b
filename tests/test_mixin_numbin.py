from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from mosec_asgi import Worker
from mosec_asgi.errors import DecodingError, EncodingError
from mosec_asgi.mixin import NumBinIPCMixin


class Stage(NumBinIPCMixin, Worker):
    def forward(self, data: Any) -> Any:
        return data


STAGE = Stage()
NUMBERS = (
    npst.boolean_dtypes()
    | npst.integer_dtypes(endianness="?")
    | npst.unsigned_integer_dtypes(endianness="?")
    | npst.floating_dtypes(endianness="?", sizes=(16, 32, 64))
    | npst.complex_number_dtypes(endianness="?", sizes=(64, 128))
)
SHAPES = npst.array_shapes(min_dims=0, min_side=0)


def passed(array: Any) -> Any:
    return STAGE.deserialize_ipc(STAGE.serialize_ipc(array))


@settings(max_examples=60, deadline=None)
@given(npst.arrays(NUMBERS, SHAPES))
def test_an_array_arrives_as_it_was(array: np.ndarray[Any, Any]) -> None:
    received = passed(array)
    assert received.dtype == array.dtype.newbyteorder("=")
    np.testing.assert_array_equal(received, array)


def test_what_arrives_may_be_written_to() -> None:
    received = passed(np.arange(6.0).reshape(2, 3).T)
    received += 1
    assert received.tolist() == [[1, 4], [2, 5], [3, 6]]


def test_a_scalar_arrives_as_an_array_without_axes() -> None:
    assert passed(np.float32(0.5)) == np.array(0.5, dtype="f4")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([1.5], "not list"),
        (None, "not NoneType"),
        (np.array(["a"]), "not ndarray of <U1"),
        (np.zeros(70_000), r"axes of up to 65535, not ndarray of float64 and shape \(70000,\)"),
        pytest.param(np.array([object()]), "not ndarray of object", id="objects"),
        (np.array(["2024-01-01"], dtype="M8[D]"), r"not ndarray of datetime64\[D\]"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_what_numbin_cannot_hold_is_an_encoding_error_that_says_so(value: Any, said: str) -> None:
    with pytest.raises(EncodingError, match=said):
        STAGE.serialize_ipc(value)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=40))
def test_any_bytes_are_an_array_or_a_decoding_error(data: bytes) -> None:
    try:
        received = STAGE.deserialize_ipc(data)
    except DecodingError as refused:
        received = refused
    assert isinstance(received, np.ndarray) or "it needs NumBinIPCMixin as well" in str(received)
