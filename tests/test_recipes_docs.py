"""docs/recipes.md is true: its programs run as they stand there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from browser import chromium, complaints
from harness import ROOT, Program, environment_of_programs, free_port, python, running, serving, wait_until
from proxies import needs_nginx, nginx

PAGE = (ROOT / "docs" / "recipes.md").read_text()
PROGRAMS = {name: text for text, name in re.findall(r"```python\n(# (\S+\.py)\n.*?)```", PAGE, re.DOTALL)}
[HTML] = re.findall(r"```html\n(.*?)```", PAGE, re.DOTALL)
[LOCATION] = re.findall(r"```nginx\n(.*?)```", PAGE, re.DOTALL)


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_text(PROGRAMS[name])


def test_every_snippet_is_named_here() -> None:
    assert PAGE.count("```") == 2 * (len(PROGRAMS) + 2)
    assert set(PROGRAMS) == {"client.py", "page.py", "arguments.py", "gpu.py"}


# -- the client --------------------------------------------------------------------------------------------------------


class Answers:
    """Answers with one response after the other; the last one again and again."""

    def __init__(self, *responses: tuple[int, dict[str, str], Any]) -> None:
        self._responses = list(responses)
        self.asked: list[dict[str, str]] = []

    def __call__(self, request: Any) -> Any:
        import httpx

        self.asked.append(dict(request.headers))
        status, headers, body = self._responses.pop(0) if len(self._responses) > 1 else self._responses[0]
        return httpx.Response(status, headers=headers, json=body)


def asked(answers: Answers, seconds: float = 10.0) -> Any:
    import httpx

    space: dict[str, Any] = {"__name__": "client"}
    exec(PROGRAMS["client.py"], space)
    with httpx.Client(base_url="http://service", transport=httpx.MockTransport(answers)) as client:
        return space["ask"](client, 1, seconds=seconds)


def test_the_client_comes_again_after_the_time_that_it_is_told() -> None:
    answers = Answers((429, {"retry-after": "0"}, "later"), (503, {"retry-after": "0"}, "later"), (200, {}, 2))
    assert asked(answers) == 2
    assert len(answers.asked) == 3
    assert 0 < int(answers.asked[-1]["x-request-timeout"]) <= 10_000


@pytest.mark.parametrize("answer", [(408, {}, "late"), (429, {"retry-after": "60"}, "later")], ids=["408", "429"])
def test_the_client_gives_up_where_nothing_else_makes_sense(answer: tuple[int, dict[str, str], Any]) -> None:
    with pytest.raises(Exception, match=r"late|no answer in time"):
        asked(Answers(answer), seconds=0.05)


def test_the_client_does_not_repeat_what_is_wrong() -> None:
    answers = Answers((422, {}, "send something else"))
    with pytest.raises(Exception, match="422"):
        asked(answers)
    assert len(answers.asked) == 1


def test_the_clients_program_asks_the_service_of_the_readme(tmp_path: Path) -> None:
    write(tmp_path, "client.py")
    program = tmp_path / "client.py"
    with serving(tmp_path, "server.append_worker(Echo)") as service:
        program.write_text(program.read_text().replace("127.0.0.1:8000", f"127.0.0.1:{service.port}"))
        command = [sys.executable, str(program)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment_of_programs())
        assert "to be or not to be" in done.stdout, done.stderr


# -- the browser -------------------------------------------------------------------------------------------------------


@pytest.fixture
def page(tmp_path: Path) -> Any:
    write(tmp_path, "page.py")
    (tmp_path / "page.html").write_text(HTML)
    [streams] = re.findall(r"```python\n(# streams\.py\n.*?)```", (ROOT / "docs/streams.md").read_text(), re.DOTALL)
    (tmp_path / "streams.py").write_text(streams)
    command = [sys.executable, "-m", "uvicorn", "page:app", "--port", "{port}"]
    with running(command, tmp_path / "log", cwd=tmp_path) as program:
        program.wait_ready()
        yield program


def test_a_browser_reads_the_stream(page: Program, tmp_path: Path) -> None:
    with chromium(tmp_path / "profile") as driver:
        driver.get(f"{page.url}/page")
        driver.find_element("css selector", "button").click()
        output = driver.find_element("css selector", "pre")
        wait_until(lambda: output.text == "hey.", "the stream is not shown")
        assert [line for line in complaints(driver) if "favicon" not in line] == []


# -- the others --------------------------------------------------------------------------------------------------------


@needs_nginx
def test_behind_a_prefix_the_document_names_the_right_address(tmp_path: Path) -> None:
    port = free_port()
    with serving(tmp_path, "server.append_worker(Echo)") as service:
        block = f"server {{ listen 127.0.0.1:{port}; {LOCATION} location /livez {{ proxy_pass http://mosec_asgi; }} }}"
        inside = f"upstream mosec_asgi {{ server 127.0.0.1:{service.port}; keepalive 4; }} {block}"
        with nginx(tmp_path, port, inside) as client:
            assert client.post("/ml/inference", json=1).json()["echo"] == 1
            assert client.get("/ml/openapi/metadata.json").json()["servers"] == [{"url": "/ml"}]


def test_workers_get_the_arguments_of_their_constructors(tmp_path: Path) -> None:
    write(tmp_path, "arguments.py")
    with running(python(tmp_path / "arguments.py"), tmp_path / "log", cwd=tmp_path) as program:
        program.wait_ready()
        assert program.client.post("/plain", json=1.234).json() == {"plain": 3.08}
        assert program.client.post("/large", json=1.26).json() == {"large": 13.0}


def test_the_model_for_a_gpu_runs_without_one(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the recipe is for a GPU, by torch")
    write(tmp_path, "gpu.py")
    with running(python(tmp_path / "gpu.py"), tmp_path / "log", cwd=tmp_path) as program:
        program.wait_ready(seconds=120)
        vector = [0.5] * 256
        best = program.client.post("/inference", json=vector).json()
        assert 0 <= best["place"] < 10_000
        assert best["score"] > 0
        for wrong in ([1.0], [0.5] * 255 + ["x"], {}):
            assert program.client.post("/inference", json=wrong).status_code == 422
