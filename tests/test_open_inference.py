"""The open inference protocol over HTTP: Triton's and KServe's own clients, curl, and hostile requests."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import statistics
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from harness import TESTS, Program, environment_of_programs, running, written
from open_inference_workers import Sum, serve

from mosec_asgi import Server, Worker, testing
from mosec_asgi.errors import DefinitionError
from mosec_asgi.protocols import OpenInference, Tensor

SUM = "/v2/models/sum/infer"
X = {"name": "x", "datatype": "FP32", "shape": [2, 3], "data": [1, 2, 3, 4, 5, 6]}
NAME = {"name": "name", "datatype": "BYTES", "shape": [2], "data": ["a", "b"]}
INPUTS = [X, NAME]
RAW = np.arange(6, dtype="<f4").tobytes()
RAW_X = {"name": "x", "datatype": "FP32", "shape": [2, 3], "parameters": {"binary_data_size": len(RAW)}}


@contextlib.asynccontextmanager
async def asked(server: Server | None = None) -> AsyncIterator[httpx.AsyncClient]:
    """Serve in this process; yield a client."""
    async with testing.serving(server or serve()) as service:
        yield service.client


def outputs(answer: httpx.Response) -> dict[str, Any]:
    """Return the data of each output of an answer in JSON."""
    assert answer.status_code == 200, answer.text
    return {each["name"]: each["data"] for each in answer.json()["outputs"]}


async def infer(client: httpx.AsyncClient, header: Any, behind: bytes = b"", path: str = SUM) -> httpx.Response:
    """Send a request with bytes behind its JSON."""
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = {"Inference-Header-Content-Length": str(len(head))}
    return await client.post(path, content=head + behind, headers=length)


# -- many rows beside one ----------------------------------------------------------------------------------------------


async def percentile(service: Any, seconds: float, *, many: bool) -> float:
    """Return the 99th percentile of what 32 clients of one row wait for, beside one of 256 rows or not."""
    loop = asyncio.get_running_loop()
    until, took = loop.time() + seconds, []

    async def ask(numbers: list[int]) -> float:
        began = loop.time()
        x = {"name": "x", "datatype": "FP32", "shape": [len(numbers), 3], "data": [n for n in numbers for _ in "xyz"]}
        name = {"name": "name", "datatype": "BYTES", "shape": [len(numbers)], "data": ["a"] * len(numbers)}
        answer = await service.client.post(SUM, json={"inputs": [x, name], "outputs": [{"name": "sum"}]})
        assert outputs(answer)["sum"] == [3 * number for number in numbers]
        return loop.time() - began

    async def one_by_one(number: int) -> None:
        while loop.time() < until:
            took.append(await ask([number]))

    async def together() -> None:
        while loop.time() < until:
            await ask(list(range(256)))

    await asyncio.gather(*map(one_by_one, range(32)), *([together()] if many else []))
    return statistics.quantiles(took, n=100)[98]


def test_clients_of_one_row_are_not_kept_waiting_behind_all_rows_of_another() -> None:
    waited = {}

    async def check(many: bool) -> None:
        async with testing.serving(serve()) as service:
            service.worker(Sum).slow(0.010)
            waited[many] = await percentile(service, 2.0, many=many)

    for many in (False, True):
        testing.run(check(many))
    assert waited[True] <= 3 * waited[False], waited


# -- requests ----------------------------------------------------------------------------------------------------------


async def test_rows_are_items_of_a_batch_and_come_back_in_their_order_with_the_requests_id() -> None:
    async with asked() as client:
        answer = await client.post(SUM, json={"id": "seven", "inputs": INPUTS, "parameters": {"times": 2}})
        assert answer.json() == {
            "model_name": "sum",
            "model_version": "3",
            "id": "seven",
            "outputs": [
                {"name": "sum", "datatype": "FP32", "shape": [2], "data": [12.0, 30.0]},
                {"name": "who", "datatype": "BYTES", "shape": [2, 1], "data": ["a", "b"]},
                {"name": "batch", "datatype": "INT64", "shape": [2], "data": [2, 2]},
            ],
        }
        assert "id" not in (await client.post(SUM, json={"inputs": INPUTS})).json()


async def test_data_may_be_nested_as_the_shape_is() -> None:
    async with asked() as client:
        nested = {**X, "data": [[1, 2, 3], [4, 5, 6]]}
        assert outputs(await client.post(SUM, json={"inputs": [nested, NAME]}))["sum"] == [6, 15]


async def test_outputs_are_chosen_by_name_and_in_the_order_of_the_request() -> None:
    async with asked() as client:
        body = {"inputs": INPUTS, "outputs": [{"name": "who"}, {"name": "sum"}]}
        assert list(outputs(await client.post(SUM, json=body)).items()) == [("who", ["a", "b"]), ("sum", [6, 15])]


async def test_bytes_stand_behind_the_json_in_requests_and_answers_as_each_tensor_says() -> None:
    async with asked() as client:
        wanted = [{"name": "sum", "parameters": {"binary_data": True}}, {"name": "who"}]
        answer = await infer(client, {"inputs": [RAW_X, NAME], "outputs": wanted}, RAW)
        assert answer.headers["content-type"] == "application/octet-stream"
        length = int(answer.headers["inference-header-content-length"])
        told = json.loads(answer.content[:length])["outputs"]
        assert told[0] == {"name": "sum", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}}
        assert told[1]["data"] == ["a", "b"]
        assert np.frombuffer(answer.content[length:], "<f4").tolist() == [3, 12]
        # All outputs, but for the one that says otherwise.
        header = {
            "inputs": [RAW_X, NAME],
            "parameters": {"binary_data_output": True},
            "outputs": [{"name": "sum", "parameters": {"binary_data": False}}, {"name": "batch"}],
        }
        answer = await infer(client, header, RAW)
        length = int(answer.headers["inference-header-content-length"])
        told = json.loads(answer.content[:length])["outputs"]
        assert (told[0]["data"], told[1]["parameters"]) == ([3.0, 12.0], {"binary_data_size": 16})


async def test_a_plain_client_of_the_route_shares_the_worker_and_sends_a_row_as_an_object() -> None:
    async with asked() as client:
        answer = await client.post("/sum", json={"x": [1, 2, 3], "name": "a", "parameters": {"times": 2}})
        assert answer.json() == {"sum": 12.0, "who": ["a"], "batch": 1}
        # A worker whose description is one Tensor is given the row itself by either way.
        assert (await client.post("/embed", json="four")).json() == [4.0, 1.0]
        text = {"name": "text", "datatype": "BYTES", "shape": [2], "data": ["four", "seven"]}
        answer = await client.post("/v2/models/embed/infer", json={"inputs": [text]})
        assert outputs(answer) == {"vector": [4.0, 2.0, 5.0, 2.0]}


async def test_the_requests_own_timeout_bounds_it() -> None:
    class Slow(Worker):
        async def forward(self, data: Any) -> Any:
            await asyncio.sleep(0.2)
            return {"y": 1}

    server = Server(timeout=20_000)
    server.append_worker(Slow, route="/slow")
    server.add_protocol(OpenInference({"slow": "/slow"}))
    inputs = [{"name": "x", "datatype": "INT8", "shape": [1], "data": [1]}]
    async with asked(server) as client:
        answer = await client.post("/v2/models/slow/infer", json={"inputs": inputs, "parameters": {"timeout": 1000}})
        assert answer.status_code == 408
        assert "x-request-timeout" in answer.json()["error"]
        answer = await client.post("/v2/models/slow/infer", json={"inputs": inputs, "parameters": {"timeout": 10**7}})
        assert outputs(answer) == {"y": [1]}


# -- generate ----------------------------------------------------------------------------------------------------------


async def test_generate_takes_and_returns_plain_fields() -> None:
    async with asked() as client:
        body = {"id": "g", "text_input": "one two three", "parameters": {"max_tokens": 2}}
        answer = await client.post("/v2/models/write/generate", json=body)
        assert answer.json() == {"model_name": "write", "model_version": "1", "id": "g", "text_output": "one two "}
        body = {"x": [1, 2, 3], "name": "a"}
        answer = await client.post("/v2/models/sum/versions/3/generate", json=body)
        assert answer.json() == {"model_name": "sum", "model_version": "3", "sum": 6.0, "who": "a", "batch": 1}
        body = {"flag": True, "number": 1.5, "rows": [[1, 2], [3, 4]], "texts": ["a", "b"]}
        answer = await client.post("/v2/models/echo/generate", json=body)
        assert answer.json() == {"model_name": "echo", "model_version": "1", **body}


async def test_an_array_may_lie_in_memory_as_it_likes() -> None:
    class Turned(Worker):
        def forward(self, data: Any) -> Any:
            return {"y": np.asfortranarray([[1, 2], [3, 4]], ">i4"), "t": np.array([["a", "b"], ["c", "d"]]).T}

    server = Server()
    server.append_worker(Turned, route="/turned")
    server.add_protocol(OpenInference({"turned": "/turned"}))
    async with asked(server) as client:
        answer = (await client.post("/v2/models/turned/generate", json={"x": 1})).json()
        assert (answer["y"], answer["t"]) == ([[1, 2], [3, 4]], [["a", "c"], ["b", "d"]])
        inputs = [{"name": "x", "datatype": "INT8", "shape": [1], "data": [1]}]
        answer = await client.post("/v2/models/turned/infer", json={"inputs": inputs})
        assert outputs(answer) == {"y": [1, 2, 3, 4], "t": ["a", "c", "b", "d"]}
        wanted = [{"name": "y", "parameters": {"binary_data": True}}]
        answer = await client.post("/v2/models/turned/infer", json={"inputs": inputs, "outputs": wanted})
        assert answer.content.endswith(np.array([1, 2, 3, 4], "<i4").tobytes())


async def test_generate_stream_sends_an_object_for_each_event_and_what_goes_wrong_as_the_last() -> None:
    async with asked() as client:
        for body, told in (
            ({"text_input": "one two"}, [("text_output", "one "), ("text_output", "two ")]),
            ({"text_input": ["one fail"]}, [("text_output", "one "), ("error", "a word that fails")]),
        ):
            answer = await client.post("/v2/models/write/generate_stream", json=body)
            assert answer.headers["content-type"] == "text/event-stream"
            events = [json.loads(event.removeprefix("data: ")) for event in answer.text.split("\n\n") if event]
            assert [list(event.items())[-1] for event in events] == told
        answer = await client.post("/v2/models/sum/generate_stream", json={"x": [1, 2, 3], "name": "a"})
        [event] = [json.loads(event.removeprefix("data: ")) for event in answer.text.split("\n\n") if event]
        assert (event["sum"], event["model_name"]) == (6.0, "sum")
        answer = await client.post("/v2/models/sum/generate_stream", json={"x": [1, 2], "name": "a"})
        assert answer.status_code == 400


async def test_a_model_that_streams_gives_whole_text_and_is_refused_where_it_gives_several_responses() -> None:
    async with asked() as client:
        text = {"name": "text_input", "datatype": "BYTES", "shape": [2, 1], "data": ["one two", "three"]}
        answer = await client.post("/v2/models/write/infer", json={"inputs": [text]})
        assert outputs(answer) == {"text_output": ["one two ", "three "]}
        for path, body in (
            ("generate", {"n": 2}),
            ("infer", {"inputs": [{"name": "n", "datatype": "INT8", "shape": [1], "data": [2]}]}),
        ):
            answer = await client.post(f"/v2/models/count/{path}", json=body)
            assert answer.status_code == 400
            assert answer.json() == {"error": "the model gives 2 responses to one request; use generate_stream"}
        answer = await client.post("/v2/models/count/generate", json={"n": 1})
        assert answer.json()["number"] == 0


# -- what goes wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status", "told"),
    [
        ("GET", "/v2/models/none", 404, "there is no model 'none' here, only 'half', 'echo', 'sum'"),
        ("GET", "/v2/models/none/ready", 404, "there is no model 'none'"),
        ("GET", "/v2/models/sum/versions/1", 404, "the model 'sum' has the version 3 only, not '1'"),
        ("POST", "/v2/models/none/infer", 404, "there is no model 'none'"),
        ("POST", "/v2/models/none/generate", 404, "there is no model 'none'"),
        ("POST", "/v2/models/sum/versions/1/infer", 404, "version 3 only"),
        ("GET", SUM, 405, "it takes POST"),
        ("POST", "/v2", 405, "it takes GET"),
        ("POST", "/v2/health/live", 405, "it takes GET"),
        ("GET", "/v2/nothing", 404, "no such path"),
        ("POST", "/v2/models/sum/explain", 404, "no such path"),
    ],
)
async def test_what_is_not_there_is_told_in_the_protocols_form(method: str, path: str, status: int, told: str) -> None:
    async with asked() as client:
        answer = await client.request(method, path)
        assert (answer.status_code, list(answer.json())) == (status, ["error"])
        assert told in answer.json()["error"]


@pytest.mark.parametrize(
    ("name", "status", "told"),
    [("bad", 400, "row 1: a bad name"), ("invalid", 400, "row 1: an invalid name"), ("broken", 500, "'who'")],
)
async def test_the_row_that_a_worker_refuses_is_named(name: str, status: int, told: str) -> None:
    async with asked() as client:
        answer = await client.post(SUM, json={"inputs": [X, {**NAME, "data": ["a", name]}]})
        assert answer.status_code == status
        assert told in answer.json()["error"]


async def test_refusals_of_the_service_have_the_protocols_form() -> None:
    async with asked(serve()) as client:
        answer = await client.post(SUM, json={"inputs": INPUTS}, headers={"x-request-timeout": "none"})
        assert (answer.status_code, list(answer.json())) == (400, ["error"])
        answer = await client.post(SUM, content=b"{}", headers={"content-encoding": "br"})
        assert (answer.status_code, list(answer.json())) == (415, ["error"])
    server = Server(capacity=1, max_request_size=500)
    server.append_worker(Sum, max_batch_size=32, route="/sum")
    server.add_protocol(OpenInference({"sum": "/sum"}))
    async with asked(server) as client:
        answer = await client.post(SUM, content=b"x" * 501)
        assert (answer.status_code, list(answer.json())) == (413, ["error"])
        answers = await asyncio.gather(*(client.post(SUM, json={"inputs": INPUTS}) for _ in range(20)))
        refused = [each for each in answers if each.status_code == 429]
        assert refused
        assert all(list(each.json()) == ["error"] and int(each.headers["retry-after"]) for each in refused)


HOSTILE: list[tuple[Any, bytes, str]] = [
    ({"inputs": [{**X, "shape": [2, 4]}, NAME]}, b"", "6 values came, and the shape [2, 4] has 8"),
    ({"inputs": [{**X, "shape": [3, 2]}, NAME]}, b"", "it has 2 rows, and another input has 3"),
    ({"inputs": [{**X, "shape": [2, -3]}, NAME]}, b"", "not negative"),
    ({"inputs": [{**X, "shape": [0, 3]}, NAME]}, b"", "it has no row"),
    ({"inputs": [{**X, "shape": [2**62, 3]}, NAME]}, b"", "not more than"),
    ({"inputs": [{**X, "shape": [2, 2**62]}, NAME]}, b"", "not more than"),
    ({"inputs": [{**X, "shape": [4096, 3]}, NAME]}, b"", "it has 4096 rows"),
    ({"inputs": [{**X, "shape": [2, 10**30]}, NAME]}, b"", "not more than"),
    ({"inputs": [{**X, "shape": [2, 1e400]}, NAME]}, b"", "no JSON"),
    ({"inputs": [{**X, "shape": [2, 3, 1]}, NAME]}, b"", "its shape is [2, 3, 1], and the model takes [-1, 3]"),
    ({"inputs": [{**X, "shape": {}}, NAME]}, b"", "its shape must be a list"),
    ({"inputs": [{**X, "data": [1, 2, 3, 4, 5, float("nan")]}, NAME]}, b"", "NaN and Infinity are no JSON"),
    ({"inputs": [{**X, "data": [1, 2, 3, 4, 5, float("-inf")]}, NAME]}, b"", "NaN and Infinity are no JSON"),
    ({"inputs": [{**X, "data": [1, 2, 3, 4, 5, 1e39]}, NAME]}, b"", "too large for FP32"),
    ({"inputs": [{**X, "data": [[[1], 2, 3], [4, 5, 6]]}, NAME]}, b"", "FP32 are numbers, not lists"),
    ({"inputs": [{**X, "data": [[1, 2, 3, 4, 5, 6]]}, NAME]}, b"", "nested otherwise than the shape"),
    ({"inputs": [{**X, "data": {"0": 1}}, NAME]}, b"", "its data must be a list"),
    ({"inputs": [{**X, "data": None}, NAME]}, b"", "it has no data"),
    ({"inputs": [{**X, "datatype": "FP64"}, NAME]}, b"", "its datatype is FP64, and the model takes FP32"),
    ({"inputs": [{**X, "datatype": "float"}, NAME]}, b"", "its datatype must be one of BOOL"),
    ({"inputs": [X, NAME, X]}, b"", "the input 'x': it is there twice"),
    ({"inputs": [X]}, b"", "the input 'name': it is missing"),
    ({"inputs": [X, NAME, {**X, "name": "z"}]}, b"", "the model 'sum' takes only 'x', 'name'"),
    ({"inputs": [{**X, "name": ""}]}, b"", "must be a text that is not empty"),
    ({"inputs": [{**X, "name": ["x"]}]}, b"", "must be a text that is not empty"),
    ({"inputs": [{}] * 65}, b"", "there are 65, and a request may have 64"),
    ({"inputs": [X, 7]}, b"", "inputs: it must be a list of objects"),
    ({"inputs": {}}, b"", "inputs: it must be a list of objects"),
    ({}, b"", "a request needs inputs"),
    ([], b"", "must be a JSON object"),
    (b"nothing", b"", "the body is not JSON"),
    (b'{"inputs":' + b"[" * 20_000, b"", "the body is not JSON"),
    (b'{"inputs":' + b"[" * 100_000, b"", "100001 lists and objects"),
    (b'{"parameters":{"a":' + b"[" * 200 + b"]" * 200 + b"}}", b"", "nested deeper than"),
    ({"inputs": INPUTS, "outputs": [{"name": "none"}]}, b"", "the output 'none': the model 'sum' has only"),
    ({"inputs": INPUTS, "outputs": [{"name": "sum"}] * 2}, b"", "each may be asked for once"),
    ({"inputs": INPUTS, "outputs": [{"name": "sum"}] * 65}, b"", "there are 65"),
    ({"inputs": INPUTS, "outputs": ["sum"]}, b"", "outputs: it must be a list of objects"),
    ({"inputs": INPUTS, "outputs": [{}]}, b"", "the name of an output"),
    ({"inputs": INPUTS, "outputs": [{"name": "sum", "parameters": {"binary_data": 1}}]}, b"", "must be true or false"),
    ({"inputs": INPUTS, "outputs": [{"name": "sum", "parameters": {"classification": 1}}]}, b"", "no classification"),
    ({"inputs": INPUTS, "parameters": {str(n): n for n in range(65)}}, b"", "there are 65"),
    ({"inputs": INPUTS, "parameters": {"a": "x" * 20_000}}, b"", "20001 characters"),
    ({"inputs": INPUTS, "parameters": {"a": []}}, b"", "the parameter 'a' must be a text, a number"),
    ({"inputs": INPUTS, "parameters": {"a": None}}, b"", "the parameter 'a' must be a text, a number"),
    ({"inputs": INPUTS, "parameters": []}, b"", "parameters must be an object"),
    ({"inputs": INPUTS, "parameters": {"binary_data_output": "yes"}}, b"", "must be true or false"),
    ({"inputs": INPUTS, "parameters": {"timeout": False}}, b"", "whole number of microseconds"),
    ({"inputs": INPUTS, "parameters": {"timeout": -1}}, b"", "whole number of microseconds"),
    ({"inputs": INPUTS, "parameters": {"timeout": 1e300}}, b"", "whole number of microseconds"),
    ({"inputs": INPUTS, "id": 7}, b"", "id: it must be a text"),
    ({"inputs": [{**X, "parameters": {"shared_memory_region": "r"}}, NAME]}, b"", "no shared_memory_region"),
    # Bytes that lie.
    ({"inputs": [RAW_X, NAME]}, RAW[:-1], "binary_data_size is 24, and 23 bytes are left"),
    ({"inputs": [RAW_X, NAME]}, RAW + b"x", "1 bytes behind the JSON belong to no input"),
    ({"inputs": [{**RAW_X, "shape": [2, 4]}, NAME]}, RAW, "24 bytes came, and FP32 of the shape [2, 4] has 32"),
    ({"inputs": [{**RAW_X, "shape": [2, 2**40]}, NAME]}, RAW, "24 bytes came"),
    ({"inputs": [{**RAW_X, "parameters": {"binary_data_size": -1}}, NAME]}, RAW, "binary_data_size is -1"),
    ({"inputs": [{**RAW_X, "parameters": {"binary_data_size": "24"}}, NAME]}, RAW, "binary_data_size is '24'"),
    ({"inputs": [{**RAW_X, "parameters": {"binary_data_size": 2**70}}, NAME]}, RAW, "binary_data_size is a larger"),
    ({"inputs": [{**RAW_X, "parameters": {"binary_data_size": True}}, NAME]}, RAW, "binary_data_size is bool"),
    ({"inputs": [{**RAW_X, "data": [1]}, NAME]}, RAW, "both `data` and `binary_data_size`"),
    (
        {"inputs": [X, {**NAME, "data": None, "parameters": {"binary_data_size": 8}}]},
        b"\x01\0\0\0a\xff\xff\xff",
        "the bytes end before value 1 of 2",
    ),
    (
        {"inputs": [X, {**NAME, "data": None, "parameters": {"binary_data_size": 9}}]},
        b"\xff\xff\xff\xff\0\0\0\0a",
        "says that it has 4294967295 bytes",
    ),
    (
        {"inputs": [X, {**NAME, "data": None, "parameters": {"binary_data_size": 10}}]},
        b"\x01\0\0\0\xff\x01\0\0\0a",
        "it holds bytes that are no UTF-8",
    ),
]


async def test_a_hostile_request_is_refused_with_400_and_a_text_that_says_why() -> None:
    async with asked() as client:
        for header, behind, told in HOSTILE:
            answer = await infer(client, header, behind)
            assert answer.status_code == 400, (header, answer.text)
            assert list(answer.json()) == ["error"]
            assert told in answer.json()["error"], header
            assert len(answer.json()["error"]) < 1000
        # Nothing else has suffered.
        assert outputs(await client.post(SUM, json={"inputs": INPUTS}))["sum"] == [6, 15]


@pytest.mark.parametrize("length", ["0", "-1", "x", "10000", "9" * 5000, "+5", "1.0", ""])
async def test_a_header_that_lies_about_the_length_of_the_json_is_refused(length: str) -> None:
    async with asked() as client:
        body = json.dumps({"inputs": INPUTS}).encode()
        answer = await client.post(SUM, content=body, headers={"Inference-Header-Content-Length": length})
        assert answer.status_code == 400
        assert "Inference-Header-Content-Length must be the number of bytes" in answer.json()["error"]
        # Of a part of the JSON, too.
        answer = await client.post(SUM, content=body, headers={"Inference-Header-Content-Length": "20"})
        assert "the body is not JSON" in answer.json()["error"]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({}, "a request needs inputs"),
        ({"text_input": 7}, "BYTES are texts, not whole numbers"),
        ({"text_input": ["a", "b"]}, "its shape is [1, 2], and the model takes [-1, 1]"),
        ({"text_input": [["a"]]}, "its shape is [1, 1, 1]"),
        ({"text_input": "a", "more": 1}, "the model 'write' takes only 'text_input'"),
        ({"text_input": {}}, "BYTES are texts, not objects"),
        ({"text_input": []}, "its shape is [1, 0]"),
        ({"text_input": "a", "parameters": 1}, "parameters must be an object"),
    ],
)
@pytest.mark.parametrize("action", ["generate", "generate_stream"])
async def test_a_wrong_request_to_generate_is_refused(action: str, body: Any, told: str) -> None:
    async with asked() as client:
        answer = await client.post(f"/v2/models/write/{action}", json=body)
        assert answer.status_code == 400, answer.text
        assert told in answer.json()["error"]


async def test_json_of_too_many_values_is_refused_before_it_is_read() -> None:
    async with asked(serve(max_values=1000)) as client:
        for data, told in (
            ([1] * 6000, "values, and one request may have 5096"),
            ([[]] * 26_000, "lists and objects, and one request may have 25000"),
            (["a"] * 6000, "texts, and one request may have 4346"),
        ):
            tensor = {"name": "x", "datatype": "FP32", "shape": [1, 6000], "data": data}
            answer = await client.post("/v2/models/echo/infer", json={"inputs": [tensor]})
            assert answer.status_code == 400
            assert told in answer.json()["error"]
        # What stands in a text does not count.
        body = {"text_input": '[{,"' * 10_000}
        assert (await client.post("/v2/models/write/generate", json=body)).status_code == 200
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 1001], "data": [1] * 1001}
        answer = await client.post("/v2/models/echo/infer", json={"inputs": [tensor]})
        assert "1000 of a request may come one by one" in answer.json()["error"]
        # As bytes they are not read one by one.
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 6000], "parameters": {"binary_data_size": 24000}}
        answer = await infer(client, {"inputs": [tensor]}, bytes(24000), "/v2/models/echo/infer")
        assert "6000 values, and may have 4000 there; ask for it as binary data" in answer.json()["error"]
        wanted = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
        answer = await infer(client, wanted, bytes(24000), "/v2/models/echo/infer")
        assert answer.status_code == 200


async def test_what_json_cannot_say_can_be_had_as_bytes() -> None:
    async with asked() as client:
        tensor = {"name": "x", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}}
        nan = np.array([np.nan], "<f4").tobytes()
        answer = await infer(client, {"inputs": [tensor]}, nan, "/v2/models/echo/infer")
        assert answer.status_code == 400
        assert answer.json() == {
            "error": "the output 'x' cannot be given in JSON: it holds NaN or infinity; ask for it as binary data"
        }
        wanted = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
        answer = await infer(client, wanted, nan, "/v2/models/echo/infer")
        assert answer.content.endswith(nan)


# -- health ------------------------------------------------------------------------------------------------------------


async def test_metadata_says_what_the_server_and_the_models_are() -> None:
    async with asked() as client:
        told = (await client.get("/v2")).json()
        assert told["name"] == "mosec_asgi"
        assert "binary_tensor_data" in told["extensions"]
        told = (await client.get("/v2/models/sum")).json()
        assert told == (await client.get("/v2/models/sum/versions/3")).json()
        assert (told["versions"], told["inputs"][0]) == (["3"], {"name": "x", "datatype": "FP32", "shape": [-1, 3]})
        assert (await client.get("/v2/models/echo")).json()["inputs"] == []
        assert (await client.get("/v2/models/sum/ready")).json() == {"name": "sum", "ready": True}


DYING = """
import os
from pathlib import Path

