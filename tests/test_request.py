"""What workers are told of requests, in processes and in threads."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import threading
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import request_workers as workers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from mosec_asgi import Request, Server, Worker, testing
from mosec_asgi.definition import plan_service
from mosec_asgi.errors import DefinitionError
from mosec_asgi.request import MOST_STATE, Headers, packed, packed_state, unpacked

BOTH = pytest.mark.parametrize("executor", ["process", "thread"])
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Stateful:
    """Middleware that leaves notes for the workers, and what cannot reach them."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = {"user": "ada", "lock": threading.Lock(), "large": bytes(MOST_STATE + 1)}
        await self._app({**scope, "state": {**scope.get("state", {}), **state}}, receive, send)


@contextlib.asynccontextmanager
async def client_of(
    *stages: type[Worker], executor: str = "thread", settings: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, Server]]:
    server = Server(timeout=20_000, **(settings or {}))
    for stage in stages:
        server.append_worker(stage, executor=executor, **options)
    async with server, httpx.AsyncClient(transport=httpx.ASGITransport(server), base_url="http://test") as client:
        yield client, server


# -- the request itself ------------------------------------------------------------------------------------------------


def test_headers_have_names_in_any_case() -> None:
    headers = Headers({"X-Color": "red"})
    assert (headers["x-color"], headers["X-COLOR"], "x-cOLOR" in headers) == ("red", "red", True)
    assert (list(headers), len(headers), 7 in headers, headers.get("other")) == (["x-color"], 1, False, None)
    assert pickle.loads(pickle.dumps(headers)) == headers


def test_a_request_survives_pickle_and_its_way_to_a_worker() -> None:
    request = Request(
        "id", "/a/{b}", "GET", Headers({"c": "d"}), "e=%C3%A4&e=g&h", {"b": 1}, TRACE, packed_state({"i": [1]})
    )
    for copy in (pickle.loads(pickle.dumps(request)), unpacked(packed(request))):
        assert copy == request
        assert (copy.query, copy.state) == ({"e": "g", "h": ""}, {"i": [1]})
    assert unpacked(packed(None)) == Request()


def test_of_the_state_goes_what_is_small_and_can_be_pickled() -> None:
    state = {"a": 1, "lock": threading.Lock(), "large": bytes(MOST_STATE + 1), 5: "x"}
    assert {name: pickle.loads(value) for name, value in packed_state(state).items()} == {"a": 1, "5": "x"}
    assert packed_state(None) == packed_state(7) == {}


def test_a_worker_of_its_own_has_an_empty_request() -> None:
    assert workers.TellsLast().forward(1)["id"] == ""
    assert "needs `takes_request = True` in the class TellsOfNothing" in workers.TellsOfNothing().forward(1)


# -- served ------------------------------------------------------------------------------------------------------------


@BOTH
async def test_a_worker_is_told_of_its_request_in_all_of_its_methods(executor: str) -> None:
    settings = {"middleware": [Middleware(Stateful)]}
    async with client_of(workers.Tells, executor=executor, route="/models/{name}/{size:int}", settings=settings) as (
        client,
        server,
    ):
        headers = {"x-request-id": "one", "X-COLOR": "red", "traceparent": TRACE}
        answer = await client.post("/models/bert/7?lang=en&lang=de&empty=", json=5, headers=headers)
        assert answer.json() == {
            "data": [5, "one"],
            "id": "one",
            "route": "/models/{name}/{size:int}",
            "method": "POST",
            "color": "red",
            "query": {"lang": "de", "empty": ""},
            "path": {"name": "bert", "size": 7},
            "traceparent": TRACE,
            "state": {"user": "ada"},
            "serialized": "one",
        }
        # Of a call by the program there are the id and the route.
        told = await server.infer(5, route="/models/{name}/{size:int}", request_id="two")
        assert (told["data"], told["id"], told["route"]) == (5, "two", "/models/{name}/{size:int}")
        assert (told["method"], told["color"], told["query"], told["path"], told["state"]) == ("", None, {}, {}, {})
        assert (await client.post("/models/bert/x", json=5)).status_code == 404
        # The route itself is no path of a request, unless it fits.
        assert (await client.post("/models/{name}/{size:int}", json=5)).status_code == 404


@BOTH
async def test_a_stage_behind_another_is_told_as_well(executor: str) -> None:
    async with client_of(workers.Plain, workers.TellsLast, executor=executor) as (client, server):
        answer = (await client.post("/inference?a=b", json="x", headers={"x-request-id": "one"})).json()
        assert (answer["data"], answer["id"], answer["query"]) == ("x", "one", {"a": "b"})
        assert (await server.infer("y", request_id="two"))["id"] == "two"


