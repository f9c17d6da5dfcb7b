from __future__ import annotations

import contextlib
import dataclasses
import enum
import json
import subprocess
import sys
import textwrap
import typing
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
import pydantic_core
import pytest
from harness import environment_of_programs
from hypothesis import given, settings
from hypothesis import strategies as st
from typing_extensions import NotRequired, TypedDict

from mosec_asgi import Worker
from mosec_asgi.errors import DecodingError, DefinitionError, EncodingError, ValidationError
from mosec_asgi.formats import MAX_DEPTH
from mosec_asgi.mixin import PydanticMixin


class Cat(pydantic.BaseModel):
    kind: Literal["cat"]
    lives: int = pydantic.Field(9, ge=0, alias="livesLeft")


class Dog(pydantic.BaseModel):
    kind: Literal["dog"]
    tricks: list[str] = []


class Tree(pydantic.BaseModel):
    child: Tree | None = None


class Color(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Box:
    width: float
    color: Color = Color.RED


class Options(TypedDict):
    limit: int
    pets: list[Annotated[Cat | Dog, pydantic.Field(discriminator="kind")]]


def worker_of(takes: Any = Any, returns: Any = Any, batched: bool = False) -> Worker:
    """Return a worker whose `forward` is annotated so."""

    class Typed(PydanticMixin, Worker):
        def forward(self, data):  # type: ignore[no-untyped-def]
            return data

    Typed.forward.__annotations__ = {"data": takes, "return": returns}
    Typed._max_batch_size = 8 if batched else 1
    return Typed()


class Plain(PydanticMixin):
    def forward(self, data):  # type: ignore[no-untyped-def]
        return data


PLAIN = Plain()


def errors_of(worker: Worker, body: bytes) -> list[dict[str, Any]]:
    with pytest.raises(ValidationError) as raised:
        worker.deserialize(body)
    return json.loads(str(raised.value))  # type: ignore[no-any-return]


# -- in ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotation", "body", "value"),
    [
        (Cat, b'{"kind": "cat", "livesLeft": 3}', Cat(kind="cat", livesLeft=3)),
        (Cat | Dog, b'{"kind": "dog"}', Dog(kind="dog")),
        (Box, b'{"width": 2}', Box(2.0)),
        (
            Options,
            b'{"limit": 1, "pets": [{"kind": "dog", "tricks": ["sit"]}, {"kind": "cat"}]}',
            {"limit": 1, "pets": [Dog(kind="dog", tricks=["sit"]), Cat(kind="cat")]},
        ),
        (int | str, b'"5"', "5"),
        (list[int], b"[1, 2]", [1, 2]),
        (dict[str, Color], b'{"a": "red"}', {"a": Color.RED}),
        (Annotated[int, pydantic.Field(gt=0)], b"5", 5),
        (int, b"1" + b"0" * 400, 10**400),
        (Any, b'{"a": [1, null, 1.5, "NaN"]}', {"a": [1, None, 1.5, "NaN"]}),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_body_becomes_what_forward_is_annotated_with(annotation: Any, body: bytes, value: Any) -> None:
    received = worker_of(annotation).deserialize(body)
    assert (received, type(received)) == (value, type(value))
    # With batching one body is one item of the list.
    assert worker_of(list[annotation], batched=True).deserialize(body) == value


def test_every_wrong_field_is_named_and_no_value_repeated() -> None:
    worker = worker_of(Options)
    pets = b'[{"kind": "cat", "livesLeft": -1}, {"kind": "cow"}, {"kind": "dog", "tricks": 1}]'
    body = b'{"limit": "secret", "pets": %b}' % pets
    assert errors_of(worker, body) == [
        {
            "type": "int_parsing",
            "loc": ["limit"],
            "msg": "Input should be a valid integer, unable to parse string as an integer",
        },
        {
            "type": "greater_than_equal",
            "loc": ["pets", 0, "cat", "livesLeft"],
            "msg": "Input should be greater than or equal to 0",
        },
        {
            "type": "union_tag_invalid",
            "loc": ["pets", 1],
            "msg": "Input tag 'cow' found using 'kind' does not match any of the expected tags: 'cat', 'dog'",
        },
        {"type": "list_type", "loc": ["pets", 2, "dog", "tricks"], "msg": "Input should be a valid array"},
    ]
    assert [error["loc"] for error in errors_of(worker, b"{}")] == [["limit"], ["pets"]]


def test_of_very_many_errors_the_first_hundred_are_told_and_the_rest_counted() -> None:
    errors = errors_of(worker_of(list[int]), json.dumps(["é"] * 250).encode())
    assert [error["loc"] for error in errors[:-1]] == [[place] for place in range(100)]
    assert errors[-1] == {"type": "more", "loc": [], "msg": "and 150 errors more"}


class Awkward(pydantic.BaseModel):
    type: list[int]
    default: dict[str, set[int]] = {}
    pets: list[Annotated[Cat | Dog, pydantic.Field(discriminator="kind")]] = []


LARGE = 40_000
STOPPED = "of a body of more than 32768 bytes only the first error in each list is told"


@pytest.mark.parametrize(
    ("annotation", "body"),
    [
        (list[int], [1] * LARGE),
        (list[Awkward], [{"type": [1] * LARGE, "default": {"a": [1]}, "pets": [{"kind": "cat"}]}]),
        (tuple[int, ...], [1] * LARGE),
        (list[Box], [{"width": 1, "color": "red"}] * LARGE),
        (Options, {"limit": 1, "pets": [{"kind": "dog"}] * LARGE}),
        (Tree, {"child": {"child": None, "ignored": "x" * LARGE}}),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_large_body_becomes_the_same_as_a_small_one(annotation: Any, body: Any) -> None:
    encoded = json.dumps(body).encode()
    received = worker_of(annotation).deserialize(encoded)
    expected = pydantic.TypeAdapter(annotation).validate_json(encoded)
    assert (received, type(received)) == (expected, type(expected))


def test_of_a_large_body_the_first_error_of_each_list_is_told() -> None:
    wrong = {"type": ["a"] * LARGE, "default": {"a": ["b"] * LARGE}, "pets": [{"kind": "cow"}] * LARGE}
    errors = errors_of(worker_of(Awkward), json.dumps(wrong).encode())
    assert [error["loc"] for error in errors[:-1]] == [["type", 0], ["default", "a", 0], ["pets", 0]]
    assert errors[-1] == {"type": "more", "loc": [], "msg": STOPPED}


class Forbidding(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")


def test_errors_that_are_too_many_to_look_at_are_counted() -> None:
    body = json.dumps({f"key {number}": 1 for number in range(2 * LARGE)}).encode()
    assert errors_of(worker_of(Forbidding), body) == [
        {"type": "more", "loc": [], "msg": f"{2 * LARGE} errors, too many to tell; {STOPPED}"}
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda count: b"[" + b",".join([b'"a"'] * count) + b"]",
        lambda count: b'[{"type":[' + b",".join([b'"a"'] * count) + b"]}]",
        lambda count: b'[{"type":[],"default":{' + b",".join(b'"%x":1' % n for n in range(count // 2)) + b"}}]",
    ],
    ids=["list", "list in a model", "dictionary in a model"],
)
def test_two_million_wrong_items_take_little_memory_and_time(wrong: Any) -> None:
    """Measured: two million errors were built, for a hundred that were told; 1,700 MB and 6 s."""
    program = f"""
        import resource, time
        from test_mixin_pydantic import Awkward, errors_of, worker_of
        worker = worker_of(list[Awkward])
        body = {wrong(2)!r}
        errors_of(worker, body)
        body = open(0, "rb").read()
        before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        errors = errors_of(worker, body)
        print(len(errors), time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    finished = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        input=wrong(2_000_000),
        capture_output=True,
        check=False,
        env=environment_of_programs(),
    )
    assert finished.returncode == 0, finished.stderr.decode()
    count, seconds, kilobytes = finished.stdout.split()
    assert (int(count), float(seconds) < 2, int(kilobytes) < 50_000) == (2, True, True)


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"",
        b"nope",
        b"[1,]",
        b"'a'",
        b"1 2",
        b"\xff",
        b'"\xff"',
        rb'"\ud800"',
        b"nan",
        b"1" + b"0" * 5000,
    ],
)
def test_a_body_that_is_no_json_is_a_decoding_error(body: bytes) -> None:
    with pytest.raises(DecodingError, match=r"^the body is not JSON: ."):
        PLAIN.deserialize(body)


def test_json_inside_of_json_that_is_wrong_is_a_validation_error() -> None:
    (error,) = errors_of(worker_of(dict[str, pydantic.Json]), b'{"a": "{"}')
    assert (error["type"], error["loc"]) == ("json_invalid", ["a"])


@pytest.mark.parametrize(
    ("worker", "level"), [(PLAIN, (b"[", b"]")), (worker_of(Tree), (b'{"child":', b"}"))], ids=["Any", "Tree"]
)
def test_a_body_may_nest_as_deep_as_everything_behind_can_follow(worker: Worker, level: tuple[bytes, bytes]) -> None:
    opening, closing = level
    inner = b"null" if worker is not PLAIN else b""
    deepest = worker.deserialize(opening * MAX_DEPTH + inner + closing * MAX_DEPTH)
    worker.serialize(worker.deserialize_ipc(worker.serialize_ipc(deepest)))
    for depth in (MAX_DEPTH + 1, 200, 201, 1000):
        with pytest.raises(DecodingError, match=f"nested deeper than {MAX_DEPTH} levels"):
            worker.deserialize(opening * depth + inner + closing * depth)
    with pytest.raises(DecodingError):
        worker.deserialize(opening * 100_000)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
WORKERS = [PLAIN, worker_of(Cat | Dog), worker_of(Options), worker_of(list[Box], batched=True)]


@settings(max_examples=60, deadline=None)
@given(JSON)
def test_any_json_comes_back_as_it_was(value: Any) -> None:
    assert PLAIN.deserialize(PLAIN.serialize(value)) == value


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_decoded_or_an_error_of_the_client(body: bytes) -> None:
    for worker in WORKERS:
        with contextlib.suppress(DecodingError, ValidationError):
            worker.serialize(worker.deserialize(body))


@settings(max_examples=40, deadline=None)
@given(st.builds(Box, st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(Color)))
def test_a_typed_value_comes_back_as_it_was(box: Box) -> None:
    worker = worker_of(Box, Box)
    assert worker.deserialize(worker.serialize(box)) == box


# -- out ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotation", "result", "body"),
    [
        (Cat, Cat(kind="cat"), b'{"kind":"cat","livesLeft":9}'),
        (Cat, {"kind": "cat"}, b'{"kind":"cat","livesLeft":9}'),
        (Cat | ValueError, Cat(kind="cat"), b'{"kind":"cat","livesLeft":9}'),
        (Box, Box(1.0), b'{"width":1.0,"color":"red"}'),
        (list[float], np.arange(2, dtype="f4"), b"[0.0,1.0]"),
        (dict[str, list[float]], {"a": np.array([[1.5]])[0]}, b'{"a":[1.5]}'),
        (float, np.float32(0.5), b"0.5"),
        (float, float("nan"), b"null"),
        (Any, [np.arange(2), np.float32(0.5), float("inf"), Box(1.0)], b'[[0,1],0.5,null,{"width":1.0,"color":"red"}]'),
        (Any, Cat(kind="cat"), b'{"kind":"cat","livesLeft":9}'),
        (Any, 10**400, b"1" + b"0" * 400),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_result_is_written_as_its_annotation_has_it(annotation: Any, result: Any, body: bytes) -> None:
    assert worker_of(returns=annotation).serialize(result) == body
    assert worker_of(returns=list[annotation], batched=True).serialize(result) == body


@pytest.mark.parametrize(
    ("annotation", "result", "said"),
    [
        (Cat, {"kind": "secret"}, r'"loc":\["kind"\]'),
        (Cat, None, "should be an object"),
        (Cat, Cat.model_construct(kind="cat", lives="secret"), r'"loc":\["livesLeft"\]'),
        (Options, {"limit": 1}, r'"loc":\["pets"\],"msg":"Field required"'),
        (int, "secret", "valid integer"),
    ],
)
def test_a_result_that_does_not_fit_is_an_encoding_error_without_its_values(
    annotation: Any, result: Any, said: str
) -> None:
    with pytest.raises(EncodingError, match=f"the result does not fit forward's annotation: .*{said}") as raised:
        worker_of(returns=annotation).serialize(result)
    assert "secret" not in str(raised.value)


class Strange:
    pass


LOOP: list[Any] = []
LOOP.append(LOOP)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (
            Strange(),
            r"^the result cannot be encoded as JSON: TypeError: a value of type .*\.Strange cannot be encoded$",
        ),
        ({"deep": [1, Strange()]}, "Strange"),
        (np.array([Strange()]), "Strange"),
        (b"\xff", "utf-8"),
        ("\ud800", "surrogates"),
        (LOOP, "Circular reference"),
    ],
    ids=["object", "inside", "in an array", "bytes", "surrogate", "holds itself"],
)
def test_a_value_that_has_no_form_in_json_is_told_by_its_type(value: Any, said: str) -> None:
    with pytest.raises(EncodingError, match=said):
        PLAIN.serialize(value)


def test_what_a_serializer_of_the_workers_own_says_is_not_for_the_client() -> None:
    def fail(value: Any) -> Any:
        raise RuntimeError("secret")

    worker = worker_of(returns=Annotated[int, pydantic.PlainSerializer(fail)])
    with pytest.raises(pydantic_core.PydanticSerializationError, match="secret"):
        worker.serialize(1)


def test_an_annotation_that_is_no_list_with_batching_is_told_with_what_to_write() -> None:
    worker = worker_of(Cat, Cat, batched=True)
    with pytest.raises(DefinitionError, match=r"annotate its argument as `data: list\[.*Cat\]`"):
        worker.deserialize(b"{}")
    with pytest.raises(DefinitionError, match=r"annotate what it returns as `-> list\[.*Cat\]`"):
        worker.serialize(Cat(kind="cat"))


class PlainOptions(typing.TypedDict):
    limit: int


class TakesPlainTypedDict(PydanticMixin):
    def forward(self, data: PlainOptions) -> PlainOptions:
        return {"limit": data["limit"] + 1}


def test_a_typed_dict_of_typing_itself_is_read_and_written() -> None:
    worker = TakesPlainTypedDict()
    assert worker.serialize(worker.forward(worker.deserialize(b'{"limit": 1}'))) == b'{"limit":2}'
    with pytest.raises(ValidationError, match="limit"):
        worker.deserialize(b"{}")


class BoundedOptions(typing.TypedDict):
    limit: Annotated[int, pydantic.Field(ge=1)]
    inner: NotRequired[Annotated[PlainOptions, "as a whole"]]


class TakesBoundedTypedDict(PydanticMixin):
    def forward(self, data: BoundedOptions) -> BoundedOptions:
        return data


def test_the_bounds_in_a_typed_dict_of_typing_itself_are_checked() -> None:
    worker = TakesBoundedTypedDict()
    assert worker.deserialize(b'{"limit": 1}') == {"limit": 1}
    for body in (b'{"limit": 0}', b'{"limit": 1, "inner": {"limit": "many"}}', b'{"inner": {}}'):
        with pytest.raises(ValidationError, match="limit"):
            worker.deserialize(body)


@pytest.mark.parametrize("body", [b"\xef\xbb\xbf[1]", "[1]".encode("utf-16"), "[1]".encode("utf-32"), b"[NaN]"])
def test_a_body_in_another_encoding_is_read_unless_strict(body: bytes) -> None:
    strict = Plain()
    strict._strict_json = True
    received = PLAIN.deserialize(body)
    assert received == [1] or received[0] != received[0]
    with pytest.raises(DecodingError, match=r"^the body is not JSON: ."):
        strict.deserialize(body)


def test_an_image_is_called_so() -> None:
    with pytest.raises(DecodingError, match="looks like image/png"):
        PLAIN.deserialize(b"\x89PNG\r\n\x1a\n")
