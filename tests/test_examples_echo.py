"""The echo example from end to end: its three stages, its batches, and what it refuses."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from harness import ROOT, Program, running

EXAMPLE = ROOT / "examples" / "echo"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """The service under uvicorn; as `python server.py` it runs in test_examples_openapi.py."""
    log = tmp_path_factory.mktemp("log") / "server.log"
    command = [sys.executable, "-m", "uvicorn", "server:server", "--port", "{port}"]
    with running(command, log, cwd=EXAMPLE, environment={"MOSEC_TIMEOUT": "30000"}) as program:
        program.wait_ready()
        yield program


def test_the_answer_is_the_one_in_the_readme(program: Program) -> None:
    readme = (EXAMPLE / "README.md").read_text()
    asked, answered = re.search(r"/inference -d '(.*)'\n.*?```json\n(.*?)\n```", readme, re.DOTALL).groups()  # type: ignore[union-attr]
    answer = program.client.post("/inference", content=asked)
    assert (answer.status_code, answer.json()) == (200, json.loads(answered))


def test_the_client_shows_that_its_calls_have_shared_batches(program: Program) -> None:
    command = [sys.executable, str(EXAMPLE / "client.py"), "echo", "--count", "32", "--url", program.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    echo, *batches = done.stdout.splitlines()
    assert (done.returncode, echo, done.stderr) == (0, "echo ho", "")
    counts = [(int(count), int(size)) for count, size in re.findall(r"(\d+) answered in batches of (\d+)", done.stdout)]
    assert (len(counts), sum(count for count, _ in counts)) == (len(batches), 32)
    assert 1 < max(size for _, size in counts) <= 16


@pytest.mark.parametrize("data", [{}, {"text": 1}, {"text": None}, "hello", []])
def test_a_wrong_request_never_reaches_the_model(program: Program, data: object) -> None:
    # A right one first: a worker's numbers are not there before it has something to count.
    program.client.post("/inference", json={"text": "ho"}).raise_for_status()
    before = program.metric('process_duration_second_count{connection="1",stage="Infer_2"}')
    answer = program.client.post("/inference", json=data)
    assert (answer.status_code, answer.text) == (
        422,
        "request validation error: 'text' must be a string",
    )
    assert program.metric('process_duration_second_count{connection="1",stage="Infer_2"}') == before
