"""HTTP/1.1 as `run()` speaks it: uvicorn's protocol over httptools, and every request hears of its client's leaving.

A client may send its next request before it has its answer (pipelining, RFC 9112, section 9.3.2), and the server runs
them one after the other. When the client leaves, uvicorn tells only the newest of its requests, and the one that runs,
for which a worker is at work, would go on in vain.
"""

from __future__ import annotations

from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from mosec_asgi.web.keep_alive import KeepAlive


class Http1Protocol(KeepAlive, HttpToolsProtocol):
    """A connection whose running request hears that its client has left."""

    _running: RequestResponseCycle | None = None

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def connection_lost(self, exc: Exception | None) -> None:
        """End, and let the request know that runs."""
        super().connection_lost(exc)
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()
