"""The dashboard: a page that shows how the service does, and the numbers that it asks for each second.

The page is a few files of the package and needs no network. The numbers are kept here for some minutes (`History`), so
that whoever opens the page when something has gone wrong sees how it went. Names and errors go to the page as JSON, and
the page shows them as text, never as HTML.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from mosec_asgi.observing.history import INTERVAL, History
from mosec_asgi.observing.statistics import ServiceReport
from mosec_asgi.version import __version__
from mosec_asgi.web.page import Page

ASSETS = Path(__file__).parent / "assets_dashboard"
# The browser enforces it: the page loads nothing from other hosts, and runs no script but its own files.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)


class DashboardPage(Page):
    """The endpoints of the page."""

    def __init__(self, told: Callable[[str, str], Awaitable[bytes]]) -> None:
        """Bind it to what the page shows.

        Args:
            told: returns its numbers, given `run` and `after` of the request; raises `LookupError` where there are none
                at this moment.
        """
        super().__init__(ASSETS, POLICY)
        self._told = told

    async def data(self, request: Request) -> Response:
        """Send how the service stands, and the points that the page has not: those from `after` on, of its `run`."""
        asked = request.query_params
        try:
            told = await self._told(asked.get("run", ""), asked.get("after", ""))
        except LookupError:
            return Response("the engine of this service is not running; retry in a second", 503)
        headers = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
        return Response(told, media_type="application/json", headers=headers)


class Dashboard(DashboardPage):
    """The page, and the record of the last minutes."""

    def __init__(self, report: Callable[[], ServiceReport], *, title: str, stages: int) -> None:
        """Begin with an empty record.

        Args:
            report: returns how the service stands.
            title: of the service.
            stages: how many it has.
        """
        super().__init__(self.told)
        self._report = report
        self._title = title
        self._history = History(stages)
        # A page that finds another one than before has a service before it that was started anew.
        self._run = os.urandom(8).hex()

    async def record(self) -> None:
        """Add a point to the record each second, until it is cancelled."""
        while True:
            self._add()
            await asyncio.sleep(INTERVAL)

    async def told(self, run: str, after: str) -> bytes:
        """Return the numbers as JSON: how the service stands, and the points of its `run` from `after` on."""
        report = self._add()
        known = run == self._run and after.isdecimal() and len(after) < 16
        told: dict[str, Any] = {
            "run": self._run,
            "title": self._title,
            "version": __version__,
            "interval": INTERVAL,
            "time": time.time(),
            "report": report.as_dict(),
            "routes": dict(self._history.latest.routes) if self._history.latest else {},
            "history": self._history.columns(int(after) if known else 0),
        }
        return orjson.dumps(told)

    def _add(self) -> ServiceReport:
        """Return how the service stands, and add it to the record where it is time to."""
        report, now = self._report(), asyncio.get_running_loop().time()
        if self._history.due(now):
            self._history.add(report, now, time.time())
        return report
