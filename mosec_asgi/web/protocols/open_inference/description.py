"""What a model takes and returns, as its worker describes it: `Tensor`. Light: workers import it.

    class Classify(Worker):
        inputs = [Tensor("image", "FP32", [-1, 3, 224, 224])]
        outputs = [Tensor("label", "BYTES", [-1]), Tensor("score", "FP32", [-1])]

The first dimension of a shape is that of the rows, and -1: `forward` is given a row, one item, as the dictionary
`{"image": <array of 3 x 224 x 224>}`, and returns `{"label": "cat", "score": 0.9}` for it. A description that is one
`Tensor` and no list says that an item, or a result, is the row itself. The annotations of `forward` may say the same:
by `Annotated[np.ndarray, Tensor(...)]` as the type of an item, or of the fields of the `TypedDict` that an item is.
"""

from __future__ import annotations

import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from mosec_asgi.annotations import forward_input_type, forward_return_type
from mosec_asgi.errors import DefinitionError

NAMES = (
    "BOOL",
    *(f"{sign}INT{bits}" for sign in ("U", "") for bits in (8, 16, 32, 64)),
    "FP16",
    "FP32",
    "FP64",
    "BF16",
    "BYTES",
)
# In an item, where the request's parameters stand.
PARAMETERS = "parameters"


@dataclass(frozen=True)
class Tensor:
    """An input or an output of a model.

    Attributes:
        name: of the tensor.
        datatype: of its values: BOOL, UINT8 to UINT64, INT8 to INT64, FP16, FP32, FP64, BF16 or BYTES.
        shape: how long it is in each dimension; -1 where that may differ, and in the first, which is that of the rows.
        text: of an input of BYTES: `forward` is given `str` in the place of `bytes`, and what is no UTF-8 is refused.
    """

    name: str
    datatype: str
    shape: Sequence[int]
    text: bool = False

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            DefinitionError: one does not fit; the text says what to change.
        """
        if not isinstance(self.name, str) or not self.name:
            raise DefinitionError(f"the name of a Tensor must be a text that is not empty, not {self.name!r}")
        if self.datatype not in NAMES:
            raise DefinitionError(
                f"the datatype of the Tensor {self.name!r} must be one of {', '.join(NAMES)}, not {self.datatype!r}"
            )
        shape = self.shape
        right = isinstance(shape, (list, tuple)) and len(shape) > 0 and all(type(size) is int for size in shape)
        if not right or shape[0] != -1 or min(shape) < -1:
            raise DefinitionError(
                f"the shape of the Tensor {self.name!r} must be a list of whole numbers, -1 for any length, of which "
                f"the first is -1, for the rows: [-1, 3] where a row has 3 values, not {shape!r}"
            )
        if self.text and self.datatype != "BYTES":
            raise DefinitionError(f"the Tensor {self.name!r} is of {self.datatype}; only BYTES may be given as text")
        object.__setattr__(self, "shape", tuple(shape))

    def metadata(self) -> dict[str, Any]:
        """Return what clients are told of it."""
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}


@dataclass(frozen=True)
class Described:
    """The tensors of one side of a model.

    Attributes:
        tensors: by their names; none where the worker does not say.
        lone: an item, or a result, is the row of the only one, and no dictionary.
    """

    tensors: dict[str, Tensor]
    lone: bool


def described(worker: type[Any], side: str) -> Described:
    """Return what a worker says of its inputs or of its outputs.

    Args:
        worker: its class.
        side: the name of the attribute: `inputs` or `outputs`.

    Raises:
        DefinitionError: it says something else than tensors.
    """
    said = getattr(worker, side, None)
    if said is None:
        return _annotated(worker, side) or Described({}, lone=False)
    if isinstance(said, Tensor):
        return Described({said.name: said}, lone=True)
    if not isinstance(said, (list, tuple)) or not said or not all(isinstance(each, Tensor) for each in said):
        raise DefinitionError(
            f"{worker.__name__}.{side} must be a list such as [Tensor('x', 'FP32', [-1, 3])], or one Tensor, not "
            f"{said!r}"
        )
    return _of_list(worker, side, said)


def _of_list(worker: type[Any], side: str, said: Sequence[Tensor]) -> Described:
    names = [each.name for each in said]
    if len(set(names)) < len(names) or (PARAMETERS in names and side == "inputs"):
        raise DefinitionError(
            f"{worker.__name__}.{side} must have names that differ, and an item has its request's parameters by the "
            f"name {PARAMETERS!r}; there are {', '.join(names)}"
        )
    return Described({each.name: each for each in said}, lone=False)


def _annotated(worker: type[Any], side: str) -> Described | None:
    """Return what the annotations of `forward` say; None where they name no tensor, or cannot be read."""
    read = forward_input_type if side == "inputs" else forward_return_type
    try:
        annotation = read(worker, False)
    # A `forward` that is no plain function may have no signature.
    except (DefinitionError, TypeError, ValueError):
        return None
    found = _tensors_in(annotation)
    # The fields of a dictionary have the same rules as a list.
    return found if found is None or found.lone else _of_list(worker, side, list(found.tensors.values()))


def _tensors_in(annotation: Any) -> Described | None:
    """Return the tensors that an annotation names, within whatever lists, unions and streams it stands."""
    if typing.get_origin(annotation) is Annotated:
        for said in annotation.__metadata__:
            if isinstance(said, Tensor):
                return Described({said.name: said}, lone=True)
        return _tensors_in(annotation.__origin__)
    if typing.is_typeddict(annotation):
        fields = typing.get_type_hints(annotation, include_extras=True)
        tensors = {}
        for name, hint in fields.items():
            inner = _tensors_in(hint)
            if inner is not None and inner.lone:
                [tensors[name]] = inner.tensors.values()
        for name, tensor in tensors.items():
            if tensor.name != name:
                raise DefinitionError(
                    f"the field {name} of {annotation.__name__} is the Tensor {tensor.name!r}; give both one name"
                )
        return Described(tensors, lone=False) if tensors else None
    for argument in typing.get_args(annotation):
        found = _tensors_in(argument)
        if found is not None:
            return found
    return None
