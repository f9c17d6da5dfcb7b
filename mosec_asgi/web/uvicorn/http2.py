"""Back-pressure over HTTP/2: a stream whose client does not read keeps its sender waiting.

uvicorn lets a sender wait while the connection's socket is full. But over HTTP/2 a client that reads slowly closes the
window of its stream (RFC 9113, section 5.2), and the socket is never full: what is sent then gathers inside zttp, and
nothing bounds it. Here the flow control of each stream looks at what has gathered there as well.
"""

from __future__ import annotations

import asyncio

import zttp
from uvicorn.protocols.http.auto_zttp_impl import AutoZttpProtocol
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.zttp_h2_impl import RequestResponseCycle, ZttpH2Protocol

from mosec_asgi.web.uvicorn.http1 import Http1Protocol
from mosec_asgi.web.uvicorn.keep_alive import KeepAlive, SilenceTimer


class AutoProtocol(AutoZttpProtocol):
    """HTTP/1.1 and prior-knowledge HTTP/2 on one port.

    HTTP/1.1 is the same as without the extra `http2`, and not zttp's, which copies large bodies more often.
    """

    _silence: SilenceTimer

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first bytes, as long as between two requests."""
        self._silence = SilenceTimer(transport, self.config.timeout_keep_alive, self.loop)
        super().connection_made(transport)
        if self.timeout_task is not None:
            self.timeout_task.cancel()
            self.timeout_task = None
            self._silence.begin()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        super().connection_lost(exc)
        self._silence.stop()

    def _switch(self, http2: bool, initial_data: bytes = b"") -> None:
        self._silence.stop()
        kind: type[PacedHttp2Protocol | Http1Protocol] = PacedHttp2Protocol if http2 else Http1Protocol
        protocol = kind(self.config, self.server_state, self.app_state, self.loop)
        self.transport.set_protocol(protocol)
        protocol.connection_made(self.transport)
        if initial_data:
            protocol.data_received(initial_data)


class PacedHttp2Protocol(KeepAlive, ZttpH2Protocol):
    """A connection whose streams wait for their clients, each for itself."""

    # Set when the client has sent something, which may have opened a window, or is gone.
    _heard: asyncio.Event

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin."""
        self._heard = asyncio.Event()
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Take what the client sends, and let those go on who have waited for it."""
        super().data_received(data)
        self._heard.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """End, and let all go on who wait."""
        super().connection_lost(exc)
        self._heard.set()

    def handle_request(self, event: zttp.Request) -> None:
        """Start the app, which sends no faster than its client reads."""
        super().handle_request(event)
        cycle = self.cycles[event.stream_id]
        cycle.flow = _StreamFlow(self.flow, cycle, self._heard)


class _StreamFlow(FlowControl):
    """What uvicorn asks before it sends, for one stream of a connection."""

    def __init__(self, connection: FlowControl, cycle: RequestResponseCycle, heard: asyncio.Event) -> None:
        self._connection = connection
        self._cycle = cycle
        self._heard = heard

    @property
    def write_paused(self) -> bool:  # type: ignore[override]
        """Whether the connection is full, or too much waits for the stream's window to open."""
        if self._cycle.disconnected:
            return False
        return self._connection.write_paused or (self._cycle.stream.pending_bytes or 0) > HIGH_WATER_LIMIT

    async def drain(self) -> None:
        """Wait until there is room, or the client is gone."""
        while self.write_paused:
            if self._connection.write_paused:
                await self._connection.drain()
            else:
                self._heard.clear()
                await self._heard.wait()
