"""`POST /v2/models/{model}/generate` and `generate_stream`: one row, whose inputs are fields of a JSON object.

Triton's extension for language models: `{"text_input": "once", "parameters": {"temperature": 0}}` is answered by
`{"model_name": "m", "model_version": "1", "text_output": "..."}`, or by such objects as server-sent events.
"""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import orjson

from mosec_asgi.errors import ClientError
from mosec_asgi.web.protocols.open_inference import described
from mosec_asgi.web.protocols.open_inference.description import Tensor
from mosec_asgi.web.protocols.open_inference.inference import InferRequest, Model
from mosec_asgi.web.protocols.open_inference.pieces import piece_of
from mosec_asgi.web.protocols.open_inference.reading import Wanted, read_id, read_object, read_parameters
from mosec_asgi.web.protocols.open_inference.service import Asked, ModelEndpoint, error_object
from mosec_asgi.web.protocols.open_inference.tensors import MAX_RANK, Bounds, NamedArray, Reader, shown
from mosec_asgi.web.protocols.seam import JSON, NO_CACHE, Ask, EventForm, Problem
from mosec_asgi.web.responses import Response

if TYPE_CHECKING:
    from mosec_asgi.web.exchange import Request

_OWN = ("id", "parameters")
# The datatype of an input that nobody describes, by what stands in JSON.
_KINDS = {str: "BYTES", bool: "BOOL", int: "INT64", float: "FP64"}


class Generate(ModelEndpoint):
    """One row in, one row out."""

    action = "generate"

    def read(self, model: Model, request: Request) -> Ask:
        """Return a call for the row."""
        fields = read_object(request.body, self.common.bounds)
        parameters = read_parameters(fields)
        reader = Reader(self.common.bounds)
        arrays = [
            _read_row(reader, name, value, model.inputs.tensors.get(name))
            for name, value in fields.items()
            if name not in _OWN
        ]
        told = InferRequest(arrays, (), parameters.own, read_id(fields))
        wanted = Wanted(told, {}, binary_default=False, timeout=parameters.timeout)
        return Ask(model.route, model.items(told), Asked(model, wanted), wanted.timeout)

    def answer(self, ask: Ask, results: Sequence[Any]) -> Response:
        """Return the row."""
        model, wanted = ask.context
        told = row_of(model, wanted.request, self.wholes(model, results)[0], self.common.bounds)
        return Response(HTTPStatus.OK, (JSON,), told)

    def describe(self) -> dict[str, Any]:
        """Describe the endpoint, for each model whose name stands in the path."""
        return described.generate(self, streamed=False)


class GenerateStream(Generate):
    """One row in, and a row out for each event of its stream."""

    action = "generate_stream"

    def stream(self, ask: Ask) -> EventForm | None:
        """Return the form of the stream."""
        return RowForm(ask, self.common.bounds)

    def answer(self, ask: Ask, results: Sequence[Any]) -> Response:
        """Return the only row of a worker that does not stream, as a stream."""
        form = RowForm(ask, self.common.bounds)
        headers = ((b"content-type", form.content_type.encode()), *NO_CACHE)
        return Response(HTTPStatus.OK, headers, form.piece(results[0], 0))

    def describe(self) -> dict[str, Any]:
        """Describe the endpoint, for each model whose name stands in the path."""
        return described.generate(self, streamed=True)


class RowForm(EventForm):
    """A stream of rows, each of them an object."""

    def __init__(self, ask: Ask, bounds: Bounds) -> None:
        """Begin with nothing sent."""
        self._bounds = bounds
        self._model, wanted = ask.context
        self._request = wanted.request

    def piece(self, event: Any, place: int) -> bytes:
        """Return an event as a row."""
        try:
            return _event(row_of(self._model, self._request, piece_of(event), self._bounds))
        # What JSON cannot say would be the client's to ask for in another way: here there is none.
        except ClientError as error:
            return _event(orjson.dumps({"error": str(error)}))

    def failure(self, problem: Problem) -> bytes | None:
        """Return what went wrong as an object."""
        return _event(orjson.dumps(error_object(problem)))


def row_of(model: Model, request: InferRequest, result: Any, bounds: Bounds) -> bytes:
    """Return a result as a JSON object: the outputs are its fields; one of a single value is that value.

    Raises:
        ClientError: JSON has no form for it.
    """
    told: dict[str, Any] = {"model_name": model.name, "model_version": model.version}
    if request.id:
        told["id"] = request.id
    for output in model.outputs_of(request, [result]):
        told[output.name] = _value(output, bounds)
    return orjson.dumps(told, option=orjson.OPT_SERIALIZE_NUMPY)


def _value(output: NamedArray, bounds: Bounds) -> Any:
    values = output.values(bounds)
    if len(values) == 1:
        return values[0]
    if isinstance(values, list):
        # Texts, whose array holds bytes.
        array = output.array.copy()
        array.reshape(-1)[:] = values
        return array[0].tolist()
    # Contiguous, which a worker's array need not be.
    return values.reshape(output.array.shape[1:])


def _read_row(reader: Reader, name: str, value: Any, tensor: Tensor | None) -> NamedArray:
    """Return a field as an input of one row.

    Args:
        reader: of the request's inputs.
        name: of the field.
        value: a plain one, or a list of them, nested as a row is; a plain one will do where a row has one value.
        tensor: how the input is described; None where it is not.
    """
    shape = _shape_of(name, value)
    if tensor is None:
        datatype = _KINDS.get(type(_first(value)), "BYTES")
    else:
        datatype = tensor.datatype
        missing = len(tensor.shape) - 1 - len(shape)
        if not shape and missing > 0:
            for _ in range(missing):
                value = [value]
            shape = [1] * missing
    return reader.declared(name, datatype, [1, *shape], raw=False).from_values([value])


def _shape_of(name: str, value: Any) -> list[int]:
    """Return the shape of a value, as far as its first parts say it."""
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        if len(shape) >= MAX_RANK:
            raise ClientError(f"the input {shown(name)}: it is nested deeper than {MAX_RANK - 1} levels")
        if not value:
            break
        value = value[0]
    return shape


def _first(value: Any) -> Any:
    while isinstance(value, list) and value:
        value = value[0]
    return value


def _event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"
