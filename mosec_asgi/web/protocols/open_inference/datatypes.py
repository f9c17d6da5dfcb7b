"""The protocol's datatypes, and their values as numpy has them, as bytes, and as lists in JSON. Pure.

Values are always arrays of numpy here, of the datatype's own type, but for two:

- BYTES are arrays of objects, each of them `bytes`.
- BF16 are arrays of float32, which has each value of it: numpy has no such type.

Bytes are little endian and row-major. A BYTES value is its length, in 4 bytes, and then its bytes.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


class Datatype(NamedTuple):
    """A datatype.

    Attributes:
        name: as requests name it.
        size: bytes of a value; 0 where that differs.
        numpy: the type of arrays that hold such values.
    """

    name: str
    size: int
    numpy: np.dtype[Any]

    @property
    def is_whole(self) -> bool:
        """Its values are whole numbers."""
        return self.numpy.kind in "iu"

    @property
    def is_float(self) -> bool:
        """Its values are floating-point numbers."""
        return self.numpy.kind == "f"


DATATYPES: dict[str, Datatype] = {
    name: Datatype(name, size, np.dtype(numpy))
    for name, size, numpy in (
        ("BOOL", 1, "?"),
        ("UINT8", 1, "<u1"),
        ("UINT16", 2, "<u2"),
        ("UINT32", 4, "<u4"),
        ("UINT64", 8, "<u8"),
        ("INT8", 1, "<i1"),
        ("INT16", 2, "<i2"),
        ("INT32", 4, "<i4"),
        ("INT64", 8, "<i8"),
        ("FP16", 2, "<f2"),
        ("FP32", 4, "<f4"),
        ("FP64", 8, "<f8"),
        ("BF16", 2, "<f4"),
        ("BYTES", 0, "O"),
    )
}
BYTES, BF16 = DATATYPES["BYTES"], DATATYPES["BF16"]
_OF_NUMPY = {(each.numpy.kind, each.numpy.itemsize): each for each in DATATYPES.values() if each not in (BYTES, BF16)}
_LENGTH = struct.Struct("<I")
# What stands in JSON in the place of one value, by the kind of the numpy type.
_PLAIN: dict[str, tuple[frozenset[type], str]] = {
    "b": (frozenset((bool,)), "true or false"),
    "i": (frozenset((int,)), "whole numbers"),
    "u": (frozenset((int,)), "whole numbers"),
    "f": (frozenset((int, float)), "numbers"),
    "O": (frozenset((str, bytes)), "texts"),
}


def datatype_of(array: Array) -> Datatype | None:
    """Return the datatype of an array's values; None where there is none."""
    if array.dtype.kind in "OSU":
        return BYTES
    if _is_bfloat16(array):
        return BF16
    return _OF_NUMPY.get((array.dtype.kind, array.dtype.itemsize))


def _is_bfloat16(array: Array) -> bool:
    """Whether its values are those of `ml_dtypes.bfloat16`, which is no type of numpy's own."""
    return array.dtype.kind == "V" and array.dtype.name == "bfloat16"


# -- bytes -------------------------------------------------------------------------------------------------------------


def from_raw(datatype: Datatype, shape: Sequence[int], raw: bytes | memoryview) -> Array:
    """Return an array of what came as bytes; it lies where they lie, where it can.

    Args:
        datatype: of the values.
        shape: of the array, of numbers that are not negative.
        raw: the bytes.

    Raises:
        ValueError: they are not what datatype and shape say; the text says why.
    """
    count = math.prod(shape)
    if datatype is BYTES:
        return _of_objects(_split(raw, count), shape)
    if len(raw) != count * datatype.size:
        raise ValueError(
            f"{len(raw)} bytes came, and {datatype.name} of the shape {list(shape)} has {count * datatype.size}"
        )
    if datatype is BF16:
        halves = np.frombuffer(raw, "<u2").astype(np.uint32)
        return (halves << np.uint32(16)).view(np.float32).reshape(shape)
    if datatype.numpy.kind == "b":
        values = np.frombuffer(raw, np.uint8)
        if values.size and values.max() > 1:
            raise ValueError("a BOOL is a byte that is 0 or 1")
        return values.view(np.bool_).reshape(shape)
    return np.frombuffer(raw, datatype.numpy).reshape(shape)


