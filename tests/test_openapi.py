"""The OpenAPI document: what it says of workers of all kinds, that it is valid."""

from __future__ import annotations

import dataclasses
import json
import logging
import subprocess
import sys
import threading
import typing
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urljoin

import httpx
import msgspec
import numpy as np
import pydantic
import pytest
from harness import ROOT
from openapi_spec_validator import OpenAPIV31SpecValidator
from typing_extensions import NotRequired, TypedDict

from mosec_asgi import Runtime, Server, SSEWorker, Worker, __version__
from mosec_asgi.errors import BAD_TIMEOUT, CLOSING, STAGE_DOWN, TIMED_OUT, at_capacity, too_late
from mosec_asgi.mixin import PydanticMixin, TypedMsgPackMixin
from mosec_asgi.schema import MOSEC_REF_TEMPLATE, ParseTarget
from mosec_asgi.web import contract
from mosec_asgi.web.components import Components
from mosec_asgi.web.openapi import OpenAPI

Operation = dict[str, Any]


def document_of(*workers: type[Worker], route: str | list[str] = "/inference", **settings: Any) -> dict[str, Any]:
    """Return the document of one pipeline, which is valid."""
    server = Server(**settings)
    for worker in workers:
        server.append_worker(worker, route=route)
    return valid(server.openapi())


def valid(document: dict[str, Any]) -> dict[str, Any]:
    OpenAPIV31SpecValidator(document).validate()
    # Each reference leads somewhere.
    text = json.dumps(document)
    for kind, things in document["components"].items():
        for name in things:
            text = text.replace(f'"#/components/{kind}/{name}"', "")
    assert "#/" not in text
    return json.loads(json.dumps(document))  # type: ignore[no-any-return]


def operation_of(document: dict[str, Any], route: str = "/inference") -> Operation:
    return document["paths"][route]["post"]  # type: ignore[no-any-return]


def request_of(operation: Operation) -> tuple[str, dict[str, Any]]:
    """Return the content type of a request's body, and what the document says of it."""
    ((mime, content),) = operation["requestBody"]["content"].items()
    return mime, content


def response_of(operation: Operation) -> tuple[str, dict[str, Any]]:
    ((mime, content),) = operation["responses"]["200"]["content"].items()
    return mime, content


def schemas(worker: type[Worker], max_batch_size: int = 1) -> tuple[Any, Any, Any]:
    """Return the schemas of a worker's request and response, and all that they refer to."""
    server = Server()
    server.append_worker(worker, max_batch_size=max_batch_size)
    document = valid(server.openapi())
    operation = operation_of(document)
    return (
        request_of(operation)[1]["schema"],
        response_of(operation)[1]["schema"],
        document["components"].get("schemas", {}),
    )


def ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


# -- the types that annotations name -----------------------------------------------------------------------------------


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Model(pydantic.BaseModel):
    """A pydantic model."""

    size: int = pydantic.Field(ge=1, description="how many")
    colour: Colour = Colour.RED


class Tree(pydantic.BaseModel):
    value: float
    children: list[Tree] = []


class Computed(pydantic.BaseModel):
    side: float

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def area(self) -> float:
        return self.side**2


@dataclasses.dataclass
class Box:
    width: float
    model: Model | None = None


class Answer(TypedDict):
    """A typed dictionary."""

    label: str
    score: NotRequired[float]


class OldAnswer(typing.TypedDict, total=False):
    """A typed dictionary of the standard library, which pydantic reads from Python 3.12 on."""

    label: str
    parts: list[PartOfOldAnswer]


class PartOfOldAnswer(typing.TypedDict):
    size: int


class Point(msgspec.Struct):
    """A msgspec struct."""

    x: int
    y: int = 0
    next: Point | None = None


class Noted(msgspec.Struct):
    """A struct.

    Of which there is more to say.
    """

    x: int


class Circle(msgspec.Struct, tag=True):
    radius: float


class Square(msgspec.Struct, tag=True):
    side: float


