"""HTTP/2 as `run()` speaks it: uvicorn's protocol over zttp, with bounds on what a client may hold.

A stream whose client does not read keeps its sender waiting.

uvicorn lets a sender wait while the connection's socket is full. But over HTTP/2 a client that reads slowly closes the
window of its stream (RFC 9113, section 5.2), and the socket is never full: the data gathers inside zttp, without a
bound. Here the flow control of each stream checks what has gathered there as well. A whole answer that the client does
not take ends the connection after a time.

Frames that only ask for an answer (PING, SETTINGS) may come without end, and so may streams that are reset as soon as
they have begun. Both are counted against the requests that are answered. While the client does not take what was
written, nothing more is read.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Generator
from typing import ClassVar

import zttp
from uvicorn.protocols.http.auto_zttp_impl import AutoZttpProtocol
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.zttp_h2_impl import RequestResponseCycle, ZttpH2Protocol

from mosec_asgi.errors import BAD_REQUEST
from mosec_asgi.web.budget import NO_ROOM_UNREAD, NOT_READ
from mosec_asgi.web.limits import DEFAULT, Limits
from mosec_asgi.web.uvicorn.http1 import Http1Protocol
from mosec_asgi.web.uvicorn.keep_alive import KeepAlive, SilenceTimer
from mosec_asgi.web.uvicorn.shared import Shared
from mosec_asgi.web.uvicorn.slow_clients import give_room

# RFC 9113, section 7.
ENHANCE_YOUR_CALM = 11
# The most frames without content that a connection may send ahead, and how many more each answered request allows.
MOST_IDLE_FRAMES = 1000
IDLE_FRAMES_A_REQUEST = 10
# What a stream counts that is given up before anything was answered: it has cost as much as a request, some 200 µs.
IDLE_FRAMES_A_RESET = 10


class AutoProtocol(AutoZttpProtocol):
    """HTTP/1.1 and prior-knowledge HTTP/2 on one port.

    HTTP/1.1 is served as without the extra `http2`, not by zttp, which copies large bodies more often.
    """

    limits: ClassVar[Limits] = DEFAULT
    shared: ClassVar[Shared] = Shared(DEFAULT)
    _silence: SilenceTimer

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first bytes, for as long as between two requests."""
        self._silence = SilenceTimer(transport, self.limits.keep_alive, self.loop)
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
        # The protocols of the subclass, which have the service's settings.
        protocol.limits = self.limits  # type: ignore[misc]
        protocol.shared = self.shared  # type: ignore[misc]
        self.transport.set_protocol(protocol)
        protocol.connection_made(self.transport)
        if initial_data:
            protocol.data_received(initial_data)


