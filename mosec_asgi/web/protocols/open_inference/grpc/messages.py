"""Messages to requests, and tensors to messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from google.protobuf.message import DecodeError, Message

from mosec_asgi.errors import ClientError, DecodingError
from mosec_asgi.web.protocols.open_inference.grpc import open_inference_pb2 as pb
from mosec_asgi.web.protocols.open_inference.grpc.bounds import check_fields
from mosec_asgi.web.protocols.open_inference.inference import InferRequest, Model
from mosec_asgi.web.protocols.open_inference.reading import Parameters, read_parameters
from mosec_asgi.web.protocols.open_inference.tensors import MAX_RANK, Bounds, NamedArray, Reader, shown, wrong_input

# In which list of a message the values of a datatype stand. FP16 and BF16 come as bytes only.
_LISTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
# Triton's, in the parameters of a request in a stream: a last answer without outputs is wanted.
_EMPTY_FINAL = "triton_enable_empty_final_response"
# In those of an answer: no other one follows it.
FINAL = "triton_final_response"

MessageT = TypeVar("MessageT", bound=Message)


class Wanted(NamedTuple):
    """A request, and the form of its answer.

    Attributes:
        request: what is to be run.
        typed: the answer's values are to stand in lists, as those of the request.
        empty_final: a last answer without outputs is wanted behind a stream.
        timeout: seconds that the client gives it by a parameter; None where it does not say.
    """

    request: InferRequest
    typed: bool
    empty_final: bool
    timeout: float | None


def parsed(kind: type[MessageT], body: bytes) -> MessageT:
    """Return a message of a kind.

    Raises:
        DecodingError: it is none.
    """
    try:
        return kind.FromString(body)
    except DecodeError as error:
        raise DecodingError(f"the message is no {kind.DESCRIPTOR.full_name}: {error}") from error


def parsed_infer(body: bytes) -> pb.ModelInferRequest:
    """Return a request; raises a `ClientError` where it is none, or has more parts than one needs."""
    check_fields(body)
    return parsed(pb.ModelInferRequest, body)


def read_infer(message: pb.ModelInferRequest, bounds: Bounds) -> Wanted:
    """Return what a request wants.

    Raises:
        ClientError: it is wrong; the text says what.
    """
    own, empty_final = _parameters(message.parameters)
    raw = message.raw_input_contents
    _few(message.inputs, "inputs", bounds)
    if raw and len(raw) != len(message.inputs):
        raise ClientError(f"there are {len(message.inputs)} inputs, and {len(raw)} of raw_input_contents; send as many")
    reader = Reader(bounds)
    arrays = [_read_input(reader, tensor, raw[place] if raw else None) for place, tensor in enumerate(message.inputs)]
    _few(message.outputs, "outputs", bounds)
    for output in message.outputs:
        _check_parameters(output.parameters, f"the output {shown(output.name)}")
    names = [output.name for output in message.outputs]
    request = InferRequest(arrays, names, own.own, message.id)
    return Wanted(request, not raw, empty_final, own.timeout)


def _few(tensors: Sequence[Any], what: str, bounds: Bounds) -> None:
    if len(tensors) > bounds.tensors:
        raise ClientError(f"{what}: there are {len(tensors)}, and a request may have {bounds.tensors}")


def _read_input(reader: Reader, tensor: pb.ModelInferRequest.InferInputTensor, raw: bytes | None) -> NamedArray:
    _check_parameters(tensor.parameters, f"the input {shown(tensor.name)}")
    # A longer shape is wrong whatever it holds.
    shape = list(tensor.shape[: MAX_RANK + 1])
    declared = reader.declared(tensor.name, tensor.datatype, shape, raw=raw is not None)
    if raw is not None:
        if tensor.HasField("contents"):
            raise wrong_input(tensor.name, "it has contents, and raw_input_contents as well; leave one of them out")
        return declared.from_raw(raw)
    datatype = declared.datatype.name
    if datatype not in _LISTS:
        raise wrong_input(tensor.name, f"{datatype} has no list in contents; send it in raw_input_contents")
    values = getattr(tensor.contents, _LISTS[datatype])
    for other, _ in tensor.contents.ListFields():
        if other.name != _LISTS[datatype]:
            raise wrong_input(tensor.name, f"it has {other.name}, and values of {datatype} stand in {_LISTS[datatype]}")
    # One more than there should be is as wrong as a million more, of which no list is made.
    return declared.from_values(list(values[: declared.count + 1]))


def _parameters(given: Mapping[str, pb.InferParameter]) -> tuple[Parameters, bool]:
    values = _plain(given)
    empty_final = values.pop(_EMPTY_FINAL, False) is True
    return read_parameters({"parameters": values}), empty_final


def _check_parameters(given: Mapping[str, pb.InferParameter], what: str) -> None:
    """Refuse parameters of a tensor that nobody would follow; others are nobody's."""
    try:
        if given:
            read_parameters({"parameters": dict.fromkeys(given, 0)})
    except ClientError as error:
        raise ClientError(f"{what}: {error}") from error


def _plain(given: Mapping[str, pb.InferParameter]) -> dict[str, Any]:
    values = {}
    for name, parameter in given.items():
        choice = parameter.WhichOneof("parameter_choice")
        if choice is not None:
            values[name] = getattr(parameter, choice)
    return values


def infer_response(
    model: Model, wanted: Wanted, outputs: Iterable[NamedArray], bounds: Bounds, *, final: bool | None = None
) -> pb.ModelInferResponse:
    """Return the answer with these outputs: as bytes, or in lists where the request had lists and there are some.

    Args:
        model: that has made them.
        wanted: by the client.
        outputs: the tensors.
        bounds: of the values that stand in lists, which takes a while for each.
        final: what the answer says of whether others follow; None for nothing.
    """
    outputs = list(outputs)
    answer = pb.ModelInferResponse(model_name=model.name, model_version=model.version, id=wanted.request.id)
    if final is not None:
        answer.parameters[FINAL].bool_param = final
    few = sum(output.array.size for output in outputs) <= bounds.values
    typed = wanted.typed and few and all(output.datatype.name in _LISTS for output in outputs)
    for output in outputs:
        tensor = answer.outputs.add(name=output.name, datatype=output.datatype.name, shape=output.shape)
        if typed:
            getattr(tensor.contents, _LISTS[output.datatype.name]).extend(output.array.reshape(-1).tolist())
        else:
            answer.raw_output_contents.append(bytes(output.raw()))
    return answer
