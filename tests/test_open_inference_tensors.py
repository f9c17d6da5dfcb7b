"""Tensors of the open inference protocol: every datatype there and back, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mosec_asgi.errors import ClientError
from mosec_asgi.web.protocols.open_inference import datatypes
from mosec_asgi.web.protocols.open_inference.datatypes import BF16, BYTES, DATATYPES, Datatype, from_raw, from_values
from mosec_asgi.web.protocols.open_inference.tensors import Bounds, NamedArray, Reader

# On a busy machine numpy's first array alone may take a second.
SLOWLY = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])

shapes = arrays.array_shapes(min_dims=1, max_dims=4, max_side=4)


def finite(datatype: Datatype) -> st.SearchStrategy[Any]:
    """Return arrays of a datatype; of BF16 only values that it has."""
    if datatype is BYTES:
        return arrays.arrays(object, shapes, elements=st.binary(max_size=9), fill=st.nothing())
    if datatype.is_float:
        width = {"FP16": 16, "FP64": 64}.get(datatype.name, 32)
        elements = st.floats(width=width, allow_nan=False, allow_infinity=False)
        made = arrays.arrays(datatype.numpy, shapes, elements=elements)
        if datatype is BF16:
            return arrays.arrays(np.uint16, shapes, elements=st.integers(0, 0x7F7F)).map(
                lambda halves: (halves.astype(np.uint32) << np.uint32(16)).view(np.float32)
            )
        return made
    return arrays.arrays(datatype.numpy, shapes)


of_any = st.sampled_from(list(DATATYPES.values())).flatmap(lambda kind: st.tuples(st.just(kind), finite(kind)))


@SLOWLY
@given(of_any)
def test_an_array_comes_back_from_its_bytes(case: tuple[Datatype, Any]) -> None:
    datatype, array = case
    raw = bytes(datatypes.to_raw(datatype, array))
    back = from_raw(datatype, array.shape, raw)
    assert back.dtype == datatype.numpy
    np.testing.assert_array_equal(back, array)
    if datatype.size:
        assert len(raw) == array.size * datatype.size


@SLOWLY
@given(of_any, st.booleans())
def test_an_array_comes_back_from_json_flat_or_nested(case: tuple[Datatype, Any], nested: bool) -> None:
    datatype, array = case
    if datatype is BYTES:
        array = np.vectorize(lambda value: value.hex().encode(), otypes=[object])(array)
        data = np.vectorize(bytes.decode, otypes=[object])(array).tolist() if nested else None
    else:
        data = array.tolist() if nested else None
    shown = data if nested else datatypes.to_values(datatype, array)
    back = from_values(datatype, array.shape, orjson.loads(orjson.dumps(shown, option=orjson.OPT_SERIALIZE_NUMPY)))
    assert back.dtype == datatype.numpy
    np.testing.assert_array_equal(back, array)


@SLOWLY
@given(st.binary(max_size=64), st.sampled_from(list(DATATYPES.values())), st.lists(st.integers(0, 2**62), max_size=4))
def test_any_bytes_are_an_array_of_that_shape_or_refused(raw: bytes, datatype: Datatype, shape: list[int]) -> None:
    try:
        declared = Reader(Bounds()).declared("x", datatype.name, shape, raw=True)
        made = declared.from_raw(raw)
    except ClientError:
        return
    assert made.shape == shape
    assert made.array.size == declared.count
    # What was read is what goes out; NaN is NaN still, but BF16 may have another.
    if datatype is not BF16:
        assert bytes(made.raw()) == raw


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=12,
)


@SLOWLY
@given(JSON, st.sampled_from(list(DATATYPES)), st.lists(JSON | st.integers(0, 4), max_size=4))
def test_any_json_is_an_array_of_that_shape_or_refused(data: Any, datatype: str, shape: list[Any]) -> None:
    try:
        made = Reader(Bounds()).declared("x", datatype, shape, raw=False).from_values(data)
    except ClientError:
        return
    assert made.shape == shape
    assert made.array.dtype == DATATYPES[datatype].numpy


@SLOWLY
@given(arrays.arrays(np.float32, 8, elements=st.floats(width=32)))
def test_bf16_is_rounded_to_the_nearest_value_and_nan_stays_nan(array: Any) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    back = from_raw(BF16, array.shape, datatypes.to_raw(BF16, array))
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(back, array.astype(ml_dtypes.bfloat16).astype(np.float32))
    own = array[~np.isnan(array)].astype(ml_dtypes.bfloat16)
    assert bytes(datatypes.to_raw(BF16, datatypes.converted(BF16, own))) == own.tobytes()


def test_large_binary_data_is_not_copied() -> None:
    raw = bytes(4000)
    array = from_raw(DATATYPES["FP32"], (10, 100), memoryview(raw))
    assert not array.flags.owndata
    assert array.__array_interface__["data"][0] == np.frombuffer(raw, np.uint8).__array_interface__["data"][0]


@pytest.mark.parametrize(
    ("name", "datatype", "shape", "told"),
    [
        ("", "FP32", [1], "must be a text that is not empty"),
        (7, "FP32", [1], "must be a text that is not empty, not 7"),
        ("x", "FP33", [1], "must be one of BOOL, .*not 'FP33'"),
        ("x", ["FP32"], [1], "not list"),
        ("x", "FP32", [], "a list of 1 to 32"),
        ("x", "FP32", [1] * 33, "a list of 1 to 32"),
        ("x", "FP32", "12", "a list of 1 to 32"),
        ("x", "FP32", [1, 1.0], "whole numbers"),
        ("x", "FP32", [1, True], "whole numbers"),
        ("x", "FP32", [1, -1], "not negative"),
        ("x", "FP32", [-1, 3], "not negative"),
        ("x", "FP32", [1, 2**62], "not more than"),
        ("x", "FP32", [1, 2**62, 0], "not more than"),
        ("x", "FP32", [1, 2**32, 2**32], "not more than"),
        ("x", "FP32", [2**47], "2048; send several"),
        ("x", "FP32", [0, 3], "it has no row"),
        ("x", "FP32", [2049], "it has 2049 rows"),
        ("x", "FP32", [2048, 2048], "may come one by one"),
        ("x", "FP32", [10**5000], "not more than"),
    ],
)
def test_a_wrong_declaration_is_refused_before_anything_is_made(
    name: Any, datatype: Any, shape: Any, told: str
) -> None:
    with pytest.raises(ClientError, match=told):
        Reader(Bounds()).declared(name, datatype, shape, raw=False)


def test_inputs_have_different_names_as_many_rows_and_a_number_that_is_bounded() -> None:
    reader = Reader(Bounds(tensors=2, values=10))
    reader.declared("a", "FP32", [2, 3], raw=False)
    with pytest.raises(ClientError, match="it is there twice"):
        reader.declared("a", "FP32", [2, 3], raw=False)
    with pytest.raises(ClientError, match="it has 3 rows, and another input has 2"):
        reader.declared("b", "FP32", [3], raw=False)
    with pytest.raises(ClientError, match="may have 2 inputs"):
        reader.declared("c", "FP32", [2], raw=False)
    reader = Reader(Bounds(values=10))
    reader.declared("a", "FP32", [2, 3], raw=False)
    reader.declared("numbers as bytes", "FP32", [2, 300], raw=True)
    with pytest.raises(ClientError, match="10 of a request may come one by one"):
        reader.declared("b", "BYTES", [2], raw=True)


@pytest.mark.parametrize(
    ("most_rows", "rows", "inputs"), [(2048, 2048, 16), (2048, 512, 64), (8, 8, 64), (5000, 5000, 16)]
)
def test_the_rows_of_all_inputs_together_are_bounded(most_rows: int, rows: int, inputs: int) -> None:
    reader = Reader(Bounds(rows=most_rows, tensors=65))
    for number in range(inputs):
        reader.declared(f"x{number}", "FP32", [rows, 0], raw=True)
    if most_rows > 8:
        with pytest.raises(ClientError, match=r"all inputs have \d+ rows together, and may have \d+; send several"):
            reader.declared("y", "FP32", [rows, 0], raw=True)


def test_what_has_too_many_values_for_json_may_be_had_as_bytes() -> None:
    tensor = NamedArray("y", DATATYPES["INT8"], np.zeros((1, 41), np.int8))
    with pytest.raises(ClientError, match="41 values, and may have 40 there; ask for it as binary data"):
        tensor.values(Bounds(values=10))
    assert len(tensor.raw()) == 41


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "told"),
    [
        ("FP32", [2], [1], "1 values came, and the shape \\[2\\] has 2"),
        ("FP32", [2, 2], [1, 2, 3], "3 values came"),
        ("FP32", [2, 2], [[1, 2], [3]], "nested otherwise than the shape \\[2, 2\\]"),
        ("FP32", [2, 2], [[1, 2], 3], "nested otherwise"),
        ("FP32", [1, 1], [[[1]]], "FP32 are numbers, not lists"),
        ("FP32", [1], ["1"], "FP32 are numbers, not texts"),
        ("FP32", [1], [None], "FP32 are numbers, not null"),
        ("FP32", [1], [True], "FP32 are numbers, not true or false"),
        ("FP32", [1], [{}], "FP32 are numbers, not objects"),
        ("FP32", [1], 1, "must be a list"),
        ("FP32", [1], "1", "must be a list"),
        ("FP32", [1], None, "must be a list"),
        ("FP16", [1], [70000], "too large for FP16"),
        ("FP32", [1], [1e39], "too large for FP32"),
        ("FP64", [1], [10**400], "too large for FP64"),
        ("BF16", [1], [3.4e38, 3.4e38][:1], "too large for BF16"),
        ("INT8", [1], [128], "from -128 to 127"),
        ("UINT64", [1], [-1], "from 0 to 18446744073709551615"),
        ("INT64", [1], [2**63], "from -9223372036854775808"),
        ("INT32", [1], [1.5], "INT32 are whole numbers, not numbers"),
        ("BOOL", [1], [1], "BOOL are true or false"),
        ("BYTES", [1], [1], "BYTES are texts"),
    ],
)
def test_a_list_that_is_not_what_was_declared_is_refused(datatype: str, shape: Any, data: Any, told: str) -> None:
    declared = Reader(Bounds()).declared("x", datatype, shape, raw=False)
    with pytest.raises(ClientError, match=told):
        declared.from_values(data)


@pytest.mark.parametrize(
    ("datatype", "shape", "raw", "told"),
    [
        ("FP32", [2], b"1234", "4 bytes came, and FP32 of the shape \\[2\\] has 8"),
        ("FP32", [1, 2**40], b"1234", "4 bytes came"),
        ("BOOL", [1], b"\x02", "0 or 1"),
        ("BYTES", [2], b"\0\0\0\0", "4 bytes came, and 2 values"),
        ("BYTES", [1], b"\xff\xff\xff\xff", "says that it has 4294967295 bytes, and 0 are left"),
        ("BYTES", [2], b"\x04\0\0\0abcd\0\0", "the bytes end before value 1"),
        ("BYTES", [1], b"\0\0\0\0x", "1 bytes are left behind"),
    ],
)
def test_bytes_that_are_not_what_was_declared_are_refused(datatype: str, shape: Any, raw: bytes, told: str) -> None:
    declared = Reader(Bounds()).declared("x", datatype, shape, raw=True)
    with pytest.raises(ClientError, match=told):
        declared.from_raw(raw)


@pytest.mark.parametrize(
    ("datatype", "values"), [("FP32", [1.0, math.nan]), ("FP64", [math.inf]), ("BYTES", [b"\xff"])]
)
def test_what_json_cannot_say_is_refused_and_may_be_had_as_bytes(datatype: str, values: list[Any]) -> None:
    kind = DATATYPES[datatype]
    tensor = NamedArray("y", kind, np.array(values, kind.numpy))
    with pytest.raises(ClientError, match="ask for it as binary data"):
        tensor.values(Bounds())
    assert len(tensor.raw())


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([np.float32(1), np.float32(2)], np.array([1, 2], np.float32)),
        ([np.uint8(1), np.uint8(255)], np.array([1, 255], np.uint8)),
        ([1.5, 2.5], np.array([1.5, 2.5])),
        ([True, False], np.array([True, False])),
        ([1, 2.5], np.array([1, 2.5])),
        ([np.float32(1), np.float64(2)], np.array([1.0, 2.0])),
        ([np.ones(2, np.int8), np.zeros(2, np.int8)], np.array([[1, 1], [0, 0]], np.int8)),
        ([np.ones((2, 0)), np.ones((2, 0))], np.ones((2, 2, 0))),
        ([np.array(1.5), np.array(2.5)], np.array([1.5, 2.5])),
        ([np.ones((1, 2)).T, [[1], [2]]], np.array([[[1.0], [1.0]], [[1.0], [2.0]]])),
        (["a", b"b\0"], np.array(["a", b"b\0"], object)),
        ([[1, 2]], np.array([[1, 2]])),
    ],
)
def test_rows_are_joined_to_one_array_of_the_type_that_they_have(rows: list[Any], expected: Any) -> None:
    joined = datatypes.joined(rows)
    assert (joined.dtype, joined.shape, joined.tolist()) == (expected.dtype, expected.shape, expected.tolist())


def test_rows_of_different_shapes_are_not_joined() -> None:
    with pytest.raises(ValueError, match=r"its rows differ in their shape \(\[2\] and \[3\]\)"):
        datatypes.joined([np.ones(2), np.ones(3)])