@BOTH
@pytest.mark.parametrize("worker", [workers.TellsBatch, workers.TellsAsync])
async def test_each_item_of_a_batch_has_its_own(executor: str, worker: type[Worker]) -> None:
    async with client_of(worker, executor=executor, max_batch_size=8, max_wait_time=200) as (client, _):
        posts = [client.post("/inference", json=name, headers={"x-request-id": name}) for name in "abcdefgh"]
        for name, answer in zip("abcdefgh", await asyncio.gather(*posts), strict=True):
            if worker is workers.TellsBatch:
                item, told, _, serialized = answer.json()
                assert (item, told, serialized) == ([name, name], name, name)
            else:
                assert answer.json() == [name, name]


@BOTH
async def test_parts_of_a_batch_that_are_run_again_keep_theirs(executor: str) -> None:
    async with client_of(workers.TellsBatch, executor=executor, max_batch_size=4, max_wait_time=500) as (client, _):
        names = ["a", "bad", "c", "d"]
        posts = [client.post("/inference", json=name, headers={"x-request-id": name}) for name in names]
        answers = [answer.json() for answer in await asyncio.gather(*posts)]
        assert [(told, serialized) for _, told, _, serialized in answers] == [(name, name) for name in names]


@BOTH
@pytest.mark.parametrize("worker", [workers.Streams, workers.StreamsAsync, workers.Slots])
async def test_streams_are_told(executor: str, worker: type[Worker]) -> None:
    async with client_of(worker, executor=executor, max_batch_size=4 if worker is workers.Slots else 1) as (
        client,
        server,
    ):
        posts = [
            client.post("/inference", json=1, headers={"x-request-id": name, "x-color": name * 2}) for name in "abcdef"
        ]
        for name, answer in zip("abcdef", await asyncio.gather(*posts), strict=True):
            assert answer.text == f"data: {name}\n\ndata: {name * 2}\n\n"
        assert [event async for event in server.stream(1, request_id="one")] == ["one", "none"]


@BOTH
async def test_an_example_has_an_empty_request(executor: str) -> None:
    async with client_of(workers.Warm, executor=executor) as (client, _):
        assert (await client.post("/inference", json=1, headers={"x-request-id": "one"})).json() == ["", "one"]


@BOTH
async def test_a_worker_that_does_not_say_so_is_told_nothing(executor: str) -> None:
    async with client_of(workers.TellsOfNothing, executor=executor) as (client, _):
        assert "needs `takes_request = True`" in (await client.post("/inference", json=1)).json()


def test_inline_workers_are_told_as_well() -> None:
    async def main() -> None:
        server = Server()
        server.append_worker(workers.Plain)
        server.append_worker(workers.TellsLast, max_batch_size=1)
        server.append_worker(workers.TellsAsync, max_batch_size=2, route="/async")
        async with testing.serving(server) as service:
            answer = await service.client.post("/inference?a=b", json=1, headers={"x-request-id": "one"})
            assert (answer.json()["id"], answer.json()["query"]) == ("one", {"a": "b"})
            answer = await service.client.post("/async", json=1, headers={"x-request-id": "two"})
            assert answer.json() == [1, "two"]
            assert (await service.infer(1, request_id="three"))["id"] == "three"

    testing.run(main())


async def test_a_dry_run_has_an_id_and_the_route() -> None:
    server = Server()
    server.append_worker(workers.Plain, executor="thread", route="/a")
    server.append_worker(workers.Warm, executor="thread", route="/b/{name}")
    async with server:
        assert server._running is not None
        size = await server._running.run_example(1, "dry-run")
        assert size == len(b'["","dry-run"]')


def test_only_stages_that_ask_have_the_column() -> None:
    server = Server()
    server.append_worker(workers.Plain)
    server.append_worker(workers.TellsLast)
    from mosec_asgi.config import resolve

    stages, _, _ = plan_service(server._defined.routes, resolve({}))
    assert [plan.takes_request for plan in stages] == [False, True]


async def test_a_route_without_parameters_goes_before_one_with_some() -> None:
    server = Server()
    server.append_worker(workers.TellsLast, executor="thread", route="/models/{name}")
    server.append_worker(workers.Plain, executor="thread", route="/models/echo")
    async with server, httpx.AsyncClient(transport=httpx.ASGITransport(server), base_url="http://test") as client:
        assert (await client.post("/models/echo", json=1)).json() == 1
        assert (await client.post("/models/bert", json=1)).json()["path"] == {"name": "bert"}


async def test_parameters_need_a_worker_that_reads_them() -> None:
    server = Server()
    server.append_worker(workers.Plain, route="/models/{name}")
    with pytest.raises(DefinitionError, match=r"has the parameter name, and no worker that reads it: set `takes_req"):
        await server.__aenter__()
    server.append_worker(workers.TellsLast, route="/models/{name}")
    server.openapi()
