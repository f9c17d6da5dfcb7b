"""Methods of HTTP that a route takes, and what is answered to the others."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
import request_workers as workers
from test_request import client_of

from mosec_asgi import Runtime, Server, Worker
from mosec_asgi.errors import DefinitionError
from mosec_asgi.web.methods import taken


def test_head_comes_with_get_and_options_always() -> None:
    assert taken(["POST"]) == ["OPTIONS", "POST"]
    assert taken(["GET", "PUT"]) == ["GET", "HEAD", "OPTIONS", "PUT"]


@pytest.mark.parametrize(
    ("worker", "methods", "text"),
    [
        (workers.Plain, "POST", "methods must be a list of methods of HTTP"),
        (workers.Plain, [], "methods must be a list"),
        (workers.Plain, ["HEAD"], "methods must be of GET, POST, PUT, PATCH, DELETE, not 'HEAD'; HEAD comes with GET"),
        (workers.Plain, ["POST", "GET"], "a request by GET has no body to make an item of; set `takes_request = True`"),
    ],
)
def test_what_are_no_methods_is_refused(worker: type[workers.Worker], methods: list[str], text: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        Runtime(worker, methods=methods)
    assert text in str(caught.value)


def test_the_first_stage_says_the_methods() -> None:
    server = Server()
    server.append_worker(workers.Plain, methods=["put"])
    with pytest.raises(DefinitionError, match="the first stage of /inference says them for the whole pipeline"):
        server.append_worker(workers.Plain, methods=["POST"])


async def test_get_has_the_query_and_no_body() -> None:
    async with client_of(workers.TellsLast, methods=["GET", "POST"]) as (client, _):
        got = (await client.get("/inference?a=b")).json()
        assert (got["data"], got["method"], got["query"]) == (None, "GET", {"a": "b"})
        assert (await client.request("GET", "/inference", content=b"[1]")).json()["data"] == [1]
        assert (await client.post("/inference", json=2)).json()["data"] == 2
        empty = await client.post("/inference", content=b"")
        assert (empty.status_code, empty.text) == (400, "no data provided")


async def test_head_is_get_without_the_body() -> None:
    async with client_of(workers.TellsLast, methods=["GET"]) as (client, server):
        headers = {"x-request-id": "one"}
        got = await client.get("/inference?a=b", headers=headers)
        head = await client.head("/inference?a=b", headers=headers)
        assert (head.status_code, head.content) == (200, b"")
        # "HEAD" is one letter longer than "GET", and stands in the answer.
        assert int(head.headers["content-length"]) == len(got.content) + 1
        assert (await client.head("/nowhere")).status_code == 404
        # The client above would not show a body that was sent all the same.
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "HEAD",
            "path": "/inference",
            "headers": [],
            "query_string": b"",
        }
        await server(scope, receive, send)
        assert (sent[0]["status"], sent[1]["body"]) == (200, b"")


async def test_head_of_a_stream_runs_nothing() -> None:
    async with client_of(workers.Streams, methods=["GET"]) as (client, _):
        head = await client.head("/inference")
        assert (head.status_code, head.headers["content-type"], head.content) == (200, "text/event-stream", b"")
        answer = await client.request("GET", "/inference", content=b'"count"', headers={"x-request-id": "one"})
        assert answer.text.startswith("data: one 1\n")


async def test_options_and_405_name_the_methods() -> None:
    async with client_of(workers.TellsLast, methods=["GET", "POST"], route="/a/{b}") as (client, _):
        options = await client.options("/a/x")
        assert (options.status_code, options.headers["allow"]) == (204, "GET, HEAD, OPTIONS, POST")
        assert {"server", "x-request-id"} <= set(options.headers)
        wrong = await client.put("/a/x", json=1)
        assert (wrong.status_code, wrong.headers["allow"]) == (405, "GET, HEAD, POST")
        assert wrong.text == "Method Not Allowed: this path does not take PUT; it takes GET, HEAD, POST"
        assert "there are GET, POST /a/{b}" in (await client.get("/nowhere")).text


async def test_a_route_without_post_does_not_take_it() -> None:
    async with client_of(workers.Plain, methods=["PUT"]) as (client, _):
        assert (await client.put("/inference", json=1)).json() == 1
        wrong: httpx.Response = await client.post("/inference", json=1)
        assert (wrong.status_code, wrong.headers["allow"]) == (405, "PUT")


async def test_a_number_of_too_many_digits_in_a_path_is_no_route() -> None:
    async with client_of(workers.Tells, route="/a/{size:int}") as (client, _):
        assert (await client.post("/a/7", json=1)).status_code == 200
        assert (await client.post(f"/a/{'9' * 5000}", json=1)).status_code == 404


def test_the_document_shows_methods_and_parameters() -> None:
    class Takes(Worker):
        takes_request = True

        def forward(self, data: int | None) -> int:
            return data or 0

    server = Server()
    server.append_worker(Takes, methods=["POST", "GET"], route="/models/{name}/{size:int}")
    server.append_worker(workers.Plain, methods=["PUT"], route="/plain")
    paths = server.openapi()["paths"]
    operations = paths["/models/{name}/{size}"]
    assert set(operations) == {"post", "get"}
    assert operations["post"]["requestBody"]["required"]
    assert "requestBody" not in operations["get"]
    assert [operations[method]["operationId"] for method in ("post", "get")] == [
        "models_name_size_int",
        "models_name_size_int_get",
    ]
    assert operations["get"]["parameters"][:2] == [
        {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}},
        {"name": "size", "in": "path", "required": True, "schema": {"type": "integer"}},
    ]
    assert set(paths["/plain"]) == {"put"}


@pytest.mark.parametrize(
    ("method", "status", "held"),
    [("PUT", 400, False), ("PATCH", 405, True)],
    ids=["the model has read it", "nobody has read it"],
)
async def test_an_answer_of_400_and_above_waits_for_the_body_only_where_it_is_unread(
    method: str, status: int, held: bool
) -> None:
    unread: list[Any] = [{"type": "http.request", "body": b"{", "more_body": False}]
    sent: list[Any] = []

    async def receive() -> Any:
        if not unread:
            await asyncio.Event().wait()
        return unread.pop()

    async def send(message: Any) -> None:
        sent.append(message)

    async with client_of(workers.Plain, methods=["PUT"]) as (_, server):
        headers = [(b"content-length", b"1"), (b"content-type", b"application/json")]
        scope = {"type": "http", "http_version": "1.1", "method": method, "path": "/inference", "headers": headers}
        await server(scope, receive, send)
    assert (sent[0]["status"], sent[1].get("more_body", False), unread) == (status, held, [])
