"""Whose turn it is, as the server's own function says: over HTTP, by OpenAI's API, and beside `infer`."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

import httpx
import pytest
from fakes import PATIENCE, told, until

from mosec_asgi import ClientError, Request, Server, Worker
from mosec_asgi.config import resolve
from mosec_asgi.errors import DefinitionError
from mosec_asgi.labels import MOST_KEY
from mosec_asgi.protocols import OpenAI
from mosec_asgi.web.protocols.ordering import ordering_of

GATE = threading.Event()


@pytest.fixture(autouse=True)
def closed_gate() -> Any:
    GATE.clear()
    yield
    GATE.set()


class Places(Worker):
    """Answers, once the gate is open, how many it has answered before."""

    def __init__(self) -> None:
        self.answered = -1

    def forward(self, data: Any) -> list[int]:
        assert GATE.wait(PATIENCE)
        self.answered += 1
        return [self.answered]


class Told(Worker):
    """Takes the request as well."""

    takes_request = True

    def forward(self, data: Any) -> str:
        return self.request().query["user"]


def client_of(server: Server) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(server), base_url="http://test", timeout=PATIENCE)


async def in_line(server: Server, *calls: Any) -> list[Any]:
    """Have calls come in order, each once the one before waits; let them run, and return their answers."""
    running = []
    for place, call in enumerate(calls, 1):
        running.append(asyncio.ensure_future(call))
        await until(lambda place=place: server.statistics().admitted == place)  # type: ignore[misc]
    GATE.set()
    return await asyncio.gather(*running)


def user(request: Request) -> str:
    return str(request.query.get("user", request.headers.get("x-user", "")))


async def test_a_function_of_the_request_says_whose_turn_it_is() -> None:
    server = Server(timeout=20_000, tenant=user)
    server.append_worker(Places, executor="thread")
    async with server, client_of(server) as client:

        def ask(name: str) -> Any:
            return client.post(f"/inference?user={name}", content=b"0")

        answers = await in_line(server, *map(ask, ["a", "a", "a", "a", "b"]))
        assert [answer.json()[0] for answer in answers] == [0, 2, 3, 4, 1]


async def test_it_holds_for_openais_api_and_a_call_from_the_program_names_its_tenant_itself() -> None:
    asked: list[str] = []

    def tenant(request: Request) -> str:
        asked.append(request.route)
        return request.headers.get("authorization", "").removeprefix("Bearer ")

    server = Server(timeout=20_000, tenant=tenant)
    server.append_worker(Places, executor="thread")
    server.add_protocol(OpenAI(embeddings={"places": "/inference"}))
    async with server, client_of(server) as client:

        def ask(name: str) -> Any:
            body = {"model": "places", "input": ["x"] if name != "b" else "x"}
            return client.post("/v1/embeddings", json=body, headers={"authorization": f"Bearer {name}"})

        calls = [*map(ask, ["a", "a", "a", "b"]), server.infer(0, tenant="c"), server.infer(0)]
        *answers, by_c, by_nobody = await in_line(server, *calls)
        places = [answer.json()["data"][0]["embedding"][0] for answer in answers]
        assert (places, by_c, by_nobody) == ([0, 4, 5, 1], [2], [3])
        assert asked == ["/v1/embeddings"] * 4, "once for each request, and not for a call from the program"


async def test_a_request_of_several_items_is_asked_about_once() -> None:
    asked: list[str] = []
    server = Server(timeout=20_000, tenant=lambda request: asked.append(request.id) or "a")
    server.append_worker(Places, executor="thread")
    server.add_protocol(OpenAI(embeddings={"places": "/inference"}))
    GATE.set()
    async with server, client_of(server) as client:
        answer = await client.post("/v1/embeddings", json={"model": "places", "input": ["x", "y", "z"]})
        assert [each["embedding"] for each in answer.json()["data"]] == [[0], [1], [2]]
        assert asked == [answer.headers["x-request-id"]]


async def test_workers_that_take_the_request_are_told_of_it_as_well() -> None:
    asked: list[str] = []
    server = Server(timeout=20_000, tenant=lambda request: asked.append(user(request)) or "a")
    server.append_worker(Told, executor="thread")
    async with server, client_of(server) as client:
        assert (await client.post("/inference?user=ada", content=b"0")).json() == "ada"
        assert asked == ["ada"]


@pytest.mark.parametrize("path", ["/inference", "/v1/embeddings"])
async def test_what_goes_wrong_in_it_is_the_answer_to_that_request_alone(
    path: str, logged: pytest.LogCaptureFixture
) -> None:
    def tenant(request: Request) -> Any:
        name = request.headers["x-user"]
        if name == "raises":
            raise KeyError("secret")
        if name == "exits":
            raise SystemExit("secret")
        if name == "refuses":
            raise ClientError("no such user")
        return {"number": 5, "long": "x" * (MOST_KEY + 1)}.get(name, name)

    server = Server(timeout=20_000, tenant=tenant)
    server.append_worker(Places, executor="thread")
    server.add_protocol(OpenAI(embeddings={"places": "/inference"}))
    GATE.set()
    async with server, client_of(server) as client:

        async def ask(name: str) -> httpx.Response:
            headers = {"x-user": name, "x-request-id": f"of-{name}"}
            return await client.post(path, json={"model": "places", "input": "x"}, headers=headers)

        names = ("raises", "refuses", "number", "long", "ada", "exits")
        answers = dict(zip(names, await asyncio.gather(*map(ask, names)), strict=True))
        assert [answers[name].status_code for name in names] == [500, 400, 500, 400, 200, 500]
        assert "the function `tenant` of the server raised KeyError" in answers["raises"].text
        assert "secret" not in answers["raises"].text
        assert "the function `tenant` of the server raised SystemExit" in answers["exits"].text
        assert "no such user" in answers["refuses"].text
        assert "returned a int; return a text" in answers["number"].text
        assert f"has at most {MOST_KEY}" in answers["long"].text
        errors = [record for record in logged.records if record.levelno >= logging.ERROR]
        assert sorted(told(record, "request_id") for record in errors) == [
            ("of-exits",),
            ("of-number",),
            ("of-raises",),
        ]


@pytest.mark.parametrize(
    ("tenant", "why"),
    [
        ("x-user", "tenant must be a plain function that returns a text, not 'x-user'"),
        (lambda: "", "tenant is called with a request, and takes ()"),
        (in_line, "tenant must be a plain function"),
    ],
)
def test_what_is_no_such_function_is_refused_with_what_to_write(tenant: Any, why: str) -> None:
    with pytest.raises(DefinitionError) as refused:
        Server(tenant=tenant)
    assert why in str(refused.value)
    assert "def tenant(request)" in str(refused.value)


def test_a_header_beside_it_is_refused() -> None:
    with pytest.raises(DefinitionError, match="leave out one of them"):
        ordering_of(resolve({"tenant_header": "x-user"}, {}), user)


def test_without_it_a_route_reads_no_more_than_before() -> None:
    assert not ordering_of(resolve({}, {})).reads
    assert ordering_of(resolve({}, {}), user).reads