from mosec_asgi import Server, Worker
from mosec_asgi.protocols import OpenInference


class Good(Worker):
    def forward(self, data):
        return data


class Fragile(Worker):
    def __init__(self):
        if Path(__file__).with_name("dies").exists():
            os._exit(1)

    def forward(self, data):
        Path(__file__).with_name("dies").touch()
        os._exit(1)


server = Server()
server.append_worker(Good, route="/good")
server.append_worker(Fragile, route="/fragile", max_attempts=1)
server.add_protocol(OpenInference({"good": "/good", "fragile": "/fragile"}))

if __name__ == "__main__":
    server.run()
"""


def test_models_are_ready_when_each_of_their_stages_has_a_worker(tmp_path: Path, log: Path) -> None:
    """One whose worker dies at its start, and the other."""
    file = written(
        tmp_path,
        DYING,
        "dying.py",
    )
    with running([sys.executable, str(file), "--port", "{port}"], log) as program:
        program.wait_ready()
        client = program.client
        assert client.get("/v2/health/ready").json() == {"ready": True}
        inputs = [{"name": "x", "datatype": "INT8", "shape": [1], "data": [1]}]
        answer = client.post("/v2/models/fragile/infer", json={"inputs": inputs})
        assert (answer.status_code, list(answer.json())) == (500, ["error"])
        answer = client.get("/v2/models/fragile/ready")
        assert (answer.status_code, answer.json()) == (503, {"name": "fragile", "ready": False})
        assert client.get("/v2/health/ready").status_code == 503
        assert client.get("/v2/health/live").status_code == 200
        assert client.get("/v2/models/good/ready").json() == {"name": "good", "ready": True}
        states = {each["name"]: each["state"] for each in client.post("/v2/repository/index").json()}
        assert states == {"good": "READY", "fragile": "UNAVAILABLE"}


# -- clients that nobody here wrote ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """A service of real processes, by its own `run()`."""
    log = tmp_path_factory.mktemp("log") / "server.log"
    command = [sys.executable, str(TESTS / "open_inference_workers.py"), "--port", "{port}"]
    with running(command, log) as program:
        program.wait_ready()
        yield program


def arrays_of_every_datatype() -> dict[str, Any]:
    """Return an array of two rows of each datatype, with its largest and smallest values."""
    made: dict[str, Any] = {"BOOL": np.array([[True, False], [False, True]])}
    for bits in (8, 16, 32, 64):
        for sign in ("U", ""):
            kind = np.dtype(f"{sign.lower()}int{bits}")
            bounds = np.iinfo(kind)
            made[f"{sign}INT{bits}"] = np.array([[bounds.min, bounds.max], [0, 1]], kind)
    for bits in (16, 32, 64):
        limits = np.finfo(f"float{bits}")
        made[f"FP{bits}"] = np.array([[limits.min, limits.max], [0.1, limits.tiny]], f"float{bits}")
    made["BF16"] = np.array([[1.5, -3e38], [0.1, 0]], pytest.importorskip("ml_dtypes").bfloat16)
    made["BYTES"] = np.array([[b"", "ü".encode()], [b"a\0", b"\0" * 70_000]], object)
    return made


EVERY = (
    ["BOOL", *(f"{sign}INT{bits}" for sign in ("U", "") for bits in (8, 16, 32, 64))]
    + [f"FP{bits}" for bits in (16, 32, 64)]
    + ["BF16", "BYTES"]
)


@pytest.fixture
def triton(program: Program) -> Iterator[Any]:
    module = pytest.importorskip("tritonclient.http")
    with module.InferenceServerClient(f"127.0.0.1:{program.port}", network_timeout=60.0) as client:
        yield client


def triton_inputs(module: Any, arrays: dict[str, tuple[str, Any]], *, binary: bool) -> list[Any]:
    """Return inputs of Triton's client."""
    inputs = []
    for name, (datatype, array) in arrays.items():
        tensor = module.InferInput(name, list(array.shape), datatype)
        tensor.set_data_from_numpy(array, binary_data=binary)
        inputs.append(tensor)
    return inputs


