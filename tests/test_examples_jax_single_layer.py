"""The jax example from end to end: what numpy computes, and nothing compiled while requests wait."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from harness import ROOT, Program, free_port, running

from examples.jax_single_layer.server import CLASSES, INPUTS, SIZES, parameters

EXAMPLE = ROOT / "examples" / "jax_single_layer"
COMPILED = [f"compiling for a batch of {size}" for size in SIZES]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """The service under uvicorn; as `python server.py` it runs in test_examples_openapi.py."""
    log = tmp_path_factory.mktemp("log") / "server.log"
    command = [sys.executable, "-m", "uvicorn", "server:server", "--port", "{port}"]
    settings = {"MOSEC_TIMEOUT": "60000", "MOSEC_WAIT": "50"}
    with running(command, log, cwd=EXAMPLE, environment=settings) as program:
        program.wait_ready(seconds=120)
        yield program


def compiled(program: Program) -> list[str]:
    return [message for message in program.messages() if message.startswith("compiling")]


def ask(program: Program, inputs: list[float]) -> Any:
    answer = program.client.post("/inference", json={"inputs": inputs})
    assert answer.status_code == 200, answer.text
    return answer.json()["likelihoods"]


def by_numpy(inputs: np.ndarray) -> np.ndarray:
    weights, biases = parameters()
    sums = inputs.astype(np.float64) @ weights + biases
    powers = np.exp(sums - sums.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)  # type: ignore[no-any-return]


def test_batches_of_all_sizes_are_what_numpy_computes_and_compile_nothing(program: Program) -> None:
    assert compiled(program) == COMPILED
    vectors = np.random.default_rng(1).normal(size=(SIZES[-1] + 11, INPUTS))
    for row in vectors[:3]:
        np.testing.assert_allclose(ask(program, row.tolist()), by_numpy(row), atol=1e-6)
    for count in (5, 17, len(vectors)):
        # Some computed together, or the paddings would not be seen.
        answers = program.ask_together("Layer_1", lambda row: ask(program, row.tolist()), vectors[:count])
        np.testing.assert_allclose(answers, by_numpy(vectors[:count]), atol=1e-6)
    assert compiled(program) == COMPILED


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        ("{}", 422, "Field required"),
        ('{"inputs": [1, 2]}', 422, f"at least {INPUTS} items"),
        (f'{{"inputs": {[0] * (INPUTS + 1)}}}', 422, f"at most {INPUTS} items"),
        (f'{{"inputs": {[0] * (INPUTS - 1) + [1e7]}}}', 422, f'"loc":["inputs",{INPUTS - 1}]'),
        ("[", 400, "not JSON"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(program: Program, body: str, status: int, told: str) -> None:
    answer = program.client.post("/inference", content=body)
    assert (answer.status_code, told in answer.text) == (status, True), answer.text


def run_client(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLE / "client.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_the_client_counts_the_classes(program: Program) -> None:
    done = run_client("--url", program.url, "--count", "50")
    counts = {line.split(": ")[0]: int(line.split(": ")[1]) for line in done.stdout.splitlines()}
    assert (done.returncode, sum(counts.values())) == (0, 50)
    assert counts.keys() <= {f"class {number}" for number in range(CLASSES)}


def test_without_a_server_the_client_says_so_in_one_line() -> None:
    done = run_client("--url", f"http://127.0.0.1:{free_port()}")
    assert (done.returncode, done.stderr.count("\n"), "jax_single_layer/server.py" in done.stderr) == (1, 1, True)
