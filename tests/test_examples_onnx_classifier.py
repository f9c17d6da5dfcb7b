"""The image classifier from end to end: its clients by HTTP and gRPC, curl, the plain route, what it refuses."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from documents import assert_keeps_to_its_document
from harness import ROOT, Program, environment_of_programs, free_port, running, skip_module_without

skip_module_without("onnx", "onnxruntime", "sklearn", "tritonclient")

EXAMPLE = ROOT / "examples" / "onnx_classifier"
DEADLINE = 120.0  # seconds; scikit-learn takes five to load on a machine with nothing else to do


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The service under `run()`, which trains its model first."""
    folder, port = tmp_path_factory.mktemp("service"), free_port()
    command = [sys.executable, str(EXAMPLE / "server.py"), "--port", "{port}", "--timeout", "60000"]
    settings = {"GRPC_PORT": str(port), "XDG_CACHE_HOME": str(folder), "OMP_NUM_THREADS": "1"}
    with running(command, folder / "server.log", environment=settings) as program:
        program.wait_ready(seconds=DEADLINE)
        assert (folder / "mosec_asgi" / "digits.onnx").exists()
        program.grpc = f"127.0.0.1:{port}"  # type: ignore[attr-defined]
        yield program


def client(*arguments: str) -> str:
    command = [sys.executable, str(EXAMPLE / "client.py"), *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment_of_programs(), timeout=DEADLINE)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_nearly_all_images_are_classified_right_in_few_batches(program: Any) -> None:
    [right] = re.findall(r"^(\d+) of 450 are right$", client("--count", "450", "--url", program.url), re.MULTILINE)
    assert int(right) > 420
    counted = program.client.get("/metrics").text
    sizes = re.findall(r'_batch_size_(sum|count)\{.*stage="Classify_1".*\} ([\d.]+)', counted)
    assert float(dict(sizes)["sum"]) > 4 * float(dict(sizes)["count"]), "rows share batches"


def test_few_images_are_drawn_and_may_be_sent_by_grpc(program: Any) -> None:
    told = client("--count", "2", "--grpc", program.grpc)
    assert len(re.findall(r"^\d \(\d+%\)$", told, re.MULTILINE)) == 2
    assert len(re.findall(r"^[ .:\-=+*#%@]{16}$", told, re.MULTILINE)) == 16


def test_the_readmes_curl_is_answered_as_it_says(program: Any) -> None:
    readme = (EXAMPLE / "README.md").read_text()
    found = re.search(r"^    (curl \S+/infer .*?\]\}\]\}')\n\n    (\{.*\})$", readme, re.MULTILINE | re.DOTALL)
    assert found is not None
    command, answer = found.groups()
    arguments = shlex.split(command.replace("localhost:8000", program.url))
    ran = subprocess.run([*arguments, "-sS"], capture_output=True, text=True, timeout=30)
    assert json.loads(ran.stdout) == json.loads(answer)


@pytest.mark.parametrize(
    ("image", "status", "told"),
    [
        ([[0.0] * 8] * 8, 200, '"digit"'),
        ([[0.0] * 8] * 7, 422, "8 rows of 8 pixels"),
        ([[17.0] * 8] * 8, 422, "from 0 to 16"),
        ("none", 422, "an item is such as"),
    ],
)
def test_the_plain_route_takes_one_image(program: Any, image: Any, status: int, told: str) -> None:
    answer = program.client.post("/classify", json={"image": image})
    assert (answer.status_code, told in answer.text) == (status, True)


def test_an_image_that_is_none_fails_its_request(program: Any) -> None:
    tensor = {"name": "image", "datatype": "FP32", "shape": [2, 8, 8], "data": [0] * 64 + [-1] * 64}
    answer = program.client.post("/v2/models/digits/infer", json={"inputs": [tensor]})
    assert (answer.status_code, answer.json()["error"].partition(":")[0]) == (400, "row 1")


def test_it_keeps_to_its_document(program: Program, tmp_path: Path) -> None:
    assert_keeps_to_its_document("onnx_classifier", program, tmp_path)