class Cat(pydantic.BaseModel):
    kind: Literal["cat"]


class Dog(pydantic.BaseModel):
    kind: Literal["dog"]


class Alone(Worker):
    def forward(self, data: Model) -> Answer:
        raise NotImplementedError


class Batched(Worker):
    def forward(self, data: list[Model]) -> list[Answer]:
        raise NotImplementedError


class Trees(Worker):
    def forward(self, data: Tree) -> list[Tree]:
        raise NotImplementedError


class Computing(Worker):
    def forward(self, data: Computed) -> Computed:
        raise NotImplementedError


class Old(Worker):
    def forward(self, data: PartOfOldAnswer | None) -> dict[str, OldAnswer]:
        raise NotImplementedError


class Boxes(Worker):
    def forward(self, data: Box) -> dict[str, Box]:
        raise NotImplementedError


class Structs(TypedMsgPackMixin):
    def forward(self, data: Point) -> Circle | Square:
        raise NotImplementedError


class Notes(TypedMsgPackMixin):
    def forward(self, data: Noted) -> int:
        raise NotImplementedError


class Pets(Worker):
    def forward(self, data: Annotated[Cat | Dog, pydantic.Field(discriminator="kind")]) -> Cat | Dog | None:
        raise NotImplementedError


class BuiltIn(Worker):
    def forward(self, data: list[int]) -> float | None:
        raise NotImplementedError


class Silent(Worker):
    def forward(self, data):  # type: ignore[no-untyped-def]
        raise NotImplementedError


class Arrays(Worker):
    def forward(self, data: dict[str, Any]) -> dict[str, np.ndarray]:
        raise NotImplementedError


class Unresolved(Worker):
    def forward(self, data: NoSuchType) -> int:  # type: ignore[name-defined]  # noqa: F821
        raise NotImplementedError


# -- schemas -----------------------------------------------------------------------------------------------------------


def test_pydantic_models_and_typed_dictionaries_are_described() -> None:
    request, response, components = schemas(Alone)
    assert (request, response) == (ref("Model"), ref("Answer"))
    assert components["Model"]["properties"]["size"] == {"type": "integer", "minimum": 1, "description": "how many"}
    assert components["Model"]["required"] == ["size"]
    assert components["Colour"]["enum"] == ["red", "blue"]
    assert components["Answer"] == {
        "type": "object",
        "title": "Answer",
        "description": "A typed dictionary.",
        "properties": {"label": {"type": "string"}, "score": {"type": "number"}},
        "required": ["label"],
    }


def test_typed_dictionaries_of_the_standard_library_are_described() -> None:
    request, response, components = schemas(Old)
    assert request["anyOf"] == [ref("PartOfOldAnswer"), {"type": "null"}]
    assert response["additionalProperties"] == ref("OldAnswer")
    assert list(components["OldAnswer"]["properties"]) == ["label", "parts"]
    assert components["OldAnswer"]["properties"]["parts"]["items"] == ref("PartOfOldAnswer")
    assert components["PartOfOldAnswer"]["required"] == ["size"]
    assert "required" not in components["OldAnswer"]


def test_a_batch_is_described_by_its_item() -> None:
    assert schemas(Batched, max_batch_size=8) == schemas(Alone)
    request, response, _ = schemas(Batched)
    assert (request["type"], request["items"]) == ("array", ref("Model"))
    assert (response["type"], response["items"]) == ("array", ref("Answer"))


def test_a_model_may_hold_itself() -> None:
    request, response, components = schemas(Trees)
    assert (request, response["items"]) == (ref("Tree"), ref("Tree"))
    assert components["Tree"]["properties"]["children"]["items"] == ref("Tree")


def test_a_model_that_gives_more_than_it_takes_has_two_schemas() -> None:
    request, response, components = schemas(Computing)
    assert (request, response) == (ref("Computed"), ref("Computed_inference_response"))
    assert components["Computed"]["properties"].keys() == {"side"}
    assert components["Computed_inference_response"]["properties"].keys() == {"side", "area"}


