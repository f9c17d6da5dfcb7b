"""The example of custom metrics from end to end: what its README shows, over both of its workers."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from harness import ROOT, Program, running

EXAMPLE = ROOT / "examples" / "metrics"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """The service under uvicorn; as `python server.py` it runs in test_examples_openapi.py."""
    log = tmp_path_factory.mktemp("log") / "server.log"
    command = [sys.executable, "-m", "uvicorn", "server:server", "--port", "{port}"]
    with running(command, log, cwd=EXAMPLE, environment={"MOSEC_TIMEOUT": "30000"}) as program:
        program.wait_ready()
        yield program


def test_the_client_shows_what_the_readme_does(program: Program) -> None:
    readme = (EXAMPLE / "README.md").read_text()
    sentences = re.findall(r'"([^"]*)"', readme.partition("client.py ")[2].partition("\n")[0])
    command = [sys.executable, str(EXAMPLE / "client.py"), "--url", program.url, *sentences]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    shown = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[0] for line in shown[:3]] == ["question", "statement", "question"]
    [metrics] = re.findall(r"```\n(.*?)```", readme, re.DOTALL)
    assert set(metrics.splitlines()) <= set(shown)


def test_a_wrong_request_is_answered_and_not_counted(program: Program) -> None:
    before = program.client.get("/metrics").text
    answer = program.client.post("/inference", json=1)
    assert (answer.status_code, "a sentence" in answer.text) == (422, True)
    after = program.client.get("/metrics").text
    assert [line for line in after.splitlines() if line.startswith("texts_")] == [
        line for line in before.splitlines() if line.startswith("texts_")
    ]
