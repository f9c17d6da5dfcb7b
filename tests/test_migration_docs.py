"""docs/migration.md is true: each program under "after" answers as the page says."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest
from harness import ROOT, python, running, written

from mosec_asgi import testing

PAGE = (ROOT / "docs" / "migration.md").read_text()
PROGRAMS = {name: text for text, name in re.findall(r"```python\n(# (\S+\.py)\n.*?)```", PAGE, re.DOTALL)}
QUESTION, ANSWER = {"text": "to be or not to be"}, {"words": 6}
ROUTES = {
    "from_litserve": "/predict",
    "from_bentoml": "/count",
    "from_torchserve": "/predictions/counter",
}


def test_each_server_has_a_service_before_and_after() -> None:
    sections = PAGE.split("\n## ")[1:]
    assert len(sections) == 5
    for section in sections:
        before, _, after = section.partition("\nAfter")
        assert "\nBefore:\n\n```python\n" in before
        assert len(re.findall(r"```python\n# \S+\.py\n", after)) == after.count("```") / 2 == 1
    assert set(PROGRAMS) == {f"{name}.py" for name in (*ROUTES, "from_mosec", "from_triton")}


@pytest.mark.parametrize("name", ROUTES)
def test_the_service_after_answers(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    written(tmp_path, PROGRAMS[f"{name}.py"], f"{name}.py")

    async def check() -> None:
        async with testing.serving(importlib.import_module(name).server) as service:
            answer = await service.client.post(ROUTES[name], json=QUESTION)
            assert (answer.status_code, answer.json()) == (200, ANSWER)

    testing.run(check())


def test_tritons_request_is_answered_in_tritons_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    written(tmp_path, PROGRAMS["from_triton.py"], "from_triton.py")
    [command] = re.findall(r"^    (curl .*\\\n.*)$", PAGE, re.MULTILINE)
    _, url, _, body = shlex.split(command.replace("\\\n", " "))

    async def check() -> None:
        async with testing.serving(importlib.import_module("from_triton").server) as service:
            path = url.removeprefix("http://127.0.0.1:8000")
            answer = await service.client.post(path, content=body.encode())
            [words] = answer.json()["outputs"]
            assert (words["name"], words["shape"], words["data"]) == ("words", [1, 1], [6])

    testing.run(check())


def test_a_mosec_service_runs_with_another_import(tmp_path: Path, log: Path) -> None:
    before = re.findall(r"```python\n(from mosec import.*?)```", PAGE, re.DOTALL)[0]
    after = PROGRAMS["from_mosec.py"].partition("\n")[2]
    assert before.replace("from mosec import", "from mosec_asgi import") == after
    with running(python(written(tmp_path, after)), log, cwd=tmp_path) as program:
        program.wait_ready()
        assert program.client.post("/inference", json=QUESTION).json() == ANSWER
        assert program.client.post("/inference", json={}).status_code == 422
