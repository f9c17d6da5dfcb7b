"""A request of the protocol, and what becomes of it: rows for `forward`, and what it returns joined to tensors. Pure.

    request ── Model.items ──► an item for each row ── forward ──► results ── Model.outputs ──► tensors

Whatever carries a request (HTTP, gRPC) makes an `InferRequest` of it, and gives tensors the form of its answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import numpy as np

from mosec_asgi.errors import ClientError, ServerError
from mosec_asgi.web.protocols.open_inference import datatypes
from mosec_asgi.web.protocols.open_inference.datatypes import BYTES, DATATYPES
from mosec_asgi.web.protocols.open_inference.description import PARAMETERS, Described, Tensor, described
from mosec_asgi.web.protocols.open_inference.tensors import NamedArray, shown, wrong_input

if TYPE_CHECKING:
    from mosec_asgi.web.protocols.open_inference.datatypes import Array

PLATFORM = "mosec_asgi"
VERSION = "1"
# What the only output of a model is called that does not describe it; where that is text, as Triton's backends do.
ONLY_OUTPUT, ONLY_TEXT = "output", "text_output"
# Names that an error mentions.
_MOST = 20


class NotFound(ClientError):
    """There is no such model, or no such version of it."""

    code = HTTPStatus.NOT_FOUND
    msg = "not found"


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A request, whatever has carried it.

    Attributes:
        inputs: its tensors, as `tensors.Reader` has had them declared: of as many rows, under names that differ.
        outputs: the names of those that are wanted; none of them for all.
        parameters: of the request, those that the protocol itself reads not among them.
        id: the client's name for it; empty for none.
    """

    inputs: Sequence[NamedArray]
    outputs: Sequence[str] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    id: str = ""


class Model:
    """A model, as clients know it.

    Attributes:
        name: of the model.
        route: of its workers.
        version: of the model; there is one.
        inputs: what its first stage's worker says that it takes.
        outputs: what its last stage's worker says that it returns.
    """

    def __init__(self, name: str, route: str, inputs: Described, outputs: Described, version: str = VERSION) -> None:
        """Describe a model; see the attributes."""
        self.name = name
        self.route = route
        self.version = version
        self.inputs = inputs
        self.outputs = outputs

    @classmethod
    def of(cls, name: str, route: str, workers: Sequence[type[Any]], version: str = VERSION) -> Model:
        """Return the model of a route, as its workers describe it.

        Args:
            name: of the model.
            route: of the workers.
            workers: their classes, in the order of the stages.
            version: of the model.

        Raises:
            DefinitionError: a description is wrong; the text says what to change.
        """
        return cls(name, route, described(workers[0], "inputs"), described(workers[-1], "outputs"), version)

    def metadata(self) -> dict[str, Any]:
        """Return what clients are told of the model."""
        return {
            "name": self.name,
            "versions": [self.version],
            "platform": PLATFORM,
            "inputs": [tensor.metadata() for tensor in self.inputs.tensors.values()],
            "outputs": [tensor.metadata() for tensor in self.outputs.tensors.values()],
        }

    # -- request to items ----------------------------------------------------------------------------------------------

    def items(self, request: InferRequest) -> Sequence[Any]:
        """Return an item for each row of a request: a dictionary of a row of each input, or the row itself.

        A dictionary has the request's parameters as well, where there are any. Items are made when they are asked for.

        Raises:
            ClientError: the request is not such as the model describes.
        """
        self._check_outputs(request.outputs)
        arrays = self._checked_inputs(request.inputs)
        if self.inputs.lone:
            return Rows(next(iter(arrays.values())))
        return Items(arrays, request.parameters)

    def _checked_inputs(self, inputs: Sequence[NamedArray]) -> dict[str, Array]:
        if not inputs:
            raise ClientError("a request needs inputs, and has none")
        arrays = {}
        there = self.inputs.tensors
        for each in inputs:
            array = each.array
            if there:
                tensor = there.get(each.name)
                if tensor is None:
                    raise wrong_input(each.name, f"the model {shown(self.name)} takes only {_listed(there)}")
                check_input(tensor, each)
                if tensor.text:
                    array = _texts(each)
            elif each.name == PARAMETERS:
                raise wrong_input(each.name, "an item has the request's parameters by this name; use another")
            arrays[each.name] = array
        for name in there:
            if name not in arrays:
                raise wrong_input(name, f"it is missing; the model {shown(self.name)} takes {_listed(there)}")
        return arrays

    def _check_outputs(self, names: Sequence[str]) -> None:
        there = self.outputs.tensors
        for name in names if there else ():
            if name not in there:
                raise self._no_output(name, list(there))
        if len(set(names)) < len(names):
            raise ClientError("outputs: each may be asked for once")

    def _no_output(self, name: str, there: Sequence[str]) -> ClientError:
        return ClientError(f"the output {shown(name)}: the model {shown(self.name)} has only {_listed(there)}")

    # -- results to outputs --------------------------------------------------------------------------------------------

    def outputs_of(self, request: InferRequest, results: Sequence[Any]) -> list[NamedArray]:
        """Return the outputs, given what `forward` has returned for each row, in the order of the rows.

        A result is a dictionary of the outputs by name, or the only output itself. Of a dictionary that is described,
        what is not described is left out.

        Raises:
            ServerError: the results are not such as the worker describes, or cannot be joined.
            ClientError: an output was asked for that there is not.
        """
        columns = self._columns(results)
        for name in request.outputs:
            if name not in columns:
                raise self._no_output(name, list(columns))
        return [self._joined(name, columns[name]) for name in request.outputs or columns]

    def _columns(self, results: Sequence[Any]) -> dict[str, list[Any]]:
        """Return the results by the names of outputs."""
        names = list(self.outputs.tensors)
        if self.outputs.lone or not isinstance(results[0], Mapping):
            if len(names) > 1:
                raise self._fault(f"{type(results[0]).__name__}, and not a dictionary of {_listed(names)}")
            name = ONLY_TEXT if isinstance(results[0], str) else ONLY_OUTPUT
            return {names[0] if names else name: list(results)}
        columns: dict[str, list[Any]] = {}
        for name in names or list(results[0]):
            if not isinstance(name, str):
                raise self._fault("a dictionary whose names are no texts")
            try:
                columns[name] = [result[name] for result in results]
            except (LookupError, TypeError) as error:
                raise self._fault(f"a result without the output {shown(name)}") from error
        return columns

    def _joined(self, name: str, rows: Sequence[Any]) -> NamedArray:
        """Return the rows of an output as one tensor."""
        tensor = self.outputs.tensors.get(name)
        try:
            joined = datatypes.joined(rows)
            datatype = datatypes.datatype_of(joined) if tensor is None else DATATYPES[tensor.datatype]
            if datatype is None:
                raise ValueError(f"there is no datatype for values of {joined.dtype}")
            if tensor is not None and not _fits(joined.shape, tensor.shape):
                raise ValueError(f"its shape is {list(joined.shape)}, and {list(tensor.shape)} is described")
            return NamedArray(name, datatype, datatypes.converted(datatype, joined))
        except (ValueError, TypeError) as error:
            raise self._fault(f"an output {shown(name)} that is none: {error}") from error

    def _fault(self, what: str) -> ServerError:
        return ServerError(f"the model {shown(self.name)} returned {what}")


