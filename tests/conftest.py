"""What all tests share: a file for what a program prints, and no settings from the environment of whoever runs them."""

from __future__ import annotations

import logging
import os
from collections.abc import Generator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _no_settings_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("MOSEC_"):
            monkeypatch.delenv(name)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Where a program under test prints to."""
    return tmp_path / "output.log"


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Catch all that the package logs, from debug on."""
    caplog.set_level(logging.DEBUG, logger="mosec_asgi")
    return caplog


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Write what is no Unicode in the captured log lines as escapes: a report has to pass to another process."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report