def _split(raw: bytes | memoryview, count: int) -> list[bytes]:
    """Return the BYTES values in bytes."""
    end = len(raw)
    # Before anything is made: a shape may say any number.
    if count * _LENGTH.size > end:
        raise ValueError(f"{end} bytes came, and {count} values of BYTES have {count * _LENGTH.size} at least")
    values = []
    place = 0
    for number in range(count):
        if end - place < _LENGTH.size:
            raise ValueError(f"the bytes end before value {number} of {count}")
        (length,) = _LENGTH.unpack_from(raw, place)
        place += _LENGTH.size
        if length > end - place:
            raise ValueError(f"value {number} says that it has {length} bytes, and {end - place} are left")
        values.append(bytes(raw[place : place + length]))
        place += length
    if place != end:
        raise ValueError(f"{end - place} bytes are left behind the last value")
    return values


def to_raw(datatype: Datatype, array: Array) -> bytes | memoryview:
    """Return an array as bytes; they lie where the array lies, where they can."""
    if datatype is BYTES:
        pieces = []
        for value in array.reshape(-1).tolist():
            pieces += [_LENGTH.pack(len(value)), value]
        return b"".join(pieces)
    if datatype is BF16:
        array = _to_bf16(array)
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return array.reshape(-1).view(np.uint8).data if array.size else b""


