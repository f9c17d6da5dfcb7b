"""Does an example that runs keep to its OpenAPI document, whatever schemathesis makes up to send?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from harness import ROOT, TESTS, Program, written

# A client that waits for one millisecond is rightly answered 408, whatever it sends, and one that sends a header of its
# own 200.
SCHEMATHESIS = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "408"]

[checks.negative_data_rejection]
expected-statuses = ["4xx"]

[generation]
allow-extra-parameters = false
"""
# What is wrong with a request for a stream of events is told by an event.
STREAMS = SCHEMATHESIS.replace('["4xx"]', '["200", "4xx"]')
# No schema says which bytes are an image, nor how many tokens a text has: much that is made up is rightly refused, and
# schemathesis must not wonder. Nor does one say that a body of which nothing is known must be there.
UNDESCRIBED = ('["2xx", "408"]', '["2xx", "400", "408", "422"]')
NEEDS_MORE_THAN_A_SCHEMA = {
    "embedding",
    "environment",
    "fastapi_app",
    "generate",
    "lora",
    "ocr",
    "onnx_classifier",
    "rerank",
    "segment_anything",
    "sentiment",
    "stable_diffusion",
    "transcribe",
}
LARGE_MODELS = NEEDS_MORE_THAN_A_SCHEMA - {"environment", "fastapi_app"}
# To make up requests by chance for their schemas takes most of a processor for a quarter of a minute each.
THOROUGH = "THOROUGH" in os.environ


def assert_keeps_to_its_document(example: str, program: Program, folder: Path, prefix: str = "") -> None:
    """Send a running example what schemathesis makes up, valid and not: no 5xx, and nothing outside the contract.

    Args:
        example: its name.
        program: the service, which is ready.
        folder: for the settings of schemathesis.
        prefix: of the paths, where an app of its own has the service.
    """
    document = ROOT / "openapi" / f"{example}.json"
    settings = STREAMS if "text/event-stream" in document.read_text() else SCHEMATHESIS
    if example in NEEDS_MORE_THAN_A_SCHEMA:
        settings = "warnings = false\n" + settings.replace(*UNDESCRIBED)
    written(folder, settings, "schemathesis.toml")
    shown = program.client.get(f"{prefix}/openapi/metadata.json").json()
    assert shown == json.loads(document.read_text()) | {"servers": [{"url": prefix or ".."}]}
    command = [sys.executable, "-m", "schemathesis.cli", "--no-color", "run", str(document)]
    phases = "examples,coverage,fuzzing"
    if not THOROUGH and example in LARGE_MODELS:
        # A language model writes for seconds whatever it is asked.
        phases = "examples" if example == "generate" else "examples,coverage"
    command += ["--url", f"http://127.0.0.1:{program.port}{prefix}", "--phases", phases]
    count = "50" if THOROUGH else "10"
    command += ["--checks", "all", "--max-examples", count, "--seed", "3", "--suppress-health-check", "all"]
    # A language model writes for longer than ten seconds on a machine that has other tests to run.
    command += ["--request-timeout", "60"]
    hooks = {"SCHEMATHESIS_HOOKS": str(TESTS / "schemathesis_msgpack.py")}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=480, env={**os.environ, **hooks})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No issues found" in done.stdout
    assert program.client.get(f"{prefix}/readyz").status_code == 200
