"""The look at what uvicorn and its parsers are, and the service where they are not as they were tried."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
from harness import serving

from mosec_asgi.host import run
from mosec_asgi.web.uvicorn import supported


def test_what_is_installed_here_is_known_to_work() -> None:
    assert supported.problems() == []


@pytest.mark.parametrize("found", ["0.53.9", "0.55", "0.55.0rc1", "1.0"])
def test_another_version_is_named_with_those_that_are_known(found: str) -> None:
    (problem,) = supported.problems({"uvicorn": ("0.54", "0.55")}, lambda name: found)
    assert all(word in problem for word in ("uvicorn", found, "0.54", "0.55"))


@pytest.mark.parametrize("found", ["0.54", "0.54.0", "0.54.17"])
def test_each_release_of_a_known_version_is_taken(found: str) -> None:
    assert supported.problems({"uvicorn": ("0.54", "0.55")}, lambda name: found) == []


def test_a_package_that_is_not_installed_is_no_problem() -> None:
    assert supported.problems({"no_such_package": ("1", "2")}) == []


def test_a_part_that_has_changed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    def on_body(self: Any, body: bytes, more: bool) -> None:
        """Stand for a later release's."""

    monkeypatch.setattr(HttpToolsProtocol, "on_body", on_body)
    monkeypatch.delattr(HttpToolsProtocol, "on_url")
    problems = supported.problems()
    assert len(problems) == 2
    assert any("on_body" in problem and "more" in problem for problem in problems)
    assert any("on_url" in problem for problem in problems)


def test_the_port_the_signals_and_the_exit_code_need_only_what_is_public_of_uvicorn() -> None:
    tree = ast.parse(Path(run.__file__).read_text())
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    used = {node.attr for node in attributes if isinstance(node.value, ast.Name) and node.value.id == "uvicorn"}
    assert used == {"Config"}
    of_its_server = {node.attr for node in attributes if isinstance(node.value, ast.Name) and node.value.id == "runner"}
    assert of_its_server == {"run", "drain"}
    bases = [ast.unparse(base) for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for base in node.bases]
    assert not [base for base in bases if "uvicorn" in base]


@pytest.mark.parametrize("http", ["auto", "plain"])
def test_the_core_of_http_is_the_same_on_uvicorns_own_way(http: str, tmp_path: Path) -> None:
    stages = "server.append_worker(Echo)\nserver.append_worker(Raw, route='/raw')"
    arguments = ("--http", http, "--max-request-size", "100000", "--compression")
    with serving(tmp_path, stages, *arguments) as program:
        client = program.client
        answer = client.post("/inference", json={"a": 1}, headers={"x-request-id": "mine"})
        assert (answer.status_code, answer.json()["echo"]) == (200, {"a": 1})
        assert answer.headers["x-request-id"] == "mine"
        assert answer.headers["server"].startswith("mosec-asgi/")
        assert answer.headers["content-type"] == "application/json"
        for size in (1, 90_000):
            assert client.post("/raw", content=b"x" * size).content == b"x" * size
        assert client.post("/raw", content=iter([b"a", b"b"])).content == b"ab"
        assert client.post("/raw", content=b"").status_code == 400
        assert client.post("/inference", content=b"{").status_code == 400
        assert client.post("/inference", json="invalid").status_code == 422
        assert client.post("/raw", content=b"1", headers={"x-request-timeout": "soon"}).status_code == 400
        assert client.post("/raw", content=b"1", headers={"content-encoding": "br"}).status_code == 415
        assert client.get("/raw").status_code == 405
        assert client.get("/unknown").status_code == 404
        assert client.get("/readyz").status_code == 200
        assert 'code="200",endpoint="/raw"' in client.get("/metrics").text
        assert program.stop() == 0
        assert "Traceback" not in program.output
