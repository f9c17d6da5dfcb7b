"""A tensor of a request or of an answer: `NamedArray`, and the bounds within which one is read. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from mosec_asgi.errors import ClientError
from mosec_asgi.web.protocols.open_inference import datatypes
from mosec_asgi.web.protocols.open_inference.datatypes import BYTES, DATATYPES, Datatype

if TYPE_CHECKING:
    from mosec_asgi.web.protocols.open_inference.datatypes import Array

MAX_RANK = 32
# The most that the dimensions of a shape may come to, those that are 0 left out; numpy cannot take any number.
_BIGGEST = 2**48
# What a value of BYTES counts, where others count 1: so much longer it takes.
TEXT_WEIGHT = 4
# Rows of all inputs together, or so many times the rows of one where those may be more. Each is an array of its own on
# its way to a worker, and may be on its way back; nobody else is served while they are joined.
MOST_PARTS = 32_768
FULL_INPUTS = 16
# How many times more numbers may be written as JSON than may be read.
_MORE_OUT = 4
# Characters of a name, or of another value, that an error repeats.
_MOST_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one request may have.

    Attributes:
        rows: each of which is an item of its own.
        tensors: inputs, or outputs asked for.
        values: that are read one by one, all in all: those that do not come as bytes, and BYTES, each of which counts
            for four. Nobody else is served meanwhile; 300,000 take a few hundredths of a second.
    """

    rows: int = 2048
    tensors: int = 64
    values: int = 300_000


class NamedArray(NamedTuple):
    """A tensor: its values by the name under which a request or an answer has them.

    Attributes:
        name: of the tensor.
        datatype: of its values.
        array: see `datatypes` for how it holds them.
    """

    name: str
    datatype: Datatype
    array: Array

    @property
    def shape(self) -> list[int]:
        """How long it is in each dimension."""
        return list(self.array.shape)

    def raw(self) -> bytes | memoryview:
        """Return the values as bytes."""
        return datatypes.to_raw(self.datatype, self.array)

    def values(self, bounds: Bounds) -> Any:
        """Return the values as JSON is made of them: an array of one dimension, or a list of texts.

        Args:
            bounds: of the request; JSON may have a few times more values.

        Raises:
            ClientError: JSON has no form for them, or they are too many.
        """
        most = bounds.values * _MORE_OUT // (TEXT_WEIGHT if self.datatype is BYTES else 1)
        try:
            if self.array.size > most:
                raise ValueError(f"it has {self.array.size} values, and may have {most} there")
            return datatypes.to_values(self.datatype, self.array)
        except ValueError as error:
            raise ClientError(
                f"the output {shown(self.name)} cannot be given in JSON: {error}; ask for it as binary data"
            ) from error


@dataclass(frozen=True, slots=True)
class Declared:
    """An input as a request declares it; its data has yet to be read.

    Attributes:
        name: of the input.
        datatype: of its values.
        shape: at least one dimension, the first of which is at least 1.
        count: of values.
    """

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    count: int

    def from_raw(self, raw: bytes | memoryview) -> NamedArray:
        """Return the tensor, given its data as bytes.

        Raises:
            ClientError: they are not what was declared.
        """
        try:
            return NamedArray(self.name, self.datatype, datatypes.from_raw(self.datatype, self.shape, raw))
        except ValueError as error:
            raise wrong_input(self.name, str(error)) from error

    def from_values(self, values: Any) -> NamedArray:
        """Return the tensor, given its data as a list.

        Raises:
            ClientError: it is not what was declared.
        """
        if not isinstance(values, Sequence) or isinstance(values, (str, bytes)):
            raise wrong_input(self.name, "its data must be a list")
        try:
            return NamedArray(self.name, self.datatype, datatypes.from_values(self.datatype, self.shape, values))
        except ValueError as error:
            raise wrong_input(self.name, str(error)) from error


class Reader:
    """Reads the declarations of one request's inputs, within bounds."""

    def __init__(self, bounds: Bounds) -> None:
        """Begin with no input."""
        self._bounds = bounds
        self._names: set[str] = set()
        self._rows: int | None = None
        self._values = 0

    def declared(self, name: Any, datatype: Any, shape: Any, *, raw: bool) -> Declared:
        """Return an input as it is declared.

        Args:
            name: of the input.
            datatype: its name.
            shape: a list of whole numbers.
            raw: its data comes as bytes.

        Raises:
            ClientError: it is wrong, or beyond the bounds.
        """
        if not isinstance(name, str) or not name:
            raise ClientError(f"the name of an input must be a text that is not empty, not {shown(name)}")
        if name in self._names:
            raise wrong_input(name, "it is there twice")
        self._names.add(name)
        if len(self._names) > self._bounds.tensors:
            raise ClientError(f"a request may have {self._bounds.tensors} inputs")
        kind = DATATYPES.get(datatype) if isinstance(datatype, str) else None
        if kind is None:
            raise wrong_input(name, f"its datatype must be one of {', '.join(DATATYPES)}, not {shown(datatype)}")
        dimensions = self._checked_shape(name, shape)
        declared = Declared(name, kind, dimensions, math.prod(dimensions))
        if not raw or kind is BYTES:
            self._values += declared.count * (TEXT_WEIGHT if kind is BYTES else 1)
            if self._values > self._bounds.values:
                raise wrong_input(
                    name,
                    f"it has {declared.count} values, and {self._bounds.values} of a request may come one by one (in "
                    f"JSON, or as BYTES, which count for {TEXT_WEIGHT}); send numbers as binary data, or several "
                    "requests",
                )
        return declared

    def _checked_shape(self, name: str, shape: Any) -> tuple[int, ...]:
        if not isinstance(shape, (list, tuple)) or not 1 <= len(shape) <= MAX_RANK:
            raise wrong_input(name, f"its shape must be a list of 1 to {MAX_RANK} whole numbers, the first of rows")
        if not {int}.issuperset(map(type, shape)):
            raise wrong_input(name, "its shape must be a list of whole numbers")
        if min(shape) < 0 or math.prod(size or 1 for size in shape) > _BIGGEST:
            raise wrong_input(name, f"its shape must be of numbers that are not negative, and not more than {_BIGGEST}")
        rows = shape[0]
        if not 1 <= rows <= self._bounds.rows:
            few = "it has no row" if not rows else f"it has {rows} rows"
            raise wrong_input(
                name,
                f"{few}: the first dimension of its shape is their number, from 1 to {self._bounds.rows}; send "
                "several requests for more",
            )
        if self._rows is not None and rows != self._rows:
            raise wrong_input(name, f"it has {rows} rows, and another input has {self._rows}")
        self._rows = rows
        parts, most = rows * len(self._names), max(MOST_PARTS, FULL_INPUTS * self._bounds.rows)
        if parts > most:
            raise wrong_input(
                name, f"with it all inputs have {parts} rows together, and may have {most}; send several requests"
            )
        return tuple(shape)


def wrong_input(name: str, what: str) -> ClientError:
    """Return the error of an input; `what` is wrong with it."""
    return ClientError(f"the input {shown(name)}: {what}")


def shown(value: Any) -> str:
    """Return a value for a message: itself where it is short, else its beginning or its type."""
    if isinstance(value, str):
        return repr(value if len(value) <= _MOST_SHOWN else value[:_MOST_SHOWN] + "...")
    if isinstance(value, int) and not isinstance(value, bool):
        # A number of thousands of digits cannot even be written.
        return str(value) if value.bit_length() < 64 else "a larger number"
    return type(value).__name__ if value is not None else "null"