class PacedHttp2Protocol(KeepAlive, ZttpH2Protocol):
    """A connection in which each stream waits for its own client."""

    limits: ClassVar[Limits] = DEFAULT
    shared: ClassVar[Shared] = Shared(DEFAULT)
    # Set when the client has sent something, which may open a window, or is gone.
    _heard: asyncio.Event
    # Frames and streams without content, less what answered requests have allowed.
    _idle_frames = 0
    # Streams whose answers are complete, and which the client has not yet taken whole.
    _untaken: dict[int, zttp.Stream]
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin."""
        self._heard = asyncio.Event()
        self._untaken = {}
        self.logger = self.shared.logger  # type: ignore[assignment]  # as it is used
        self.timeout_keep_alive = math.ceil(self.limits.keep_alive)
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Take in what the client sends, and wake the streams that have waited for it."""
        super().data_received(data)
        if self.transport.is_closing():
            # The client has broken the protocol. What still runs cannot be answered, and zttp would raise.
            for cycle in self.cycles.values():
                cycle.disconnected = True
                cycle.message_event.set()
        self._heard.set()
        if self._untaken:
            self._forget_taken()
        if self.flow.write_paused and self.transport.get_write_buffer_size() > HIGH_WATER_LIMIT:
            # The client does not take what it has asked for, so it must not ask for more.
            self.flow.pause_reading()

    def events(self) -> Generator[zttp.Event]:
        """Yield the events that have come, and end the connection after too many without content."""
        for event in super().events():
            if isinstance(event, (zttp.Ping, zttp.Settings, zttp.RstStream)):
                self._idle_frames += self._worth(event)
                if self._idle_frames > MOST_IDLE_FRAMES:
                    text = "an HTTP/2 connection is ended: too many frames that bring nothing"
                    self.shared.ration.log(logging.WARNING, text)
                    self.conn.close(ENHANCE_YOUR_CALM)
                    self.flush()
                    self.transport.close()
                    return
            yield event

    def _worth(self, event: zttp.Event) -> int:
        """Return for how many frames one counts that brings nothing."""
        cycle = self.cycles.get(event.stream_id) if isinstance(event, zttp.RstStream) else None
        return 1 if cycle is None or cycle.response_started else IDLE_FRAMES_A_RESET

    def resume_writing(self) -> None:
        """Resume sending and reading."""
        super().resume_writing()
        self.resume_reading_if_idle()
        self._release_if_taken()

    def pause_writing(self) -> None:
        """Stop sending, and close the connection if its client reads nothing for too long."""
        super().pause_writing()
        self._look_later()
        if not self._untaken:
            self._give_room(self.transport.get_write_buffer_size())

    def connection_lost(self, exc: Exception | None) -> None:
        """End, wake all streams that wait, and drop what was not sent."""
        super().connection_lost(exc)
        self._heard.set()
        if self._unread is not None:
            self._unread.cancel()
        self._untaken.clear()
        self.shared.unread.release(self)
        # Requests and connection refer to each other, and would keep unsent data until the garbage collector runs.
        for cycle in self.cycles.values():
            cycle.on_response = _nothing
            cycle.resume_reading = _nothing
            cycle.flow = self.flow
        self.cycles.clear()

    def on_response_complete(self, stream_id: int) -> None:
        """Take note of the end of a request."""
        cycle = self.cycles.get(stream_id)
        if cycle is not None and not cycle.disconnected:
            self._idle_frames = max(0, self._idle_frames - IDLE_FRAMES_A_REQUEST)
            if cycle.stream.pending_bytes:
                self._untaken[stream_id] = cycle.stream
                self._look_later()
                self._give_room(cycle.stream.pending_bytes)
            # The two refer to each other.
            cycle.flow = self.flow
        super().on_response_complete(stream_id)

    def _forget_taken(self) -> None:
        self._untaken = {number: stream for number, stream in self._untaken.items() if stream.pending_bytes}
        self._release_if_taken()

    def _release_if_taken(self) -> None:
        if not self._untaken and not self.flow.write_paused:
            self.shared.unread.release(self)

    def _give_room(self, size: int) -> None:
        give_room(self.shared, self, size, self.loop.time())

    def give_up(self) -> None:
        """End the connection, for the room that its answers take."""
        self._is_not_read(NO_ROOM_UNREAD)

    def _is_not_read(self, reason: str) -> None:
        self.shared.ration.log(logging.WARNING, reason)
        self.transport.abort()

    def _look_later(self) -> None:
        if self._unread is None:
            seconds = self.limits.stall_timeout
            self._unread = self.loop.call_later(seconds, self._look_at_unread, self.size_unread())

    def size_unread(self) -> int:
        """Return the bytes of complete answers that the client has not taken, and of all that waits in the socket."""
        pending = sum(stream.pending_bytes or 0 for stream in self._untaken.values())
        return pending + self.transport.get_write_buffer_size()

    def _look_at_unread(self, before: int) -> None:
        """Close the connection if its client reads nothing, or next to nothing, of what waits for it."""
        self._unread = None
        self._forget_taken()
        if not (self._untaken or self.flow.write_paused):
            return
        if before - self.size_unread() < self.limits.least_rate * self.limits.stall_timeout:
            self._is_not_read(NOT_READ)
        else:
            self._look_later()

    def handle_request(self, event: zttp.Request) -> None:
        """Start the app, which sends no faster than its client reads."""
        if not (event.path.isascii() and event.method.isascii()):
            # uvicorn would raise, and the connection would be lost with all its streams.
            self.conn.stream(event.stream_id).send_response(BAD_REQUEST.code, [(b"content-length", b"0")], True)
            return
        super().handle_request(event)
        cycle = self.cycles[event.stream_id]
        cycle.flow = _StreamFlow(self.flow, cycle, self._heard)


def _nothing(stream_id: int = 0) -> None:
    """Do nothing: stands in for methods of a connection that has ended."""


class _StreamFlow(FlowControl):
    """The flow control that uvicorn asks before it sends, for one stream of a connection."""

    def __init__(self, connection: FlowControl, cycle: RequestResponseCycle, heard: asyncio.Event) -> None:
        self._connection = connection
        self._cycle = cycle
        self._heard = heard

    @property
    def write_paused(self) -> bool:  # type: ignore[override]
        """Whether the connection is full, or too much data waits for the stream's window to open."""
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
