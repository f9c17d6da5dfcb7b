"""The benchmark of OpenAI's API: its service answers both ways, and its clients look at their answers."""

from __future__ import annotations

import asyncio

import pytest
from harness import benchmark

servers = benchmark("servers")
spoken = benchmark("spoken")
problems = benchmark("problems")


def test_the_service_answers_both_ways_and_each_client_looks_at_its_answers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spoken, "CONNECTIONS", 2)
    monkeypatch.setattr(spoken, "CLIENTS", 2)
    with servers.alone("embedders", under_uvicorn=True) as server:
        status, body = server.ask("POST", servers.ROUTE, spoken.PLAIN.example)
        assert (status, spoken.PLAIN.is_right(body)) == (200, True)
        assert server.ask("POST", "/v1/embeddings", spoken.OPENAI.example)[0] == 200
        for many in (False, True):
            assert 0.005 < asyncio.run(spoken.waited(server, 0.5, many=many)) < 10
        spoken.cost(server, 1, 1)
    assert "/v1/embeddings gives" in capsys.readouterr().out


def test_a_bar_says_whether_it_is_reached(capsys: pytest.CaptureFixture[str]) -> None:
    assert (spoken._bar("it gives 0.5", True, "at least 0.4"), spoken._bar("0.3", False, "0.4")) == (True, False)
    assert capsys.readouterr().out.splitlines() == ["  it gives 0.5 (at least 0.4)", "  0.3 (0.4) MISSED"]
