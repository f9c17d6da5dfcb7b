"""Several processes that each load the models: one of them warns."""

from __future__ import annotations

import logging
import multiprocessing
import sys
import types
from collections.abc import Iterator

import pytest

from mosec_asgi.host import siblings
from mosec_asgi.host.siblings import warn_of_siblings

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names that are no files are Linux's own")


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, object]]]:
    """Return what each process that the test plays has bound."""
    played: list[dict[str, object]] = []
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: object())
    yield played
    for bound in played:
        for sock in bound.values():
            sock.close()  # type: ignore[attr-defined]


def play(processes: list[dict[str, object]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Go on as another process of the same server."""
    processes.append({})
    monkeypatch.setattr(siblings, "_bound", processes[-1])


def test_the_second_warns_and_no_other(
    processes: list[dict[str, object]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    warned = []
    for _ in range(4):
        play(processes, monkeypatch)
        for _ in range(2):
            # A service may be started anew in one process.
            warn_of_siblings(["/a"], 3)
        warned.append(len(caplog.records))
    assert warned == [0, 1, 1, 1]
    assert "3 workers in each" in caplog.text
    assert "mosec-asgi engine" in caplog.text


def test_other_services_and_other_programs_are_no_siblings(
    processes: list[dict[str, object]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    for route in ("/b", "/c"):
        play(processes, monkeypatch)
        warn_of_siblings([route], 1)
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: None)
    monkeypatch.delitem(sys.modules, "gunicorn.arbiter", raising=False)
    for _ in range(3):
        play(processes, monkeypatch)
        warn_of_siblings(["/d"], 1)
    assert not caplog.records
    monkeypatch.setitem(sys.modules, "gunicorn.arbiter", types.ModuleType("arbiter"))
    for _ in range(2):
        play(processes, monkeypatch)
        warn_of_siblings(["/d"], 1)
    assert len(caplog.records) == 1
