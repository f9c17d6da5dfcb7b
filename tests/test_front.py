"""The front of a service that follows another one on the protocols' own ports."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from mosec_asgi.errors import StartupError
from mosec_asgi.front import PORT_SECONDS, Front


class Listener:
    """A protocol's own port.

    Attributes:
        is_taken: another process has it.
        is_open: it was opened.
    """

    def __init__(self, *, is_taken: bool) -> None:
        self.is_taken = is_taken
        self.is_open = False

    async def start(self, *_: Any) -> None:
        """Open it."""
        if self.is_taken:
            raise StartupError("the port 8001 is taken")
        self.is_open = True


async def test_a_port_that_stays_taken_keeps_no_other_one_closed(caplog: pytest.LogCaptureFixture) -> None:
    taken, free = Listener(is_taken=True), Listener(is_taken=False)
    front: Any = object.__new__(Front)
    front.loop = asyncio.get_running_loop()
    # The time that the process before this one has for its end is over.
    front._settings = SimpleNamespace(grace_seconds=-PORT_SECONDS)
    front._listeners = {taken: [], free: []}
    front._shared = None
    await front.take_ports()
    assert free.is_open
    [line] = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert line == "the port 8001 is taken; this port stays closed until the service is started again"