@pytest.mark.parametrize("binary", [True, False])
def test_tritons_client_gets_every_datatype_back(triton: Any, binary: bool) -> None:
    import tritonclient.http as module

    for datatype in EVERY:
        # Triton's client knows no BF16 in JSON.
        if datatype == "BF16" and not binary:
            continue
        array = arrays_of_every_datatype()[datatype]
        # Of an array whose type is float32 the worker cannot know that it was BF16; a description says so.
        name, path = ("bf16", "half") if datatype == "BF16" else ("any", "echo")
        inputs = triton_inputs(module, {name: (datatype, array)}, binary=binary)
        answer = triton.infer(path, inputs, outputs=[module.InferRequestedOutput(name, binary_data=binary)])
        back = answer.as_numpy(name)
        assert back.dtype == array.dtype, datatype
        expected = array.tolist()
        if datatype == "BYTES" and not binary:
            expected = [[value.decode() for value in row] for row in expected]
        assert back.tolist() == expected, datatype
        if datatype != "BYTES":
            assert answer.get_output(name)["datatype"] == datatype


def test_tritons_client_reads_health_metadata_and_the_index_and_names_outputs(triton: Any) -> None:
    import tritonclient.http as module
    from tritonclient.utils import InferenceServerException

    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("sum")
    assert triton.is_model_ready("sum", "3")
    assert not triton.is_model_ready("sum", "4")
    assert triton.get_server_metadata()["name"] == "mosec_asgi"
    assert triton.get_model_metadata("sum")["outputs"][0] == {"name": "sum", "datatype": "FP32", "shape": [-1]}
    assert {"name": "sum", "version": "3", "state": "READY", "reason": ""} in triton.get_model_repository_index()
    config = triton.get_model_config("sum", "3")
    assert (config["name"], config["max_batch_size"]) == ("sum", 2048)
    assert config["input"] == [
        {"name": "x", "data_type": "TYPE_FP32", "dims": [3]},
        {"name": "name", "data_type": "TYPE_STRING", "dims": []},
    ]
    assert config["output"][1] == {"name": "who", "data_type": "TYPE_STRING", "dims": [1]}
    assert triton.get_model_config("write")["model_transaction_policy"] == {"decoupled": True}
    x, name = np.ones((2, 3), np.float32), np.array([b"a", b"b"], object)
    inputs = triton_inputs(module, {"x": ("FP32", x), "name": ("BYTES", name)}, binary=True)
    answer = triton.infer("sum", inputs, request_id="r1", parameters={"times": 3}, timeout=10**7)
    assert answer.as_numpy("sum").tolist() == [9, 9]
    assert answer.as_numpy("who").tolist() == [[b"a"], [b"b"]]
    assert answer.get_response()["id"] == "r1"
    answer = triton.infer("sum", inputs, outputs=[module.InferRequestedOutput("who", binary_data=False)])
    assert answer.as_numpy("sum") is None
    assert answer.as_numpy("who").tolist() == [["a"], ["b"]]
    for algorithm in ("gzip", None):
        own: Any = {"request_compression_algorithm": algorithm, "response_compression_algorithm": algorithm}
        answer = triton.infer("sum", inputs, **own)
        assert answer.as_numpy("sum").tolist() == [3, 3]
    with pytest.raises(InferenceServerException, match="the output 'none'"):
        triton.infer("sum", inputs, outputs=[module.InferRequestedOutput("none")])
    with pytest.raises(InferenceServerException, match="there is no model 'none'"):
        triton.infer("none", inputs)


