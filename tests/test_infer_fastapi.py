"""A model inside of a FastAPI app, called by the app's own endpoints and over its own route, by many clients."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from harness import TESTS, Program, running

BATCH = 32
CLIENTS = 64
REQUESTS = 10


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


@pytest.mark.parametrize(
    ("path", "code", "text"),
    [
        ("/wrong/item", 500, "the item, a function, cannot be pickled for its worker"),
        ("/wrong/result", 500, "what Odd_3 returned cannot be pickled for `infer`"),
        ("/wrong/loop", 500, "the server runs on another event loop than the one that calls it"),
    ],
)
def test_a_call_that_cannot_be_is_a_clear_error_and_the_next_is_served(
    program: Program, path: str, code: int, text: str
) -> None:
    for _ in range(3):
        answer = program.client.get(path)
        assert (answer.status_code, text in answer.json()["detail"]) == (code, True), answer.text
        assert program.client.post("/books", json={"number": 7}).json() == {"number": 7, "words": 7}
    metrics = program.client.get("/ml/metrics").text
    restarts = re.findall(r"^mosec_service_worker_restarts_total\S* (\S+)$", metrics, re.MULTILINE)
    assert set(map(float, restarts)) == {0.0}


def test_batches_form_over_endpoints_and_the_plain_route_together(program: Program) -> None:
    def client(number: int) -> None:
        """Ask one time after the other, over a connection of its own, and with as little work as can be."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", program.port)) as connection:
            for _ in range(REQUESTS):
                words = number + 1
                path, body = ("/books", {"number": words}) if number % 2 else ("/ml/inference", "word " * words)
                connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
                answer = json.loads(connection.getresponse().read())
                assert answer == ({"number": words, "words": words} if number % 2 else {"words": words})

    before = program.batches("Read_1", "/ml/metrics")
    with ThreadPoolExecutor(CLIENTS) as threads:
        list(threads.map(client, range(CLIENTS)))
    items, count = (now - then for now, then in zip(program.batches("Read_1", "/ml/metrics"), before, strict=True))
    assert items == CLIENTS * REQUESTS
    assert items / count > BATCH / 2
