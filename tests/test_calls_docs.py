"""docs/calls.md is true: its program runs as it stands there, and its tables name what there is."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

from harness import ROOT, environment_of_programs, running

from mosec_asgi import errors

PAGE = (ROOT / "docs" / "calls.md").read_text()
PROGRAMS = {name: text for text, name in re.findall(r"```python\n(# (\S+\.py)\n.*?)```", PAGE, re.DOTALL)}


def test_there_is_a_test_of_each_program() -> None:
    assert PAGE.count("```python") == len(PROGRAMS)
    assert set(PROGRAMS) == {"app.py", "script.py", "streaming.py"}


def test_the_app_answers_its_own_endpoint_and_the_mounted_route_to_whoever_has_the_key(
    tmp_path: Path, log: Path
) -> None:
    (tmp_path / "app.py").write_text(PROGRAMS["app.py"])
    with running([sys.executable, "-m", "uvicorn", "app:app", "--port", "{port}"], log, cwd=tmp_path) as program:
        program.wait_ready("/ml/readyz")
        for line in re.findall(r"^    (curl .*)$", PAGE, re.MULTILINE):
            command = shlex.split(line.replace("http://127.0.0.1:8000", program.url))
            answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
            assert answer == ("2" if "words" in line else "4")
        key = {"x-api-key": "sesame"}
        assert program.client.get("/words?text=a").status_code == 401
        assert program.client.post("/ml/inference", json="a").status_code == 401
        assert program.client.post("/ml/inference", json=5, headers=key).text.endswith("send a text")
        assert program.client.get("/ml/metrics").status_code == 200


def test_the_script_prints_what_the_model_says(tmp_path: Path) -> None:
    for name in ("app.py", "script.py"):
        (tmp_path / name).write_text(PROGRAMS[name])
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        env=environment_of_programs(),
    )
    assert (done.returncode, done.stdout) == (0, "[2, 2, 2]\n"), done.stderr


def test_the_streaming_endpoint_streams_and_refuses_with_a_status(tmp_path: Path, log: Path) -> None:
    (tmp_path / "streaming.py").write_text(PROGRAMS["streaming.py"])
    command = [sys.executable, "-m", "uvicorn", "streaming:app", "--port", "{port}"]
    with running(command, log, cwd=tmp_path) as program:
        program.wait_ready("/openapi.json")
        answer = program.client.get("/spell/hello")
        assert (answer.status_code, answer.text) == (200, "hello")
        refused = program.client.get("/spell/12")
        assert (refused.status_code, refused.json()) == (422, {"detail": "letters only"})


def test_the_table_of_errors_names_classes_that_there_are() -> None:
    table = PAGE.partition("## What goes wrong")[2].partition("\n## ")[0]
    named = set(re.findall(r"`(\w+Error)`", table))
    assert {"CallError", "ValidationError", "MosecError"} <= named
    assert all(issubclass(getattr(errors, name), errors.MosecError) for name in named)