async def test_tritons_asynchronous_client_gets_its_rows_back(program: Program) -> None:
    module = pytest.importorskip("tritonclient.http.aio")
    async with module.InferenceServerClient(f"127.0.0.1:{program.port}") as client:
        assert await client.is_server_ready()
        for binary in (True, False):

            async def ask(number: int, binary: bool = binary) -> Any:
                array = np.full((number, 2), number, np.float32)
                answer = await client.infer("echo", triton_inputs(module, {"y": ("FP32", array)}, binary=binary))
                return answer.as_numpy("y")

            answers = await asyncio.gather(*map(ask, range(1, 20)))
            assert all((answer == number).all() and len(answer) == number for number, answer in enumerate(answers, 1))


KSERVE = """
import asyncio, sys
import numpy as np
import kserve
from kserve.inference_client import RESTConfig

async def main(url):
    client = kserve.InferenceRESTClient(RESTConfig(protocol="v2"))
    assert await client.is_server_live(url) and await client.is_server_ready(url)
    assert await client.is_model_ready(url, "sum")
    for binary in (True, False):
        x = kserve.InferInput("x", [2, 3], "FP32")
        x.set_data_from_numpy(np.ones((2, 3), np.float32), binary_data=binary)
        name = kserve.InferInput("name", [2], "BYTES")
        name.set_data_from_numpy(np.array([b"a", b"b"], object), binary_data=binary)
        request = kserve.InferRequest(model_name="sum", infer_inputs=[x, name], parameters={"times": 2})
        answer = await client.infer(url, request, model_name="sum")
        assert answer.outputs[0].as_numpy().tolist() == [6, 6]
        assert [each.name for each in answer.outputs] == ["sum", "who", "batch"]
    await client.close()
    print("well")

asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.skipif(importlib.util.find_spec("kserve") is None, reason="kserve is not installed")
def test_kserves_client_infers_with_and_without_bytes(program: Program) -> None:
    """In a program of its own: its messages of gRPC have the names of Triton's."""
    command = [sys.executable, "-W", "ignore", "-c", KSERVE, program.url]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment_of_programs(), timeout=120)
    assert ran.stdout.strip().endswith("well"), ran.stderr


