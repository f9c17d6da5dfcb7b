"""What all tests share: a file for what a program prints, and no settings from the environment of whoever runs them."""

from __future__ import annotations

import logging
import os
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
