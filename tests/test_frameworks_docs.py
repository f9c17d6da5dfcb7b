"""docs/frameworks.md is true: its programs run as they stand there, and what it says of other tools holds."""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path

import pytest
from harness import ROOT, running

from mosec_asgi import lifetime

PAGE = (ROOT / "docs" / "frameworks.md").read_text()
PROGRAMS = {name: text for text, name in re.findall(r"```python\n(# (\S+\.py)\n.*?)```", PAGE, re.DOTALL)}

SERVICE = """
    import os
    {top}
    from mosec_asgi import Server, Worker


    class Divide(Worker):
        def forward(self, data):
            return 1 / data


    server = Server()
    server.append_worker(Divide)
"""
# What Sentry does: it looks at each record on its way to the handlers.
LOOKS_AT_RECORDS = """
    import logging

    before = logging.Logger.callHandlers

    def look(self, record):
        if record.levelno >= logging.ERROR and record.exc_info:
            with open("told", "a") as file:
                print(os.getpid(), record.exc_info[0].__name__, file=file)
        before(self, record)

    logging.Logger.callHandlers = look
"""
SENTRY = """
    import sentry_sdk
    import sentry_sdk.transport

    class Told(sentry_sdk.transport.Transport):
        def capture_envelope(self, envelope):
            event = envelope.get_event()
            if event is not None and "exception" in event:
                with open("told", "a") as file:
                    print(os.getpid(), event["exception"]["values"][-1]["type"], file=file)

    sentry_sdk.init(dsn="http://key@127.0.0.1:9/1", transport=Told, auto_enabling_integrations=False)
"""


def write(folder: Path, top: str = "") -> None:
    service = textwrap.dedent(SERVICE).format(top=textwrap.dedent(top))
    (folder / "server.py").write_text(service)
    for name, text in PROGRAMS.items():
        (folder / name).write_text(text)


def uvicorn(app: str) -> list[str]:
    return [sys.executable, "-m", "uvicorn", app, "--port", "{port}"]


def test_every_python_snippet_is_a_named_program() -> None:
    assert PAGE.count("```python") == len(PROGRAMS)
    assert set(PROGRAMS) == {"litestar_app.py", "watched.py"}


def test_a_server_below_litestar_answers_and_its_document_names_the_address(tmp_path: Path) -> None:
    pytest.importorskip("litestar")
    write(tmp_path)
    with running(uvicorn("litestar_app:app"), tmp_path / "output.log", cwd=tmp_path) as program:
        program.wait_ready("/ml/readyz")
        assert program.client.post("/ml/inference", json=4).json() == 0.25
        document = program.client.get("/ml/openapi/metadata.json").json()
        assert document["servers"] == [{"url": "/ml"}]
        assert "starting the workers at the first request" not in program.output
        assert program.stop() in (0, -15)
        program.assert_nothing_left(5.0)


def test_the_middleware_of_other_tools_sees_the_requests_of_models(tmp_path: Path) -> None:
    pytest.importorskip("opentelemetry.instrumentation.asgi")
    pytest.importorskip("sentry_sdk")
    write(tmp_path)
    (tmp_path / "app.py").write_text(
        "from server import Divide\n"
        "from watched import OpenTelemetryMiddleware, server\n\n"
        "server.append_worker(Divide)\n"
        "inner = OpenTelemetryMiddleware.__call__\n\n"
        "async def told(self, scope, receive, send):\n"
        "    print('seen', scope['type'], scope.get('path'), flush=True)\n"
        "    await inner(self, scope, receive, send)\n\n"
        "OpenTelemetryMiddleware.__call__ = told\n"
    )
    with running(uvicorn("app:server"), tmp_path / "output.log", cwd=tmp_path) as program:
        program.wait_ready()
        assert program.client.post("/inference", json=4).json() == 0.25
        assert "seen http /inference" in program.output


@pytest.mark.parametrize("top", [LOOKS_AT_RECORDS, SENTRY], ids=["as Sentry looks", "Sentry"])
def test_a_tool_that_is_set_up_in_the_module_of_the_worker_is_told_of_its_exception_once(
    tmp_path: Path, top: str
) -> None:
    if top is SENTRY:
        pytest.importorskip("sentry_sdk")
    write(tmp_path, top)
    with running(uvicorn("server:server"), tmp_path / "output.log", cwd=tmp_path) as program:
        program.wait_ready()
        assert program.client.post("/inference", json=0).status_code == 500
        assert program.client.post("/inference", json=4).status_code == 200
        (told,) = (tmp_path / "told").read_text().splitlines()
        pid, kind = told.split()
        assert kind == "ZeroDivisionError"
        assert int(pid) != program.process.pid


def test_the_log_says_of_trio_what_the_page_says() -> None:
    source = Path(lifetime.__file__ or "").read_text()
    (command,) = set(re.findall(r"`(hypercorn -k asyncio)`", PAGE))
    assert f"`{command}`" in source