def test_dataclasses_are_described() -> None:
    request, response, components = schemas(Boxes)
    assert request == ref("Box")
    assert response["additionalProperties"]["$ref"].startswith("#/components/schemas/Box")
    assert components["Box"]["properties"]["width"] == {"type": "number"}
    assert {"$ref": "#/components/schemas/Model"} in components["Box"]["properties"]["model"]["anyOf"]


def test_msgspec_structs_and_their_unions_are_described() -> None:
    request, response, components = schemas(Structs)
    assert request == ref("Point")
    assert components["Point"]["properties"]["next"]["anyOf"] == [ref("Point"), {"type": "null"}]
    assert response["discriminator"]["mapping"] == {
        name: f"#/components/schemas/{name}" for name in ("Circle", "Square")
    }


def test_a_structs_docstring_has_no_indentation_whichever_msgspec_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    made = msgspec.json.schema_components

    def as_before(*args: Any, **more: Any) -> Any:
        schemas, components = made(*args, **more)
        components["Noted"]["description"] = "A struct.\n\n    Of which there is more to say.\n    "
        return schemas, components

    monkeypatch.setattr(msgspec.json, "schema_components", as_before)
    _, _, components = schemas(Notes)
    assert components["Noted"]["description"] == "A struct.\n\nOf which there is more to say."


def test_unions_are_described_with_their_discriminator() -> None:
    request, response, _ = schemas(Pets)
    assert request["oneOf"] == [ref("Cat"), ref("Dog")]
    assert request["discriminator"]["mapping"] == {"cat": "#/components/schemas/Cat", "dog": "#/components/schemas/Dog"}
    assert response["anyOf"] == [ref("Cat"), ref("Dog"), {"type": "null"}]


def test_what_python_has_built_in_is_described() -> None:
    request, response, components = schemas(BuiltIn)
    assert request == {"type": "array", "items": {"type": "integer"}}
    assert response == {"anyOf": [{"type": "number"}, {"type": "null"}]}
    assert components == {}


def test_without_annotations_nothing_is_said_of_a_body_as_in_mosec(caplog: pytest.LogCaptureFixture) -> None:
    operation = operation_of(document_of(Silent))
    assert "requestBody" not in operation
    assert "content" not in operation["responses"]["200"]
    assert not caplog.records


class OnlyExample(Worker):
    example = {"a": 1}

    def forward(self, data):  # type: ignore[no-untyped-def]
        return data


def test_an_example_is_shown_where_nothing_is_annotated() -> None:
    operation = operation_of(document_of(OnlyExample))
    assert operation["requestBody"]["content"] == {"application/json": {"example": {"a": 1}}}
    assert "content" not in operation["responses"]["200"]


def test_a_type_without_a_schema_becomes_any_value_and_the_log_names_it(caplog: pytest.LogCaptureFixture) -> None:
    _, response, _ = schemas(Arrays)
    assert response["type"] == "object"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "Arrays.forward" in record.getMessage()
    assert "numpy.ndarray" in record.getMessage()


def test_an_annotation_that_is_no_type_harms_nothing_but_its_schema(caplog: pytest.LogCaptureFixture) -> None:
    request, response, _ = schemas(Unresolved)
    assert (request, response) == ({}, {"type": "integer"})
    (record,) = caplog.records
    assert "the request of /inference" in record.getMessage()
    assert "NoSuchType" in record.getMessage()