def _to_bf16(array: Array) -> Array:
    """Return the upper halves of float32 values, rounded to the nearest, and of two as near to the even one."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(array), np.uint32(0x7FC0), rounded).astype("<u2")


# -- JSON --------------------------------------------------------------------------------------------------------------


def from_values(datatype: Datatype, shape: Sequence[int], data: Sequence[Any]) -> Array:
    """Return an array of what came as a list: flat, or nested as the shape is.

    Args:
        datatype: of the values.
        shape: of the array, of numbers that are not negative.
        data: of plain values; text stands for its UTF-8 where the datatype is BYTES.

    Raises:
        ValueError: they are not what datatype and shape say; the text says why.
    """
    flat = _flat(data, shape)
    kinds, name = _PLAIN[datatype.numpy.kind]
    # All types at the speed of C: nobody else is served meanwhile.
    if not kinds.issuperset(map(type, flat)):
        wrong = next(value for value in flat if type(value) not in kinds)
        raise ValueError(f"{datatype.name} are {name}, not {_kind(wrong)}")
    if datatype is BYTES:
        return _of_objects([value.encode() if isinstance(value, str) else value for value in flat], shape)
    if datatype.is_whole and len(flat):
        bounds = np.iinfo(datatype.numpy)
        if min(flat) < bounds.min or max(flat) > bounds.max:
            raise ValueError(f"{datatype.name} are whole numbers from {bounds.min} to {bounds.max}")
    try:
        with np.errstate(over="ignore"):
            array = np.array(flat, datatype.numpy).reshape(shape)
            if datatype is BF16:
                array = from_raw(BF16, shape, to_raw(BF16, array))
    except OverflowError:
        raise ValueError(f"it holds a number that is too large for {datatype.name}") from None
    # In JSON there is no infinity; from gRPC it comes as itself.
    if datatype.is_float and np.isinf(array).any() and not any(map(math.isinf, flat)):
        raise ValueError(f"it holds a number that is too large for {datatype.name}")
    return array


def _flat(data: Sequence[Any], shape: Sequence[int]) -> Sequence[Any]:
    """Return the values of a list that is flat already, or nested as `shape` is."""
    count = math.prod(shape)
    if not (len(data) and isinstance(data[0], list)):
        if len(data) != count:
            raise ValueError(f"{len(data)} values came, and the shape {list(shape)} has {count}")
        return data
    level: list[Any] = [data]
    for axis, size in enumerate(shape):
        if not level:
            break
        if set(map(type, level)) != {list} or set(map(len, level)) != {size}:
            raise ValueError(f"the data is nested otherwise than the shape {list(shape)}: at dimension {axis}")
        level = list(itertools.chain.from_iterable(level))
    return level


def to_values(datatype: Datatype, array: Array) -> Any:
    """Return an array as JSON is made of it: flat, an array of numpy or a list of texts.

    Raises:
        ValueError: it cannot be encoded as JSON; the text says why.
    """
    flat = array.reshape(-1)
    if datatype is BYTES:
        try:
            return [value.decode() for value in flat.tolist()]
        except UnicodeDecodeError:
            raise ValueError("it holds bytes that are no UTF-8") from None
    if datatype.is_float and not np.isfinite(flat).all():
        raise ValueError("it holds NaN or infinity")
    return np.ascontiguousarray(flat)


# -- what workers return -----------------------------------------------------------------------------------------------


def converted(datatype: Datatype, array: Array) -> Array:
    """Return an array with values of a datatype.

    Args:
        datatype: to convert to.
        array: of any type; numbers become those of another size where they fit, and whole ones become floats.

    Raises:
        ValueError: its values are of another kind, or do not fit; the text says why.
    """
    if datatype is BYTES:
        return as_bytes(array)
    if array.dtype == datatype.numpy:
        return array
    if _is_bfloat16(array):
        array = array.astype(np.float32)
    kinds = {"b": "b", "i": "biu", "u": "biu", "f": "biuf"}[datatype.numpy.kind]
    if array.dtype.kind not in kinds:
        raise ValueError(f"its values are {array.dtype.name}, and {datatype.name} is described")
    if datatype.is_whole and array.dtype.kind in "iu" and array.size:
        bounds = np.iinfo(datatype.numpy)
        if int(array.min()) < bounds.min or int(array.max()) > bounds.max:
            raise ValueError(f"it holds a number that {datatype.name} has not")
    with np.errstate(over="ignore"):
        return array.astype(datatype.numpy)


def as_bytes(array: Array) -> Array:
    """Return an array of texts or bytes as one of `bytes` objects.

    Raises:
        ValueError: it holds something else.
    """
    values = array.reshape(-1).tolist()
    for value in values:
        if not isinstance(value, (str, bytes, bytearray)):
            raise ValueError(f"it holds {_kind(value)}, and BYTES are texts or bytes")
    return _of_objects([each.encode() if isinstance(each, str) else bytes(each) for each in values], array.shape)


def as_array(value: Any) -> Array:
    """Return what a worker has returned for a row as an array; texts and bytes as objects, whole as they are.

    Raises:
        ValueError: it is no array, nor a list that could be one.
    """
    if isinstance(value, (str, bytes, bytearray)):
        return _of_objects([value], ())
    array = np.asarray(value)
    # As its own type numpy would cut the zeros from the ends of bytes.
    return np.asarray(value, object) if array.dtype.kind in "SU" and not isinstance(value, np.ndarray) else array


def joined(rows: Sequence[Any]) -> Array:
    """Return what a worker has returned for rows as one array, whose first dimension is that of the rows.

    Nobody else is served meanwhile, and there may be thousands of rows of many outputs.

    Raises:
        ValueError: they are no arrays, nor lists that could be some, or differ in their shape.
    """
    # Single numbers of one type, at the speed of C; what stands in a list may become another type than alone.
    kinds = set(map(type, rows))
    if len(kinds) == 1 and isinstance(rows[0], (np.number, np.bool_, float, bool)):
        return np.array(rows, rows[0].dtype if isinstance(rows[0], np.generic) else type(rows[0]))
    arrays = list(rows) if kinds == {np.ndarray} else [as_array(row) for row in rows]
    if len({array.shape for array in arrays}) > 1:
        shapes = sorted({str(list(array.shape)) for array in arrays})[:2]
        raise ValueError(f"its rows differ in their shape ({' and '.join(shapes)})")
    # That of one row is not copied.
    if len(arrays) == 1:
        return arrays[0][np.newaxis]
    shape = arrays[0].shape
    return np.concatenate(arrays).reshape(len(arrays), *shape) if shape else np.stack(arrays)


def _of_objects(values: Sequence[Any], shape: Sequence[int]) -> Array:
    array = np.empty(len(values), object)
    array[:] = values
    return array.reshape(shape)


def _kind(value: Any) -> str:
    kinds = {bool: "true or false", int: "whole numbers", float: "numbers", str: "texts", list: "lists"}
    return kinds.get(type(value), "null" if value is None else "objects")