def test_curl_infers_and_reads_a_stream_event_by_event(program: Program) -> None:
    def curl(path: str, body: Any) -> list[str]:
        command = ["curl", "-sN", f"{program.url}{path}", "-d", json.dumps(body)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.splitlines()

    [answer] = curl(SUM, {"inputs": INPUTS, "outputs": [{"name": "sum"}]})
    assert json.loads(answer)["outputs"][0]["data"] == [6.0, 15.0]
    events = [line for line in curl("/v2/models/write/generate_stream", {"text_input": "one two"}) if line]
    assert [json.loads(line.removeprefix("data: "))["text_output"] for line in events] == ["one ", "two "]


def test_plain_requests_and_those_of_openai_and_of_this_protocol_share_batches(program: Program) -> None:
    """One worker class, one `forward`, three ways to speak."""

    def ask(number: int) -> float:
        text, client = "x" * number, program.client
        if number % 3 == 0:
            return float(client.post("/embed", json=text).json()[0])
        if number % 3 == 1:
            answer = client.post("/v1/embeddings", json={"model": "lengths", "input": text})
            return float(answer.json()["data"][0]["embedding"][0])
        tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": [text]}
        answer = client.post("/v2/models/embed/infer", json={"inputs": [tensor]})
        return float(outputs(answer)["vector"][0])

    assert program.ask_together("Embed_3", ask, list(range(1, 37))) == list(range(1, 37))


def test_large_tensors_pass_as_bytes(program: Program) -> None:
    array = np.random.default_rng(3).standard_normal((4, 500_000)).astype("<f4")
    header = {
        "inputs": [
            {"name": "x", "datatype": "FP32", "shape": [4, 500_000], "parameters": {"binary_data_size": array.nbytes}}
        ],
        "parameters": {"binary_data_output": True},
    }
    head = json.dumps(header).encode()
    answer = program.client.post(
        "/v2/models/echo/infer",
        content=head + array.tobytes(),
        headers={"Inference-Header-Content-Length": str(len(head))},
    )
    assert answer.status_code == 200
    assert answer.content[int(answer.headers["inference-header-content-length"]) :] == array.tobytes()


# -- documents ---------------------------------------------------------------------------------------------------------


def test_the_openapi_document_and_swagger_show_the_endpoints(program: Program) -> None:
    document = program.client.get("/openapi/metadata.json").json()
    validator = pytest.importorskip("openapi_spec_validator").OpenAPIV31SpecValidator(document)
    assert list(validator.iter_errors()) == []
    for path in ("/v2", "/v2/health/ready", "/v2/models/{model}", "/v2/models/{model}/versions/{version}/infer", SUM):
        assert path in document["paths"]
    operation = document["paths"][SUM]["post"]
    assert "`x` (FP32, [-1, 3])" in operation["description"]
    example = operation["requestBody"]["content"]["application/json"]["example"]
    assert outputs(program.client.post(SUM, json=example))["sum"] == [3.0]
    fields = document["paths"]["/v2/models/sum/generate"]["post"]["requestBody"]["content"]["application/json"]
    assert fields["schema"]["required"] == ["x", "name"]
    assert program.client.get("/openapi/swagger/").status_code == 200


# Which data fits a shape no schema says, nor where bytes stand behind the JSON, nor which model has which version.
SCHEMATHESIS = """
warnings = false
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "400", "404", "408"]

[checks.negative_data_rejection]
expected-statuses = ["4xx"]

[generation]
allow-extra-parameters = false
"""


def test_whatever_schemathesis_makes_up_is_answered_within_the_contract(program: Program, tmp_path: Path) -> None:
    pytest.importorskip("schemathesis")
    written(tmp_path, SCHEMATHESIS, "schemathesis.toml")
    command = [sys.executable, "-m", "schemathesis.cli", "--no-color", "run", f"{program.url}/openapi/metadata.json"]
    command += [
        "--url",
        program.url,
        "--include-path-regex",
        "^/v2(?!/models/(half|echo|embed|count|write/generate$)|.*versions)",
    ]
    command += ["--phases", "examples,coverage,fuzzing", "--checks", "all", "--max-examples", "5", "--seed", "3"]
    command += ["--suppress-health-check", "all"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=480)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No issues found" in done.stdout


# -- definitions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (({},), "needs a dictionary"),
        (("/route",), "needs a dictionary"),
        (({"a": 1},), "needs a dictionary"),
        (({1: "/a"},), "the name of a model"),
        (({"a/b": "/a"},), "the name of a model"),
        (({"{a}": "/a"},), "the name of a model"),
        (({"": "/a"},), "the name of a model"),
    ],
)
def test_a_wrong_definition_says_what_to_change(arguments: Any, told: str) -> None:
    with pytest.raises(DefinitionError, match=told):
        OpenInference(*arguments)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"prefix": "v2"}, "prefix must begin"),
        ({"prefix": ""}, "prefix must begin"),
        ({"prefix": "/v2/"}, "prefix must begin"),
        ({"versions": {"b": "1"}}, "there is no model 'b', only 'a'"),
        ({"versions": {"a": 1}}, "the version of a"),
        ({"versions": {"a": "1/2"}}, "the version of a"),
        ({"max_rows": 0}, "max_rows must be"),
        ({"max_values": 1.5}, "max_values must be"),
    ],
)
def test_a_wrong_setting_says_what_to_change(options: Any, told: str) -> None:
    with pytest.raises(DefinitionError, match=told):
        OpenInference({"a": "/a"}, **options)