@pytest.mark.parametrize(
    ("missing", "described"), [((), True), (("pydantic",), True), (("pydantic", "msgspec"), False)]
)
def test_no_library_is_needed_and_each_will_do(missing: Sequence[str], described: bool) -> None:
    program = f"""
import sys
for name in {missing!r}:
    sys.modules[name] = None
import json
from dataclasses import dataclass
from mosec_asgi import Server, Worker

@dataclass
class Item:
    text: str

class Reverse(Worker):
    def forward(self, data: Item) -> Item: ...

server = Server()
server.append_worker(Reverse)
print(json.dumps(server.openapi()))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    document = valid(json.loads(done.stdout))
    assert request_of(operation_of(document))[1]["schema"] == (ref("Item") if described else {})
    assert ("pip install 'mosec-asgi[pydantic]'" in done.stderr) != described


# -- the wire ----------------------------------------------------------------------------------------------------------


class Image(Worker):
    req_mime_type = "image/png"
    resp_mime_type = "text/html; charset=utf-8"

    def forward(self, data: np.ndarray) -> str:
        raise NotImplementedError


class Raw(Worker):
    """Takes bytes, and names no format for them."""

    def deserialize(self, data: bytes) -> bytes:
        return data

    def serialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: bytes) -> bytes:
        raise NotImplementedError


class Base64(PydanticMixin):
    def forward(self, data: bytes) -> bytes:
        raise NotImplementedError


class Problem(SSEWorker):
    req_mime_type = "application/vnd.example+json"

    def forward(self, data: int) -> Iterator[str]:
        raise NotImplementedError


class Lines(SSEWorker):
    """Streams a JSON document in pieces, or audio."""

    resp_mime_type = "application/json"

    def forward(self, data: int) -> Iterator[bytes]:
        raise NotImplementedError


class Speech(Lines):
    resp_mime_type = "audio/wav"


def test_a_body_that_is_no_notation_of_a_value_is_bytes_or_text() -> None:
    operation = operation_of(document_of(Image))
    assert request_of(operation) == (
        "image/png",
        {"schema": {"type": "string", "format": "binary", "minLength": 1}},
    )
    assert response_of(operation) == ("text/html; charset=utf-8", {"schema": {"type": "string"}})


def test_a_worker_that_takes_bytes_does_not_take_json() -> None:
    operation = operation_of(document_of(Raw))
    assert request_of(operation)[0] == "application/octet-stream"
    # What it sends is JSON, as its header says; how that is built is not known.
    assert response_of(operation) == ("application/json", {"schema": {}})


def test_bytes_within_json_are_text() -> None:
    request, response, _ = schemas(Base64)
    assert (request["type"], response["type"]) == ("string", "string")
    assert request_of(operation_of(document_of(Base64)))[0] == "application/json"


def test_the_annotation_describes_every_notation_of_json_and_a_stream_is_text() -> None:
    operation = operation_of(document_of(Problem))
    assert request_of(operation) == ("application/vnd.example+json", {"schema": {"type": "integer"}})
    assert response_of(operation) == ("text/event-stream", {"schema": contract.EVENT})
    assert "server-sent events" in operation["responses"]["200"]["description"]


def test_a_stream_of_events_names_only_the_errors_that_are_answered_in_its_place() -> None:
    responses = operation_of(document_of(Problem))["responses"]
    assert set(responses) == {"200", "400", "408", "413", "415", "429", "503"}


def test_a_stream_of_raw_chunks_may_fail_with_any_status_before_the_first_of_them() -> None:
    assert response_of(operation_of(document_of(Lines))) == ("application/json", {"schema": {}})
    operation = operation_of(document_of(Speech))
    assert response_of(operation) == ("audio/wav", {"schema": {"type": "string", "format": "binary"}})
    assert {"408", "422", "500"} <= set(operation["responses"])
    assert "breaks off" in operation["responses"]["200"]["description"]


def test_a_request_may_carry_its_id_and_its_timeout() -> None:
    document = document_of(Silent)
    names = [parameter["$ref"].rpartition("/")[2] for parameter in operation_of(document)["parameters"]]
    parameters = [document["components"]["parameters"][name] for name in names]
    assert [parameter["name"] for parameter in parameters] == ["x-request-id", "x-request-timeout"]
    assert parameters[1]["schema"] == {"type": "integer", "minimum": 1}
    assert BAD_TIMEOUT.text in json.dumps(document["components"]["responses"]["BadRequest"])


def test_a_pipeline_takes_what_its_first_worker_takes_and_gives_what_its_last_one_gives() -> None:
    operation = operation_of(document_of(Alone, Silent, Image))
    assert request_of(operation) == ("application/json", {"schema": ref("Model")})
    assert response_of(operation)[0] == "text/html; charset=utf-8"


# -- a worker's own words ----------------------------------------------------------------------------------------------


class OwnWords(Worker):
    req_mime_type = "image/png"

    @classmethod
    def get_forward_json_schema(cls, target: ParseTarget, ref_template: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """As mosec 0.8 has it."""
        if target == ParseTarget.INPUT:
            return {"type": "string", "format": "byte"}, {}
        return {"$ref": ref_template.format(name="Label")}, {"Label": {"type": "string", "maxLength": 9}}

    def forward(self, data: bytes) -> int:
        raise NotImplementedError


class PydanticWords(Worker):
    @classmethod
    def get_forward_json_schema(
        cls, target: ParseTarget, ref_template: str = MOSEC_REF_TEMPLATE
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        return pydantic.TypeAdapter(Box).json_schema(), {}

    def forward(self, data: Any) -> Any:
        raise NotImplementedError


class MoreWords(Worker):
    @classmethod
    def get_forward_json_schema(
        cls, target: ParseTarget, ref_template: str = MOSEC_REF_TEMPLATE
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        schema, components = super().get_forward_json_schema(target, ref_template)
        return {"description": "more", **schema}, components

    def forward(self, data: list[Model]) -> list[Model]:
        raise NotImplementedError


class BrokenWords(Worker):
    @classmethod
    def get_forward_json_schema(
        cls, target: ParseTarget, ref_template: str = MOSEC_REF_TEMPLATE
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        raise KeyError("no such thing")

    def forward(self, data: int) -> int:
        raise NotImplementedError


def test_get_forward_json_schema_has_the_last_word() -> None:
    request, response, components = schemas(OwnWords)
    assert request == {"type": "string", "format": "byte"}
    assert (response, components) == (ref("Label"), {"Label": {"type": "string", "maxLength": 9}})


def test_get_forward_json_schema_may_return_definitions_inside_of_its_schema() -> None:
    request, _, components = schemas(PydanticWords)
    assert {"$ref": "#/components/schemas/Model"} in request["properties"]["model"]["anyOf"]
    assert components.keys() == {"Model", "Colour"}


def test_get_forward_json_schema_can_add_to_the_default() -> None:
    request, _, components = schemas(MoreWords, max_batch_size=4)
    assert request == {"description": "more", **ref("Model")}
    assert "Model" in components


def test_an_override_that_raises_harms_nothing_but_its_schema(caplog: pytest.LogCaptureFixture) -> None:
    assert schemas(BrokenWords) == ({}, {}, {})
    assert "no such thing" in caplog.text


# -- names that clash --------------------------------------------------------------------------------------------------


class First:
    class Item(pydantic.BaseModel):
        text: str


class Second:
    class Item(pydantic.BaseModel):
        number: int


class Holder(pydantic.BaseModel):
    item: First.Item


class OtherHolder:
    class Holder(pydantic.BaseModel):
        item: Second.Item


class TakesFirst(Worker):
    def forward(self, data: First.Item) -> int:
        raise NotImplementedError


class TakesSecond(Worker):
    def forward(self, data: Second.Item) -> int:
        raise NotImplementedError


class TakesHolder(Worker):
    def forward(self, data: Holder) -> int:
        raise NotImplementedError


class TakesOtherHolder(Worker):
    def forward(self, data: OtherHolder.Holder) -> int:
        raise NotImplementedError


def test_schemas_of_the_same_name_do_not_overwrite_each_other() -> None:
    server = Server()
    for route, worker in {"/a": TakesFirst, "/b": TakesSecond, "/c": TakesFirst, "/d": TakesSecond}.items():
        server.append_worker(worker, route=route)
    document = valid(server.openapi())
    components = document["components"]["schemas"]
    names = [request_of(operation_of(document, route))[1]["schema"]["$ref"] for route in ("/a", "/b", "/c", "/d")]
    assert names == [f"#/components/schemas/{name}" for name in ("Item", "Item_b_request", "Item", "Item_b_request")]
    assert components["Item"]["properties"].keys() == {"text"}
    assert components["Item_b_request"]["properties"].keys() == {"number"}
    assert components.keys() == {"Item", "Item_b_request"}


def test_schemas_that_look_alike_but_refer_to_different_ones_are_kept_apart() -> None:
    server = Server()
    server.append_worker(TakesHolder, route="/a")
    server.append_worker(TakesOtherHolder, route="/b")
    components = valid(server.openapi())["components"]["schemas"]
    assert components["Holder"]["properties"]["item"] == ref("Item")
    assert components["Holder_b_request"]["properties"]["item"] == ref("Item_b_request")


def test_data_that_looks_like_a_reference_is_left_alone() -> None:
    components = Components()
    schema = {
        "properties": {"default": ref("A"), "$ref": {"type": "string"}},
        "default": ref("A"),
        "examples": [ref("A")],
        "items": {"$ref": "#/$defs/A"},
        "anyOf": [{"$ref": "https://example.org/A"}],
    }
    components.add(ref("A"), {"A": {"type": "null"}}, "first")
    assert components.add(schema, {"A": {"type": "string"}}, "second") == {
        "properties": {"default": ref("A_second"), "$ref": {"type": "string"}},
        "default": ref("A"),
        "examples": [ref("A")],
        "items": ref("A_second"),
        "anyOf": [{"$ref": "https://example.org/A"}],
    }


def test_names_fit_the_rules_for_components() -> None:
    components = Components()
    assert components.add(ref("Page[int]"), {"Page[int]": {"type": "null"}}, "x") == ref("Page_int_")


@pytest.mark.parametrize("route", ["/v1/embed", "/a-b", "/", "/naïve", "/with space", "/(id)"])
def test_every_route_has_a_document(route: str) -> None:
    if route == "/":
        route = "/-"
    (path, *_) = document_of(Silent, route=route)["paths"]
    assert httpx.URL(f"http://test{path}").path == route


def test_operation_ids_are_made_of_the_path_and_are_unique() -> None:
    routes = ["/v1/embed", "/a-b", "/a_b", "/livez/", "/-"]
    document = document_of(Silent, route=routes)
    names = [operation_of(document, route)["operationId"] for route in routes]
    assert names[:2] == ["v1_embed", "a_b"]
    assert len({*names, "root", "livez", "readyz", "metrics"}) == 9
    # A route's id does not change because another route comes or goes.
    again = document_of(Silent, route=["/a-b", "/new", "/a_b"])
    assert [operation_of(again, route)["operationId"] for route in ("/a-b", "/a_b")] == names[1:3]


# -- words and examples ------------------------------------------------------------------------------------------------


class Described(Worker):
    """Say what is in a picture,
    in one word.

    The picture is scaled.
    """

    example = {"b": 1, "a": np.arange(2), "model": Model(size=1), "point": Point(1, 2)}

    def forward(self, data: Any) -> Any:
        raise NotImplementedError


class Inherits(Described):
    multi_examples = ([[1], [2]], [["x"], ["y"]])

    def forward(self, data: Any) -> Any:
        raise NotImplementedError


class BytesExample(Worker):
    req_mime_type = "application/octet-stream"
    example = b"import sys\n"

    def forward(self, data: bytes) -> bytes:
        raise NotImplementedError


class TooMuch(Silent):
    example = {"pixels": [0] * 100_000}


class NoForm(Silent):
    example = object()


class NoText(BytesExample):
    example = b"\xff\xfe"


def test_the_words_are_those_of_the_docstring() -> None:
    operation = operation_of(document_of(Described))
    assert operation["summary"] == "Say what is in a picture, in one word."
    assert operation["description"] == "The picture is scaled."
    assert operation_of(document_of(Inherits))["summary"] == operation["summary"]


def test_a_worker_without_a_docstring_is_called_by_its_name_and_not_by_the_packages_words() -> None:
    operation = operation_of(document_of(Silent))
    assert operation["summary"] == "Silent"
    assert "description" not in operation


def test_the_words_of_a_pipeline_name_its_stages() -> None:
    operation = operation_of(document_of(Described, Silent))
    assert operation["summary"] == "Described → Silent"
    assert operation["description"].splitlines() == [
        "A pipeline of 2 stages:",
        "",
        "1. `Described`: Say what is in a picture, in one word.",
        "2. `Silent`",
        "",
        "The picture is scaled.",
    ]


def test_an_example_is_shown_as_it_is_sent() -> None:
    _, content = request_of(operation_of(document_of(Described)))
    assert content["example"] == {
        "b": 1,
        "a": [0, 1],
        "model": {"size": 1, "colour": "red"},
        "point": {"x": 1, "y": 2, "next": None},
    }
    assert request_of(operation_of(document_of(BytesExample)))[1]["example"] == "import sys\n"


def test_several_examples_are_shown_and_of_a_batch_its_first_item() -> None:
    server = Server()
    server.append_worker(Inherits, max_batch_size=4)
    _, content = request_of(operation_of(valid(server.openapi())))
    assert [example["value"] for example in content["examples"].values()] == [[1], ["x"]]


@pytest.mark.parametrize("worker", [TooMuch, NoForm, NoText])
def test_an_example_that_cannot_be_shown_is_left_out(worker: type[Worker]) -> None:
    assert '"example"' not in json.dumps(operation_of(document_of(worker)))


# -- the whole ---------------------------------------------------------------------------------------------------------


def test_the_document_says_what_it_is() -> None:
    document = document_of(Silent)
    assert document["openapi"] == "3.1.0"
    assert document["info"]["version"] == __version__
    assert document["info"]["title"] == "mosec-asgi service"
    assert document["servers"] == [{"url": "/"}]
    assert {tag["name"] for tag in document["tags"]} == {
        tag for path in document["paths"].values() for operation in path.values() for tag in operation["tags"]
    }
    assert list(document["paths"]) == ["/inference", "/", "/livez", "/readyz", "/metrics"]


def test_title_and_version_of_the_document_are_settings() -> None:
    info = document_of(Silent, title="Cats", version="7.1")["info"]
    assert (info["title"], info["version"]) == ("Cats", "7.1")


@pytest.mark.parametrize(
    ("root_path", "prefix", "url"),
    [
        ("", "/ml", "/ml"),
        ("", "/ml/, /other", "/ml"),
        ("/in/app", "/ml", "/ml/in/app"),
        # Read by the server already.
        ("/ml/app", "/ml", "/ml/app"),
        ("/mlx", "/ml", "/ml/mlx"),
        # Another host's address it cannot become.
        ("", "//evil.example", "/evil.example"),
        ("", "/a b", "/a%20b"),
        ("", "/", ".."),
        ("", "/" + "x" * 2000, ".."),
        ("", "", ".."),
    ],
)
def test_the_document_is_right_behind_a_proxy_that_takes_a_prefix_from_the_path(
    root_path: str, prefix: str, url: str
) -> None:
    class Request:
        scope = {"root_path": root_path, "headers": [(b"x-forwarded-prefix", prefix.encode())]}

    answer = OpenAPI(lambda: {"openapi": "3.1.0"}).metadata(Request())  # type: ignore[arg-type]
    assert json.loads(answer.body)["servers"] == [{"url": url}]
    if not prefix:
        assert urljoin("http://proxy/ml/openapi/metadata.json", url) == "http://proxy/ml/"


def test_all_errors_are_named_as_text_with_a_request_id_and_a_full_service_says_when_to_come_back() -> None:
    document = document_of(Silent, max_request_size=1234)
    responses = operation_of(document)["responses"]
    assert set(responses) == {"200", "400", "408", "413", "415", "422", "429", "500", "503"}
    for code in set(responses) - {"200"}:
        response = document["components"]["responses"][responses[code]["$ref"].rpartition("/")[2]]
        assert response["content"]["text/plain"].keys() & {"example", "examples"}
        assert "x-request-id" in response["headers"]
        assert ("retry-after" in response["headers"]) == (code in ("429", "503"))
    assert "1234 bytes" in document["components"]["responses"]["ContentTooLarge"]["description"]


def test_the_examples_of_errors_are_their_texts() -> None:
    text = json.dumps(contract.components(1, compressed=False))
    for shown in (TIMED_OUT, CLOSING, STAGE_DOWN, at_capacity(1), too_late(1)):
        assert json.dumps(shown.text) in text


def test_the_encodings_of_a_request_are_named_where_there_are_any() -> None:
    assert "gzip" in operation_of(document_of(Alone, compression=True))["requestBody"]["description"]
    assert "gzip" not in json.dumps(document_of(Alone))


def test_workers_that_routes_share_are_described_on_each() -> None:
    server = Server()
    runtime = Runtime(Alone)
    server.register_runtime({"/a": [runtime], "/b": [Runtime(Silent), runtime]})
    document = valid(server.openapi())
    assert response_of(operation_of(document, "/a")) == response_of(operation_of(document, "/b"))


def test_the_document_is_made_once_however_many_ask_at_the_same_time() -> None:
    calls: list[None] = []

    class Request:
        def __init__(self, root_path: str) -> None:
            self.scope = {"root_path": root_path}

    def build() -> dict[str, Any]:
        calls.append(None)
        return {"openapi": "3.1.0"}

    endpoint = OpenAPI(build)
    answers: dict[str, Any] = {}

    def ask(root_path: str) -> None:
        answers[root_path] = json.loads(endpoint.metadata(Request(root_path)).body)  # type: ignore[arg-type]

    threads = [threading.Thread(target=ask, args=(root_path,)) for root_path in ("", "/ml", "/a b/", "/")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    urls = {root_path: answer["servers"][0]["url"] for root_path, answer in answers.items()}
    assert urls == {"": "..", "/ml": "/ml", "/a b/": "/a%20b", "/": "/"}


class Echo(Worker):
    def forward(self, data: dict[str, int]) -> dict[str, int]:
        return data


@pytest.mark.parametrize("root_path", ["", "/ml"])
async def test_the_service_shows_its_document_for_the_place_where_it_is_mounted(root_path: str) -> None:
    server = Server()
    server.append_worker(Echo)
    transport = httpx.ASGITransport(server, root_path=root_path)
    async with server.lifespan(), httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answer = await client.get(f"{root_path}/openapi/metadata.json")
        assert answer.headers["content-type"] == "application/json"
        assert answer.json() == server.openapi(root_path) | {"servers": [{"url": root_path or ".."}]}
        assert (await client.post(f"{root_path}/openapi/metadata.json")).status_code == 405


async def test_the_service_shows_the_document_that_a_subclass_has_made() -> None:
    class Server404(Server):
        def openapi(self, root_path: str = "") -> dict[str, Any]:
            document = super().openapi(root_path)
            operation_of(document)["responses"]["404"] = {"description": "There is no such model."}
            return document

    server = Server404()
    server.append_worker(Echo)
    transport = httpx.ASGITransport(server)
    async with server.lifespan(), httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answer = await client.get("/openapi/metadata.json")
    assert "404" in operation_of(answer.json())["responses"]


# -- the examples' documents -------------------------------------------------------------------------------------------

EXAMPLES = [pytest.param(path, id=path.stem) for path in sorted((ROOT / "openapi").glob("*.json"))]


def test_each_example_has_a_document() -> None:
    folders = {path.parent.name for path in (ROOT / "examples").glob("*/server.py")}
    assert folders == {path.stem for path in (ROOT / "openapi").glob("*.json")}


@pytest.mark.parametrize("document", EXAMPLES)
def test_the_document_of_an_example_is_valid(document: Path) -> None:
    valid(json.loads(document.read_text()))
