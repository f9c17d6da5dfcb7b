"""docs/protocols.md is true: its programs run as they stand there, and answer as shown."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import openai
import pytest
from harness import ROOT, environment_of_programs, free_port, running

PAGE = (ROOT / "docs" / "protocols.md").read_text()
PROGRAMS = {name: text for text, name in re.findall(r"```python\n(# (\S+\.py)\n.*?)```", PAGE, re.DOTALL)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    assert PAGE.count("```python") == len(PROGRAMS) == 4
    for name, text in PROGRAMS.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_the_models_answer_by_their_plain_routes_and_by_openais_client(folder: Path, log: Path) -> None:
    command = [sys.executable, "models.py", "--port", "{port}"]
    with running(command, log, cwd=folder) as program:
        program.wait_ready()
        assert program.client.post("/embed", json="four").json() == [4.0, 1.0]
        with openai.OpenAI(base_url=f"{program.url}/v1", api_key="none", max_retries=0) as client:
            answer = client.embeddings.create(model="lengths", input=["one", "three"])
            assert [row.embedding for row in answer.data] == [[3.0, 1.0], [5.0, 1.0]]
            chat = client.chat.completions.create(
                model="parrot", messages=[{"role": "user", "content": "say it"}], max_tokens=1
            )
            assert chat.choices[0].message.content == "say "


def test_the_protocol_of_ones_own_has_40_lines_and_answers_as_shown(folder: Path, log: Path) -> None:
    lines = [line for line in PROGRAMS["lines.py"].splitlines() if line.strip()]
    assert len(lines) <= 40
    shown = re.search(r"printf '(.*)' \| curl .*/lines/letters\n((?:    .*\n)+)", PAGE)
    assert shown is not None
    command = [sys.executable, "-m", "uvicorn", "lines:server", "--port", "{port}"]
    with running(command, log, cwd=folder) as program:
        program.wait_ready()
        done = subprocess.run(
            ["curl", "-s", "--data-binary", "@-", f"{program.url}/lines/letters"],
            input=shown[1].replace("\\n", "\n"),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.stdout.splitlines() == [line.strip() for line in shown[2].splitlines()]
        refused = program.client.post("/lines/letters", content="one\n\ntwo")
        assert (refused.status_code, refused.text) == (400, "error: bad request: an empty line\n")


def test_the_worker_of_tensors_answers_the_commands_as_they_are_shown(folder: Path, log: Path) -> None:
    commands = re.findall(r"^    (curl localhost:8000/(?:v2|distance).*(?:\n {8}.*)*)", PAGE, re.MULTILINE)
    assert len(commands) == 2
    command = [sys.executable, "points.py", "--port", "{port}"]
    with running(command, log, cwd=folder) as program:
        program.wait_ready()
        answers = [
            json.loads(
                subprocess.run(
                    ["sh", "-c", each.replace("curl localhost:8000", f"curl -s localhost:{program.port}")],
                    capture_output=True,
                    timeout=60,
                ).stdout
            )
            for each in commands
        ]
    assert [(each["name"], each["data"]) for each in answers[0]["outputs"]] == [
        ("distance", [5.0, 2.0]),
        ("unit", ["m", "ft"]),
    ]
    assert answers[1] == {"distance": 5.0, "unit": "m"}


def test_the_models_of_tensors_are_served_by_grpc_as_well(folder: Path, log: Path) -> None:
    shown = re.search(r"`(OpenInference\(.*, grpc_port=8001\))`", PAGE)
    assert shown is not None
    port = str(free_port())
    server = PROGRAMS["points.py"].replace('OpenInference({"points": "/distance"})', shown[1].replace("8001", port))
    (folder / "points.py").write_text(server)
    (folder / "ask.py").write_text(PROGRAMS["ask.py"].replace("8001", port))
    with running([sys.executable, "points.py", "--port", "{port}"], log, cwd=folder) as program:
        program.wait_ready()
        done = subprocess.run(
            [sys.executable, folder / "ask.py"],
            capture_output=True,
            text=True,
            timeout=60,
            env=environment_of_programs(),
        )
    assert (done.stdout, done.stderr) == ("[5.]\n", "")
