"""The example of a FastAPI app with a model inside: its own routes, the model's, and the two together."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from harness import ROOT, Program, running

EXAMPLE = ROOT / "examples" / "fastapi_app"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """The service under uvicorn; as `python server.py` it runs in test_examples_openapi.py."""
    log = tmp_path_factory.mktemp("log") / "server.log"
    command = [sys.executable, "-m", "uvicorn", "server:app", "--port", "{port}"]
    with running(command, log, cwd=EXAMPLE, environment={"MOSEC_TIMEOUT": "30000"}) as program:
        program.wait_ready("/ml/readyz")
        yield program


def test_a_route_of_the_app_asks_the_model_as_the_readme_shows(program: Program) -> None:
    [shown] = re.findall(r"```json\n(.*?)\n```", (EXAMPLE / "README.md").read_text(), re.DOTALL)
    assert program.client.get("/books/hamlet").json() == json.loads(shown)
    missing = program.client.get("/books/lear")
    assert (missing.status_code, "hamlet" in missing.text) == (404, True)


def test_a_route_of_the_app_checks_what_it_is_sent_before_it_asks(program: Program) -> None:
    answer = program.client.post("/drafts", json={"text": "one two three four"})
    assert answer.json() == {"text": "one two three four", "seconds": 1.0}
    for wrong in ({"text": ""}, {"text": 4}, {"text": "x" * 10_001}, {}):
        assert program.client.post("/drafts", json=wrong).status_code == 422


def test_the_model_is_reached_below_its_mount_and_its_errors_are_its_own(program: Program) -> None:
    assert program.client.post("/ml/inference", json="one two three four").json() == {"seconds": 1.0}
    refused = program.client.post("/ml/inference", json=4)
    assert (refused.status_code, refused.text) == (422, "request validation error: send a text as a JSON string")
    assert program.client.post("/inference", json="a").status_code == 404
    servers = program.client.get("/ml/openapi/metadata.json").json()["servers"]
    assert servers == [{"url": "/ml"}]


def test_both_have_their_documents(program: Program) -> None:
    assert "/books/{name}" in program.client.get("/openapi.json").json()["paths"]
    assert "/inference" in program.client.get("/ml/openapi/metadata.json").json()["paths"]


def test_the_apps_own_calls_and_the_clients_go_to_the_same_workers(program: Program) -> None:
    def answered() -> int:
        [line] = [
            one
            for one in program.client.get("/ml/metrics").text.splitlines()
            if 'endpoint="/inference"' in one and 'code="200"' in one
        ]
        return int(float(line.rpartition(" ")[2]))

    program.client.post("/ml/inference", json="a")
    before = answered()
    with ThreadPoolExecutor(8) as threads:
        inside = [threads.submit(program.client.get, "/books/macbeth") for _ in range(8)]
        outside = [threads.submit(program.client.post, "/ml/inference", json="a") for _ in range(8)]
        assert {one.result().status_code for one in inside + outside} == {200}
    assert answered() == before + 16


def test_the_client_asks_both(program: Program) -> None:
    command = [sys.executable, str(EXAMPLE / "client.py"), "one two three four", "--url", program.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["1.0", "s", "one", "two", "three", "four"],
        ["2.5", "s", "hamlet"],
        ["1.25", "s", "macbeth"],
    ]
