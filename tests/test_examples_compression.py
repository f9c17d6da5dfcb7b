"""The example of compression from end to end: both ways, and what it refuses."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from harness import ROOT, Program, running

EXAMPLE = ROOT / "examples" / "compression"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """The service under uvicorn; as `python server.py` it runs in test_examples_openapi.py."""
    log = tmp_path_factory.mktemp("log") / "server.log"
    command = [sys.executable, "-m", "uvicorn", "server:server", "--port", "{port}"]
    with running(command, log, cwd=EXAMPLE, environment={"MOSEC_TIMEOUT": "30000"}) as program:
        program.wait_ready()
        yield program


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_the_client_sends_and_receives_less(program: Program, encoding: str) -> None:
    if encoding == "zstd":
        pytest.importorskip("zstandard")
    file = str(ROOT / "README.md")
    command = [sys.executable, str(EXAMPLE / "client.py"), file, "--encoding", encoding, "--url", program.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    sent, whole, received = (
        int(number.replace(",", "")) for number in re.findall(r"([\d,]+)(?= bytes|\n)", done.stdout)
    )
    assert f"bytes, {encoding}" in done.stdout
    answer = program.client.post("/inference", content=json.dumps((ROOT / "README.md").read_text()))
    assert (sent < whole / 2, received < len(answer.content) / 2) == (True, True)


def test_packed_or_not_the_answer_is_the_same(program: Program) -> None:
    body = json.dumps("to be\nor not to be").encode()
    packed = program.client.post("/inference", content=gzip.compress(body), headers={"content-encoding": "gzip"})
    plain = program.client.post("/inference", content=body)
    assert packed.json() == plain.json() == {"to": [1, 2], "be": [1, 2], "or": [2], "not": [2]}


def test_a_small_request_cannot_become_a_large_one(program: Program) -> None:
    body = gzip.compress(json.dumps("a" * 5_000_000).encode())
    answer = program.client.post("/inference", content=body, headers={"content-encoding": "gzip"})
    assert (len(body) < 100_000, answer.status_code) == (True, 413)


def test_an_unknown_encoding_is_refused(program: Program) -> None:
    answer = program.client.post("/inference", content=b"x", headers={"content-encoding": "br"})
    assert answer.status_code == 415
