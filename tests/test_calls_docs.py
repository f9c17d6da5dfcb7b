"""docs/calls.md is true: its program runs as it stands there, and its tables name what there is."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from harness import ROOT, running

from mosec_asgi import errors

PAGE = (ROOT / "docs" / "calls.md").read_text()
PROGRAMS = {name: text for text, name in re.findall(r"```python\n(# (\S+\.py)\n.*?)```", PAGE, re.DOTALL)}


def test_the_streaming_endpoint_streams_and_refuses_with_a_status(tmp_path: Path, log: Path) -> None:
    assert PAGE.count("```python") == len(PROGRAMS) == 1
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
