"""Connections that take the last files which the process may have open: the log says so."""

from __future__ import annotations

import logging
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from harness import serving

from mosec_asgi.web.uvicorn.open_files import LAST, SECONDS, OpenFiles

LOGGER = logging.getLogger("mosec_asgi.test_open_files")


@pytest.fixture
def limit() -> Iterator[int]:
    """Set a limit for this process, and set it back."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    number = before[0] - 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, before[1]))
    yield number
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_last_descriptors_are_said_once_a_minute(limit: int, caplog: pytest.LogCaptureFixture) -> None:
    now = 100.0
    files = OpenFiles(LOGGER, lambda: now)
    for number in (3, limit - LAST - 1):
        files.look(number)
    assert not caplog.records
    for _ in range(3):
        files.look(limit - LAST)
        files.look(limit - 1)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"all of the {limit} files" in caplog.text
    now += SECONDS
    files.look(limit - 1)
    assert len(caplog.records) == 2


def test_a_limit_that_has_been_raised_since_is_the_one_that_counts(
    limit: int, caplog: pytest.LogCaptureFixture
) -> None:
    files = OpenFiles(LOGGER)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    files.look(limit - LAST)
    assert not caplog.records
    files.look(limit + 1 - LAST)
    assert f"all of the {limit + 1} files" in caplog.text


def test_where_there_is_no_limit_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # As on macOS.
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    OpenFiles(LOGGER).look(100_000)
    assert not caplog.records


def test_a_service_without_descriptors_for_its_clients_says_so(tmp_path: Path) -> None:
    limits = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (80, 80))"
    with (
        serving(tmp_path, f'{limits}\nserver.append_worker(Echo, executor="thread")') as program,
        ExitStack() as clients,
    ):
        for _ in range(80):
            clients.enter_context(socket.create_connection(("127.0.0.1", program.port)))
        program.wait_for_output("nearly all of the 80 files")
        clients.close()
        program.wait_ready()
        assert [line["level"] for line in program.lines() if "nearly all" in line["fields"]["message"]] == ["WARNING"]
