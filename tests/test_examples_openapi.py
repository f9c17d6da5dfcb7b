"""Each example, run as `python server.py`, keeps to its OpenAPI document."""

from __future__ import annotations

from pathlib import Path

import pytest
from documents import assert_keeps_to_its_document
from harness import ROOT, TESTS, python, running

# Where an app of its own has the service, and the command line.
MOUNTED = {"fastapi_app": "/ml"}
# Their models take long to load: they are asked where all else of them is tested, by the service that runs there.
ELSEWHERE = [
    "embedding",
    "lora",
    "onnx_classifier",
    "rerank",
    "segment_anything",
    "sentiment",
    "stable_diffusion",
    "transcribe",
]
EXAMPLES = sorted({path.stem for path in (ROOT / "openapi").glob("*.json")} - set(ELSEWHERE))


@pytest.mark.parametrize("example", EXAMPLES)
def test_a_running_example_keeps_to_its_document(example: str, tmp_path: Path, log: Path) -> None:
    prefix = MOUNTED.get(example, "")
    arguments = [] if prefix else ["--timeout", "30000"]
    # Each of a model's threads would wait for the slowest, on a machine that has other tests to run.
    variables = {"OMP_NUM_THREADS": "1"}
    with running(python(ROOT / "examples" / example / "server.py", *arguments), log, environment=variables) as program:
        # The language model takes ten seconds to load on a machine that does nothing else.
        program.wait_ready(f"{prefix}/readyz", seconds=240)
        assert_keeps_to_its_document(example, program, tmp_path, prefix)


@pytest.mark.parametrize("example", ELSEWHERE)
def test_what_is_not_asked_here_is_asked_elsewhere(example: str) -> None:
    call = f'assert_keeps_to_its_document("{example}", program, tmp_path)'
    assert call in (TESTS / f"test_examples_{example}.py").read_text()