class Rows(Sequence[Any]):
    """The rows of one array, as items."""

    def __init__(self, array: Array) -> None:
        """Store it; its first dimension is that of the rows."""
        self._array = array

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._array)

    def __getitem__(self, place: Any) -> Any:
        """Return a row."""
        return self._array[place]


class Items(Sequence[Any]):
    """The rows of several arrays, as dictionaries."""

    def __init__(self, arrays: Mapping[str, Array], parameters: Mapping[str, Any]) -> None:
        """Store them.

        Args:
            arrays: by name, all of as many rows.
            parameters: that each item has; none are left out.
        """
        self._arrays = arrays
        self._more = {PARAMETERS: dict(parameters)} if parameters else {}

    def __len__(self) -> int:
        """Return how many there are."""
        return len(next(iter(self._arrays.values())))

    def __getitem__(self, place: Any) -> Any:
        """Return an item."""
        return {**{name: array[place] for name, array in self._arrays.items()}, **self._more}


def model_of(models: Mapping[str, Model], name: str, version: str = "") -> Model:
    """Return a model by its name.

    Args:
        models: by their names.
        name: that a client has asked for.
        version: that it has asked for; empty for any.

    Raises:
        NotFound: there is none.
    """
    model = models.get(name)
    if model is None:
        raise NotFound(f"there is no model {shown(name)} here, only {_listed(models)}")
    if version not in ("", model.version):
        raise NotFound(f"the model {shown(name)} has the version {model.version} only, not {shown(version)}")
    return model


def check_input(tensor: Tensor, given: NamedArray) -> None:
    """Check that an input is such as it is described.

    Raises:
        ClientError: it is not.
    """
    if given.datatype.name != tensor.datatype:
        raise wrong_input(given.name, f"its datatype is {given.datatype.name}, and the model takes {tensor.datatype}")
    if not _fits(given.array.shape, tensor.shape):
        raise wrong_input(given.name, f"its shape is {given.shape}, and the model takes {list(tensor.shape)}")


def _fits(shape: Sequence[int], wanted: Sequence[int]) -> bool:
    return len(shape) == len(wanted) and all(most in (-1, size) for size, most in zip(shape, wanted, strict=True))


def _texts(given: NamedArray) -> Array:
    """Return the BYTES of an input as texts."""
    assert given.datatype is BYTES
    try:
        texts = [value.decode() for value in given.array.reshape(-1).tolist()]
    except UnicodeDecodeError as error:
        raise wrong_input(given.name, "it holds bytes that are no UTF-8") from error
    array = np.empty(len(texts), object)
    array[:] = texts
    return array.reshape(given.array.shape)


def _listed(names: Any) -> str:
    several = [shown(name) for name in names]
    return ", ".join(several[:_MOST]) + (", ..." if len(several) > _MOST else "")