async def test_settings_bound_the_rows_and_another_prefix_has_the_same_paths() -> None:
    async with asked(serve(prefix="/open", max_rows=1)) as client:
        answer = await client.post("/open/models/sum/infer", json={"inputs": INPUTS})
        assert answer.status_code == 400
        assert "from 1 to 1; send several" in answer.json()["error"]
        assert (await client.get("/open")).status_code == 200
        assert (await client.get("/v2")).status_code == 404


@pytest.mark.parametrize("description", [["x"], [Tensor("x", "FP32", [-1])] * 2])
def test_a_worker_that_describes_itself_wrongly_is_told_of_before_anything_starts(description: Sequence[Any]) -> None:
    class Wrong(Worker):
        inputs = description

        def forward(self, data: Any) -> Any:
            return data

    server = Server()
    server.append_worker(Wrong, route="/wrong")
    server.add_protocol(OpenInference({"wrong": "/wrong"}))
    with pytest.raises(DefinitionError, match=r"Wrong\.inputs must"):
        server.openapi()


def test_a_route_that_is_not_there_is_told_of() -> None:
    server = Server()
    server.append_worker(Sum, max_batch_size=2, route="/sum")
    server.add_protocol(OpenInference({"sum": "/other"}))
    with pytest.raises(DefinitionError, match="OpenInference asks the route '/other'"):
        server.openapi()
