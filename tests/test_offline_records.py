"""Lines as calls, and their records."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pydantic
import pytest

from mosec_asgi import Reply
from mosec_asgi.calls.mapping import Ask
from mosec_asgi.errors import (
    INTERNAL_ERROR,
    TIMED_OUT,
    WORKER_DIED,
    ClientError,
    DecodingError,
    EncodingError,
    Failure,
    MosecError,
    ValidationError,
    raised,
)
from mosec_asgi.offline import records
from mosec_asgi.offline.records import Failed, Line, OpenAIBatch, Plain, encoded, failure, is_openai_batch, opened

REQUEST = {"custom_id": "a", "method": "POST", "url": "/v1/x", "body": {"q": 1}}


def line_of(value: Any, number: int = 7) -> Line:
    return Line(number, 10, json.dumps(value).encode())


def test_a_line_is_an_item_or_a_column_of_it_is() -> None:
    assert Plain("jsonl", "/r").ask(line_of({"a": 1})) == Ask("/r", {"a": 1}, "line-7")
    assert Plain("csv", "/r", "a").ask(Line(1, 1, None, {"a": "x", "b": ""})) == Ask("/r", "x", "line-1")
    for value in ({"b": 1}, [1]):
        with pytest.raises(ValidationError, match="no 'a', which --column names"):
            Plain("jsonl", "/r", "a").ask(line_of(value))


@pytest.mark.parametrize("raw", [b"{", b"nonsense", b"[" * 200 + b"]" * 200])
def test_a_line_that_is_no_json_says_so(raw: bytes) -> None:
    with pytest.raises(DecodingError, match="the line is"):
        Plain("jsonl", "/r").ask(Line(1, 1, raw))


def test_records_name_their_line_first_and_are_found_by_that() -> None:
    for form in (Plain("jsonl", "/r"), OpenAIBatch()):
        line = line_of(REQUEST, 12)
        for record in (form.output(line, {"x": "line\n"}, 200), form.error(line, Failed(500, "no\nluck"))):
            assert record.count(b"\n") == 1
            assert form.number(record) == 12
            assert form.number(record[:-2]) is None, "a half one is none"
            assert form.number(b" " + record) is None


def test_an_error_holds_what_stood_there() -> None:
    form = Plain("jsonl", "/r")
    assert json.loads(form.error(line_of({"a": [1]}), Failed(422, "no"))) == {
        "line": 7, "code": 422, "error": "no", "input": {"a": [1]},
    }  # fmt: skip
    assert json.loads(form.error(Line(1, 1, b"\xffnonsense"), Failed(400, "no")))["input"] == "\ufffdnonsense"
    row = Line(1, 1, None, {"a": b"x", "b": float("nan")})
    assert json.loads(form.error(row, Failed(400, "no")))["input"] == {"a": "b'x'", "b": None}


def test_a_request_of_a_batch_goes_where_its_url_says() -> None:
    assert OpenAIBatch().ask(line_of(REQUEST)) == Ask("/v1/x", {"q": 1}, "line-7")
    full = {**REQUEST, "url": "https://api.openai.com/v1/y?z=1"}
    assert OpenAIBatch().ask(line_of(full)).route == "/v1/y"
    assert OpenAIBatch("/r").ask(line_of(full)).route == "/r"


@pytest.mark.parametrize(
    ("change", "text"),
    [({"method": "GET"}, "POST"), ({"custom_id": 1}, "texts"), ({"url": None}, "texts"), (None, "no request of a")],
)
def test_what_is_no_request_of_a_batch_is_refused(change: Any, text: str) -> None:
    value = [1] if change is None else {**REQUEST, **change}
    with pytest.raises(ValidationError, match=text):
        OpenAIBatch().ask(line_of(value))


def test_answers_of_a_batch_have_openais_form() -> None:
    form, line = OpenAIBatch(), line_of(REQUEST)
    assert json.loads(form.output(line, {"y": 2}, 201)) == {
        "id": "batch_req_7", "custom_id": "a", "error": None,
        "response": {"status_code": 201, "request_id": "line-7", "body": {"y": 2}},
    }  # fmt: skip
    refused = json.loads(form.error(line, Failed(422, "no")))
    assert refused["response"]["status_code"] == 422
    assert refused["response"]["body"] == {"error": {"code": "422", "message": "no"}}
    assert (refused["error"], refused["line"], refused["code"], refused["input"]) == (None, 7, 422, REQUEST)
    never = json.loads(form.error(Line(8, 1, b"nonsense"), Failed(400, "no", asked=False)))
    assert (never["response"], never["error"]["message"], never["custom_id"]) == (None, "no", None)


def test_a_batch_is_known_by_its_first_line() -> None:
    assert is_openai_batch(json.dumps(REQUEST).encode())
    assert not any(map(is_openai_batch, (b"", b"{", b"[]", b'{"custom_id": "a"}')))


@pytest.mark.parametrize("body", ["NaN", r'"\ud800"', "1e999", "1" * 400])
def test_a_request_of_a_batch_keeps_its_name_whatever_its_body_holds(body: str) -> None:
    raw = json.dumps(REQUEST).replace('{"q": 1}', body).encode()
    form, line = OpenAIBatch(), Line(7, 10, raw)
    assert is_openai_batch(raw)
    assert json.loads(form.output(line, 1, 200))["custom_id"] == "a"
    assert json.loads(form.error(line, Failed(422, "no")))["custom_id"] == "a"


def test_the_name_of_a_request_may_be_no_unicode() -> None:
    form, line = OpenAIBatch(), line_of({**REQUEST, "custom_id": "\ud800"})
    assert json.loads(form.output(line, 1, 200))["custom_id"] == "\ud800"
    assert json.loads(form.error(line, Failed(422, "no")))["custom_id"] == "\ud800"


class Model(pydantic.BaseModel):
    x: int


class Struct(msgspec.Struct):
    y: list[int]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"a": np.float32(0.5), 1: np.arange(4)[::2]}, {"a": 0.5, "1": [0, 2]}),
        (1 << 80, 1 << 80),
        ([float("nan")], [None]),
        ([Model(x=1), Struct([2])], [{"x": 1}, {"y": [2]}]),
    ],
)
def test_results_are_json(value: Any, expected: Any) -> None:
    assert json.loads(encoded(value)) == expected


def test_a_result_without_a_form_in_json_says_its_type() -> None:
    with pytest.raises(EncodingError, match="bytes"):
        encoded({"image": b""})


def test_a_reply_is_opened_and_one_that_says_an_error_is_one() -> None:
    assert opened(Reply([1], status=201)) == ([1], 201)
    assert opened([1]) == ([1], 200)
    with pytest.raises(MosecError) as caught:
        opened(Reply({"tea": True}, status=418))
    assert failure(caught.value) == Failed(418, '{"tea":true}')


@pytest.mark.parametrize(
    "answer",
    [INTERNAL_ERROR, WORKER_DIED, TIMED_OUT, Failure(400, "bad request: no"), Failure(418, "I am a teapot: yes")],
)
def test_a_failure_is_said_as_to_a_client(answer: Failure) -> None:
    assert failure(raised(answer)) == Failed(answer.code, answer.text)
    assert failure(ClientError("no")) == Failed(400, "bad request: no")


def test_the_module_says_its_own_form() -> None:
    """The examples of the docstring are records."""
    lines = [text.strip().encode() + b"\n" for text in (records.__doc__ or "").splitlines() if text.startswith("    {")]
    forms = [Plain("jsonl", ""), Plain("jsonl", ""), OpenAIBatch()]
    assert [form.number(line) for form, line in zip(forms, lines, strict=True)] == [17, 18, 17]
    assert all(json.loads(line) for line in lines)
