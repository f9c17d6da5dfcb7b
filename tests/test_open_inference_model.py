"""Requests of the open inference protocol as items, and what `forward` returns as tensors, without a transport."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, TypedDict

import numpy as np
import pytest

from mosec_asgi import Worker
from mosec_asgi.errors import ClientError, DefinitionError, ServerError
from mosec_asgi.web.protocols.open_inference.datatypes import DATATYPES
from mosec_asgi.web.protocols.open_inference.description import Tensor
from mosec_asgi.web.protocols.open_inference.inference import InferRequest, Model, NotFound, model_of
from mosec_asgi.web.protocols.open_inference.tensors import NamedArray


class Plain(Worker):
    def forward(self, data: Any) -> Any:
        return data


class Two(Plain):
    inputs = [Tensor("x", "FP32", [-1, 2]), Tensor("name", "BYTES", [-1], text=True)]
    outputs = [Tensor("sum", "FP32", [-1]), Tensor("who", "BYTES", [-1])]


class Lone(Plain):
    inputs = Tensor("text", "BYTES", [-1], text=True)
    outputs = Tensor("vector", "FP32", [-1, -1])


def model(*workers: type[Worker]) -> Model:
    return Model.of("m", "/m", workers)


def of(name: str, datatype: str, values: Any) -> NamedArray:
    kind = DATATYPES[datatype]
    return NamedArray(name, kind, np.array(values, kind.numpy))


def test_each_row_is_an_item_of_the_inputs_and_the_parameters() -> None:
    inputs = [of("x", "FP32", [[1, 2], [3, 4]]), of("name", "BYTES", [b"a", "ü".encode()])]
    items = model(Two).items(InferRequest(inputs, parameters={"k": 5}))
    assert len(items) == 2
    assert items[1]["x"].tolist() == [3, 4]
    assert (items[0]["name"], items[1]["name"], items[0]["parameters"]) == ("a", "ü", {"k": 5})
    assert items[1].keys() == {"x", "name", "parameters"}
    assert model(Two).items(InferRequest(inputs))[0].keys() == {"x", "name"}


def test_a_lone_description_makes_the_row_itself_the_item_and_the_result() -> None:
    alone = model(Lone)
    request = InferRequest([of("text", "BYTES", [b"a", b"b"])])
    assert list(alone.items(request)) == ["a", "b"]
    [output] = alone.outputs_of(request, [[1, 2], np.array([3, 4])])
    assert (output.name, output.datatype.name, output.array.tolist()) == ("vector", "FP32", [[1, 2], [3, 4]])


def test_a_model_that_describes_nothing_takes_and_returns_anything() -> None:
    request = InferRequest([of("a", "INT8", [[1], [2]])])
    assert [item["a"].tolist() for item in model(Plain).items(request)] == [[1], [2]]
    outputs = model(Plain).outputs_of(request, [{"t": "x", "n": 1, "b": True}, {"t": b"y\0", "n": 2, "b": False}])
    assert [(each.name, each.datatype.name, each.array.tolist()) for each in outputs] == [
        ("t", "BYTES", [b"x", b"y\0"]),
        ("n", "INT64", [1, 2]),
        ("b", "BOOL", [True, False]),
    ]
    assert [each.name for each in model(Plain).outputs_of(request, [1.5])] == ["output"]


def test_the_first_stage_says_the_inputs_and_the_last_one_the_outputs() -> None:
    assert model(Lone, Two).metadata() == {
        "name": "m",
        "versions": ["1"],
        "platform": "mosec_asgi",
        "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
        "outputs": [
            {"name": "sum", "datatype": "FP32", "shape": [-1]},
            {"name": "who", "datatype": "BYTES", "shape": [-1]},
        ],
    }


def test_outputs_are_chosen_by_name_and_what_is_not_described_is_left_out() -> None:
    inputs = [of("x", "FP32", [[1, 2]]), of("name", "BYTES", [b"a"])]
    result = {"sum": np.float64(3), "who": "a", "more": object()}
    assert [each.name for each in model(Two).outputs_of(InferRequest(inputs), [result])] == ["sum", "who"]
    [who] = model(Two).outputs_of(InferRequest(inputs, ["who"]), [result])
    assert who.array.tolist() == [b"a"]


X, NAME = of("x", "FP32", [[1, 2]]), of("name", "BYTES", [b"a"])


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        (InferRequest([]), "needs inputs"),
        (InferRequest([X]), "the input 'name': it is missing"),
        (InferRequest([X, NAME, of("z", "FP32", [1])]), "the input 'z': the model 'm' takes only 'x', 'name'"),
        (InferRequest([of("x", "FP64", [[1, 2]]), NAME]), "its datatype is FP64, and the model takes FP32"),
        (InferRequest([of("x", "FP32", [[1, 2, 3]]), NAME]), r"its shape is \[1, 3\], and the model takes \[-1, 2\]"),
        (InferRequest([of("x", "FP32", [1]), NAME]), r"its shape is \[1\]"),
        (InferRequest([X, of("name", "BYTES", [b"\xff"])]), "no UTF-8"),
        (InferRequest([X, NAME], ["y"]), "the output 'y': the model 'm' has only 'sum', 'who'"),
        (InferRequest([X, NAME], ["who", "who"]), "each may be asked for once"),
    ],
)
def test_a_request_that_the_model_does_not_describe_is_refused(request_: InferRequest, told: str) -> None:
    with pytest.raises(ClientError, match=told):
        model(Two).items(request_)


def test_an_output_that_nobody_has_described_is_refused_where_there_is_none() -> None:
    with pytest.raises(ClientError, match="the output 'y': the model 'm' has only 'a'"):
        model(Plain).outputs_of(InferRequest([X], ["y"]), [{"a": 1}])
    with pytest.raises(ClientError, match="the input 'parameters'"):
        model(Plain).items(InferRequest([of("parameters", "FP32", [1])]))


@pytest.mark.parametrize(
    ("results", "told"),
    [
        ([1], "returned int, and not a dictionary of 'sum', 'who'"),
        ([{"sum": 1}], "a result without the output 'who'"),
        ([{"sum": 1, "who": "a"}, 5], "a result without the output 'sum'"),
        ([{"sum": [1], "who": "a"}], r"'sum' that is none: its shape is \[1, 1\], and \[-1\] is described"),
        ([{"sum": [1], "who": "a"}, {"sum": [1, 2], "who": "a"}], r"differ in their shape \(\[1\] and \[2\]\)"),
        ([{"sum": "x", "who": "a"}], "its values are object, and FP32 is described"),
        ([{"sum": 1, "who": 2}], "BYTES are texts or bytes"),
        ([{"sum": [[1], [1, 2]], "who": "a"}], "'sum' that is none"),
    ],
)
def test_results_that_are_not_described_so_are_a_fault_of_the_model(results: list[Any], told: str) -> None:
    with pytest.raises(ServerError, match=told):
        model(Two).outputs_of(InferRequest([X, NAME]), results)


@pytest.mark.parametrize(
    ("datatype", "value", "told"),
    [
        ("INT8", 200, "a number that INT8 has not"),
        ("UINT8", -1, "a number that UINT8 has not"),
        ("INT32", 1.5, "its values are float64, and INT32 is described"),
        ("BOOL", 1, "its values are int64, and BOOL is described"),
        ("INT64", 1j, "complex128"),
    ],
)
def test_values_that_do_not_fit_the_described_datatype_are_a_fault_of_the_model(
    datatype: str, value: Any, told: str
) -> None:
    class Small(Plain):
        outputs = Tensor("y", datatype, [-1])

    with pytest.raises(ServerError, match=told):
        model(Small).outputs_of(InferRequest([X]), [value])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("", "FP32", [-1]), "not empty"),
        (("x", "float", [-1]), "must be one of BOOL"),
        (("x", "FP32", [3]), "the first is -1"),
        (("x", "FP32", []), "the first is -1"),
        (("x", "FP32", [-1, -2]), "the first is -1"),
        (("x", "FP32", 3), "the first is -1"),
        (("x", "FP32", [-1], True), "only BYTES may be given as text"),
    ],
)
def test_a_wrong_description_says_what_to_change(arguments: Any, told: str) -> None:
    with pytest.raises(DefinitionError, match=told):
        Tensor(*arguments)


@pytest.mark.parametrize(
    "inputs", ["x", [], [1], [Tensor("x", "FP32", [-1])] * 2, [Tensor("parameters", "FP32", [-1])]]
)
def test_the_inputs_of_a_worker_are_tensors_of_different_names(inputs: Any) -> None:
    class Wrong(Plain):
        pass

    Wrong.inputs = inputs  # type: ignore[attr-defined]
    with pytest.raises(DefinitionError, match=r"Wrong\.inputs must"):
        model(Wrong)


class Item(TypedDict, total=False):
    x: Annotated[Any, Tensor("x", "FP32", [-1, 2])]
    name: Annotated[str, "a name", Tensor("name", "BYTES", [-1], text=True)]
    parameters: dict[str, Any]


class Wrong(TypedDict):
    y: Annotated[Any, Tensor("x", "FP32", [-1])]


class Batched(Worker):
    def forward(self, data: list[Item]) -> list[Item | ValueError]:
        raise NotImplementedError


class Streaming(Worker):
    def forward(
        self, data: Annotated[str, Tensor("text", "BYTES", [-1], text=True)]
    ) -> Iterator[Annotated[str, Tensor("said", "BYTES", [-1])]]:
        raise NotImplementedError


class Misnamed(Worker):
    def forward(self, data: Wrong) -> Any:
        raise NotImplementedError


class Unreadable(Worker):
    def forward(self, data: nothing) -> nothing:  # type: ignore[name-defined]  # noqa: F821
        raise NotImplementedError


def test_the_annotations_of_forward_may_name_the_tensors_as_well() -> None:
    for side in (model(Batched).inputs, model(Batched).outputs):
        assert (list(side.tensors), side.lone) == (["x", "name"], False)
    streaming = model(Streaming)
    assert (list(streaming.inputs.tensors), streaming.inputs.lone) == (["text"], True)
    assert (list(streaming.outputs.tensors), streaming.outputs.lone) == (["said"], True)
    assert model(Unreadable).inputs.tensors == model(Plain).outputs.tensors == {}
    with pytest.raises(DefinitionError, match="the field y of Wrong is the Tensor 'x'"):
        model(Misnamed)


def test_a_model_is_found_by_its_name_and_its_version() -> None:
    models = {"m": model(Two)}
    assert model_of(models, "m") is model_of(models, "m", "1") is models["m"]
    with pytest.raises(NotFound, match="there is no model 'n' here, only 'm'"):
        model_of(models, "n")
    with pytest.raises(NotFound, match="the version 1 only, not '2'"):
        model_of(models, "m", "2")
