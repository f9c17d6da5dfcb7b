"""Reads requests as they come over HTTP: JSON, and behind it the tensors that come as bytes.

POST /v2/models/m/infer
Inference-Header-Content-Length: 84

{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "parameters": {"binary_data_size": 12}}]}<12 bytes>
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from mosec_asgi.errors import ClientError, DecodingError
from mosec_asgi.formats import loads_json
from mosec_asgi.web.protocols.open_inference.inference import InferRequest
from mosec_asgi.web.protocols.open_inference.tensors import (
    TEXT_WEIGHT,
    Bounds,
    NamedArray,
    Reader,
    shown,
    wrong_input,
)
from mosec_asgi.web.protocols.weight import Weight, rough_weight, weight_of

if TYPE_CHECKING:
    from mosec_asgi.web.responses import Headers

HEADER_LENGTH = b"inference-header-content-length"
# What a request has in JSON beside the values of its tensors, in texts, brackets and commas.
_BESIDE = 4096
# Lists and objects of a request: the innermost lists of nested data are most of them.
MOST_BRACKETS = 25_000
# Parameters of a request, and the characters of their texts and names: each of its rows brings them to its worker.
MOST_PARAMETERS = 64
MOST_IN_PARAMETERS = 16_384
# What shared memory and Triton's classification would need; nobody would read them.
_UNKNOWN = ("shared_memory_region", "classification")
_BIGGEST_TIMEOUT = 2**63


class Wanted(NamedTuple):
    """A request, and the form of its answer.

    Attributes:
        request: what is to be run.
        binary: which outputs are to come as bytes; those that are not in it, as `binary_default` says.
        binary_default: outputs come as bytes.
        timeout: seconds that the client gives it; None where it does not say.
    """

    request: InferRequest
    binary: Mapping[str, bool]
    binary_default: bool
    timeout: float | None

    def as_bytes(self, name: str) -> bool:
        """Whether an output is to come as bytes."""
        return self.binary.get(name, self.binary_default)


class Parameters(NamedTuple):
    """The parameters of a request.

    Attributes:
        own: those that are the worker's.
        binary_default: outputs come as bytes.
        timeout: seconds that the client gives the request; None where it does not say.
    """

    own: Mapping[str, Any]
    binary_default: bool
    timeout: float | None


def read_infer(headers: Headers, body: bytes, bounds: Bounds) -> Wanted:
    """Return what a request to `infer` wants.

    Raises:
        ClientError: it is wrong; the text says what.
    """
    length = _header_length(headers, body)
    fields = read_object(body if length is None else body[:length], bounds)
    parameters = read_parameters(fields)
    inputs = _Inputs(b"" if length is None else memoryview(body)[length:], bounds)
    arrays = [inputs.read(each) for each in _objects(fields, "inputs", bounds)]
    inputs.end()
    binary: dict[str, bool] = {}
    names = []
    for output in _objects(fields, "outputs", bounds):
        name = output.get("name")
        if not isinstance(name, str) or not name:
            raise ClientError(f"the name of an output must be a text that is not empty, not {shown(name)}")
        names.append(name)
        form = _parameters(output, f"the output {shown(name)}").get("binary_data")
        if form is not None:
            binary[name] = _flag(form, f"the output {shown(name)}: binary_data")
    request = InferRequest(arrays, names, parameters.own, read_id(fields))
    return Wanted(request, binary, parameters.binary_default, parameters.timeout)


def read_object(data: bytes, bounds: Bounds) -> dict[str, Any]:
    """Return the fields of a JSON object, without those that are null.

    Raises:
        ClientError: it is none, or larger than the bounds.
    """
    if not data:
        raise ClientError("the body is empty; it must be a JSON object")
    _check_weight(data, bounds)
    try:
        value = loads_json(data, strict=True)
    except DecodingError as error:
        special = ": NaN and Infinity are no JSON; send such numbers as binary data"
        raise ClientError(f"{error}{special if b'NaN' in data or b'Infinity' in data else ''}") from error
    if not isinstance(value, dict):
        raise ClientError(f"the body must be a JSON object, not {shown(value)}")
    return {name: field for name, field in value.items() if field is not None}


def _check_weight(data: bytes, bounds: Bounds) -> None:
    """Refuse JSON of more values than the bounds allow, before it is read."""
    values = bounds.values + _BESIDE
    most = Weight(bounds.values // TEXT_WEIGHT + _BESIDE, MOST_BRACKETS, values)
    # So few bytes hold not so many.
    if len(data) <= min(most) or not rough_weight(data).exceeds(most):
        return
    found = weight_of(data, most)
    for count, allowed, what in zip(found, most, ("texts", "lists and objects", "values"), strict=True):
        if count > allowed:
            raise ClientError(
                f"the JSON has {count} {what}, and one request may have {allowed}; send the data flat, numbers as "
                "binary data, or several requests"
            )


def read_id(fields: Mapping[str, Any]) -> str:
    """Return the client's name for a request; empty where it has none.

    Raises:
        ClientError: it is no text.
    """
    name = fields.get("id", "")
    if not isinstance(name, str):
        raise ClientError(f"id: it must be a text, not {shown(name)}")
    return name


def read_parameters(fields: Mapping[str, Any]) -> Parameters:
    """Return the parameters of a request.

    Raises:
        ClientError: those that the protocol reads are wrong.
    """
    own = dict(_parameters(fields, "the request"))
    _check_parameters(own)
    binary = _flag(own.pop("binary_data_output", False), "binary_data_output")
    timeout = own.pop("timeout", None)
    if timeout is not None and (type(timeout) is not int or not 0 <= timeout < _BIGGEST_TIMEOUT):
        raise ClientError(f"timeout: it must be a whole number of microseconds, not {shown(timeout)}")
    # Triton takes 0 for none.
    return Parameters(own, binary, timeout / 1e6 if timeout else None)


def _check_parameters(own: Mapping[str, Any]) -> None:
    if len(own) > MOST_PARAMETERS:
        raise ClientError(f"parameters: there are {len(own)}, and a request may have {MOST_PARAMETERS}")
    size = 0
    for name, value in own.items():
        if not isinstance(value, (str, int, float)):
            raise ClientError(
                f"the parameter {shown(name)} must be a text, a number, or true or false, not {shown(value)}; send "
                "what is more as a text of JSON"
            )
        size += len(name) + (len(value) if isinstance(value, str) else 0)
    if size > MOST_IN_PARAMETERS:
        raise ClientError(f"parameters: their texts have {size} characters, and may have {MOST_IN_PARAMETERS}")


class _Inputs:
    """The inputs of a request, whose bytes follow each other behind the JSON."""

    def __init__(self, binary: bytes | memoryview, bounds: Bounds) -> None:
        self._binary = binary
        self._place = 0
        self._reader = Reader(bounds)

    def read(self, fields: Mapping[str, Any]) -> NamedArray:
        """Return the next input."""
        name = fields.get("name")
        size = _parameters(fields, f"the input {shown(name)}").get("binary_data_size")
        declared = self._reader.declared(name, fields.get("datatype"), fields.get("shape"), raw=size is not None)
        data = fields.get("data")
        if size is None:
            if data is None:
                raise wrong_input(declared.name, "it has no data: neither `data`, nor `binary_data_size` and bytes")
            return declared.from_values(data)
        if data is not None:
            raise wrong_input(declared.name, "it has both `data` and `binary_data_size`; leave one of them out")
        left = len(self._binary) - self._place
        if type(size) is not int or not 0 <= size <= left:
            raise wrong_input(
                declared.name, f"binary_data_size is {shown(size)}, and {left} bytes are left behind the JSON"
            )
        raw = self._binary[self._place : self._place + size]
        self._place += size
        return declared.from_raw(raw)

    def end(self) -> None:
        """Refuse bytes that belong to no input."""
        if left := len(self._binary) - self._place:
            raise ClientError(f"{left} bytes behind the JSON belong to no input")


def _header_length(headers: Headers, body: bytes) -> int | None:
    """Return how many bytes of a body are JSON; None for all."""
    header = headers.get(HEADER_LENGTH)
    if header is None:
        return None
    # More digits than any length has are no number that is worth to be read.
    length = int(header) if header.isdigit() and len(header) < 19 else 0
    if not 0 < length <= len(body):
        raise ClientError(
            f"the header Inference-Header-Content-Length must be the number of bytes of the JSON, from 1 to the "
            f"{len(body)} of the whole body, not {shown(header.decode('latin-1'))}"
        )
    return length


def _objects(fields: Mapping[str, Any], name: str, bounds: Bounds) -> list[Mapping[str, Any]]:
    value = fields.get(name, [])
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise ClientError(f"{name}: it must be a list of objects, not {shown(value)}")
    if len(value) > bounds.tensors:
        raise ClientError(f"{name}: there are {len(value)}, and a request may have {bounds.tensors}")
    return value


def _parameters(fields: Mapping[str, Any], what: str) -> Mapping[str, Any]:
    value = fields.get("parameters")
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ClientError(f"{what}: parameters must be an object, not {shown(value)}")
    for name in _UNKNOWN:
        if name in value:
            raise ClientError(f"{what}: this service knows no {name}; leave it out")
    return value


def _flag(value: Any, what: str) -> bool:
    if not isinstance(value, bool):
        raise ClientError(f"{what} must be true or false, not {shown(value)}")
    return value
