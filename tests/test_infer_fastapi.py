"""A model inside of a FastAPI app, called by the app's own endpoints and over its own route, by many clients."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator

import httpx
import pytest
from harness import TESTS, Program, running

BATCH = 32
CLIENTS = 64
REQUESTS = 20


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    log = tmp_path_factory.mktemp("log") / "server.log"
    command = [sys.executable, "-m", "uvicorn", "fastapi_books:app", "--port", "{port}"]
    with running(command, log, cwd=TESTS) as program:
        program.wait_ready("/ml/readyz")
        yield program


def test_an_endpoint_checks_looks_up_and_asks_the_model(program: Program) -> None:
    assert program.client.post("/books", json={"number": 7}).json() == {"number": 7, "words": 7}
    assert program.client.post("/books", json={"number": 0}).status_code == 422
    assert program.client.post("/books", json={"number": 101}).status_code == 404
    refused = program.client.get("/wrong")
    assert (refused.status_code, refused.json()) == (422, {"detail": "that is no text"})
    assert program.client.get("/spell/hello").text == "hello"


def test_an_endpoint_that_blocks_asks_the_same_workers(program: Program) -> None:
    assert program.client.get("/blocking").json() == {"results": [{"words": 2}, {"words": 1}]}


def test_batches_form_over_endpoints_and_the_plain_route_together(program: Program) -> None:
    async def client(number: int, http: httpx.AsyncClient) -> None:
        for _ in range(REQUESTS):
            if number % 2:
                answer = await http.post("/books", json={"number": number})
                assert answer.json() == {"number": number, "words": number}
            else:
                answer = await http.post("/ml/inference", json="word " * number)
                assert answer.json() == {"words": number}

    async def all_of_them() -> None:
        limits = httpx.Limits(max_connections=CLIENTS)
        async with httpx.AsyncClient(base_url=program.url, timeout=60, limits=limits) as http:
            await asyncio.gather(*[client(number, http) for number in range(CLIENTS)])

    before = program.batches("Read_1", "/ml/metrics")
    asyncio.run(all_of_them())
    items, count = (now - then for now, then in zip(program.batches("Read_1", "/ml/metrics"), before, strict=True))
    assert items == CLIENTS * REQUESTS
    assert items / count > BATCH / 2
