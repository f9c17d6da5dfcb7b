"""docs/tracing.md is true: its programs run as they stand there, and it names what there is."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from harness import ROOT, python, running, skip_module_without

skip_module_without("opentelemetry.sdk")

PAGE = (ROOT / "docs" / "tracing.md").read_text()
PROGRAMS = {
    name: text for text, name in ((m[0], m[1]) for m in re.findall(r"```python\n(# (\S+\.py)\n.*?)```", PAGE, re.S))
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in PROGRAMS.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_every_python_snippet_is_a_named_program() -> None:
    assert PAGE.count("```python") == len(PROGRAMS)
    assert set(PROGRAMS) == {"server.py", "spans.py"}


def test_the_service_is_traced_and_says_its_times(folder: Path, log: Path) -> None:
    (body,) = re.findall(r"inference -d '(.*)'", PAGE)
    environment = {"OTEL_TRACES_EXPORTER": "console", "MOSEC_SERVER_TIMING": "1"}
    with running(python(folder / "server.py"), log, environment=environment, cwd=folder) as program:
        program.wait_ready()
        answer = program.client.post("/inference", content=body)
        assert answer.json() == {"letters": 5}
        assert program.stop() == 0
        output = program.output
    (shown,) = re.findall(r"    Server-Timing: (.*)", PAGE)
    names = re.findall(r"([\w.]+);dur", shown)
    assert re.findall(r"([\w.]+);dur", answer.headers["server-timing"]) == names
    assert 'traceparent;desc="00-' in answer.headers["server-timing"]
    for name in ("POST /inference", "Preprocess_1", "Inference_2", "forward"):
        assert f'"name": "{name}"' in output
    for attribute in set(re.findall(r'"(mosec\.[\w.]+)"', output)):
        assert f"`{attribute}`" in PAGE


def test_a_worker_makes_spans_of_its_own_below_that_of_its_stage(folder: Path, log: Path) -> None:
    (folder / "own.py").write_text(
        "from opentelemetry import trace\n"
        "from opentelemetry.sdk.trace import TracerProvider\n"
        "from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor\n\n"
        "from mosec_asgi import Server\n"
        "from spans import Traced\n\n\n"
        "class Own(Traced):\n"
        "    def __init__(self):\n"
        "        provider = TracerProvider()\n"
        "        say = lambda span: f'own {span.name} {span.parent.span_id:016x}\\n'\n"
        "        provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(formatter=say)))\n"
        "        trace.set_tracer_provider(provider)\n\n\n"
        "if __name__ == '__main__':\n"
        "    server = Server(tracing=True)\n"
        "    server.append_worker(Own)\n"
        "    server.run()\n"
    )
    command = [sys.executable, "own.py", "--port", "{port}"]
    with running(command, log, environment={"OTEL_TRACES_EXPORTER": "console"}, cwd=folder) as program:
        program.wait_ready()
        assert program.client.post("/inference", json={"text": "to be"}).json() == {"tokens": ["to", "be"]}
        assert program.stop() == 0
        (parent,) = re.findall(r"own tokenize ([0-9a-f]{16})", program.output)
        stage = re.search(r'"name": "Own_1",\s+"context": \{[^}]*"span_id": "0x([0-9a-f]{16})"', program.output)
        assert stage is not None
        assert parent == stage[1]
